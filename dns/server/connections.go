package server

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of connections.
const (
	// maxConns is the maximum over all sockets; it is lower if the process may open fewer than four times as many
	// files.
	maxConns = 1024
	// maxConnsEach is the maximum per source.
	maxConnsEach = 64
	// askTime is the time that each connection has to send a query, and then to be answered, before it can be closed
	// for one of another source. A query has usually arrived when the connection is accepted.
	askTime = 50 * time.Millisecond
	// manyConns of one source are more than resolvers need at a time: they have no such time.
	manyConns = 8
)

// connections are the TCP connections of all sockets. If a source has its maximum, its idlest connection is closed for
// its next one; if all sources together do, the idlest of the source with the most connections. A flood is therefore
// mainly at the expense of its own source. The idlest connection is the one without progress for longest: no new query,
// no answer read. That may be one with a pending answer: clients that do not read, or that query dead servers, keep no
// other clients out. No connection is closed for another source in its first askTime: while all are that young, new
// ones wait in the socket's queue. Otherwise a flood from more sources than maxConns would close every connection
// before it is answered. Safe for concurrent use.
type connections struct {
	most, mostEach int
	evicted        atomic.Uint64

	mu      sync.Mutex
	all     int
	sources map[netip.Addr]map[*tcpConn]struct{}
}

// tcpConn is a connection of an allowed client.
type tcpConn struct {
	*net.TCPConn
	client, source netip.Addr

	// since is when it was accepted, when its last query was complete, or when that was answered. Guarded by the lock
	// of connections.
	since time.Time
}

func newConnections(most, mostEach int) *connections {
	return &connections{most: most, mostEach: mostEach, sources: map[netip.Addr]map[*tcpConn]struct{}{}}
}

// add adds a connection, and closes another one for it if necessary. It waits up to askTime for that.
func (l *connections) add(c *tcpConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case len(l.sources[c.source]) >= l.mostEach:
		l.evict(idlest(l.sources[c.source]))
	case l.all >= l.most:
		l.makeRoom(c.source)
	}
	if l.sources[c.source] == nil {
		l.sources[c.source] = map[*tcpConn]struct{}{}
	}
	c.since = time.Now()
	l.sources[c.source][c] = struct{}{}
	l.all++
}

// remove removes a connection.
func (l *connections) remove(c *tcpConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(c)
}

func (l *connections) drop(c *tcpConn) {
	list := l.sources[c.source]
	if _, ok := list[c]; !ok {
		return // evicted
	}
	delete(list, c)
	if len(list) == 0 {
		delete(l.sources, c.source)
	}
	l.all--
}

// progress records that a query of a connection is complete, or answered. It returns false if the connection was closed
// for another one.
func (l *connections) progress(c *tcpConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.sources[c.source][c]; !ok {
		return false
	}
	c.since = time.Now()
	return true
}

// makeRoom closes a connection for one of a source, which is not valid if unknown. A victim of a source with few is
// closed after its askTime, unless another connection ends earlier; it waits no longer than askTime: connections that
// send queries without a pause would keep all others out.
func (l *connections) makeRoom(source netip.Addr) {
	begin := time.Now()
	for all := l.all; l.all > 0 && l.all >= all; {
		v, n := l.victim()
		if n >= manyConns {
			if own := l.sources[source]; len(own) >= n { // the flood pays itself
				v = idlest(own)
			}
			l.evict(v)
			return
		}
		rest := askTime - max(time.Since(v.since), time.Since(begin))
		if rest <= 0 {
			l.evict(v)
			return
		}
		l.mu.Unlock()
		time.Sleep(rest)
		l.mu.Lock()
	}
}

// relieve closes one connection, like add, when file descriptors run out.
func (l *connections) relieve() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.makeRoom(netip.Addr{})
}

// victim returns the idlest connection of the source with the most, and their number.
func (l *connections) victim() (out *tcpConn, most int) {
	for _, list := range l.sources {
		most = max(most, len(list))
	}
	for _, list := range l.sources {
		if len(list) < most {
			continue
		}
		if c := idlest(list); out == nil || c.since.Before(out.since) {
			out = c
		}
	}
	return out, most
}

func idlest(list map[*tcpConn]struct{}) (out *tcpConn) {
	for c := range list {
		if out == nil || c.since.Before(out.since) {
			out = c
		}
	}
	return out
}

// evict closes a connection for another one; nil for none.
func (l *connections) evict(victim *tcpConn) {
	if victim == nil {
		return
	}
	l.drop(victim)
	l.evicted.Add(1)
	reset(victim.TCPConn)
}

// reset closes a connection without leaving state in the kernel.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}

var (
	connsOpen    = prometheus.NewDesc("wayleave_dns_tcp_connections", "Open TCP connections of clients.", nil, nil)
	connsEvicted = prometheus.NewDesc("wayleave_dns_tcp_evicted_total",
		"TCP connections closed to make room for others.", nil, nil)
)

// Describe implements prometheus.Collector.
func (l *connections) Describe(ch chan<- *prometheus.Desc) {
	ch <- connsOpen
	ch <- connsEvicted
}

// Collect implements prometheus.Collector.
func (l *connections) Collect(ch chan<- prometheus.Metric) {
	l.mu.Lock()
	n := l.all
	l.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(connsOpen, prometheus.GaugeValue, float64(n))
	ch <- prometheus.MustNewConstMetric(connsEvicted, prometheus.CounterValue, float64(l.evicted.Load()))
}
