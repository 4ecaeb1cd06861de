package speaker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer/bgp"
)

// The test's binary is all three: the test, the agent of a node, and the process that the agent starts.
func TestMain(m *testing.M) {
	testnet.Main(m, map[string]func(*slog.Logger) error{
		"bgp":   func(*slog.Logger) error { return Main() },
		"agent": agent,
	})
}

// agent runs a Supervisor by the states on its standard input, and ends with that.
func agent(log *slog.Logger) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := New(log, "bgp")
	go func() {
		for out := json.NewEncoder(os.Stdout); ; {
			r, changed := s.Watch()
			_ = out.Encode(r)
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	go func() {
		defer cancel()
		testnet.Decode(os.Stdin, s.Set)
	}()
	return s.Run(ctx)
}

// node is a machine of the test with its agent.
type node struct {
	t    *testing.T
	ns   *testnet.NS
	addr [2]netip.Addr // IPv4, IPv6

	*testnet.Self
	mu     sync.Mutex
	report bgp.Report
}

// rack is nodes and a router on one switch.
type rack struct {
	t      *testing.T
	router *testnet.NS
	nodes  []*node
}

const (
	routerASN = 65000
	nodeASN   = 64512
)

var (
	router4 = netip.MustParseAddr("10.9.0.254")
	router6 = netip.MustParseAddr("fd00:9::254")
)

func newRack(t *testing.T, n int) *rack {
	t.Helper()
	testnet.Need(t, "ip")
	sw := testnet.New(t, "switch")
	w := &rack{t: t, router: testnet.New(t, "router")}
	plug := sw.Bridge("br0")
	join := func(ns *testnet.NS, host int) {
		port := fmt.Sprint("port", host)
		testnet.Veth(sw, port, ns, "eth0")
		plug(port)
		ns.Addr("eth0", fmt.Sprintf("10.9.0.%d/24", host))
		ns.Addr("eth0", fmt.Sprintf("fd00:9::%d/64", host))
	}
	join(w.router, 254)
	w.router.Router()
	for i := range n {
		ns := testnet.New(t, fmt.Sprint("node", i+1))
		join(ns, i+1)
		w.nodes = append(w.nodes, &node{t: t, ns: ns, addr: [2]netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("10.9.0.%d", i+1)), netip.MustParseAddr(fmt.Sprintf("fd00:9::%d", i+1))}})
	}
	return w
}

// start runs the node's agent.
func (n *node) start(state bgp.State) {
	n.t.Helper()
	n.mu.Lock()
	n.report = bgp.Report{}
	n.mu.Unlock()
	n.Self = testnet.StartSelf(n.t, n.ns, func(out io.Reader) {
		testnet.Decode(out, func(r bgp.Report) {
			n.mu.Lock()
			n.report = r
			n.mu.Unlock()
		})
	}, "agent")
	n.Tell(state)
}

func (n *node) now() bgp.Report {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.report
}

func (n *node) session(name string) (bgp.SessionReport, bool) {
	r := n.now()
	i := slices.IndexFunc(r.Sessions, func(s bgp.SessionReport) bool { return s.Name == name })
	if i < 0 {
		return bgp.SessionReport{}, false
	}
	return r.Sessions[i], true
}

// established waits for a session.
func (n *node) established(name string) {
	n.t.Helper()
	testnet.Eventually(n.t, 60*time.Second, func() error {
		if s, ok := n.session(name); !ok || s.State != bgp.Established {
			return fmt.Errorf("%s: %+v, problem %q", name, s, n.now().Problem)
		}
		return nil
	})
}

// toRouter is a session of a node with the router over one family, for both.
func toRouter(peer netip.Addr) bgp.Session {
	return bgp.Session{Name: "BGPPeer router", Addr: peer, ASN: routerASN, Hold: 30 * time.Second,
		Connect: 2 * time.Second,
		Restart: 60 * time.Second, V4: true, V6: true}
}

// state announces prefixes of both families in a session.
func (n *node) state(s bgp.Session, prefixes ...string) bgp.State {
	if s.Addr.Is4() {
		s.NextHop6 = n.addr[1]
	} else {
		s.NextHop4 = n.addr[0]
	}
	st := bgp.State{ASN: nodeASN, RouterID: n.addr[0], Port: 179, Listen: n.addr[:], Sessions: []bgp.Session{s},
		Classes: []bgp.Class{{Name: "all", Sessions: []string{s.Name}}}}
	for _, p := range prefixes {
		st.Paths = append(st.Paths, bgp.Path{Prefix: netip.MustParsePrefix(p), Classes: []string{"all"}})
	}
	return st
}

// bird is the configuration of a router with sessions to nodes.
func bird(nodes []*node, options string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "log stderr all;\nrouter id %s;\nprotocol device {}\nprotocol direct { ipv4; ipv6; }\n"+
		"protocol kernel { ipv4 { export all; import none; }; merge paths on; }\n"+
		"protocol kernel { ipv6 { export all; import none; }; merge paths on; }\n", router4)
	for i, n := range nodes {
		for f, a := range n.addr {
			fmt.Fprintf(&b, "protocol bgp n%d_%d {\n local as %d; neighbor %s as %d; hold time 30;\n"+
				" ipv4 { import all; export none; };\n ipv6 { import all; export none; };\n %s\n}\n",
				i+1, 4+2*f, routerASN, a, nodeASN, options)
		}
	}
	return b.String()
}

// has waits until the router has routes to exactly the prefixes.
func has(t *testing.T, r *testnet.Router, prefixes ...string) {
	t.Helper()
	testnet.Eventually(t, 60*time.Second, func() error { return hasNow(r, prefixes...) })
}

// hasNow is an error unless the router has routes of BGP to exactly the prefixes.
func hasNow(r *testnet.Router, prefixes ...string) error {
	out, err := r.Try("show", "route", "where", "source = RTS_BGP")
	if err != nil {
		return err
	}
	var got []string
	for line := range strings.Lines(out) {
		if p, err := netip.ParsePrefix(strings.Fields(line + " x")[0]); err == nil {
			got = append(got, p.String())
		}
	}
	slices.Sort(got)
	want := slices.Clone(prefixes)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		return fmt.Errorf("the router has %v, want %v", got, want)
	}
	return nil
}

func contains(s, part string) bool { return strings.Contains(s, part) }
