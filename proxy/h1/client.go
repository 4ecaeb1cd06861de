package h1

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"wayleave.dev/proxy/message"
)

// Client is a connection to a server that carries one exchange after the other. One goroutine uses it at a time, except
// that another one may send a request's body.
type Client struct {
	c      net.Conn
	shared *Shared
	rd     reader
	w      writer
	resp   message.Response
	fr     framing
	body   body
	times  times
	peek   peek
	keep   bool
	read   bool // a byte of the response has arrived
	sent   bool // the complete request was sent
	// pending means that the end of the request is buffered, and Response sends it.
	pending bool
	// bodyless: the response has no body by its kind, whatever the server sends after it.
	bodyless bool
	step     func(fd uintptr) bool
	// IdleSince is when the last exchange ended, Exchanges the number of exchanges.
	IdleSince time.Time
	Exchanges int
}

// Dialed returns a Client for a connection. Clients of one process share their buffers through p.
func Dialed(c net.Conn, p *Shared) *Client {
	u := &Client{c: c, shared: p, rd: reader{c: c, from: p.blocks}, w: writer{c: c, from: p.buffers}}
	u.peek.init(c)
	u.w.init()
	u.rd.below = u.w.below
	if _, ok := c.(*net.TCPConn); ok {
		u.step = u.ask
	}
	return u
}

// Shared is what the Clients of a process share.
type Shared struct {
	buffers *buffers
	blocks  *blocks
	head    atomic.Pointer[HeadLimits]
}

// NewShared returns a Shared with the default limits of a response's head.
func NewShared() *Shared {
	s := &Shared{buffers: newBuffers(), blocks: newBlocks()}
	s.SetHead(HeadLimits{})
	return s
}

// SetHead replaces the limits of a response's head and trailers for later exchanges. It may be called concurrently.
func (s *Shared) SetHead(l HeadLimits) {
	l = l.or(DefaultResponseHead())
	s.head.Store(&l)
}

// Close closes the connection.
func (u *Client) Close() error {
	u.w.release()
	u.rd.release()
	return u.c.Close()
}

// Timeouts are those of the next exchange: the longest wait of a write and of a read.
func (u *Client) Timeouts(send, read time.Duration) { u.times.send, u.times.read = send, read }

// ErrPatience means that the server has not answered yet and the time-out has not passed: the call may be repeated.
var ErrPatience = errors.New("HTTP/1: the server has not answered yet")

// patience is the time after which ErrPatience is returned.
const patience = time.Second

// times are a client's deadlines. Setting a deadline costs as much as parsing a head, so one that is close enough is
// kept: a time-out may come a quarter later than requested.
type times struct {
	send, read time.Duration
	// sendUntil and readUntil are the deadlines that are set; a wait started at began.
	sendUntil, readUntil, began time.Time
	waiting                     bool
	stopped                     atomic.Bool
}

var errGivenUp = errors.New("HTTP/1: given up")

// awaitRead sets the deadline for a read that will block.
func (u *Client) awaitRead() error {
	t, now := &u.times, time.Now()
	if !t.waiting {
		t.waiting, t.began = true, now
		d := min(patience, t.read)
		if left := t.readUntil.Sub(now); left > d/2 && left <= d+d/4 {
			return nil
		}
		t.readUntil = now.Add(d + d/4)
	} else {
		t.readUntil = t.began.Add(t.read)
	}
	err := u.c.SetReadDeadline(t.readUntil)
	if t.stopped.Load() { // checked after the deadline that Stop sets, too
		return errGivenUp
	}
	return err
}

// came is called after a read; it distinguishes ErrPatience from a time-out.
func (u *Client) came(err error) error {
	t := &u.times
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if t.readUntil = (time.Time{}); !t.stopped.Load() && time.Since(t.began) < t.read {
			return ErrPatience
		}
	}
	t.waiting = false
	return err
}

// awaitWrite sets the deadline for writes.
func (u *Client) awaitWrite() {
	t, now := &u.times, time.Now()
	if left := t.sendUntil.Sub(now); left < t.send || left > t.send+t.send/4 {
		t.sendUntil = now.Add(t.send + t.send/4)
		_ = u.c.SetWriteDeadline(t.sendUntil)
	}
}

// Stop makes blocked reads and writes fail. It may be called by any goroutine; the connection is unusable afterwards.
func (u *Client) Stop() {
	u.times.stopped.Store(true)
	_ = u.c.SetDeadline(time.Unix(1, 0))
}

// Stopped reports whether Stop was called.
func (u *Client) Stopped() bool { return u.times.stopped.Load() }

// Sent reports whether the request, or a part of it, was passed to the kernel.
func (u *Client) Sent() bool { return u.w.sent }

// Started reports whether a byte of a response to the last request has arrived.
func (u *Client) Started() bool { return u.read }

// Alive reports whether the connection can carry another request: the server has not closed it, and has sent no
// unexpected bytes, which would be taken for the answer. It costs one system call. If the result is false, the
// connection is unusable.
func (u *Client) Alive() bool {
	if len(u.rd.buffered()) > 0 {
		return false
	}
	if u.w.below != nil {
		return u.w.below.quiet(u.c)
	}
	if u.peek.raw == nil {
		return true // not a socket: the next write shows it
	}
	u.peek.alive = false
	err := u.peek.raw.Control(u.peek.look)
	return err == nil && u.peek.alive
}

