package server

import (
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"wayleave.dev/proxy/h1"
)

// Bounds of what is ended to make room. A server that is full, or has too many connections that wait,
// ends those of the client that has most of them first: idle ones, and those whose head or handshake takes
// longer than waitGrace, come before fresh ones that wait. A connection in the midst of a request is ended
// last, and only where its client holds things up, or holds very many.
const (
	// waitingShare of all connections may wait for a handshake or a head: each holds up to
	// h1.Limits.Head bytes, or handshakeBytes.
	waitingShare = 4
	// waitGrace is how long a head or handshake may take before it counts as one that does not come.
	waitGrace = 2 * time.Second
	// owingGrace is how long a client may send or take less than 16 KiB of a message.
	owingGrace = 10 * time.Second
	// A client holds very many when it has a share of all connections and, for each of the client that
	// comes, as many.
	manyShare, manyTimes = 16, 4
	// batchShare of all connections are ended at once, so that a flood costs little for each; of slow clients in
	// the midst of a request, an eighth of that.
	batchShare = 64
	// futileFor is how long nobody is looked for again, for clients that have as many connections, when nobody
	// could be ended.
	futileFor = 20 * time.Millisecond
	// leavingShare of all connections, and at least leavingLeast, may have been ended and not yet be gone: what
	// served them still runs. Above that nobody else comes in.
	leavingShare, leavingLeast = 8, 8
)

// mostHeld is how many connections there are at most, with those that were ended and are not gone.
func mostHeld(most int) int { return most + max(leavingLeast, most/leavingShare) }

// futile is the last search for connections to end, where there were none.
type futile struct {
	until time.Time
	own   int
}

// makeRoom ends connections for one of a client that is to come; s.mu is held.
func (s *Server) makeRoom(client netip.Addr, most int) bool {
	now := time.Now()
	if now.Before(s.futile.until) && s.counts.of(client) >= s.futile.own {
		return false
	}
	n, own := s.evict(client, most, false)
	if n > 0 {
		return true
	}
	s.futile = futile{now.Add(futileFor), own}
	return false
}

// conn is a client's connection.
type conn struct {
	*net.TCPConn
	state h1.State
	// client is whom it is counted for: the peer's, until a PROXY header says whose. It is guarded by Server.mu.
	client netip.Addr
	exchanges
	// flooded says that it was ended for too many frames that carry nothing.
	flooded atomic.Bool
	// gone says that it is counted out; guarded by Server.mu.
	gone bool
}

// victim is a connection that may be ended.
type victim struct {
	k     *conn
	phase h1.Phase
	since time.Time
	// rank is how many connections its client would have, with those that are as old or older.
	rank int
}

// evict ends connections to make room for one of a client, or, where only waiting ones are too many, some of
// those. It returns how many, and how many connections the client has. s.mu is held.
func (s *Server) evict(newcomer netip.Addr, most int, waiting bool) (n, own int) {
	now, held := time.Now(), map[netip.Addr]int{}
	var idle, fresh, owing, busy []victim
	for k := range s.conns {
		phase, since := k.state.Look()
		if phase == h1.Evicted || waiting && phase != h1.Waiting {
			continue
		}
		held[k.client]++
		v := victim{k: k, phase: phase, since: since}
		switch age := now.Sub(since); {
		case phase == h1.Idle || phase == h1.Waiting && age >= waitGrace:
			idle = append(idle, v)
		case phase == h1.Waiting:
			fresh = append(fresh, v)
		case phase == h1.Owing && age >= owingGrace:
			owing = append(owing, v)
		default:
			busy = append(busy, v)
		}
	}
	own = held[newcomer]
	batch := max(1, most/batchShare)
	if waiting {
		return s.end(rank(append(idle, fresh...), held), batch, func(victim) bool { return true }), own
	}
	fair := func(v victim) bool { return v.rank >= own || v.k.client == newcomer }
	for _, list := range [][]victim{idle, fresh} {
		if n := s.end(rank(list, held), batch, fair); n > 0 {
			return n, own
		}
	}
	fair = func(v victim) bool { return v.rank >= own && v.k.client != newcomer }
	if n := s.end(rank(owing, held), max(1, batch/8), fair); n > 0 {
		return n, own
	}
	return s.end(rank(busy, held), 1, func(v victim) bool {
		n := held[v.k.client]
		return v.rank > own && v.k.client != newcomer && n >= max(2, most/manyShare) && n >= manyTimes*(own+1)
	}), own
}

// rank orders victims: the client with most connections loses first, and of one client's the oldest.
func rank(list []victim, held map[netip.Addr]int) []victim {
	older := func(a, b victim) int { return a.since.Compare(b.since) }
	slices.SortFunc(list, older)
	lost := map[netip.Addr]int{}
	for i := range list {
		c := list[i].k.client
		list[i].rank = held[c] - lost[c]
		lost[c]++
	}
	slices.SortStableFunc(list, func(a, b victim) int { return b.rank - a.rank })
	return list
}

// end ends up to most of those that may go; s.mu is held.
func (s *Server) end(list []victim, most int, may func(victim) bool) (n int) {
	for _, v := range list {
		if n == most {
			break
		}
		if !may(v) || !v.k.state.Evict(v.phase) {
			continue
		}
		n++
		s.countOut(v.k)
		if v.phase != h1.Idle { // what was sent to an idle one is a whole response, which it may still get
			_ = v.k.SetLinger(0)
		}
		_ = v.k.Close()
		s.refused(evictions[v.phase])
	}
	return n
}

// evictions are the names of what was ended for others.
var evictions = map[h1.Phase]Refusal{h1.Waiting: EvictedWaiting, h1.Idle: EvictedIdle, h1.Busy: EvictedBusy,
	h1.Owing: EvictedBusy}

// countOut makes room for another; s.mu is held.
func (s *Server) countOut(k *conn) {
	if !k.gone {
		k.gone = true
		s.counts.leave()
	}
}

// thin ends some of those that wait when too many do.
func (s *Server) thin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if most := s.crowd.Most.Load(); int64(s.crowd.Waiting()) > most {
		s.evict(netip.Addr{}, int(most), true)
	}
}
