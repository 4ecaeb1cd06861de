package ingress

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/model"
	"wayleave.dev/proxy/reach"
)

// OutwardKinds are what Outward is made from.
const OutwardKinds = model.NodeKind | model.ServiceKind | model.EndpointSliceKind

// Outward follows which addresses the author of an Ingress may not have asked by auth-url,
// since policies do not guard them: those of nodes, of the API server, and virtual
// addresses of Services that lead to one of these. It is for one goroutine. The zero value
// is ready.
type Outward struct {
	// ProxyService is the Service of the proxies themselves, which may be asked.
	ProxyService model.Name

	hosts  map[netip.Addr]bool
	behind map[model.Name]*model.Service // Services that lead to hosts
	// pods and virtual are networks inside of the cluster; see Cluster.
	pods    map[netip.Prefix]bool
	virtual map[model.Name][]netip.Prefix
}

// apiServer is the Service of the API server.
var apiServer = model.Name{Namespace: "default", Name: "kubernetes"}

// Refused are the addresses after a change, in order.
func (o *Outward) Refused(snap model.Snapshot, c model.Changes) []netip.Addr {
	if o.hosts == nil || c.Has(model.ServiceKind, apiServer) || c.Any(model.NodeKind) {
		o.start(snap)
	} else {
		for n := range c.Of(model.ServiceKind) {
			o.service(snap, n)
		}
	}
	set := map[netip.Addr]bool{}
	for a := range o.hosts {
		set[a] = true
	}
	for _, svc := range o.behind {
		for _, a := range svc.ClusterIPs {
			set[a] = true
		}
		for _, a := range slices.Concat(svc.ExternalIPs, svc.LoadBalancerIPs) {
			if !o.isAnothers(snap, svc, a) {
				set[a] = true
			}
		}
	}
	out := make([]netip.Addr, 0, len(set))
	for a := range set {
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Cluster are the networks of pods, as nodes have them, and of virtual addresses, in order: of
// these the networks of 16 bits (64 of IPv6) around all that Services have, since ranges may change. It
// is of the last call of Refused.
func (o *Outward) Cluster() []netip.Prefix {
	set := map[netip.Prefix]bool{}
	for n := range o.pods {
		set[n] = true
	}
	for _, list := range o.virtual {
		for _, n := range list {
			set[n] = true
		}
	}
	return slices.SortedFunc(maps.Keys(set), func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
}

// around is the network of an address in which there are others of Services.
func around(a netip.Addr) netip.Prefix {
	bits := 16
	if a = a.Unmap(); a.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(a, bits).Masked()
}

// start reads all.
func (o *Outward) start(snap model.Snapshot) {
	o.hosts, o.behind = map[netip.Addr]bool{}, map[model.Name]*model.Service{}
	o.pods, o.virtual = map[netip.Prefix]bool{}, map[model.Name][]netip.Prefix{}
	for n := range snap.Nodes() {
		for _, c := range n.PodCIDRs {
			if c.IsValid() {
				o.pods[c.Masked()] = true
			}
		}
		for _, a := range slices.Concat(n.InternalIPs, n.ExternalIPs, n.ProxyAddrs()) {
			o.hosts[a.Unmap()] = true
		}
	}
	for s := range snap.EndpointSlices(apiServer) {
		for _, e := range s.Endpoints {
			o.hosts[e.Addr.Unmap()] = true
		}
	}
	for s := range snap.Services() {
		o.service(snap, s.Name)
	}
}

// service reads one Service.
func (o *Outward) service(snap model.Snapshot, n model.Name) {
	delete(o.behind, n)
	delete(o.virtual, n)
	svc, ok := snap.Service(n)
	if !ok {
		return
	}
	for _, a := range svc.ClusterIPs {
		if c := around(a); !slices.Contains(o.virtual[n], c) {
			o.virtual[n] = append(o.virtual[n], c)
		}
	}
	if n == o.ProxyService {
		return
	}
	for s := range snap.EndpointSlices(n) {
		for _, e := range s.Endpoints {
			if o.hosts[e.Addr.Unmap()] || reach.Special(e.Addr) != "" {
				o.behind[n] = svc
				return
			}
		}
	}
}

// isAnothers says whether another Service has the address whole, so that the claim of this one is
// refused (service.contest): else the author of a Service could keep everybody from asking there.
func (o *Outward) isAnothers(snap model.Snapshot, svc *model.Service, a netip.Addr) bool {
	for other := range snap.ServicesClaiming(model.Claim{Addr: a}) {
		if other.Name != svc.Name {
			return true
		}
	}
	proxies, ok := snap.Service(o.ProxyService)
	return ok && slices.Contains(proxies.LoadBalancerIPs, a) && !sharesAddress(proxies, svc)
}

// sharesAddress says whether both Services ask to share an address, by the same key.
func sharesAddress(a, b *model.Service) bool {
	return a.LoadBalancer != nil && b.LoadBalancer != nil && a.LoadBalancer.SharingKey != "" &&
		a.LoadBalancer.SharingKey == b.LoadBalancer.SharingKey
}
