package nft

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// IsStateMismatch says that a transaction was refused because the kernel has something else
// than it was read to have.
func IsStateMismatch(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY)
}

// Fatal tells errors of a transaction that no smaller one would avoid: the kernel has not
// what the caller takes it to have, or could not be asked.
func Fatal(ctx context.Context, err error) bool {
	return ctx.Err() != nil || IsStateMismatch(err) ||
		errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ETIMEDOUT)
}
