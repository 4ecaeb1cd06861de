// Package server accepts connections from untrusted clients and turns them into exchanges: PROXY headers, TLS with the
// certificate of the name, HTTP/1.1 and HTTP/2.
//
// Invariants:
//   - A handshake gets the certificate of the host that it names, or one that belongs to no tenant.
//   - What one client can hold is bounded: connections, streams, bytes of heads, time.
//   - A server that ends accepts no more connections, and answers the requests it has.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
)

// Limits bounds connections. Zero for no limit.
type Limits struct {
	// Connections bounds all connections, and PerClient those of one client: an IPv4 address, or the /64 of an IPv6
	// address.
	Connections, PerClient int
	// ProxyProtocol are the clients that must send a PROXY header first.
	ProxyProtocol []netip.Prefix
}

// handshakeTime bounds a PROXY header, and a handshake; handshakeBytes is what a client may send for one: crypto/tls
// would buffer 64 KiB. After the header of a record, twice that are held.
const (
	handshakeTime  = 10 * time.Second
	handshakeBytes = 16 << 10
)

// Refusal is why a connection or request was not served.
type Refusal string

// The refusals.
const (
	TooMany                Refusal = "connections"
	TooManyOfClient        Refusal = "connections-per-client"
	TooManyStreams         Refusal = "streams"
	TooManyOfClientStreams Refusal = "streams-per-client"
	BadProxyHeader         Refusal = "proxy-header"
	BadHandshake           Refusal = "handshake"
	BadRequest             Refusal = "bad-request"
	BadPreface             Refusal = "preface"
	MisdirectedHost        Refusal = "misdirected"
	MalformedMessage       Refusal = "malformed"
	// Flood is a connection of HTTP/2 with too many frames without content.
	Flood Refusal = "flood"
	// Connections that were evicted to make room for others.
	EvictedIdle    Refusal = "evicted-idle"
	EvictedWaiting Refusal = "evicted-waiting"
	EvictedBusy    Refusal = "evicted-busy"
)

// Server accepts connections from its listeners. Use New; its methods may be called concurrently.
type Server struct {
	certs  *Certificates
	tls    *tls.Config
	handle func(context.Context, message.Downstream)
	log    *slog.Logger
	h1     *h1.Server
	h2     *http2Server
	// pass handles connections that are passed through; nil for none.
	pass func(ctx context.Context, c net.Conn, backend string)
	// directs are the connections below TLS.
	directs *h1.Directs
	// refused is called for connections and requests that are not served.
	refused func(Refusal)

	limits atomic.Pointer[Limits]
	counts counts
	crowd  h1.Crowd
	futile futile // guarded by mu
	base   context.Context
	stop   context.CancelFunc

	mu        sync.Mutex
	listeners map[schema.Socket]*net.TCPListener
	conns     map[*conn]struct{}
	draining  bool
	empty     chan struct{} // closed when draining and no connection is left
}

// Options of a Server.
type Options struct {
	Certificates *Certificates
	// Handle answers exchanges.
	Handle func(context.Context, message.Downstream)
	// Pass hands a TLS connection to a backend unchanged, and returns at its end; nil passes none.
	Pass func(ctx context.Context, c net.Conn, backend string)
	// HTTP1 are the limits of HTTP/1.1; those of HTTP/2 are derived from them.
	HTTP1 h1.Limits
	// Refused is called for connections and requests that are not served; may be nil.
	Refused func(Refusal)
	Log     *slog.Logger
}

// New returns a server without listeners.
func New(o Options) *Server {
	s := &Server{certs: o.Certificates, tls: o.Certificates.config(), handle: o.Handle, pass: o.Pass, log: o.Log,
		refused:   o.Refused,
		listeners: map[schema.Socket]*net.TCPListener{}, conns: map[*conn]struct{}{}, empty: make(chan struct{})}
	if s.refused == nil {
		s.refused = func(Refusal) {}
	}
	s.directs = h1.NewDirects()
	s.crowd.Full = s.thin
	s.base, s.stop = context.WithCancel(context.Background())
	s.limits.Store(&Limits{})
	s.h1 = &h1.Server{Limits: o.HTTP1, Handle: o.Handle, Refused: func(netip.AddrPort, *h1.Error) {
		s.refused(BadRequest)
	}}
	s.h2 = newHTTP2(s, o.HTTP1)
	return s
}

// SetLimits replaces the limits for later connections.
func (s *Server) SetLimits(l Limits) {
	s.limits.Store(&l)
	s.crowd.Most.Store(int64((l.Connections + waitingShare - 1) / waitingShare))
}

