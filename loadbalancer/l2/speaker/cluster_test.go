package speaker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer/l2"
	"wayleave.dev/loadbalancer/peers"
)

// The test's binary is all three: the test, the agent of a node, and the process that the agent starts.
func TestMain(m *testing.M) {
	testnet.Main(m, map[string]func(*slog.Logger) error{
		"l2":    func(*slog.Logger) error { return Main() },
		"agent": agent,
	})
}

// command is a line that the test sends to an agent.
type command struct {
	State    *State
	Drain    bool
	Handover bool
}

// line is one that an agent sends to the test.
type line struct {
	Report  *Report
	Drained *string
}

// agent runs a Supervisor by the lines of its standard input, and ends with that.
func agent(log *slog.Logger) error {
	ctx, cancel := context.WithCancel(context.Background())
	s := New(log, "l2")
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	say := func(l line) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(l)
	}
	go func() {
		for {
			r, changed := s.Watch()
			say(line{Report: &r})
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	go func() {
		defer cancel()
		testnet.Decode(os.Stdin, func(c command) {
			switch {
			case c.State != nil:
				s.Set(*c.State)
			case c.Drain:
				go func() {
					text := ""
					if err := s.Drain(ctx); err != nil {
						text = err.Error()
					}
					say(line{Drained: &text})
				}()
			case c.Handover:
				s.Handover()
				cancel()
			}
		})
	}()
	return s.Run(ctx)
}

// node is a machine of the test with its agent.
type node struct {
	t    *testing.T
	name string
	ns   *testnet.NS
	mac  string
	addr []netip.Addr

	*testnet.Self
	mu      sync.Mutex
	report  Report
	drained chan string
}

// cluster is nodes and an outside machine on one switch.
type cluster struct {
	t       *testing.T
	sw      *testnet.NS
	outside *testnet.NS
	nodes   []*node
	state   State
}

func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%v; hack/setup installs it", err)
		}
	}
}

// newCluster makes nodes without agents.
func newCluster(t *testing.T, n int) *cluster {
	needs(t, "arping", "ndisc6", "tcpdump", "nft", "ip")
	w := &cluster{t: t, sw: testnet.New(t, "switch"), outside: testnet.New(t, "outside")}
	plug := w.sw.Bridge("br0")
	for i := range n + 1 {
		ns, mac := w.outside, "02:00:00:00:00:64"
		host := 100
		if i < n {
			host = i + 1
			ns, mac = testnet.New(t, fmt.Sprint("node", host)), fmt.Sprintf("02:00:00:00:00:%02x", host)
			w.nodes = append(w.nodes, &node{t: t, name: ns.Name, ns: ns, mac: mac,
				addr: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.9.0.%d", host)),
					netip.MustParseAddr(fmt.Sprintf("fd00:9::%d", host))}})
		}
		port := fmt.Sprint("port", host)
		testnet.Veth(w.sw, port, ns, "eth0")
		plug(port)
		ns.Run("ip", "link", "set", "eth0", "address", mac)
		ns.Addr("eth0", fmt.Sprintf("10.9.0.%d/24", host))
		ns.Addr("eth0", fmt.Sprintf("fd00:9::%d/64", host))
	}
	w.state = State{Keys: [][]byte{bytes.Repeat([]byte{7}, 32)}, Settle: time.Second}
	for _, n := range w.nodes {
		w.state.Peers = append(w.state.Peers, peers.Peer{Name: n.name, Addrs: n.addr})
	}
	return w
}

// vips makes n addresses of each family that every node may answer for.
func (w *cluster) vips(n int) []netip.Addr {
	var all []netip.Addr
	v4, v6 := netip.MustParseAddr("10.9.0.150"), netip.MustParseAddr("fd00:9::150")
	for range n {
		all = append(all, v4, v6)
		v4, v6 = v4.Next(), v6.Next()
	}
	w.state.VIPs = nil
	for _, a := range all {
		w.state.VIPs = append(w.state.VIPs, l2.VIP{Addr: a, Service: "default/web", Eligible: w.names(),
			Interfaces: []string{"eth0"}})
	}
	return all
}

