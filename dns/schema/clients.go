package schema

import (
	"net/netip"
	"slices"
)

// MaxGuests bounds the networks that a server knows in addition to those of nodes. Kubernetes supports 150,000 pods.
const MaxGuests = 200_000

// Clients is a set of networks whose addresses are answered. A lookup takes as long as there are lengths of prefixes,
// whatever the number of nodes.
type Clients struct {
	bits4, bits6 []int
	networks     map[netip.Prefix]struct{}
}

// NewClients returns the set of some networks; invalid ones are left out.
func NewClients(list []netip.Prefix) Clients {
	c := Clients{networks: make(map[netip.Prefix]struct{}, len(list))}
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

// Allowed reports whether an address, without zone, is in one of the networks.
func (c *Clients) Allowed(a netip.Addr) bool {
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
