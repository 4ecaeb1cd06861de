package model

import "net/netip"

// ProxyAddrs are the addresses that the ingress proxy of a node sends from: one of each
// of its pod networks that has room for it, see ProxyAddr. Every agent finds those of
// every node so, and nobody has to be told.
func (n *Node) ProxyAddrs() (out []netip.Addr) {
	for _, p := range n.PodCIDRs {
		if a, ok := ProxyAddr(p); ok {
			out = append(out, a)
		}
	}
	return out
}

// ProxyAddr is the address of a pod network that no pod gets, since it is the ingress
// proxy's: the last but IPv4's broadcast address, of the first 65,536 in a large network.
// A network of fewer than 8 addresses has none.
func ProxyAddr(p netip.Prefix) (a netip.Addr, ok bool) {
	p = p.Masked()
	host := min(p.Addr().BitLen()-p.Bits(), 16)
	if !p.IsValid() || host < 3 {
		return netip.Addr{}, false
	}
	raw := p.Addr().AsSlice()
	for i := range host {
		raw[len(raw)-1-i/8] |= 1 << (i % 8)
	}
	a, _ = netip.AddrFromSlice(raw)
	if a.Is4() {
		a = a.Prev()
	}
	return a, true
}
