package statusserver

import (
	"net"
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

// pace limits how often strangers make the process do expensive work: all of them together, and each one.
type pace struct {
	total     *rate.Limiter
	perSecond int // of one source, as a rate and as a burst

	mu      sync.Mutex
	sources map[netip.Addr]*rate.Limiter
}

// maxSources bounds the memory of a pace. When there are more, all start anew; total holds for them.
const maxSources = 1024

func newPace(total, perSecond int) *pace {
	return &pace{total: rate.NewLimiter(rate.Limit(total), total), perSecond: perSecond,
		sources: map[netip.Addr]*rate.Limiter{}}
}

// allow says whether the work for a source may be done now.
func (p *pace) allow(source netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	one := p.sources[source]
	if one == nil {
		if len(p.sources) >= maxSources {
			clear(p.sources)
		}
		one = rate.NewLimiter(rate.Limit(p.perSecond), p.perSecond)
		p.sources[source] = one
	}
	return one.Allow() && p.total.Allow()
}

// sourceOf is the address of a client, or the /64 of an IPv6 address: one machine has all addresses of its /64.
func sourceOf(client string) netip.Addr {
	host, _, err := net.SplitHostPort(client)
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is4() {
		return addr
	}
	p, err := addr.Prefix(64)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}
