// Package admission bounds the connections of a listener before a byte of them is read: how many there are, how
// many of one source, and which sources may connect at all.
//
// A full listener never locks out a newcomer: the oldest connection of the source with the most is closed for it. So a
// source that floods displaces its own connections, and many sources displace the oldest connection of all.
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
	// Total and PerSource are the most connections that are open at once. Both must be positive.
	Total, PerSource int
	// Allowed says whether an address may connect; nil lets all. With it, each IPv6 address is a source of its own;
	// without, each /64 is one, since a machine has all addresses of its own /64.
	Allowed func(netip.Addr) bool
}

// Counters count since the pool was made.
type Counters struct {
	// Refused are connections of sources that are not allowed, Displaced those closed for a newer one.
	Refused, Displaced uint64
	// Open is how many there are.
	Open int
}

// Pool is places for connections that listeners share. Its methods may be called at any time.
type Pool struct {
	limits Limits

	mu      sync.Mutex
	sources map[netip.Addr]*queue
	count   Counters
}

// Listener is a net.Listener whose connections take places of a pool.
type Listener struct {
	net.Listener
	*Pool
}

// queue is the connections of one source, the oldest first.
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

// NewPool makes places that no connection has yet.
func NewPool(limits Limits) *Pool { return &Pool{limits: limits, sources: map[netip.Addr]*queue{}} }

// Bound has the connections of l take places of the pool. l is closed with the result.
func (p *Pool) Bound(l net.Listener) *Listener { return &Listener{l, p} }

// acceptPause follows an error of accept, which is mostly that there is no descriptor left.
const acceptPause = 50 * time.Millisecond

// Accept returns the next connection that is let in. It returns an error only when the listener is closed.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		if err != nil {
			// The oldest connection gives its descriptor back.
			l.displace()
			time.Sleep(acceptPause)
			continue
		}
		if admitted := l.admit(c); admitted != nil {
			return admitted, nil
		}
	}
}

// Counters tells what was turned away so far.
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

// oldest is the connection to close first. l.mu is held.
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

// forget takes a connection out of the count. l.mu is held.
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

// Close closes the connection and gives its place back.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.pool.mu.Lock()
		c.pool.forget(c)
		c.pool.mu.Unlock()
		c.err = c.Conn.Close()
	})
	return c.err
}

// reset closes a connection and leaves nothing of it in the kernel, neither unsent bytes nor TIME_WAIT.
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