// SetHead replaces the limits of requests' heads for later connections.
func (s *Server) SetHead(l h1.HeadLimits) {
	s.h1.SetHead(l)
	s.h2.setHead(l)
}

// SetName replaces the field Server of responses that Handle does not send; nil for no field.
func (s *Server) SetName(name []byte) {
	s.h1.SetName(name)
	s.h2.name.Store(&name)
}

// Waiting returns the number of connections that wait for a handshake or for a request's head.
func (s *Server) Waiting() int { return s.crowd.Waiting() }

// Listen accepts connections from a listening socket, whose descriptor remains the caller's.
func (s *Server) Listen(k schema.Socket, f *os.File) error {
	l, err := net.FileListener(f)
	if err != nil {
		return err
	}
	t, ok := l.(*net.TCPListener)
	if !ok {
		return errors.Join(errors.New("not a TCP socket"), l.Close())
	}
	s.mu.Lock()
	if s.draining || s.listeners[k] != nil {
		s.mu.Unlock()
		return t.Close()
	}
	s.listeners[k] = t
	s.mu.Unlock()
	go s.accept(k, t)
	return nil
}

// Keep closes sockets that are not in the list.
func (s *Server) Keep(list []schema.Socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, l := range s.listeners {
		if !slices.Contains(list, k) {
			_ = l.Close()
			delete(s.listeners, k)
		}
	}
}

// Sockets returns the listening sockets, with copies of their descriptors.
func (s *Server) Sockets() (list []schema.Socket, files []*os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, l := range s.listeners {
		f, err := l.File()
		if err != nil {
			s.log.Warn("cannot copy a socket", "socket", k, "err", err)
			continue
		}
		list, files = append(list, k), append(files, f)
	}
	return list, files
}

// Listening returns the number of listening sockets.
func (s *Server) Listening() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.listeners)
}

// Conns returns the number of open connections.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// accept accepts connections until the listener is closed.
func (s *Server) accept(k schema.Socket, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err == nil {
			if c := s.enter(c); c != nil {
				go s.serve(k, c)
			}
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM) ||
			errors.Is(err, syscall.ENOBUFS) {
			s.refused(TooMany)
			select { // waiting clients are accepted once others have left
			case <-time.After(10 * time.Millisecond):
			case <-s.base.Done():
				return
			}
			continue
		}
		if !errors.Is(err, syscall.ECONNABORTED) {
			s.log.Warn("accept", "socket", k, "err", err)
		}
	}
}

// enter counts a connection, or closes it and returns nil. A full server makes room if it can.
func (s *Server) enter(t *net.TCPConn) *conn {
	k := &conn{TCPConn: t, client: whose(address(t.RemoteAddr()))}
	most := s.limits.Load().Connections
	s.mu.Lock()
	in := (most == 0 || len(s.conns) < mostHeld(most)) &&
		(s.counts.enter(most) || s.makeRoom(k.client, most) && s.counts.enter(most))
	if in {
		k.state.Start(&s.crowd) // before others can find it in conns
		s.conns[k] = struct{}{}
	}
	s.mu.Unlock()
	if !in {
		s.refused(TooMany)
		_ = t.SetLinger(0) // a reset: the kernel keeps no state
		_ = t.Close()
		return nil
	}
	s.crowd.Relieve()
	return k
}

// leave removes it from the counts.
func (s *Server) leave(k *conn) {
	k.state.End()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countOut(k)
	delete(s.conns, k)
	s.left()
}

// left notices that a draining server has no connection any more; s.mu is held.
func (s *Server) left() {
	if !s.draining || len(s.conns) > 0 {
		return
	}
	select {
	case <-s.empty:
	default:
		close(s.empty)
	}
}

// serve handles one connection until it ends.
func (s *Server) serve(socket schema.Socket, k *conn) {
	defer s.leave(k)
	defer k.Close()
	lim := s.limits.Load()
	c := net.Conn(k.TCPConn)
	client := address(c.RemoteAddr())
	if slices.ContainsFunc(lim.ProxyProtocol, func(p netip.Prefix) bool { return p.Contains(client) }) {
		_ = k.SetDeadline(time.Now().Add(handshakeTime))
		var err error
		if c, err = readProxyHeader(k.TCPConn); err != nil {
			s.refused(BadProxyHeader)
			s.log.Debug("connection refused", "client", client, "err", err)
			return
		}
		_ = k.SetDeadline(time.Time{})
		client = address(c.RemoteAddr())
	}
	client = whose(client)
	if !s.counts.enterClient(client, lim.PerClient) {
		s.refused(TooManyOfClient)
		_ = k.SetLinger(0)
		return
	}
	defer s.counts.leaveClient(client)
	s.mu.Lock()
	k.client = client
	s.mu.Unlock()
	if socket.TLS {
		s.encrypted(k, c)
		return
	}
	s.plain(k, c)
}

