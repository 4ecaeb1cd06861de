package speaker

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/lossmeter"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer/bgp"
)

// frr is the configuration of a router with a session to each node over IPv4, for both families.
func frr(nodes []*node, options ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "frr defaults datacenter\nhostname router\nlog stdout errors\nrouter bgp %d\n bgp router-id %s\n"+
		" no bgp ebgp-requires-policy\n bgp bestpath as-path multipath-relax\n no bgp default ipv4-unicast\n"+
		" bgp graceful-restart restart-time 60\n", routerASN, router4)
	for _, n := range nodes {
		fmt.Fprintf(&b,
			" neighbor %[1]s remote-as %[2]d\n neighbor %[1]s timers 10 30\n neighbor %[1]s timers connect 2\n",
			n.addr[0], nodeASN)
		for _, o := range options {
			fmt.Fprintf(&b, " neighbor %s %s\n", n.addr[0], o)
		}
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		fmt.Fprintf(&b, " address-family %s unicast\n  maximum-paths 8\n", family)
		for _, n := range nodes {
			fmt.Fprintf(&b, "  neighbor %s activate\n", n.addr[0])
		}
		fmt.Fprintf(&b, " exit-address-family\n")
	}
	return b.String()
}

// routed waits until the router's kernel has routes to exactly n next hops for each address.
func routed(t *testing.T, ns *testnet.NS, n int, addrs ...string) {
	t.Helper()
	testnet.Eventually(t, 60*time.Second, func() error {
		for _, a := range addrs {
			out, err := ns.Try("ip", family(a), "route", "show", a)
			if err != nil {
				return err
			}
			if got := strings.Count(out, "via "); got != n {
				return fmt.Errorf("%s has %d next hops, want %d: %s", a, got, n, out)
			}
		}
		return nil
	})
}

func family(a string) string {
	if strings.Contains(a, ":") {
		return "-6"
	}
	return "-4"
}

// uptime is when the session was established.
func (n *node) since(name string) time.Time {
	s, _ := n.session(name)
	if s.State != bgp.Established {
		return time.Time{}
	}
	return s.Since
}

// again waits until the session was established anew by another process.
func (n *node) again(name string, pid int) {
	n.t.Helper()
	testnet.Eventually(n.t, 60*time.Second, func() error {
		if s, _ := n.session(name); n.now().PID == pid || s.State != bgp.Established {
			return fmt.Errorf("pid %d, was %d: %+v, problem %q", n.now().PID, pid, s, n.now().Problem)
		}
		return nil
	})
}

