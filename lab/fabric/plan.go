package fabric

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
)

// Names of the namespaces. Nodes are NodeNamespace(1) and up.
const (
	Bridge  = "wl-fabric"
	Control = "wl-control"
	Outside = "wl-outside"
	Client  = "wl-client"
)

// NodeNamespace returns the network namespace of a node.
func NodeNamespace(node string) string { return "wl-" + node }

// NodeName returns the name of the n-th node, from 1.
func NodeName(n int) string { return fmt.Sprintf("node%d", n) }

var ours = regexp.MustCompile(`^wl-(fabric|control|outside|client|node[0-9]+)$`)

// Existing returns the lab's namespaces that exist.
func Existing() []string {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil // no folder, no namespaces
	}
	var names []string
	for _, entry := range entries {
		if ours.MatchString(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	return names
}

// MaxNodes is the maximum number of nodes, limited by the lab's ranges.
const MaxNodes = 64

// Ranges of the lab. All are private; the fabric's are not routed anywhere.
var (
	fabricV4   = netip.MustParsePrefix("172.30.0.0/24")
	fabricV6   = netip.MustParsePrefix("fd00:30::/64")
	remoteV4   = netip.MustParsePrefix("172.31.0.0/24")
	remoteV6   = netip.MustParsePrefix("fd00:31::/64")
	ServicesV4 = netip.MustParsePrefix("10.96.0.0/16")
	ServicesV6 = netip.MustParsePrefix("fd00:10:96::/112")
	PodsV4     = netip.MustParsePrefix("10.244.0.0/16")
	PodsV6     = netip.MustParsePrefix("fd00:10:244::/56")
	ClusterDNS = netip.MustParseAddr("10.96.0.10")
)

// Machine is one machine on the segment, or behind its gateway.
type Machine struct {
	Name      string // node1, control, outside, client
	Namespace string
	Addresses []netip.Prefix // IPv4 first
	// Gateways are the gateway's addresses for a machine that is not on the segment, on a link of its own.
	Gateways []netip.Prefix
}

// V4 returns the machine's IPv4 address.
func (m Machine) V4() netip.Addr { return m.Addresses[0].Addr() }

// Plan lists the machines on the segment, with their addresses.
type Plan struct {
	Gateways []netip.Prefix // of the bridge, one per family; the DNS server and the registry are there
	Control  Machine
	Outside  Machine
	Client   Machine // not on the nodes' segment: its packets arrive through the gateway
	Nodes    []Machine
}

// NewPlan assigns all addresses: gateway 1, control plane 2, external client 3, nodes from 11. The client behind the
// gateway has 2 in a range of its own.
func NewPlan(nodes int, dual bool) (Plan, error) {
	if nodes < 1 || nodes > MaxNodes {
		return Plan{}, fmt.Errorf("nodes: %d: must be 1 to %d", nodes, MaxNodes)
	}
	in := func(v4, v6 netip.Prefix, host byte) []netip.Prefix {
		all := []netip.Prefix{within(v4, host)}
		if dual {
			all = append(all, within(v6, host))
		}
		return all
	}
	at := func(host byte) []netip.Prefix { return in(fabricV4, fabricV6, host) }
	p := Plan{
		Gateways: at(1),
		Control:  Machine{Name: "control", Namespace: Control, Addresses: at(2)},
		Outside:  Machine{Name: "outside", Namespace: Outside, Addresses: at(3)},
		Client: Machine{Name: "client", Namespace: Client, Addresses: in(remoteV4, remoteV6, 2),
			Gateways: in(remoteV4, remoteV6, 1)},
	}
	for i := range nodes {
		name := NodeName(i + 1)
		p.Nodes = append(p.Nodes, Machine{Name: name, Namespace: NodeNamespace(name), Addresses: at(byte(11 + i))})
	}
	return p, nil
}

// Machines returns all machines.
func (p Plan) Machines() []Machine {
	return append([]Machine{p.Control, p.Outside, p.Client}, p.Nodes...)
}

// within returns the address of the prefix with that last byte.
func within(prefix netip.Prefix, host byte) netip.Prefix {
	bytes := prefix.Addr().AsSlice()
	bytes[len(bytes)-1] = host
	addr, _ := netip.AddrFromSlice(bytes)
	return netip.PrefixFrom(addr, prefix.Bits())
}

// Address returns the machine's address of the same family as the prefix.
func (m Machine) Address(of netip.Prefix) netip.Addr {
	for _, p := range m.Addresses {
		if p.Addr().Is4() == of.Addr().Is4() {
			return p.Addr()
		}
	}
	return netip.Addr{}
}
