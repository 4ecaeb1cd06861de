// Package h1 implements HTTP/1.1 (RFC 9112) for a proxy, on both sides: a server that parses requests as strictly as
// the standard allows, and connections to servers.
//
// Invariants:
//   - A message whose end two programs could see in different places is refused, and the
//     connection closed: nothing of it is forwarded.
//   - In the steady state an exchange allocates nothing, and costs one read and one write
//     on each side.
//   - The memory that a peer can occupy is bounded: a head by its limit, a body by one buffer.
package h1

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/proxy/message"
)

// Limits bound what a client may use. Times bound waiting; 0 for no limit.
type Limits struct {
	// Head is the size of a request's head in bytes, Fields its number of fields.
	Head, Fields int
	// HeadTime is the time from its first byte to its last, Idle that between two requests, Body that between two parts
	// of a body, Write that of one write.
	HeadTime, Idle, Body, Write time.Duration
	// BodyRate is the minimum rate of a body of known length, in bytes per second, once it has taken longer than Body;
	// a body of unknown length may be a stream.
	BodyRate int
}

// DefaultLimits are those of nginx if it has the same limit, except HeadTime.
func DefaultLimits() Limits {
	head := DefaultRequestHead()
	return Limits{Head: head.Bytes, Fields: head.Fields, HeadTime: 15 * time.Second, Idle: 75 * time.Second,
		Body: 60 * time.Second, Write: 60 * time.Second, BodyRate: 100}
}

// Server reads requests. Set the fields before the first Serve.
type Server struct {
	Limits Limits
	// Handle answers one request. The rest of the body is read afterwards, or the connection closed; if Handle sent no
	// response, the exchange is aborted.
	Handle func(context.Context, message.Downstream)
	// Refused is called for invalid requests; may be nil.
	Refused func(client netip.AddrPort, e *Error)

	once    sync.Once
	buffers *buffers
	blocks  *blocks
	drain   atomic.Bool
	head    atomic.Pointer[HeadLimits]
	name    atomic.Pointer[[]byte]
	mu      sync.Mutex
	conns   map[*serverConn]struct{}
}

// serverConn is a client's connection with its only exchange.
type serverConn struct {
	s   *Server
	c   net.Conn
	ctx context.Context
	// raw and step wait for a request (ready); raw is nil if there is no socket.
	raw   syscall.RawConn
	step  func(fd uintptr) bool
	rd    reader
	w     writer
	x     exchange
	state *State
	// waiting means that the head did not arrive in one read.
	waiting bool
	// writeUntil is the write deadline that is set.
	writeUntil time.Time
}

// Serve answers requests on a connection until it ends, and closes it. first is what has been read from it before.
func (s *Server) Serve(ctx context.Context, c net.Conn, first []byte, isTLS bool) {
	s.ServeState(ctx, c, first, isTLS, &State{})
}

// ServeState is Serve with a state, through which the connection can be evicted.
func (s *Server) ServeState(ctx context.Context, c net.Conn, first []byte, isTLS bool, state *State) {
	s.init()
	limit := s.headLimits()
	k := &serverConn{s: s, c: c, ctx: ctx, state: state, rd: reader{c: c, from: s.blocks, limit: limit.Bytes,
		headTime: s.Limits.HeadTime}, w: writer{c: c, from: s.buffers}}
	k.x.fr.most = limit.Fields
	if len(first) > 0 {
		k.rd.buf = make([]byte, firstRead+len(first))
		k.rd.w = copy(k.rd.buf, first)
	}
	k.x.k = k
	k.rd.incomplete = k.incomplete
	k.w.state = state
	if k.w.below = DirectOf(c); k.w.below != nil {
		k.w.below.state = state
	}
	k.w.init()
	if t, ok := c.(*net.TCPConn); ok {
		k.raw, _ = t.SyscallConn()
		k.step = k.ready
	}
	if t, ok := c.(*tls.Conn); ok {
		said := t.ConnectionState()
		k.x.req.Session = &message.Session{ServerName: said.ServerName, Certificates: said.PeerCertificates}
	}
	k.x.req.TLS, k.x.req.Client, k.x.req.Local = isTLS, addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	s.mu.Lock()
	s.conns[k] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, k)
		s.mu.Unlock()
		k.w.release()
		if !k.x.broken { // otherwise a reader may still use it
			k.rd.release()
		}
		if !k.x.switched {
			c.Close()
		}
	}()
	for k.next() {
	}
}

