package bgp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer/bgp"
	"wayleave.dev/loadbalancer/bgp/speaker"
	"wayleave.dev/model"
)

// The test's binary is the test, the agent of a node, and the process that the agent starts.
func TestMain(m *testing.M) {
	testnet.Main(m, map[string]func(*slog.Logger) error{
		"bgp":     func(*slog.Logger) error { return speaker.Main() },
		"agent":   func(log *slog.Logger) error { return node(log, os.Args[2]) },
		"routing": func(log *slog.Logger) error { return routingNode(log, os.Args[2], os.Args[3]) },
	})
}

// node runs the feature with objects, which change by the lines on the standard input.
func node(log *slog.Logger, run string) error {
	store, err := model.NewStore()
	if err != nil {
		return err
	}
	cfg := config.Default()
	cfg.BGP.Enabled, cfg.Service.Enabled = true, false
	f := New()
	// The lines say, too, whether Services without a class are Wayleave's.
	choices := make(chan bool, 8)
	choices <- true
	f.followChoice = func(ctx context.Context, _ *agent.Node, set func(bool)) error {
		for {
			select {
			case own := <-choices:
				set(own)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	a := &agent.Node{Name: "node1", Core: agent.NewCore(log, store, cfg, []agent.Feature{f}),
		Dirs: agent.Dirs{Run: run}}
	if err := store.Write(objects); err != nil {
		return err
	}
	store.MarkSynced(bgp.Kinds)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		testnet.Decode(os.Stdin, func(line string) {
			if line == "own" || line == "other" {
				choices <- line == "own"
				return
			}
			me, _ := store.Snapshot().Node("node1")
			changed := *me
			changed.Excluded = line == "drain"
			_ = store.Write(func(w *model.Writer) { w.PutNode(&changed) })
		})
	}()
	if err := f.Own(a)[0].Run(ctx); ctx.Err() == nil {
		return err
	}
	return nil
}

func objects(w *model.Writer) {
	w.PutNode(&model.Node{Name: "node1", InternalIPs: []netip.Addr{netip.MustParseAddr("10.9.0.1")}})
	// A cluster whose nodes are all excluded from load balancers excludes none.
	w.PutNode(&model.Node{Name: "node2", InternalIPs: []netip.Addr{netip.MustParseAddr("10.9.0.2")}})
	w.PutNamespace(&model.Namespace{Name: "default"})
	w.PutAddressPool(&model.AddressPool{Name: "routed", BGP: true, Ranges: []model.Range{
		{From: netip.MustParseAddr("192.0.2.0"), To: netip.MustParseAddr("192.0.2.255")}}})
	w.PutService(&model.Service{Name: model.Name{Namespace: "default", Name: "web"}, Type: model.LoadBalancer,
		LoadBalancer: &model.Balancer{}, LoadBalancerIPs: []netip.Addr{netip.MustParseAddr("192.0.2.10")}})
	w.PutBGPPeer(&model.BGPPeer{Name: "rack", Address: netip.MustParseAddr("10.9.0.254"), ASN: 65000, IPv4: true,
		Timers: model.BGPTimers{Hold: 30 * time.Second, Keepalive: 10 * time.Second, Connect: 2 * time.Second}})
	w.PutBGPAdvertisement(&model.BGPAdvertisement{Name: "all", Length4: 32, Length6: 128,
		Addresses: model.AnnounceLoadBalancerIPs})
}

const routerConfig = `log stderr all;
router id 10.9.0.254;
protocol device {}
protocol kernel { ipv4 { export all; import none; }; }
protocol bgp node1 { local as 65000; neighbor 10.9.0.1 as 64512; hold time 30; ipv4 { import all; export none; }; }
`

// A Service's address reaches a router while the node does not drain and no other load balancer has the Service, and
// stays there when the agent is killed and starts again.
func TestAServiceReachesARouter(t *testing.T) {
	ns, router := testnet.New(t, "node1"), testnet.New(t, "router")
	testnet.Veth(ns, "eth0", router, "eth0")
	ns.Addr("eth0", "10.9.0.1/24")
	router.Addr("eth0", "10.9.0.254/24")
	r := testnet.NewBIRD(router, routerConfig)
	run := t.TempDir()
	start := func() *testnet.Self {
		return testnet.StartSelf(t, ns, func(out io.Reader) { _, _ = io.Copy(io.Discard, out) }, "agent", run)
	}
	has := func(want bool) {
		t.Helper()
		testnet.Eventually(t, 60*time.Second, func() error {
			out, err := r.Try("show", "route", "192.0.2.10/32")
			if strings.Contains(out, "Network not found") { // birdc fails
				err = nil
			}
			if err == nil && strings.Contains(out, "via 10.9.0.1") != want {
				err = fmt.Errorf("want a route: %t\n%s", want, out)
			}
			return err
		})
	}
	a := start()
	has(true)
	a.Tell("drain")
	has(false)
	a.Tell("stay")
	has(true)
	a.Tell("other")
	has(false)
	a.Tell("own")
	has(true)
	a.Kill()
	a = start()
	for end := time.Now().Add(12 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if out := r.Show("show", "route", "192.0.2.10/32"); !strings.Contains(out, "via 10.9.0.1") {
			t.Fatalf("the route is lost:\n%s", out)
		}
	}
	a.Tell("drain")
	has(false)
}

// A session that is down becomes an Event of the node, if it stays down, and says which side saw what.
func TestASessionThatStaysDownIsAnEvent(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	n := &agent.Node{Name: "node1", Core: agent.NewCore(slog.New(slog.DiscardHandler), store, config.Default(), nil)}
	a := &announcer{node: n, down: map[string]time.Time{}}
	down := bgp.SessionReport{Name: "BGPPeer rack", Addr: netip.MustParseAddr("10.0.0.254"), State: "idle",
		Error: "the peer ended the session: bad peer AS"}
	up := down
	up.State = bgp.Established
	now := time.Now()
	for i, step := range []struct {
		after time.Duration
		s     bgp.SessionReport
		want  bool
	}{{0, down, false}, {9 * time.Second, down, false}, {10 * time.Second, down, true}, {11 * time.Second, up, false},
		{12 * time.Second, down, false}} {
		a.judge(bgp.Report{Running: true, Sessions: []bgp.SessionReport{step.s}}, now.Add(step.after))
		list := n.Problems.List()
		if (len(list) == 1) != step.want || step.want && !strings.Contains(list[0].Error(),
			"Node node1: BGPPeer rack: no session with 10.0.0.254: the peer ended the session: bad peer AS") {
			t.Errorf("step %d: %v, want %t", i, list, step.want)
		}
	}
}

// A node whose process never runs is told to reach others without it after a while, and the node gets an Event, until
// the process has told its routes.
func TestNodesAreReachedWithoutTheProcess(t *testing.T) {
	for _, routing := range []string{"bgp", "auto"} {
		store, err := model.NewStore()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		cfg := config.Default()
		cfg.Routing = routing
		log := slog.New(slog.DiscardHandler)
		n := &agent.Node{Name: "node1", Core: agent.NewCore(log, store, cfg, nil)}
		a := &announcer{node: n, sup: speaker.New(log, "bgp"), down: map[string]time.Time{},
			fallback: 50 * time.Millisecond}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.follow(ctx) }()
		if routing == "auto" {
			time.Sleep(4 * a.fallback)
		} else {
			testnet.Eventually(t, 10*time.Second, func() error {
				if list := n.Problems.List(); len(list) != 1 || !strings.Contains(list[0].Error(),
					"Node node1: routing: the process bgp has told no routes") {
					return fmt.Errorf("problems: %v", list)
				}
				if store.Synced()&model.BGPRouteKind == 0 {
					return errors.New("the routes are waited for")
				}
				return nil
			})
		}
		cancel()
		<-done
		if routing == "auto" && (len(n.Problems.List()) > 0 || store.Synced()&model.BGPRouteKind != 0) {
			t.Errorf("routing: auto: %v", n.Problems.List())
		}
		if err := a.learn(bgp.Report{Running: true, Converged: true}); err != nil || len(n.Problems.List()) > 0 {
			t.Errorf("routing: %s: %v, %v after the process has told its routes", routing, err, n.Problems.List())
		}
	}
}

// Without the setting nothing runs, and a node that is switched on again does not say that it has forwarded all the
// time.
func TestSwitchedOff(t *testing.T) {
	f := New()
	all := []agent.Feature{f}
	cfg := config.Default()
	if len(agent.Enabled[agent.Owner](cfg, all)) > 0 || len(agent.Enabled[agent.Admitter](cfg, all)) > 0 {
		t.Error("it is on by default")
	}
	n := &agent.Node{Dirs: agent.Dirs{Run: t.TempDir()}}
	for range 2 {
		if err := remember(n); err != nil {
			t.Fatal(err)
		}
		if ok, err := kept(n); !ok || err != nil {
			t.Errorf("kept: %t, %v", ok, err)
		}
		for range 2 {
			if err := f.Leave(n)[0].Run(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if ok, err := kept(n); ok || err != nil {
			t.Errorf("kept after it was switched off: %t, %v", ok, err)
		}
	}
}

// The best path of a prefix is first, and the paths of one next hop are one.
func TestPathsOfAPrefix(t *testing.T) {
	p := netip.MustParsePrefix("10.244.2.0/24")
	a, b := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fe80::2%eth0")
	got := routesOf([]bgp.Route{{Prefix: p, NextHop: b, Session: "BGPPeer rack"},
		{Prefix: p, NextHop: a, Session: "Node node2", Best: true}, {Prefix: p, NextHop: a, Session: "Node node2"}})
	want := &model.BGPRoute{Prefix: p, Hops: []model.BGPHop{{Addr: a, Peer: "node2", Node: true},
		{Addr: b.WithZone(""), Interface: "eth0", Peer: "rack"}}}
	if len(got) != 1 || !got[0].Equal(want) {
		t.Errorf("%+v, want %+v", got[0], want)
	}
}

// The table and the problems say which side saw what.
func TestStatusOfSessions(t *testing.T) {
	now := time.Now()
	raw := []byte(`[{"name":"BGPPeer rack","addr":"10.0.0.254","state":"established","asn":65000,"advertised":3,` +
		`"received":2,"accepted":1,"gracefulRestart":true},{"name":"BGPPeer other","addr":"10.0.0.253",` +
		`"state":"idle","asn":65001,"error":"the peer ended the session: bad peer AS"}]`)
	out, err := sessions(raw, now)
	for _, want := range []string{"BGPPeer rack   10.0.0.254  65000  established", "3     2         1         graceful",
		"the peer ended the session: bad peer AS"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v: no %q in\n%s", err, want, out)
		}
	}
	if out, err := sessions(nil, now); err != nil || !strings.Contains(out, "no BGP session") {
		t.Errorf("%q, %v", out, err)
	}
}
