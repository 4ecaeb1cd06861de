package nftables

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/nft/program"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// committed records the flows and remembered clients that a transaction has made stale.
func (m *Mode) committed(c program.Commit[model.Name, service.Plan]) {
	if m.onCommit != nil {
		m.onCommit(c.Plans, c.Whole)
	}
	m.reviewClients = m.reviewClients || c.Whole
	for k := range c.Plans {
		for _, e := range m.owners.Plans[k].Frontends {
			m.reviewClients = m.reviewClients || e.Affinity > 0
		}
	}
	for _, f := range nft.Families() {
		b := c.Batches[f]
		for set, list := range b.Delete {
			if !isSlotSet(set) {
				continue
			}
			for _, el := range list {
				if fl, ok := flow(f, set, el); ok {
					m.flows = append(m.flows, fl)
				}
			}
		}
		for set, list := range b.Add {
			if isFrontendSet(set) {
				m.untranslated = append(m.untranslated, arrivals(f, set, list, b.Delete[set])...)
			}
		}
	}
}

// arrivals returns the UDP frontends that had no slots before.
func arrivals(f nft.Family, set string, added, deleted []nft.Element) (out []netip.AddrPort) {
	replaced := make(map[string]bool, len(deleted))
	for _, el := range deleted {
		replaced[el.Key] = true
	}
	for _, el := range added {
		if dst, ok := udpFrontend(f, set, el.Key); ok && !replaced[el.Key] {
			out = append(out, dst)
		}
	}
	return out
}

// isFrontendSet reports whether the map sends packets to slots.
func isFrontendSet(set string) bool {
	switch set {
	case setFrontends, setNodePorts, setInside, setNodeInside, setOutside, setNodeOutside:
		return true
	}
	return false
}

// isSlotSet reports whether the map contains slots.
func isSlotSet(set string) bool {
	return set == setSlots || set == setNodeSlots || set == setOutsideSlots || set == setNodeOutsideSlots
}

// isInert reports whether elements of the set have no effect while no frontend leads to them.
func isInert(set string) bool { return isSlotSet(set) || set == setHairpin || set == setLinked }

// flow returns the UDP flow of a slot; false for another protocol.
func flow(f nft.Family, set string, slot nft.Element) (conntrack.Flow, bool) {
	dst, ok := udpFrontend(f, set, slot.Key)
	if !ok || len(slot.Data) < 8 {
		return conntrack.Flow{}, false
	}
	n := len(slot.Data) - 4
	a, _ := netip.AddrFromSlice([]byte(slot.Data[:n]))
	return conntrack.Flow{Dst: dst, Backend: netip.AddrPortFrom(a, binary.BigEndian.Uint16([]byte(slot.Data[n:])))},
		true
}

// udpFrontend parses the UDP frontend of a key in a map of frontends or slots; false for other protocols.
func udpFrontend(f nft.Family, set, key string) (netip.AddrPort, bool) {
	a := unspecified(f)
	if !strings.HasPrefix(set, "node-") {
		n := a.BitLen() / 8
		if len(key) < n+8 {
			return netip.AddrPort{}, false
		}
		a, _ = netip.AddrFromSlice([]byte(key[:n]))
		key = key[n:]
	}
	if len(key) < 8 || model.Protocol(key[0]) != model.UDP {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16([]byte(key[4:6]))), true
}

// flush removes the UDP flows to removed slots, and untranslated flows to a frontend that now has slots. Failures are
// retried the next time.
func (m *Mode) flush(ctx context.Context) error {
	if err := m.forgetClients(ctx); err != nil {
		return err
	}
	flows := slices.DeleteFunc(m.flows,
		func(f conntrack.Flow) bool { return m.frontend(model.UDP, f.Dst).Serves(f.Backend) })
	untranslated := slices.DeleteFunc(m.untranslated, func(dst netip.AddrPort) bool {
		e := m.frontend(model.UDP, dst)
		return len(e.Slots)+len(e.Outside) == 0 || e.Serves(dst)
	})
	m.flows, m.untranslated = flows, untranslated
	if len(flows)+len(untranslated) == 0 {
		return nil
	}
	if err := m.track.Flush(ctx, flows, untranslated); err != nil {
		return err
	}
	m.flows, m.untranslated = nil, nil
	return nil
}

// frontend returns the plan in force of a frontend.
func (m *Mode) frontend(p model.Protocol, dst netip.AddrPort) service.FrontendPlan {
	e, _ := m.owners.Frontend(service.Frontend{Addr: dst.Addr(), Protocol: p, Port: dst.Port()})
	return e
}

// forgetClients removes remembered clients whose endpoint was removed, or whose Service no longer has affinity. Packets
// add these elements, so they are read from the kernel.
func (m *Mode) forgetClients(ctx context.Context) error {
	if !m.reviewClients || !m.program.Synced() {
		return nil
	}
	for _, f := range nft.Families() {
		for _, set := range []string{setClients, setNodeClients} {
			list, err := m.conn.Filled(ctx, m.lay.table(f), set)
			if err != nil {
				return err
			}
			stale := slices.DeleteFunc(list,
				func(el nft.Element) bool { return m.isValidClient(f, set == setNodeClients, el) })
			if len(stale) == 0 {
				continue
			}
			if err := m.conn.Forget(ctx, m.lay.table(f), set, stale); err != nil {
				return err
			}
		}
	}
	m.reviewClients = false
	return nil
}

// isValidClient reports whether the endpoint of a remembered client still serves it.
func (m *Mode) isValidClient(f nft.Family, nodePort bool, el nft.Element) bool {
	to := unspecified(f)
	n := to.BitLen() / 8
	key := el.Key
	if len(key) < n+8 || len(el.Data) < n+4 {
		return true
	}
	key = key[n:] // the client
	if !nodePort {
		if len(key) < n+8 {
			return true
		}
		to, _ = netip.AddrFromSlice([]byte(key[:n]))
		key = key[n:]
	}
	backend, _ := netip.AddrFromSlice([]byte(el.Data[:n]))
	e := m.frontend(model.Protocol(key[0]), netip.AddrPortFrom(to, binary.BigEndian.Uint16([]byte(key[4:6]))))
	return e.Affinity > 0 && e.Serves(netip.AddrPortFrom(backend, binary.BigEndian.Uint16([]byte(el.Data[n:n+2]))))
}
