package bgp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/internal/lossmeter"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/bpf/fastpath"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/firewall"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/loadbalancer/bgp"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork"
	"wayleave.dev/podnetwork/routes"
	"wayleave.dev/reconcile"
)

// router is the address of the route reflector, of both families.
var router = [2]netip.Addr{netip.MustParseAddr("10.9.0.254"), netip.MustParseAddr("fd00:9::254")}

// routedHold is the hold time of its sessions.
const routedHold = 9 * time.Second

// routedNode is a node of the cluster behind the reflector. No node is Ready: only what BGP tells leads to its pods.
func routedNode(i int) *model.Node {
	return &model.Node{Name: fmt.Sprint("node", i), InternalIPs: []netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("10.9.0.%d", i)), netip.MustParseAddr(fmt.Sprintf("fd00:9::%d", i))},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i)),
			netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", i))}}
}

func routedObjects(w *model.Writer) {
	for i := range 3 {
		w.PutNode(routedNode(i + 1))
	}
	c := model.DefaultBGP()
	c.Mesh.Enabled = false
	c.Restart.Time = 60 * time.Second
	w.PutBGPConfiguration(c)
	w.PutBGPPeer(&model.BGPPeer{Name: "reflector", Address: router[0], ASN: model.BGPDefaultASN, IPv4: true, IPv6: true,
		Timers: model.BGPTimers{Hold: routedHold, Keepalive: routedHold / 3, Connect: 2 * time.Second}})
	w.PutBGPAdvertisement(&model.BGPAdvertisement{Name: "pods", Length4: 32, Length6: 128,
		Addresses: model.AnnouncePodCIDRs})
}

// routingNode runs the features bgp and podnetwork of a node, until its standard input ends. It writes a line for each
// report of the process bgp.
func routingNode(log *slog.Logger, name, run string) error {
	store, err := model.NewStore()
	if err != nil {
		return err
	}
	cfg := config.Default()
	cfg.BGP.Enabled, cfg.Service.Enabled, cfg.LoadBalancer.Enabled, cfg.Routing = true, false, false, "bgp"
	f := New()
	a := &agent.Node{Name: name, Core: agent.NewCore(log, store, cfg, []agent.Feature{f}), Dirs: agent.Dirs{Run: run}}
	if err := store.Write(routedObjects); err != nil {
		return err
	}
	store.MarkSynced(bgp.Kinds)
	network, err := routingNetwork(log, store, name, run)
	if err != nil {
		return err
	}
	defer network.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	tell := func(ctx context.Context) error {
		for out := json.NewEncoder(os.Stdout); ; {
			changed := make(<-chan struct{})
			if x := f.announcer.Load(); x != nil {
				var r bgp.Report
				r, changed = x.sup.Watch()
				_ = out.Encode(r)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	if err := agent.All(ctx, f.Own(a)[0].Run, network.Run, tell); ctx.Err() == nil {
		return err
	}
	return nil
}

// routingNetwork is the feature podnetwork in the namespace of this process.
func routingNetwork(log *slog.Logger, store *model.Store, name, run string) (*podnetwork.Network, error) {
	fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0) // for as long as the process
	if err != nil {
		return nil, err
	}
	path := func(part string) string { return filepath.Join(run, part) }
	kernel, err := link.NewKernel(fd, path("addresses"))
	if err != nil {
		return nil, err
	}
	tables, err := nft.NewKernel(fd)
	if err != nil {
		return nil, err
	}
	track, err := conntrack.NewKernel(fd)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path("plugin"), nil, 0o755); err != nil {
		return nil, err
	}
	return podnetwork.New(podnetwork.Config{Node: name, Store: store, NSFD: fd, StateDir: path("state"),
		Socket: path("cni.sock"), Tombstones: path("del"), Sysctl: "/proc/sys/net", Plugin: path("plugin"),
		BinDir: path("bin"), ConfDir: path("conf"), CoolDown: time.Minute, Masquerade: true, Routing: routes.BGP,
		Kernel: kernel, NFT: tables, Rules: podnetwork.NFTables(tables), Track: track, Firewall: firewall.All{tables},
		FastPath: podnetwork.FastPath{Conn: &fastpath.Kernel{NSFD: fd}}, Log: log,
		Report: func(string, string, []model.Problem) {}}, reconcile.NewHealth(nil, nil),
		reconcile.NewHealth(nil, nil))
}

// routed is a node of the test.
type routed struct {
	t   *testing.T
	i   int
	ns  *testnet.NS
	run string

	*testnet.Self
	mu     sync.Mutex
	report bgp.Report
}

func (n *routed) start() {
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
	}, "routing", fmt.Sprint("node", n.i), n.run)
}

