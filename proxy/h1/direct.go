package h1

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// Direct is a TCP connection below TLS that is read and written as HTTP/1.1 without TLS is: by
// calls that the scheduler is not told of. What is written between Cork and Uncork leaves in
// one call: TLS writes each record of its 16 KiB for itself.
//
// One goroutine reads and one writes at a time, as crypto/tls does; Cork and Uncork are for the one that
// writes.
type Direct struct {
	*net.TCPConn
	raw  syscall.RawConn
	from *corks

	in    []byte // of a Read
	n     int
	inErr error
	pull  func(fd uintptr) bool
	// probing has a Read return errQuiet where it would wait; look is what it does instead.
	probing bool
	look    func(fd uintptr)
	records records
	// bound is how many more bytes may come, where bounded.
	bounded bool
	bound   int
	// ended says that the peer ended the connection below TLS.
	ended bool

	mu     sync.Mutex // the reader may write an alert
	out    []byte
	wrote  int
	outErr error
	push   func(fd uintptr) bool
	corked bool
	held   *[]byte
	// state is told when there is no room for more, and when there is again; may be nil.
	state *State
	full  bool
}

// corks are buffers for what is corked.
type corks struct {
	used atomic.Int64
	pool sync.Pool
}

const (
	// mostCorked is how much is collected; then it leaves.
	mostCorked = 64<<10 + 8<<10
	// mostCorks is how many connections may collect at a time: a client that reads slowly keeps a
	// buffer. Those above it write each record for itself.
	mostCorks = 1024
)

// Directs makes Direct connections, which share buffers. Make it with NewDirects.
type Directs struct{ from *corks }

// NewDirects makes it.
func NewDirects() *Directs {
	return &Directs{&corks{pool: sync.Pool{New: func() any { b := make([]byte, 0, mostCorked); return &b }}}}
}

// Of makes one of a connection, which it owns from then on.
func (s *Directs) Of(c *net.TCPConn) *Direct {
	d := &Direct{TCPConn: c, from: s.from}
	raw, err := c.SyscallConn()
	if err != nil {
		return d // a closed one: each call says so
	}
	d.raw, d.pull, d.push = raw, d.pulled, d.pushed
	d.look = func(fd uintptr) { d.n, d.inErr = readNow(int(fd), d.in) }
	return d
}

// pulled reads what there is; false waits.
func (d *Direct) pulled(fd uintptr) bool {
	d.n, d.inErr = readNow(int(fd), d.in)
	return d.inErr != errAgain
}

// pushed writes what is left; false waits for room.
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

// quiet says whether there is nothing to read for c, the TLS connection above: no byte at the socket,
// no record that TLS has read ahead, and no part of one. Nothing else may read meanwhile. Where it
// says no, c is of no more use.
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

// quietError is that of a Read that would wait. TLS goes on after errors that are temporary.
type quietError struct{}

func (quietError) Error() string   { return "nothing to read" }
func (quietError) Timeout() bool   { return true }
func (quietError) Temporary() bool { return true }

var errQuiet net.Error = quietError{}

// records follows where records of TLS end (RFC 8446, 5.1).
type records struct {
	head       [5]byte
	have, left int // bytes of head that came, and of the record behind it that are still to come
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

// between says whether no record is in part here.
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

// write has p leave; d.mu is held.
func (d *Direct) write(p []byte) (int, error) {
	d.out, d.wrote, d.outErr = p, 0, nil
	err := d.raw.Write(d.push)
	d.out = nil
	if err == nil && d.outErr != nil {
		err = &net.OpError{Op: "write", Net: "tcp", Source: d.LocalAddr(), Addr: d.RemoteAddr(), Err: d.outErr}
	}
	return d.wrote, err
}

// release has what is collected leave; d.mu is held.
func (d *Direct) release() error {
	if d.held == nil || len(*d.held) == 0 {
		return nil
	}
	_, err := d.write(*d.held)
	*d.held = (*d.held)[:0]
	return err
}

// Cork collects what is written until Uncork.
func (d *Direct) Cork() {
	if d.from.used.Add(1) > mostCorks {
		d.from.used.Add(-1)
		return
	}
	d.mu.Lock()
	d.corked = true
	d.mu.Unlock()
}

// Uncork has what was collected leave.
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

// Bound has reading end with an error once max more bytes have come; 0 is no bound. It is for who reads.
func (d *Direct) Bound(max int) { d.bounded, d.bound = max > 0, max }

var errBound = errors.New("handshake exceeds its byte limit")

// DirectOf is the connection below TLS, where it is one; else nil.
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

// lowest is the connection below all layers.
func lowest(c net.Conn) net.Conn {
	for {
		t, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = t.NetConn()
	}
}