// meter sends numbered datagrams to addresses that the node gets, through the router's routes, until the function that
// it returns is called, which fails the test if one was lost.
func meter(t *testing.T, router *testnet.NS, n *node, addrs ...string) (lossless func()) {
	t.Helper()
	var probes []lossmeter.Probe
	for _, a := range addrs {
		bits := "/32"
		if family(a) == "-6" {
			bits = "/128"
		}
		n.ns.Addr("lo", a+bits)
		target := net.JoinHostPort(a, "7")
		echo := n.ns.ListenPacket("udp", target)
		t.Cleanup(func() { _ = echo.Close() })
		go func() { _ = lossmeter.ServeUDP(echo) }()
		probes = append(probes, lossmeter.Probe{Kind: "udp", Target: target, Rate: 100})
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	reports := make(chan lossmeter.Report, 1)
	go func() {
		r, err := lossmeter.Run(ctx, router.Dial, probes)
		if err != nil {
			t.Error(err)
		}
		reports <- r
	}()
	return func() {
		t.Helper()
		cancel()
		if r := <-reports; r.Lost() > 0 || r.Sent() < 100 {
			t.Errorf("lost %d of %d:\n%s", r.Lost(), r.Sent(), r)
		}
	}
}

// A process says that it restarts, and that the node forwards all the time (bits R and F), only if an earlier one has
// made the rules: not after a reboot.
func TestTheForwardingBit(t *testing.T) {
	t.Parallel()
	w := newRack(t, 1)
	n := w.nodes[0]
	r := testnet.NewBIRD(w.router, bird(w.nodes, ""))
	n.start(n.state(toRouter(router4), "192.0.2.10/32"))
	theirs := func() string {
		_, text, _ := strings.Cut(r.Show("show", "protocols", "all", "n1_4"), "Neighbor capabilities")
		text, _, _ = strings.Cut(text, "Session:")
		return text
	}
	has(t, r, "192.0.2.10/32")
	if text := theirs(); !strings.Contains(text, "AF supported: ipv4 ipv6") ||
		strings.Contains(text, "preserved: ipv4") ||
		strings.Contains(text, "recovery") {
		t.Errorf("at first: %s", text)
	}
	pid := n.now().PID
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.again("BGPPeer router", pid)
	if text := theirs(); !strings.Contains(text, "AF preserved: ipv4 ipv6") || !strings.Contains(text, "recovery") {
		t.Errorf("after a restart: %s", text)
	}
}

// Routers keep every route while the process is killed, the agent is killed, the agent is stopped in good order, and
// the next one has fewer addresses to announce: only those that it lacks go.
func TestRoutersKeepRoutesThroughRestarts(t *testing.T) {
	t.Parallel()
	prefixes := []string{"192.0.2.10/32", "192.0.2.11/32", "2001:db8::10/128", "2001:db8::11/128"}
	for name, start := range map[string]func(w *rack){
		"BIRD": func(w *rack) { testnet.NewBIRD(w.router, bird(w.nodes, "")) },
		"FRR":  func(w *rack) { testnet.NewFRR(w.router, frr(w.nodes)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newRack(t, 1)
			n := w.nodes[0]
			start(w)
			state := n.state(toRouter(router4), prefixes...)
			n.start(state)
			routed(t, w.router, 1, "192.0.2.10", "192.0.2.11", "2001:db8::10", "2001:db8::11")
			m := testnet.WatchRoutes(w.router)
			lossless := meter(t, w.router, n, "192.0.2.10", "2001:db8::10")
			pid := n.now().PID
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			n.again("BGPPeer router", pid)
			// The agent finds the rules of the one before it.
			state.Restarting = true
			for _, end := range []func(){func() { n.Kill() }, func() { n.Stop() }} {
				pid = n.now().PID
				end()
				time.Sleep(time.Second)
				n.start(state)
				n.again("BGPPeer router", pid)
			}
			time.Sleep(3 * time.Second) // End-of-RIB, and the router's work after it
			if lost := m.Lost(prefixes...); len(lost) > 0 {
				t.Errorf("the router lost routes: %v", lost)
			}
			lossless()
			routed(t, w.router, 1, "192.0.2.10", "192.0.2.11", "2001:db8::10", "2001:db8::11")
			n.Kill()
			state = n.state(toRouter(router4), prefixes[0], prefixes[2])
			state.Restarting = true
			n.start(state)
			routed(t, w.router, 0, "192.0.2.11", "2001:db8::11")
			routed(t, w.router, 1, "192.0.2.10", "2001:db8::10")
			if lost := m.Lost(prefixes[0], prefixes[2]); len(lost) > 0 {
				t.Errorf("the router lost routes that stay: %v", lost)
			}
		})
	}
}

// The routes of a node that dies go within the hold time, and those of a process that nothing follows within the
// restart time.
func TestRoutesOfTheDeadGo(t *testing.T) {
	t.Parallel()
	t.Run("the node dies", func(t *testing.T) {
		t.Parallel()
		w := newRack(t, 1)
		n := w.nodes[0]
		r := testnet.NewBIRD(w.router, strings.ReplaceAll(bird(w.nodes, ""), "hold time 30", "hold time 9"))
		n.start(n.state(toRouter(router4), "192.0.2.10/32"))
		has(t, r, "192.0.2.10/32")
		n.ns.Run("ip", "link", "set", "eth0", "down")
		died := time.Now()
		has(t, r)
		if took := time.Since(died); took > 20*time.Second {
			t.Errorf("the route was there for %s with a hold time of 9s", took)
		}
	})
	t.Run("the process ends for good", func(t *testing.T) {
		t.Parallel()
		w := newRack(t, 1)
		n := w.nodes[0]
		r := testnet.NewBIRD(w.router, bird(w.nodes, ""))
		s := toRouter(router4)
		s.Restart = 5 * time.Second
		n.start(n.state(s, "192.0.2.10/32"))
		has(t, r, "192.0.2.10/32")
		n.Kill()
		time.Sleep(2 * time.Second)
		if err := hasNow(r, "192.0.2.10/32"); err != nil {
			t.Errorf("within the restart time: %v", err)
		}
		has(t, r)
	})
}

// FRR spreads over three nodes, and a node that withdraws is left out at once, with its session kept.
func TestFRRSpreadsOverThreeNodes(t *testing.T) {
	t.Parallel()
	w := newRack(t, 3)
	testnet.NewFRR(w.router, frr(w.nodes))
	for _, n := range w.nodes {
		n.start(n.state(toRouter(router4), "192.0.2.10/32", "2001:db8::10/128"))
	}
	routed(t, w.router, 3, "192.0.2.10", "2001:db8::10")
	n := w.nodes[1]
	n.established("BGPPeer router")
	since := n.since("BGPPeer router")
	n.Tell(n.state(toRouter(router4)))
	routed(t, w.router, 2, "192.0.2.10", "2001:db8::10")
	if now := n.since("BGPPeer router"); !now.Equal(since) {
		t.Errorf("the session was lost: %s, now %s", since, now)
	}
	w.nodes[2].ns.Run("ip", "link", "set", "eth0", "down")
	routed(t, w.router, 1, "192.0.2.10", "2001:db8::10")
}
