package conformance

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/lossmeter"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	kerneliptables "wayleave.dev/kernel/iptables"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/dataplane"
	"wayleave.dev/service/ipvs"
)

// changing is a mode that may be replaced by another on a live node, as an agent with
// other settings does after a restart.
type changing struct {
	t      *testing.T
	node   *Node
	planes dataplane.Planes
	Driven
	end func() // of the mode's Run
}

// drain is longer than a step of these tests takes in a slow machine.
const drain = 2 * time.Minute

// modeOf makes a mode by its name, not yet in the kernel.
func modeOf(p dataplane.Planes, kind string) (service.Mode, error) {
	switch kind {
	case "iptables-nft":
		return p.Iptables(kerneliptables.NFT)
	case "iptables-legacy":
		return p.Iptables(kerneliptables.Legacy)
	case "ipvs":
		return p.IPVS()
	}
	return p.Nftables(), nil
}

func startChanging(t *testing.T, kind string, drain time.Duration, all *[]*changing) func(*Node) Mode {
	return func(n *Node) Mode {
		tables, err := nft.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		track, err := conntrack.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		n.NS.Sysctl("net/ipv4/conf/all/route_localnet", "1")
		c := &changing{t: t, node: n, planes: dataplane.Planes{NSFD: n.NS.FD(), NFT: tables, Track: track, Scheduler: "rr", Drain: drain}}
		c.become(kind)
		t.Cleanup(func() { c.end() })
		*all = append(*all, c)
		return c
	}
}

// become has another mode, of which nothing is in the kernel yet.
func (c *changing) become(kind string) {
	c.t.Helper()
	if c.end != nil {
		c.end()
	}
	if kind == "ipvs" {
		for name, value := range ipvs.Sysctls() {
			c.node.NS.Sysctl("net/"+name, value)
		}
	}
	mode, err := modeOf(c.planes, kind)
	if err != nil {
		c.t.Fatal(err)
	}
	mode.SetLocal(localOf(c.node))
	c.Driven = Driven{Mode: mode, Node: c.node.Name}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if r, ok := mode.(interface{ Run(context.Context) error }); ok {
			_ = r.Run(ctx)
		}
	}()
	c.end = func() { cancel(); <-done }
}

// Disturb implements Mode; nothing here does.
func (c *changing) Disturb(*testnet.NS) { c.t.Error("not disturbed here") }

// leave takes the others out.
func (c *changing) leave() error {
	return c.planes.Leave(c.t.Context(), c.Mode, func(what string) { c.t.Logf("%s: %s", c.node.Name, what) })
}

