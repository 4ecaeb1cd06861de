package model

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// AddressPool is what Wayleave uses of an AddressPool.
type AddressPool struct {
	Name string
	// Labels are what a BGPAdvertisement selects by.
	Labels map[string]string
	// UID is for Events, Created says which of two that overlap was first.
	UID     string
	Created time.Time
	// Ranges are as written; they may overlap one another.
	Ranges []Range
	// AutoAssign gives addresses to Services that ask for none; AvoidBuggy leaves out
	// IPv4 addresses that end in .0 and .255.
	AutoAssign, AvoidBuggy bool
	// Services and Namespaces say whose Services may have an address.
	Services, Namespaces Selector
	L2                   L2
	// BGP has the addresses announced by BGP, as BGPAdvertisements say.
	BGP bool
	// Invalid is what is wrong with it, for its condition; empty when nothing is.
	Invalid string
}

// L2 is how a pool's addresses are answered for on the local network.
type L2 struct {
	Enabled bool
	// Interfaces are globs; empty is those that have an InternalIP of the node.
	Interfaces []string
	Nodes      Selector
}

// Contains says whether one of the pool's ranges has the address.
func (p *AddressPool) Contains(a netip.Addr) bool {
	return slices.ContainsFunc(p.Ranges, func(r Range) bool { return r.Contains(a) })
}

// Equal compares two pools in all that allocation and announcement use.
func (p *AddressPool) Equal(o *AddressPool) bool {
	return p.Name == o.Name && p.UID == o.UID && p.Created.Equal(o.Created) && slices.Equal(p.Ranges, o.Ranges) &&
		p.AutoAssign == o.AutoAssign && p.AvoidBuggy == o.AvoidBuggy &&
		p.Services.Equal(o.Services) && p.Namespaces.Equal(o.Namespaces) && p.Invalid == o.Invalid && p.BGP == o.BGP &&
		maps.Equal(p.Labels, o.Labels) &&
		p.L2.Enabled == o.L2.Enabled && slices.Equal(p.L2.Interfaces, o.L2.Interfaces) && p.L2.Nodes.Equal(o.L2.Nodes)
}

// Before says whether p was there before o; of one moment the first by name.
func (p *AddressPool) Before(o *AddressPool) bool {
	if c := p.Created.Compare(o.Created); c != 0 {
		return c < 0
	}
	return p.Name < o.Name
}

var addressPools = describe(descriptor[*AddressPool]{kind: AddressPoolKind, label: "AddressPool",
	name: func(p *AddressPool) Name { return Name{Name: p.Name} }})

// PutAddressPool sets a pool; the store owns it from now on.
func (w *Writer) PutAddressPool(o *AddressPool) { put(w, addressPools, o) }

// AddressPool returns the pool of that name.
func (v Snapshot) AddressPool(name string) (*AddressPool, bool) {
	return get(v, addressPools, Name{Name: name})
}

// AddressPools yields all pools.
func (v Snapshot) AddressPools() iter.Seq[*AddressPool] { return all(v, addressPools) }
