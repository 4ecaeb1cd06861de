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
	// cacheOverhead is what an entry takes in addition to its bytes.
	cacheOverhead = 256
	// StaleTTL is the TTL of expired replies (RFC 8767, 4).
	StaleTTL = 30
	// StaleRecheck is how long a server that failed is left alone by an entry that
	// is served past its time (RFC 8767, 5).
	StaleRecheck = 30 * time.Second
	// FailureTTL is how long a failure is remembered (RFC 9520, 3.2).
	FailureTTL = time.Second
	// PrefetchHits make an entry popular: it is fetched anew in the last tenth of
	// its time.
	PrefetchHits = 3
	// evictionSample entries are looked at, and the one unused for longest goes.
	evictionSample = 8
)

// Hit is what a look into the cache found.
type Hit int

// Miss is nothing of use; Fresh a reply; Stale one past its time, told because
// servers fail; Refresh one of both that the caller should fetch anew, once.
const (
	Miss Hit = iota
	Fresh
	Stale
	Refresh
)

// Cache keeps replies of other servers as bytes, with negative ones (RFC 2308) and
// those past their time (RFC 8767), apart for queries with the bits DO and CD. A
// look allocates nothing. Safe for concurrent use.
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
	// Counted here, so that cores seldom share a cache line.
	hits, denials, misses, stale, prefetched, evicted atomic.Uint64
}

// Entry is immutable but for the atomics. Times are since Cache.start.
type Entry struct {
	wire     []byte   // a reply with id 0 and without OPT
	ttls     []uint16 // where TTLs are
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

// New makes a cache that keeps nothing until it has limits.
func New() *Cache {
	// The start lies back, so that no time is 0.
	c := &Cache{seed: maphash.MakeSeed(), start: time.Now().Add(-time.Hour)}
	c.limits.Store(&schema.CacheLimits{})
	for i := range c.shards {
		c.shards[i].entries = map[string]*Entry{}
	}
	return c
}

// Limit replaces the limits. What is kept stays until it is in the way.
func (c *Cache) Limit(l schema.CacheLimits) {
	c.limits.Store(&l)
	if l.Bytes == 0 {
		c.Clear()
	}
}

// Clear forgets everything.
func (c *Cache) Clear() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.entries, s.bytes = map[string]*Entry{}, 0
		s.mu.Unlock()
	}
}

// Size is the number of entries and of bytes.
func (c *Cache) Size() (entries, bytes int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		entries, bytes = entries+len(s.entries), bytes+s.bytes
		s.mu.RUnlock()
	}
	return entries, bytes
}

// Counts are what the cache has done.
type Counts struct{ Hits, Denials, Misses, Stale, Prefetched, Evicted uint64 }

// Counts adds up what all parts of the cache counted.
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

// Lookup appends the reply to a query to dst, when it is in the cache and the query
// is a usual one: one question, nothing else but EDNS. size is the largest reply
// that the transport carries: up to maxUDP the client's wish goes first. The letters of
// the name are as the client wrote them.
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

// Find looks an entry up, and counts.
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

// look says what an entry is good for at a time.
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
	// One client waited for a dead server; the next need not.
	if at >= failed+StaleRecheck && e.fetching.CompareAndSwap(false, true) {
		return Refresh
	}
	return Stale
}

// Old is an entry that is not too old to be told when servers fail.
func (c *Cache) Old(key []byte, now time.Time) *Entry {
	s := c.shard(key)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.entries[string(key)]; e != nil && now.Sub(c.start) < e.stale {
		return e
	}
	return nil
}

// Missed counts a query that servers must be asked for.
func (c *Cache) Missed(key []byte) { c.shard(key).misses.Add(1) }

// ServedStale counts a reply that was told past its time by the slow way.
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

// rotate starts each set of addresses at random, as those of the cluster's names.
func (e *Entry) rotate(m []byte) {
	for _, s := range e.sets {
		have, to := e.wire[s.at:s.at+s.each*s.n], m[s.at:]
		first := int(s.each) * rand.IntN(int(s.n))
		copy(to[copy(to, have[first:]):], have[:first])
	}
}

// age takes the time in the cache off the TTLs.
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

// Message is an entry as a message, with what is left of its TTLs.
func (c *Cache) Message(e *Entry, now time.Time) (*dns.Msg, error) {
	wire := slices.Clone(e.wire)
	e.age(wire, now.Sub(c.start))
	m := new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		return nil, err
	}
	return m, nil
}

// Put keeps the reply to a question; false when it may not be kept, or does not fit.
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

// Drop forgets an entry: a newer answer came that may not be kept.
func (c *Cache) Drop(key []byte) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(string(key))
}

// Unfetched says that an entry which was to be fetched anew was not: the next look may try.
func (c *Cache) Unfetched(key []byte) {
	s := c.shard(key)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.entries[string(key)]; e != nil {
		e.fetching.Store(false)
	}
}

// Fail remembers that no server had an answer. What was known stays known.
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

// Stalled remembers that servers have been too slow for a client.
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

// evict drops one entry of a few: one that is of no use, or the one unused for
// longest. A map's order is random enough for that.
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
