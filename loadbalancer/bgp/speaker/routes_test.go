package speaker

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer/bgp"
)

// learned waits until a node has exactly the routes, "prefix via next hop from session".
func (n *node) learned(want ...string) {
	n.t.Helper()
	testnet.Eventually(n.t, 60*time.Second, func() error {
		var got []string
		for _, r := range n.now().Routes {
			got = append(got, fmt.Sprintf("%s via %s from %s", r.Prefix, r.NextHop, r.Session))
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("%v, want %v", got, want)
		}
		return nil
	})
}

// static has a router announce prefixes.
func static(config string, prefixes ...string) string {
	for i, p := range prefixes {
		family := "ipv4"
		if strings.Contains(p, ":") {
			family = "ipv6"
		}
		config += fmt.Sprintf("protocol static s%d { %s; route %s blackhole; }\n", i, family, p)
	}
	return strings.ReplaceAll(config, "export none", "export where source = RTS_STATIC")
}

// Routes of a peer are accepted as the rows say, first match first, never announced to another peer, and kept while the
// peer restarts.
func TestRoutesOfAPeer(t *testing.T) {
	t.Parallel()
	w := newRack(t, 2)
	n := w.nodes[0]
	testnet.NewBIRD(w.router, static(bird(w.nodes[:1], ""), "10.244.2.0/24", "10.244.2.7/32",
		"10.96.0.0/24", "0.0.0.0/0",
		"2001:db8:2::/64"))
	other := testnet.NewBIRD(w.nodes[1].ns, bird(w.nodes[:1], ""))
	state := n.state(toRouter(router4), "192.0.2.10/32")
	s := toRouter(w.nodes[1].addr[0])
	s.Name, s.NextHop6 = "BGPPeer other", n.addr[1]
	state.Sessions = append(state.Sessions, s)
	state.Classes[0].Sessions = append(state.Classes[0].Sessions, s.Name)
	state.Imports = []bgp.Import{
		{Prefixes: []bgp.PrefixRange{bgp.Within(netip.MustParsePrefix("10.96.0.0/16"))}},
		{Sessions: []string{"BGPPeer other"}, Accept: true, Prefixes: []bgp.PrefixRange{{Max: 32,
			Prefix: netip.MustParsePrefix("0.0.0.0/0")}}},
		{Sessions: []string{"BGPPeer router"}, Accept: true, Prefixes: []bgp.PrefixRange{
			bgp.Exactly(netip.MustParsePrefix("10.244.2.0/24")), bgp.Within(netip.MustParsePrefix("10.96.0.0/16")),
			bgp.Within(netip.MustParsePrefix("2001:db8::/32"))}}}
	n.start(state)
	routes := []string{"10.244.2.0/24 via 10.9.0.254 from BGPPeer router",
		"2001:db8:2::/64 via fd00:9::254 from BGPPeer router"}
	n.learned(routes...)
	testnet.Eventually(t, 70*time.Second, func() error {
		if !n.now().Converged {
			return fmt.Errorf("not converged: %+v", n.now())
		}
		return nil
	})
	has(t, other, "192.0.2.10/32")
	// A change of the rows is applied to what the peer has sent.
	state.Imports = state.Imports[:2]
	n.Tell(state)
	n.learned()
}

