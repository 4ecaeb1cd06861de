package dataplane

import (
	"fmt"
	"net/netip"
	"testing"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/bpf/fastpath"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	policies "wayleave.dev/networkpolicy/nftables"
	"wayleave.dev/podnetwork"
	"wayleave.dev/podnetwork/ipam"
	"wayleave.dev/service"
	services "wayleave.dev/service/nftables"
)

// Contestants.
const (
	plain    = "plain veths"
	nftables = "mode nftables"
	ebpf     = "mode ebpf"
)

// Paths.
const (
	local  = "on one node"
	direct = "between nodes, direct"
	vxlan  = "between nodes, VXLAN"
)

// serviceCount is how many Services the nodes of a mode have.
const serviceCount = 10_000

// world is a pair of pods with a path between them.
type world struct {
	client, server *testnet.NS
	to             netip.Addr
	kernels        []*fastpath.Kernel
}

// end is a node with its pod.
type end struct {
	node, pod *testnet.NS
	addr      netip.Addr // of the pod
	link      string     // of the pod, on its node
}

func podCIDR(n int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n)) }

func nodeIP(n int) netip.Addr { return netip.AddrFrom4([4]byte{172, 30, 0, byte(n)}) }

// newWorld makes two nodes with a pod each, or one with both.
func newWorld(t *testing.T, contestant, path string) *world {
	t.Helper()
	nodes := []*testnet.NS{testnet.New(t, "node1"), testnet.New(t, "node2")}
	testnet.Veth(nodes[0], "eth0", nodes[1], "eth0")
	var ends []end
	for i, node := range nodes {
		me, peer := i+1, 2-i
		node.Router()
		node.Addr("eth0", nodeIP(me).String()+"/24")
		e := end{node: node, pod: testnet.New(t, "pod"), link: fmt.Sprintf("wl%010d", me),
			addr: podCIDR(me).Addr().Next().Next()}
		if path == local {
			e.node = nodes[0]
		}
		e.connect(me, path)
		switch path {
		case direct:
			node.Run("ip", "route", "add", podCIDR(peer).String(), "via", nodeIP(peer).String())
		case vxlan:
			tunnel(node, me, peer)
		}
		ends = append(ends, e)
	}
	w := &world{client: ends[0].pod, server: ends[1].pod, to: ends[1].addr}
	if contestant != plain {
		for i, node := range nodes {
			var own []end
			for _, e := range ends {
				if e.node == node {
					own = append(own, e)
				}
			}
			w.rules(t, node, i+1, ends)
			if contestant == ebpf {
				w.fast(t, node, own)
			}
		}
	}
	return w
}

