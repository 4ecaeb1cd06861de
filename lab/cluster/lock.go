// Package cluster brings a whole lab up and takes it down again.
package cluster

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"wayleave.dev/lab/place"
)

// lock makes sure that one command at a time changes the lab. The lock is an
// abstract unix socket: the kernel takes it back when its holder ends, however
// that happens, and it leaves no file.
func lock(dirs place.Dirs) (unlock func(), err error) {
	listener, err := net.Listen("unix", "@wayleave-lab"+dirs.State)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, errors.New(`another "lab up" or "lab down" is at work on this lab; wait for it to end`)
	}
	if err != nil {
		return nil, fmt.Errorf("lab: lock: %w", err)
	}
	return func() { listener.Close() }, nil
}
