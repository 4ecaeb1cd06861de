package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// Options are the inputs of a plan that are not API objects.
type Options struct {
	// Node is the name of the node; empty for none.
	Node string
	// PreferRemote applies to a Service that the node serves locally for as long as it can, such as DNS: the node's own
	// endpoint is left out of the slots for the cluster, so that clients are sent to another node's endpoint. If there
	// is no other endpoint, it stays.
	PreferRemote bool
	// NoExternalIPs refuses spec.externalIPs of every Service.
	NoExternalIPs bool
	// Reserved are ports of programs on the nodes, which must not be node ports.
	Reserved model.Reserved
}

// class ranks claims: the claim of a lower class wins, whatever the age of its Service.
type class uint8

const (
	classClusterIP class = iota // assigned by the API server, each once
	classBalancer               // written by accounts that may write services/status
	classExternal               // written by accounts that may write Services
)

// String returns the field of the class.
func (c class) String() string {
	return [...]string{"spec.clusterIPs", "status.loadBalancer.ingress", "spec.externalIPs"}[c]
}

// isServed reports whether the data plane serves the Service. Only then do its claims compete with those of other
// Services.
func isServed(svc *model.Service) bool {
	return !svc.Headless && svc.Type != model.ExternalName && !svc.OtherProxy && len(svc.ClusterIPs) > 0
}

// classOf returns the best class by which a Service claims an address. Addresses of a family that the Service lacks are
// not claims.
func classOf(svc *model.Service, a netip.Addr) (c class, ok bool) {
	sameFamily := func(v netip.Addr) bool { return v.Is6() == a.Is6() }
	switch {
	case slices.Contains(svc.ClusterIPs, a):
		return classClusterIP, true
	case !slices.ContainsFunc(svc.ClusterIPs, sameFamily):
		return 0, false
	case slices.Contains(svc.LoadBalancerIPs, a):
		return classBalancer, true
	case slices.Contains(svc.ExternalIPs, a):
		return classExternal, true
	}
	return 0, false
}

// olderFirst orders Services whose claims are of one class: by age, then by namespace and name. The order does not
// depend on what a node has seen before.
func olderFirst(a, b *model.Service) int {
	return cmp.Or(a.Created.Compare(b.Created), a.Name.Compare(b.Name))
}

// contest decides which claims of one Service are granted, from the snapshot alone. Every node, mode and start
// therefore decides the same.
type contest struct {
	snap model.Snapshot
	svc  *model.Service
	opt  Options
}

// clusterIP returns the owner of one of the Service's ClusterIPs; nil if that is the Service itself. The API server
// assigns each address once; manifests may not.
func (c contest) clusterIP(a netip.Addr) *model.Service {
	for o := range c.snap.ServicesClaiming(model.Claim{Addr: a}) {
		if o.Name != c.svc.Name && isServed(o) && slices.Contains(o.ClusterIPs, a) && olderFirst(o, c.svc) < 0 {
			return o
		}
	}
	return nil
}

// nodePort returns the owner of a node port; nil if that is the Service itself.
func (c contest) nodePort(p model.Protocol, port uint16) *model.Service {
	for o := range c.snap.ServicesClaiming(model.Claim{Protocol: p, Port: port}) {
		if o.Name != c.svc.Name && isServed(o) && o.Type != model.ClusterIP && olderFirst(o, c.svc) < 0 {
			return o
		}
	}
	return nil
}

// port returns the owner of a port of an external address that the Service claims by the class; nil if that is the
// Service itself.
func (c contest) port(a netip.Addr, p model.ServicePort, mine class) *model.Service {
	for o := range c.snap.ServicesClaiming(model.Claim{Addr: a, Outside: true, Protocol: p.Protocol, Port: p.Port}) {
		if o.Name == c.svc.Name || !isServed(o) {
			continue
		}
		theirs, ok := classOf(o, a)
		if !ok || theirs == classExternal && (c.opt.NoExternalIPs || contest{c.snap, o, c.opt}.balancer(a) != nil) {
			continue
		}
		if cmp.Or(cmp.Compare(theirs, mine), olderFirst(o, c.svc)) < 0 {
			return o
		}
	}
	return nil
}

