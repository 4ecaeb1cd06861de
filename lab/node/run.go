package node

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"wayleave.dev/lab/process"
)

// Namespaces are those in which a machine's first process is started, besides its network.
const Namespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// joined marks the second run of a node's first process.
const joined = "WAYLEAVE_LAB_JOINED"

// Run is the first process of a node or of the control plane. It creates the machine and keeps its services running.
//
// It executes itself once: a cgroup namespace belongs to the calling thread, and only one thread survives an exec.
func Run(ctx context.Context, file string, log *slog.Logger) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	var spec Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return fmt.Errorf("node: %s: %w", file, err)
	}
	if os.Getpid() != 1 {
		return fmt.Errorf("node %s: not the first process of a process namespace", spec.Hostname)
	}
	if spec.Machine != nil && os.Getenv(joined) == "" {
		return enterCgroups(spec.Machine.Cgroup)
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("node %s: host name: %w", spec.Hostname, err)
	}
	if err := spec.mount(); err != nil {
		return fmt.Errorf("node %s: %w", spec.Hostname, err)
	}
	return process.Supervise(ctx, spec.Services, spec.Logs, log)
}

func enterCgroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := join(all, name); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("cgroup namespace: %w", err)
	}
	// /proc/self belongs to the outer process namespace until /proc is mounted again.
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	return unix.Exec(self, os.Args, append(os.Environ(), joined+"=1"))
}

func (s Spec) mount() error {
	if s.Machine != nil {
		all, err := hierarchies()
		if err != nil {
			return err
		}
		return s.Machine.mount(all)
	}
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, "")
}
