package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/proxy/table"
)

// First and longest pause between two looks at an incomplete ClientHello.
const (
	peekFirst = time.Millisecond
	peekMost  = 100 * time.Millisecond
)

// passes returns the backend to which a connection is passed unchanged, by the name in its ClientHello; empty for none.
// It consumes nothing of the connection.
func (s *Server) passes(k *conn) (backend string) {
	t := s.certs.table.Load()
	if s.pass == nil || !t.Passes() {
		return ""
	}
	_ = k.SetDeadline(time.Now().Add(handshakeTime))
	defer func() { _ = k.SetDeadline(time.Time{}) }()
	name := peekName(k.TCPConn)
	if name == "" {
		return ""
	}
	return t.Passthrough(table.Name([]byte(name), nil))
}

// peekName returns the name in the ClientHello at the start of a connection; empty if there is none, or it is invalid.
// It waits until the connection's deadline.
func peekName(c *net.TCPConn) string {
	raw, err := c.SyscallConn()
	if err != nil {
		return ""
	}
	buf := make([]byte, handshakeBytes)
	for wait := peekFirst; ; wait = min(2*wait, peekMost) {
		n := 0
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, _, failed = unix.Recvfrom(int(fd), buf, unix.MSG_PEEK)
			return failed != unix.EAGAIN
		})
		if err != nil || failed != nil || n <= 0 {
			return ""
		}
		if whole, ok := helloIsWhole(buf[:n]); !ok || n == len(buf) {
			return ""
		} else if whole {
			if name, ok := helloName(buf[:n]); ok {
				return name
			}
		}
		time.Sleep(wait) // the bytes stay in the socket, so the poller would return at once
	}
}

// helloIsWhole reports whether the first handshake record has arrived; ok is false if it is not one.
func helloIsWhole(b []byte) (whole, ok bool) {
	const handshake, clientHello = 22, 1
	if b[0] != handshake || len(b) > 1 && b[1] != 3 || len(b) > 5 && b[5] != clientHello {
		return false, false
	}
	return len(b) >= 5 && len(b) >= 5+int(b[3])<<8+int(b[4]), true
}

var errSeen = errors.New("seen")

// helloName parses the name with crypto/tls; ok is false if more bytes are needed.
func helloName(b []byte) (name string, ok bool) {
	_ = tls.Server(&seen{rest: b}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok = h.ServerName, true
		return nil, errSeen
	}}).HandshakeContext(context.Background())
	return name, ok
}

// seen is a read-only connection over the bytes of another one.
type seen struct{ rest []byte }

// Read implements net.Conn, as the methods that follow.
func (s *seen) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// Write discards alerts.
func (s *seen) Write(p []byte) (int, error) { return len(p), nil }

// Close does nothing.
func (s *seen) Close() error { return nil }

// LocalAddr is none.
func (s *seen) LocalAddr() net.Addr { return nil }

// RemoteAddr is none.
func (s *seen) RemoteAddr() net.Addr { return nil }

// SetDeadline does nothing: no call blocks.
func (s *seen) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (s *seen) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (s *seen) SetWriteDeadline(time.Time) error { return nil }
