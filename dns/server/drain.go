package server

import (
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// drainFor bounds the wait until a queue is empty.
const drainFor = 500 * time.Millisecond

// drain removes a UDP socket from its group (SO_REUSEPORT), so that new queries go to other sockets of the address, and
// waits until earlier ones have been read. A connected socket receives only datagrams of its peer, so the socket is
// connected to itself.
func drain(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	local := c.LocalAddr().(*net.UDPAddr).AddrPort()
	var itself unix.Sockaddr = &unix.SockaddrInet6{Port: int(local.Port()), Addr: local.Addr().As16()}
	if a := local.Addr().Unmap(); a.Is4() {
		itself = &unix.SockaddrInet4{Port: int(local.Port()), Addr: a.As4()}
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = unix.Connect(int(fd), itself) }); err != nil || inner != nil {
		return errors.Join(err, inner)
	}
	for end := time.Now().Add(drainFor); ; time.Sleep(time.Millisecond) {
		waiting := 0
		if err := raw.Control(func(fd uintptr) {
			waiting, inner = unix.IoctlGetInt(int(fd),
				unix.SIOCINQ)
		}); err != nil || inner != nil {
			return errors.Join(err, inner)
		}
		if waiting == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("queries are still waiting after %s", drainFor)
		}
	}
}
