// Package routes is how pods reach pods of other nodes, and the nodes themselves.
//
// A node on the same segment is routed to by its address (direct); one behind
// routers by VXLAN, so that the routers need not know of pods. Both may be in use at
// once, peer by peer. Nothing is learned or flooded: who is where is in the model.
//
// A node takes VXLAN packets of the cluster's nodes whatever its own routing is, so
// that nodes may change it one by one, under traffic.
package routes

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
)

// The VXLAN device. The port is IANA's and is set explicitly: Linux' default is
// another one.
const (
	Device = "wayleave-vxlan"
	VNI    = 87
	// Port is the one that is used where none is set.
	Port = 4789
)

// Mode is the setting routing.
type Mode string

// The modes. Cloud has the underlay carry the pods' networks: no route between
// nodes is ours.
const (
	Auto   Mode = "auto"
	Direct Mode = "direct"
	VXLAN  Mode = "vxlan"
	Cloud  Mode = "cloud"
	BGP    Mode = "bgp"
)

// minIPv6MTU is what IPv6 asks of every link (RFC 8200, section 5).
const minIPv6MTU = 1280

// Overhead is what VXLAN adds to a packet: inner Ethernet, VXLAN, UDP and outer IP.
func Overhead(is6 bool) int {
	if is6 {
		return 70
	}
	return 50
}

// NodeLinks is what is known of this node's own links.
type NodeLinks struct {
	Self   string
	Mode   Mode
	Uplink link.Uplink
	// Port is the UDP port of VXLAN, 0 for Port.
	Port uint16
	// Paths are the sizes of packets that reach other nodes, where they are smaller
	// than the uplink's MTU.
	Paths map[string]int
	// Spoiled says that checksums come out wrong of the tunnel unless the kernel
	// computes them.
	Spoiled bool
	// Encryption is how packets of pods are encrypted.
	Encryption Encryption
}

// VXLANPort is the UDP port of VXLAN.
func (l NodeLinks) VXLANPort() uint16 { return cmp.Or(l.Port, Port) }

// Equal compares two.
func (l NodeLinks) Equal(o NodeLinks) bool {
	return l.Port == o.Port && maps.Equal(l.Paths, o.Paths) && l.Spoiled == o.Spoiled && l.Self == o.Self &&
		l.Encryption.Equal(o.Encryption) && l.Mode == o.Mode && l.Uplink.Name == o.Uplink.Name &&
		l.Uplink.MTU == o.Uplink.MTU &&
		slices.Equal(l.Uplink.Segments, o.Uplink.Segments)
}

// Underlay is the address that VXLAN packets of a node come from and go to: its
// first one.
func Underlay(n *model.Node) netip.Addr {
	if len(n.InternalIPs) == 0 {
		return netip.Addr{}
	}
	return n.InternalIPs[0]
}

// ByVXLAN says whether packets to a node are encapsulated.
func (l NodeLinks) ByVXLAN(snap model.Snapshot, n *model.Node) bool {
	return l.MayTunnel(n) && (l.Mode != BGP || n.Ready && !l.learnedAll(snap, n))
}

// MayTunnel says whether packets to and from a node are ever encapsulated.
func (l NodeLinks) MayTunnel(n *model.Node) bool {
	switch l.Mode {
	case VXLAN:
		return true
	case Auto, BGP:
		a := Underlay(n)
		return a.IsValid() && !l.onSegment(a)
	}
	return false
}

// PodMTU is the MTU of pods: the uplink's, less the encapsulation when a node is
// reached by it. A pod with an IPv6 address has at least 1280 where the uplink has
// that: what does not fit into the tunnel is answered by the node.
func (l NodeLinks) PodMTU(snap model.Snapshot) int {
	mtu := l.plainMTU(snap)
	if !l.Encryption.On() {
		return mtu
	}
	mtu = min(mtu, l.EncryptedMTU(snap))
	if mtu < minIPv6MTU && l.hasIPv6(snap) {
		return min(l.Uplink.MTU, minIPv6MTU)
	}
	return mtu
}

