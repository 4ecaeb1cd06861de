package nft

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// IsStateMismatch says that a transaction was refused because the state of the kernel is not the one that was read.
func IsStateMismatch(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY)
}

// Fatal reports errors that no smaller transaction would avoid: the state of the kernel is not what the caller takes it
// to be, or the kernel could not be asked.
func Fatal(ctx context.Context, err error) bool {
	return ctx.Err() != nil || IsStateMismatch(err) ||
		errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ETIMEDOUT)
}
