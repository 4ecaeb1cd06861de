// Package fabric is the network between the lab's machines: one Ethernet
// segment, to which the nodes, the control plane and a client outside of the
// cluster are attached, each a network namespace. The namespace that the lab
// was started in gets no link, address, route, rule or sysctl of it.
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

// folder is where named namespaces are, as iproute2 has it.
const folder = "/run/netns"

// File is the file that holds a named namespace.
func File(name string) string { return filepath.Join(folder, name) }

// Create makes a named network namespace with its loopback up.
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

// Delete removes a named namespace; one that is not there is no error. Links
// in it live on while a process is in it.
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

// Do runs f on a thread that is in the namespace. f must not leave work to
// other goroutines; a process that it starts is in the namespace too.
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

// onThread runs f on a thread of its own that ends with it, instead of going
// back to the scheduler in another namespace than it came from.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
