package server

import (
	"net/netip"
	"sync"
)

// sourceBits is the length of the prefix of IPv6 that counts as one source: whoever has one address of it
// can have them all.
const sourceBits = 64

// sourceOf is what a client's share is counted by. A pod of this node is known by its address, which nobody
// else can send from; of other IPv6 addresses a /64 is one source.
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

// modest is what a source may have under way when three quarters of all are taken: the rest is for sources with
// less, so that a few that flood leave room for others.
const modest = 16

// shares bounds what is under way, in all and for each source. Safe for concurrent use.
type shares struct {
	most, mostEach int

	mu   sync.Mutex
	all  int
	each map[netip.Addr]int
}

func newShares(most, mostEach int) *shares {
	return &shares{most: most, mostEach: mostEach, each: map[netip.Addr]int{}}
}

// take is false when the source, or all together, have as much as they may. Else done ends it.
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

// done gives back what take gave.
func (s *shares) done(source netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.each[source]--; s.each[source] == 0 {
		delete(s.each, source)
	}
}
