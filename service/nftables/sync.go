package nftables

import (
	"context"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
)

// Sync implements reconcile.Target: it reads both tables, and commits only what
// differs, so that a restart with nothing new changes no element. The rules, of
// which there are a few, are replaced in the same transaction: no packet passes
// between the old and the new.
func (m *Mode) Sync(ctx context.Context, plans map[model.Name]service.Plan) error {
	m.reset()
	changes := map[nft.Family]*change{nft.IPv4: newChange(), nft.IPv6: newChange()}
	conflicts := reconcile.KeyErrors[model.Name]{}
	scratch := map[place]string{}
	for _, k := range slices.SortedFunc(maps.Keys(plans), model.Name.Compare) {
		if err := m.claim(k, plans[k], scratch, changes); err != nil {
			conflicts[k] = err
		}
	}
	for _, f := range nft.Families() {
		if err := m.compare(ctx, f, changes[f]); err != nil {
			return err
		}
	}
	if err := m.commit(ctx, changes); err != nil {
		return err
	}
	if len(conflicts) > 0 {
		return conflicts
	}
	return nil
}

// compare completes a change with the difference to what the kernel has.
func (m *Mode) compare(ctx context.Context, f nft.Family, c *change) error {
	have, err := m.conn.Read(ctx, table(f))
	if err != nil {
		return err
	}
	want := map[place]string{}
	for p, data := range m.data {
		if p.family == f {
			want[p] = data
		}
	}
	for _, a := range m.local.NodeIPs {
		if family(a) == f {
			want[place{f, setNodeIPs, nft.Pack(a)}] = ""
		}
	}
	c.batch.Base, c.batch.Recreate = true, have.Exists && !have.Fits
	if !have.Exists || c.batch.Recreate {
		have.Elements, have.Chains = nil, nil
	}
	// Ranges are few: they are set anew within the transaction.
	c.batch.Clear = append(c.batch.Clear, setPodCIDRs)
	c.batch.Add[setPodCIDRs] = podCIDRs(f, m.local.PodCIDRs)
	for set, list := range have.Elements {
		if set == setPodCIDRs {
			continue
		}
		for _, e := range list {
			p := place{f, set, e.Key}
			if data, ok := want[p]; ok && data == e.Data {
				delete(want, p)
				continue
			}
			c.del(p, e.Data)
		}
	}
	for p, data := range want {
		c.add(p, data)
	}
	for _, name := range have.Chains {
		fixed := slices.ContainsFunc(table(f).Chains, func(x nft.Chain) bool { return x.Name == name })
		if !fixed && !m.chains[f][name] {
			c.batch.DropChains = append(c.batch.DropChains, name)
		}
	}
	return nil
}

// podCIDRs are the ranges of a family. Where none is known, everything counts as
// a pod's, so that nobody is masqueraded by mistake.
func podCIDRs(f nft.Family, all []netip.Prefix) []nft.Element {
	var out []nft.Element
	for _, p := range nft.Disjoint(all) {
		if family(p.Addr()) == f {
			out = append(out, nft.Range(p))
		}
	}
	if len(out) == 0 {
		zero := netip.IPv4Unspecified()
		if f == nft.IPv6 {
			zero = netip.IPv6Unspecified()
		}
		out = append(out, nft.Range(netip.PrefixFrom(zero, 0)))
	}
	return out
}

// flush removes the UDP flows to slots that went, and those that went untranslated
// to a frontend which now has slots.
func (m *Mode) flush(ctx context.Context, changes map[nft.Family]*change) error {
	var flows []conntrack.Flow
	var plain []netip.AddrPort
	for _, f := range nft.Families() {
		c := changes[f]
		still := map[conntrack.Flow]bool{} // a slot may only have moved to another number
		for p := range c.added {
			if fl, ok := m.flow(p, c.added[p]); ok {
				still[fl] = true
			}
		}
		for p, data := range c.gone {
			fl, ok := m.flow(p, data)
			if ok && !still[fl] && !m.serves(p, data) {
				flows = append(flows, fl)
			}
		}
		for p := range c.added {
			_, replaced := c.gone[p]
			if dst, ok := frontend(p); ok && !replaced && (p.set == setFrontends || p.set == setNodePorts) {
				plain = append(plain, dst)
			}
		}
	}
	if len(flows)+len(plain) == 0 {
		return nil
	}
	return m.track.Flush(ctx, flows, plain)
}