// peek checks a socket without reading. It is created once per connection.
type peek struct {
	raw   syscall.RawConn
	look  func(fd uintptr)
	alive bool
	one   [1]byte
}

func (p *peek) init(c net.Conn) {
	p.raw = rawConn(c)
	p.look = func(fd uintptr) { p.alive = !pending(int(fd), &p.one) }
}

// Begin writes a request's head, with more fields after its own. Nothing is sent before Flush, or a large Write.
func (u *Client) Begin(r *message.Request, more message.Fields) {
	u.rd.begin()
	limit := u.shared.head.Load()
	u.rd.limit, u.fr.most = limit.Bytes, limit.Fields
	w := &u.w
	w.reset()
	u.read, u.sent, u.pending, u.keep, u.body.done = false, false, false, false, false
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

// needsLength reports whether requests of the method usually have a body, and so declare its absence (RFC 9110, 8.6).
func needsLength(method []byte) bool {
	return string(method) == "POST" || string(method) == "PUT" || string(method) == "PATCH"
}

// Write sends a part of the body.
func (u *Client) Write(p []byte) (int, error) {
	if len(p) > writeBuffer/2 {
		u.awaitWrite()
	}
	if err := u.w.body(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Finish ends the body.
func (u *Client) Finish(trailers message.Fields) error {
	u.w.end(trailers)
	err := u.Flush()
	u.sent = err == nil
	return err
}

// Last ends the body; Response sends what is buffered.
func (u *Client) Last() error {
	if u.step == nil || u.w.buf == nil {
		return u.Finish(nil)
	}
	u.w.end(nil)
	u.pending = true
	u.awaitWrite()
	return u.w.err
}

// roundTrip sends the pending request, and waits for the answer if it can.
func (u *Client) roundTrip() error {
	err := u.peek.raw.Read(u.step)
	if err = u.came(err); err != nil {
		return err
	}
	if u.w.err == nil && !u.sent {
		u.sent = u.w.flush() == nil
	}
	return u.w.err
}

// Flush sends what is buffered. A request without a body must be ended by Finish, too.
func (u *Client) Flush() error {
	u.awaitWrite()
	return u.w.flush()
}

// Response reads the head of the response. early gets responses with status 1xx, except 100 and 101; it may be nil. The
// head is valid until the next Begin. If the head exceeds its limit, the result is an Error for which IsTooLarge is
// true; the same applies to Read for trailers.
func (u *Client) Response(method []byte, early func(*message.Response) error) (*message.Response, error) {
	if err := u.awaitRead(); err != nil {
		return nil, err
	}
	if u.pending {
		if err := u.roundTrip(); err != nil {
			return nil, err
		}
	}
	for n := 0; ; n++ {
		if n > maxInterim {
			return nil, bad("too many interim responses")
		}
		err := u.rd.head(func(b []byte) (n int, err error) {
			u.read = true
			n, u.keep, err = parseResponse(b, &u.resp, &u.fr, method)
			return n, err
		})
		if err = u.came(err); err != nil {
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
		u.rd.begin()
	}
	length := u.resp.Length
	if u.bodyless = u.resp.Bodyless(method); u.bodyless {
		length = 0
	}
	u.body.mostBytes, u.body.response = u.rd.limit, true
	u.body.reset(&u.rd, length, &u.fr)
	return &u.resp, nil
}

// maxInterim bounds the responses before the final one.
const maxInterim = 16

// Read reads the response's body; Trailers are those after it.
func (u *Client) Read(p []byte) (int, error) {
	if u.body.ready() {
		return u.body.Read(p)
	}
	if err := u.awaitRead(); err != nil {
		return 0, err
	}
	n, err := u.body.Read(p)
	return n, u.came(err)
}

// Ready reports whether Read would return without blocking.
func (u *Client) Ready() bool { return u.body.ready() }

// Ahead returns buffered bytes of the response's body without a copy, and marks them as read; nil if there are none, or
// if the body is chunked.
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
	b.took(len(have))
	return have
}

// Trailers returns those of the response, once its body has ended.
func (u *Client) Trailers() message.Fields { return u.body.trailers }

// Done ends an exchange, and reports whether the connection can be used for another one: the response was read to its
// end, no bytes follow it, and the connection was not stopped meanwhile. Servers that send a body where none is allowed
// send it at once, so Done checks for that; Alive checks again.
func (u *Client) Done() bool {
	u.w.release()
	u.Exchanges++
	u.body.trailers, u.body.named = nil, nil
	if u.w.err != nil || len(u.rd.buffered()) > 0 {
		return false
	}
	u.rd.release()
	switched := u.resp.Status == 101
	u.fr.forget(&u.resp.Fields)
	u.resp.Reason, u.resp.Upgrade = nil, nil
	return u.keep && u.sent && !u.Stopped() && u.body.done && u.body.err == nil && !switched &&
		(!u.bodyless || u.Alive())
}

// Switch hands over the connection after status 101.
func (u *Client) Switch() io.ReadWriteCloser {
	u.w.release()
	_ = u.c.SetDeadline(time.Time{})
	s := handOver(u.c, u.rd.buffered(), u.w.from)
	u.rd.release()
	return s
}
