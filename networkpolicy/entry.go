package networkpolicy

import (
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// Direction is which of a packet's two ends is isolated.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota
	Egress
)

// String is the API's word.
func (d Direction) String() string {
	if d == Egress {
		return "Egress"
	}
	return "Ingress"
}

// EntryKind is what an entry says.
type EntryKind uint8

// The kinds of entries.
const (
	// PodEntry isolates an address of a local pod in one direction. Addresses without
	// one are open.
	PodEntry EntryKind = iota
	// PeerEntry is what an address of a known pod may, for all pods of a profile. It is
	// asked first, and it is complete: blocks that contain the address are in it.
	PeerEntry
	// BlocksEntry is what any other address may, for all pods of a profile.
	BlocksEntry
	// ProxyEntry says that an address of this node is its ingress proxy's: what comes from
	// there does not pass as the node's, but as a pod's.
	ProxyEntry
	// DNSEntry says that an address is one of kube-dns': what is sent to it is decided
	// before it is translated.
	DNSEntry
)

// Key identifies an entry.
type Key struct {
	Kind EntryKind
	// Direction is that in which the local pods are isolated.
	Direction Direction
	// Addr is the local pod's of a PodEntry, the peer's of a PeerEntry, and that of a
	// ProxyEntry or a DNSEntry.
	Addr netip.Addr
	// Profile is the profile that the peer or the blocks belong to; empty for a PodEntry.
	Profile string
}

// Entry is one fact that a mode keeps in the kernel. The kind of its key says which fields are used.
type Entry struct {
	// Profile of a PodEntry says which peers and blocks apply to the pod. Pods that are isolated by the same policies,
	// and have the same named ports, share a profile. A profile without peers and blocks allows nothing.
	Profile string
	// Policies of a PodEntry are those that isolate it, by name; empty while the pod is
	// not known yet.
	Policies []model.Name
	// Ports of a PeerEntry.
	Ports Ports
	// Blocks of a BlocksEntry are disjoint, sorted, of both families.
	Blocks []Block
}

// Block is a range of addresses, with the ports that it may reach.
type Block struct {
	Range model.Range
	Ports Ports
}

// Ports is a set of ports by protocol. It must not be changed.
type Ports struct {
	// All is every packet, also of protocols without ports; Ranges is empty then.
	All bool
	// Ranges are sorted, disjoint, and as few as possible.
	Ranges []PortRange
}

// PortRange is ports of one protocol, both ends included.
type PortRange struct {
	Protocol model.Protocol
	From, To uint16
}

// Contains says whether the protocol's port is in the set; port is 0 for protocols
// without ports.
func (p Ports) Contains(proto model.Protocol, port uint16) bool {
	return p.All || slices.ContainsFunc(p.Ranges, func(r PortRange) bool {
		return r.Protocol == proto &&
			r.From <= port && port <= r.To
	})
}

// Equal compares two sets.
func (p Ports) Equal(o Ports) bool { return p.All == o.All && slices.Equal(p.Ranges, o.Ranges) }

// Equal compares two entries of one key.
func (e Entry) Equal(o Entry) bool {
	return e.Profile == o.Profile && slices.Equal(e.Policies, o.Policies) && e.Ports.Equal(o.Ports) &&
		slices.EqualFunc(e.Blocks, o.Blocks, func(a, b Block) bool {
			return a.Range == b.Range &&
				a.Ports.Equal(b.Ports)
		})
}

// NodeInputs are the inputs of the planner that are not in the model: facts of this node.
type NodeInputs struct {
	// Node is the name of this node.
	Node string
	// Pods are the leased addresses of this node, with their pods. An address is in it before the pod has its
	// interface. An address that is not leased is this node's when the API says that its pod is on this node.
	Pods map[netip.Addr]model.Name
	// DNS are the addresses of the Service kube-dns. Traffic to one of them counts as
	// traffic to a pod in kube-system labelled k8s-app=kube-dns, on whatever node.
	DNS []netip.Addr
	// Ingress says that nodes run the ingress proxy: traffic from a node's
	// model.Node.ProxyAddrs counts as that of a pod in kube-system, see ProxyLabels, unless
	// a pod has the address. Otherwise these addresses belong to no peer.
	Ingress bool
}

// ProxyLabels are the labels of the ingress proxy for policies: on every node it counts as a pod in kube-system.
func ProxyLabels() map[string]string {
	return map[string]string{"app.kubernetes.io/name": "wayleave", "app.kubernetes.io/component": "ingress"}
}
