package lossmeter

import (
	"context"
	"errors"
	"io"
	"net"
)

// ServeUDP echoes datagrams until the socket is closed.
func ServeUDP(c net.PacketConn) error {
	makeRoom(c)
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		_, _ = c.WriteTo(buf[:n], from) // a client may have ended
	}
}

// ServeTCP echoes all bytes of every connection until the listener is closed.
func ServeTCP(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

// Serve echoes UDP and TCP on one address until ctx ends.
func Serve(ctx context.Context, addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	p, err := net.ListenPacket("udp", addr)
	if err != nil {
		l.Close()
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close(); p.Close() })
	defer stop()
	errs := make(chan error, 2)
	go func() { errs <- ServeUDP(p) }()
	go func() { errs <- ServeTCP(l) }()
	return errors.Join(<-errs, <-errs)
}