// address returns that of a connection's end.
func address(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// encrypted serves after a handshake, which selects the protocol.
func (s *Server) encrypted(k *conn, c net.Conn) {
	if backend := s.passes(k); backend != "" {
		if k.state.To(h1.Busy) {
			s.pass(s.base, c, backend)
		}
		return
	}
	below := s.directs.Of(k.TCPConn)
	below.Bound(handshakeBytes)
	if p, ok := c.(*proxied); ok {
		p.Conn = below
	} else {
		c = below
	}
	t := tls.Server(c, s.tls)
	// A deadline is enough: a server that ends closes its connections. A context would cost a goroutine.
	_ = c.SetDeadline(time.Now().Add(handshakeTime))
	err := t.HandshakeContext(context.Background())
	below.Bound(0)
	_ = c.SetDeadline(time.Time{})
	if err != nil {
		s.refused(BadHandshake)
		s.log.Debug("handshake failed", "client", c.RemoteAddr(), "err", err)
		var plain tls.RecordHeaderError
		if errors.As(err, &plain) && plain.Conn != nil && looksLikeHTTP(plain.RecordHeader) {
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, _ = c.Write([]byte(plainToTLS))
		}
		return
	}
	if t.ConnectionState().NegotiatedProtocol == "h2" {
		s.h2.serve(k, t)
		return
	}
	s.h1.ServeState(s.base, t, nil, true, &k.state)
}

// plainToTLS answers clients that send plain HTTP to a TLS port.
const plainToTLS = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 48\r\nConnection: " +
	"close\r\n\r\n400 this port speaks HTTPS; HTTP was sent to it\n"

func looksLikeHTTP(b [5]byte) bool {
	for _, c := range b {
		if (c < 'A' || c > 'Z') && c != ' ' && c != '/' {
			return false
		}
	}
	return true
}

// preface begins an HTTP/2 connection with prior knowledge.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// plain serves HTTP/1.1, or HTTP/2 to a client that begins with its preface.
func (s *Server) plain(k *conn, c net.Conn) {
	k.state.To(h1.Idle) // no request has begun
	buf := make([]byte, 4<<10)
	n := 0
	if idle := s.h1.Limits.Idle; idle > 0 {
		_ = c.SetReadDeadline(time.Now().Add(idle))
	}
	for {
		m, err := c.Read(buf[n:])
		first := n == 0
		n += m
		same := min(n, len(preface))
		if m > 0 && string(buf[:same]) != preface[:same] {
			s.h1.ServeState(s.base, c, buf[:n], false, &k.state)
			return
		}
		if n >= len(preface) {
			_ = c.SetReadDeadline(time.Time{})
			s.h2.serve(k, &readFirst{Conn: c, first: buf[:n]})
			return
		}
		if err != nil {
			if n > 0 {
				s.refused(BadPreface)
			}
			return
		}
		if !k.state.To(h1.Waiting) {
			return
		}
		if head := s.h1.Limits.HeadTime; first && head > 0 {
			_ = c.SetReadDeadline(time.Now().Add(head))
		}
	}
}

// readFirst is a connection with the bytes that were read ahead.
type readFirst struct {
	net.Conn
	first []byte
}

// Read returns the bytes that were read ahead, then new ones.
func (r *readFirst) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		if r.first = r.first[n:]; len(r.first) == 0 {
			r.first = nil
		}
		return n, nil
	}
	return r.Conn.Read(p)
}

// Drain accepts no more connections, ends open ones after their current exchange, and returns when none is left. When
// ctx ends earlier, the rest is closed. idle is how long connections without an exchange are still read: their next
// request may be in transit.
func (s *Server) Drain(ctx context.Context, idle time.Duration) {
	s.mu.Lock()
	for k, l := range s.listeners {
		_ = l.Close()
		delete(s.listeners, k)
	}
	s.draining = true
	s.left()
	s.mu.Unlock()
	s.h1.Drain(idle) // fast, whereas GOAWAY to all clients of HTTP/2 may take time
	s.h2.drain()
	select {
	case <-s.empty:
	case <-ctx.Done():
	}
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.conns {
		if phase, _ := k.state.Look(); phase != h1.Idle { // the response is incomplete
			_ = k.SetLinger(0)
		}
		_ = k.Close()
	}
}
