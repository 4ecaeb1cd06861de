package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/agent"
	proxy "wayleave.dev/agent/service"
	"wayleave.dev/config"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer/bgp"
	bgpspeaker "wayleave.dev/loadbalancer/bgp/speaker"
	"wayleave.dev/loadbalancer/l2"
	"wayleave.dev/loadbalancer/l2/speaker"
	"wayleave.dev/loadbalancer/peers"
	"wayleave.dev/model"
	"wayleave.dev/service/healthcheck"
)

// As a child, the test's program is the process that the agent starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "l2" || os.Args[1] == "bgp" || os.Args[1] == "status-server") {
		c := root()
		c.SetArgs(os.Args[1:])
		if err := c.Execute(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The network of the tests: a node, and one machine outside that has the addresses of another node and of all
// strangers.
const (
	rigNode    = "10.9.0.1"
	rigOther   = "10.9.0.2"
	rigCheck   = 31000 // spec.healthCheckNodePort
	rigMetrics = 10247
	// rigStrangers is routed to the machine outside, which has every address of it.
	rigStrangers = "10.8.0.0/16"
)

// rigAgent marks the child that has the agent's part of listeners.
const rigAgent = "WAYLEAVE_TEST_LISTENERS"

var rigKey = bytes.Repeat([]byte{7}, 32)

// TestListenersChild is the agent of the rig: the listeners of its own, and the children that have others.
func TestListenersChild(t *testing.T) {
	if os.Getenv(rigAgent) == "" {
		return // it is only there for the others
	}
	endWithParent()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.Metrics.Port = rigMetrics
	if err := store.Write(func(w *model.Writer) {
		w.PutNode(&model.Node{Name: "node1", InternalIPs: []netip.Addr{netip.MustParseAddr(rigNode)}})
	}); err != nil {
		t.Fatal(err)
	}
	a := &agent.Node{Name: "node1", Core: agent.NewCore(log, store, cfg, nil)}
	checks := &healthcheck.Server{Log: log}
	if err := checks.Apply(t.Context(),
		map[model.Name]healthcheck.Check{{Namespace: "default", Name: "web"}: {Port: rigCheck, Local: 1}},
		nil); err != nil {
		t.Fatal(err)
	}
	s := speaker.New(log, "l2")
	s.Set(speaker.State{Node: "node1", Keys: [][]byte{rigKey}, Peers: []peers.Peer{
		{Name: "node1", Addrs: []netip.Addr{netip.MustParseAddr(rigNode)}},
		{Name: "node2", Addrs: []netip.Addr{netip.MustParseAddr(rigOther)}}},
		VIPs: []l2.VIP{{Addr: netip.MustParseAddr("10.9.0.100"), Service: "default/web", Eligible: []string{"node1"},
			Interfaces: []string{"eth0"}},
			{Addr: netip.MustParseAddr("fd09::100"), Service: "default/web", Eligible: []string{"node1"},
				Interfaces: []string{"eth0"}}}})
	b := bgpspeaker.New(log, "bgp")
	b.Set(bgp.State{ASN: 64512, RouterID: netip.MustParseAddr(rigNode), Port: 179,
		Listen: []netip.Addr{netip.MustParseAddr(rigNode)}, Sessions: []bgp.Session{{Name: "BGPPeer other",
			Addr: netip.MustParseAddr(rigOther), ASN: 65000, Hold: 90 * time.Second, Passive: true, V4: true}}})
	t.Error(agent.All(t.Context(), proxy.New().Leave(a)[0].Run, s.Run, b.Run))
}

// nodeRig is a running node of which everything listens that does not need the API server.
type nodeRig struct {
	t             *testing.T
	node, outside *testnet.NS
	agent         int // its process
}

func newNodeRig(t *testing.T) *nodeRig {
	r := &nodeRig{t: t, node: testnet.New(t, "node"), outside: testnet.New(t, "outside")}
	testnet.Veth(r.node, "eth0", r.outside, "eth0")
	r.node.Addr("eth0", rigNode+"/24")
	r.outside.Addr("eth0", rigOther+"/24")
	r.node.Run("ip", "route", "add", rigStrangers, "via", rigOther)
	r.outside.Run("ip", "route", "add", "local", rigStrangers, "dev", "lo")
	r.start()
	return r
}

// start runs the agent's child.
func (r *nodeRig) start() {
	r.t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestListenersChild$")
	cmd.Env = append(os.Environ(), rigAgent+"=1")
	out := &said{}
	cmd.Stdout, cmd.Stderr = out, out
	if _, err := cmd.StdinPipe(); err != nil { // see endWithParent
		r.t.Fatal(err)
	}
	r.node.Must(cmd.Start)
	r.agent = cmd.Process.Pid
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
		if r.t.Failed() {
			r.t.Logf("the agent: %s", out)
		}
	})
	testnet.Eventually(r.t, 60*time.Second, func() error {
		return errors.Join(r.get(r.outside, "10.8.0.1", fmt.Sprintf("%s:10256", rigNode), "/livez"),
			r.get(r.node, "127.0.0.1", "127.0.0.1:10249", "/metrics"),
			r.get(r.outside, "10.8.0.1", fmt.Sprintf("%s:%d", rigNode, rigCheck), "/"), r.listens("7946"),
			r.refusedByTLS("10.8.0.1", fmt.Sprintf("%s:%d", rigNode, rigMetrics)))
	})
}

