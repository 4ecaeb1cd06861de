package model

import (
	"iter"
	"slices"
)

// BGPAddresses is a set of kinds of addresses.
type BGPAddresses uint8

// The kinds of addresses that a BGPAdvertisement announces.
const (
	AnnouncePodCIDRs BGPAddresses = 1 << iota
	AnnounceLoadBalancerIPs
	AnnounceExternalIPs
	AnnounceClusterIPs
)

// LargeCommunity is one of RFC 8092.
type LargeCommunity [3]uint32

// BGPAdvertisement says what nodes announce to routers, and how.
type BGPAdvertisement struct {
	Name string
	UID  string
	// Addresses are the kinds of addresses.
	Addresses BGPAddresses
	// Pools are names of AddressPools, and PoolsByLabel selects more of them. With neither, load-balancer addresses of
	// all pools are announced, if the pool is announced by BGP at all.
	Pools        []string
	PoolsByLabel Selector
	// HasPoolsByLabel says that PoolsByLabel counts.
	HasPoolsByLabel bool
	// Services and Namespaces select Services; Nodes the nodes that announce.
	Services, Namespaces, Nodes Selector
	// Peers are names of BGPPeers, and PeersByLabel selects more of them. With neither, all peers are told.
	Peers           []string
	PeersByLabel    Selector
	HasPeersByLabel bool
	// Length4 and Length6 are the prefix lengths that addresses of Services are aggregated to: 32 and 128 for host
	// routes.
	Length4, Length6 uint8
	Communities      []uint32
	Large            []LargeCommunity
	// LocalPref and MED are attributes of the routes, nil for none. The former is told only to peers of the same ASN.
	LocalPref, MED *uint32
	// Invalid is what is wrong with it: nothing is announced for it then. Empty when nothing is.
	Invalid string
}

// Tells says whether the advertisement is for the peer.
func (a *BGPAdvertisement) Tells(p *BGPPeer) bool {
	if len(a.Peers) == 0 && !a.HasPeersByLabel {
		return true
	}
	return slices.Contains(a.Peers, p.Name) || a.HasPeersByLabel && a.PeersByLabel.Matches(p.Labels)
}

// Covers says whether the advertisement is for addresses of the pool.
func (a *BGPAdvertisement) Covers(p *AddressPool) bool {
	if len(a.Pools) == 0 && !a.HasPoolsByLabel {
		return true
	}
	return slices.Contains(a.Pools, p.Name) || a.HasPoolsByLabel && a.PoolsByLabel.Matches(p.Labels)
}

// Equal compares two advertisements.
func (a *BGPAdvertisement) Equal(o *BGPAdvertisement) bool {
	return a.Name == o.Name && a.UID == o.UID && a.Addresses == o.Addresses && slices.Equal(a.Pools, o.Pools) &&
		a.PoolsByLabel.Equal(o.PoolsByLabel) && a.HasPoolsByLabel == o.HasPoolsByLabel &&
		a.Services.Equal(o.Services) && a.Namespaces.Equal(o.Namespaces) && a.Nodes.Equal(o.Nodes) &&
		slices.Equal(a.Peers, o.Peers) && a.PeersByLabel.Equal(o.PeersByLabel) &&
		a.HasPeersByLabel == o.HasPeersByLabel && a.Length4 == o.Length4 && a.Length6 == o.Length6 &&
		slices.Equal(a.Communities, o.Communities) && slices.Equal(a.Large, o.Large) &&
		equalValues(a.LocalPref, o.LocalPref) && equalValues(a.MED, o.MED) && a.Invalid == o.Invalid
}

func equalValues[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

var bgpAdvertisements = describe(descriptor[*BGPAdvertisement]{kind: BGPAdvertisementKind, label: "BGPAdvertisement",
	name: func(a *BGPAdvertisement) Name { return Name{Name: a.Name} }})

// PutBGPAdvertisement sets an advertisement; the store owns it from now on.
func (w *Writer) PutBGPAdvertisement(o *BGPAdvertisement) { put(w, bgpAdvertisements, o) }

// BGPAdvertisement returns the advertisement of that name.
func (v Snapshot) BGPAdvertisement(name string) (*BGPAdvertisement, bool) {
	return get(v, bgpAdvertisements, Name{Name: name})
}

// BGPAdvertisements yields all advertisements.
func (v Snapshot) BGPAdvertisements() iter.Seq[*BGPAdvertisement] { return all(v, bgpAdvertisements) }
