package h1

import (
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

	mu     sync.Mutex // an alert may be written by who reads
	out    []byte
	wrote  int
	outErr error
	push   func(fd uintptr) bool
	corked bool
	held   *[]byte
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
	return d
}

// pulled reads what there is; false waits.
func (d *Direct) pulled(fd uintptr) bool {
	d.n, d.inErr = readNow(int(fd), d.in)
	return d.inErr != errAgain
}

// pushed writes what is left; false waits for room.
func (d *Direct) pushed(fd uintptr) bool {
	for d.wrote < len(d.out) {
		n, err := writeNow(int(fd), d.out[d.wrote:])
		if err == errAgain {
			return false
		}
		if err != nil {
			d.outErr = err
			return true
		}
		d.wrote += n
	}
	return true
}

// Read implements net.Conn.
func (d *Direct) Read(p []byte) (int, error) {
	if d.raw == nil || len(p) == 0 {
		return d.TCPConn.Read(p)
	}
	d.in, d.n, d.inErr = p, 0, nil
	err := d.raw.Read(d.pull)
	d.in = nil
	switch {
	case err != nil:
		return 0, err
	case d.inErr != nil:
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: d.LocalAddr(), Addr: d.RemoteAddr(), Err: d.inErr}
	case d.n == 0:
		return 0, io.EOF
	}
	return d.n, nil
}

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

// DirectOf is the connection below TLS, where it is one; else nil.
func DirectOf(c net.Conn) *Direct {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		d, _ := t.NetConn().(*Direct)
		return d
	}
	return nil
}
