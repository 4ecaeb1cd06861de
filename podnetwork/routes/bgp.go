package routes

import (
	"net/netip"
	"slices"
	"strings"

	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
)

// Mode BGP routes to the next hops that this node has learned. A block of a Ready node that nobody announces is reached
// as in mode Auto: so that nodes can change their mode one by one, and a cluster starts before its sessions. The block
// of a node that is not Ready is unreachable then, and its packets do not take the default route.
//
// Nothing that was learned is trusted: a block is used only if a Node has it, another network only if the BGPPeer that
// announces it says so, and a next hop only if it is on a segment of this node.

// networkKey begins the key of a learned route that is no node's block. No node's name contains a blank.
const networkKey = "network "

// Metric is that of routes to networks outside of the cluster: a static route of the host comes first.
const Metric = 87

// learned is the next hop for a prefix; ok is false if no usable one was learned.
func (l NodeLinks) learned(snap model.Snapshot, p netip.Prefix, accept func(model.BGPHop) bool) (netip.Addr, bool) {
	r, ok := snap.BGPRoute(p)
	if !ok {
		return netip.Addr{}, false
	}
	me, _ := snap.Node(l.Self)
	for _, h := range r.Hops {
		if h.Addr.Is4() == p.Addr().Is4() && accept(h) && l.onSegment(h.Addr) &&
			(me == nil || !slices.Contains(me.InternalIPs, h.Addr)) {
			return h.Addr, true
		}
	}
	return netip.Addr{}, false
}

func (l NodeLinks) onSegment(a netip.Addr) bool {
	return slices.ContainsFunc(l.Uplink.Segments, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Unlearned are the blocks of other nodes for which this node has no usable next hop.
func (l NodeLinks) Unlearned(snap model.Snapshot) (out []*model.Node) {
	for n := range snap.Nodes() {
		if n.Name != l.Self && !l.learnedAll(snap, n) {
			out = append(out, n)
		}
	}
	return out
}

func (l NodeLinks) learnedAll(snap model.Snapshot, n *model.Node) bool {
	return !slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool {
		_, ok := l.learned(snap, p, announces(snap, n))
		return !ok
	})
}

// announces says which paths to a node's blocks are used: those of the node itself, of route reflectors and of
// BGPPeers. No other node can draw the node's packets to itself.
func announces(snap model.Snapshot, n *model.Node) func(model.BGPHop) bool {
	return func(h model.BGPHop) bool {
		if !h.Node || h.Peer == n.Name {
			return true
		}
		from, ok := snap.Node(h.Peer)
		return ok && snap.BGP().Reflects(from)
	}
}

// byBGP plans for a block of another node; done is false if it is to be reached in another way.
func (m *maker) byBGP(cidr netip.Prefix) (done bool) {
	if via, ok := m.local.learned(m.snap, cidr, announces(m.snap, m.node)); ok {
		r := link.Route{Dst: cidr, Src: m.me.Primary(cidr.Addr().Is6()), Via: via}
		if slices.Contains(m.node.InternalIPs, via) {
			r.MTU = m.local.Paths[m.node.Name]
		}
		m.plan.Routes = append(m.plan.Routes, r)
		return true
	}
	if !m.node.Ready {
		m.plan.Routes = append(m.plan.Routes, link.Route{Dst: cidr})
		return true
	}
	return false
}

// network plans a route to a network outside of the cluster.
func network(snap model.Snapshot, p netip.Prefix, l NodeLinks) (Plan, bool) {
	me, ok := snap.Node(l.Self)
	if !ok || l.Mode != BGP || isBlock(snap, p) {
		return Plan{}, false
	}
	via, ok := l.learned(snap, p, func(h model.BGPHop) bool { return Imports(snap, me, h, p) })
	if !ok {
		return Plan{}, false
	}
	return Plan{Routes: []link.Route{{Dst: p, Src: me.Primary(p.Addr().Is6()), Via: via, Metric: Metric}}}, true
}

// isBlock says whether a node has the block, or a part of it is: the route to it is that node's.
func isBlock(snap model.Snapshot, p netip.Prefix) bool {
	for n := range snap.Nodes() {
		if slices.ContainsFunc(n.PodCIDRs, func(b netip.Prefix) bool {
			return b.Bits() <= p.Bits() && b.Contains(p.Addr())
		}) {
			return true
		}
	}
	return false
}

// Imports says whether a node uses a route to a network outside of the cluster: its BGPPeer must ask for it. A route
// into the cluster's service ranges or into a block of pods is never used.
func Imports(snap model.Snapshot, me *model.Node, h model.BGPHop, p netip.Prefix) bool {
	peer, ok := snap.BGPPeer(h.Peer)
	if !ok || h.Node || peer.Invalid != "" || !peer.Nodes.Matches(me.Labels) || isBlock(snap, p) {
		return false
	}
	for c := range snap.ServiceCIDRs() {
		if slices.ContainsFunc(c.CIDRs, func(s netip.Prefix) bool {
			return s.Bits() <= p.Bits() &&
				s.Contains(p.Addr())
		}) {
			return false
		}
	}
	if p.Bits() == 0 {
		return peer.Import.DefaultRoute
	}
	return slices.ContainsFunc(peer.Import.Networks, func(n netip.Prefix) bool {
		return n.Bits() <= p.Bits() && n.Contains(p.Addr())
	})
}

// bgpKeys are the keys that a change of learned routes touches, beside those of Keys: the nodes that have the blocks,
// and the other networks. A change of what may be imported touches all networks.
func bgpKeys(snap model.Snapshot, c model.Changes) map[string]bool {
	keys := map[string]bool{}
	if changed := c.Of(model.BGPRouteKind); len(changed) > 0 {
		for n := range snap.Nodes() {
			if slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool {
				return c.Has(model.BGPRouteKind, model.Name{Name: p.String()})
			}) {
				keys[n.Name] = true
			}
		}
		for n := range changed {
			keys[networkKey+n.Name] = true
		}
	}
	if c.Any(model.BGPConfigurationKind) { // who is a route reflector
		for n := range snap.Nodes() {
			keys[n.Name] = true
		}
	}
	if c.Any(model.BGPPeerKind) || c.Any(model.ServiceCIDRKind) || c.Any(model.NodeKind) {
		for r := range snap.BGPRoutes() {
			keys[networkKey+r.Prefix.String()] = true
		}
	}
	return keys
}

// networkOf is the network of a key.
func networkOf(key string) (netip.Prefix, bool) {
	text, ok := strings.CutPrefix(key, networkKey)
	if !ok {
		return netip.Prefix{}, false
	}
	p, err := apiaddr.ParsePrefix(text)
	return p, err == nil
}
