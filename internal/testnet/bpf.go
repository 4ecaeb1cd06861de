package testnet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// BPFFS returns the path of a new BPF file system. It is mounted nowhere: the test process holds it by a descriptor, so
// nothing is left behind.
func BPFFS(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a BPF file system needs root (CAP_SYS_ADMIN)")
	}
	fs, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatalf("BPF file system: %v", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		t.Fatalf("BPF file system: %v", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("BPF file system: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fmt.Sprintf("/proc/self/fd/%d", fd)
}

// cgroup is the one of this process, while tests use it.
var cgroup struct {
	sync.Mutex
	users    int
	path     string
	original string
}

// Cgroup moves the test process to a cgroup of version 2 of its own until the test ends, and returns its path. Programs
// that are attached there see the sockets that the process opens from now on, and no others. Tests share it.
func Cgroup(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a cgroup needs root")
	}
	c := &cgroup
	c.Lock()
	defer c.Unlock()
	if c.users == 0 {
		if err := enterCgroup(); err != nil {
			t.Fatalf("cgroup: %v", err)
		}
	}
	c.users++
	t.Cleanup(func() {
		c.Lock()
		defer c.Unlock()
		if c.users--; c.users > 0 {
			return
		}
		err := os.WriteFile(filepath.Join(c.original, "cgroup.procs"), []byte("0"), 0)
		if err := errors.Join(err, os.Remove(c.path)); err != nil {
			t.Errorf("cgroup: %v", err)
		}
	})
	return c.path
}

func enterCgroup() error {
	raw, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(raw)) {
		own, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			var st unix.Statfs_t
			if unix.Statfs(mount, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
				continue
			}
			cgroup.original = filepath.Join(mount, own)
			cgroup.path = filepath.Join(cgroup.original, fmt.Sprintf("wayleave-test-%d", os.Getpid()))
			if err := os.Mkdir(cgroup.path, 0o755); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(cgroup.path, "cgroup.procs"), []byte("0"), 0)
		}
	}
	return errors.New("no hierarchy of version 2 is mounted at /sys/fs/cgroup or below")
}
