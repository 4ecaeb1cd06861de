package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"wayleave.dev/lab/process"
)

// Status prints what is up, and which of its processes and nodes are not. It returns ErrDown if nothing is up.
func (l *Lab) Status(ctx context.Context) error {
	s, err := load(l.Dirs)
	if err != nil {
		return err
	}
	records, err := process.LoadAll(l.Dirs.Processes())
	if err != nil {
		return err
	}
	fmt.Fprintf(l.Out, "Kubernetes %s, %d nodes, network %s, dual-stack %t\n", s.Kubernetes, s.Nodes,
		s.Network, s.DualStack)
	fmt.Fprintf(l.Out, "export KUBECONFIG=%s\nlogs in %s\n", l.Dirs.Kubeconfig(), l.Dirs.Logs())
	ended := 0
	for _, r := range records {
		state := "running"
		if !r.Alive() {
			state = "ENDED"
			ended++
		}
		fmt.Fprintf(l.Out, "  %-10s %-8s process %d\n", r.Name, state, r.PID)
	}
	cmd := exec.CommandContext(ctx, s.Kubectl, "get", "nodes", "-o", "wide", "-L", "topology.kubernetes.io/zone",
		"--request-timeout=5s")
	cmd.Env = append(process.Environment(), "KUBECONFIG="+l.Dirs.Kubeconfig())
	cmd.Stdout, cmd.Stderr = l.Out, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("lab: the API server does not answer: %w", err)
	}
	if ended > 0 {
		return fmt.Errorf(`lab: %d of its processes have ended; run "lab down" and "lab up" again`, ended)
	}
	return nil
}

// Kubeconfig returns the file for use on this machine, or ErrDown.
func (l *Lab) Kubeconfig() (string, error) {
	if _, err := load(l.Dirs); err != nil {
		return "", err
	}
	return l.Dirs.Kubeconfig(), nil
}
