// Package upstream manages the endpoints behind a proxy: it selects one for each request, holds their connections, and
// ejects endpoints that fail.
//
// Invariants:
//   - An endpoint is one object for as long as any backend has it, so its connections
//     and its state survive every change of routes.
//   - A request always gets an endpoint if its backend has one: an ejected
//     or draining endpoint still serves if there is no other.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/schema"
)

// Settings of all endpoints.
type Settings struct {
	// IdlePerEndpoint is how many connections are kept for later requests, IdleTime how long one is kept. It should be
	// shorter than the servers' own time.
	IdlePerEndpoint int
	IdleTime        time.Duration
	// Failures is the number of consecutive failures that ejects an endpoint for the time Eject, which doubles up to
	// EjectMost.
	Failures         int
	Eject, EjectMost time.Duration
	// SlowStart is how long a new endpoint, or one that has recovered, gets fewer requests.
	SlowStart time.Duration
	// Dial opens connections; nil for net.Dialer's.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Keys are certificates and authorities for TLS to endpoints; nil for none.
	Keys Keys
	// Secret prevents clients from deriving addresses from the tokens of endpoints. All proxies of a cluster must have
	// the same one; may be empty.
	Secret []byte
}

// Defaults are settings that suit most clusters.
func Defaults() Settings {
	return Settings{IdlePerEndpoint: 1024, IdleTime: 50 * time.Second, Failures: 5, Eject: time.Second,
		EjectMost: 30 * time.Second, SlowStart: 10 * time.Second}
}

// Set contains all endpoints and backends of a proxy. Its methods may be called concurrently.
type Set struct {
	settings Settings
	shared   *h1.Shared
	directs  *h1.Directs

	mu        sync.Mutex
	endpoints map[netip.AddrPort]*Endpoint
	backends  atomic.Pointer[map[string]*Backend]
	secret    atomic.Pointer[[]byte]
	tls       atomic.Pointer[tls.Config]
}

// NewSet returns an empty Set.
func NewSet(s Settings) *Set {
	if s.Dial == nil {
		s.Dial = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	}
	set := &Set{settings: s, shared: h1.NewShared(), directs: h1.NewDirects(),
		endpoints: map[netip.AddrPort]*Endpoint{}}
	set.backends.Store(&map[string]*Backend{})
	set.secret.Store(&s.Secret)
	set.SetTLS(TLS{})
	return set
}

// SetHead replaces the limits of the heads of responses over HTTP/1.1, for later requests.
func (s *Set) SetHead(l h1.HeadLimits) { s.shared.SetHead(l) }

// Backend contains the endpoints of a key.
type Backend struct {
	Key string
	// all are all endpoints, fresh those that are not draining.
	all, fresh []*Endpoint
	next       atomic.Uint64
}

// Endpoint is one server.
type Endpoint struct {
	Addr netip.AddrPort
	text string
	set  *Set
	// users counts the backends that have it; guarded by Set.mu.
	users int

	active atomic.Int64
	// Consecutive failures, and until when it is ejected (nanoseconds, 0 for not ejected).
	failures, ejections atomic.Int32
	ejected             atomic.Int64
	since               atomic.Int64
	token               atomic.Pointer[token]

	mu   sync.Mutex
	gone bool
	idle [2][]*h1.Client // plain and TLS, the most recently used last
	kept []kept          // those of single clients, in order of time
}

// Run closes connections that have been idle for too long, until ctx ends.
func (s *Set) Run(ctx context.Context) {
	tick := time.NewTicker(max(s.settings.IdleTime/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s.mu.Lock()
			all := make([]*Endpoint, 0, len(s.endpoints))
			for _, e := range s.endpoints {
				all = append(all, e)
			}
			s.mu.Unlock()
			for _, e := range all {
				e.sweep(now.Add(-s.settings.IdleTime))
				e.forget(now.Add(-originIdle))
			}
		}
	}
}

// sweep closes connections that have been idle since before a time, were closed by their server, or have unexpected
// bytes, which the kernel would keep.
func (e *Endpoint) sweep(before time.Time) {
	var old []*h1.Client
	e.mu.Lock()
	for i, list := range e.idle {
		var kept []*h1.Client
		for _, c := range list {
			if c.IdleSince.Before(before) || !c.Alive() {
				old = append(old, c)
			} else {
				kept = append(kept, c)
			}
		}
		if len(kept) < len(list) {
			e.idle[i] = kept
		}
	}
	e.mu.Unlock()
	for _, c := range old {
		_ = c.Close()
	}
}

// Lookup returns a backend; nil if there is none of the key.
func (s *Set) Lookup(key string) *Backend { return (*s.backends.Load())[key] }

// Has reports whether an address is an endpoint of some backend.
func (s *Set) Has(a netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endpoints[a] != nil
}

// Replace replaces all backends; equal ones stay the same object.
func (s *Set) Replace(want map[string]*schema.Backend) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.backends.Load()
	next := make(map[string]*Backend, len(want))
	for key, b := range want {
		if had := old[key]; had != nil && had.same(b) {
			next[key] = had
			for _, e := range had.all {
				e.users++
			}
			continue
		}
		next[key] = s.backend(b)
	}
	s.backends.Store(&next)
	for _, b := range old {
		s.leave(b)
	}
}

