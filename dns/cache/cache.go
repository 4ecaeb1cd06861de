package cache

import (
	"encoding/binary"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
)

// Bounds of the cache.
const (
	cacheShards = 16
	// cacheOverhead is the memory of an entry in addition to its bytes.
	cacheOverhead = 256
	// StaleTTL is the TTL of expired replies (RFC 8767, 4).
	StaleTTL = 30
	// StaleRecheck is how long an entry is served stale before a failed server is queried again (RFC 8767, 5).
	StaleRecheck = 30 * time.Second
	// FailureTTL is how long a failure is cached (RFC 9520, 3.2).
	FailureTTL = time.Second
	// PrefetchHits make an entry popular: it is refreshed in the last tenth of its lifetime.
	PrefetchHits = 3
	// evictionSample entries are compared, and the least recently used one is evicted.
	evictionSample = 8
)

// Hit is the result of a cache lookup.
type Hit int

// Miss means no usable entry, Fresh a reply, Stale an expired reply that is served because servers fail, Refresh either
// of them, which the caller should refresh, once.
const (
	Miss Hit = iota
	Fresh
	Stale
	Refresh
)

// Cache keeps replies of upstream servers as bytes, including negative ones (RFC 2308) and expired ones (RFC 8767),
// separately for queries with the bits DO and CD. A lookup allocates nothing. Safe for concurrent use.
type Cache struct {
	limits atomic.Pointer[schema.CacheLimits]
	seed   maphash.Seed
	start  time.Time
	shards [cacheShards]shard
}

type shard struct {
	mu      sync.RWMutex
	entries map[string]*Entry
	bytes   int
	// Counted per shard, so that cores seldom share a cache line.
	hits, denials, misses, stale, prefetched, evicted atomic.Uint64
}

// Entry is immutable except for the atomics. Times are since Cache.start.
type Entry struct {
	wire     []byte   // a reply with id 0 and without OPT
	ttls     []uint16 // offsets of TTLs
	sets     []set    // of addresses, which are rotated
	denial   bool
	stored   time.Duration
	fresh    time.Duration // until
	stale    time.Duration // until
	used     atomic.Int64
	hits     atomic.Uint32
	failed   atomic.Int64 // when servers failed last, 0 for never
	fetching atomic.Bool
}

// New returns a cache that keeps nothing until limits are set.
func New() *Cache {
	// The start lies in the past, so that no time is 0.
	c := &Cache{seed: maphash.MakeSeed(), start: time.Now().Add(-time.Hour)}
	c.limits.Store(&schema.CacheLimits{})
	for i := range c.shards {
		c.shards[i].entries = map[string]*Entry{}
	}
	return c
}

// Limit replaces the limits. Existing entries stay until they are evicted.
func (c *Cache) Limit(l schema.CacheLimits) {
	c.limits.Store(&l)
	if l.Bytes == 0 {
		c.Clear()
	}
}

// Clear removes all entries.
func (c *Cache) Clear() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.entries, s.bytes = map[string]*Entry{}, 0
		s.mu.Unlock()
	}
}

// Size returns the number of entries and of bytes.
func (c *Cache) Size() (entries, bytes int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		entries, bytes = entries+len(s.entries), bytes+s.bytes
		s.mu.RUnlock()
	}
	return entries, bytes
}

// Counts are the counters of the cache.
type Counts struct{ Hits, Denials, Misses, Stale, Prefetched, Evicted uint64 }

// Counts sums up the counters of all shards.
func (c *Cache) Counts() (n Counts) {
	for i := range c.shards {
		s := &c.shards[i]
		n.Hits += s.hits.Load()
		n.Denials += s.denials.Load()
		n.Misses += s.misses.Load()
		n.Stale += s.stale.Load()
		n.Prefetched += s.prefetched.Load()
		n.Evicted += s.evicted.Load()
	}
	return n
}

