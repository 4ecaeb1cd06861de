package check

import (
	"net/netip"
	"strings"
)

func join(list []netip.Addr) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}

func isIPv6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }
