// Package apiaddr parses IP addresses and CIDRs of API objects as Kubernetes' own components do: with k8s.io/utils/net,
// which is less strict than net/netip. Objects that were stored before API servers validated strictly still contain
// such text, and kube-proxy serves it.
//
// Invariants:
//   - What net/netip accepts without a zone, this package parses alike.
//   - An IPv4 address in IPv6 form (::ffff:192.0.2.1) is the IPv4 address, so one address
//     has one value.
package apiaddr

import (
	"fmt"
	"net/netip"
	"strings"

	netutils "k8s.io/utils/net"
)

// ParseAddr parses an address. Numbers may have leading zeros and are decimal: 192.000.002.010 is 192.0.2.10. Zones are
// refused.
func ParseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err == nil && a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%q has a zone, which is not allowed", s)
	case err == nil:
		return a.Unmap(), nil
	}
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(s))
	if !ok {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", s)
	}
	return a.Unmap(), nil
}

// ParsePrefix parses a CIDR. Its address keeps the host bits: use Masked if they have no meaning. A CIDR of IPv4
// addresses in IPv6 form becomes one of IPv4; one that is wider than all IPv4 addresses is refused.
func ParsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err == nil && !p.Addr().Is4In6() {
		return p, nil
	}
	// The mask is that of the text: ::ffff:192.0.2.0/120 has 128 bits.
	text, _, _ := strings.Cut(s, "/")
	_, n, err := netutils.ParseCIDRSloppy(s)
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(text))
	if err != nil || !ok {
		return netip.Prefix{}, fmt.Errorf("%q is not a CIDR", s)
	}
	bits, of := n.Mask.Size()
	if a = a.Unmap(); a.Is4() {
		bits -= of - a.BitLen()
	}
	if bits < 0 {
		return netip.Prefix{}, fmt.Errorf("%q has IPv4 addresses in IPv6 form and others", s)
	}
	return netip.PrefixFrom(a, bits), nil
}
