package proxy

import (
	"errors"
	"hash/maphash"
	"math"
	"net/netip"
	"sync"
	"time"

	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

var (
	errLimited = errors.New("the client exceeds its request rate")
	errCrowded = errors.New("the client exceeds its number of concurrent requests")
)

// limited refuses requests above the rates of their client, or above its number of concurrent requests, with 503 like
// ingress-nginx.
func (x *exchange) limited(o *schema.Options, ready *table.Ready) (answered bool) {
	if o.RPS <= 0 && o.RPM <= 0 && o.Exchanges <= 0 || isIn(o.Unlimited, x.who()) {
		return false
	}
	switch l := &x.p.limits; {
	case o.RPS > 0 && !l.take(ready.Limit, x.who(), o.RPS, o.Burst, x.start),
		o.RPM > 0 && !l.take(ready.LimitRPM, x.who(), float64(o.RPM)/60, o.BurstRPM, x.start):
		x.fail(503, errLimited)
	case o.Exchanges > 0 && !x.enter(o, ready):
		x.fail(503, errCrowded)
	default:
		return false
	}
	return true
}

// enter counts the exchange for its client, until leave.
func (x *exchange) enter(o *schema.Options, ready *table.Ready) bool {
	k := limitKey{ready.Limit, clientOf(x.who())}
	if !x.p.crowd.enter(k, o.Exchanges) {
		return false
	}
	x.opt.entered = k
	return true
}

// leave undoes enter.
func (x *exchange) leave() {
	if x.opt.entered.who.IsValid() {
		x.p.crowd.leave(x.opt.entered)
		x.opt.entered = limitKey{}
	}
}

// crowd counts the open exchanges of clients exactly: it has an entry for each client with at least one, and the server
// bounds those. The zero value is ready.
type crowd struct {
	mu   sync.Mutex
	open map[limitKey]int
}

func (c *crowd) enter(k limitKey, most int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[k] >= most {
		return false
	}
	if c.open == nil {
		c.open = map[limitKey]int{}
	}
	c.open[k]++
	return true
}

func (c *crowd) leave(k limitKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[k]--; c.open[k] <= 0 {
		delete(c.open, k)
	}
}

// clientOf returns the network that counts as one client: a /64 for IPv6. The zero Prefix stands for an invalid
// address.
func clientOf(who netip.Addr) netip.Prefix {
	bits := who.BitLen()
	if who.Is6() {
		bits = 64
	}
	p, err := who.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// limits count requests by client and Ingress, in memory of a fixed size: under a flood of addresses, clients replace
// each other, so more requests pass than allowed, never fewer. Its zero value is ready.
type limits struct {
	once  sync.Once
	seed  maphash.Seed
	sets  []limitSet
	epoch time.Time
}

const (
	limitSets  = 1 << 13
	limitSlots = 8
)

type limitSet struct {
	mu    sync.Mutex
	slots [limitSlots]limitSlot
}

// limitSlot is a client. free is the time at which its usage has decayed to zero (the generic cell rate algorithm), in
// nanoseconds since the epoch: a time in the past means no usage.
type limitSlot struct {
	key  uint64
	free int64
}

func (l *limits) start() {
	l.seed = maphash.MakeSeed()
	l.sets = make([]limitSet, limitSets)
	l.epoch = time.Now().Add(-time.Second)
}

type limitKey struct {
	owner string
	who   netip.Prefix
}

// take consumes one request of the client's budget, and reports whether it had one: burst requests may arrive at once
// in addition to the one that its rate allows. A /64 of IPv6 is one client.
func (l *limits) take(owner string, who netip.Addr, rps float64, burst int, now time.Time) bool {
	l.once.Do(l.start)
	prefix := clientOf(who)
	if !prefix.IsValid() {
		return true
	}
	key := maphash.Comparable(l.seed, limitKey{owner, prefix})
	each := math.Min(float64(time.Second)/rps, float64(time.Hour))
	at := now.Sub(l.epoch).Nanoseconds()

	set := &l.sets[key%limitSets]
	set.mu.Lock()
	defer set.mu.Unlock()
	slot := &set.slots[0]
	for i := range set.slots {
		s := &set.slots[i]
		if s.key == key {
			slot = s
			break
		}
		if s.free < slot.free {
			slot = s
		}
	}
	if slot.key != key {
		*slot = limitSlot{key: key}
	}
	free := max(slot.free, at)
	if float64(free-at) > float64(max(burst, 0))*each {
		return false
	}
	slot.free = free + int64(each)
	return true
}
