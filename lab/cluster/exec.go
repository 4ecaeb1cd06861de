package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"wayleave.dev/lab/fabric"
	"wayleave.dev/lab/node"
)

// Exec runs a command on a machine of the lab (a node, "control", "outside") with this process's standard files; a
// shell if there is no command. The error is an *exec.ExitError if the command ran and failed.
func (l *Lab) Exec(ctx context.Context, machine string, command []string) error {
	s, err := load(l.Dirs)
	if err != nil {
		return err
	}
	if len(command) == 0 {
		command = []string{"/bin/sh"}
		if shell, err := exec.LookPath("bash"); err == nil {
			command[0] = shell
		}
	}
	cmd, err := l.in(ctx, s, machine, command)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if namespace := clients[machine]; namespace != "" {
		if err := fabric.Do(namespace, cmd.Start); err != nil {
			return err
		}
		return cmd.Wait()
	}
	return cmd.Run()
}

// clients are the machines that consist of a network namespace only, with its name.
var clients = map[string]string{"outside": fabric.Outside, "client": fabric.Client}

// Cable connects a node to the network, or disconnects it.
func (l *Lab) Cable(_ context.Context, machine string, in bool) error {
	s, err := load(l.Dirs)
	if err != nil {
		return err
	}
	for i := range s.Nodes {
		if fabric.NodeName(i+1) == machine {
			return fabric.Cable(machine, in)
		}
	}
	return fmt.Errorf("cable: %q is not a node of this lab", machine)
}

func (l *Lab) in(ctx context.Context, s state, machine string, command []string) (*exec.Cmd, error) {
	known := []string{"control", "outside", "client"}
	for i := range s.Nodes {
		known = append(known, fabric.NodeName(i+1))
	}
	env := []string{"KUBECONFIG=" + l.Dirs.FabricKubeconfig(), "PATH=" + os.Getenv("PATH") + ":" +
		filepath.Dir(s.Kubectl) + ":" + filepath.Dir(s.Ctr),
		"TERM=" + os.Getenv("TERM"), "CONTAINERD_NAMESPACE=k8s.io"}
	for _, name := range known {
		if name != machine {
			continue
		}
		if clients[machine] != "" {
			cmd := exec.CommandContext(ctx, command[0], command[1:]...)
			cmd.Env = append(os.Environ(), env...)
			return cmd, nil
		}
		cmd, err := l.inMachine(ctx, machine, command...)
		if err != nil {
			return nil, err
		}
		cmd.Env = append(cmd.Env, env...)
		return cmd, inGroups(cmd, machine)
	}
	return nil, fmt.Errorf("%q is not a machine of this lab; allowed: %s", machine, strings.Join(known, ", "))
}

// inGroups makes a command join the node's cgroups first, so that programs that the node attached to them see its
// traffic, too.
func inGroups(cmd *exec.Cmd, machine string) error {
	if machine == "control" {
		return nil
	}
	files, err := node.GroupFiles(machine)
	if err != nil {
		return err
	}
	script := `for f in ` + strings.Join(files, " ") + `; do echo 0 >"$f" || exit 1; done; exec "$@"`
	cmd.Args = append([]string{"sh", "-c", script, "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	return nil
}
