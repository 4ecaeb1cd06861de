package server

import (
	"crypto/tls"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"wayleave.dev/proxy/h1"
)

// batch is a connection of HTTP/2 that sends frames together. The server of x/net writes a response's head, its body
// and each reply to a frame by a separate call, each of which is a TLS record and a system call. A batch buffers them,
// and one goroutine writes the buffer once all other runnable goroutines have run: no clock is involved.
//
// Unwritten bytes are bounded by the buffer; a writer of more waits. After an error each Write returns it. A connection
// without unwritten bytes has no buffer.
type batch struct {
	net.Conn
	below *h1.Direct // nil if there is none
	from  *batches
	limit time.Duration // of one write, 0 for none
	k     *conn         // gets what is read; may be nil
	heads headerBlocks

	mu     sync.Mutex
	room   sync.Cond
	buf    *[]byte // nil while nothing is buffered
	busy   bool    // the goroutine runs
	closed bool
	err    error
	until  time.Time // the deadline that is set
	run    func()    // flush
}

const (
	// largeBatch holds four frames of the largest size, smallBatch one. A client that reads slowly keeps two buffers;
	// there are mostLargeBatches large ones, and above that small ones.
	largeBatch       = 4*(frameSize+16) + 4<<10
	smallBatch       = frameSize + 1<<10
	mostLargeBatches = 1024
	// closeTime bounds the write of the last frames when a connection is closed.
	closeTime = time.Second
)

// batches are the buffers of all connections.
type batches struct {
	used         atomic.Int64 // large ones
	large, small sync.Pool    // of *[]byte
}

func (s *batches) take() *[]byte {
	from, size := &s.large, largeBatch
	if s.used.Add(1) > mostLargeBatches {
		s.used.Add(-1)
		from, size = &s.small, smallBatch
	}
	if p, ok := from.Get().(*[]byte); ok {
		return p
	}
	p := make([]byte, 0, size)
	return &p
}

func (s *batches) give(p *[]byte) {
	size := cap(*p)
	*p = (*p)[:0]
	switch {
	case size == largeBatch:
		s.used.Add(-1)
		s.large.Put(p)
	case size == smallBatch:
		s.small.Put(p)
	}
}

// of returns a batch for a connection, with the state of TLS if it has one. k gets what is read; it may be nil.
func (s *batches) of(c net.Conn, limit time.Duration, k *conn) net.Conn {
	b := &batch{Conn: c, below: h1.DirectOf(c), from: s, limit: limit, k: k, heads: headerBlocks{skip: len(preface)}}
	b.room.L = &b.mu
	b.run = b.flush
	if t, ok := c.(*tls.Conn); ok {
		return &tlsBatch{b, t}
	}
	return b
}

// tlsBatch also has the state of TLS.
type tlsBatch struct {
	*batch
	t *tls.Conn
}

// ConnectionState returns the result of the handshake.
func (b *tlsBatch) ConnectionState() tls.ConnectionState { return b.t.ConnectionState() }

// Read implements net.Conn.
func (b *batch) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if b.k != nil && n > 0 {
		if b.k.read(&b.heads, p[:n]); b.heads.flood() {
			return 0, errFlood
		}
	}
	return n, err
}

// Write implements net.Conn. Its error may be that of an earlier Write.
func (b *batch) Write(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n < len(p) {
		for b.buf != nil && len(*b.buf)+len(p)-n > cap(*b.buf) && b.err == nil && !b.closed {
			b.room.Wait()
		}
		switch {
		case b.err != nil:
			return n, b.err
		case b.closed:
			return n, net.ErrClosed
		}
		if b.buf == nil {
			b.buf = b.from.take()
		}
		part := p[n:min(len(p), n+cap(*b.buf)-len(*b.buf))]
		*b.buf = append(*b.buf, part...)
		n += len(part)
		if !b.busy {
			b.busy = true
			go b.run()
		}
	}
	return n, nil
}

// flush writes until nothing is left.
func (b *batch) flush() {
	runtime.Gosched() // other goroutines may write more
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.buf != nil {
		out := b.buf
		b.buf = nil
		b.room.Broadcast()
		b.mu.Unlock()
		err := b.send(*out)
		b.from.give(out)
		b.mu.Lock()
		if err != nil && b.err == nil {
			b.err = err
		}
		if b.err != nil && b.buf != nil {
			b.from.give(b.buf)
			b.buf = nil
		}
	}
	b.busy = false
	b.room.Broadcast()
}

// send writes in parts, each with its own deadline, so that a slow client has as much time as with HTTP/1.1.
func (b *batch) send(p []byte) error {
	if b.below != nil {
		b.below.Cork()
	}
	err := b.parts(p)
	if b.below != nil {
		if e := b.below.Uncork(); err == nil {
			err = e
		}
	}
	return err
}

func (b *batch) parts(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), frameSize)
		b.await()
		if _, err := b.Conn.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// await sets the deadline for a write, unless the existing one ends at most a quarter later.
func (b *batch) await() {
	now := time.Now()
	if left := b.until.Sub(now); b.limit > 0 && (left < b.limit || left > b.limit+b.limit/4) {
		b.until = now.Add(b.limit + b.limit/4)
		_ = b.Conn.SetWriteDeadline(b.until)
	}
}

// SetWriteDeadline implements net.Conn; writes have the batch's own deadline.
func (b *batch) SetWriteDeadline(time.Time) error { return nil }

// Close implements net.Conn. Buffered bytes are sent before, if the client reads them.
func (b *batch) Close() error {
	b.mu.Lock()
	b.closed = true
	b.room.Broadcast()
	if b.busy {
		end := time.AfterFunc(closeTime, func() { _ = b.Conn.Close() })
		for b.busy {
			b.room.Wait()
		}
		end.Stop()
	}
	b.mu.Unlock()
	return b.Conn.Close()
}
