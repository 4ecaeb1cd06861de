package service

import (
	"cmp"
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// Frontend is where clients connect to.
type Frontend struct {
	// Addr is a VIP; the unspecified address of its family means: any address of
	// the node, for a node port.
	Addr     netip.Addr
	Protocol model.Protocol
	Port     uint16
}

// IsNodePort says that the frontend is a port of every node.
func (f Frontend) IsNodePort() bool { return f.Addr.IsUnspecified() }

// Compare orders frontends by address, protocol and port.
func (f Frontend) Compare(g Frontend) int {
	return cmp.Or(f.Addr.Compare(g.Addr), cmp.Compare(f.Protocol, g.Protocol), cmp.Compare(f.Port, g.Port))
}

// Entry is a frontend with its slots.
type Entry struct {
	Frontend Frontend
	// Slots are the backends, sorted, each once. Every slot gets an equal share.
	// None means that connections are refused.
	Slots []netip.AddrPort
}

// Plan is all that the data plane does for one Service.
type Plan struct {
	// VIPs are the addresses that belong to the Service alone: what comes to
	// another port of them is refused.
	VIPs    []netip.Addr
	Entries []Entry
	// Hairpin are the endpoints on this node: a connection of one of them that
	// comes back to itself needs another source address to be answered.
	Hairpin []netip.Addr
}

// Equal compares two plans.
func Equal(a, b Plan) bool {
	return slices.Equal(a.VIPs, b.VIPs) && slices.Equal(a.Hairpin, b.Hairpin) &&
		slices.EqualFunc(a.Entries, b.Entries, func(x, y Entry) bool {
			return x.Frontend == y.Frontend && slices.Equal(x.Slots, y.Slots)
		})
}

// Keys are the services that a change touches.
func Keys(_ model.Snapshot, c model.Changes) []model.Name {
	keys := make([]model.Name, 0, len(c.Services))
	for n := range c.Services {
		keys = append(keys, n)
	}
	return keys
}

// Make plans one Service for the node of that name. ok is false when the data
// plane has nothing to do for it: it is gone, headless or an ExternalName.
func Make(snap model.Snapshot, key model.Name, node string) (p Plan, ok bool, problems []model.Problem) {
	svc, ok := snap.Service(key)
	if !ok || svc.Headless || svc.Type == model.ExternalName || len(svc.ClusterIPs) == 0 {
		return Plan{}, false, nil
	}
	ends := collect(snap, svc, node)
	p.VIPs = slices.Clone(svc.ClusterIPs)
	for _, port := range svc.Ports {
		for _, vip := range svc.ClusterIPs {
			slots := ends.slots(port, vip.Is6())
			p.Entries = append(p.Entries, Entry{Frontend{vip, port.Protocol, port.Port}, slots})
			if port.NodePort != 0 && svc.Type != model.ClusterIP {
				p.Entries = append(p.Entries, Entry{Frontend{unspecified(vip), port.Protocol, port.NodePort}, slots})
			}
		}
	}
	slices.SortFunc(p.Entries, func(a, b Entry) int { return a.Frontend.Compare(b.Frontend) })
	p.Hairpin = ends.local
	return p, true, nil
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}
