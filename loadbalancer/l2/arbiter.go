package l2

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/loadbalancer"
)

// The times of the rules. Two nodes answer for an address at once for Bound at most.
const (
	// Bound is the longest time for which two nodes that hear each other answer at once: so
	// long the one that loses an address waits for the one that gets it to say so, and so
	// often the better of two repeats itself while they dispute.
	Bound = time.Second
	// Silence is how long the worse of two says nothing after it last heard the better.
	Silence = 3 * time.Second
	// remember is how long the better of two goes on repeating itself after it last heard the worse,
	// when that shows no life by heartbeats.
	remember = time.Minute
	// answerEvery bounds announcements that others provoke.
	answerEvery = 100 * time.Millisecond
	// defendEvery is how often a machine that is no node is told off (RFC 5227 2.4).
	defendEvery = 10 * time.Second
)

// gaps lie between the announcements of an address that was taken: the first ones soon
// after each other, since frames get lost, the later ones for those that were away.
var gaps = [...]time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond,
	800 * time.Millisecond, 1600 * time.Millisecond, 3200 * time.Millisecond}

// VIP is an address that nodes of the cluster answer for.
type VIP struct {
	Addr netip.Addr `json:"addr"`
	// Service is for people: "namespace/name", several joined by a comma.
	Service string `json:"service"`
	// Eligible are the names of the nodes that may answer.
	Eligible []string `json:"eligible"`
	// Interfaces are those of this node that it is answered on.
	Interfaces []string `json:"interfaces"`
}

// Arbiter decides for one node which addresses it answers for, by who lives and by what it hears from
// others. It does no I/O, knows no clock but the one it is given, and is not for concurrent use.
//
// The rule for two that both think an address theirs: the better one in the address's
// order (loadbalancer.Better) says so again, at once and every Bound, and the worse is
// silent for Silence after it last heard that. The order follows from names alone, so it needs
// no agreement on who lives.
type Arbiter struct {
	self     string
	claims   map[netip.Addr]*claim
	standing func(string) loadbalancer.Standing
	// Takeovers and Disputes count since the start.
	Takeovers, Disputes uint64
}

// claim is what a node knows of one address.
type claim struct {
	VIP
	owner string
	// since is the time from which we answer; zero when we do not.
	since time.Time
	// linger is until when we answer for an address that went to another node.
	linger time.Time
	// silent is until when we leave the address to a better one.
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

// Dispute is an address that another node thinks its own too.
type Dispute struct {
	Addr netip.Addr `json:"addr"`
	// Peer is the other one; of several the last one heard.
	Peer  string    `json:"peer"`
	Since time.Time `json:"since"`
	// Answering says whether this node is the one that goes on.
	Answering bool `json:"answering"`
}

// Foreign is a machine that is no node and says that it has an address of ours.
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

// NewArbiter is one that answers for nothing yet.
func NewArbiter(self string) *Arbiter {
	return &Arbiter{self: self, claims: map[netip.Addr]*claim{}, standing: func(string) loadbalancer.Standing {
		return loadbalancer.Dead
	}}
}

// Set is the whole of what there is to answer for, and who lives. Of an address that is in
// the list twice the first counts.
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

// own notes who has an address now.
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
		// The new owner is given the time to say that it is there; a node that may no longer
		// answer, having no endpoint for example, stops at once.
		if !c.since.IsZero() && owner != "" && slices.Contains(c.Eligible, a.self) {
			c.linger = now.Add(Bound)
		} else {
			c.since = time.Time{}
		}
	case !mine && (owner == "" || !slices.Contains(c.Eligible, a.self)):
		c.linger, c.since = time.Time{}, time.Time{}
	}
}

// take begins to answer, and to announce it.
func (a *Arbiter) take(now time.Time, c *claim, count bool) {
	c.since, c.silent = now, time.Time{}
	c.next, c.step = now, 0
	if count {
		a.Takeovers++
	}
}

// Again announces all anew, since an interface has come up.
func (a *Arbiter) Again(now time.Time) {
	for _, c := range a.claims {
		if c.owner == a.self && !c.since.IsZero() {
			c.next, c.step = now, 0
		}
	}
}

// Heard says that another node announced an address. It is for peers only.
func (a *Arbiter) Heard(now time.Time, addr netip.Addr, peer string) {
	c := a.claims[addr]
	if c == nil || peer == a.self {
		return
	}
	if c.owner != a.self {
		// It is somebody else's by what we know: what we waited for.
		c.linger, c.since = time.Time{}, time.Time{}
		return
	}
	if c.dispute == nil {
		c.dispute = &dispute{since: now}
	}
	c.dispute.peer, c.dispute.heard = peer, now
	if loadbalancer.Better(addr, a.self, peer) {
		if c.since.IsZero() { // silent for the sake of a third
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

// HeardForeign says that a machine which is no node announced an address. We go on, and
// say again that it is ours.
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

// Tick does what is due: it returns what must be announced now, and when it must be called again.
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
			// Nobody has said for a while that it is theirs.
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

// nextChange is when something of the dispute changes next by itself.
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
	// What is settled within the bound was a hand-over that overtook its heartbeat.
	if !d.counted && now.Sub(d.since) >= Bound {
		d.counted = true
		a.Disputes++
	}
	over := now.Sub(d.heard)
	if over >= remember || (over >= Silence && (a.standing(d.peer) != loadbalancer.Dead || c.since.IsZero())) {
		c.dispute = nil
	}
}

// announced plans the announcement after this one.
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

// Answering is the set of addresses that are answered for, by their interfaces.
func (a *Arbiter) Answering() map[netip.Addr][]string {
	all := make(map[netip.Addr][]string)
	for addr, c := range a.claims {
		if !c.since.IsZero() {
			all[addr] = c.Interfaces
		}
	}
	return all
}

// Owned is what this node answers for, in order.
func (a *Arbiter) Owned() []Owned {
	var all []Owned
	for _, c := range a.sorted() {
		if !c.since.IsZero() {
			all = append(all, Owned{c.Addr, c.Service, c.since})
		}
	}
	return all
}

// Disputed is what two nodes have thought theirs for longer than the bound.
func (a *Arbiter) Disputed() []Dispute {
	var all []Dispute
	for _, c := range a.sorted() {
		if c.dispute != nil && c.dispute.counted {
			all = append(all, Dispute{c.Addr, c.dispute.peer, c.dispute.since, !c.since.IsZero()})
		}
	}
	return all
}

// Foreigners are the machines that say that an address of ours is theirs, one for each address.
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
