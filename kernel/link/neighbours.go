package link

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// LinkLocalNeighbours returns the link-local IPv6 addresses of other machines on an interface, as far as the kernel
// knows them, without a zone. It needs no capability.
func LinkLocalNeighbours(index int) ([]netip.Addr, error) {
	list, err := netlink.NeighList(index, netlink.FAMILY_V6)
	if err != nil {
		return nil, fmt.Errorf("neighbours: %w", err)
	}
	var out []netip.Addr
	for _, n := range list {
		a, ok := netip.AddrFromSlice(n.IP)
		if ok && a.IsLinkLocalUnicast() && n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE|netlink.NUD_NOARP) == 0 {
			out = append(out, a)
		}
	}
	return out, nil
}
