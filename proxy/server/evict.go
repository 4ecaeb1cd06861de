package server

import (
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"wayleave.dev/proxy/h1"
)

// Bounds of eviction. A server that is full, or has too many waiting connections, evicts those of the client with the
// most connections first: idle ones, and those whose head or handshake takes longer than waitGrace, come before recent
// waiting ones. A connection in the middle of a request is evicted last, and only if its client delays it, or holds
// very many connections.
const (
	// waitingShare of all connections may wait for a handshake or a head: each holds up to h1.Limits.Head bytes, or
	// handshakeBytes.
	waitingShare = 4
	// waitGrace is how long a head or handshake may take before the connection counts as stalled.
	waitGrace = 2 * time.Second
	// owingGrace is how long a client may send or read less than 16 KiB of a message.
	owingGrace = 10 * time.Second
	// A client holds very many connections if it has this share of all, and this multiple of the new client's.
	manyShare, manyTimes = 16, 4
	// batchShare of all connections are evicted at once, so that the cost per connection of a flood is small; of slow
	// clients in the middle of a request, an eighth of that.
	batchShare = 64
	// futileFor is how long no further search is made, for clients with as many connections, after one that found
	// nothing to evict.
	futileFor = 20 * time.Millisecond
	// leavingShare of all connections, and at least leavingLeast, may have been evicted while their goroutines still
	// run. Above that, no new connection is accepted.
	leavingShare, leavingLeast = 8, 8
)

// mostHeld returns the maximum number of connections, including evicted ones that still run.
func mostHeld(most int) int { return most + max(leavingLeast, most/leavingShare) }

// futile is the last search that found nothing to evict.
type futile struct {
	until time.Time
	own   int
}

// makeRoom evicts connections to admit one of a client; s.mu is held.
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
	// client is the address it is counted for: the peer's, until a PROXY header names another. It is guarded by
	// Server.mu.
	client netip.Addr
	exchanges
	// flooded means that it was closed for too many frames without content.
	flooded atomic.Bool
	// gone means that it is no longer counted; guarded by Server.mu.
	gone bool
}

// victim is a connection that may be evicted.
type victim struct {
	k     *conn
	phase h1.Phase
	since time.Time
	// rank is the number of its client's connections that are as old or older.
	rank int
}

// evict ends connections to make room for one of a client, or some of the waiting ones if only those are too many. It
// returns their number, and the number of the client's connections. s.mu is held.
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

// rank orders victims: the client with the most connections comes first, and of one client's the oldest.
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

// end evicts at most the given number of victims; s.mu is held.
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
		if v.phase != h1.Idle { // an idle client may still be receiving a complete response
			_ = v.k.SetLinger(0)
		}
		_ = v.k.Close()
		s.refused(evictions[v.phase])
	}
	return n
}

// evictions are the reasons by phase of the evicted connection.
var evictions = map[h1.Phase]Refusal{h1.Waiting: EvictedWaiting, h1.Idle: EvictedIdle, h1.Busy: EvictedBusy,
	h1.Owing: EvictedBusy}

// countOut removes a connection from the counts; s.mu is held.
func (s *Server) countOut(k *conn) {
	if !k.gone {
		k.gone = true
		s.counts.leave()
	}
}

// thin evicts some waiting connections if there are too many.
func (s *Server) thin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if most := s.crowd.Most.Load(); int64(s.crowd.Waiting()) > most {
		s.evict(netip.Addr{}, int(most), true)
	}
}
