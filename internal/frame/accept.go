package frame

import (
	"context"
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// acceptPause follows an accept that failed for lack of files or memory.
const acceptPause = 50 * time.Millisecond

// Accept returns the next connection of a listener. Without free files or memory it waits and tries again, so that the
// server does not end. It returns ctx's error when ctx ends.
func Accept(ctx context.Context, l *net.UnixListener) (*net.UnixConn, error) {
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil, ctx.Err()
		}
		if err == nil || !isScarce(err) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(acceptPause):
		}
	}
}

// isScarce reports whether an accept failed for a temporary reason.
func isScarce(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
