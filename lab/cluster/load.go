package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"wayleave.dev/lab/fabric"
	"wayleave.dev/lab/process"
)

// Load imports the images of a docker-archive into every node, and makes the lab's registry serve them.
func (l *Lab) Load(ctx context.Context, archive string) error {
	s, err := load(l.Dirs)
	if err != nil {
		return err
	}
	if archive, err = filepath.Abs(archive); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if _, err := os.Stat(archive); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := l.serveImage(archive); err != nil {
		return err
	}
	var group errgroup.Group
	for i := range s.Nodes {
		group.Go(func() error {
			return l.importImages(ctx, fabric.NodeName(i+1), s.Ctr, []string{archive})
		})
	}
	return group.Wait()
}

// importImages imports archives into a node's containerd, once it listens. The archive is passed as standard input: the
// node need not see the file.
func (l *Lab) importImages(ctx context.Context, name, ctr string, archives []string) error {
	began := time.Now()
	deadline, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	err := process.WaitFor(deadline, "containerd of "+name, 100*time.Millisecond, func() error {
		cmd, err := l.inMachine(deadline, name, ctr, "version")
		if err != nil {
			return err
		}
		return cmd.Run()
	})
	if err != nil {
		return err
	}
	for _, archive := range archives {
		file, err := os.Open(archive)
		if err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		defer file.Close()
		cmd, err := l.inMachine(deadline, name, ctr, "-n", "k8s.io", "images", "import", "--local", "-")
		if err != nil {
			return err
		}
		cmd.Stdin = file
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("lab: import %s into %s: %w\n%.2000s", archive, name, err, out)
		}
	}
	l.Progress.Printf("%s has its images (%.1fs)", name, time.Since(began).Seconds())
	return nil
}

// inMachine returns a command that runs inside of a node or of the control plane.
func (l *Lab) inMachine(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	r, err := process.Load(l.Dirs.Processes(), name)
	if err != nil {
		return nil, err
	}
	if !r.Alive() {
		return nil, fmt.Errorf("lab: %s is not running; see %s", name, filepath.Join(l.Dirs.Logs(), name+".log"))
	}
	enter := []string{"--target", strconv.Itoa(r.PID), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
		"--root", "--wd", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = process.Environment()
	return cmd, nil
}
