package podnetwork

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/routes"
)

// families of a cluster.
type families struct {
	name   string
	v4, v6 bool
}

// segments is a cluster of four nodes, two on each of two segments with a router
// between them that knows of no pods.
type segments struct {
	cluster
	router *testnet.NS
}

func newSegments(t *testing.T, mode routes.Mode, f families, mtu int, bin string) *segments {
	t.Helper()
	return newSegmentsOf(t, mode, f, mtu, bin, nil)
}

// newSegmentsOf is newSegments; change is called for each machine before it starts, and may be nil.
func newSegmentsOf(t *testing.T, mode routes.Mode, f families, mtu int, bin string, change func(*machine)) *segments {
	t.Helper()
	s := &segments{router: testnet.New(t, "router")}
	s.t = t
	s.router.Router()
	var err error
	if s.store, err = model.NewStore(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.store.Close() })
	for i := range 2 {
		fabric := testnet.New(t, fmt.Sprintf("segment%d", i+1))
		plug := fabric.Bridge("br0")
		attach := func(n *testnet.NS, link, port string) {
			testnet.Veth(n, link, fabric, port)
			plug(port)
			n.Run("ip", "link", "set", link, "mtu", fmt.Sprint(mtu))
			fabric.Run("ip", "link", "set", port, "mtu", fmt.Sprint(mtu))
		}
		attach(s.router, fmt.Sprintf("eth%d", i), "p9")
		if f.v4 {
			s.router.Addr(fmt.Sprintf("eth%d", i), fmt.Sprintf("172.30.%d.1/24", i+1))
		}
		if f.v6 {
			s.router.Addr(fmt.Sprintf("eth%d", i), fmt.Sprintf("fd00:30:%d::1/64", i+1))
		}
		for j := range 2 {
			s.node(i, j, mode, f, bin, attach)
		}
	}
	s.store.MarkSynced(model.NodeKind)
	if mode == routes.BGP { // the router has learned of pods
		s.routed()
		learnAll(t, s.store, "172.30.1.1", "172.30.2.1", "fd00:30:1::1", "fd00:30:2::1")
	}
	for _, m := range s.nodes {
		m.probe = 300 * time.Millisecond
		if change != nil {
			change(m)
		}
		m.start(s.store)
	}
	return s
}

func (s *segments) node(i, j int, mode routes.Mode, f families, bin string, attach func(*testnet.NS, string, string)) {
	n := i*2 + j + 1
	m := &machine{t: s.t, name: fmt.Sprintf("node%d", n), ns: testnet.New(s.t, fmt.Sprintf("node%d", n)),
		dir: s.t.TempDir(), bin: bin, mode: mode}
	attach(m.ns, "eth0", fmt.Sprintf("p%d", j))
	node := &model.Node{Name: m.name}
	add := func(addr, gateway, all, cidr string) {
		m.ns.Addr("eth0", addr)
		m.ns.Route(all, gateway)
		node.InternalIPs = append(node.InternalIPs, netip.MustParsePrefix(addr).Addr())
		node.PodCIDRs = append(node.PodCIDRs, netip.MustParsePrefix(cidr))
	}
	if f.v4 {
		add(fmt.Sprintf("172.30.%d.1%d/24", i+1, n), fmt.Sprintf("172.30.%d.1", i+1), "0.0.0.0/0",
			fmt.Sprintf("10.244.%d.0/24", n))
	}
	if f.v6 {
		add(fmt.Sprintf("fd00:30:%d::1%d/64", i+1, n), fmt.Sprintf("fd00:30:%d::1", i+1), "::/0",
			fmt.Sprintf("fd00:244:0:%d::/64", n))
	}
	s.nodes = append(s.nodes, m)
	s.put(node)
}

func (s *segments) model(m *machine) *model.Node {
	n, _ := s.store.Snapshot().Node(m.name)
	return n
}

// transfer is how many bytes a fetch moves: many packets of the largest MTU, and few enough for an emulated processor.
var transfer = transferSize()

func transferSize() int64 {
	if os.Getenv("WAYLEAVE_TEST_EMULATED") != "" {
		return 256 << 10
	}
	return 1 << 20
}

