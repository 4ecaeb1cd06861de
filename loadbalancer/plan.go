package loadbalancer

import (
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// VIP is an address that one node must answer for.
type VIP struct {
	Addr netip.Addr
	// Interfaces are globs of those to answer on; empty is those that have an
	// InternalIP of the node.
	Interfaces []string
	// Eligible are the names of the nodes that may answer, sorted.
	Eligible []string
}

func (v VIP) equal(o VIP) bool {
	return v.Addr == o.Addr && slices.Equal(v.Interfaces, o.Interfaces) && slices.Equal(v.Eligible, o.Eligible)
}

// Announcement is what is to be answered for one Service, its VIPs sorted by address.
type Announcement struct{ VIPs []VIP }

// Equal compares two.
func Equal(a, b Announcement) bool { return slices.EqualFunc(a.VIPs, b.VIPs, VIP.equal) }

// Kinds are what Plan reads, for a reconcile.Loop.
const Kinds = model.ServiceKind | model.EndpointSliceKind | model.NodeKind | model.AddressPoolKind

// Keys are the Services that a change touches: by a change of nodes or pools, all that
// have an address.
func Keys(snap model.Snapshot, c model.Changes) []model.Name {
	keys := maps.Clone(c.Of(model.ServiceKind))
	if keys == nil {
		keys = map[model.Name]struct{}{}
	}
	if c.Any(model.NodeKind | model.AddressPoolKind) {
		for s := range snap.Services() {
			if s.LoadBalancer != nil && len(s.LoadBalancer.Given) > 0 {
				keys[s.Name] = struct{}{}
			}
		}
	}
	return slices.Collect(maps.Keys(keys))
}

// Plan says what is to be answered for a Service: the addresses that it has by its status,
// ipMode VIP, in pools with l2.enabled. byDefault is the setting loadbalancer.default. ok
// is false when there is none.
func Plan(byDefault bool) func(model.Snapshot, model.Name) (Announcement, bool, []model.Problem) {
	owner := Allocator{Default: byDefault}
	return func(snap model.Snapshot, key model.Name) (Announcement, bool, []model.Problem) {
		svc, ok := snap.Service(key)
		if !ok || !owner.Ours(svc) || len(svc.LoadBalancerIPs) == 0 {
			return Announcement{}, false, nil
		}
		var out Announcement
		var problems []model.Problem
		for _, addr := range svc.LoadBalancerIPs {
			p := poolOf(snap, addr)
			if p == nil || !p.L2.Enabled {
				continue // the allocator tells of addresses outside of pools
			}
			v := VIP{Addr: addr, Interfaces: p.L2.Interfaces, Eligible: eligible(snap, svc, p)}
			if len(v.Eligible) == 0 && !svc.ExternalLocal {
				problems = append(problems, model.Problem{Kind: "Service", Object: key, Field: statusField,
					Reason: addr.String() + " is answered by no node: AddressPool " + p.Name +
						"'s spec.l2.nodeSelector selects none, or those that it selects are excluded from " +
						"load balancers"})
			}
			out.VIPs = append(out.VIPs, v)
		}
		slices.SortFunc(out.VIPs, func(a, b VIP) int { return a.Addr.Compare(b.Addr) })
		out.VIPs = slices.CompactFunc(out.VIPs, func(a, b VIP) bool { return a.Addr == b.Addr })
		return out, len(out.VIPs) > 0, problems
	}
}

// poolOf is the pool of an address: of those that overlap the one that was there first, as
// the allocator has it.
func poolOf(snap model.Snapshot, addr netip.Addr) (best *model.AddressPool) {
	for p := range snap.AddressPools() {
		if p.Contains(addr) && (best == nil || p.Before(best)) {
			best = p
		}
	}
	return best
}

// eligible are the nodes that may answer for a Service, sorted.
func eligible(snap model.Snapshot, svc *model.Service, p *model.AddressPool) []string {
	var local map[string]bool
	if svc.ExternalLocal {
		local = withEndpoints(snap, svc)
	}
	var out []string
	for n := range snap.Nodes() { // in order of names
		if n.Leaving || n.Excluded || !p.L2.Nodes.Matches(n.Labels) || svc.ExternalLocal && !local[n.Name] {
			continue
		}
		out = append(out, n.Name)
	}
	return out
}

// withEndpoints are the nodes that have a ready endpoint of the Service; when there is
// none anywhere, those with one that terminates but still serves (KEP-1669).
func withEndpoints(snap model.Snapshot, svc *model.Service) map[string]bool {
	ready, serving := map[string]bool{}, map[string]bool{}
	for slice := range snap.EndpointSlices(svc.Name) {
		if slice.NotProxied { // no node sends packets there
			continue
		}
		for _, e := range slice.Endpoints {
			switch {
			case e.Ready || svc.PublishNotReady:
				ready[e.Node] = true
			case e.Serving && e.Terminating:
				serving[e.Node] = true
			}
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return serving
}

// Combine makes one list of the announcements of all Services. An address that several
// share is there once, and only nodes that may answer for all of them are eligible, since
// one node answers for it. (When that leaves nobody, the first Service by name decides.)
func Combine(plans map[model.Name]Announcement) []VIP {
	by := map[netip.Addr]VIP{}
	for _, name := range slices.SortedFunc(maps.Keys(plans), model.Name.Compare) {
		for _, v := range plans[name].VIPs {
			have, ok := by[v.Addr]
			if !ok {
				by[v.Addr] = v
				continue
			}
			both := slices.DeleteFunc(slices.Clone(have.Eligible),
				func(n string) bool { return !slices.Contains(v.Eligible, n) })
			switch {
			case len(both) > 0:
				have.Eligible = both
			case len(have.Eligible) == 0:
				have.Eligible = v.Eligible
			}
			by[v.Addr] = have
		}
	}
	return slices.SortedFunc(maps.Values(by), func(a, b VIP) int { return a.Addr.Compare(b.Addr) })
}
