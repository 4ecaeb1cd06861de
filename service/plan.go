package service

import (
	"cmp"
	"fmt"
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

// String reads "TCP 10.96.0.1:80", or "TCP node port 30080".
func (f Frontend) String() string {
	if f.IsNodePort() {
		return fmt.Sprintf("%s node port %d", f.Protocol, f.Port)
	}
	return fmt.Sprintf("%s %s", f.Protocol, netip.AddrPortFrom(f.Addr, f.Port))
}

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
	VIPs []netip.Addr
	// Entries are sorted by frontend, each of which is there once.
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

// Slots are those of a frontend; ok is false when the plan has no such.
func (p Plan) Slots(f Frontend) (slots []netip.AddrPort, ok bool) {
	i, ok := slices.BinarySearchFunc(p.Entries, f, func(e Entry, f Frontend) int { return e.Frontend.Compare(f) })
	if !ok {
		return nil, false
	}
	return p.Entries[i].Slots, true
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
// Problems name parts that are left out.
func Make(snap model.Snapshot, key model.Name, node string) (p Plan, ok bool, problems []model.Problem) {
	svc, ok := snap.Service(key)
	if !ok || svc.Headless || svc.Type == model.ExternalName {
		return Plan{}, false, nil
	}
	p.VIPs, problems = vips(svc)
	if len(p.VIPs) == 0 {
		return Plan{}, false, problems
	}
	ends := collect(snap, svc, node)
	for _, port := range svc.Ports {
		for _, vip := range p.VIPs {
			slots := ends.slots(port, vip.Is6())
			p.Entries = append(p.Entries, Entry{Frontend{vip, port.Protocol, port.Port}, slots})
			if port.NodePort != 0 && svc.Type != model.ClusterIP {
				p.Entries = append(p.Entries, Entry{Frontend{unspecified(vip), port.Protocol, port.NodePort}, slots})
			}
		}
	}
	slices.SortStableFunc(p.Entries, func(a, b Entry) int { return a.Frontend.Compare(b.Frontend) })
	p.Entries, problems = unique(svc, p.Entries, problems)
	p.Hairpin = ends.local
	return p, true, problems
}

// vips are the service's addresses, without those that no Service can have: they
// would take packets away from the node itself, or from everybody.
func vips(svc *model.Service) (good []netip.Addr, problems []model.Problem) {
	for i, a := range svc.ClusterIPs {
		if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
			problems = append(problems, model.Problem{Kind: "Service", Object: svc.Name, Field: fmt.Sprintf("spec.clusterIPs[%d]", i),
				Reason: fmt.Sprintf("%s is not an address of a service: unspecified, loopback, link-local and multicast ones are refused", a)})
			continue
		}
		good = append(good, a)
	}
	return good, problems
}

// unique leaves the first of several entries for one frontend.
func unique(svc *model.Service, sorted []Entry, problems []model.Problem) ([]Entry, []model.Problem) {
	out := sorted[:0]
	for _, e := range sorted {
		if n := len(out); n > 0 && out[n-1].Frontend == e.Frontend {
			problems = append(problems, model.Problem{Kind: "Service", Object: svc.Name, Field: "spec.ports",
				Reason: fmt.Sprintf("%s is there twice; the first is served", e.Frontend)})
			continue
		}
		out = append(out, e)
	}
	return out, problems
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}