// serveTransfers has a server send a transfer to each client: no path may swallow big packets.
func serveTransfers(ns *testnet.NS) {
	ns.Serve("tcp", ":81", func(c net.Conn) { _, _ = io.Copy(c, io.LimitReader(zeros{}, transfer)) })
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func fetch(from *testnet.NS, to netip.Addr) error {
	c, err := from.Dial("tcp", netip.AddrPortFrom(to, 81).String(), 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, c)
	if err != nil || n != transfer {
		err = fmt.Errorf("%d bytes of %d arrived: %v", n, transfer, err)
	}
	return err
}

// TestMatrix: all pods and nodes reach each other without NAT, and large transfers
// arrive whole, whatever the routing, the families and the MTU.
func TestMatrix(t *testing.T) {
	bin := plugin(t)
	for _, f := range []families{{"IPv4", true, false}, {"IPv6", false, true}, {"dual", true, true}} {
		for _, mode := range []routes.Mode{routes.Auto, routes.VXLAN, routes.Direct, routes.BGP} {
			for _, mtu := range []int{1500, 9000} {
				t.Run(fmt.Sprintf("%s %s %d", f.name, mode, mtu), func(t *testing.T) {
					t.Parallel()
					everybody(t, newSegments(t, mode, f, mtu, bin), mode)
				})
			}
		}
	}
}

func everybody(t *testing.T, s *segments, mode routes.Mode) []*pod {
	pods := make([]*pod, len(s.nodes))
	for i, m := range s.nodes {
		pods[i] = m.mustAdd(fmt.Sprintf("pod%d", i+1))
		for _, ns := range []*testnet.NS{pods[i].ns, m.ns} {
			tell(ns)
			serveTransfers(ns)
		}
	}
	for i := range s.nodes {
		for j := range s.nodes {
			if mode == routes.Direct && i/2 != j/2 {
				continue // not on one segment: refused by name, see below
			}
			for f, ip := range s.model(s.nodes[j]).InternalIPs {
				self := s.model(s.nodes[i]).InternalIPs[f]
				expectSeen(t, pods[i].ns, pods[j].ips[f], pods[i].ips[f])
				expectSeen(t, pods[i].ns, ip, pods[i].ips[f])
				expectSeen(t, s.nodes[i].ns, pods[j].ips[f], self)
				for _, way := range []struct {
					from *testnet.NS
					to   netip.Addr
				}{{pods[i].ns, pods[j].ips[f]}, {pods[i].ns, ip}, {s.nodes[i].ns, pods[j].ips[f]}} {
					if err := fetch(way.from, way.to); err != nil {
						t.Errorf("%s fetches from %s: %v", way.from.Name, way.to, err)
					}
				}
			}
		}
	}
	if mode == routes.BGP {
		for _, m := range s.nodes {
			if out := m.ns.Run("ip", "route", "show", "dev", routes.Device); strings.Contains(out, "via") {
				t.Errorf("%s uses the tunnel: %s", m.name, out)
			}
		}
	}
	if mode == routes.Direct {
		testnet.Eventually(t, 5*time.Second, func() error {
			if e := s.nodes[0].net.Routes.State().Error; !strings.Contains(e, "node3") &&
				!strings.Contains(e, "is on no network of this node") {
				return fmt.Errorf("the node on the other segment is not named: %q", e)
			}
			return nil
		})
	}
	return pods
}

// TestIPv6OverASmallUnderlay: IPv6 does not fit into a tunnel over an underlay of
// 1280 bytes. That is said of each node, and IPv4 works all the same.
func TestIPv6OverASmallUnderlay(t *testing.T) {
	t.Parallel()
	s := newSegments(t, routes.VXLAN, families{"dual", true, true}, 1280, plugin(t))
	from, to := s.nodes[0].mustAdd("from"), s.nodes[2].mustAdd("to")
	tell(to.ns)
	serveTransfers(to.ns)
	expectSeen(t, from.ns, to.ips[0], from.ips[0])
	if err := fetch(from.ns, to.ips[0]); err != nil {
		t.Error(err)
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		want := "spec.podCIDRs: fd00:244:0:3::/64 cannot be reached by VXLAN: IPv6 asks for an MTU of 1280, eth0 " +
			"has 1280, less 50"
		if p, _ := s.nodes[0].bad.Load("routes node3"); !strings.Contains(fmt.Sprint(p), want) {
			return fmt.Errorf("reported is %v, want %q", p, want)
		}
		return nil
	})
	if c, err := from.ns.Dial("tcp", netip.AddrPortFrom(to.ips[1], 80).String(), time.Second); err == nil {
		c.Close()
		t.Error("IPv6 went through")
	}
}
