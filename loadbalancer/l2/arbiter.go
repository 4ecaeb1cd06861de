package l2

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/loadbalancer"
)

// Times of the rules. Two nodes answer for an address at once for at most Bound.
const (
	// Bound is the longest time for which two nodes that hear each other answer at once. The node that loses an
	// address waits that long for the announcement of the new owner, and the better node of a dispute repeats its
	// announcement at that interval.
	Bound = time.Second
	// Silence is how long the worse node of a dispute is silent after it last heard the better one.
	Silence = 3 * time.Second
	// remember is how long the better node repeats its announcement after it last heard the worse one, if that sends
	// no heartbeats.
	remember = time.Minute
	// answerEvery bounds announcements that others provoke.
	answerEvery = 100 * time.Millisecond
	// defendEvery is the minimum interval between announcements against a foreign machine (RFC 5227 2.4).
	defendEvery = 10 * time.Second
)

// gaps are the intervals between announcements after a takeover: short at first, because frames get lost, longer
// later for hosts that were unreachable.
var gaps = [...]time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond,
	800 * time.Millisecond, 1600 * time.Millisecond, 3200 * time.Millisecond}

// VIP is an address that nodes of the cluster answer for.
type VIP struct {
	Addr netip.Addr `json:"addr"`
	// Service is for messages: "namespace/name", several joined by a comma.
	Service string `json:"service"`
	// Eligible are the names of the candidate nodes.
	Eligible []string `json:"eligible"`
	// Interfaces are the interfaces of this node that announce it.
	Interfaces []string `json:"interfaces"`
}

// Arbiter decides for one node which addresses it answers for, from the living peers and from the announcements that
// it hears. It does no I/O, uses only the time that it is given, and is not safe for concurrent use.
//
// The rule for two nodes that both claim an address: the node that comes first in the address's order
// (loadbalancer.Better) repeats its announcement, at once and every Bound, and the other one is silent for Silence
// after it last heard that. The order follows from names, so it needs no agreement about living nodes.
type Arbiter struct {
	self     string
	claims   map[netip.Addr]*claim
	standing func(string) loadbalancer.Standing
	// Takeovers and Disputes count since the start.
	Takeovers, Disputes uint64
}

// claim is the state of one address.
type claim struct {
	VIP
	owner string
	// since is the time from which this node answers; zero if it does not.
	since time.Time
	// linger is the time until which this node answers for an address that moved to another node.
	linger time.Time
	// silent is the time until which this node leaves the address to a better one.
	silent time.Time
	next   time.Time // the next announcement; zero for none
	step   int       // the gap after it
	last   time.Time // the last announcement

	dispute *dispute
	foreign *Foreign
	defend  time.Time
}

type dispute struct {
	peer         string // the last one heard; there may be several
	since, heard time.Time
	counted      bool
}

// Dispute is an address that another node claims, too.
type Dispute struct {
	Addr netip.Addr `json:"addr"`
	// Peer is the other node; if there are several, the last one heard.
	Peer  string    `json:"peer"`
	Since time.Time `json:"since"`
	// Answering says whether this node goes on answering.
	Answering bool `json:"answering"`
}

// Foreign is a machine that is no node and announces one of the addresses.
type Foreign struct {
	Addr      netip.Addr `json:"addr"`
	MAC       string     `json:"mac"`
	Interface string     `json:"interface"`
	Last      time.Time  `json:"last"`
	Count     uint64     `json:"count"`
}

// Owned is an address that this node answers for.
type Owned struct {
	Addr    netip.Addr `json:"addr"`
	Service string     `json:"service"`
	Since   time.Time  `json:"since"`
}

// NewArbiter returns an arbiter without addresses.
func NewArbiter(self string) *Arbiter {
	return &Arbiter{self: self, claims: map[netip.Addr]*claim{}, standing: func(string) loadbalancer.Standing {
		return loadbalancer.Dead
	}}
}

// Set replaces all addresses and living nodes. If an address is listed twice, the first entry counts.
func (a *Arbiter) Set(now time.Time, vips []VIP, standing func(node string) loadbalancer.Standing) {
	a.standing = standing
	claims := make(map[netip.Addr]*claim, len(vips))
	for _, v := range vips {
		if claims[v.Addr] != nil {
			continue
		}
		c := a.claims[v.Addr]
		if c == nil {
			c = &claim{}
		}
		c.VIP = v
		claims[v.Addr] = c
		a.own(now, c, loadbalancer.Owner(v.Addr, v.Eligible, standing))
	}
	a.claims = claims
}

// own records the owner of an address.
func (a *Arbiter) own(now time.Time, c *claim, owner string) {
	mine, was := owner == a.self, c.owner == a.self
	c.owner = owner
	switch {
	case mine && !was:
		lingers := !c.linger.IsZero()
		c.linger = time.Time{}
		if now.Before(c.silent) {
			return
		}
		a.take(now, c, !lingers)
	case !mine && was:
		c.next, c.silent, c.dispute = time.Time{}, time.Time{}, nil
		// The new owner gets time to announce itself. A node that may no longer answer, for example without an
		// endpoint, stops at once.
		if !c.since.IsZero() && owner != "" && slices.Contains(c.Eligible, a.self) {
			c.linger = now.Add(Bound)
		} else {
			c.since = time.Time{}
		}
	case !mine && (owner == "" || !slices.Contains(c.Eligible, a.self)):
		c.linger, c.since = time.Time{}, time.Time{}
	}
}

// take starts to answer for an address and to announce it.
func (a *Arbiter) take(now time.Time, c *claim, count bool) {
	c.since, c.silent = now, time.Time{}
	c.next, c.step = now, 0
	if count {
		a.Takeovers++
	}
}

