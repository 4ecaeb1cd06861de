package model

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// BGPKinds are the kinds that describe what the cluster's nodes say and hear by BGP.
const BGPKinds = BGPPeerKind | BGPConfigurationKind | BGPAdvertisementKind | PeerSecretKind

// BGPPeer is a router that nodes have a session with.
type BGPPeer struct {
	Name string
	// UID is for Events. Labels are what a BGPAdvertisement selects by.
	UID    string
	Labels map[string]string
	// Nodes selects the nodes that have the session.
	Nodes Selector
	// Address, Interface and Range are the three ways to name the peer; exactly one is set. Interface is a link at
	// whose other end the peer has an IPv6 link-local address. Range is where peers connect from, to whom no node
	// connects.
	Address   netip.Addr
	Interface string
	Range     netip.Prefix
	// Port is the peer's, 0 for a Range.
	Port uint16
	// ASN is the peer's; 0 takes the ASN that the peer has, if Type allows it. LocalASN is what the node calls itself
	// in this session, 0 for its own.
	ASN, LocalASN uint32
	Type          BGPPeerType
	// Source is the address that the session is made from, or the zero Addr.
	Source netip.Addr
	// Password is the key of TCP MD5 (RFC 2385).
	Password SecretKey
	// TTLSecurity is how many hops away the peer may be (GTSM, RFC 5082), 0 for no check. MultiHop is the TTL of
	// packets to a peer of another ASN, 0 for 1. At most one is set.
	TTLSecurity, MultiHop uint8
	Timers                BGPTimers
	// Passive nodes wait for the peer to connect.
	Passive bool
	// Restart is nil for that of the BGPConfiguration.
	Restart *BGPRestart
	// IPv4 and IPv6 are the families of routes, whatever the family of the session is.
	IPv4, IPv6 bool
	// AddPath sends several paths of a prefix (RFC 7911).
	AddPath bool
	Import  BGPImport
	// Invalid is what is wrong with it; there is no session then. Empty when nothing is.
	Invalid string
}

// BGPPeerType says what a peer's ASN must be.
type BGPPeerType uint8

// The types. With ExactASN the ASN is given; with the others a peer has that of its node, or any but that.
const (
	ExactASN BGPPeerType = iota
	InternalASN
	ExternalASN
)

// SecretKey is a value of a PeerSecret; the zero SecretKey is none.
type SecretKey struct{ Name, Key string }

// BGPTimers are of a session; Hold is at least 3 s (RFC 4271, section 4.2). In a BGPPeer, Unset is that of the
// BGPConfiguration; BGPConfiguration.TimersOf has what counts.
type BGPTimers struct {
	Hold, Keepalive, Connect time.Duration
}

// Unset is a duration that is not set.
const Unset time.Duration = -1

// Or are the timers with those of o where they are not set. Keepalive is at most a third of Hold.
func (t BGPTimers) Or(o BGPTimers) BGPTimers {
	for _, f := range []struct{ have, or *time.Duration }{{&t.Hold, &o.Hold}, {&t.Keepalive, &o.Keepalive},
		{&t.Connect, &o.Connect}} {
		if *f.have == Unset {
			*f.have = *f.or
		}
	}
	t.Keepalive = min(t.Keepalive, t.Hold/3)
	return t
}

// BGPRestart is graceful restart (RFC 4724). Within Time the peer keeps the routes of a node whose process is gone.
// LongLived is how much longer it keeps them as its last choice (RFC 9494), 0 for not at all.
type BGPRestart struct {
	Enabled         bool
	Time, LongLived time.Duration
}

// BGPImport says which routes of a peer a node accepts beside those to other nodes' pods.
type BGPImport struct {
	// Networks contain the accepted routes. DefaultRoute accepts a default route, which no network does.
	Networks     []netip.Prefix
	DefaultRoute bool
	// MaxPrefixes ends the session when the peer sends more, per family.
	MaxPrefixes uint32
}

// Equal compares two peers in all that sessions use.
func (p *BGPPeer) Equal(o *BGPPeer) bool {
	return p.Name == o.Name && p.UID == o.UID && maps.Equal(p.Labels, o.Labels) && p.Nodes.Equal(o.Nodes) &&
		p.Address == o.Address && p.Interface == o.Interface && p.Range == o.Range && p.Port == o.Port &&
		p.ASN == o.ASN && p.LocalASN == o.LocalASN && p.Type == o.Type && p.Source == o.Source &&
		p.Password == o.Password && p.TTLSecurity == o.TTLSecurity && p.MultiHop == o.MultiHop &&
		p.Timers == o.Timers && p.Passive == o.Passive && equalValues(p.Restart, o.Restart) && p.IPv4 == o.IPv4 &&
		p.IPv6 == o.IPv6 && p.AddPath == o.AddPath && p.Invalid == o.Invalid &&
		slices.Equal(p.Import.Networks, o.Import.Networks) && p.Import.DefaultRoute == o.Import.DefaultRoute &&
		p.Import.MaxPrefixes == o.Import.MaxPrefixes
}

var bgpPeers = describe(descriptor[*BGPPeer]{kind: BGPPeerKind, label: "BGPPeer",
	name: func(p *BGPPeer) Name { return Name{Name: p.Name} }})

// PutBGPPeer sets a peer; the store owns it from now on.
func (w *Writer) PutBGPPeer(o *BGPPeer) { put(w, bgpPeers, o) }

// BGPPeer returns the peer of that name.
func (v Snapshot) BGPPeer(name string) (*BGPPeer, bool) { return get(v, bgpPeers, Name{Name: name}) }

// BGPPeers yields all peers.
func (v Snapshot) BGPPeers() iter.Seq[*BGPPeer] { return all(v, bgpPeers) }