// connect links the pod to its node, as podnetwork/veth does.
func (e end) connect(n int, path string) {
	podMAC, nodeMAC := fmt.Sprintf("0a:57:00:00:01:%02x", n), "ee:57:4c:00:00:01"
	testnet.Veth(e.pod, "eth0", e.node, e.link)
	if path == vxlan {
		e.pod.Run("ip", "link", "set", "eth0", "mtu", "1450")
		e.node.Run("ip", "link", "set", e.link, "mtu", "1450")
	}
	e.pod.Run("ip", "link", "set", "eth0", "address", podMAC)
	e.node.Run("ip", "link", "set", e.link, "address", nodeMAC)
	e.pod.Addr("eth0", e.addr.String()+"/32")
	e.pod.Run("ip", "neigh", "add", "169.254.1.1", "lladdr", nodeMAC, "dev", "eth0", "nud", "permanent")
	e.pod.Run("ip", "route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "onlink")
	e.node.Run("ip", "route", "add", e.addr.String()+"/32", "dev", e.link)
	e.node.Run("ip", "neigh", "add", e.addr.String(), "lladdr", podMAC, "dev", e.link, "nud", "permanent")
}

func tunnel(node *testnet.NS, me, peer int) {
	mac := func(n int) string { return fmt.Sprintf("02:00:00:00:00:%02x", n) }
	via := fmt.Sprintf("10.9.0.%d", peer)
	node.Run("ip", "link", "add", "vx0", "address", mac(me), "mtu", "1450", "type", "vxlan", "id", "1", "dstport",
		"4789", "local", nodeIP(me).String(), "nolearning")
	node.Run("ip", "addr", "add", fmt.Sprintf("10.9.0.%d/24", me), "dev", "vx0")
	node.Run("ip", "link", "set", "vx0", "up")
	node.Run("ip", "neigh", "add", via, "lladdr", mac(peer), "dev", "vx0", "nud", "permanent")
	node.Run("bridge", "fdb", "append", mac(peer), "dev", "vx0", "dst", nodeIP(peer).String())
	node.Run("ip", "route", "add", podCIDR(peer).String(), "via", via)
}

// rules are those of Services, of policies that isolate the server in both directions, and of the pod network.
func (w *world) rules(t *testing.T, node *testnet.NS, n int, ends []end) {
	t.Helper()
	conn, err := nft.NewKernel(node.FD())
	if err != nil {
		t.Fatal(err)
	}
	all := []netip.Prefix{podCIDR(1), podCIDR(2)}
	network := podnetwork.NFTables(conn)(podnetwork.RulesConfig{Leases: func() []ipam.Lease { return nil }})
	facts := podnetwork.ClusterFacts{Own: all[n-1 : n], All: all, Nodes: []netip.Addr{nodeIP(1), nodeIP(2)}}
	if err := network.Sync(t.Context(), map[string]podnetwork.ClusterFacts{"": facts}); err != nil {
		t.Fatal(err)
	}
	entries := map[networkpolicy.Key]networkpolicy.Entry{}
	for _, d := range []networkpolicy.Direction{networkpolicy.Ingress, networkpolicy.Egress} {
		for _, e := range ends {
			entries[networkpolicy.Key{Kind: networkpolicy.PodEntry, Direction: d, Addr: e.addr}] =
				networkpolicy.Entry{Profile: "0123456789abcdef"}
			ports := []networkpolicy.PortRange{{Protocol: model.TCP, From: 81, To: 83},
				{Protocol: model.UDP, From: 84, To: 84}}
			entries[networkpolicy.Key{Kind: networkpolicy.PeerEntry, Direction: d, Addr: e.addr,
				Profile: "0123456789abcdef"}] = networkpolicy.Entry{Ports: networkpolicy.Ports{Ranges: ports}}
		}
	}
	if err := policies.New(conn, conntrack.NewTracker(node.FD())).Sync(t.Context(), entries); err != nil {
		t.Fatal(err)
	}
	plans := map[model.Name]service.Plan{}
	for i := range serviceCount {
		vip := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
		plans[model.Name{Namespace: "default", Name: fmt.Sprintf("s%d", i)}] = service.Plan{VIPs: []netip.Addr{vip},
			Frontends: []service.FrontendPlan{{Frontend: service.Frontend{Addr: vip, Protocol: model.TCP, Port: 80},
				Slots: []netip.AddrPort{netip.AddrPortFrom(ends[1].addr, 81)}}}}
	}
	mode := services.New(conn, nil)
	mode.SetNodeFacts(service.NodeFacts{NodeIPs: []netip.Addr{nodeIP(n)}, PodCIDRs: all, OwnPodCIDRs: all[n-1 : n]})
	if err := mode.Sync(t.Context(), plans); err != nil {
		t.Fatal(err)
	}
}

func (w *world) fast(t *testing.T, node *testnet.NS, own []end) {
	t.Helper()
	node.Sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1")
	s := fastpath.State{Uplinks: []string{"eth0", "vx0"}}
	for _, e := range own {
		s.Pods = append(s.Pods, fastpath.Pod{Link: e.link, Addrs: []netip.Addr{e.addr}})
	}
	k := &fastpath.Kernel{NSFD: node.FD()}
	if _, err := k.Set(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	w.kernels = append(w.kernels, k)
}
