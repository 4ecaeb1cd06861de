package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"wayleave.dev/dns/schema"
)

// OpenSocket binds a listening socket, to be passed to a server. It needs the capability to bind port 53, which the
// server lacks. Another process's socket on the same address and port does not prevent it: while two versions overlap,
// both are bound.
func OpenSocket(k schema.Socket) (*os.File, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) {
			// A standby binds an address that the node does not have yet.
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
	return nil, fmt.Errorf("network %q: allowed: udp and tcp", k.Network)
}

func freebind(fd int, is6 bool) error {
	if is6 {
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1)
}
