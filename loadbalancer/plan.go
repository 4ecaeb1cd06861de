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
	// Interfaces are globs of interfaces; empty means those with an InternalIP of the node.
	Interfaces []string
	// Eligible are the names of the candidate nodes, sorted.
	Eligible []string
}

func (v VIP) equal(o VIP) bool {
	return v.Addr == o.Addr && slices.Equal(v.Interfaces, o.Interfaces) && slices.Equal(v.Eligible, o.Eligible)
}

// Announcement lists the addresses of one Service to announce, sorted.
type Announcement struct {
	VIPs []VIP
	// Unclassed is true for a Service without a loadBalancerClass: the cluster's choice of a load balancer decides
	// whether Wayleave answers for it.
	Unclassed bool
}

// Equal compares two.
func Equal(a, b Announcement) bool {
	return a.Unclassed == b.Unclassed && slices.EqualFunc(a.VIPs, b.VIPs, VIP.equal)
}

// Kinds are the kinds that Plan reads, for a reconcile.Loop.
const Kinds = model.ServiceKind | model.EndpointSliceKind | model.NodeKind | model.AddressPoolKind

// Keys returns the Services that a change concerns; for a change of nodes or pools, all that have an address.
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

// Plan returns what to announce for a Service: the addresses in its status with ipMode VIP, in pools with l2.enabled.
// byDefault is the setting loadbalancer.default. ok is false if there is nothing.
func Plan(byDefault bool) func(model.Snapshot, model.Name) (Announcement, bool, []model.Problem) {
	owner := Allocator{Default: byDefault}
	return func(snap model.Snapshot, key model.Name) (Announcement, bool, []model.Problem) {
		svc, ok := snap.Service(key)
		if !ok || !owner.Ours(svc) || len(svc.LoadBalancerIPs) == 0 {
			return Announcement{}, false, nil
		}
		out := Announcement{Unclassed: svc.LoadBalancer.Class == ""}
		var problems []model.Problem
		for _, addr := range svc.LoadBalancerIPs {
			p := PoolOf(snap, addr)
			if p == nil || !p.L2.Enabled {
				continue // the allocator reports addresses outside of pools
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

// PoolOf returns the pool of an address: if several contain it, the oldest, as in the allocator.
func PoolOf(snap model.Snapshot, addr netip.Addr) (best *model.AddressPool) {
	for p := range snap.AddressPools() {
		if p.Contains(addr) && (best == nil || p.Before(best)) {
			best = p
		}
	}
	return best
}

// eligible returns the candidate nodes of a Service, sorted.
func eligible(snap model.Snapshot, svc *model.Service, p *model.AddressPool) []string {
	var local map[string]bool
	if svc.ExternalLocal {
		local = WithEndpoints(snap, svc)
	}
	var out []string
	honors := snap.HonorsExclusion()
	for n := range snap.Nodes() { // in order of names
		if n.Leaving || honors && n.Excluded || !p.L2.Nodes.Matches(n.Labels) || svc.ExternalLocal && !local[n.Name] {
			continue
		}
		out = append(out, n.Name)
	}
	return out
}

// WithEndpoints returns the nodes with a ready endpoint of the Service; if there is none anywhere, those with a
// terminating endpoint that still serves (KEP-1669).
func WithEndpoints(snap model.Snapshot, svc *model.Service) map[string]bool {
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

// Combine merges the announcements of all Services. A shared address is listed once, and its candidates are the nodes
// that may answer for all of its Services, because one node answers for it. (If there is no such node, the first
// Service by name decides.)
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