// hasIPv6 says whether pods of this node have IPv6 addresses.
func (l NodeLinks) hasIPv6(snap model.Snapshot) bool {
	me, ok := snap.Node(l.Self)
	return ok && slices.ContainsFunc(me.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// plainMTU is the MTU of pods without encryption.
func (l NodeLinks) plainMTU(snap model.Snapshot) int {
	for n := range snap.Nodes() {
		// With BGP the tunnel is a way for a while only, which pods do not shrink for.
		if n.Name == l.Self || l.Mode == BGP || !l.ByVXLAN(snap, n) {
			continue
		}
		mtu := l.tunnelMTU(snap)
		if mtu < minIPv6MTU && l.hasIPv6(snap) {
			return min(l.Uplink.MTU, minIPv6MTU)
		}
		return mtu
	}
	return l.Uplink.MTU
}

func (l NodeLinks) tunnelMTU(snap model.Snapshot) int {
	me, ok := snap.Node(l.Self)
	return l.Uplink.MTU - Overhead(ok && Underlay(me).Is6())
}

// mac is the address of a node's VXLAN device, by the node's name: nobody has to be
// told.
func mac(node string) link.MAC {
	sum := sha256.Sum256([]byte("wayleave vxlan " + node))
	return link.MAC{0x0e, 0x57, sum[0], sum[1], sum[2], sum[3]}
}

// Plan is what one node asks for on this one.
type Plan struct {
	Routes []link.Route
	// Peer is set when the node is reached by VXLAN.
	Peer *link.Peer
	// Tunnel and Rules are set in this node's own plan: its end of VXLAN, and whose
	// packets to nodes go by it.
	Tunnel *link.Tunnel
	Rules  []link.Rule
}

// Equal compares two plans.
func Equal(a, b Plan) bool {
	return slices.Equal(a.Routes, b.Routes) && slices.Equal(a.Rules, b.Rules) &&
		equal(a.Peer, b.Peer) && equal(a.Tunnel, b.Tunnel)
}

func equal[T interface{ Equal(T) bool }](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return (*a).Equal(*b)
}

// Kinds are the kinds that plans are made from. In mode BGP, routes are not changed before this node has learned again
// what it knew.
func (m Mode) Kinds() model.Kind {
	if m == BGP {
		return model.NodeKind | model.BGPRouteKind | model.BGPPeerKind | model.BGPConfigurationKind |
			model.ServiceCIDRKind
	}
	return model.NodeKind
}

// Keys are the nodes that a change touches; when it is this node, all of them. In mode BGP, further keys are learned
// networks.
func Keys(self string) func(model.Snapshot, model.Changes) []string {
	return func(snap model.Snapshot, c model.Changes) []string {
		keys := bgpKeys(snap, c)
		if c.Has(model.NodeKind, model.Name{Name: self}) {
			for n := range snap.Nodes() {
				keys[n.Name] = true
			}
		}
		for n := range c.Of(model.NodeKind) {
			keys[n.Name] = true
		}
		return slices.Collect(maps.Keys(keys))
	}
}

// Make plans for one node of the cluster, as seen from this one, or for a learned network.
func Make(snap model.Snapshot, name string, l NodeLinks) (p Plan, ok bool, problems []model.Problem) {
	if to, ok := networkOf(name); ok {
		p, ok = network(snap, to, l)
		return p, ok, nil
	}
	node, ok := snap.Node(name)
	if !ok {
		return Plan{}, false, nil
	}
	me, ok := snap.Node(l.Self)
	if !ok {
		return Plan{}, false, nil
	}
	m := maker{snap: snap, local: l, me: me, node: node}
	if len(node.PodCIDRs) == 0 {
		m.bad("spec.podCIDRs", "is empty: the pods of this node cannot be reached (does the kube-controller-manager "+
			"run with --allocate-node-cidrs and --cluster-cidr?)")
		return Plan{}, false, m.problems
	}
	if node == me {
		m.own()
	} else {
		m.other()
	}
	return m.plan, len(m.plan.Routes) > 0 || m.plan.Tunnel != nil, m.problems
}

type maker struct {
	snap     model.Snapshot
	local    NodeLinks
	me, node *model.Node
	plan     Plan
	problems []model.Problem
	// refused says that IPv6 does not fit into the encryption, which is told once.
	refused bool
}

func (m *maker) bad(field, format string, args ...any) {
	m.problems = append(m.problems, model.Problem{Kind: "Node", Object: model.Name{Name: m.node.Name}, Field: field,
		Reason: fmt.Sprintf(format, args...)})
}

// cidrs are the node's that nobody else has.
func (m *maker) cidrs() (good []netip.Prefix) {
	for i, cidr := range m.node.PodCIDRs {
		if other, ok := overlap(m.snap, m.node, cidr); ok {
			m.bad(fmt.Sprintf("spec.podCIDRs[%d]", i), "%s overlaps with %s of node %s, which is used", cidr,
				other.PodCIDRs, other.Name)
			continue
		}
		good = append(good, cidr)
	}
	return good
}

// own plans for this node: what no pod has is unreachable, at once and not after a
// time-out; and its end of VXLAN.
func (m *maker) own() {
	for _, cidr := range m.cidrs() {
		m.plan.Routes = append(m.plan.Routes, link.Route{Dst: cidr})
	}
	m.encryptOwn()
	if m.local.Mode == Cloud {
		return
	}
	from := Underlay(m.me)
	if !from.IsValid() {
		m.bad("status.addresses", "has no InternalIP and no ExternalIP, so there is no VXLAN")
		return
	}
	t := link.Tunnel{Name: Device, VNI: VNI, Port: int(m.local.VXLANPort()), Local: from, MAC: mac(m.me.Name),
		MTU: m.local.tunnelMTU(m.snap)}
	for _, is6 := range []bool{false, true} {
		if a := m.me.Primary(is6); a.IsValid() && (!is6 || t.MTU >= minIPv6MTU) {
			t.Addrs = append(t.Addrs, a)
		}
	}
	m.plan.Tunnel = &t
	if !m.local.Encryption.On() {
		m.rules()
	}
	for _, a := range t.Addrs { // for probes of the tunnel
		m.plan.Rules = append(m.plan.Rules, link.Rule{Link: Device, Is6: a.Is6()})
	}
}

// rules send what this node's pods send through the table of tunnels.
func (m *maker) rules() {
	for _, cidr := range m.me.PodCIDRs {
		m.plan.Rules = append(m.plan.Rules, link.Rule{From: cidr, Is6: cidr.Addr().Is6()})
	}
}

// other plans for another node.
func (m *maker) other() {
	m.plain()
	m.encrypt()
}

// plain plans for another node without encryption.
func (m *maker) plain() {
	if m.local.Mode == Cloud {
		return
	}
	cidrs := m.cidrs()
	if m.local.Mode == BGP {
		if cidrs = slices.DeleteFunc(cidrs, m.byBGP); len(cidrs) == 0 {
			return
		}
	}
	byVXLAN := m.local.ByVXLAN(m.snap, m.node)
	to := Underlay(m.node)
	if byVXLAN && (!to.IsValid() || to.Is6() != Underlay(m.me).Is6()) {
		m.bad("status.addresses",
			"the first InternalIP %s is not of the family of this node's, %s: VXLAN cannot go from one to the other",
			to, Underlay(m.me))
		return
	}
	if byVXLAN {
		m.plan.Peer = &link.Peer{MAC: mac(m.node.Name), Underlay: to}
	}
	for _, cidr := range cidrs {
		if byVXLAN {
			m.tunnelled(cidr)
			continue
		}
		r := link.Route{Dst: cidr, Src: m.me.Primary(cidr.Addr().Is6()), Via: m.node.Primary(cidr.Addr().Is6()),
			MTU: m.local.Paths[m.node.Name]}
		if !r.Via.IsValid() {
			m.bad("status.addresses", "has no InternalIP of the family of %s", cidr)
			continue
		}
		m.plan.Routes = append(m.plan.Routes, r)
	}
	if byVXLAN {
		m.nodeByTunnel()
	}
}

// tunnelled routes a network of pods into the tunnel.
func (m *maker) tunnelled(cidr netip.Prefix) {
	is6 := cidr.Addr().Is6()
	if mtu := m.local.tunnelMTU(m.snap); is6 && mtu < minIPv6MTU {
		m.bad("spec.podCIDRs",
			"%s cannot be reached by VXLAN: IPv6 asks for an MTU of %d, %s has %d, less %d for the encapsulation",
			cidr, minIPv6MTU,
			m.local.Uplink.Name, m.local.Uplink.MTU, Overhead(Underlay(m.me).Is6()))
		return
	}
	m.plan.Routes = append(m.plan.Routes, link.Route{Dst: cidr, Src: m.me.Primary(is6), Via: m.hop(is6), Dev: Device,
		MTU: m.innerMTU()})
}

// innerMTU is what fits into the tunnel to this node, or 0 when that is what the
// device says.
func (m *maker) innerMTU() int {
	if path, ok := m.local.Paths[m.node.Name]; ok {
		return path - Overhead(Underlay(m.me).Is6())
	}
	return 0
}

// hop is the next hop that stands for the node in the tunnel, link-local and made
// from its MAC address.
func (m *maker) hop(is6 bool) netip.Addr {
	h := m.plan.Peer.MAC
	a := netip.AddrFrom4([4]byte{169, 254, h[4], h[5]})
	if is6 {
		a = netip.AddrFrom16([16]byte{0xfe, 0x80, 8: h[0] ^ 2, 9: h[1], 10: h[2], 11: 0xff, 12: 0xfe, 13: h[3],
			14: h[4], 15: h[5]})
	} else if v4 := m.node.Primary(false); v4.IsValid() {
		a = v4
	}
	if !slices.Contains(m.plan.Peer.Hops, a) {
		m.plan.Peer.Hops = append(m.plan.Peer.Hops, a)
	}
	return a
}

// nodeByTunnel has pods reach the node's own addresses through the tunnel: the
// routers between would not know where to answer. The outer packets come from a
// node, so that they do not.
func (m *maker) nodeByTunnel() {
	for _, a := range Addrs(m.snap, m.node) {
		if a.Is6() && m.local.tunnelMTU(m.snap) < minIPv6MTU {
			continue
		}
		m.plan.Routes = append(m.plan.Routes, link.Route{Dst: netip.PrefixFrom(a, a.BitLen()), Via: m.hop(a.Is6()),
			Dev: Device, Table: link.Table, MTU: m.innerMTU()})
	}
}

// overlap finds an older node that has the network already, or a part of it.
func overlap(snap model.Snapshot, node *model.Node, cidr netip.Prefix) (*model.Node, bool) {
	for other := range snap.Nodes() {
		if slices.ContainsFunc(other.PodCIDRs, cidr.Overlaps) && other.Before(node) {
			return other, true
		}
	}
	return nil, false
}
