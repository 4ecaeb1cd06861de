package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/lab/fabric"
	"wayleave.dev/lab/node"
	"wayleave.dev/lab/process"
)

const downDeadline = time.Minute

// Down takes the lab down. It is not an error if no lab is up, or only parts of one.
func (l *Lab) Down(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("lab: removing namespaces needs root")
	}
	unlock, err := lock(lockName)
	if err != nil {
		return err
	}
	defer unlock()
	return l.down(ctx)
}

func (l *Lab) down(ctx context.Context) error {
	if err := l.others(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, downDeadline, errors.New("the lab does not go down"))
	defer cancel()
	// When the first process of a machine ends, the kernel ends all others in it.
	records, err := process.LoadAll(l.Dirs.Processes())
	if err != nil {
		// The process is found below, without its record.
		l.Progress.Printf("%v", err)
	}
	var errs []error
	for _, r := range records {
		errs = append(errs, r.Kill(ctx))
	}
	errs = append(errs, l.killStrays(ctx))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := errors.Join(fabric.Destroy(), node.RemoveCgroups(), unmountBelow(l.Dirs.Data),
		unmountBelow(l.Dirs.State)); err != nil {
		return err
	}
	for _, dir := range []string{l.Dirs.Data, l.Dirs.State} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
	}
	return nil
}

// killStrays ends processes without a record: those that people started in the lab's namespaces, by "lab exec" for
// example, and those that a killed "up" had just started.
func (l *Lab) killStrays(ctx context.Context) error {
	strays, err := process.Executing(l.self())
	if err != nil {
		return err
	}
	for _, name := range fabric.Existing() {
		inside, err := process.InNamespace(fabric.File(name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		strays = append(strays, inside...)
	}
	for _, r := range strays {
		if err := r.Kill(ctx); err != nil {
			return err
		}
	}
	return nil
}

// unmountBelow removes the mounts at or below dir in this mount namespace, innermost first.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	var errs []error
	lines := strings.Split(string(data), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		fields := strings.Fields(lines[i])
		if len(fields) < 5 || fields[4] != dir && !strings.HasPrefix(fields[4], dir+"/") {
			continue
		}
		if err := unix.Unmount(fields[4], unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("lab: unmount %s: %w", fields[4], err))
		}
	}
	return errors.Join(errs...)
}
