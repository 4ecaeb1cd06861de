// Package owner gives a node's state one owner at a time, also while the pods of
// two versions overlap: a lock on a file that the kernel frees when its holder
// dies, however it dies.
package owner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Lock is the ownership, held until Release or the end of the process.
type Lock struct{ file *os.File }

// Acquire waits for the lock until ctx ends. waiting, if not nil, is called once
// when somebody else holds it.
func Acquire(ctx context.Context, path string, waiting func()) (*Lock, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("owner lock: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("owner lock: %w", err)
	}
	for first := true; ; first = false {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &Lock{f}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("owner lock %s: %w", path, err)
		}
		if first && waiting != nil {
			waiting()
		}
		// A blocking flock cannot be given up when ctx ends; 20 ms is far below
		// anything that a takeover is measured by.
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Release gives the ownership up.
func (l *Lock) Release() error {
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("owner lock: %w", err)
	}
	return nil
}
