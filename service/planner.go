package service

import (
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// Kinds are the kinds that plans are made from, for a reconcile.Loop.
const Kinds = model.ServiceKind | model.EndpointSliceKind | model.NodeKind | model.ServiceCIDRKind

// Planner plans Services for one node. Besides changed Services it finds the ones that a change affects: those that
// claim what a changed Service claims, or no longer claims. It must be used by one goroutine.
type Planner struct {
	// Options are those of a Service.
	Options func(model.Name) Options

	seen map[model.Name]*model.Service
	// taken are the addresses of nodes, pods, ranges and API servers in the last round.
	taken taken
}

// taken are addresses and ports that no Service can claim.
type taken struct {
	addrs []netip.Addr
	cidrs []netip.Prefix
	ports []uint16
}

func (t taken) equal(o taken) bool {
	return slices.Equal(t.addrs, o.addrs) && slices.Equal(t.cidrs, o.cidrs) && slices.Equal(t.ports, o.ports)
}

// Plan is MakeWith with the planner's options.
func (p *Planner) Plan(snap model.Snapshot, key model.Name) (Plan, bool, []model.Problem) {
	return MakeWith(snap, key, p.Options(key))
}

// Keys returns the Services to plan again, without duplicates. A change of endpoints affects only their Service.
func (p *Planner) Keys(snap model.Snapshot, c model.Changes) []model.Name {
	if p.seen == nil {
		p.seen = map[model.Name]*model.Service{}
	}
	keys, seen := make(map[model.Name]struct{}, len(c.Of(model.ServiceKind))), map[netip.Addr]bool{}
	for k := range c.Of(model.ServiceKind) {
		keys[k] = struct{}{}
		old := p.seen[k]
		now, ok := snap.Service(k)
		if ok {
			p.seen[k] = now
		} else {
			delete(p.seen, k)
		}
		if old == now {
			continue
		}
		for _, svc := range []*model.Service{old, now} {
			if svc != nil {
				addRivals(snap, svc, keys)
				addBelow(snap, svc, keys, seen)
			}
		}
	}
	if c.Any(model.NodeKind|model.ServiceCIDRKind) || c.Has(model.ServiceKind, apiService()) {
		p.look(snap, keys)
	}
	return slices.Collect(maps.Keys(keys))
}

// addRivals adds the Services that claim what the Service claims. For an external address those are the rivals for its
// ports, unless no other Service claims any port of it.
func addRivals(snap model.Snapshot, svc *model.Service, keys map[model.Name]struct{}) {
	add := func(c model.Claim) {
		for o := range snap.ServicesClaiming(c) {
			keys[o.Name] = struct{}{}
		}
	}
	svc.Claims(func(c model.Claim) {
		switch {
		case c.Balancer:
			return // see addBelow
		case c.Port != 0, !c.Outside:
			add(c)
		case svc.Name == ingressService():
			add(c)
		}
		if c.Port == 0 && !c.Outside {
			add(model.Claim{Addr: c.Addr, Outside: true})
		}
	})
}

// addBelow adds the Services that claim an address of the Service's load balancer by spec.externalIPs, at any port.
// seen prevents that an address is searched twice.
func addBelow(snap model.Snapshot, svc *model.Service, keys map[model.Name]struct{}, seen map[netip.Addr]bool) {
	for _, a := range svc.LoadBalancerIPs {
		if seen[a] {
			continue
		}
		seen[a] = true
		for o := range snap.ServicesClaiming(model.Claim{Addr: a, Outside: true}) {
			if slices.Contains(o.ExternalIPs, a) {
				keys[o.Name] = struct{}{}
			}
		}
	}
}

// look adds every Service with external claims if the addresses and ports that no Service can claim have changed.
func (p *Planner) look(snap model.Snapshot, keys map[model.Name]struct{}) {
	now := takenBy(snap)
	if now.equal(p.taken) {
		return
	}
	p.taken = now
	for s := range snap.Services() {
		nodePort := func(p model.ServicePort) bool { return p.NodePort != 0 }
		if len(s.ExternalIPs)+len(s.LoadBalancerIPs) > 0 || slices.ContainsFunc(s.Ports, nodePort) {
			keys[s.Name] = struct{}{}
		}
	}
}

func takenBy(snap model.Snapshot) (t taken) {
	for n := range snap.Nodes() {
		t.addrs = append(append(t.addrs, n.InternalIPs...), n.ExternalIPs...)
		t.cidrs = append(t.cidrs, n.PodCIDRs...)
	}
	for r := range snap.ServiceCIDRs() {
		t.cidrs = append(t.cidrs, r.CIDRs...)
	}
	for s := range snap.EndpointSlices(apiService()) {
		for _, e := range s.Endpoints {
			t.addrs = append(t.addrs, e.Addr)
		}
		for _, port := range s.Ports {
			t.ports = append(t.ports, port.Port)
		}
	}
	return t
}