// converged waits until another process bgp than one has its session and all routes, and returns its id.
func (n *routed) converged(not int) int {
	n.t.Helper()
	var r bgp.Report
	testnet.Eventually(n.t, time.Minute, func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		r = n.report
		if !r.Running || r.PID == not || !r.Converged || len(r.Sessions) != 1 ||
			r.Sessions[0].State != bgp.Established {
			return fmt.Errorf("node%d, process %d before: %+v", n.i, not, r)
		}
		return nil
	})
	return r.PID
}

// pod is an address in the node's block.
func (n *routed) pod(is6 bool) string {
	if is6 {
		return fmt.Sprintf("fd00:244:0:%d::2", n.i)
	}
	return fmt.Sprintf("10.244.%d.2", n.i)
}

// blocks are the networks of a node's pods.
func (n *routed) blocks() (out []string) {
	for _, p := range routedNode(n.i).PodCIDRs {
		out = append(out, p.String())
	}
	return out
}

// leads waits until the node's kernel has this route to the blocks of another: "via" its address, or "unreachable".
func (n *routed) leads(to *routed, want func(is6 bool) string) {
	n.t.Helper()
	for f, block := range to.blocks() {
		testnet.Eventually(n.t, time.Minute, func() error {
			out, err := n.ns.Try("ip", []string{"-4", "-6"}[f], "route", "show", "exact", block)
			if err == nil && !strings.Contains(out+" ", want(f == 1)+" ") {
				err = fmt.Errorf("node%d: %s: %q, want %s", n.i, block, out, want(f == 1))
			}
			return err
		})
	}
}

func via(n *routed) func(bool) string {
	return func(is6 bool) string {
		if is6 {
			return "via " + routedNode(n.i).InternalIPs[1].String()
		}
		return "via " + routedNode(n.i).InternalIPs[0].String()
	}
}

// birdReflects and frrReflects are configurations of a router of the nodes' ASN that passes routes on between them.
func birdReflects() string {
	var b strings.Builder
	fmt.Fprintf(&b, "log stderr all;\nrouter id %s;\nprotocol device {}\nprotocol direct { ipv4; ipv6; }\n", router[0])
	for i := range 3 {
		fmt.Fprintf(&b, "protocol bgp node%d { local as %d; neighbor %s as %[2]d; rr client; hold time %[4]d;\n"+
			" ipv4 { import all; export where source = RTS_BGP; };\n"+
			" ipv6 { import all; export where source = RTS_BGP; };\n}\n",
			i+1, model.BGPDefaultASN, routedNode(i + 1).InternalIPs[0], routedHold/time.Second)
	}
	return b.String()
}

func frrReflects() string {
	var b strings.Builder
	fmt.Fprintf(&b, "frr defaults datacenter\nhostname router\nlog stdout errors\nrouter bgp %d\n bgp router-id %s\n"+
		" bgp cluster-id %[2]s\n no bgp default ipv4-unicast\n", model.BGPDefaultASN, router[0])
	for i := range 3 {
		fmt.Fprintf(&b, " neighbor %[1]s remote-as %[2]d\n neighbor %[1]s timers %[3]d %[4]d\n"+
			" neighbor %[1]s timers connect 2\n", routedNode(i + 1).InternalIPs[0], model.BGPDefaultASN,
			routedHold/3/time.Second, routedHold/time.Second)
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		fmt.Fprintf(&b, " address-family %s unicast\n", family)
		for i := range 3 {
			fmt.Fprintf(&b, "  neighbor %[1]s activate\n  neighbor %[1]s route-reflector-client\n",
				routedNode(i + 1).InternalIPs[0])
		}
		fmt.Fprintf(&b, " exit-address-family\n")
	}
	return b.String()
}

