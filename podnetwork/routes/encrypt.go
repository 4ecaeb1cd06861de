package routes

import (
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
)

// Encryption is how packets between pods of different nodes are encrypted: by routes to WireGuard devices, in the table
// that only packets from this node's pods use. So it does not matter how the other routes came to be, and packets of
// the host never enter the tunnel unless Nodes is set.
type Encryption struct {
	// Preferred encrypts what can be, Strict makes all else unreachable. At most one is set.
	Preferred, Strict bool
	// Nodes also encrypts between nodes and pods.
	Nodes bool
	// Via are the devices by which nodes are reached. A node that is not there cannot be reached encrypted.
	Via map[string]string
	// Indexes are the numbers of the devices: a device that was made anew has lost its routes.
	Indexes [2]int
}

// On says whether anything may be encrypted.
func (e Encryption) On() bool { return e.Preferred || e.Strict }

// Equal compares two.
func (e Encryption) Equal(o Encryption) bool {
	return e.Preferred == o.Preferred && e.Strict == o.Strict && e.Nodes == o.Nodes && maps.Equal(e.Via, o.Via) &&
		e.Indexes == o.Indexes
}

// encryptionOverhead is what WireGuard adds to a packet: its header and tag, UDP and outer IP.
func encryptionOverhead(is6 bool) int {
	if is6 {
		return 80
	}
	return 60
}

// padding is that to which WireGuard fills up what it encrypts.
const padding = 16

// inside is what fits into an encrypted packet of a size, whatever is filled up.
func (l NodeLinks) inside(snap model.Snapshot, size int) int {
	return (size - l.overhead(snap)) / padding * padding
}

// EncryptedMTU is the MTU of the WireGuard devices.
func (l NodeLinks) EncryptedMTU(snap model.Snapshot) int { return l.inside(snap, l.Uplink.MTU) }

// overhead is that of IPv6 when one of the nodes is reached by it.
func (l NodeLinks) overhead(snap model.Snapshot) int {
	me, ok := snap.Node(l.Self)
	for n := range snap.Nodes() {
		if ok && n.Name != l.Self && Endpoint(me, n).Is6() {
			return encryptionOverhead(true)
		}
	}
	return encryptionOverhead(ok && Underlay(me).Is6())
}

// Endpoint is the address by which this node sends encrypted packets to another: its first one of a family that this
// node has as well. The zero Addr means that there is none.
func Endpoint(me, other *model.Node) netip.Addr {
	for _, a := range other.InternalIPs {
		if me.Primary(a.Is6()).IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// Addrs are the addresses of a node that no older node has: an address is allowed to one peer. A kubelet sets those of
// its own Node.
func Addrs(snap model.Snapshot, node *model.Node) []netip.Addr {
	out := slices.Clone(node.InternalIPs)
	for other := range snap.Nodes() {
		if slices.ContainsFunc(other.InternalIPs, func(a netip.Addr) bool { return slices.Contains(out, a) }) &&
			other.Before(node) {
			out = slices.DeleteFunc(out, func(a netip.Addr) bool { return slices.Contains(other.InternalIPs, a) })
		}
	}
	return out
}

// CIDRs are the networks of a node's pods that no older node has: an address is allowed to one peer.
func CIDRs(snap model.Snapshot, node *model.Node) []netip.Prefix {
	return (&maker{snap: snap, node: node}).cidrs()
}

// encryptOwn plans for this node: the rules that bring packets of its pods to the encrypted routes.
func (m *maker) encryptOwn() {
	if m.local.Encryption.On() {
		m.rules()
	}
}

// encrypt plans the encrypted routes to another node. In strict mode, each has one behind it that makes the network
// unreachable: it remains when the device is gone.
func (m *maker) encrypt() {
	e := m.local.Encryption
	if !e.On() {
		return
	}
	dev := e.Via[m.node.Name]
	if dev == "" && !e.Strict {
		return
	}
	// Nothing that goes by the table without encryption may compete.
	m.plan.Routes = slices.DeleteFunc(m.plan.Routes,
		func(r link.Route) bool { return r.Table == link.Table && e.Nodes })
	mtu := m.encryptedPath()
	set := func(dst netip.Prefix, table int, src netip.Addr) {
		if dev != "" && !m.tooSmall(dst) {
			m.plan.Routes = append(m.plan.Routes, link.Route{Dst: dst, Dev: dev, Table: table, Src: src, MTU: mtu})
		}
		if e.Strict {
			m.plan.Routes = append(m.plan.Routes, link.Route{Dst: dst, Table: table})
		}
	}
	for _, cidr := range CIDRs(m.snap, m.node) {
		set(cidr, link.Table, netip.Addr{})
		if !e.Nodes {
			continue
		}
		m.plan.Routes = slices.DeleteFunc(m.plan.Routes, func(r link.Route) bool {
			return r.Table == 0 &&
				r.Dst == cidr
		})
		set(cidr, 0, m.me.Primary(cidr.Addr().Is6()))
	}
	if e.Nodes {
		for _, a := range Addrs(m.snap, m.node) {
			set(netip.PrefixFrom(a, a.BitLen()), link.Table, netip.Addr{})
		}
	}
}

// tooSmall reports IPv6 that does not fit into the tunnel.
func (m *maker) tooSmall(dst netip.Prefix) bool {
	mtu := m.local.EncryptedMTU(m.snap)
	if dst.Addr().Is4() || mtu >= minIPv6MTU {
		return false
	}
	if m.refused {
		return true
	}
	m.refused = true
	m.bad("spec.podCIDRs", "%s cannot be reached by WireGuard: IPv6 asks for an MTU of %d, %s has %d, less %d for the "+
		"encryption", dst, minIPv6MTU, m.local.Uplink.Name, m.local.Uplink.MTU, m.local.overhead(m.snap))
	return true
}

// encryptedPath is what fits into the tunnel to this node, or 0 when that is what the device says.
func (m *maker) encryptedPath() int {
	if path, ok := m.local.Paths[m.node.Name]; ok {
		return m.local.inside(m.snap, path)
	}
	return 0
}
