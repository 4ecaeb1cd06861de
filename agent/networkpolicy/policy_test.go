package networkpolicy

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
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/internal/owner"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	policynft "wayleave.dev/networkpolicy/nftables"
	"wayleave.dev/podnetwork"
	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/routes"
	"wayleave.dev/reconcile"
)

// policyChild names the folder that the child of TestIsolatedFirst works in.
const policyChild = "WAYLEAVE_TEST_POLICY"

// Ports of the target: what policy forbids, and what it allows.
const forbiddenPort, allowedPort = 9000, 9001

// TestPolicyChild is the agent of TestIsolatedFirst: it gives pods their links, and
// enforces policies that it knows from the start. Of the pods p0, p1 … it knows every
// other one, as an agent whose watch is late does.
func TestPolicyChild(t *testing.T) {
	dir := os.Getenv(policyChild)
	if dir == "" {
		return // it is only there for the other
	}
	go func() { // ends with its parent
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	store, err := model.NewStore()
	must(err)
	must(store.Write(policyWorld))
	store.MarkSynced(model.NodeKind | networkpolicy.PlannerKinds)
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGTERM)
	defer stop()
	lock, err := owner.Acquire(ctx, filepath.Join(dir, "owner.lock"),
		func() { must(os.WriteFile(waits(dir, os.Getpid()), nil, 0o600)) })
	must(err)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError + 1}))
	conn, err := nft.NewKernel(0)
	must(err)
	ns, err := os.Open("/proc/self/ns/net")
	must(err)
	kernel, err := link.NewKernel(int(ns.Fd()), filepath.Join(dir, "addresses"))
	must(err)
	track, err := conntrack.NewKernel(0)
	must(err)
	gate := networkpolicy.NewGate("node1")
	n, err := podnetwork.New(podnetwork.Config{Node: "node1", Store: store, NSFD: int(ns.Fd()),
		StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "cni.sock"),
		Tombstones: filepath.Join(dir, "del"), Sysctl: "/proc/sys/net", Plugin: "/bin/true",
		BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "conf"), Routing: routes.Direct,
		Leases: gate.Leases, Isolate: gate.Isolate, Kernel: kernel, Rules: podnetwork.NFTables(conn), Firewall: conn,
		Track: track, Log: log},
		reconcile.NewHealth(nil, nil), reconcile.NewHealth(nil, nil))
	must(err)
	must(gate.Known(ctx))
	keep := loop(store, gate, policynft.New(conn, conntrack.NewTracker(0)))
	keep.Health, keep.Log = reconcile.NewHealth(nil, nil), log
	if err := agent.All(ctx, n.Run, keep.Run); ctx.Err() == nil {
		t.Fatal(err)
	}
	must(n.Close())
	must(lock.Release())
	runtime.KeepAlive(ns) // or its finalizer would close the descriptor
}

// waits is the file by which an agent says that it waits for another one's end.
func waits(dir string, pid int) string { return filepath.Join(dir, fmt.Sprintf("waits.%d", pid)) }

