package server

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"wayleave.dev/dns/wire"
)

// Bounds of one TCP connection. Until a query is complete, a connection costs its goroutine, the kernel's buffers and
// at most maxTCPQuery bytes.
const (
	// tcpIdle ends a connection that sends no query (RFC 7766, 6.2.3).
	tcpIdle = 10 * time.Second
	// tcpMessage is the time for a query from its first byte to its last, and for the client to read an answer.
	tcpMessage = 4 * time.Second
	// tcpQueries are answered on one connection at most, one after the other: pipelined queries wait in the kernel's
	// buffer.
	tcpQueries = 1000
	// maxTCPQuery is the longest query that is read. A query has one name and options; resolvers pad to at most 468
	// bytes (RFC 8467).
	maxTCPQuery = 4096
	// tcpReceive and tcpSend are the sizes of a connection's buffers in the kernel, which doubles them for its own
	// needs.
	tcpReceive, tcpSend = 8 << 10, 16 << 10
	// tcpBacklog is the number of connections that wait to be accepted.
	tcpBacklog = 1024
	// answerBytes bounds the unread bytes of all answers; beyond that a connection is closed.
	answerBytes = 16 << 20
	// acceptPause follows an accept that failed for lack of files or memory.
	acceptPause = 10 * time.Millisecond
)

// tcpSocket answers the connections of one socket.
type tcpSocket struct {
	server   *Server
	listener *net.TCPListener

	mu      sync.Mutex
	stopped bool
	conns   map[*tcpConn]struct{}
	open    sync.WaitGroup
}

func newTCPSocket(s *Server, l *net.TCPListener) (*tcpSocket, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		// Connections inherit the sizes. The second call of listen changes the backlog.
		inner = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, tcpReceive),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, tcpSend), unix.Listen(int(fd), tcpBacklog))
	})
	if err := errors.Join(err, inner); err != nil {
		return nil, err
	}
	return &tcpSocket{server: s, listener: l, conns: map[*tcpConn]struct{}{}}, nil
}

// serve accepts connections until the socket is stopped. A connection from an address that is not allowed is closed
// before a byte of it is read.
func (t *tcpSocket) serve() error {
	for failed := 0; ; {
		c, err := t.listener.AcceptTCP()
		switch {
		case err == nil:
			failed = 0
			t.admit(c)
			continue
		case errors.Is(err, net.ErrClosed):
			return nil
		case outOfFiles(err):
			t.server.conns.relieve()
		default: // an error of the connection, not of the socket
			if failed++; failed > 100 {
				return err
			}
		}
		time.Sleep(acceptPause)
	}
}

func outOfFiles(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) ||
		errors.Is(err, unix.ENOMEM)
}

func (t *tcpSocket) admit(raw *net.TCPConn) {
	s := t.server
	client := raw.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().WithZone("")
	if !s.admits(s.compiled.Load(), client) {
		s.tcpTally.mu.Lock()
		s.tcpTally.refused++
		s.tcpTally.mu.Unlock()
		reset(raw)
		return
	}
	c := &tcpConn{TCPConn: raw, client: client, source: s.sourceOf(client)}
	if !t.own(c) {
		reset(raw)
		return
	}
	s.conns.add(c)
	go func() {
		defer t.disown(c)
		defer s.conns.remove(c)
		defer c.Close()
		t.converse(c)
	}()
}

// own returns false if the socket has been stopped.
func (t *tcpSocket) own(c *tcpConn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return false
	}
	t.conns[c] = struct{}{}
	t.open.Add(1)
	return true
}

func (t *tcpSocket) disown(c *tcpConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
	t.open.Done()
}

// stop closes the socket and idle connections at once, and others after their answers.
func (t *tcpSocket) stop(ctx context.Context) error {
	err := t.listener.Close()
	t.mu.Lock()
	t.stopped = true
	for c := range t.conns {
		_ = c.SetReadDeadline(time.Unix(1, 0)) // errors of closed connections do not matter
	}
	t.mu.Unlock()
	done := make(chan struct{})
	go func() { t.open.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
	}
	return err
}

// converse answers one query after the other, until the client ends the connection or a bound is reached.
func (t *tcpSocket) converse(c *tcpConn) {
	for range tcpQueries {
		q, err := t.read(c)
		if err != nil || !t.server.conns.progress(c) {
			return
		}
		err = t.answer(c, q)
		if !t.server.conns.progress(c) || err != nil {
			return
		}
		runtime.Gosched() // others' first query comes before this client's next one
	}
}

// wait sets the time for the client's next bytes; false if the socket has been stopped.
func (t *tcpSocket) wait(c *tcpConn, d time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.stopped && c.SetReadDeadline(time.Now().Add(d)) == nil
}

var errQuery = errors.New("no query")

// read returns the next query. Its buffer is allocated when its length is known.
func (t *tcpSocket) read(c *tcpConn) ([]byte, error) {
	var head [2]byte
	if !t.wait(c, tcpIdle) {
		return nil, net.ErrClosed
	}
	if _, err := io.ReadFull(c.TCPConn, head[:1]); err != nil {
		return nil, err
	}
	if !t.wait(c, tcpMessage) {
		return nil, net.ErrClosed
	}
	if _, err := io.ReadFull(c.TCPConn, head[1:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n < wire.HeaderLen || n > maxTCPQuery {
		return nil, errQuery
	}
	q := make([]byte, n)
	_, err := io.ReadFull(c.TCPConn, q)
	return q, err
}

// answer makes the reply to a query and waits until the kernel has accepted it.
func (t *tcpSocket) answer(c *tcpConn, q []byte) error {
	s := t.server
	out := s.slow(q, c.client, overTCP)
	if out == nil {
		return errQuery
	}
	if s.unsent.Add(int64(len(out))) > answerBytes {
		s.unsent.Add(-int64(len(out)))
		return errors.New("too many answers wait for their clients")
	}
	defer s.unsent.Add(-int64(len(out)))
	if err := c.SetWriteDeadline(time.Now().Add(tcpMessage)); err != nil {
		return err
	}
	buffers := net.Buffers{binary.BigEndian.AppendUint16(nil, uint16(len(out))), out}
	_, err := buffers.WriteTo(c.TCPConn)
	return err
}

// transport is what the slow path must know about the connection of a reply.
type transport struct {
	network string
	tally   func(*Server) *tally
	// size returns the longest reply to a query.
	size func(q *dns.Msg) int
}

var (
	overUDP = transport{"udp", func(s *Server) *tally { return s.slowTally }, func(q *dns.Msg) int {
		if opt := q.IsEdns0(); opt != nil {
			return min(max(int(opt.UDPSize()), dns.MinMsgSize), wire.MaxUDP)
		}
		return dns.MinMsgSize
	}}
	overTCP = transport{"tcp", func(s *Server) *tally { return s.tcpTally },
		func(*dns.Msg) int { return dns.MaxMsgSize }}
)

// slow answers one query with the library, within the share of its source; nil for no answer.
func (s *Server) slow(raw []byte, client netip.Addr, by transport) []byte {
	source := s.sourceOf(client)
	if !s.work.take(source) {
		t := by.tally(s)
		t.mu.Lock()
		t.full++
		t.mu.Unlock()
		return refusal(nil, raw, dns.RcodeServerFailure)
	}
	defer s.work.done(source)
	return s.answerSlowly(raw, client, by)
}
