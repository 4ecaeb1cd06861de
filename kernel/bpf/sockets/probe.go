package sockets

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// watchEvery is how often links are inspected: the kernel reports no detached link.
const watchEvery = 500 * time.Millisecond

// tick waits; it reports false when ctx has ended.
func tick(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Possible returns what is missing for the programs, or nil. It attaches nothing and leaves nothing.
func (k *Kernel) Possible() error {
	cgroup, err := openCgroup(k.Cgroup)
	if err != nil {
		return err
	}
	_ = cgroup.Close()
	if err := isBPFFS(k.Folder); err != nil {
		return err
	}
	if _, err := cookie(k.NSFD); err != nil {
		return err
	}
	spec, err := loadProgram()
	if err != nil {
		return fmt.Errorf("sockets: %w", err)
	}
	for _, m := range spec.Maps {
		m.MaxEntries = min(m.MaxEntries, 1)
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("sockets: the kernel refuses the programs: %w", err)
	}
	c.Close()
	return nil
}

// FindCgroup returns the root of the cgroup hierarchy of version 2 below a mount point: the mount point itself, or its
// folder "unified" where version 1 is mounted, too.
func FindCgroup(mount string) (string, error) {
	for _, dir := range []string{mount, filepath.Join(mount, "unified")} {
		if isType(dir, unix.CGROUP2_SUPER_MAGIC) == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("sockets: neither %s nor its folder unified is a hierarchy of cgroup version 2", mount)
}

func openCgroup(dir string) (*os.File, error) {
	if err := isType(dir, unix.CGROUP2_SUPER_MAGIC); err != nil {
		return nil, fmt.Errorf("sockets: %s is not a cgroup of version 2: %w", dir, err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("sockets: cgroup: %w", err)
	}
	return f, nil
}

// isBPFFS returns an error if the folder, or the nearest parent that exists, is of no BPF file system.
func isBPFFS(dir string) error {
	for {
		err := isType(dir, unix.BPF_FS_MAGIC)
		if !errors.Is(err, os.ErrNotExist) || dir == filepath.Dir(dir) {
			if err != nil {
				return fmt.Errorf("sockets: %s is not in a BPF file system; on the node try: "+
					"mount -t bpf bpf /sys/fs/bpf: %w", dir, err)
			}
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

func isType(dir string, magic int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Type != magic {
		return fmt.Errorf("it has type %#x", st.Type)
	}
	return nil
}