// address returns why the Service cannot have the address for external clients; empty if it can.
func (c contest) address(a netip.Addr) string {
	if why := notGlobal(a); why != "" {
		return why
	}
	for o := range c.snap.ServicesClaiming(model.Claim{Addr: a}) {
		if o.Name != c.svc.Name {
			return fmt.Sprintf("%s is the ClusterIP of service %s", a, o.Name)
		}
	}
	o, ok := c.snap.Service(ingressService())
	if ok && o.Name != c.svc.Name && slices.Contains(o.LoadBalancerIPs, a) && !shares(o, c.svc) {
		return fmt.Sprintf("%s is the address of service %s", a, o.Name)
	}
	for r := range c.snap.ServiceCIDRs() {
		for _, p := range r.CIDRs {
			if p.Contains(a) && !slices.Contains(c.svc.ClusterIPs, a) {
				return fmt.Sprintf("%s is in the range of ClusterIPs (ServiceCIDR %s, %s)", a, r.Name, p)
			}
		}
	}
	if why := c.ofNodes(a); why != "" {
		return why
	}
	for s := range c.snap.EndpointSlices(apiService()) {
		if slices.ContainsFunc(s.Endpoints, func(e model.Endpoint) bool { return e.Addr == a }) {
			return fmt.Sprintf("%s is an address of the API server", a)
		}
	}
	return ""
}

// ofNodes reports whether the address belongs to a node or to a node's pods, and to which.
func (c contest) ofNodes(a netip.Addr) string {
	for n := range c.snap.Nodes() {
		if slices.Contains(n.InternalIPs, a) || slices.Contains(n.ExternalIPs, a) {
			return fmt.Sprintf("%s is an address of node %s", a, n.Name)
		}
		for _, p := range n.PodCIDRs {
			if p.Contains(a) {
				return fmt.Sprintf("%s is in the pod network of node %s (%s)", a, n.Name, p)
			}
		}
	}
	return ""
}

// balancer returns the Service of another namespace to which a load balancer assigned the address; nil for none. That
// Service owns all ports of the address, since its clients trust the address as a whole. Other ports are open by
// spec.externalIPs only to Services of its namespace and to those with the same sharing key.
func (c contest) balancer(a netip.Addr) *model.Service {
	for o := range c.snap.ServicesClaiming(model.Claim{Addr: a, Balancer: true}) {
		if o.Name.Namespace != c.svc.Name.Namespace && isServed(o) && !shares(o, c.svc) {
			return o
		}
	}
	return nil
}

// reserved returns the name of the node's program that has the port; empty for none.
func (c contest) reserved(p model.Protocol, port uint16) string {
	if c.svc.Name == apiService() {
		return ""
	}
	return c.opt.Reserved.Port(c.snap, p, port)
}

// shares reports whether both Services request address sharing with the same key.
func shares(a, b *model.Service) bool {
	return a.LoadBalancer != nil && b.LoadBalancer != nil && a.LoadBalancer.SharingKey != "" &&
		a.LoadBalancer.SharingKey == b.LoadBalancer.SharingKey
}

// apiService is the Service of the API server.
func apiService() model.Name { return model.APIService() }

// ingressService is the Service of the ingress proxies.
func ingressService() model.Name {
	return model.Name{Namespace: "kube-system", Name: "wayleave-ingress"}
}

// notGlobal returns why no Service can have the address: it would divert packets from the node itself, or from all
// clients. It is empty for all other addresses.
func notGlobal(a netip.Addr) string {
	switch {
	case !a.IsValid(), a.IsUnspecified(), a.IsLoopback(), a.IsLinkLocalUnicast(), a.IsMulticast():
		const refused = "unspecified, loopback, link-local and multicast ones are refused"
		return fmt.Sprintf("%s is not an address of a service: %s", a, refused)
	case a.Is4In6():
		return fmt.Sprintf("%s is an IPv4 address in IPv6 form; write %s", a, a.Unmap())
	case a.Is4() && (a.As4()[0] == 0 || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})):
		return fmt.Sprintf("%s is not an address of a service: 0.0.0.0/8 and broadcast are refused", a)
	}
	return ""
}
