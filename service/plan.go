package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

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

// Entry is a frontend with its slots. Every slot gets an equal share.
type Entry struct {
	Frontend Frontend
	// Port is the name of the Service's port, empty for the only one.
	Port string
	// Slots are the backends, sorted, each once. They serve everybody, or with Split
	// the clients in the cluster: pods and processes of this node.
	Slots []netip.AddrPort
	// Outside are the backends for all others, with Split: those on this node.
	Outside []netip.AddrPort
	// External says that the frontend is meant for clients outside (a node port, an
	// external IP, an address of a load balancer). They get the node's address as
	// source, unless Split, which is externalTrafficPolicy Local.
	External, Split bool
	// Local says that the slots are those on this node: internalTrafficPolicy Local.
	Local bool
	// Balancer says that the frontend is an address of a load balancer.
	Balancer bool
	// Drop says that clients without a slot are not refused: there are endpoints, but
	// by a traffic policy not here.
	Drop bool
	// Affinity is how long a client keeps its slot; 0 is none.
	Affinity time.Duration
	// Sources limit who may connect; empty for everybody.
	Sources []netip.Prefix
}

// Serves says whether somebody is sent to that backend.
func (e Entry) Serves(b netip.AddrPort) bool {
	return slices.Contains(e.Slots, b) || slices.Contains(e.Outside, b)
}

func (e Entry) equal(o Entry) bool {
	return e.Frontend == o.Frontend && e.Port == o.Port && e.Local == o.Local && e.Balancer == o.Balancer && e.External == o.External && e.Split == o.Split && e.Drop == o.Drop && e.Affinity == o.Affinity &&
		slices.Equal(e.Slots, o.Slots) && slices.Equal(e.Outside, o.Outside) && slices.Equal(e.Sources, o.Sources)
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
	// HealthCheck is the port of every node where balancers ask whether it has
	// endpoints, 0 when there is none. The answer is not the data plane's; a mode in
	// which the node's firewall is lets the question in.
	HealthCheck uint16
}

// Equal compares two plans.
func Equal(a, b Plan) bool {
	return a.HealthCheck == b.HealthCheck && slices.Equal(a.VIPs, b.VIPs) && slices.Equal(a.Hairpin, b.Hairpin) &&
		slices.EqualFunc(a.Entries, b.Entries, Entry.equal)
}

// Entry is that of a frontend; ok is false when the plan has no such.
func (p Plan) Entry(f Frontend) (e Entry, ok bool) {
	i, ok := slices.BinarySearchFunc(p.Entries, f, func(e Entry, f Frontend) int { return e.Frontend.Compare(f) })
	if !ok {
		return Entry{}, false
	}
	return p.Entries[i], true
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
// plane has nothing to do for it: it is gone, headless, an ExternalName or somebody
// else's.
// Problems name parts that are left out.
func Make(snap model.Snapshot, key model.Name, node string) (p Plan, ok bool, problems []model.Problem) {
	return plan(snap, key, node, false)
}

// MakeElsewhere is Make for a Service that the node serves by itself for as long as it
// can: its own endpoint is not among the slots for the cluster, so that clients are sent
// to another node's. Where there is no other, it stays.
func MakeElsewhere(snap model.Snapshot, key model.Name, node string) (p Plan, ok bool, problems []model.Problem) {
	return plan(snap, key, node, true)
}

func plan(snap model.Snapshot, key model.Name, node string, elsewhere bool) (p Plan, ok bool, problems []model.Problem) {
	svc, ok := snap.Service(key)
	if !ok || svc.Headless || svc.Type == model.ExternalName || svc.OtherProxy {
		return Plan{}, false, nil
	}
	p.VIPs, problems = vips(svc)
	if len(p.VIPs) == 0 {
		return Plan{}, false, problems
	}
	self, _ := snap.Node(node)
	ends := collect(snap, svc, node, self, elsewhere)
	for _, port := range svc.Ports {
		for _, vip := range p.VIPs {
			p.Entries = append(p.Entries, ends.internal(svc, port, vip))
			if port.NodePort != 0 && svc.Type != model.ClusterIP {
				p.Entries = append(p.Entries, ends.external(svc, port, unspecified(vip), port.NodePort))
			}
		}
	}
	problems = append(problems, p.addExternal(svc, ends, self)...)
	slices.SortStableFunc(p.Entries, func(a, b Entry) int { return a.Frontend.Compare(b.Frontend) })
	p.Entries, problems = unique(svc, p.Entries, problems)
	p.Hairpin, p.HealthCheck = ends.local, svc.HealthCheckPort
	return p, true, problems
}

// addExternal adds the addresses that clients outside use.
func (p *Plan) addExternal(svc *model.Service, ends endpoints, self *model.Node) (problems []model.Problem) {
	add := func(field string, addrs []netip.Addr, sources []netip.Prefix, balancer bool) {
		for i, a := range addrs {
			if !slices.ContainsFunc(p.VIPs, func(v netip.Addr) bool { return v.Is6() == a.Is6() }) {
				problems = append(problems, model.Problem{Kind: "Service", Object: svc.Name, Field: fmt.Sprintf(field, i),
					Reason: fmt.Sprintf("%s is not of a family of the service (spec.ipFamilies)", a)})
				continue
			}
			for _, port := range svc.Ports {
				e := ends.external(svc, port, a, port.Port)
				e.Sources, e.Balancer = allowed(sources, a, self), balancer
				p.Entries = append(p.Entries, e)
			}
		}
	}
	add("status.loadBalancer.ingress[%d].ip", svc.LoadBalancerIPs, svc.SourceRanges, true)
	add("spec.externalIPs[%d]", svc.ExternalIPs, nil, false)
	return problems
}

// allowed are the ranges of the address's family; none lets everybody in. A node that
// is in one may use the address as its own, too: where the address is one of the
// node's, the kernel takes it as source.
func allowed(ranges []netip.Prefix, to netip.Addr, self *model.Node) (out []netip.Prefix) {
	for _, r := range ranges {
		if r.Addr().Is6() != to.Is6() {
			continue
		}
		if r.Bits() == 0 {
			return nil
		}
		out = append(out, r)
	}
	own := func(r netip.Prefix) bool { return self != nil && slices.ContainsFunc(self.InternalIPs, r.Contains) }
	if slices.ContainsFunc(out, own) {
		out = append(out, netip.PrefixFrom(to, to.BitLen()))
	}
	return out
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
