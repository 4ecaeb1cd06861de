package loadbalancer

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"
)

// hostLink is an interface of the node with its addresses.
type hostLink struct {
	name  string
	addrs []netip.Addr
}

func interfaces() ([]hostLink, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("interfaces of the node: %w", err)
	}
	var out []hostLink
	for _, i := range list {
		if i.Flags&net.FlagLoopback != 0 || len(i.HardwareAddr) == 0 {
			continue
		}
		l := hostLink{name: i.Name}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it has just gone
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				l.addrs = append(l.addrs, p.Addr())
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// match picks the interfaces by globs; without any, those that have an address of the
// node.
func match(links []hostLink, globs []string, own map[netip.Addr]bool) (out []string) {
	for _, l := range links {
		ok := len(globs) == 0 && slices.ContainsFunc(l.addrs, func(a netip.Addr) bool { return own[a] })
		for _, g := range globs {
			hit, err := path.Match(g, l.name)
			ok = ok || err == nil && hit
		}
		if ok {
			out = append(out, l.name)
		}
	}
	return out
}