// Lookup appends the reply to a query to dst if it is in the cache and the query is a usual one: one question, and
// nothing else except EDNS. size is the largest reply that the transport carries; up to maxUDP the client's size takes
// precedence. The letter case of the name is the client's.
func (c *Cache) Lookup(dst, query []byte, size int, now time.Time) ([]byte, Hit) {
	var key [MaxKey]byte
	q, ok := Parse(query, &key)
	if !ok || !q.Recursion {
		return dst, Miss
	}
	e, hit := c.Find(key[:q.Key], now)
	if hit == Miss {
		return dst, Miss
	}
	if size <= wire.MaxUDP {
		size = min(size, max(q.Size, dns.MinMsgSize))
	}
	return e.reply(dst, query, q, size, now.Sub(c.start)), hit
}

// Find looks up an entry, and counts the result.
func (c *Cache) Find(key []byte, now time.Time) (*Entry, Hit) {
	s := c.shard(key)
	s.mu.RLock()
	e := s.entries[string(key)]
	s.mu.RUnlock()
	at := now.Sub(c.start)
	hit := Miss
	if e != nil {
		hit = e.look(at)
	}
	switch {
	case hit == Miss:
		return nil, Miss
	case e.denial:
		s.denials.Add(1)
	default:
		s.hits.Add(1)
	}
	if at >= e.fresh {
		s.stale.Add(1)
	} else if hit == Refresh {
		s.prefetched.Add(1)
	}
	return e, hit
}

// look returns how an entry can be used at a time.
func (e *Entry) look(at time.Duration) Hit {
	e.used.Store(int64(at))
	if at < e.fresh {
		popular := e.hits.Add(1) >= PrefetchHits && at >= time.Duration(e.failed.Load())+FailureTTL
		if popular && at >= e.fresh-(e.fresh-e.stored)/10 && e.fetching.CompareAndSwap(false, true) {
			return Refresh
		}
		return Fresh
	}
	failed := time.Duration(e.failed.Load())
	if at >= e.stale || failed == 0 {
		return Miss
	}
	// One client waited for a dead server; later ones need not.
	if at >= failed+StaleRecheck && e.fetching.CompareAndSwap(false, true) {
		return Refresh
	}
	return Stale
}

// Old returns an entry that may still be served stale if servers fail.
func (c *Cache) Old(key []byte, now time.Time) *Entry {
	s := c.shard(key)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.entries[string(key)]; e != nil && now.Sub(c.start) < e.stale {
		return e
	}
	return nil
}

// Missed counts a query that is forwarded.
func (c *Cache) Missed(key []byte) { c.shard(key).misses.Add(1) }

// ServedStale counts an expired reply that the slow path served.
func (c *Cache) ServedStale(key []byte) { c.shard(key).stale.Add(1) }

func (c *Cache) shard(key []byte) *shard {
	return &c.shards[maphash.Bytes(c.seed, key)%cacheShards]
}

// reply appends the entry's bytes as the answer to a query.
func (e *Entry) reply(dst, query []byte, q asked, size int, at time.Duration) []byte {
	from := len(dst)
	opt := 0
	if q.EDNS {
		opt = optRecord
	}
	if len(e.wire)+opt <= size {
		dst = append(dst, e.wire...)
		e.rotate(dst[from:])
		e.age(dst[from:], at)
	} else {
		dst = append(dst, e.wire[:q.End]...)
		dst[from+2] |= 0x02 // truncated
		clear(dst[from+6 : from+12])
	}
	m := dst[from:]
	copy(m[:2], query[:2])
	m[2] |= query[2] & 0x01 // recursion desired
	m[3] |= query[3] & 0x10 // checking disabled
	if query[3]&adBit == 0 && !q.Do {
		m[3] &^= adBit
	}
	copy(m[12:q.End], query[12:q.End])
	if q.EDNS {
		binary.BigEndian.PutUint16(m[10:], binary.BigEndian.Uint16(m[10:])+1)
		dst = append(dst, 0, 0, byte(dns.TypeOPT), wire.MaxUDP>>8, wire.MaxUDP&0xff, 0, 0, 0, 0, 0, 0)
		if q.Do {
			dst[len(dst)-4] = 0x80
		}
	}
	return dst
}

