package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// OpenSocket binds a listening socket, for a server to be given it. It needs the
// capability to bind port 53, which the server has not. A socket of another
// process on the same address and port does not stand in the way: while two
// versions overlap, both are bound.
func OpenSocket(k Socket) (*os.File, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) {
			// A standby binds an address that is not the node's yet.
			inner = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
				freebind(int(fd), k.Addr.Addr().Is6()))
		})
		if err != nil {
			return err
		}
		return inner
	}}
	ctx := context.Background()
	switch k.Network {
	case "udp":
		c, err := lc.ListenPacket(ctx, "udp", k.Addr.String())
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.(*net.UDPConn).File()
	case "tcp":
		l, err := lc.Listen(ctx, "tcp", k.Addr.String())
		if err != nil {
			return nil, err
		}
		defer l.Close()
		return l.(*net.TCPListener).File()
	}
	return nil, fmt.Errorf("network %q: udp and tcp are allowed", k.Network)
}

func freebind(fd int, is6 bool) error {
	if is6 {
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1)
}

// drainFor bounds the wait for a queue to be worked off.
const drainFor = 500 * time.Millisecond

// drain takes a UDP socket out of its group (SO_REUSEPORT), so that new queries go to
// other sockets of the address, and waits until those that came before are read. A
// connected socket gets nothing but what its peer sends: ours is connected to itself.
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
			return fmt.Errorf("after %s queries still wait", drainFor)
		}
	}
}
