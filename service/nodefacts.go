package service

import (
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// NodeFacts are the inputs of a data plane beyond Services: facts of its node and of the cluster.
type NodeFacts struct {
	// NodeIPs are the node's addresses, never loopback. Node ports are served on them.
	NodeIPs []netip.Addr
	// NodePortCIDRs, if any, select the addresses of the node that serve node ports in place of NodeIPs; with 127.0.0.1
	// in one, also that.
	NodePortCIDRs []netip.Prefix
	// PodCIDRs are those of the complete cluster. Clients outside of them that use a VIP are masqueraded. If there is
	// none of a family, they are not known, and no client is masqueraded.
	PodCIDRs []netip.Prefix
	// OwnPodCIDRs are those of this node, or the single addresses of its pods.
	OwnPodCIDRs []netip.Prefix
}

// NodeFactsEqual compares two values.
func NodeFactsEqual(a, b NodeFacts) bool {
	return slices.Equal(a.NodeIPs, b.NodeIPs) && slices.Equal(a.NodePortCIDRs, b.NodePortCIDRs) &&
		slices.Equal(a.PodCIDRs, b.PodCIDRs) && slices.Equal(a.OwnPodCIDRs, b.OwnPodCIDRs)
}

// NodeFactsKeys returns the node's name if a change affects its NodeFacts, for a reconcile.Loop.
func NodeFactsKeys(node string) func(model.Snapshot, model.Changes) []string {
	return func(_ model.Snapshot, c model.Changes) []string {
		if !c.Any(model.NodeKind | model.PodKind) {
			return nil
		}
		return []string{node}
	}
}

// PodsOf returns the addresses of a node's pods in the API, each as a network of its own, in order. Pods with the
// node's network are left out.
func PodsOf(snap model.Snapshot, node string) (out []netip.Prefix) {
	for p := range snap.Pods() {
		if p.Node != node || p.HostNetwork {
			continue
		}
		for _, a := range p.IPs {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// MakeNodeFacts collects the facts for the named node. ok is false if there is no such Node object (yet).
func MakeNodeFacts(snap model.Snapshot, node string) (l NodeFacts, ok bool, problems []model.Problem) {
	self, ok := snap.Node(node)
	if !ok {
		return NodeFacts{}, false, nil
	}
	for _, a := range self.InternalIPs {
		if !a.IsLoopback() {
			l.NodeIPs = append(l.NodeIPs, a)
		}
	}
	if len(l.NodeIPs) == 0 {
		problems = append(problems, model.Problem{Kind: "Node", Object: model.Name{Name: node},
			Field:  "status.addresses",
			Reason: "the node has neither an InternalIP nor an ExternalIP, so it serves no node ports"})
	}
	l.OwnPodCIDRs = self.PodCIDRs
	for n := range snap.Nodes() {
		l.PodCIDRs = append(l.PodCIDRs, n.PodCIDRs...)
	}
	slices.SortFunc(l.NodeIPs, netip.Addr.Compare)
	slices.SortFunc(l.PodCIDRs, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	l.NodeIPs, l.PodCIDRs = slices.Compact(l.NodeIPs), slices.Compact(l.PodCIDRs)
	return l, true, problems
}

// NodePortNets returns the networks in which the node's addresses serve node ports.
func (l NodeFacts) NodePortNets() []netip.Prefix {
	if len(l.NodePortCIDRs) > 0 {
		return l.NodePortCIDRs
	}
	var out []netip.Prefix
	for _, a := range l.NodeIPs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// Localhost reports whether node ports are served on 127.0.0.1: the kernel must then route that address
// (route_localnet). IPv6 has no equivalent.
func (l NodeFacts) Localhost() bool {
	return slices.ContainsFunc(l.NodePortCIDRs,
		func(p netip.Prefix) bool { return p.Contains(netip.AddrFrom4([4]byte{127, 0, 0, 1})) })
}
