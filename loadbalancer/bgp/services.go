package bgp

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/loadbalancer"
	"wayleave.dev/model"
)

// addresses returns the addresses of Services that this node announces for an advertisement: none while it drains. An
// address that several Services share is announced if all of them can be served here.
func (p *planner) addresses(a *model.BGPAdvertisement) []netip.Addr {
	if p.me.Leaving || p.me.Excluded && p.snap.HonorsExclusion() {
		return nil
	}
	found, elsewhere := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	add := func(addr netip.Addr, svc *model.Service) {
		if pool := loadbalancer.PoolOf(p.snap, addr); pool != nil && pool.BGP && a.Covers(pool) {
			found[addr] = true
			elsewhere[addr] = elsewhere[addr] || svc.ExternalLocal && !p.servedHere(svc)
		}
	}
	for svc := range p.snap.Services() {
		if svc.OtherProxy || !p.selects(a, svc) {
			continue
		}
		if a.Addresses&model.AnnounceLoadBalancerIPs != 0 && p.ours(svc) {
			for _, addr := range svc.LoadBalancerIPs {
				add(addr, svc)
			}
		}
		if a.Addresses&model.AnnounceClusterIPs != 0 && (!svc.InternalLocal || p.servedHere(svc)) {
			for _, addr := range svc.ClusterIPs {
				found[addr] = true
			}
		}
	}
	if a.Addresses&model.AnnounceExternalIPs != 0 && p.ExternalIPs {
		for addr, svc := range p.externalIPs() {
			if p.selects(a, svc) {
				add(addr, svc)
			}
		}
	}
	maps.DeleteFunc(found, func(addr netip.Addr, _ bool) bool { return elsewhere[addr] })
	return slices.SortedFunc(maps.Keys(found), netip.Addr.Compare)
}

// externalIPs returns spec.externalIPs with the Service that decides where each is announced: the oldest. Whoever
// writes Services chooses these addresses, so a balancer's address is left out: no other Service takes it from a node.
func (p *planner) externalIPs() map[netip.Addr]*model.Service {
	owners, balanced := map[netip.Addr]*model.Service{}, map[netip.Addr]bool{}
	for svc := range p.snap.Services() {
		for _, addr := range svc.LoadBalancerIPs {
			balanced[addr] = true
		}
		if svc.OtherProxy {
			continue
		}
		for _, addr := range svc.ExternalIPs {
			if o := owners[addr]; o == nil || cmp.Or(svc.Created.Compare(o.Created), svc.Name.Compare(o.Name)) < 0 {
				owners[addr] = svc
			}
		}
	}
	maps.DeleteFunc(owners, func(addr netip.Addr, _ *model.Service) bool { return balanced[addr] })
	return owners
}

func (p *planner) selects(a *model.BGPAdvertisement, svc *model.Service) bool {
	// The model has the labels of Services of type LoadBalancer only.
	everything := !a.Services.Nothing && len(a.Services.Requirements) == 0
	if !everything && (svc.LoadBalancer == nil || !a.Services.Matches(svc.LoadBalancer.Labels)) {
		return false
	}
	ns, ok := p.snap.Namespace(svc.Name.Namespace)
	var labels map[string]string
	if ok {
		labels = ns.Labels
	}
	return a.Namespaces.Matches(labels)
}

// ours says whether the load balancer of this program serves the Service.
func (p *planner) ours(svc *model.Service) bool {
	owner := loadbalancer.Allocator{Default: p.Balancer}
	return p.Balanced && owner.Ours(svc)
}

// servedHere says whether this node has an endpoint of the Service.
func (p *planner) servedHere(svc *model.Service) bool {
	return loadbalancer.WithEndpoints(p.snap, svc)[p.Node]
}