// SetHead replaces the limits of a request's head for later connections. Limits has the defaults.
func (s *Server) SetHead(l HeadLimits) { s.head.Store(&l) }

// headLimits returns the current limits.
func (s *Server) headLimits() HeadLimits {
	d := HeadLimits{Bytes: s.Limits.Head, Fields: s.Limits.Fields}
	if l := s.head.Load(); l != nil {
		return l.or(d)
	}
	return d
}

// SetName replaces the field Server of responses to invalid requests; nil for no field.
func (s *Server) SetName(name []byte) { s.name.Store(&name) }

func (s *Server) init() {
	s.once.Do(func() { s.buffers, s.blocks, s.conns = newBuffers(), newBlocks(), map[*serverConn]struct{}{} })
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	ap, _ := netip.ParseAddrPort(a.String())
	return ap
}

// Drain ends connections after their current exchange. Idle ones get the time idle for one more request, because a
// client that has just sent one would lose it. The response announces that the connection ends.
func (s *Server) Drain(idle time.Duration) {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain.Store(true)
	for k := range s.conns {
		if phase, _ := k.state.Look(); phase == Idle {
			_ = k.c.SetReadDeadline(time.Now().Add(idle)) // only the reader's goroutine may write until
		}
	}
}

// Close closes all connections, also during an exchange.
func (s *Server) Close() {
	s.init()
	s.mu.Lock()
	all := make([]net.Conn, 0, len(s.conns))
	for k := range s.conns {
		all = append(all, k.c)
	}
	s.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

// drainIdle is the time that a connection gets if it becomes idle, or is opened, while the server drains.
const drainIdle = 2 * time.Second

// Conns returns the number of open connections.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// next reads and answers one request; false if the connection has ended.
func (k *serverConn) next() bool {
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
	if k.waiting {
		if k.waiting = false; !k.state.To(Busy) {
			return false
		}
	}
	x.body.reset(&k.rd, x.req.Length, &x.fr)
	k.s.Handle(k.ctx, x)
	return x.end()
}

// await waits for the first bytes of a request. That an idle connection is closed, by either side, is not an error.
func (k *serverConn) await() bool {
	k.rd.begin()
	if len(k.rd.buffered()) > 0 {
		runtime.Gosched() // others' requests come before the next one of a pipeline
		return k.state.To(Busy)
	}
	if !k.rest() {
		return false
	}
	if k.raw == nil {
		if k.rd.fill(k.rd.limit) != nil {
			return false
		}
		return k.state.To(Busy)
	}
	err := k.raw.Read(k.step)
	return err == nil && len(k.rd.buffered()) > 0 && k.state.To(Busy)
}

// incomplete is called when more of a head must be read.
func (k *serverConn) incomplete() {
	if !k.waiting {
		k.waiting = true
		k.state.To(Waiting)
	}
}

// rest makes the connection idle.
func (k *serverConn) rest() bool {
	k.w.release()
	k.x.forget()
	if !k.state.To(Idle) || k.rd.about(k.s.Limits.Idle) != nil {
		return false
	}
	// Checked after the deadline is set: Drain sets one, too.
	return !k.s.drain.Load() || k.rd.deadline(min(k.s.Limits.Idle, drainIdle)) == nil
}

// refuse answers an invalid request. Bytes that follow it cannot be told from it, so the connection ends; reading for a
// moment lets the client see the answer (RFC 9112, 9.6).
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
	k.x.req.Version, k.x.req.Method, k.x.req.Continue = message.HTTP11, nil, false
	k.x.fr.close = true
	var more message.Fields
	if e.Status == http.StatusMethodNotAllowed { // RFC 9110, 15.5.6
		more = message.Fields{{Name: []byte("Allow"), Value: []byte("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")}}
	}
	if name := k.s.name.Load(); name != nil && len(*name) > 0 {
		more = append(more, message.Field{Name: []byte("Server"), Value: *name})
	}
	text := []byte(strconv.Itoa(e.Status) + " " + reasons[e.Status] + "\n")
	_ = k.x.Respond(&message.Response{Status: e.Status, Length: int64(len(text)), Fields: append(more,
		message.Field{Name: []byte("Content-Type"), Value: []byte("text/plain; charset=utf-8")},
		message.Field{Name: []byte("Date"), Value: time.Now().UTC().AppendFormat(nil, http.TimeFormat)})})
	_, _ = k.x.Write(text)
	_ = k.w.flush()
	k.linger()
}