// serves says whether the frontend of a slot still has the backend under some number.
func (m *Mode) serves(p place, data string) bool {
	prefix := p.key[:len(p.key)-4]
	for i := uint32(0); ; i++ {
		have, ok := m.data[place{p.family, p.set, prefix + nft.Pack(i)}]
		if !ok {
			return false
		}
		if have == data {
			return true
		}
	}
}

// flow is the UDP flow that a slot makes; false for another protocol.
func (m *Mode) flow(p place, data string) (conntrack.Flow, bool) {
	if p.set != setSlots && p.set != setNodeSlots {
		return conntrack.Flow{}, false
	}
	dst, ok := frontend(p)
	if !ok || len(data) < 8 {
		return conntrack.Flow{}, false
	}
	n := len(data) - 4
	a, _ := netip.AddrFromSlice([]byte(data[:n]))
	return conntrack.Flow{Dst: dst, Backend: netip.AddrPortFrom(a, binary.BigEndian.Uint16([]byte(data[n:])))}, true
}

// frontend reads the UDP frontend of a place.
func frontend(p place) (netip.AddrPort, bool) {
	a, rest := netip.IPv4Unspecified(), p.key
	if p.family == nft.IPv6 {
		a = netip.IPv6Unspecified()
	}
	switch p.set {
	case setFrontends, setSlots:
		n := len(a.AsSlice())
		if len(rest) < n+8 {
			return netip.AddrPort{}, false
		}
		a, _ = netip.AddrFromSlice([]byte(rest[:n]))
		rest = rest[n:]
	case setNodePorts, setNodeSlots:
	default:
		return netip.AddrPort{}, false
	}
	if len(rest) < 8 || model.Protocol(rest[0]) != model.UDP {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16([]byte(rest[4:6]))), true
}

// Watch tells of foreign changes to our tables.
func (m *Mode) Watch(ctx context.Context) (<-chan struct{}, error) {
	return m.conn.Watch(ctx, TableName)
}

// Remove takes everything of this mode out of the kernel.
func (m *Mode) Remove(ctx context.Context) error {
	for _, f := range nft.Families() {
		if err := m.conn.Remove(ctx, table(f)); err != nil {
			return err
		}
	}
	return nil
}

// Text renders plans as nft text, for people.
func Text(plans map[model.Name]service.Plan, l Local) string {
	out := ""
	for _, f := range nft.Families() {
		chains := map[string]nft.Chain{}
		bySet := map[string][]nft.Element{setPodCIDRs: podCIDRs(f, l.PodCIDRs)}
		for _, k := range slices.SortedFunc(maps.Keys(plans), model.Name.Compare) {
			w := render(plans[k], func(g nft.Family, n int, nodePort bool) {
				if g == f {
					chains[chainName(n, nodePort)] = slotChain(n, nodePort)
				}
			})
			for p, data := range w {
				e := nft.Element{Key: p.key, Data: data}
				if p.family == f && !slices.Contains(bySet[p.set], e) {
					bySet[p.set] = append(bySet[p.set], e)
				}
			}
		}
		for _, a := range l.NodeIPs {
			if family(a) == f {
				bySet[setNodeIPs] = append(bySet[setNodeIPs], nft.Element{Key: nft.Pack(a)})
			}
		}
		var more []nft.Chain
		for _, name := range slices.Sorted(maps.Keys(chains)) {
			more = append(more, chains[name])
		}
		out += table(f).Text(bySet, more)
	}
	return out
}
