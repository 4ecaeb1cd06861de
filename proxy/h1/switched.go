package h1

import (
	"bytes"
	"io"
	"net"
	"syscall"
)

// switched is a connection that has switched to another protocol, with the bytes that were read ahead.
type switched struct {
	net.Conn
	first []byte
	from  *buffers
}

func handOver(c net.Conn, first []byte, from *buffers) *switched {
	return &switched{c, bytes.Clone(first), from}
}

// Read returns the bytes that were read ahead, then new ones.
func (s *switched) Read(p []byte) (int, error) {
	if len(s.first) > 0 {
		n := copy(p, s.first)
		s.first = s.first[n:]
		return n, nil
	}
	return s.Conn.Read(p)
}

// CloseWrite ends one direction.
func (s *switched) CloseWrite() error {
	if t, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return t.CloseWrite()
	}
	return s.Conn.Close()
}

// WriteTo implements io.WriterTo: if its connection is a socket, a silent tunnel has no buffer. Most WebSockets are
// silent most of the time.
func (s *switched) WriteTo(w io.Writer) (sent int64, err error) {
	if len(s.first) > 0 {
		n, err := w.Write(s.first)
		if sent, s.first = int64(n), nil; err != nil {
			return sent, err
		}
	}
	t, ok := s.Conn.(*net.TCPConn)
	if !ok {
		n, err := io.Copy(w, s.Conn)
		return sent + n, err
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return sent, err
	}
	for {
		b, err := s.next(raw)
		if b == nil {
			return sent, err
		}
		n, err := w.Write(*b)
		s.give(b)
		if sent += int64(n); err != nil {
			return sent, err
		}
	}
}

// next reads the next bytes into a buffer of the pool; nil at the end.
func (s *switched) next(raw syscall.RawConn) (b *[]byte, err error) {
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		b = s.from.pool.Get().(*[]byte)
		n, err := readNow(int(fd), (*b)[:cap(*b)])
		if err == nil && n > 0 {
			*b = (*b)[:n]
			return true
		}
		s.give(b)
		b = nil
		if err == errAgain {
			return false
		}
		failed = err // nil at the end
		return true
	})
	if err == nil {
		err = failed
	}
	return b, err
}

func (s *switched) give(b *[]byte) {
	*b = (*b)[:0]
	s.from.pool.Put(b)
}
