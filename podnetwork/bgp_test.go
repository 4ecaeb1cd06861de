package podnetwork

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/routes"
)

// learnAll is what nodes learn of each other in a mesh, and from routers at these addresses.
func learnAll(t *testing.T, store *model.Store, routers ...string) {
	t.Helper()
	var list []*model.BGPRoute
	for n := range store.Snapshot().Nodes() {
		for _, p := range n.PodCIDRs {
			hops := []model.BGPHop{{Addr: n.Primary(p.Addr().Is6()), Peer: n.Name, Node: true}}
			for _, r := range routers {
				if a := netip.MustParseAddr(r); a.Is4() == p.Addr().Is4() {
					hops = append(hops, model.BGPHop{Addr: a, Peer: "tor"})
				}
			}
			list = append(list, &model.BGPRoute{Prefix: p, Hops: hops})
		}
	}
	if err := store.SetBGPRoutes(list); err != nil {
		t.Fatal(err)
	}
	store.MarkSynced(routes.BGP.Kinds())
}

// routed has the router between segments know of pods, as one that has learned of them.
func (s *segments) routed() {
	for _, m := range s.nodes {
		for i, p := range s.model(m).PodCIDRs {
			s.router.Route(p.String(), s.model(m).InternalIPs[i].String())
		}
	}
}

// way waits until a node has exactly this route to a network: the fields of `ip route`.
func way(t *testing.T, m *machine, network, want string) {
	t.Helper()
	family := "-4"
	if strings.Contains(network, ":") {
		family = "-6"
	}
	testnet.Eventually(t, 10*time.Second, func() error {
		out := strings.TrimSpace(m.ns.Run("ip", family, "route", "show", "exact", network))
		if want == "" && out == "" || want != "" && strings.Count(out, "\n") == 0 &&
			strings.Contains(out+" ", want+" ") {
			return nil
		}
		return fmt.Errorf("%s: %s, want %q", network, out, want)
	})
}

// The kernel has the learned routes, and follows them: to the mode's substitutes, to unreachable and back.
func TestLearnedRoutesInTheKernel(t *testing.T) {
	c := newClusterWith(t, routes.BGP)
	m := c.nodes[0]
	networks := []string{"10.244.2.0/24", "fd00:244:0:2::/64"}
	learned := []string{"via 172.30.0.12", "via fd00:30::12"}
	all := func(want []string) {
		t.Helper()
		for i, n := range networks {
			way(t, m, n, want[i])
		}
	}
	forget := func() {
		t.Helper()
		if err := c.store.SetBGPRoutes(nil); err != nil {
			t.Fatal(err)
		}
	}
	ready := func(yes bool) {
		n, _ := c.store.Snapshot().Node("node2")
		now := *n
		now.Ready = yes
		c.put(&now)
	}
	all(learned)
	hop := func(p, via string) *model.BGPRoute {
		return &model.BGPRoute{Prefix: netip.MustParsePrefix(p), Hops: []model.BGPHop{
			{Addr: netip.MustParseAddr(via), Peer: "tor"}}}
	}
	if err := c.store.SetBGPRoutes([]*model.BGPRoute{hop(networks[0], "172.30.0.99"),
		hop(networks[1], "fd00:30::99")}); err != nil {
		t.Fatal(err)
	}
	all([]string{"via 172.30.0.99", "via fd00:30::99"})
	forget() // the node is Ready
	all(learned)
	if text := strings.Join(m.net.Facts(), "\n"); !strings.Contains(text,
		"no way to the blocks of 1 of 1 other nodes") ||
		!strings.Contains(text, "node2") {
		t.Errorf("the status says %s", text)
	}
	ready(false)
	all([]string{"unreachable", "unreachable"})
	learnAll(t, c.store)
	all(learned)
	forget()
	all([]string{"unreachable", "unreachable"})
	ready(true)
	all(learned)
	// What an agent before has left is replaced: a way by one that is none, and the other way round.
	m.stop()
	ready(false)
	m.start(c.store)
	all([]string{"unreachable", "unreachable"})
	m.stop()
	learnAll(t, c.store)
	m.start(c.store)
	all(learned)
}

