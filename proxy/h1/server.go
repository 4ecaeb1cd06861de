// Package h1 is HTTP/1.1 (RFC 9112) for a proxy, on both sides: a server that reads
// requests as strictly as the standard lets it, and connections to servers.
//
// Invariants:
//   - A message whose end two readers could see in different places is refused, and the
//     connection closed: nothing of it is sent on.
//   - In the steady state an exchange allocates nothing, and costs one read and one write
//     on each side.
//   - What a peer can make us hold is bounded: a head by its limit, a body by one buffer.
package h1

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"wayleave.dev/proxy/message"
)

// Limits bound what a client may take. Times are of waiting; 0 is none.
type Limits struct {
	// Head is the size of a request's head in bytes.
	Head int
	// HeadTime is from its first byte to its last, Idle between two requests, Body
	// between two parts of a body, Write for one write.
	HeadTime, Idle, Body, Write time.Duration
}

// DefaultLimits are those of nginx where it has the same, but for HeadTime.
func DefaultLimits() Limits {
	return Limits{Head: 32 << 10, HeadTime: 15 * time.Second, Idle: 75 * time.Second, Body: 60 * time.Second, Write: 60 * time.Second}
}

// Server reads requests. Fill the fields before the first Serve.
type Server struct {
	Limits Limits
	// Handle answers one request. What it leaves of the body is read, or the connection
	// closed; when it sent no response, the exchange is aborted.
	Handle func(context.Context, message.Downstream)
	// Refused is told of requests that could not be read; may be nil.
	Refused func(client netip.AddrPort, e *Error)

	once    sync.Once
	buffers *buffers
	mu      sync.Mutex
	conns   map[*serverConn]struct{}
	drain   bool
}

// serverConn is a client's connection with its only exchange.
type serverConn struct {
	s  *Server
	c  net.Conn
	rd reader
	w  writer
	x  exchange

	mu   sync.Mutex
	idle bool
}

// Serve answers requests on a connection until it ends, and closes it. first is what has
// been read from it already.
func (s *Server) Serve(ctx context.Context, c net.Conn, first []byte, isTLS bool) {
	s.once.Do(func() { s.buffers, s.conns = newBuffers(), map[*serverConn]struct{}{} })
	k := &serverConn{s: s, c: c, rd: reader{c: c, limit: s.Limits.Head}, w: writer{c: c, from: s.buffers}}
	if len(first) > 0 {
		k.rd.buf = append(make([]byte, 0, firstRead+len(first)), first...)
		k.rd.w = len(k.rd.buf)
		k.rd.buf = k.rd.buf[:cap(k.rd.buf)]
	}
	k.x.k = k
	k.x.req.TLS, k.x.req.Client, k.x.req.Local = isTLS, addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	s.mu.Lock()
	s.conns[k] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, k)
		s.mu.Unlock()
		k.w.release()
		if !k.x.switched {
			c.Close()
		}
	}()
	for k.next(ctx) {
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	ap, _ := netip.ParseAddrPort(a.String())
	return ap
}

// Drain has connections end after the exchange that they are in, and idle ones at once.
func (s *Server) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain = true
	for k := range s.conns {
		k.mu.Lock()
		if k.idle {
			k.c.Close()
		}
		k.mu.Unlock()
	}
}

// Conns is the number of open connections.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *Server) draining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drain
}

// next reads and answers one request; false when the connection is at its end.
func (k *serverConn) next(ctx context.Context) bool {
	if !k.await() {
		return false
	}
	x := &k.x
	x.reset()
	err := k.rd.head(func(b []byte) (int, error) { return parseRequest(b, &x.req, &x.fr) })
	if err != nil {
		k.refuse(err)
		return false
	}
	x.body.reset(&k.rd, x.req.Length, x.fr.chunked)
	if d := k.s.Limits.Body; x.req.Length != 0 && d > 0 {
		_ = k.rd.deadline(d)
	}
	k.s.Handle(ctx, x)
	return x.end()
}

