package h1

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// Direct is a TCP connection below TLS that is read and written like plain HTTP/1.1 connections: by system calls of
// which the scheduler is not told. Everything written between Cork and Uncork is sent by one call: TLS writes each
// record of 16 KiB separately.
//
// One goroutine reads and one writes at a time, as crypto/tls does; the one that writes calls Cork and Uncork.
type Direct struct {
	*net.TCPConn
	raw  syscall.RawConn
	from *corks

	in    []byte // buffer of a Read
	n     int
	inErr error
	pull  func(fd uintptr) bool
	// probing makes Read return errQuiet where it would block; look checks the socket for that.
	probing bool
	look    func(fd uintptr)
	records records
	// bound is the number of bytes that may still arrive if bounded is true.
	bounded bool
	bound   int
	// ended means that the peer closed the connection below TLS.
	ended bool

	mu     sync.Mutex // the reader may write an alert
	out    []byte
	wrote  int
	outErr error
	push   func(fd uintptr) bool
	corked bool
	held   *[]byte
	// state is told when the socket accepts no more bytes, and when it does again; may be nil.
	state *State
	full  bool
}

// corks are buffers for corked bytes.
type corks struct {
	used atomic.Int64
	pool sync.Pool
}

const (
	// mostCorked is the number of buffered bytes at which they are sent.
	mostCorked = 64<<10 + 8<<10
	// mostCorks is how many connections may buffer at a time, since a client that reads slowly keeps its buffer.
	// Connections above the limit write each record separately.
	mostCorks = 1024
)

// Directs creates Direct connections, which share buffers. Use NewDirects.
type Directs struct{ from *corks }

// NewDirects returns an empty Directs.
func NewDirects() *Directs {
	return &Directs{&corks{pool: sync.Pool{New: func() any { b := make([]byte, 0, mostCorked); return &b }}}}
}

// Of returns a Direct for a connection, which it owns from then on.
func (s *Directs) Of(c *net.TCPConn) *Direct {
	d := &Direct{TCPConn: c, from: s.from}
	raw, err := c.SyscallConn()
	if err != nil {
		return d // the connection is closed: each call fails
	}
	d.raw, d.pull, d.push = raw, d.pulled, d.pushed
	d.look = func(fd uintptr) { d.n, d.inErr = readNow(int(fd), d.in) }
	return d
}

// pulled reads what is available; false means that it must wait.
func (d *Direct) pulled(fd uintptr) bool {
	d.n, d.inErr = readNow(int(fd), d.in)
	return d.inErr != errAgain
}

// pushed writes the rest; false means that it must wait for room.
func (d *Direct) pushed(fd uintptr) bool {
	for before := d.wrote; d.wrote < len(d.out); {
		n, err := writeNow(int(fd), d.out[d.wrote:])
		if err == errAgain {
			if d.full = d.state != nil; d.full {
				d.state.Owes(d.wrote - before)
			}
			return false
		}
		if err != nil {
			d.outErr = err
			return true
		}
		d.wrote += n
	}
	if d.full {
		d.full = false
		d.state.To(Busy)
	}
	return true
}

// Read implements net.Conn.
func (d *Direct) Read(p []byte) (int, error) {
	if d.raw == nil || len(p) == 0 {
		return d.TCPConn.Read(p)
	}
	d.in, d.n, d.inErr = p, 0, nil
	var err error
	if d.probing {
		err = d.raw.Control(d.look)
	} else {
		err = d.raw.Read(d.pull)
	}
	d.in = nil
	switch {
	case err != nil:
		return 0, err
	case d.inErr == errAgain:
		return 0, errQuiet
	case d.inErr != nil:
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: d.LocalAddr(), Addr: d.RemoteAddr(), Err: d.inErr}
	case d.n == 0:
		d.ended = true
		return 0, io.EOF
	}
	if d.bound -= d.n; d.bounded && d.bound < 0 {
		return 0, errBound
	}
	d.records.took(p[:d.n])
	return d.n, nil
}