// A route reflector passes routes of nodes on to nodes, with their own next hop, and to no router.
func TestARouteReflector(t *testing.T) {
	t.Parallel()
	w := newRack(t, 3)
	r := testnet.NewBIRD(w.router, bird(w.nodes[:1], ""))
	internal := func(from, to int, client bool) bgp.Session {
		return bgp.Session{Name: fmt.Sprint("Node node", to+1), Addr: w.nodes[to].addr[0], ASN: nodeASN,
			Hold: 30 * time.Second, Connect: 2 * time.Second, Restart: 60 * time.Second, V4: true, V6: true,
			ReflectorClient: client, NextHop6: w.nodes[from].addr[1]}
	}
	all := []bgp.Import{{Accept: true, Prefixes: []bgp.PrefixRange{bgp.Within(netip.MustParsePrefix("10.244.0.0/16"))}}}
	reflector := w.nodes[0].state(toRouter(router4))
	reflector.Sessions = append(reflector.Sessions, internal(0, 1, true), internal(0, 2, true))
	reflector.Imports = all
	w.nodes[0].start(reflector)
	for _, i := range []int{1, 2} {
		n := w.nodes[i]
		state := n.state(internal(i, 0, false), fmt.Sprintf("10.244.%d.0/24", i+1))
		state.Imports = all
		n.start(state)
	}
	w.nodes[1].learned("10.244.3.0/24 via 10.9.0.3 from Node node1")
	w.nodes[2].learned("10.244.2.0/24 via 10.9.0.2 from Node node1")
	w.nodes[0].learned("10.244.2.0/24 via 10.9.0.2 from Node node2", "10.244.3.0/24 via 10.9.0.3 from Node node3")
	w.nodes[0].established("BGPPeer router")
	if err := hasNow(r); err != nil {
		t.Error(err)
	}
	// The others keep the routes while the reflector's process restarts.
	pid := w.nodes[0].now().PID
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if got := w.nodes[1].now().Routes; len(got) != 1 {
			t.Fatalf("node2 has the routes %+v", got)
		}
	}
	w.nodes[0].again("Node node2", pid)
	w.nodes[0].learned("10.244.2.0/24 via 10.9.0.2 from Node node2", "10.244.3.0/24 via 10.9.0.3 from Node node3")
}

// A session by interface finds the only neighbour, by its link-local address.
func TestAPeerByItsInterface(t *testing.T) {
	t.Parallel()
	w := newRack(t, 1)
	n := w.nodes[0]
	n.ns.Run("ip", "addr", "add", "fe80::1/64", "dev", "eth0", "nodad")
	w.router.Run("ip", "addr", "add", "fe80::fe/64", "dev", "eth0", "nodad")
	for _, ns := range []*testnet.NS{n.ns, w.router} { // only those are left
		for line := range strings.Lines(ns.Run("ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link")) {
			if a := strings.Fields(line)[3]; a != "fe80::1/64" && a != "fe80::fe/64" {
				ns.Run("ip", "addr", "del", a, "dev", "eth0")
			}
		}
	}
	r := testnet.NewBIRD(w.router,
		fmt.Sprintf("log stderr all;\nrouter id %s;\nprotocol device {}\nprotocol bgp n1 {\n"+
			" local as %d; neighbor fe80::1%%eth0 as %d; hold time 30; connect delay time 1;\n"+
			" ipv4 { import all; export none; };\n ipv6 { import all; export none; };\n}\n", router4,
			routerASN, nodeASN))
	s := toRouter(netip.Addr{})
	s.Interface = "eth0"
	state := n.state(s, "192.0.2.10/32", "2001:db8::10/128")
	state.Sessions[0].NextHop6 = n.addr[1]
	n.start(state)
	n.established("BGPPeer router")
	has(t, r, "192.0.2.10/32", "2001:db8::10/128")
}

// Add-path and long-lived graceful restart are agreed on with a router that has them.
func TestCapabilities(t *testing.T) {
	t.Parallel()
	w := newRack(t, 1)
	n := w.nodes[0]
	r := testnet.NewBIRD(w.router,
		strings.ReplaceAll(bird(w.nodes, "graceful restart on; long lived graceful restart on;"),
			"import all", "add paths on; import all"))
	s := toRouter(router4)
	s.AddPath, s.LongLived = true, time.Hour
	n.start(n.state(s, "192.0.2.10/32"))
	has(t, r, "192.0.2.10/32")
	out := r.Show("show", "protocols", "all", "n1_4")
	_, theirs, ok := strings.Cut(out, "Neighbor capabilities")
	theirs, _, _ = strings.Cut(theirs, "Session:")
	for _, want := range []string{"Graceful restart", "Restart time: 60", "Long-lived graceful restart", "ADD-PATH",
		"4-octet AS numbers", "Extended next hop"} {
		if !ok || !strings.Contains(theirs, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	testnet.Eventually(t, 20*time.Second, func() error {
		if x, _ := n.session("BGPPeer router"); !x.GracefulRestart {
			return fmt.Errorf("%+v", x)
		}
		return nil
	})
}