// await waits for the first bytes of a request. An idle connection that is closed, by
// whomever, is no fault.
func (k *serverConn) await() bool {
	k.rd.begin()
	if len(k.rd.buffered()) == 0 {
		k.w.release()
		k.mu.Lock()
		k.idle = true
		k.mu.Unlock()
		if k.s.draining() {
			return false
		}
		if k.rd.deadline(k.s.Limits.Idle) != nil || k.rd.fill(k.rd.limit) != nil {
			return false
		}
		k.mu.Lock()
		k.idle = false
		k.mu.Unlock()
	}
	return k.rd.deadline(k.s.Limits.HeadTime) == nil
}

// refuse answers what is no request. What came behind it cannot be told from it, so the
// connection ends; a moment of reading lets the client see the answer (RFC 9112, 9.6).
func (k *serverConn) refuse(err error) {
	var e *Error
	var timeout net.Error
	switch {
	case errors.As(err, &e):
	case errors.As(err, &timeout) && timeout.Timeout():
		e = &Error{Status: 408, Reason: "the head took too long"}
	default:
		return
	}
	if k.s.Refused != nil {
		k.s.Refused(k.x.req.Client, e)
	}
	k.x.req.Version = message.HTTP11
	k.x.fr.close = true
	text := []byte(strconv.Itoa(e.Status) + " " + reasons[e.Status] + "\n")
	_ = k.x.Respond(&message.Response{Status: e.Status, Length: int64(len(text)), Fields: message.Fields{{Name: []byte("Content-Type"), Value: []byte("text/plain")}}})
	_, _ = k.x.Write(text)
	_ = k.w.flush()
	k.linger()
}

// linger closes the side of the connection that was written, and reads on for a moment.
func (k *serverConn) linger() {
	if t, ok := k.c.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite()
	}
	_ = k.rd.deadline(500 * time.Millisecond)
	var scratch [4 << 10]byte
	for total := 0; total < 256<<10; {
		n, err := k.c.Read(scratch[:])
		if total += n; err != nil {
			return
		}
	}
}

// exchange is a request and its response. It is used again for the next of its
// connection.
type exchange struct {
	k    *serverConn
	req  message.Request
	fr   framing
	body body
	// state of the response.
	responded, finished, broken, switched bool
	headless                              bool // nothing of a body is sent
	left                                  int64
	close                                 bool
	continued                             bool
}

var _ message.Downstream = (*exchange)(nil)

func (x *exchange) reset() {
	x.responded, x.finished, x.broken, x.headless, x.close, x.continued = false, false, false, false, false, false
	x.left = 0
	x.k.w.reset()
}

// Request implements message.Downstream.
func (x *exchange) Request() *message.Request { return &x.req }

// Read implements message.Downstream.
func (x *exchange) Read(p []byte) (int, error) {
	if x.req.Continue && !x.continued && !x.responded {
		x.continued = true
		if _, err := io.WriteString(x.k.c, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return 0, err
		}
	}
	if d := x.k.s.Limits.Body; d > 0 && x.body.Buffered() == 0 && !x.body.done {
		if err := x.k.rd.deadline(d); err != nil {
			return 0, err
		}
	}
	return x.body.Read(p)
}

// Buffered implements message.Downstream.
func (x *exchange) Buffered() int {
	if x.body.chunked {
		return 0
	}
	return x.body.Buffered()
}

// Trailers implements message.Downstream.
func (x *exchange) Trailers() message.Fields { return x.body.trailers }

// Responded implements message.Downstream.
func (x *exchange) Responded() bool { return x.responded }

