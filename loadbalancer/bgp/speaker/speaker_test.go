package speaker

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer/bgp"
)

// A router gets the addresses of both families in one session, over either family, with the node as the next hop, and
// loses one that is withdrawn.
func TestARouterLearnsTheAddresses(t *testing.T) {
	t.Parallel()
	for _, peer := range []struct {
		name string
		v    int
	}{{"over IPv4", 0}, {"over IPv6", 1}} {
		t.Run(peer.name, func(t *testing.T) {
			t.Parallel()
			w := newRack(t, 1)
			n := w.nodes[0]
			r := testnet.NewBIRD(w.router, bird(w.nodes, ""))
			addr := router4
			if peer.v == 1 {
				addr = router6
			}
			n.start(n.state(toRouter(addr), "192.0.2.10/32", "192.0.2.11/32", "2001:db8::10/128"))
			n.established("BGPPeer router")
			has(t, r, "192.0.2.10/32", "192.0.2.11/32", "2001:db8::10/128")
			for _, f := range []struct{ dst, via string }{{"192.0.2.10", n.addr[0].String()},
				{"2001:db8::10", n.addr[1].String()}} {
				testnet.Eventually(t, 20*time.Second, func() error {
					out, err := w.router.Try("ip", "route", "get", f.dst)
					if err == nil && !contains(out, "via "+f.via) {
						err = fmt.Errorf("%s: %s, want via %s", f.dst, out, f.via)
					}
					return err
				})
			}
			n.Tell(n.state(toRouter(addr), "192.0.2.11/32", "2001:db8::10/128"))
			has(t, r, "192.0.2.11/32", "2001:db8::10/128")
		})
	}
}

// The metrics are there under the names of the docs, also before the process runs.
func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	s := New(slog.New(slog.DiscardHandler))
	if err := reg.Register(s); err != nil {
		t.Fatal(err)
	}
	s.now.Change(func(w *watched) {
		w.refused, w.report.Refused = 1, 4
		w.report.Sessions = []bgp.SessionReport{{Name: "BGPPeer rack", Addr: router4, State: bgp.Established,
			Advertised: 3, Received: 2, Accepted: 1}, {Name: "BGPPeer range", State: "listening"}}
	})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "/" + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{"wayleave_bgp_session_up/10.9.0.254/BGPPeer rack": 1,
		"wayleave_bgp_prefixes/advertised/10.9.0.254/BGPPeer rack": 3, "wayleave_bgp_refused_connections_total": 5,
		"wayleave_bgp_prefixes/accepted/10.9.0.254/BGPPeer rack": 1,
		"wayleave_bgp_restarts_total":                            0} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, %t; want %v; all: %v", name, v, ok, want, got)
		}
	}
}

// IPv4 addresses of a node that has only an IPv6 address have an IPv6 next hop (RFC 8950).
func TestIPv4WithAnIPv6NextHop(t *testing.T) {
	t.Parallel()
	w := newRack(t, 1)
	n := w.nodes[0]
	r := testnet.NewBIRD(w.router, strings.ReplaceAll(bird(w.nodes, ""), "ipv4 { import all; export none; };",
		"ipv4 { import all; export none; extended next hop on; };"))
	state := n.state(toRouter(router6), "192.0.2.10/32")
	state.Sessions[0].NextHop4 = netip.Addr{}
	n.start(state)
	has(t, r, "192.0.2.10/32")
	shows(t, r, route10, "BGP.next_hop: fd00:9::1")
	testnet.Eventually(t, 20*time.Second, func() error {
		out, err := w.router.Try("ip", "route", "show", "192.0.2.10")
		if err == nil && !contains(out, "via inet6 fd00:9::1") {
			err = fmt.Errorf("the kernel has %q", out)
		}
		return err
	})
}
