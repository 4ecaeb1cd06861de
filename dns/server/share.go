package server

import (
	"net/netip"
	"sync"
)

// sourceBits is the length of the IPv6 prefix that counts as one source: whoever has one address of it can have them
// all.
const sourceBits = 64

// sourceOf returns the source by which a client's share is counted. A pod of this node is identified by its address,
// from which no other pod can send; of other IPv6 addresses a /64 is one source.
func (s *Server) sourceOf(client netip.Addr) netip.Addr {
	if client.Is4() || s.callers.at(client) != nil {
		return client
	}
	p, err := client.Prefix(sourceBits)
	if err != nil {
		return client
	}
	return p.Addr()
}

// modest is the maximum per source once three quarters of the total are in use: the rest is for sources with less, so
// that a few flooding ones leave room for others.
const modest = 16

// shares bounds the queries in progress, in total and per source. Safe for concurrent use.
type shares struct {
	most, mostEach int

	mu   sync.Mutex
	all  int
	each map[netip.Addr]int
}

func newShares(most, mostEach int) *shares {
	return &shares{most: most, mostEach: mostEach, each: map[netip.Addr]int{}}
}

// take returns false if the source, or all together, have their maximum. Otherwise done must be called.
func (s *shares) take(source netip.Addr) (ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := s.mostEach
	if s.all >= s.most-s.most/4 {
		limit = min(limit, modest)
	}
	if s.all >= s.most || s.each[source] >= limit {
		return false
	}
	s.all++
	s.each[source]++
	return true
}

// done undoes take.
func (s *shares) done(source netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.each[source]--; s.each[source] == 0 {
		delete(s.each, source)
	}
}