// Respond implements message.Downstream.
func (x *exchange) Respond(r *message.Response) error {
	if x.responded {
		return errors.New("HTTP/1: a second response")
	}
	w := &x.k.w
	if x.k.s.Limits.Write > 0 {
		_ = x.k.c.SetWriteDeadline(time.Now().Add(x.k.s.Limits.Write))
	}
	if r.Status < 200 { // 103 and its like; 101 is Switch
		if x.req.Version == message.HTTP10 {
			return nil
		}
		x.head(r)
		w.string("\r\n")
		return w.flush()
	}
	x.responded = true
	x.headless = r.Bodyless(x.req.Method)
	x.left = r.Length
	old := x.req.Version == message.HTTP10
	w.chunked = !x.headless && r.Length < 0 && !old
	x.close = x.close || x.fr.close || old && !x.fr.keepAlive || old && r.Length < 0 && !x.headless || x.k.s.draining()
	// What was not read of a body that is still to come cannot be skipped for sure.
	if x.req.Continue && !x.continued {
		x.close = true
	}
	x.head(r)
	if !x.headless || r.Length >= 0 && r.Status != 204 {
		w.frame(r.Length)
	}
	switch {
	case x.close:
		w.string("Connection: close\r\n")
	case old:
		w.string("Connection: keep-alive\r\n")
	}
	w.string("\r\n")
	if x.headless || r.Length == 0 {
		return x.Finish(nil)
	}
	return w.err
}

// head writes the status line and the fields.
func (x *exchange) head(r *message.Response) {
	w := &x.k.w
	w.string("HTTP/1.1 ")
	w.number(int64(r.Status), 10)
	w.string(" ")
	if len(r.Reason) > 0 {
		w.bytes(r.Reason)
	} else {
		w.string(reasons[r.Status])
	}
	w.string("\r\n")
	w.fields(r.Fields)
}

// Write implements message.Downstream.
func (x *exchange) Write(p []byte) (int, error) {
	if x.headless {
		return len(p), nil
	}
	if x.left >= 0 {
		if int64(len(p)) > x.left {
			x.broken = true
			return 0, errors.New("HTTP/1: a body that is longer than its Content-Length")
		}
		x.left -= int64(len(p))
	}
	if x.k.w.buf == nil || len(*x.k.w.buf)+len(p) > writeBuffer {
		if d := x.k.s.Limits.Write; d > 0 {
			_ = x.k.c.SetWriteDeadline(time.Now().Add(d))
		}
	}
	if err := x.k.w.body(p); err != nil {
		x.broken = true
		return 0, err
	}
	return len(p), nil
}

// Flush implements message.Downstream.
func (x *exchange) Flush() error { return x.k.w.flush() }

// Finish implements message.Downstream.
func (x *exchange) Finish(trailers message.Fields) error {
	if x.finished {
		return nil
	}
	x.finished = true
	if !x.headless {
		if x.left > 0 {
			x.broken = true
			return errors.New("HTTP/1: a body that is shorter than its Content-Length")
		}
		x.k.w.end(trailers)
	}
	return x.k.w.flush()
}

// Switch implements message.Downstream.
func (x *exchange) Switch(r *message.Response) (io.ReadWriteCloser, error) {
	x.responded, x.finished, x.switched = true, true, true
	x.head(r)
	x.k.w.string("Connection: Upgrade\r\nUpgrade: ")
	x.k.w.bytes(r.Upgrade)
	x.k.w.string("\r\n\r\n")
	if err := x.k.w.flush(); err != nil {
		return nil, err
	}
	if err := x.k.c.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return &switched{x.k.c, bytes.Clone(x.k.rd.buffered())}, nil
}

// switched is a connection with what had been read ahead.
type switched struct {
	net.Conn
	first []byte
}

// Read gives what was read ahead, then what comes.
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

// StopReading implements message.Downstream.
func (x *exchange) StopReading() {
	x.close = true
	_ = x.k.c.SetReadDeadline(time.Unix(1, 0))
}

// Abort implements message.Downstream.
func (x *exchange) Abort() { x.broken = true }

// end looks whether the connection can be used again.
func (x *exchange) end() bool {
	if x.switched {
		return false
	}
	if x.broken || !x.finished || x.k.w.err != nil {
		// A client must not take what it has for whole: it gets a reset, not an end.
		if t, ok := x.k.c.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		return false
	}
	if x.close {
		if !x.body.done {
			x.k.linger()
		}
		return false
	}
	if !x.body.done && !x.body.discard(256<<10) {
		return false
	}
	return x.body.err == nil
}
