package conformance

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	kernel "wayleave.dev/kernel/ipvs"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/service/ipvs"
	"wayleave.dev/service/nftables"
)

// ipvsMode drives the IPVS mode.
type ipvsMode struct{ Driven }

func (m *ipvsMode) Disturb(node *testnet.NS) {
	node.Run("nft", "flush", "ruleset")
	m.Forget()
}

// Linger is how long a client is remembered after its affinity: while the kernel knows a
// connection of it, which it does for the two minutes of TIME_WAIT, and until it looks
// again, a minute later.
func (m *ipvsMode) Linger() time.Duration { return 190 * time.Second }

func needIPVS(t *testing.T) {
	t.Helper()
	if _, err := kernel.NewKernel(testnet.New(t, "probe").FD()); err != nil {
		t.Skipf("this kernel has no ip_vs (make test-vm has): %v", err)
	}
}

// realIPVS starts the IPVS mode on the kernel of a node.
func realIPVS(t *testing.T) func(n *Node) Mode {
	needIPVS(t)
	running := map[string]func(){}
	return func(n *Node) Mode {
		if end := running[n.Name]; end != nil {
			end() // what was killed repairs nothing
		}
		conn, err := kernel.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		tables, err := nft.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		track, err := conntrack.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range ipvs.Sysctls() {
			n.NS.Sysctl("net/"+name, value)
		}
		mode := ipvs.New(conn, nftables.NewIPVSCompanion(tables, track, nil), track, ipvs.Options{Scheduler: "rr",
			Drain: time.Minute})
		m := &ipvsMode{Driven{Mode: mode, Node: n.Name}}
		n.NS.Sysctl("net/ipv4/conf/all/route_localnet", "1")
		mode.SetNodeFacts(localOf(n))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = mode.Run(ctx) }()
		running[n.Name] = func() { cancel(); <-done }
		t.Cleanup(running[n.Name])
		return m
	}
}

func TestIPVS(t *testing.T) {
	start := realIPVS(t)
	t.Parallel()
	Run(t, start)
}

// What others do with ipvsadm is undone: a backend that is taken away, added or weighed, a
// virtual server that is edited, and all of them gone. What drains is left to drain.
func TestIPVSIsPutBack(t *testing.T) {
	w := NewWorld(t, realIPVS(t))
	w.Set(web(), w.Pods[1], w.Pods[2])
	node := w.Nodes[0].NS
	at := vip(false).String()
	first, second := backendOf(w.Pods[1]), backendOf(w.Pods[2])
	shows := func(want ...string) {
		t.Helper()
		// Between two looks of the mode lies 20 times what one takes, and the VM's processor may be an emulated one.
		testnet.Eventually(t, 2*time.Minute, func() error {
			if got := listed(node, "-t", at); !slices.Equal(got, want) {
				return fmt.Errorf("%s has %q, want %q", at, got, want)
			}
			return nil
		})
	}
	good := []string{first + " 1", second + " 1"}
	slices.Sort(good)
	shows(good...)
	for _, wrong := range [][]string{
		{"-d", "-t", at, "-r", first}, {"-e", "-t", at, "-r", second, "-m", "-w", "0"}, {"-e", "-t", at, "-r", first,
			"-m", "-w", "7"},
		{"-a", "-t", at, "-r", "192.0.2.77:80", "-m"}, {"-E", "-t", at, "-s", "lc"}, {"-D", "-t", at}, {"-C"},
	} {
		node.Run("ipvsadm", wrong...)
		shows(good...)
		if pod, _, err := w.Clients()[0].Ask("tcp", vip(false)); err != nil {
			t.Errorf("after ipvsadm %q: %q, %v", wrong, pod, err)
		}
	}
	// A backend that drains is not ended by it.
	conn, err := w.Clients()[0].NS.Dial("tcp", at, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	pod, _, err := Say(conn)
	if err != nil {
		t.Fatal(err)
	}
	stays, drains := w.Pods[1], w.Pods[2]
	if strings.HasPrefix(pod, stays.Name) {
		stays, drains = drains, stays
	}
	w.Set(web(), stays)
	want := []string{backendOf(stays) + " 1", backendOf(drains) + " 0"}
	slices.Sort(want)
	for range 3 {
		shows(want...)
		node.Run("ipvsadm", "-d", "-t", at, "-r", backendOf(stays))
	}
	shows(want...)
	if again, _, err := Say(conn); err != nil || again != pod {
		t.Errorf("the connection went to %q, now %q, %v", pod, again, err)
	}
}

func backendOf(p *Pod) string { return netip.AddrPortFrom(p.ip(false), 8080).String() }

// listed are the backends of a virtual server with their weights, as ipvsadm lists them.
func listed(node *testnet.NS, server ...string) (out []string) {
	text, err := node.Try("ipvsadm", append([]string{"-L", "-n"}, server...)...)
	if err != nil {
		return []string{text}
	}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 3 && f[0] == "->" && f[1] != "RemoteAddress:Port" {
			out = append(out, f[1]+" "+f[3])
		}
	}
	slices.Sort(out)
	return out
}
