package testnet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

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
	users, made int
	path        string
	original    string
}

// Cgroup creates a cgroup of version 2 until the test ends, and returns its path. Threads enter it by NS.Enter.
// Programs that are attached there see the sockets that such threads open, and no others.
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
	c.made++
	own := filepath.Join(c.path, fmt.Sprint(c.made))
	t.Cleanup(func() {
		c.Lock()
		defer c.Unlock()
		// Threads end a moment after their goroutine.
		Eventually(t, 30*time.Second, func() error { return os.Remove(own) })
		if c.users--; c.users > 0 {
			return
		}
		if err := os.WriteFile(filepath.Join(c.original, "cgroup.procs"), []byte("0"), 0); err != nil {
			t.Errorf("cgroup: %v", err)
		}
		// Programs that other tests started meanwhile were born in it, and end when they have done their work.
		Eventually(t, time.Minute, func() error { return os.Remove(c.path) })
	})
	err := os.Mkdir(own, 0o755)
	if err := errors.Join(err, os.WriteFile(filepath.Join(own, "cgroup.type"), []byte("threaded"), 0)); err != nil {
		t.Fatalf("cgroup: %v", err)
	}
	return own
}

// enterCgroup moves this process to a cgroup of its own, in which threads can have others.
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
			if err := os.Mkdir(cgroup.path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				return err // one that exists is left by an earlier test of this process
			}
			return os.WriteFile(filepath.Join(cgroup.path, "cgroup.procs"), []byte("0"), 0)
		}
	}
	return errors.New("no hierarchy of version 2 is mounted at /sys/fs/cgroup or below")
}

// workers are threads of a namespace in a cgroup. To move a thread takes the kernel milliseconds, so they are reused.
type workers struct {
	cgroup string
	jobs   chan func()
}

// Enter has Do run on threads of the cgroup, until the test ends.
func (n *NS) Enter(cgroup string) {
	w := &workers{cgroup, make(chan func())}
	n.workers.Store(w)
	n.t.Cleanup(func() {
		n.workers.Store(nil)
		close(w.jobs)
	})
}

// do runs a job on an idle thread, or on a new one.
func (w *workers) do(n *NS, fn func() error) (err error) {
	done := make(chan struct{})
	job := func() {
		defer close(done) // also if fn ends the goroutine
		err = fn()
	}
	select {
	case w.jobs <- job:
		<-done
		return err
	default:
	}
	go func() {
		runtime.LockOSThread() // never unlocked, see New
		if err = w.enter(n); err != nil {
			close(done)
			return
		}
		job()
		for job := range w.jobs {
			job()
		}
	}()
	<-done
	return err
}

func (w *workers) enter(n *NS) error {
	if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", n.Name, err)
	}
	return os.WriteFile(filepath.Join(w.cgroup, "cgroup.threads"), []byte(strconv.Itoa(unix.Gettid())), 0)
}
