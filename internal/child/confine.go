package child

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// confinedEnv marks the program as executed again by Confine.
const confinedEnv = "WAYLEAVE_CONFINED"

// Confine removes every capability of this process but keep, and the way to regain one (no_new_privs); the way to other
// processes (see lockCalls); and access to files other than its own, if the kernel supports that (see lockFiles).
//
// Go has many threads, and a thread can drop only its own capabilities. Therefore one thread drops everything and
// executes the program again, which ends all other threads. When Confine returns nil, it has checked every thread: none
// has another capability, and none can gain any.
func Confine(keep ...Capability) error {
	err := Confined(keep...)
	if err == nil {
		return nil
	}
	if os.Getenv(confinedEnv) != "" {
		return fmt.Errorf("cannot drop the rights of this process: %w", err)
	}
	runtime.LockOSThread() // never unlocked: it has lost its rights
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	// With no_new_privs, a program executed by root has no more rights than the thread had: the bounding set need not
	// be emptied, which would need CAP_SETPCAP.
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var kept [2]unix.CapUserData
	for _, c := range keep {
		kept[c/32].Permitted |= 1 << (c % 32)
	}
	// Other users than root keep a capability only across an execution that is told so: it is ambient.
	for i := range kept {
		kept[i].Effective, kept[i].Inheritable = kept[i].Permitted, kept[i].Permitted
	}
	if err := unix.Capset(&head, &kept[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	for _, c := range keep {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return fmt.Errorf("keep capability %d: %w", c, err)
		}
	}
	if _, err := lockFiles(); err != nil {
		return err
	}
	if err := lockCalls(); err != nil {
		return err
	}
	err = syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), confinedEnv+"=1"))
	return fmt.Errorf("execute again without capabilities: %w", err)
}

// Capability is the number of a capability in linux/capability.h.
type Capability uint

// BindService is the right to bind ports below 1024.
const BindService Capability = unix.CAP_NET_BIND_SERVICE

// Confined returns which right except keep a thread of this process still has, or nil.
func Confined(keep ...Capability) error {
	if err := callsLocked(); err != nil {
		return err
	}
	files, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(files) == 0 {
		return errors.Join(errors.New("no threads below /proc/self/task"), err)
	}
	for _, f := range files {
		// A thread may end during the check; the one that checks does not.
		if err := confined(f, keep); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

func confined(status string, keep []Capability) error {
	f, err := os.Open(status)
	if err != nil {
		return err
	}
	defer f.Close()
	var set uint64
	for _, c := range keep {
		set |= 1 << c
	}
	kept := fmt.Sprintf("%016x", set)
	want := map[string]string{"CapInh": kept, "CapPrm": kept, "CapEff": kept, "CapAmb": kept, "NoNewPrivs": "1"}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		w, ok := want[key]
		if !ok {
			continue
		}
		if got := strings.TrimSpace(value); got != w {
			return fmt.Errorf("%s: %s is %s, want %s", status, key, got, w)
		}
		delete(want, key)
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if len(want) > 0 {
		return fmt.Errorf("%s: lines are missing: %v", status, want)
	}
	return nil
}
