// Package execfile writes programs that are executed at once.
//
// The kernel executes no file that is open for writing (ETXTBSY, execve(2)). A process that
// forks while it has such a file open gives the descriptor to its child, which has it until it
// executes its own program; so another thread's fork is enough. This package forks nothing
// while it has a file open for writing.
package execfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Install puts a program at a path, whole or not at all, in place of what is there: a program
// that runs goes on with the old one. The folder is made when it is missing. When it returns
// nil the program is on the disk, and can be executed. It may be called concurrently for
// different paths.
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
		_ = os.Remove(temp) // what is wrong is said already
		return fmt.Errorf("install %s: %w", name, err)
	}
	if err := flush(dir); err != nil {
		return fmt.Errorf("install %s: %w", name, err)
	}
	return nil
}

// write writes a file while nothing forks. Linux's fork for os/exec holds ForkLock until the
// child has executed its program (CLONE_VFORK).
func write(name string, content []byte, mode fs.FileMode) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(name, content, mode); err != nil {
		return err
	}
	return os.Chmod(name, mode) // a file of before may have another, and umask may have taken from it
}

// flush has the kernel write a file or folder to the disk; that needs no right to write.
func flush(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