// rotate starts each set of addresses at a random one, like those of cluster names.
func (e *Entry) rotate(m []byte) {
	for _, s := range e.sets {
		have, to := e.wire[s.at:s.at+s.each*s.n], m[s.at:]
		first := int(s.each) * rand.IntN(int(s.n))
		copy(to[copy(to, have[first:]):], have[:first])
	}
}

// age subtracts the time in the cache from the TTLs.
func (e *Entry) age(m []byte, at time.Duration) {
	gone := uint32((at - e.stored) / time.Second)
	for _, o := range e.ttls {
		ttl := uint32(StaleTTL)
		if at < e.fresh {
			ttl = binary.BigEndian.Uint32(m[o:])
			ttl -= min(ttl, gone)
		}
		binary.BigEndian.PutUint32(m[o:], ttl)
	}
}

// Message returns an entry as a message, with the remaining TTLs.
func (c *Cache) Message(e *Entry, now time.Time) (*dns.Msg, error) {
	wire := slices.Clone(e.wire)
	e.age(wire, now.Sub(c.start))
	m := new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		return nil, err
	}
	return m, nil
}

// Put keeps the reply to a question; false if it must not be cached, or does not fit.
func (c *Cache) Put(key []byte, m *dns.Msg, now time.Time) bool {
	l := c.limits.Load()
	life, denial := lifetime(m, l)
	if life <= 0 || l.Bytes == 0 {
		return false
	}
	return c.put(key, m, denial, life, l.Stale, now)
}

func (c *Cache) put(key []byte, m *dns.Msg, denial bool, life, stale time.Duration, now time.Time) bool {
	wire, ttls, ok := wireOf(m, uint32(life/time.Second), denial, c.limits.Load())
	if !ok {
		return false
	}
	at := now.Sub(c.start)
	e := &Entry{wire: wire, ttls: ttls, sets: setsOf(wire, ttls), denial: denial, stored: at, fresh: at + life,
		stale: at + life + stale}
	e.used.Store(int64(at))
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(string(key))
	limit := c.limits.Load().Bytes / cacheShards
	need := cost(key, e)
	if need > limit {
		return false
	}
	for s.bytes+need > limit && s.evict(at) {
	}
	s.entries[string(key)] = e
	s.bytes += need
	return true
}

// Drop removes an entry: a newer answer must not be cached.
func (c *Cache) Drop(key []byte) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(string(key))
}

// Unfetched records that a requested refresh did not happen: the next lookup may request it again.
func (c *Cache) Unfetched(key []byte) {
	s := c.shard(key)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.entries[string(key)]; e != nil {
		e.fetching.Store(false)
	}
}

// Fail records that no server had an answer. Existing replies stay.
func (c *Cache) Fail(key []byte, m *dns.Msg, now time.Time) {
	if e := c.Old(key, now); e != nil {
		e.failed.Store(int64(now.Sub(c.start)))
		e.fetching.Store(false)
		return
	}
	if c.limits.Load().Bytes > 0 {
		c.put(key, m, true, FailureTTL, 0, now)
	}
}

// Stalled records that servers were too slow for a client.
func (c *Cache) Stalled(key []byte, now time.Time) {
	if e := c.Old(key, now); e != nil && e.failed.Load() == 0 {
		e.failed.Store(int64(now.Sub(c.start)))
	}
}

func cost[K string | []byte](key K, e *Entry) int {
	return len(key) + len(e.wire) + 2*len(e.ttls) + 6*len(e.sets) + cacheOverhead
}

func (s *shard) drop(key string) {
	if e, ok := s.entries[key]; ok {
		s.bytes -= cost(key, e)
		delete(s.entries, key)
	}
}

// evict removes one of a few entries: a useless one, or the least recently used. The order of a map is random enough
// for that.
func (s *shard) evict(at time.Duration) bool {
	var victim string
	var oldest int64
	n := 0
	for k, e := range s.entries {
		used := e.used.Load()
		if at >= e.stale {
			used = -1
		}
		if n == 0 || used < oldest {
			victim, oldest = k, used
		}
		if n++; n == evictionSample {
			break
		}
	}
	if n == 0 {
		return false
	}
	s.drop(victim)
	s.evicted.Add(1)
	return true
}
