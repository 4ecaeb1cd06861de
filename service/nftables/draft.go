package nftables

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// draft is one transaction that is not committed yet, and what the books will say
// once it is. The books are not touched before.
type draft struct {
	*service.Draft
	lay     layout
	base    books
	batches map[nft.Family]*nft.Batch
	common  map[place]int // by how much the count changes
	chains  map[nft.Family]map[string]bool
	flows   []conntrack.Flow
	plain   []netip.AddrPort
	// forget says that clients may be remembered for what is no more.
	forget bool
}

func (m *Mode) newDraft(base books) *draft {
	d := &draft{Draft: base.Draft(), lay: m.lay, base: base, batches: map[nft.Family]*nft.Batch{},
		common: map[place]int{},
		chains: map[nft.Family]map[string]bool{nft.IPv4: {}, nft.IPv6: {}}}
	for _, f := range nft.Families() {
		d.batches[f] = &nft.Batch{Delete: map[string][]nft.Element{}, Add: map[string][]nft.Element{}}
	}
	return d
}

// release frees what the key has in the books.
func (d *draft) release(k model.Name) {
	d.Release(k)
	p := d.base.Plans[k]
	for _, e := range p.Entries {
		d.forget = d.forget || e.Affinity > 0
	}
	d.lay.common(k, p, func(at place) { d.common[at]-- })
}

// claim gives a key what its plan asks for and nobody has; nil asks for nothing.
func (d *draft) claim(k model.Name, want *service.Plan) {
	got := d.Claim(k, want)
	if got == nil {
		return
	}
	d.lay.common(k, *got, func(at place) { d.common[at]++ })
	d.lay.render(k, *got, func(place, string) {}, func(f nft.Family, c func() nft.Chain, name string) {
		if d.base.chains[f][name] || d.chains[f][name] {
			return
		}
		d.chains[f][name] = true
		d.batches[f].Chains = append(d.batches[f].Chains, c())
	})
}

// compareCommon adds elements that the first plan wants, and those that the last one gives
// up, to what is compared.
func (d *draft) compareCommon(before, after map[place]string) {
	for at, by := range d.common {
		if d.base.common[at] > 0 {
			before[at] = ""
		}
		if d.base.common[at]+by > 0 {
			after[at] = ""
		}
	}
}

// compare fills the batches with the difference.
func (d *draft) compare(before, after map[place]string) {
	for p, old := range before {
		if now, ok := after[p]; !ok || now != old {
			d.del(p, old)
		}
	}
	for p, now := range after {
		if old, ok := before[p]; !ok {
			d.add(p, now)
			d.arrives(p)
		} else if old != now {
			d.add(p, now)
		}
	}
}

func (d *draft) del(p place, data string) {
	b := d.batches[p.family]
	b.Delete[p.set] = append(b.Delete[p.set], p.element(data))
	if fl, ok := flow(p, data); ok {
		d.flows = append(d.flows, fl)
	}
}

func (d *draft) add(p place, data string) {
	b := d.batches[p.family]
	b.Add[p.set] = append(b.Add[p.set], p.element(data))
}

// arrives notes a frontend that had no slots: what was sent to it before may be
// tracked as going to the VIP itself.
func (d *draft) arrives(p place) {
	if dst, ok := udpFrontend(p); ok && leads(p.set) {
		d.plain = append(d.plain, dst)
	}
}

// leads says whether the map sends packets to slots.
func leads(set string) bool {
	switch set {
	case setFrontends, setNodePorts, setInside, setNodeInside, setOutside, setNodeOutside:
		return true
	}
	return false
}

// keepsSlots says whether the map is one of slots.
func keepsSlots(set string) bool {
	return set == setSlots || set == setNodeSlots || set == setOutsideSlots || set == setNodeOutsideSlots
}

// changes are the batches that are not empty, with elements in order: drafts of
// equal content are equal.
func (d *draft) changes() []nft.Change {
	var out []nft.Change
	for _, f := range nft.Families() {
		b := d.batches[f]
		if len(b.Delete)+len(b.Add)+len(b.Chains) == 0 && !b.Base {
			continue
		}
		for _, bySet := range []map[string][]nft.Element{b.Delete, b.Add} {
			for _, list := range bySet {
				slices.SortFunc(list, func(a, b nft.Element) int { return cmp.Compare(a.Key, b.Key) })
			}
		}
		out = append(out, nft.Change{Table: d.lay.table(f), Batch: *b})
	}
	return out
}

// flow is the UDP flow that a slot makes; false for another protocol.
func flow(p place, data string) (conntrack.Flow, bool) {
	if !keepsSlots(p.set) {
		return conntrack.Flow{}, false
	}
	dst, ok := udpFrontend(p)
	if !ok || len(data) < 8 {
		return conntrack.Flow{}, false
	}
	n := len(data) - 4
	a, _ := netip.AddrFromSlice([]byte(data[:n]))
	return conntrack.Flow{Dst: dst, Backend: netip.AddrPortFrom(a, binary.BigEndian.Uint16([]byte(data[n:])))}, true
}

// udpFrontend reads the UDP frontend of a place; false for others.
func udpFrontend(p place) (netip.AddrPort, bool) {
	a, rest := unspecified(p.family), p.key
	if !leads(p.set) && !keepsSlots(p.set) {
		return netip.AddrPort{}, false
	}
	if !strings.HasPrefix(p.set, "node-") {
		n := a.BitLen() / 8
		if len(rest) < n+8 {
			return netip.AddrPort{}, false
		}
		a, _ = netip.AddrFromSlice([]byte(rest[:n]))
		rest = rest[n:]
	}
	if len(rest) < 8 || model.Protocol(rest[0]) != model.UDP {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16([]byte(rest[4:6]))), true
}
