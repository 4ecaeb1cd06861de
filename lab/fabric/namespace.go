// Package fabric is the network between the lab's machines: one Ethernet segment, to which the nodes, the control plane
// and an external client are attached, each in a network namespace. It adds no link, address, route, rule or sysctl to
// the namespace in which the lab was started.
package fabric

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// folder is the folder of named namespaces, as in iproute2.
const folder = "/run/netns"

// File returns the file that holds a named namespace.
func File(name string) string { return filepath.Join(folder, name) }

// Create creates a named network namespace with its loopback up.
func Create(name string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	file, err := os.OpenFile(File(name), os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	file.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		own := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		return unix.Mount(own, File(name), "", unix.MS_BIND, "")
	})
	if err != nil {
		return errors.Join(fmt.Errorf("namespace %s: %w", name, err), os.Remove(File(name)))
	}
	return nil
}

// Delete removes a named namespace; a missing one is not an error. Links in it remain while a process is in it.
func Delete(name string) error {
	file := File(name)
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for {
		err := unix.Unmount(file, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) { // no mount is left
			break
		}
		if err != nil {
			return fmt.Errorf("namespace %s: %w", name, err)
		}
	}
	if err := os.Remove(file); err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	return nil
}

// Do calls f on a thread in the namespace. f must not pass work to other goroutines; a process that it starts is in the
// namespace, too.
func Do(name string, f func() error) error {
	file, err := os.Open(File(name))
	if err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	defer file.Close()
	return onThread(func() error {
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("namespace %s: %w", name, err)
		}
		return f()
	})
}

// onThread calls f on a thread of its own that ends with it, instead of returning to the scheduler in another
// namespace.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
