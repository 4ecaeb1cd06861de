package h1

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/proxy/message"
)

// Client is a connection to a server, for one exchange after the other. One goroutine
// uses it at a time, but for a request's body, which another may send.
type Client struct {
	c    net.Conn
	rd   reader
	w    writer
	resp message.Response
	fr   framing
	body body
	keep bool
	read bool // a byte of the response came
	// IdleSince is when the last exchange ended, Exchanges how many there were.
	IdleSince time.Time
	Exchanges int
}

// Dialed makes a Client of a connection. Clients of one process share their buffers by p.
func Dialed(c net.Conn, p *Shared) *Client {
	return &Client{c: c, rd: reader{c: c, limit: 64 << 10}, w: writer{c: c, from: p.buffers}}
}

// Shared is what the Clients of a process have in common.
type Shared struct{ buffers *buffers }

// NewShared makes it.
func NewShared() *Shared { return &Shared{newBuffers()} }

// Close closes the connection.
func (u *Client) Close() error {
	u.w.release()
	return u.c.Close()
}

// Conn is the connection, for deadlines.
func (u *Client) Conn() net.Conn { return u.c }

// Started says whether a byte of a response to the last request came.
func (u *Client) Started() bool { return u.read }

// Alive says whether the server has not closed the connection while it was idle, and has
// sent nothing unasked. It reads nothing.
func (u *Client) Alive() bool {
	if len(u.rd.buffered()) > 0 {
		return false
	}
	s, ok := u.c.(syscall.Conn)
	if !ok {
		return true // TLS: the next write tells
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		_, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		alive = errors.Is(err, unix.EAGAIN)
	})
	return err == nil && alive
}

// Begin writes a request's head, with more fields behind its own. Nothing is sent before
// Flush, or a Write that is large.
func (u *Client) Begin(r *message.Request, more message.Fields) {
	u.rd.begin()
	w := &u.w
	w.reset()
	u.read = false
	w.bytes(r.Method)
	w.string(" ")
	w.bytes(r.Target)
	w.string(" HTTP/1.1\r\nHost: ")
	w.bytes(r.Host)
	w.string("\r\n")
	w.fields(r.Fields)
	w.fields(more)
	w.chunked = r.Length < 0
	if r.Length != 0 || needsLength(r.Method) {
		w.frame(r.Length)
	}
	switch {
	case len(r.Upgrade) > 0:
		w.string("Connection: Upgrade\r\nUpgrade: ")
		w.bytes(r.Upgrade)
		w.string("\r\n")
	case r.Trailers:
		w.string("Connection: TE\r\nTE: trailers\r\n")
	}
	w.string("\r\n")
}

// needsLength: methods whose requests usually have a body say so when they have none
// (RFC 9110, 8.6).
func needsLength(method []byte) bool {
	return string(method) == "POST" || string(method) == "PUT" || string(method) == "PATCH"
}

// Write sends a part of the body.
func (u *Client) Write(p []byte) (int, error) {
	if err := u.w.body(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Finish ends the body.
func (u *Client) Finish(trailers message.Fields) error {
	u.w.end(trailers)
	return u.Flush()
}

// Flush sends what is collected.
func (u *Client) Flush() error { return u.w.flush() }

// Response reads the head of the response. early gets responses with 1xx, but 100 and
// 101; may be nil. The head is valid until the next Begin.
func (u *Client) Response(method []byte, early func(*message.Response) error) (*message.Response, error) {
	for {
		err := u.rd.head(func(b []byte) (n int, err error) {
			u.read = true
			n, u.keep, err = parseResponse(b, &u.resp, &u.fr, method)
			return n, err
		})
		if err != nil {
			u.read = u.read || len(u.rd.buffered()) > 0
			return nil, err
		}
		if u.resp.Status >= 200 || u.resp.Status == 101 {
			break
		}
		if u.resp.Status != 100 && early != nil {
			if err := early(&u.resp); err != nil {
				return nil, err
			}
		}
		u.rd.floor = 0
	}
	length := u.resp.Length
	if u.resp.Bodyless(method) {
		length = 0
	}
	u.body.reset(&u.rd, length, u.fr.chunked)
	return &u.resp, nil
}

// Read reads the response's body, Trailers are those behind it.
func (u *Client) Read(p []byte) (int, error) { return u.body.Read(p) }

// Buffered is how many bytes of the response's body are here already.
func (u *Client) Buffered() int { return u.body.Buffered() }

// Ahead returns bytes of the response's body that are here already, without a copy, and
// takes them for read; nil when there are none, or when the body is in chunks.
func (u *Client) Ahead() []byte {
	b := &u.body
	if b.chunked || b.done || b.err != nil || b.left <= 0 {
		return nil
	}
	have := b.rd.buffered()
	if int64(len(have)) > b.left {
		have = have[:b.left]
	}
	b.rd.r += len(have)
	if b.left -= int64(len(have)); b.left == 0 {
		b.done = true
	}
	return have
}

// Trailers are those behind the response's body, once that has ended.
func (u *Client) Trailers() message.Fields { return u.body.trailers }

// Done ends an exchange, and says whether the connection may be used for another: the
// response was read to its end, and nothing is behind it.
func (u *Client) Done() bool {
	u.w.release()
	u.Exchanges++
	return u.keep && u.body.done && u.body.err == nil && u.w.err == nil && len(u.rd.buffered()) == 0 && u.resp.Status != 101
}

// Switch hands the connection over after a 101.
func (u *Client) Switch() io.ReadWriteCloser {
	u.w.release()
	return &switched{u.c, bytes.Clone(u.rd.buffered())}
}