// TestNodesBehindAReflector: with a router as route reflector, each node's kernel routes to the blocks of the others. A
// killed process, a killed agent and one that is stopped and started cost no route and no packet. The blocks of a node
// that dies go within the hold time.
func TestNodesBehindAReflector(t *testing.T) {
	for name, start := range map[string]func(*testnet.NS){
		"BIRD": func(ns *testnet.NS) { testnet.NewBIRD(ns, birdReflects()) },
		"FRR":  func(ns *testnet.NS) { testnet.NewFRR(ns, frrReflects()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := newRouted(t, start)
			for _, n := range nodes {
				n.start()
			}
			var monitors []*testnet.RouteMonitor
			var all []string
			for _, n := range nodes {
				n.converged(0)
				all = append(all, n.blocks()...)
				for _, o := range nodes {
					if o != n {
						n.leads(o, via(o))
					}
				}
			}
			for _, n := range nodes {
				monitors = append(monitors, testnet.WatchRoutes(n.ns))
			}
			lossless := meterNodes(t, nodes)
			pid := nodes[0].converged(0)
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			nodes[0].converged(pid)
			for i, end := range []func(){1: func() { nodes[1].Kill() }, 2: func() { nodes[2].Stop() }} {
				if end == nil {
					continue
				}
				pid := nodes[i].converged(0)
				end()
				time.Sleep(time.Second)
				nodes[i].start()
				nodes[i].converged(pid)
			}
			time.Sleep(3 * time.Second) // End-of-RIB, and what follows from it
			lossless()
			for i, m := range monitors {
				if lost := m.Lost(all...); len(lost) > 0 {
					t.Errorf("node%d lost routes: %v", i+1, lost)
				}
			}
			nodes[2].ns.Run("ip", "link", "set", "eth0", "down")
			died := time.Now()
			for _, n := range nodes[:2] {
				n.leads(nodes[2], func(bool) string { return "unreachable" })
			}
			if took := time.Since(died); took > 2*routedHold+10*time.Second {
				t.Errorf("the blocks of a dead node were routed to for %s with a hold time of %s", took, routedHold)
			}
			nodes[0].leads(nodes[1], via(nodes[1]))
		})
	}
}

// newRouted is three nodes and a router on a switch.
func newRouted(t *testing.T, start func(*testnet.NS)) (nodes []*routed) {
	t.Helper()
	sw, reflector := testnet.New(t, "switch"), testnet.New(t, "router")
	plug := sw.Bridge("br0")
	join := func(ns *testnet.NS, host int) {
		port := fmt.Sprint("port", host)
		testnet.Veth(sw, port, ns, "eth0")
		plug(port)
		ns.Addr("eth0", fmt.Sprintf("10.9.0.%d/24", host))
		ns.Addr("eth0", fmt.Sprintf("fd00:9::%d/64", host))
	}
	join(reflector, 254)
	for i := range 3 {
		n := &routed{t: t, i: i + 1, ns: testnet.New(t, fmt.Sprint("node", i+1)), run: testnet.ShortDir(t)}
		join(n.ns, n.i)
		n.ns.Route("0.0.0.0/0", router[0].String())
		n.ns.Route("::/0", router[1].String())
		for _, is6 := range []bool{false, true} {
			n.ns.Addr("lo", n.pod(is6)+map[bool]string{false: "/32", true: "/128"}[is6])
		}
		nodes = append(nodes, n)
	}
	start(reflector)
	return nodes
}

// meterNodes sends datagrams from each node to a pod of the next one, in both families, until the function that it
// returns is called, which fails the test if one was lost.
func meterNodes(t *testing.T, nodes []*routed) (lossless func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	reports := make(chan lossmeter.Report, len(nodes))
	for i, n := range nodes {
		to := nodes[(i+1)%len(nodes)]
		var probes []lossmeter.Probe
		for _, is6 := range []bool{false, true} {
			target := net.JoinHostPort(to.pod(is6), "7")
			echo := to.ns.ListenPacket("udp", target)
			t.Cleanup(func() { _ = echo.Close() })
			go func() { _ = lossmeter.ServeUDP(echo) }()
			probes = append(probes, lossmeter.Probe{Kind: "udp", Target: target, Rate: 100, Patience: 30 * time.Second})
		}
		go func() {
			r, err := lossmeter.Run(ctx, n.ns.Dial, probes)
			if err != nil {
				t.Error(err)
			}
			reports <- r
		}()
	}
	return func() {
		t.Helper()
		cancel()
		var errs []error
		for range nodes {
			if r := <-reports; r.Lost() > 0 || r.Sent() < 100 {
				errs = append(errs, errors.New(r.String()))
			}
		}
		if err := errors.Join(errs...); err != nil {
			t.Error(err)
		}
	}
}
