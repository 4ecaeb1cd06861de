package proxy

import (
	"errors"
	"hash/maphash"
	"math"
	"net/netip"
	"sync"
	"time"

	"wayleave.dev/proxy/table"
)

var errLimited = errors.New("more requests a second than a client may make")

// limited refuses requests above the rate of their client, by 503 as ingress-nginx does.
func (x *exchange) limited(o *table.Options, ready *table.Ready) (answered bool) {
	if o.RPS <= 0 || x.p.limits.take(ready.Limit, x.who(), o.RPS, o.Burst, x.start) {
		return false
	}
	x.fail(503, errLimited)
	return true
}

// limits count requests by client and Ingress, in memory of a fixed size: a flood of
// addresses makes others forget what they used, so it lets more through, never less. Its
// zero value is ready.
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

// limitSlot is a client. free is when all that it used is given back (the generic cell
// rate algorithm), in nanoseconds since the epoch: what is past is the same as nothing.
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

// take uses one request of the client's, and says whether it had one: burst of them may
// come at once beside the one that its rate gives. Of IPv6, a /64 is one client.
func (l *limits) take(owner string, who netip.Addr, rps float64, burst int, now time.Time) bool {
	l.once.Do(l.start)
	bits := who.BitLen()
	if who.Is6() {
		bits = 64
	}
	prefix, err := who.Prefix(bits)
	if err != nil {
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
