package dns

import (
	"net/netip"
	"slices"
)

// clients says who may ask. A look-up takes as long as there are lengths of
// prefixes, whatever the number of nodes.
type clients struct {
	bits4, bits6 []int
	networks     map[netip.Prefix]struct{}
}

func newClients(list []netip.Prefix) clients {
	c := clients{networks: make(map[netip.Prefix]struct{}, len(list))}
	for _, p := range list {
		if !p.IsValid() {
			continue
		}
		p = p.Masked()
		c.networks[p] = struct{}{}
		bits := &c.bits6
		if p.Addr().Is4() {
			bits = &c.bits4
		}
		if !slices.Contains(*bits, p.Bits()) {
			*bits = append(*bits, p.Bits())
		}
	}
	return c
}

// allowed says whether an address, without zone, is of one of the networks.
func (c *clients) allowed(a netip.Addr) bool {
	bits := c.bits6
	if a.Is4() {
		bits = c.bits4
	}
	for _, n := range bits {
		p, err := a.Prefix(n)
		if err != nil {
			return false
		}
		if _, ok := c.networks[p]; ok {
			return true
		}
	}
	return false
}