// linger closes the write side of the connection, and continues to read for a while: a client that still sends would
// get a reset, and lose the answer with it (RFC 9112, 9.6).
func (k *serverConn) linger() {
	if t, ok := k.c.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite()
	}
	k.rd.release()
	scratch := k.s.blocks.pool.Get().(*block)
	defer k.s.blocks.pool.Put(scratch)
	for end := time.Now().Add(lingerMost); time.Now().Before(end); {
		if k.rd.deadline(lingerIdle) != nil {
			return
		}
		if _, err := k.c.Read(scratch[:]); err != nil {
			return
		}
	}
}

// lingerMost bounds linger, lingerIdle its wait for more bytes.
const lingerMost, lingerIdle = 5 * time.Second, time.Second

// exchange is a request and its response. It is reused for the next one on its connection.
type exchange struct {
	k    *serverConn
	req  message.Request
	fr   framing
	body body
	// state of the response.
	responded, finished, broken, switched bool
	headless                              bool // no body is sent
	left                                  int64
	began                                 time.Time // when waiting for the body began
	close                                 bool
	stopped, cut                          atomic.Bool // reading was stopped, or is impossible

	// mu guards the fields below if the client waits for status 100 (Request.Continue): the body's reader sends it,
	// while another goroutine may send the final head.
	mu        sync.Mutex
	continued bool
}

var _ message.Downstream = (*exchange)(nil)

func (x *exchange) reset() {
	x.responded, x.finished, x.broken, x.headless, x.close, x.continued = false, false, false, false, false, false
	x.left, x.began = 0, time.Time{}
	x.stopped.Store(false)
	x.cut.Store(false)
	x.k.w.reset()
}

// forget drops references to the answered request.
func (x *exchange) forget() {
	x.fr.forget(&x.req.Fields)
	x.req.Method, x.req.Target, x.req.Host, x.req.Upgrade = nil, nil, nil, nil
	x.body.trailers, x.body.named = nil, nil
}

// Request implements message.Downstream.
func (x *exchange) Request() *message.Request { return &x.req }

// Read implements message.Downstream.
func (x *exchange) Read(p []byte) (int, error) {
	if x.req.Continue {
		if err := x.sendContinue(); err != nil {
			return 0, err
		}
	}
	owing := false
	if d := x.k.s.Limits.Body; d > 0 && !x.body.ready() {
		if err := x.k.rd.deadline(d); err != nil {
			return 0, err
		}
		x.k.state.Owes(0)
		owing = true
		if x.tooSlow() {
			x.cut.Store(true)
			return 0, fmt.Errorf("HTTP/1: the body comes too slowly: %w", os.ErrDeadlineExceeded)
		}
	}
	if x.stopped.Load() { // checked after the deadline, which StopReading sets, too
		return 0, errStopped
	}
	n, err := x.body.Read(p)
	if err != nil && err != io.EOF {
		x.cut.Store(true)
	}
	if owing {
		if x.k.state.Owes(n); x.body.done {
			x.k.state.To(Busy)
		}
	}
	return n, err
}

// tooSlow reports whether a body has stayed below the minimum rate for too long.
func (x *exchange) tooSlow() bool {
	now, l := time.Now(), &x.k.s.Limits
	if x.began.IsZero() {
		x.began = now
	}
	took := now.Sub(x.began)
	return l.BodyRate > 0 && x.req.Length > 0 && took > l.Body &&
		float64(x.req.Length-x.body.left) < took.Seconds()*float64(l.BodyRate)
}

var errStopped = errors.New("HTTP/1: no more of the body is wanted")

// sendContinue sends status 100 before the first byte of a body is read, unless a final response was sent.
func (x *exchange) sendContinue() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.continued || x.responded {
		return nil
	}
	x.continued = true
	_, err := io.WriteString(x.k.c, "HTTP/1.1 100 Continue\r\n\r\n")
	return err
}

