package dns

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"

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
			inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
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
