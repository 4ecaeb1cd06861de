package speaker

import (
	"net/netip"
	"sync"
	"time"

	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// endsOfRIB is when peers have marked the end of their routes (RFC 4724, section 2). The library's own state also says
// so of a peer that says that it has restarted, before it has sent a route. Safe for concurrent use.
type endsOfRIB struct {
	mu sync.Mutex
	at map[netip.Addr]map[packet.Family]time.Time
}

// note records a mark that has arrived now.
func (e *endsOfRIB) note(peer netip.Addr, f packet.Family) {
	e.mu.Lock()
	defer e.mu.Unlock()
	peer = peer.Unmap().WithZone("")
	if e.at == nil {
		e.at = map[netip.Addr]map[packet.Family]time.Time{}
	}
	if e.at[peer] == nil {
		e.at[peer] = map[packet.Family]time.Time{}
	}
	e.at[peer][f] = time.Now()
}

// has says whether a peer has marked the end of a family's routes in its session, which was established then.
func (e *endsOfRIB) has(peer netip.Addr, f packet.Family, since time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	at, ok := e.at[peer.Unmap().WithZone("")][f]
	return ok && !at.Before(since)
}

// forget drops what is known of peers that have no session.
func (e *endsOfRIB) forget(present map[netip.Addr]string) {
	plain := map[netip.Addr]bool{}
	for a := range present {
		plain[a.Unmap().WithZone("")] = true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for a := range e.at {
		if !plain[a] {
			delete(e.at, a)
		}
	}
}