// quiet reports whether there is nothing to read for c, the TLS connection above: no byte at the socket, no record that
// TLS has read ahead, and no part of one. No other goroutine may read meanwhile. If the result is false, c is unusable.
func (d *Direct) quiet(c net.Conn) bool {
	if d.raw == nil || d.ended || !d.records.between() {
		return false
	}
	d.probing = true
	var one [1]byte
	n, err := c.Read(one[:])
	d.probing = false
	return n == 0 && errors.Is(err, errQuiet) && d.n == 0
}

// quietError is returned by a Read that would block. TLS continues after temporary errors.
type quietError struct{}

func (quietError) Error() string   { return "nothing to read" }
func (quietError) Timeout() bool   { return true }
func (quietError) Temporary() bool { return true }

var errQuiet net.Error = quietError{}

// records tracks where TLS records end (RFC 8446, 5.1).
type records struct {
	head       [5]byte
	have, left int // received bytes of head, missing bytes of the record's payload
}

func (r *records) took(p []byte) {
	for len(p) > 0 {
		if n := min(r.left, len(p)); n > 0 {
			r.left, p = r.left-n, p[n:]
			continue
		}
		n := copy(r.head[r.have:], p)
		if r.have, p = r.have+n, p[n:]; r.have == len(r.head) {
			r.have, r.left = 0, int(r.head[3])<<8|int(r.head[4])
		}
	}
}

// between reports whether no record is partly received.
func (r *records) between() bool { return r.have == 0 && r.left == 0 }

// Write implements net.Conn.
func (d *Direct) Write(p []byte) (int, error) {
	if d.raw == nil {
		return d.TCPConn.Write(p)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.corked {
		return d.write(p)
	}
	if d.held == nil {
		d.held = d.from.pool.Get().(*[]byte)
	}
	if len(*d.held)+len(p) > mostCorked {
		if err := d.release(); err != nil {
			return 0, err
		}
		if len(p) > mostCorked {
			return d.write(p)
		}
	}
	*d.held = append(*d.held, p...)
	return len(p), nil
}

// write sends p; d.mu is held.
func (d *Direct) write(p []byte) (int, error) {
	d.out, d.wrote, d.outErr = p, 0, nil
	err := d.raw.Write(d.push)
	d.out = nil
	if err == nil && d.outErr != nil {
		err = &net.OpError{Op: "write", Net: "tcp", Source: d.LocalAddr(), Addr: d.RemoteAddr(), Err: d.outErr}
	}
	return d.wrote, err
}

// release sends what is buffered; d.mu is held.
func (d *Direct) release() error {
	if d.held == nil || len(*d.held) == 0 {
		return nil
	}
	_, err := d.write(*d.held)
	*d.held = (*d.held)[:0]
	return err
}

// Cork buffers what is written until Uncork.
func (d *Direct) Cork() {
	if d.from.used.Add(1) > mostCorks {
		d.from.used.Add(-1)
		return
	}
	d.mu.Lock()
	d.corked = true
	d.mu.Unlock()
}

// Uncork sends what was buffered.
func (d *Direct) Uncork() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.corked {
		return nil
	}
	d.corked = false
	d.from.used.Add(-1)
	err := d.release()
	if d.held != nil {
		d.from.pool.Put(d.held)
		d.held = nil
	}
	return err
}

// Bound makes reading fail once max more bytes have arrived; 0 for no bound. Only the reader may call it.
func (d *Direct) Bound(max int) { d.bounded, d.bound = max > 0, max }

var errBound = errors.New("handshake exceeds its byte limit")

// DirectOf returns the Direct below TLS; nil if there is none.
func DirectOf(c net.Conn) *Direct {
	for {
		if d, ok := c.(*Direct); ok {
			return d
		}
		t, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = t.NetConn()
	}
}

// lowest returns the connection below all layers.
func lowest(c net.Conn) net.Conn {
	for {
		t, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = t.NetConn()
	}
}
