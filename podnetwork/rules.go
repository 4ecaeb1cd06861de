package podnetwork

import (
	"context"
	"net/netip"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/podnetwork/cni"
	"wayleave.dev/podnetwork/ipam"
	"wayleave.dev/reconcile"
)

// Rules is what a data plane offers to the pod network. They translate host ports to pods, give what pods send out of
// the cluster the address of their node, and drop packets of pods with a source that is not theirs, and VXLAN that is
// not from a node. Safe for concurrent use.
type Rules interface {
	// Target brings about what follows from the cluster; the only key is "". Sync also looks at the leases.
	reconcile.Target[string, ClusterFacts]
	// Ports are host ports of a lease.
	cni.Ports
	// Watch tells of foreign changes, until ctx ends.
	Watch(context.Context) (<-chan struct{}, error)
	// Remove takes everything out of the kernel.
	Remove(context.Context) error
	// Remains names what is in the kernel.
	Remains(context.Context) ([]string, error)
}

// RulesConfig is what rules are made with.
type RulesConfig struct {
	// Track forgets UDP flows that a change of host ports redirects; nil: nothing does.
	Track conntrack.Flusher
	// VXLANPort is the UDP port of VXLAN, 0 for routes.Port.
	VXLANPort uint16
	// Leases are those of the node, as they are now.
	Leases func() []ipam.Lease
}

// NFTables makes the Rules of nftables. The kernel is not touched before Sync.
func NFTables(conn nft.Conn) func(RulesConfig) Rules {
	return func(c RulesConfig) Rules { return newTables(conn, c) }
}

// ClusterFacts are what rules depend on, beside the leases.
type ClusterFacts struct {
	// Own are the networks of this node's pods, and empty when nothing is to be masqueraded. All are those of every
	// node's pods.
	Own, All []netip.Prefix
	// Nodes are the addresses of nodes.
	Nodes []netip.Addr
}