// policyWorld is what the agent knows: nothing may reach the pods of "locked", and they
// reach one port of the target; "open" has no policies.
func policyWorld(w *model.Writer) {
	w.PutNode(&model.Node{Name: "node1", InternalIPs: []netip.Addr{netip.MustParseAddr("172.30.0.11"),
		netip.MustParseAddr("fd00:30::11")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/25"), netip.MustParsePrefix("fd00:244::/64")}})
	w.PutNamespace(&model.Namespace{Name: "locked"})
	w.PutNamespace(&model.Namespace{Name: "open", Labels: map[string]string{"name": "open"}})
	w.PutNetworkPolicy(&model.NetworkPolicy{Name: model.Name{Namespace: "locked", Name: "all"}, IsolatesIngress: true,
		IsolatesEgress: true,
		Egress: []model.PolicyRule{{Peers: []model.PolicyPeer{{Namespaces: &model.Selector{},
			Pods: model.Selector{Requirements: []model.Requirement{{Key: "app", Operator: model.In,
				Values: []string{"target"}}}}}},
			Ports: []model.PolicyPort{{Protocol: model.UDP, From: allowedPort, To: allowedPort}}}}})
	w.PutPod(&model.Pod{Name: model.Name{Namespace: "open", Name: "target"}, Node: "node1",
		Labels: map[string]string{"app": "target"}})
	for i := range pens {
		for _, ns := range []string{"locked", "open"} {
			if i%2 == 0 {
				w.PutPod(&model.Pod{Name: model.Name{Namespace: ns, Name: fmt.Sprintf("p%d", i)}, Node: "node1"})
			}
		}
	}
}

// pens are how many pods there are at a time.
const pens = 40

// policyNode is a node with its agent in a process of its own, and the target.
type policyNode struct {
	t      *testing.T
	dir    string
	node   *testnet.NS
	target *testnet.NS
	ips    []netip.Addr

	mu    sync.Mutex
	agent *policyAgent
	// answered counts the calls that agents answered.
	answered atomic.Int64
	// got counts what the target received, by sender's kind and port.
	got sync.Map
}

// policyAgent is a process of TestPolicyChild.
type policyAgent struct {
	*exec.Cmd
	stdin io.Closer
}

// end waits for the process after it was signalled.
func (a *policyAgent) end() error {
	err := a.Wait()
	a.stdin.Close()
	return err
}

func (n *policyNode) start() {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestPolicyChild$")
	cmd.Env = append(os.Environ(), policyChild+"="+n.dir)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	n.node.Must(cmd.Start)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.agent = &policyAgent{cmd, stdin}
}

func (n *policyNode) running() *policyAgent {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.agent
}

func (n *policyNode) killed() {
	a := n.running()
	_ = a.Process.Kill()
	_ = a.end() // says that it was killed
}

// upgraded has a new agent wait beside the old one, and then tells that to end, as a
// DaemonSet with maxSurge 1 does.
func (n *policyNode) upgraded(ctx context.Context) error {
	old := n.running()
	n.start()
	file := waits(n.dir, n.running().Process.Pid)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(file); err == nil || ctx.Err() != nil {
			break
		}
		if time.Now().After(deadline) {
			return errors.New("the new agent does not wait for the old one's end")
		}
	}
	if err := old.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := old.end(); err != nil {
		return fmt.Errorf("the old agent ends: %w", err)
	}
	return nil
}

// call asks the agent, again while there is none: as the kubelet does, it deletes what a
// failed ADD may have left before it adds anew.
func (n *policyNode) call(command, ns, name string, pod *testnet.NS) ([]netip.Addr, error) {
	r := call.Request{Command: command, ContainerID: ns + name, IfName: "eth0",
		Config: json.RawMessage(`{"cniVersion":"1.1.0","name":"wayleave","type":"wayleave-cni"}`),
		Args:   map[string]string{"K8S_POD_NAMESPACE": ns, "K8S_POD_NAME": name}}
	deadline := time.Now().Add(3 * time.Minute)
	for {
		f, err := os.Open(pod.Path())
		if err != nil {
			return nil, err
		}
		out, err := call.Call(filepath.Join(n.dir, "cni.sock"), r, f, 20*time.Second)
		f.Close()
		if err == nil && out.Error == nil {
			n.answered.Add(1)
			var result struct {
				IPs []struct{ Address netip.Prefix }
			}
			if command == "ADD" {
				if err := json.Unmarshal(out.Result, &result); err != nil {
					return nil, err
				}
			}
			var ips []netip.Addr
			for _, ip := range result.IPs {
				ips = append(ips, ip.Address.Addr())
			}
			return ips, nil
		}
		if err == nil {
			err = out.Error
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%s %s/%s: %w", command, ns, name, err)
		}
		time.Sleep(20 * time.Millisecond)
		if command == "ADD" {
			if _, err := n.call("DEL", ns, name, pod); err != nil {
				return nil, err
			}
		}
	}
}

func newPolicyNode(t *testing.T) *policyNode {
	n := &policyNode{t: t, dir: t.TempDir(), node: testnet.New(t, "node1"), target: testnet.New(t, "target")}
	outside := testnet.New(t, "outside")
	testnet.Veth(n.node, "eth0", outside, "eth0")
	n.node.Addr("eth0", "172.30.0.11/24")
	n.node.Addr("eth0", "fd00:30::11/64")
	n.start()
	t.Cleanup(n.killed)
	var err error
	if n.ips, err = n.call("ADD", "open", "target", n.target); err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{forbiddenPort, allowedPort} {
		c := n.target.ListenPacket("udp", fmt.Sprintf("[::]:%d", port))
		go func() {
			buf := make([]byte, 64)
			for {
				k, _, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				v, _ := n.got.LoadOrStore(fmt.Sprintf("%s %d", buf[:k], port), &atomic.Int64{})
				v.(*atomic.Int64).Add(1)
			}
		}()
	}
	return n
}

func (n *policyNode) count(kind string, port int) int64 {
	v, ok := n.got.Load(fmt.Sprintf("%s %d", kind, port))
	if !ok {
		return 0
	}
	return v.(*atomic.Int64).Load()
}

// spray has the target send to every address of the node until ctx ends.
func (n *policyNode) spray(ctx context.Context) {
	c := n.target.ListenPacket("udp", "[::]:0")
	for ctx.Err() == nil {
		for i := 1; i < 127; i++ {
			_, _ = c.WriteTo([]byte("spray"), &net.UDPAddr{IP: net.IPv4(10, 244, 1, byte(i)), Port: forbiddenPort})
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// pen is one place for pods, one after the other: what is in it sends from before its
// link is there.
type pen struct {
	n        *policyNode
	ns       *testnet.NS
	kind     atomic.Pointer[string]
	received atomic.Int64
	// marks are packets that the pen sent to itself.
	marks chan string
	// what is the sender of the last packet received.
	what atomic.Pointer[string]
}

// markText begins what a pen sends to itself.
const markText = "mark "

// read returns when all packets that came before have been counted.
func (p *pen) read() error {
	c, err := p.ns.Dial("udp", fmt.Sprintf("127.0.0.1:%d", forbiddenPort), time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	mark := markText + c.LocalAddr().String()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); {
		if _, err := c.Write([]byte(mark)); err != nil {
			return err
		}
		// It is lost where the socket's buffer is full.
		for wait := time.After(time.Second); wait != nil; {
			select {
			case got := <-p.marks:
				if got == mark {
					return nil
				}
			case <-wait:
				wait = nil
			}
		}
	}
	return errors.New("the pen's socket is not read")
}

func newPen(ctx context.Context, n *policyNode, i int) *pen {
	p := &pen{n: n, ns: testnet.New(n.t, fmt.Sprintf("pen%d", i)), marks: make(chan string, 100)}
	idle := ""
	p.kind.Store(&idle)
	l := p.ns.ListenPacket("udp", fmt.Sprintf("[::]:%d", forbiddenPort))
	go func() {
		buf := make([]byte, 64)
		for {
			k, from, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			if strings.HasPrefix(string(buf[:k]), markText) {
				p.marks <- string(buf[:k])
				continue
			}
			what := fmt.Sprintf("%q from %s", buf[:k], from)
			p.what.Store(&what)
			p.received.Add(1)
		}
	}()
	c := p.ns.ListenPacket("udp", "[::]:0")
	go func() {
		for ctx.Err() == nil {
			if kind := *p.kind.Load(); kind != "" {
				for _, ip := range n.ips {
					for _, port := range []int{forbiddenPort, allowedPort} {
						_, _ = c.WriteTo([]byte(kind), &net.UDPAddr{IP: ip.AsSlice(), Port: port})
					}
				}
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	return p
}

// live is one pod's life: it sends before ADD and for a second after it.
func (p *pen) live(ns, name string) error {
	// What the pod before received may not have been read yet. There is no link now.
	if err := p.read(); err != nil {
		return err
	}
	p.received.Store(0)
	p.kind.Store(&ns)
	if _, err := p.n.call("ADD", ns, name, p.ns); err != nil {
		return err
	}
	time.Sleep(time.Second)
	// On a busy machine nobody may have come to send to it yet.
	for deadline := time.Now().Add(30 * time.Second); ns == "open" && p.received.Load() == 0 &&
		time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	idle := ""
	p.kind.Store(&idle)
	if err := p.read(); err != nil {
		return err
	}
	if got := p.received.Load(); ns == "locked" && got > 0 {
		return fmt.Errorf("%s/%s received %d packets, the last %s", ns, name, got, *p.what.Load())
	} else if ns == "open" && got == 0 {
		return fmt.Errorf("%s/%s received nothing: the test would not see a packet", ns, name)
	}
	_, err := p.n.call("DEL", ns, name, p.ns)
	return err
}

// disturbedRounds are 8 of 40 pods, and with WAYLEAVE_TEST_LONG as many as with an agent
// that lives.
func disturbedRounds() int {
	if os.Getenv("WAYLEAVE_TEST_LONG") != "" {
		return 25
	}
	return 8
}

// Pods send from before their link is up to a second after ADD, a thousand times, over
// addresses that pods without policies had just before: nothing that policy forbids
// arrives, in neither direction, also while the agent is killed again and again, and while
// a new one takes over from the old one again and again.
func TestIsolatedFirst(t *testing.T) {
	killed := func(_ context.Context, n *policyNode) error {
		n.killed()
		n.start()
		return nil
	}
	upgraded := func(ctx context.Context, n *policyNode) error { return n.upgraded(ctx) }
	for _, tc := range []struct {
		name    string
		rounds  int
		disturb func(context.Context, *policyNode) error
	}{{"a living agent", 25, nil}, {"an agent that is killed", disturbedRounds(), killed}, {"an agent that is upgraded",
		disturbedRounds(), upgraded}} {
		t.Run(tc.name, func(t *testing.T) {
			n := newPolicyNode(t)
			ctx, cancel := context.WithCancel(t.Context())
			var wg, disturb sync.WaitGroup
			defer func() { cancel(); disturb.Wait() }()
			disturb.Go(func() { n.spray(ctx) })
			disturbed := 0
			if tc.disturb != nil {
				disturb.Go(func() {
					for {
						// On a busy machine an agent takes longer until it answers.
						answered := n.answered.Load()
						for wait := 1500 * time.Millisecond; wait > 0 ||
							n.answered.Load() == answered; wait -= 10 * time.Millisecond {
							select {
							case <-ctx.Done():
								return
							case <-time.After(10 * time.Millisecond):
							}
						}
						if err := tc.disturb(ctx, n); err != nil {
							t.Error(err)
							return
						}
						disturbed++
					}
				})
			}
			errs := make(chan error, pens)
			for i := range pens {
				p := newPen(ctx, n, i)
				wg.Go(func() {
					for round := range tc.rounds {
						ns := "locked"
						if round%5 == i%5 { // and then another pod gets its address
							ns = "open"
						}
						if err := p.live(ns, fmt.Sprintf("p%d", i)); err != nil {
							errs <- err
							return
						}
					}
				})
			}
			wg.Wait()
			cancel()
			disturb.Wait()
			close(errs)
			var all []error
			for err := range errs {
				all = append(all, err)
			}
			if err := errors.Join(all...); err != nil {
				t.Error(err)
			}
			got := n.count("locked", forbiddenPort)
			if got != 0 {
				t.Errorf("%d packets arrived that policy forbids", got)
			}
			if tc.disturb != nil && disturbed == 0 {
				t.Error("nothing disturbed the agent")
			}
			t.Logf("%d pods, the agent was disturbed %d times: %d packets arrived that policy forbids, %d "+
				"that it allows", pens*tc.rounds, disturbed, got, n.count("locked", allowedPort))
			for _, what := range []string{"locked " + fmt.Sprint(allowedPort), "open " + fmt.Sprint(forbiddenPort)} {
				kind, _, _ := strings.Cut(what, " ")
				port := forbiddenPort
				if kind == "locked" {
					port = allowedPort
				}
				if n.count(kind, port) == 0 {
					t.Errorf("nothing of %s arrived: the test would not see a packet", what)
				}
			}
		})
	}
}