// remains names what is left of the modes that do not run.
func (c *changing) remains() (out []string) {
	c.t.Helper()
	others, err := c.planes.Others(c.Mode)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, m := range others {
		left, err := m.Remains(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		out = append(out, left...)
	}
	return out
}

// meters are what is measured through a change: from a pod to the ClusterIP, and from
// outside to node ports, of the node whose endpoint it is and of the other.
type meters struct {
	t       *testing.T
	cancel  context.CancelFunc
	reports chan lossmeter.Report
	n       int
}

const meterPort = 30777

// meterService echoes on the third pod.
func meterService(w *World) {
	w.t.Helper()
	server := w.Pods[2].NS
	l, u := server.Listen("tcp", ":8081"), server.ListenPacket("udp", ":8081")
	go func() { _ = lossmeter.ServeTCP(l) }()
	go func() { _ = lossmeter.ServeUDP(u) }()
	err := w.Store.Write(func(tx *model.Writer) {
		ports := []model.ServicePort{{Name: "t", Protocol: model.TCP, Port: 7, NodePort: meterPort}, {Name: "u", Protocol: model.UDP, Port: 7, NodePort: meterPort}}
		name := model.Name{Namespace: "default", Name: "meter"}
		tx.PutService(&model.Service{Name: name, Type: model.NodePort, Ports: ports, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.77"), netip.MustParseAddr("fd00:96::77")}})
		for i, a := range w.Pods[2].IPs {
			tx.PutEndpointSlice(&model.EndpointSlice{Name: model.Name{Namespace: "default", Name: fmt.Sprint("meter-", i == 1)}, Service: "meter",
				Ports:     []model.EndpointPort{{Name: "t", Protocol: model.TCP, Port: 8081}, {Name: "u", Protocol: model.UDP, Port: 8081}},
				Endpoints: []model.Endpoint{{Addr: a, Node: "node2", Ready: true, Serving: true}}})
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Program()
}

func startMeters(w *World) *meters {
	ctx, cancel := context.WithCancel(context.Background())
	m := &meters{t: w.t, cancel: cancel, reports: make(chan lossmeter.Report, 3)}
	run := func(from *testnet.NS, targets ...string) {
		var probes []lossmeter.Probe
		for _, to := range targets {
			// A software-emulated machine is to keep up with it.
			for kind, rate := range map[string]int{"udp": 100, "tcp": 50, "connect": 25} {
				probes = append(probes, lossmeter.Probe{Kind: kind, Target: to, Rate: rate})
			}
		}
		m.n++
		go func() {
			r, err := lossmeter.Run(ctx, from.Dial, probes)
			if err != nil {
				w.t.Error(err)
			}
			m.reports <- r
		}()
	}
	run(w.Pods[0].NS, "10.96.0.77:7", "[fd00:96::77]:7")
	run(w.Outside, fmt.Sprintf("%s:%d", w.Nodes[0].Addrs[0], meterPort), fmt.Sprintf("%s:%d", w.Nodes[1].Addrs[0], meterPort), fmt.Sprintf("[%s]:%d", w.Nodes[0].Addrs[1], meterPort))
	return m
}

// stop ends the measuring; anything lost fails the test.
func (m *meters) stop() {
	m.t.Helper()
	m.cancel()
	for range m.n {
		r := <-m.reports
		if r.Lost() > 0 || r.Sent() < 100 {
			m.t.Errorf("lost %d of %d:\n%s", r.Lost(), r.Sent(), r)
		} else {
			m.t.Logf("lost 0 of %d", r.Sent())
		}
	}
}

// open is a connection or socket with who answers it.
type open struct {
	name string
	conn net.Conn
	pod  string
}

// openAll opens TCP connections and UDP sockets of which the change must end none.
func openAll(w *World) (list []open) {
	w.t.Helper()
	for _, from := range []Client{w.Clients()[0], w.Clients()[2], w.Clients()[4]} {
		for _, network := range []string{"tcp", "udp"} {
			for _, is6 := range []bool{false, true} {
				targets := []netip.AddrPort{vip(is6), w.nodeAddr(0, is6), w.nodeAddr(1, is6)}
				if from.Name == "outside" {
					targets = targets[1:]
				}
				for _, to := range targets {
					name := fmt.Sprintf("%s from %s to %s", network, from.Name, to)
					conn, err := from.NS.Dial(network, to.String(), patience)
					if err != nil {
						w.t.Fatalf("%s: %v", name, err)
					}
					w.t.Cleanup(func() { conn.Close() })
					pod, _, err := Say(conn)
					if err != nil {
						w.t.Fatalf("%s: %v", name, err)
					}
					list = append(list, open{name, conn, pod})
				}
			}
		}
	}
	return list
}

// check wants an answer over each: of TCP by the one that it is connected with.
func check(t *testing.T, list []open, when string) {
	t.Helper()
	for _, o := range list {
		pod, _, err := Say(o.conn)
		if err != nil || strings.HasPrefix(o.name, "tcp") && pod != o.pod {
			t.Errorf("%s, %s: %q answered, %v; it was %s", when, o.name, pod, err, o.pod)
		}
	}
}

// askAll wants answers to new connections.
func askAll(t *testing.T, w *World) {
	t.Helper()
	for _, c := range w.Clients()[:4] {
		for _, network := range []string{"tcp", "udp"} {
			for _, is6 := range []bool{false, true} {
				for _, to := range []netip.AddrPort{vip(is6), w.nodeAddr(0, is6)} {
					if pod, _, err := c.Ask(network, to); err != nil {
						t.Errorf("new, %s from %s to %s: %q, %v", network, c.Name, to, pod, err)
					}
				}
			}
		}
	}
}

// changeAll walks through every ordered pair of the modes, on one network, with open
// connections and the loss meter at work.
func changeAll(t *testing.T, walk []string) {
	if _, err := exec.LookPath("iptables-nft"); err != nil {
		t.Skip("the program iptables-nft is not installed")
	}
	var all []*changing
	w := NewWorld(t, startChanging(t, walk[0], drain, &all))
	meterService(w)
	w.Set(web(), w.Pods[1], w.Pods[2])
	for i, to := range walk[1:] {
		t.Run(walk[i]+" to "+to, func(t *testing.T) {
			w.t = t
			for _, c := range all {
				c.t = t
			}
			held := openAll(w)
			m := startMeters(w)
			testnet.Eventually(t, 30*time.Second, func() error { check(t, held, "before"); return nil })
			for _, c := range all {
				c.become(to)
			}
			w.Program()
			check(t, held, "both are there")
			left := make(chan error, len(all))
			for _, c := range all {
				go func() { left <- c.leave() }()
			}
			if walk[i] == "ipvs" {
				// Its connections are waited for, and nothing new comes to it.
				check(t, held, "while IPVS is left")
				askAll(t, w)
				if len(left) > 0 {
					t.Error("IPVS was left with open connections")
				}
				for _, o := range held {
					o.conn.Close()
				}
				m.stop()
			}
			for range all {
				if err := <-left; err != nil {
					t.Error(err)
				}
			}
			if walk[i] != "ipvs" {
				check(t, held, "after")
				m.stop()
			}
			askAll(t, w)
			for _, c := range all {
				if r := c.remains(); len(r) > 0 {
					t.Errorf("%s: left: %s", c.node.Name, strings.Join(r, ", "))
				}
			}
		})
	}
}

// Changing the mode of a live node costs no packet and no connection, whichever it was
// and whichever it becomes: every ordered pair of these.
func TestChangingTheModeLosesNothing(t *testing.T) {
	t.Parallel()
	const a, b, c = "nftables", "iptables-nft", "iptables-legacy"
	changeAll(t, []string{a, b, a, c, b, c, a})
}

// The same for every pair with IPVS, which is left only when its connections have ended.
func TestIPVSChanges(t *testing.T) {
	needIPVS(t)
	t.Parallel()
	const v = "ipvs"
	changeAll(t, []string{v, "nftables", v, "iptables-nft", v, "iptables-legacy", v})
}

// Connections that do not end are given up after ipvs.drain.
func TestIPVSIsLeftAfterItsLimit(t *testing.T) {
	needIPVS(t)
	t.Parallel()
	var all []*changing
	w := NewWorld(t, startChanging(t, "ipvs", 3*time.Second, &all))
	w.Set(web(), w.Pods[2])
	conn, err := w.Pods[0].NS.Dial("tcp", vip(false).String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, _, err := Say(conn); err != nil {
		t.Fatal(err)
	}
	all[0].become("nftables")
	all[1].become("nftables")
	w.Program()
	start := time.Now()
	if err := all[0].leave(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 3*time.Second {
		t.Errorf("left after %s, with an open connection", took)
	}
	if _, _, err := Say(conn); err == nil {
		t.Error("the connection that was given up is answered")
	}
	if r := all[0].remains(); len(r) > 0 {
		t.Errorf("left: %s", strings.Join(r, ", "))
	}
}
