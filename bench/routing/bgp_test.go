package routing

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer/bgp"
	"wayleave.dev/loadbalancer/bgp/speaker"
)

const asn = 64512

var (
	own4 = netip.MustParseAddr("10.9.0.1")
	own6 = netip.MustParseAddr("fd00:9::1")
	peer = netip.MustParseAddr("10.9.255.254")
)

// fake is the address of a fake peer.
func fake(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, byte(1 + i/250), byte(1 + i%250)}) }

// rack is a node with the process bgp, and a machine with BIRD that has all addresses of its peers.
type rack struct {
	node, peers *testnet.NS
	sup         *speaker.Supervisor
}

func newRack(t *testing.T, fakes int) *rack {
	t.Helper()
	r := &rack{node: testnet.New(t, "node"), peers: testnet.New(t, "peers")}
	testnet.Veth(r.node, "eth0", r.peers, "eth0")
	r.node.Addr("eth0", own4.String()+"/16")
	r.node.Addr("eth0", own6.String()+"/64")
	r.peers.Addr("eth0", peer.String()+"/16")
	r.peers.Addr("eth0", "fd00:9::ffff/64")
	var batch strings.Builder
	for i := range fakes {
		fmt.Fprintf(&batch, "address add %s/16 dev eth0\n", fake(i))
	}
	r.peers.Run("sh", "-c", "ip -batch - <<'EOF'\n"+batch.String()+"EOF\n")
	r.sup = speaker.New(slog.New(slog.DiscardHandler), "bgp")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.node.Do(func() error { return r.sup.Run(ctx) }) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

func state() bgp.State {
	return bgp.State{ASN: asn, RouterID: own4, Port: 179, Listen: []netip.Addr{own4},
		Imports: []bgp.Import{{Accept: true, Prefixes: []bgp.PrefixRange{
			bgp.Within(netip.MustParsePrefix("10.0.0.0/8")), bgp.Within(netip.MustParsePrefix("fd00::/8"))}}}}
}

// session is one with a peer of the same ASN.
func session(name string, to netip.Addr, hold time.Duration) bgp.Session {
	return bgp.Session{Name: name, Addr: to, ASN: asn, Hold: hold, Connect: 2 * time.Second, Restart: 60 * time.Second,
		V4: true, V6: true, NextHop6: own6}
}

// birdPeer is a session of BIRD from an address, which tells n blocks of both families from a number on.
func birdPeer(b *strings.Builder, i int, from netip.Addr, first, n int) {
	fmt.Fprintf(b, "ipv4 table a%[1]d; ipv6 table b%[1]d;\nprotocol static s%[1]d { ipv4 { table a%[1]d; };\n", i)
	for k := first; k < first+n; k++ {
		fmt.Fprintf(b, " route 10.%d.%d.0/24 blackhole;\n", 64+k>>8, k&255)
	}
	fmt.Fprintf(b, "}\nprotocol static t%[1]d { ipv6 { table b%[1]d; };\n", i)
	for k := first; k < first+n; k++ {
		fmt.Fprintf(b, " route fd00:244:0:%x::/64 blackhole;\n", k)
	}
	fmt.Fprintf(b, "}\nprotocol bgp p%[1]d { local %[2]s as %[3]d; neighbor %[4]s as %[3]d; connect delay time 1;\n"+
		" ipv4 { table a%[1]d; import all; export all; next hop self; };\n"+
		" ipv6 { table b%[1]d; import all; export all; next hop address fd00:9::ffff; };\n}\n", i, from, asn, own4)
}

// settled waits until all sessions are established and so many routes are learned, and returns the report and how long
// it took.
func (r *rack) settled(t *testing.T, since time.Time, sessions, routes int) (bgp.Report, time.Duration) {
	t.Helper()
	var report bgp.Report
	testnet.Eventually(t, 10*time.Minute, func() error {
		report = r.sup.Report()
		up := 0
		for _, s := range report.Sessions {
			if s.State == bgp.Established {
				up++
			}
		}
		if up != sessions || len(report.Routes) < routes {
			return fmt.Errorf("%d of %d sessions, %d of %d routes, problem %q", up, sessions, len(report.Routes),
				routes, report.Problem)
		}
		return nil
	})
	return report, time.Since(since)
}

// resident is what a process uses, in MiB.
func resident(pid int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "VmRSS: %g kB", &kib); err == nil {
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}

// scale is a node's process with many peers.
type scale struct {
	name           string
	peers, each    int // fake peers, and blocks of each in each family
	reflects       bool
	memory, second float64
}

func (s *scale) measure(t *testing.T) {
	r := newRack(t, s.peers)
	var b strings.Builder
	fmt.Fprintf(&b, "log stderr all;\nrouter id %s;\nprotocol device {}\n", peer)
	st := state()
	for i := range s.peers {
		first := i * s.each
		if s.each > 1 {
			first = 0 // reflectors tell the same blocks
		}
		birdPeer(&b, i, fake(i), first, s.each)
		x := session(fmt.Sprint("Node node", i), fake(i), 240*time.Second)
		x.ReflectorClient = s.reflects
		st.Sessions = append(st.Sessions, x)
	}
	testnet.NewBIRD(r.peers, b.String())
	routes := 2 * s.peers * s.each
	began := time.Now()
	r.sup.Set(st)
	report, took := r.settled(t, began, s.peers, routes)
	time.Sleep(5 * time.Second) // until what it reports is sent
	memory, err := resident(report.PID)
	if err != nil {
		t.Fatal(err)
	}
	s.memory, s.second = memory, took.Seconds()
}

// announce returns how long it takes until a router has n VIPs, after the session is there, and how long until the
// routes of a node that dies are gone, with a hold time.
func announce(t *testing.T, n int, hold time.Duration) (told, gone time.Duration) {
	t.Helper()
	r := newRack(t, 0)
	router := testnet.NewBIRD(r.peers, fmt.Sprintf("log stderr all;\nrouter id %s;\nprotocol device {}\n"+
		"protocol direct { ipv4; ipv6; }\nprotocol kernel { ipv4 { export where source = RTS_BGP; import none; }; }\n"+
		"protocol bgp node { local %[1]s as %[2]d; neighbor %[3]s as %[2]d; hold time %[4]d;\n"+
		" ipv4 { import all; export none; };\n ipv6 { import all; export none; };\n}\n", peer, asn, own4,
		hold/time.Second))
	count := func() int {
		out, err := r.peers.Try("sh", "-c", "ip route show proto bird | wc -l")
		if err != nil {
			return -1
		}
		var k int
		_, _ = fmt.Sscan(out, &k)
		return k
	}
	_ = router
	st := state()
	st.Sessions = []bgp.Session{session("BGPPeer router", peer, hold)}
	st.Classes = []bgp.Class{{Name: "all", Sessions: []string{"BGPPeer router"}}}
	r.sup.Set(st)
	r.settled(t, time.Now(), 1, 0)
	next := st
	for i := range n {
		next.Paths = append(next.Paths, bgp.Path{Classes: []string{"all"},
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}), 32)})
	}
	await := func(want int) time.Duration {
		began := time.Now()
		for count() != want {
			if time.Since(began) > 5*time.Minute {
				t.Fatalf("the router's kernel has %d routes, want %d", count(), want)
			}
			time.Sleep(10 * time.Millisecond)
		}
		return time.Since(began)
	}
	r.sup.Set(next)
	told = await(n)
	r.node.Run("ip", "link", "set", "eth0", "down")
	return told, await(0)
}