func (w *cluster) names() []string {
	var names []string
	for _, n := range w.nodes {
		names = append(names, n.name)
	}
	return names
}

func (w *cluster) start() {
	w.t.Helper()
	for _, n := range w.nodes {
		n.start(w.state)
	}
}

// start runs the node's agent.
func (n *node) start(state State) {
	n.t.Helper()
	n.forget()
	drained := make(chan string, 1)
	n.drained = drained
	n.Self = testnet.StartSelf(n.t, n.ns, func(out io.Reader) {
		testnet.Decode(out, func(l line) {
			if l.Report != nil {
				n.mu.Lock()
				n.report = *l.Report
				n.mu.Unlock()
			}
			if l.Drained != nil {
				drained <- *l.Drained
			}
		})
	}, "agent")
	n.set(state)
}

// set sends the desired state to the agent.
func (n *node) set(state State) {
	n.t.Helper()
	state.Node = n.name
	n.Tell(command{State: &state})
}

// kill ends the agent by a signal.
func (n *node) kill() {
	n.t.Helper()
	n.Kill()
	n.forget()
}

func (n *node) forget() {
	n.mu.Lock()
	n.report = Report{}
	n.mu.Unlock()
}

func (n *node) now() Report {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.report
}

func (n *node) owns(a netip.Addr) bool {
	return slices.ContainsFunc(n.now().VIPs, func(o l2.Owned) bool { return o.Addr == a })
}

// owner is the node that says that it answers; it is an error unless there is exactly one.
func (w *cluster) owner(a netip.Addr) (*node, error) {
	var owners []*node
	for _, n := range w.nodes {
		if n.owns(a) {
			owners = append(owners, n)
		}
	}
	if len(owners) != 1 {
		return nil, fmt.Errorf("%d nodes say that they own %s", len(owners), a)
	}
	return owners[0], nil
}

// settled waits until all nodes are willing, and every address has exactly one owner.
func (w *cluster) settled(addrs []netip.Addr) {
	w.t.Helper()
	testnet.Eventually(w.t, 30*time.Second, func() error {
		for _, n := range w.nodes {
			r := n.now()
			live := 0
			for _, m := range r.Members {
				if m.Willing {
					live++
				}
			}
			if !r.Willing || live != len(w.nodes)-1 {
				return fmt.Errorf("%s: willing=%t and sees %d willing: %+v", n.name, r.Willing, live, r)
			}
		}
		for _, a := range addrs {
			if _, err := w.owner(a); err != nil {
				return err
			}
		}
		return nil
	})
}

// answers are the MACs that answered one question for an address, as arping and ndisc6 see it from outside.
func (w *cluster) answers(a netip.Addr) []string {
	w.t.Helper()
	var out string
	if a.Is4() {
		out, _ = w.outside.Try("arping", "-r", "-c", "1", "-w", "1", "-I", "eth0", a.String())
	} else {
		out, _ = w.outside.Try("ndisc6", "-q", "-m", "-r", "1", "-w", "300", a.String(), "eth0")
	}
	var macs []string
	for _, l := range strings.Fields(strings.ToLower(out)) {
		if len(l) == 17 && strings.Count(l, ":") == 5 {
			macs = append(macs, l)
		}
	}
	slices.Sort(macs)
	return macs
}

// one waits until exactly one node answers, seen from outside, and returns it.
func (w *cluster) one(a netip.Addr, within time.Duration) *node {
	w.t.Helper()
	var found *node
	testnet.Eventually(w.t, within, func() error {
		// Where others ask at the same time, their answers are seen too.
		macs := slices.Compact(w.answers(a))
		if len(macs) != 1 {
			return fmt.Errorf("%s is answered by %v", a, macs)
		}
		i := slices.IndexFunc(w.nodes, func(n *node) bool { return n.mac == macs[0] })
		if i < 0 {
			return fmt.Errorf("%s is answered by %v, which is no node", a, macs)
		}
		found = w.nodes[i]
		return nil
	})
	return found
}
