// Package owner ensures that a node's state has one owner at a time, also while the pods of two versions overlap: it
// locks a file, and the kernel releases the lock when its holder dies, for any reason.
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
type Lock struct {
	file *os.File
	path string
}

// Acquire waits for the lock until ctx ends. waiting, if not nil, is called once
// if another process holds it.
func Acquire(ctx context.Context, path string, waiting func()) (*Lock, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("owner lock: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("owner lock: %w", err)
	}
	var queue *os.File // shared lock, held while waiting
	defer func() {
		if queue != nil {
			queue.Close()
		}
	}()
	for first := true; ; first = false {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &Lock{f, path}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("owner lock %s: %w", path, err)
		}
		if first {
			if queue, err = enqueue(path); err != nil {
				f.Close()
				return nil, err
			}
			if waiting != nil {
				waiting()
			}
		}
		// A blocking flock cannot be cancelled when ctx ends. 20 ms is short compared with a takeover.
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// queueOf returns the file on which waiting processes hold a shared lock, so that the owner sees them.
func queueOf(path string) string { return path + ".waiting" }

func enqueue(path string) (*os.File, error) {
	q, err := os.OpenFile(queueOf(path), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("owner lock: %w", err)
	}
	for {
		// The owner may hold the lock for a moment, in Awaited.
		switch err := unix.Flock(int(q.Fd()), unix.LOCK_SH); {
		case err == nil:
			return q, nil
		case !errors.Is(err, unix.EINTR):
			q.Close()
			return nil, fmt.Errorf("owner lock %s: %w", queueOf(path), err)
		}
	}
}

// Awaited reports whether another process waits for the ownership.
func (l *Lock) Awaited() (bool, error) {
	q, err := os.OpenFile(queueOf(l.path), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, fmt.Errorf("owner lock: %w", err)
	}
	defer q.Close()
	switch err := unix.Flock(int(q.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case err == nil:
		return false, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		return true, nil
	default:
		return false, fmt.Errorf("owner lock %s: %w", queueOf(l.path), err)
	}
}

// Release ends the ownership.
func (l *Lock) Release() error {
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("owner lock: %w", err)
	}
	return nil
}
