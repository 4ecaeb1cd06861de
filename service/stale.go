package service

import (
	"net/netip"

	"wayleave.dev/model"
)

// Stale returns a test for tracked UDP flows: dst is where the client sends to, backend is where the answers come from.
// A flow is stale when its backend no longer serves the frontend, when the frontend has gone, or when it went
// untranslated to a frontend that has backends now. Flows to unknown frontends are not.
func (b *OwnershipTable) Stale(gone map[Frontend]bool) func(dst, backend netip.AddrPort) bool {
	return func(dst, backend netip.AddrPort) bool {
		fe := Frontend{Addr: dst.Addr(), Protocol: model.UDP, Port: dst.Port()}
		e, ok := b.Frontend(fe)
		if !ok && !gone[fe] {
			fe.Addr = unspecified(dst.Addr())
			e, ok = b.Frontend(fe)
		}
		switch {
		case !ok:
			return gone[fe] && backend != dst
		case backend == dst:
			return len(e.Slots)+len(e.Outside) > 0 && !e.Serves(dst)
		}
		return !e.Serves(backend)
	}
}

// GoneUDP returns the UDP frontends that no Service owns after the change; udp says whether it touches any UDP
// frontend.
func (d *OwnershipChange) GoneUDP() (gone map[Frontend]bool, udp bool) {
	gone = map[Frontend]bool{}
	for fe, k := range d.owner {
		if fe.Protocol == model.UDP {
			udp = true
			if k == (model.Name{}) {
				gone[fe] = true
			}
		}
	}
	return gone, udp
}
