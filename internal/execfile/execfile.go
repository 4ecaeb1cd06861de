// Package execfile writes programs that can be executed at once.
//
// The kernel executes no file that is open for writing (ETXTBSY, execve(2)). A process that forks while it has such a
// file open passes the descriptor to its child, which keeps it until it executes its own program; so a fork by another
// thread is enough. This package prevents forks while it has a file open for writing.
package execfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Install writes a program to a path atomically: a running program continues with the old file. The folder is created
// if it is missing. When Install returns nil the program is on disk, and can be executed. It may be called concurrently
// for different paths.
func Install(name string, program []byte, mode fs.FileMode) error {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("install %s: %w", name, err)
	}
	temp := filepath.Join(dir, "."+filepath.Base(name)+".new")
	err := errors.Join(write(temp, program, mode), flush(temp))
	if err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		_ = os.Remove(temp) // the first error is returned
		return fmt.Errorf("install %s: %w", name, err)
	}
	if err := flush(dir); err != nil {
		return fmt.Errorf("install %s: %w", name, err)
	}
	return nil
}

// write writes a file while no fork is possible. Linux's fork for os/exec holds ForkLock until the child has executed
// its program (CLONE_VFORK).
func write(name string, content []byte, mode fs.FileMode) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(name, content, mode); err != nil {
		return err
	}
	return os.Chmod(name, mode) // an existing file may have another mode, and the umask applies to a new one
}

// flush makes the kernel write a file or folder to disk; that needs no write permission.
func flush(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
