// Package forward forwards TCP connections from the host's loopback to a server inside of a network namespace.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"wayleave.dev/lab/fabric"
)

const dialTimeout = 5 * time.Second

// Serve accepts connections until the context ends. Each is forwarded to the address as seen from the namespace.
func Serve(ctx context.Context, listener net.Listener, namespace string, to netip.AddrPort, log *slog.Logger) error {
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("forward: %w", err)
		}
		go func() {
			defer conn.Close()
			if err := carry(ctx, conn, namespace, to); err != nil {
				log.Warn("connection", "err", err)
			}
		}()
	}
}

func carry(ctx context.Context, client net.Conn, namespace string, to netip.AddrPort) error {
	server, err := Dial(ctx, namespace, to)
	if err != nil {
		return err
	}
	defer server.Close()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		go func() {
			_, _ = io.Copy(way[1], way[0]) // either side may disconnect at any time
			if half, ok := way[1].(*net.TCPConn); ok {
				_ = half.CloseWrite()
			}
			done <- struct{}{}
		}()
	}
	<-done
	<-done
	return nil
}

// Dial opens a connection from inside of the namespace.
func Dial(ctx context.Context, namespace string, to netip.AddrPort) (net.Conn, error) {
	var conn net.Conn
	err := fabric.Do(namespace, func() error {
		// The address is a literal, so the socket is created on this thread.
		dialer := net.Dialer{Timeout: dialTimeout}
		var err error
		conn, err = dialer.DialContext(ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("forward: %w", err)
	}
	return conn, nil
}
