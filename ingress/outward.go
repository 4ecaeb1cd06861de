package ingress

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/model"
	"wayleave.dev/proxy/reach"
)

// OutwardKinds are the kinds that Outward reads.
const OutwardKinds = model.NodeKind | model.ServiceKind | model.EndpointSliceKind

// Outward tracks the addresses that auth-url must not reach, because policies do not protect them: those of nodes, of
// the API server, and virtual addresses of Services that lead to one of these. It is not safe for concurrent use. The
// zero value is ready to use.
type Outward struct {
	// ProxyService is the Service of the proxies themselves, which may be asked.
	ProxyService model.Name

	hosts  map[netip.Addr]bool
	behind map[model.Name]*model.Service // Services that lead to hosts
	// pods and virtual are networks inside the cluster; see Cluster.
	pods    map[netip.Prefix]bool
	virtual map[model.Name][]netip.Prefix
}

// apiServer is the Service of the API server.
var apiServer = model.Name{Namespace: "default", Name: "kubernetes"}

// Refused returns the addresses after a change, sorted.
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

// Cluster returns the networks of pods, from the nodes, and of virtual addresses, sorted: the networks of 16 bits (64
// for IPv6) around all addresses of Services, because ranges may change. It belongs to the last call of Refused.
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

// around returns the network of an address that contains other addresses of Services.
func around(a netip.Addr) netip.Prefix {
	bits := 16
	if a = a.Unmap(); a.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(a, bits).Masked()
}

// start reads all objects.
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

// isAnothers reports whether another Service owns the complete address, so that the claim of this one is refused
// (service.contest): otherwise the author of a Service could block the address for everyone.
func (o *Outward) isAnothers(snap model.Snapshot, svc *model.Service, a netip.Addr) bool {
	for other := range snap.ServicesClaiming(model.Claim{Addr: a}) {
		if other.Name != svc.Name {
			return true
		}
	}
	proxies, ok := snap.Service(o.ProxyService)
	return ok && slices.Contains(proxies.LoadBalancerIPs, a) && !sharesAddress(proxies, svc)
}

// sharesAddress reports whether both Services share an address by the same key.
func sharesAddress(a, b *model.Service) bool {
	return a.LoadBalancer != nil && b.LoadBalancer != nil && a.LoadBalancer.SharingKey != "" &&
		a.LoadBalancer.SharingKey == b.LoadBalancer.SharingKey
}
