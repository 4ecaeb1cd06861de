// Package admission bounds the connections of a listener before a byte of them is read: their total, the number per
// source, and which sources may connect at all.
//
// A full listener never locks out new clients: it closes the oldest connection of the source with the most. A flooding
// source therefore displaces its own connections, and many sources displace the oldest connection of all.
package admission

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limits are those of a listener.
type Limits struct {
	// Total and PerSource are the maximum numbers of open connections. Both must be positive.
	Total, PerSource int
	// Allowed reports whether an address may connect; nil allows all. With Allowed, each IPv6 address is a source of
	// its own; without, each /64 is one, since a machine has all addresses of its /64.
	Allowed func(netip.Addr) bool
}

// Counters are counts since the pool was made.
type Counters struct {
	// Refused are connections of addresses that are not allowed, Displaced those closed for a newer one.
	Refused, Displaced uint64
	// Open is the number of open connections.
	Open int
}

// Pool bounds the connections that several listeners share. Its methods may be called at any time.
type Pool struct {
	limits Limits

	mu      sync.Mutex
	sources map[netip.Addr]*queue
	count   Counters
}

// Listener is a net.Listener whose connections count in a pool.
type Listener struct {
	net.Listener
	*Pool
}

// queue holds the connections of one source, the oldest first.
type queue struct {
	conns []*conn
}

type conn struct {
	net.Conn
	pool   *Pool
	source netip.Addr
	opened time.Time
	once   sync.Once
	err    error
}

// New bounds l, which is closed with the result.
func New(l net.Listener, limits Limits) *Listener {
	return NewPool(limits).Bound(l)
}

// NewPool returns an empty pool.
func NewPool(limits Limits) *Pool { return &Pool{limits: limits, sources: map[netip.Addr]*queue{}} }

// Bound counts the connections of l in the pool. l is closed with the result.
func (p *Pool) Bound(l net.Listener) *Listener { return &Listener{l, p} }

// acceptPause follows an error of accept, which usually means that no descriptor is left.
const acceptPause = 50 * time.Millisecond

// Accept returns the next admitted connection. It returns an error only when the listener is closed.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		if err != nil {
			// The oldest connection releases its descriptor.
			l.displace()
			time.Sleep(acceptPause)
			continue
		}
		if admitted := l.admit(c); admitted != nil {
			return admitted, nil
		}
	}
}

// Counters returns the counts so far.
func (p *Pool) Counters() Counters {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

func (p *Pool) admit(c net.Conn) net.Conn {
	addr := address(c)
	source := addr
	if p.limits.Allowed == nil && addr.Is6() {
		if prefix, err := addr.WithZone("").Prefix(64); err == nil {
			source = prefix.Addr()
		}
	}
	p.mu.Lock()
	if p.limits.Allowed != nil && !p.limits.Allowed(addr) {
		p.count.Refused++
		p.mu.Unlock()
		reset(c)
		return nil
	}
	var victim *conn
	q := p.sources[source]
	switch {
	case q != nil && len(q.conns) >= p.limits.PerSource:
		victim = q.conns[0]
	case p.count.Open >= p.limits.Total:
		victim = p.oldest()
	}
	if victim != nil {
		p.count.Displaced++
		p.forget(victim)
	}
	admitted := &conn{Conn: c, pool: p, source: source, opened: time.Now()}
	if q = p.sources[source]; q == nil {
		q = &queue{}
		p.sources[source] = q
	}
	q.conns = append(q.conns, admitted)
	p.count.Open++
	p.mu.Unlock()
	if victim != nil {
		reset(victim.Conn)
	}
	return admitted
}

// displace closes the oldest connection of the source with the most.
func (p *Pool) displace() {
	p.mu.Lock()
	victim := p.oldest()
	if victim != nil {
		p.count.Displaced++
		p.forget(victim)
	}
	p.mu.Unlock()
	if victim != nil {
		reset(victim.Conn)
	}
}

// oldest returns the connection to close first. l.mu is held.
func (p *Pool) oldest() *conn {
	var best *queue
	for _, q := range p.sources {
		if best == nil || len(q.conns) > len(best.conns) ||
			len(q.conns) == len(best.conns) && q.conns[0].opened.Before(best.conns[0].opened) {
			best = q
		}
	}
	if best == nil {
		return nil
	}
	return best.conns[0]
}

// forget removes a connection from the counts. l.mu is held.
func (p *Pool) forget(c *conn) {
	q := p.sources[c.source]
	if q == nil {
		return
	}
	for i, have := range q.conns {
		if have == c {
			q.conns = append(q.conns[:i], q.conns[i+1:]...)
			p.count.Open--
			break
		}
	}
	if len(q.conns) == 0 {
		delete(p.sources, c.source)
	}
}

// Close closes the connection and releases its place.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.pool.mu.Lock()
		c.pool.forget(c)
		c.pool.mu.Unlock()
		c.err = c.Conn.Close()
	})
	return c.err
}

// reset closes a connection without leaving anything in the kernel, neither unsent bytes nor TIME_WAIT.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

func address(c net.Conn) netip.Addr {
	if t, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
