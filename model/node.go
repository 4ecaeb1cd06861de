package model

import (
	"cmp"
	"iter"
	"net/netip"
	"time"
)

// Node is what Wayleave uses of a Node.
type Node struct {
	Name string
	// Created decides between Nodes that claim one network of pods, or one address, see Before.
	Created time.Time
	// InternalIPs in the order of the API: the first of a family is primary.
	InternalIPs []netip.Addr
	// ExternalIPs are its other addresses (status.addresses of type ExternalIP).
	ExternalIPs []netip.Addr
	PodCIDRs    []netip.Prefix
	Zone        string
	Ready       bool
	// Leaving nodes are being deleted, or have the taint node.kubernetes.io/out-of-service: load balancers should send
	// nothing to them.
	Leaving bool
	// Excluded nodes answer for no load balancer's address (node.kubernetes.io/exclude-from-external-load-balancers),
	// unless all nodes are excluded: see HonorsExclusion.
	Excluded bool
	Labels   map[string]string
	BGP      NodeBGP
}

// NodeBGP is what annotations of a node say about its sessions.
type NodeBGP struct {
	// ASN is the node's, 0 for that of the BGPConfiguration.
	ASN uint32
	// RouterID is its BGP identifier, an IPv4 address; the zero Addr is one that is derived from the node.
	RouterID netip.Addr
}

// Before orders Nodes that claim the same: the oldest first, ties by name. A kubelet chooses the addresses of its Node,
// and when it creates one, its networks: a newcomer must not take those of a node that runs.
func (n *Node) Before(o *Node) bool {
	return cmp.Or(n.Created.Compare(o.Created), cmp.Compare(n.Name, o.Name)) < 0
}

// Primary is the node's first internal address of the family asked for, or the
// zero Addr.
func (n *Node) Primary(is6 bool) netip.Addr {
	for _, a := range n.InternalIPs {
		if a.Is6() == is6 {
			return a
		}
	}
	return netip.Addr{}
}

var nodes = describe(descriptor[*Node]{kind: NodeKind, label: "Node",
	name: func(n *Node) Name { return Name{Name: n.Name} }})

// PutNode sets a node; the store owns it from now on.
func (w *Writer) PutNode(o *Node) { put(w, nodes, o) }

// Node returns the node of that name.
func (v Snapshot) Node(name string) (*Node, bool) { return get(v, nodes, Name{Name: name}) }

// HonorsExclusion reports whether load balancers leave excluded nodes out: some node is not excluded. In a cluster of
// control planes alone, kubeadm excludes every node, and no node would answer.
func (v Snapshot) HonorsExclusion() bool {
	for n := range v.Nodes() {
		if !n.Excluded && !n.Leaving {
			return true
		}
	}
	return false
}

// Nodes yields all nodes.
func (v Snapshot) Nodes() iter.Seq[*Node] { return all(v, nodes) }