// Buffered implements message.Downstream.
func (x *exchange) Buffered() int {
	n := len(x.k.rd.buffered())
	if x.body.chunked || x.body.done {
		return 0
	}
	return int(min(int64(n), x.body.left))
}

// Ready implements message.Downstream.
func (x *exchange) Ready() bool { return x.body.ready() }

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
	x.k.awaitWrite()
	if r.Status < 200 { // 103 and others; 101 is sent by Switch
		if x.req.Version == message.HTTP10 {
			return nil
		}
		x.head(r)
		w.string("\r\n")
		return w.flush()
	}
	if x.req.Continue {
		x.mu.Lock()
		defer x.mu.Unlock()
	}
	x.responded = true
	x.headless = r.Bodyless(x.req.Method)
	x.left = r.Length
	old := x.req.Version == message.HTTP10
	w.chunked = !x.headless && r.Length < 0 && !old
	x.close = x.close || x.cut.Load() || x.fr.close || old && !x.fr.keepAlive || old && r.Length < 0 && !x.headless ||
		x.k.s.drain.Load()
	// The rest of a body that is still to arrive may be too long to skip.
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
		x.k.awaitWrite()
	}
	if err := x.k.w.body(p); err != nil {
		x.broken = true
		return 0, err
	}
	return len(p), nil
}

// Flush implements message.Downstream.
func (x *exchange) Flush() error {
	x.k.awaitWrite()
	return x.k.w.flush()
}

// awaitWrite sets the deadline for a write, unless the existing one ends at most a quarter later.
func (k *serverConn) awaitWrite() {
	d, now := k.s.Limits.Write, time.Now()
	if left := k.writeUntil.Sub(now); d > 0 && (left < d || left > d+d/4) {
		k.writeUntil = now.Add(d + d/4)
		_ = k.c.SetWriteDeadline(k.writeUntil)
	}
}

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
	if !x.body.done { // its rest would be taken for bytes of the other protocol
		return nil, errors.New("HTTP/1: the body of a request that changes the protocol has not been read")
	}
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
	x.k.w.release()
	return handOver(x.k.c, x.k.rd.buffered(), x.k.s.buffers), nil
}

// Watch implements message.Downstream. It polls, which is enough for a long wait.
func (x *exchange) Watch(gone func()) (stop func()) {
	raw := rawConn(x.k.c)
	if raw == nil {
		return func() {}
	}
	end := make(chan struct{})
	gone, over := message.Until(gone) // a client may disconnect once it has its answer
	go func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			left := false
			err := raw.Control(func(fd uintptr) {
				poll := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
				n, err := unix.Poll(poll[:], 0)
				left = n > 0 && err == nil
			})
			if err != nil || left { // err: closed by this side
				gone()
				return
			}
			select {
			case <-end:
				return
			case <-tick.C:
			}
		}
	}()
	return sync.OnceFunc(func() {
		over()
		close(end)
	})
}

// watchEvery is the polling interval of Watch.
const watchEvery = 500 * time.Millisecond

// rawConn returns the descriptor below a connection; nil if there is none.
func rawConn(c net.Conn) syscall.RawConn {
	s, ok := lowest(c).(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// StopReading implements message.Downstream.
func (x *exchange) StopReading() {
	x.close = true
	x.stopped.Store(true)
	_ = x.k.c.SetReadDeadline(time.Unix(1, 0))
}

// Abort implements message.Downstream.
func (x *exchange) Abort() { x.broken = true }

// reset closes a connection whose client must notice that the response is incomplete: TCP ends with a reset, and TLS
// without close_notify (RFC 9112, 9.8).
func reset(c net.Conn) {
	c = lowest(c)
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// end decides whether the connection can be used again.
func (x *exchange) end() bool {
	if x.switched {
		return false
	}
	if x.broken || !x.finished || x.k.w.err != nil {
		reset(x.k.c)
		return false
	}
	if x.close {
		if !x.body.done || len(x.k.rd.buffered()) > 0 {
			x.k.linger()
		}
		return false
	}
	return x.body.done || x.body.discard(256<<10)
}
