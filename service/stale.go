package service

import (
	"net/netip"

	"wayleave.dev/model"
)

// Stale returns a test for tracked UDP flows: dst is the client's destination, backend the source of the answers. A
// flow is stale if its backend no longer serves the frontend, if the frontend was removed, or if it is untranslated and
// the frontend now has backends. Flows to unknown frontends are not stale.
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

// GoneUDP returns the UDP frontends that no Service owns after the change; udp reports whether it affects any UDP
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
