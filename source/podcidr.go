package source

import "net/netip"

// The widest networks of a node's pods. A kubelet that registers its Node may set them: 0.0.0.0/0 would draw all
// packets of all nodes, and make every source a pod.
const (
	widestPods4 = 8
	widestPods6 = 16
)

func (c *checker) podCIDR(field, s string) (netip.Prefix, bool) {
	p, ok := c.cidr(field, s)
	if !ok {
		return p, false
	}
	widest := widestPods4
	if p.Addr().Is6() {
		widest = widestPods6
	}
	a := p.Addr()
	switch {
	case p.Bits() < widest:
		c.bad(field, "%s is too wide for the pods of one node; /%d to /%d are allowed; it is not used", p, widest,
			a.BitLen())
		return p, false
	case a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified():
		c.bad(field, "%s is not a network of unicast addresses that are routed; it is not used", p)
		return p, false
	}
	return p, true
}