// Again announces all addresses again, because an interface has come up.
func (a *Arbiter) Again(now time.Time) {
	for _, c := range a.claims {
		if c.owner == a.self && !c.since.IsZero() {
			c.next, c.step = now, 0
		}
	}
}

// Heard records that a peer announced an address.
func (a *Arbiter) Heard(now time.Time, addr netip.Addr, peer string) {
	c := a.claims[addr]
	if c == nil || peer == a.self {
		return
	}
	if c.owner != a.self {
		// The other node is the expected new owner.
		c.linger, c.since = time.Time{}, time.Time{}
		return
	}
	if c.dispute == nil {
		c.dispute = &dispute{since: now}
	}
	c.dispute.peer, c.dispute.heard = peer, now
	if loadbalancer.Better(addr, a.self, peer) {
		if c.since.IsZero() { // silent because of a third node
			return
		}
		if at := c.last.Add(answerEvery); at.After(now) {
			c.soon(at)
		} else {
			c.soon(now)
		}
		return
	}
	c.silent = now.Add(Silence)
	c.since, c.next = time.Time{}, time.Time{}
}

// soon moves the next announcement forward.
func (c *claim) soon(at time.Time) {
	if c.next.IsZero() || at.Before(c.next) {
		c.next = at
	}
}

// HeardForeign records that a machine that is no node announced an address. This node continues and repeats its own
// announcement.
func (a *Arbiter) HeardForeign(now time.Time, addr netip.Addr, mac, iface string) {
	c := a.claims[addr]
	if c == nil || c.owner != a.self {
		return
	}
	if c.foreign == nil || c.foreign.MAC != mac {
		c.foreign = &Foreign{Addr: addr, MAC: mac, Interface: iface}
	}
	c.foreign.Last, c.foreign.Count = now, c.foreign.Count+1
	if !c.since.IsZero() && !now.Before(c.defend) {
		c.defend = now.Add(defendEvery)
		c.soon(now)
	}
}

// Tick does what is due. It returns the announcements to send now, and the time of the next call.
func (a *Arbiter) Tick(now time.Time) (announce []netip.Addr, again time.Time) {
	note := func(t time.Time) {
		if !t.IsZero() && (again.IsZero() || t.Before(again)) {
			again = t
		}
	}
	for addr, c := range a.claims {
		if !c.linger.IsZero() && !now.Before(c.linger) {
			c.linger, c.since = time.Time{}, time.Time{}
		}
		if c.owner == a.self && c.since.IsZero() && !now.Before(c.silent) {
			// No node has claimed it for a while.
			a.take(now, c, true)
		}
		a.judge(now, c)
		if !c.next.IsZero() && !now.Before(c.next) {
			announce = append(announce, addr)
			a.announced(now, c)
		}
		note(c.linger)
		note(c.next)
		if c.owner == a.self && c.since.IsZero() {
			note(c.silent)
		}
		if c.dispute != nil {
			note(c.dispute.nextChange(now))
		}
	}
	return announce, again
}

// nextChange returns when the dispute changes next by itself.
func (d *dispute) nextChange(now time.Time) time.Time {
	if at := d.since.Add(Bound); !d.counted {
		return at
	}
	return now.Add(Bound)
}

// judge counts a dispute that lasts, and ends one that is over.
func (a *Arbiter) judge(now time.Time, c *claim) {
	d := c.dispute
	if d == nil {
		return
	}
	// A dispute that ends within the bound was a hand-over that was faster than its heartbeat.
	if !d.counted && now.Sub(d.since) >= Bound {
		d.counted = true
		a.Disputes++
	}
	over := now.Sub(d.heard)
	if over >= remember || (over >= Silence && (a.standing(d.peer) != loadbalancer.Dead || c.since.IsZero())) {
		c.dispute = nil
	}
}

// announced schedules the next announcement.
func (a *Arbiter) announced(now time.Time, c *claim) {
	c.last, c.next = now, time.Time{}
	if c.step < len(gaps) {
		c.next = now.Add(gaps[c.step])
		c.step++
	}
	if c.dispute != nil {
		c.soon(now.Add(Bound))
	}
}

// Answering returns the addresses that are answered for, by their interfaces.
func (a *Arbiter) Answering() map[netip.Addr][]string {
	all := make(map[netip.Addr][]string)
	for addr, c := range a.claims {
		if !c.since.IsZero() {
			all[addr] = c.Interfaces
		}
	}
	return all
}

// Owned returns the addresses of this node, sorted.
func (a *Arbiter) Owned() []Owned {
	var all []Owned
	for _, c := range a.sorted() {
		if !c.since.IsZero() {
			all = append(all, Owned{c.Addr, c.Service, c.since})
		}
	}
	return all
}

// Disputed returns the addresses that two nodes have claimed for longer than the bound.
func (a *Arbiter) Disputed() []Dispute {
	var all []Dispute
	for _, c := range a.sorted() {
		if c.dispute != nil && c.dispute.counted {
			all = append(all, Dispute{c.Addr, c.dispute.peer, c.dispute.since, !c.since.IsZero()})
		}
	}
	return all
}

// Foreigners returns the foreign machines, one for each address.
func (a *Arbiter) Foreigners() []Foreign {
	var all []Foreign
	for _, c := range a.sorted() {
		if c.foreign != nil {
			all = append(all, *c.foreign)
		}
	}
	return all
}

func (a *Arbiter) sorted() []*claim {
	return slices.SortedFunc(maps.Values(a.claims), func(x, y *claim) int { return x.Addr.Compare(y.Addr) })
}