// Change sets some backends, and removes those that are nil.
func (s *Set) Change(some map[string]*schema.Backend) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.backends.Load()
	next := make(map[string]*Backend, len(old)+len(some))
	for k, b := range old {
		next[k] = b
	}
	var left []*Backend
	for k, b := range some {
		if had := old[k]; had != nil {
			left = append(left, had)
		}
		if delete(next, k); b != nil {
			next[k] = s.backend(b)
		}
	}
	s.backends.Store(&next)
	for _, b := range left {
		s.leave(b)
	}
}

func (b *Backend) same(t *schema.Backend) bool {
	if len(b.all) != len(t.Endpoints) {
		return false
	}
	fresh := 0
	for i, e := range t.Endpoints {
		if b.all[i].Addr != e.Addr {
			return false
		}
		if !e.Draining {
			if fresh >= len(b.fresh) || b.fresh[fresh].Addr != e.Addr {
				return false
			}
			fresh++
		}
	}
	return fresh == len(b.fresh)
}

// backend creates one; its endpoints are found or created, and their use counts incremented.
func (s *Set) backend(t *schema.Backend) *Backend {
	b := &Backend{Key: t.Key}
	for _, x := range t.Endpoints {
		e := s.endpoints[x.Addr]
		if e == nil {
			e = &Endpoint{Addr: x.Addr, text: x.Addr.String(), set: s}
			e.since.Store(time.Now().UnixNano())
			s.endpoints[x.Addr] = e
		}
		e.users++
		b.all = append(b.all, e)
		if !x.Draining {
			b.fresh = append(b.fresh, e)
		}
	}
	b.next.Store(rand.Uint64N(1 << 20))
	return b
}

// leave decrements the use counts of a backend's endpoints. Running exchanges continue.
func (s *Set) leave(b *Backend) {
	for _, e := range b.all {
		if e.users--; e.users > 0 {
			continue
		}
		delete(s.endpoints, e.Addr)
		e.mu.Lock()
		e.gone = true
		for i := range e.idle {
			for _, c := range e.idle[i] {
				_ = c.Close()
			}
			e.idle[i] = nil
		}
		for _, k := range e.kept {
			_ = k.c.Close()
		}
		e.kept = nil
		e.mu.Unlock()
	}
}

// Len returns the number of endpoints that take new requests.
func (b *Backend) Len() int { return len(b.fresh) }

// All returns the backend's endpoints, including draining ones.
func (b *Backend) All() []*Endpoint { return b.all }

// Balance is how endpoints are selected.
type Balance uint8

// RandomTwo selects the less busy of two random endpoints, RoundRobin one after the other.
const (
	RandomTwo Balance = iota
	RoundRobin
)

// Pick selects an endpoint, one that is not in tried if there is another; nil if the backend has none.
func (b *Backend) Pick(how Balance, tried []*Endpoint) *Endpoint {
	from := b.fresh
	if len(from) == 0 {
		from = b.all
	}
	switch len(from) {
	case 0:
		return nil
	case 1:
		return from[0]
	}
	now := time.Now().UnixNano()
	if how == RoundRobin {
		n := b.next.Add(1)
		for i := range uint64(len(from)) {
			if e := from[(n+i)%uint64(len(from))]; e.fit(now, tried) {
				return e
			}
		}
	} else {
		for range 4 {
			i := rand.IntN(len(from))
			j := rand.IntN(len(from) - 1)
			if j >= i {
				j++
			}
			x, y := from[i], from[j]
			if xf, yf := x.fit(now, tried), y.fit(now, tried); xf && yf {
				if y.load(now) < x.load(now) {
					return y
				}
				return x
			} else if xf {
				return x
			} else if yf {
				return y
			}
		}
		for _, e := range from {
			if e.fit(now, tried) {
				return e
			}
		}
	}
	// All are ejected or tried: an ejected one that was not tried is better than none.
	for _, e := range from {
		if !in(e, tried) {
			return e
		}
	}
	return from[rand.IntN(len(from))]
}

// Hash selects by a key: equal keys get the same endpoint, and when one is removed only its keys move (rendezvous
// hashing).
func (b *Backend) Hash(key []byte, tried []*Endpoint) *Endpoint {
	from := b.fresh
	if len(from) == 0 {
		from = b.all
	}
	now := time.Now().UnixNano()
	var best *Endpoint
	var most uint64
	for pass := range 2 {
		for _, e := range from {
			if pass == 0 && !e.fit(now, tried) {
				continue
			}
			h := fnv.New64a()
			_, _ = h.Write(key)
			_, _ = h.Write([]byte(e.text))
			if v := mix(h.Sum64()); best == nil || v > most {
				best, most = e, v
			}
		}
		if best != nil {
			break
		}
	}
	return best
}