// Networks outside of the cluster are routed to if a BGPPeer asks for them, beside the host's own routes, which stay.
func TestImportedNetworksInTheKernel(t *testing.T) {
	c := newClusterWith(t, routes.BGP)
	m := c.nodes[0]
	peer := &model.BGPPeer{Name: "tor", Import: model.BGPImport{DefaultRoute: true,
		Networks: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32")}}}
	if err := c.store.Write(func(w *model.Writer) { w.PutBGPPeer(peer) }); err != nil {
		t.Fatal(err)
	}
	var list []*model.BGPRoute
	for p, via := range map[string]string{"198.51.100.0/24": "172.30.0.99", "2001:db8:1::/48": "fd00:30::99",
		"203.0.113.0/24": "172.30.0.99", "0.0.0.0/0": "172.30.0.12", "::/0": "fd00:30::12"} {
		list = append(list, &model.BGPRoute{Prefix: netip.MustParsePrefix(p), Hops: []model.BGPHop{
			{Addr: netip.MustParseAddr(via), Peer: "tor"}}})
	}
	if err := c.store.SetBGPRoutes(list); err != nil {
		t.Fatal(err)
	}
	way(t, m, "198.51.100.0/24", "via 172.30.0.99")
	way(t, m, "2001:db8:1::/48", "via fd00:30::99")
	way(t, m, "203.0.113.0/24", "")
	defaults := func(n int) {
		t.Helper()
		for _, f := range []string{"-4", "-6"} {
			testnet.Eventually(t, 10*time.Second, func() error {
				out := m.ns.Run("ip", f, "route", "show", "exact", "default")
				if strings.Count(out, "metric 87") != n || !strings.Contains(out, "172.30.0.99") &&
					!strings.Contains(out, "fd00:30::99") {
					return fmt.Errorf("default routes: %s", out)
				}
				return nil
			})
		}
	}
	defaults(1)
	if err := c.store.Write(func(w *model.Writer) {
		w.PutBGPPeer(&model.BGPPeer{Name: "tor"})
	}); err != nil {
		t.Fatal(err)
	}
	way(t, m, "198.51.100.0/24", "")
	way(t, m, "2001:db8:1::/48", "")
	defaults(0)
}

// TestUpgradeFromBeforeBGPAndEncryption: nodes of an earlier version, which knows neither, publish no keys and no
// routes. They get both settings node by node, under traffic, and strict encryption after that. Nothing is lost. An
// uninstall leaves nothing of either.
func TestUpgradeFromBeforeBGPAndEncryption(t *testing.T) {
	c := newClusterWith(t, routes.Auto)
	for i := range c.nodes {
		n, _ := c.store.Snapshot().Node(fmt.Sprint("node", i+1))
		now := *n
		now.Ready = true
		c.put(&now)
	}
	a, d := c.nodes[0].mustAdd("a"), c.nodes[1].mustAdd("d")
	tell(d.ns)
	e := newEncrypted()
	again := func(m *machine, preferred bool) {
		m.stop()
		m.mode, m.encrypt = routes.BGP, e
		e.preferred, e.strict = preferred, !preferred
		m.start(c.store)
	}
	if err := c.store.SetBGPRoutes(nil); err != nil {
		t.Fatal(err)
	}
	c.store.MarkSynced(routes.BGP.Kinds())
	metered(t, a, []*pod{d}, 7000, func() {
		again(c.nodes[0], true)
		for f, ip := range d.ips { // the other node is reached as before
			if out := wayTo(c.nodes[0], a.ips[f], ip); strings.Contains(out, "dev wayleave-wg") {
				t.Errorf("an earlier version is reached by %s", out)
			}
		}
		again(c.nodes[1], true)
		learnAll(t, c.store)
		awaitSessions(t, c.nodes)
		for f := range 2 { // both kernels encrypt, before one of them takes nothing else
			encryptedWay(t, c.nodes[0], a.ips[f], d.ips[f])
			encryptedWay(t, c.nodes[1], d.ips[f], a.ips[f])
		}
		again(c.nodes[0], false)
		again(c.nodes[1], false)
	})
	for f, ip := range d.ips {
		encryptedWay(t, c.nodes[0], a.ips[f], ip)
	}
	for _, m := range c.nodes {
		m.stop()
		config := m.config(c.store)
		m.ns.Must(func() error { return Uninstall(t.Context(), config) })
		m.ns.Must(func() error {
			left, err := Remains(t.Context(), config)
			if len(left) > 0 {
				t.Errorf("%s: left is %q", m.name, left)
			}
			return err
		})
		out := m.ns.Run("sh", "-c", "ip route show proto 87 table all; ip -6 route show proto 87 table all; "+
			"ip rule; ip -6 rule; ip link; nft list tables")
		for _, ours := range []string{"10.244.", "fd00:244:", "lookup 87", "wayleave"} {
			if strings.Contains(out, ours) {
				t.Errorf("%s: %s is left: %s", m.name, ours, out)
			}
		}
	}
}

// encryptedWay waits until a node's kernel sends packets of a pod to another by WireGuard.
func encryptedWay(t *testing.T, m *machine, from, to netip.Addr) {
	t.Helper()
	testnet.Eventually(t, 30*time.Second, func() error {
		if out := wayTo(m, from, to); !strings.Contains(out, "dev wayleave-wg") {
			return fmt.Errorf("%s: the way to %s is %s", m.name, to, out)
		}
		return nil
	})
}
