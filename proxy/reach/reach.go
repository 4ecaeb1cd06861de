// Package reach decides which addresses the proxy may connect to at the request of an object's author.
//
// Invariants:
//   - An address is checked when a connection is opened, after names have been resolved: a
//     name that resolves differently by then is checked again.
//   - An IPv6 address that contains an IPv4 address is checked as both.
//   - The zero Policy refuses Special addresses and those of this machine.
package reach

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// metadata are services of clouds for machines: credentials, user data, DNS.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud
	netip.MustParsePrefix("fd00:ec2::/32"),      // AWS
	netip.MustParsePrefix("fd20:ce::254/128"),   // Google Cloud
}

// thisNetwork is 0.0.0.0/8 (RFC 1122, 3.2.1.3); Linux treats 0.0.0.0 as loopback.
var thisNetwork = netip.MustParsePrefix("0.0.0.0/8")

// Special describes an address that no Service or server of a tenant has: loopback, link-local, multicast, unspecified,
// broadcast and metadata services. It is empty for other addresses.
func Special(a netip.Addr) string {
	if !a.IsValid() {
		return "no address"
	}
	for _, a := range forms(a) {
		switch {
		case a.IsUnspecified() || thisNetwork.Contains(a):
			return "an unspecified address"
		case a.IsLoopback():
			return "a loopback address"
		case a.IsLinkLocalUnicast():
			return "a link-local address"
		case a.IsMulticast():
			return "a multicast address"
		case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			return "the broadcast address"
		case in(metadata, a):
			return "the address of a cloud's metadata service"
		}
	}
	return ""
}

// Prefixes whose last or next 32 bits are an IPv4 address: IPv4-compatible (RFC 4291,
// 2.5.5.1), translated (RFC 2765), NAT64 (RFC 6052, RFC 8215) and 6to4 (RFC 3056).
var (
	carriers = []netip.Prefix{netip.MustParsePrefix("::/96"), netip.MustParsePrefix("::ffff:0:0:0/96"),
		netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48")}
	sixToFour = netip.MustParsePrefix("2002::/16")
)

// forms returns the address without zone, and the IPv4 address in it.
func forms(a netip.Addr) []netip.Addr {
	a = a.WithZone("").Unmap()
	out := []netip.Addr{a}
	if !a.Is6() || a == netip.IPv6Loopback() {
		return out
	}
	b := a.As16()
	switch {
	case in(carriers, a):
		out = append(out, netip.AddrFrom4([4]byte(b[12:])))
	case sixToFour.Contains(a):
		out = append(out, netip.AddrFrom4([4]byte(b[2:6])))
	}
	return out
}

func in(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Policy restricts the addresses of authentication servers. It must not be changed once it is in use; its methods may
// be called concurrently.
type Policy struct {
	// Allowed are always permitted.
	Allowed []netip.Prefix
	// Refused are addresses of nodes and of the API server, and virtual ones that lead there.
	Refused []netip.Addr
	// Cluster are the networks of pods and of virtual addresses of Services; see CheckOutside.
	Cluster []netip.Prefix

	once    sync.Once
	refused map[netip.Addr]bool
	own     machine
}

// Check returns an error that explains why an address is refused.
func (p *Policy) Check(a netip.Addr) error {
	if !a.IsValid() {
		return fmt.Errorf("%s is not an address", a)
	}
	all := forms(a)
	if in(p.Allowed, all[0]) {
		return nil
	}
	what := Special(a)
	p.once.Do(func() {
		p.refused = make(map[netip.Addr]bool, len(p.Refused))
		for _, r := range p.Refused {
			p.refused[r.WithZone("").Unmap()] = true
		}
	})
	for _, f := range all {
		if what == "" && p.refused[f] {
			what = "an address of a node or of the API server"
		}
	}
	if what == "" {
		own, err := p.own.addresses()
		if err != nil {
			return fmt.Errorf("%s: cannot list the addresses of this node: %w", a, err)
		}
		for _, f := range all {
			if own[f] {
				what = "an address of this node"
			}
		}
	}
	if what == "" {
		return nil
	}
	return fmt.Errorf("%s is %s; only ingress.authURLNetworks can allow that", a, what)
}

// CheckOutside returns an error for an address inside of the cluster, which Check may allow: one in Cluster, or one for
// which isInside returns true.
func (p *Policy) CheckOutside(a netip.Addr, isInside bool) error {
	all := forms(a)
	if in(p.Allowed, all[0]) {
		return nil
	}
	for _, f := range all {
		if isInside || in(p.Cluster, f) {
			return fmt.Errorf("%s is an address of a pod or a Service; only ingress.authURLNetworks can allow that", a)
		}
	}
	return nil
}

// fresh is how long the addresses are cached: reading them makes the kernel walk all interfaces.
const fresh = 2 * time.Second

// machine caches the addresses of this machine for a short time.
type machine struct {
	mu   sync.Mutex
	read time.Time
	set  map[netip.Addr]bool
}

// addresses returns those of all interfaces, except the interface with the virtual addresses of Services in mode ipvs.
func (o *machine) addresses() (map[netip.Addr]bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.set != nil && time.Since(o.read) < fresh {
		return o.set, nil
	}
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	set := map[netip.Addr]bool{}
	for _, l := range links {
		if strings.HasSuffix(l.Name, "-ipvs") || l.Name == "kube-ipvs0" {
			continue
		}
		list, err := l.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range list {
			if n, ok := a.(*net.IPNet); ok {
				if a, ok := netip.AddrFromSlice(n.IP); ok {
					set[a.Unmap()] = true
				}
			}
		}
	}
	o.set, o.read = set, time.Now()
	return set, nil
}