// HashSubset selects one of a key's n endpoints at random. A key keeps the same ones for as long as they exist.
func (b *Backend) HashSubset(key []byte, n int, tried []*Endpoint) *Endpoint {
	out := slices.Clone(tried)
	for range rand.IntN(max(n, 1)) {
		e := b.Hash(key, out)
		if e == nil || in(e, out) {
			break // the backend has fewer
		}
		out = append(out, e)
	}
	if e := b.Hash(key, out); e != nil && !in(e, out) {
		return e
	}
	return b.Hash(key, tried)
}

// mix spreads similar values of FNV.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

func in(e *Endpoint, list []*Endpoint) bool {
	for _, x := range list {
		if x == e {
			return true
		}
	}
	return false
}

func (e *Endpoint) fit(now int64, tried []*Endpoint) bool { return !e.out(now) && !in(e, tried) }

func (e *Endpoint) out(now int64) bool { return e.ejected.Load() > now }

// load returns how busy it is; a new endpoint counts as busier than it is.
func (e *Endpoint) load(now int64) int64 {
	n := e.active.Load() + 1
	slow := e.set.settings.SlowStart
	if age := time.Duration(now - e.since.Load()); age < slow {
		n = n * int64(slow) / int64(max(age, slow/10))
	}
	return n
}

// Begin counts an exchange with the endpoint.
func (e *Endpoint) Begin() { e.active.Add(1) }

// End undoes Begin.
func (e *Endpoint) End() { e.active.Add(-1) }

// Failed counts a failure.
func (e *Endpoint) Failed() {
	s := &e.set.settings
	if int(e.failures.Add(1)) < s.Failures {
		return
	}
	e.failures.Store(0)
	n := min(e.ejections.Add(1), 16)
	d := min(s.Eject<<(n-1), s.EjectMost)
	now := time.Now()
	e.ejected.Store(now.Add(d).UnixNano())
	e.since.Store(now.Add(d).UnixNano())
}

// Worked records success, and resets the failures.
func (e *Endpoint) Worked() {
	if e.failures.Load() != 0 {
		e.failures.Store(0)
	}
	if e.ejections.Load() != 0 && !e.out(time.Now().UnixNano()) {
		e.ejections.Store(0)
	}
}

// Ejected reports whether it is ejected now.
func (e *Endpoint) Ejected() bool { return e.out(time.Now().UnixNano()) }

// Active is the number of exchanges with it.
func (e *Endpoint) Active() int64 { return e.active.Load() }

// Get returns a connection: an idle one unless sure is true or there is none. reused reports whether it was idle. An
// idle connection with unread bytes is closed instead: what its server sent unasked would be the next client's
// response.
func (e *Endpoint) Get(ctx context.Context, encrypted, sure bool, timeout time.Duration) (c *h1.Client,
	reused bool, err error) {
	k := 0
	if encrypted {
		k = 1
	}
	for !sure {
		e.mu.Lock()
		n := len(e.idle[k])
		if n == 0 {
			e.mu.Unlock()
			break
		}
		c := e.idle[k][n-1]
		e.idle[k] = e.idle[k][:n-1]
		e.mu.Unlock()
		if time.Since(c.IdleSince) > e.set.settings.IdleTime || !c.Alive() {
			_ = c.Close()
			continue
		}
		return c, true, nil
	}
	c, err = e.fresh(ctx, Origin{}, encrypted, timeout)
	return c, false, err
}

// fresh opens a connection of HTTP/1.1.
func (e *Endpoint) fresh(ctx context.Context, o Origin, encrypted bool, timeout time.Duration) (*h1.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := e.DialFor(ctx, o, encrypted)
	if err != nil {
		return nil, err
	}
	return h1.Dialed(conn, e.set.shared), nil
}

func (e *Endpoint) dial(ctx context.Context) (net.Conn, error) {
	conn, err := e.set.settings.Dial(ctx, "tcp", e.text)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	return conn, nil
}

// secure starts TLS on a connection that must be encrypted.
func (e *Endpoint) secure(ctx context.Context, conn net.Conn, encrypted bool, by *schema.EndpointTLS,
	protocols []string) (net.Conn, error) {
	if !encrypted {
		return conn, nil
	}
	config, err := e.set.config(by, protocols)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("endpoint %s: %w", e.text, err), conn.Close())
	}
	if c, ok := conn.(*net.TCPConn); ok {
		conn = e.set.directs.Of(c)
	}
	t := tls.Client(conn, config)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("endpoint %s: TLS within the settings ingress.endpointTLS…: %w", e.text,
			err), conn.Close())
	}
	return t, nil
}

// Put keeps a connection for the next request, or closes it.
func (e *Endpoint) Put(c *h1.Client, encrypted bool) {
	k := 0
	if encrypted {
		k = 1
	}
	c.IdleSince = time.Now()
	e.mu.Lock()
	if e.gone || len(e.idle[k]) >= e.set.settings.IdlePerEndpoint {
		e.mu.Unlock()
		_ = c.Close()
		return
	}
	e.idle[k] = append(e.idle[k], c)
	e.mu.Unlock()
}
