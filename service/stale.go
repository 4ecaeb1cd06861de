package service

import (
	"net/netip"

	"wayleave.dev/model"
)

// Stale judges tracked UDP flows by these books: dst is where the client sends to, and
// backend who answers. Flows to a backend that does not serve the frontend any more are
// stale, and those to frontends that have gone; and those that went untranslated to a
// frontend which has backends now. Other flows are somebody else's.
func (b *Books) Stale(gone map[Frontend]bool) func(dst, backend netip.AddrPort) bool {
	return func(dst, backend netip.AddrPort) bool {
		fe := Frontend{Addr: dst.Addr(), Protocol: model.UDP, Port: dst.Port()}
		e, ok := b.Entry(fe)
		if !ok && !gone[fe] {
			fe.Addr = unspecified(dst.Addr())
			e, ok = b.Entry(fe)
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

// GoneUDP are the UDP frontends that nobody has after the change; udp says whether it
// touches any UDP frontend at all.
func (d *Draft) GoneUDP() (gone map[Frontend]bool, udp bool) {
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
