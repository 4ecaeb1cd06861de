//go:build !linux

package connectivity

import (
	"errors"
	"net"
	"syscall"
)

// Probes run in pods, on Linux.
func noFragments(string, string, syscall.RawConn) error { return nil }

func largestDatagram(*net.UDPConn) (int, error) {
	return 0, errors.New("the MTU of a path is known on Linux only")
}