// listens says whether something takes connections at the node's port.
func (r *nodeRig) listens(port string) error {
	c, err := r.outside.DialFrom("tcp", rigOther+":0", net.JoinHostPort(rigNode, port), time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}

// get asks as a well-behaved client does: it tries again when its connection was reset before an answer.
func (r *nodeRig) get(ns *testnet.NS, from, addr, path string) error {
	var err error
	for range 3 {
		if err = r.once(ns, from, addr, path); err == nil {
			return nil
		}
	}
	return err
}

func (r *nodeRig) once(ns *testnet.NS, from, addr, path string) error {
	c, err := ns.DialFrom("tcp", from+":0", addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: node\r\n\r\n", path); err != nil {
		return err
	}
	head := make([]byte, len("HTTP/1.1 200"))
	if n, err := readFull(c, head); err != nil || !bytes.HasSuffix(head, []byte(" 200")) {
		return fmt.Errorf("%s%s: %q, %v", addr, path, head[:n], err)
	}
	return nil
}

// refusedByTLS asks for the metrics without a token, which is answered 401. It tries again as get does.
func (r *nodeRig) refusedByTLS(from, addr string) error {
	var err error
	for range 3 {
		if err = r.refusedOnce(from, addr); err == nil {
			return nil
		}
	}
	return err
}

func (r *nodeRig) refusedOnce(from, addr string) error {
	plain, err := r.outside.DialFrom("tcp", from+":0", addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer plain.Close()
	if err := plain.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	c := tls.Client(plain, &tls.Config{InsecureSkipVerify: true}) // the certificate signs itself
	if _, err := fmt.Fprint(c, "GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n"); err != nil {
		return err
	}
	head := make([]byte, len("HTTP/1.1 401"))
	if n, err := readFull(c, head); err != nil || !bytes.HasSuffix(head, []byte(" 401")) {
		return fmt.Errorf("%s: %q, %v", addr, head[:n], err)
	}
	return nil
}

// clientHello begins a handshake of TLS.
func clientHello() []byte {
	client, server := net.Pipe()
	go func() {
		_ = tls.Client(client, &tls.Config{InsecureSkipVerify: true}).Handshake() // ends with the pipe
		_ = client.Close()
	}()
	hello := make([]byte, 4<<10)
	n, err := server.Read(hello)
	_ = server.Close()
	if err != nil {
		panic(err) // a pipe in memory
	}
	return hello[:n]
}

func readFull(c net.Conn, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var more int
		more, err = c.Read(b[n:])
		n += more
	}
	if n == len(b) {
		err = nil
	}
	return n, err
}

// child is the process of the agent that runs with the word.
func (r *nodeRig) child(word string) int {
	r.t.Helper()
	found := 0
	testnet.Eventually(r.t, 20*time.Second, func() error {
		list, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, f := range list {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			args, err := os.ReadFile(f)
			if err != nil || !strings.Contains(string(args), "\x00"+word+"\x00") || parentOf(pid) != r.agent {
				continue
			}
			found = pid
			return nil
		}
		return fmt.Errorf("the agent has no child %s", word)
	})
	return found
}

func parentOf(pid int) (parent int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "PPid:"); ok {
			parent, _ = strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return parent
}

// otherNode is a heartbeat of the other node, in the namespace outside.
func (r *nodeRig) otherNode() *peers.Peers {
	r.t.Helper()
	var p *peers.Peers
	r.outside.Must(func() (err error) {
		p, err = peers.Start(peers.Config{Node: "node2", Addr: netip.MustParseAddrPort(rigOther + ":7946"),
			Keys: [][]byte{rigKey}, Log: slog.New(slog.DiscardHandler)}, peers.Meta{})
		return err
	})
	stop := sync.OnceFunc(func() { _ = p.Close(false) })
	r.t.Cleanup(stop)
	return p
}
