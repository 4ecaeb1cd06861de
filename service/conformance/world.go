// Package conformance is one table of packets that every mode of the service
// proxy must pass: real packets, through this kernel, in namespaces that are two
// nodes with pods and a client outside.
//
// The table knows nothing of any mode, so that others' programs can be run under
// it as well.
package conformance

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// Mode is a data plane on one node.
type Mode interface {
	// Program makes exactly the services of the snapshot hold. It is called whenever
	// they change.
	Program(ctx context.Context, snap model.Snapshot) error
	// Disturb takes the mode's rules away behind its back.
	Disturb(node *testnet.NS)
}

// Node tells a mode where it is.
type Node struct {
	Name     string
	NS       *testnet.NS
	Addrs    []netip.Addr
	PodCIDRs []netip.Prefix // of the whole cluster
	OwnCIDRs []netip.Prefix
	Zone     string
}

// World is the network: two nodes and a client outside on one segment, two pods
// on the first node and two on the second.
type World struct {
	t       *testing.T
	Nodes   []*Node
	Pods    []*Pod
	Hosts   []*Pod // a pod with the node's own network on each
	Outside *testnet.NS
	Store   *model.Store
	modes   []Mode
	start   func(*Node) Mode
}

// Restart replaces the modes by new ones, as if their processes had been killed.
func (w *World) Restart() {
	w.t.Helper()
	for i, n := range w.Nodes {
		w.modes[i] = w.start(n)
	}
	w.Program()
}

// Pod is a pod with a server on port 8080 of TCP and UDP, which answers each line
// or datagram with its name and the address that it saw.
type Pod struct {
	Name string
	NS   *testnet.NS
	Node int
	IPs  []netip.Addr // IPv4, IPv6
}

func (p *Pod) ip(is6 bool) netip.Addr {
	if is6 {
		return p.IPs[1]
	}
	return p.IPs[0]
}

// cidrs are the pod networks.
func cidrs() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/48")}
}

// NewWorld builds the network and starts a mode on each node.
func NewWorld(t *testing.T, start func(*Node) Mode) *World {
	t.Helper()
	w := &World{t: t, start: start}
	fabric := testnet.New(t, "fabric")
	plug := fabric.Bridge("br0")
	attach := func(n *testnet.NS, i int, addrs ...string) {
		port := fmt.Sprintf("p%d", i)
		testnet.Veth(n, "eth0", fabric, port)
		plug(port)
		for _, a := range addrs {
			n.Addr("eth0", a)
		}
	}
	for i := 1; i <= 2; i++ {
		n := &Node{Name: fmt.Sprintf("node%d", i), NS: testnet.New(t, fmt.Sprintf("node%d", i)), PodCIDRs: cidrs(),
			Addrs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("172.30.0.1%d", i)),
				netip.MustParseAddr(fmt.Sprintf("fd00:30::1%d", i))}}
		n.OwnCIDRs = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i)),
			netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", i))}
		n.Zone = fmt.Sprintf("zone%d", i)
		attach(n.NS, i, fmt.Sprintf("172.30.0.1%d/24", i), fmt.Sprintf("fd00:30::1%d/64", i))
		n.NS.Router()
		// The kernel sends few ICMP errors a second, and here all come from one place.
		n.NS.Sysctl("net/ipv4/icmp_ratelimit", "0")
		n.NS.Sysctl("net/ipv6/icmp/ratelimit", "0")
		w.Nodes = append(w.Nodes, n)
	}
	w.Outside = testnet.New(t, "outside")
	attach(w.Outside, 9, "172.30.0.99/24", "fd00:30::99/64")
	// Everything else goes to the client outside, where it ends.
	for _, n := range w.Nodes {
		n.NS.Route("0.0.0.0/0", "172.30.0.99")
		n.NS.Route("::/0", "fd00:30::99")
	}
	w.route(0, 1)
	w.route(1, 0)
	for i, name := range []string{"pod1a", "pod1b", "pod2a", "pod2b"} {
		w.pod(name, i/2, i%2+2)
	}
	for i, n := range w.Nodes {
		serve(n.NS, n.Name)
		w.Hosts = append(w.Hosts, &Pod{Name: n.Name, NS: n.NS, Node: i, IPs: n.Addrs})
	}
	w.newStore()
	w.awaitAddresses()
	for _, n := range w.Nodes {
		w.modes = append(w.modes, start(n))
	}
	return w
}

// awaitAddresses waits until duplicate address detection is over: packets from and to tentative addresses are lost.
func (w *World) awaitAddresses() {
	w.t.Helper()
	all := []*testnet.NS{w.Outside}
	for _, n := range w.Nodes {
		all = append(all, n.NS)
	}
	for _, p := range w.Pods {
		all = append(all, p.NS)
	}
	testnet.Eventually(w.t, 30*time.Second, func() error {
		for _, ns := range all {
			if out := strings.TrimSpace(ns.Run("ip", "-6", "addr", "show", "tentative")); out != "" {
				return fmt.Errorf("tentative addresses: %s", out)
			}
		}
		return nil
	})
}

// newStore gives the world a store that has the nodes, and nothing else.
func (w *World) newStore() {
	w.t.Helper()
	store, err := model.NewStore()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = store.Close() })
	err = store.Write(func(tx *model.Writer) {
		for _, n := range w.Nodes {
			tx.PutNode(&model.Node{Name: n.Name, InternalIPs: n.Addrs, PodCIDRs: n.OwnCIDRs, Zone: n.Zone, Ready: true})
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Store = store
}

// fresh returns the world for a test of its own: without Services, and without flows of earlier tests.
func (w *World) fresh(t *testing.T) *World {
	t.Helper()
	own := *w
	own.t = t
	own.newStore()
	own.Program()
	own.forgetFlows()
	return &own
}

// route gives a node the way to the other's pods.
func (w *World) route(from, to int) {
	w.Nodes[from].NS.Route(fmt.Sprintf("10.244.%d.0/24", to+1), w.Nodes[to].Addrs[0].String())
	w.Nodes[from].NS.Route(fmt.Sprintf("fd00:244:0:%d::/64", to+1), w.Nodes[to].Addrs[1].String())
}

func (w *World) pod(name string, node, host int) {
	n := w.Nodes[node]
	p := &Pod{Name: name, Node: node, NS: testnet.New(w.t, name), IPs: []netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("10.244.%d.%d", node+1, host)),
		netip.MustParseAddr(fmt.Sprintf("fd00:244:0:%d::%d", node+1, host))}}
	testnet.Veth(p.NS, "eth0", n.NS, name)
	p.NS.Addr("eth0", p.IPs[0].String()+"/32")
	p.NS.Addr("eth0", p.IPs[1].String()+"/128")
	p.NS.Run("ip", "route", "add", "169.254.1.1", "dev", "eth0")
	p.NS.Run("ip", "route", "add", "default", "via", "169.254.1.1", "dev", "eth0")
	n.NS.Addr(name, "169.254.1.1/32")
	n.NS.Run("ip", "addr", "add", "fe80::1/64", "dev", name, "nodad")
	p.NS.Run("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
	n.NS.Run("ip", "route", "add", p.IPs[0].String()+"/32", "dev", name, "src", n.Addrs[0].String())
	n.NS.Run("ip", "-6", "route", "add", p.IPs[1].String()+"/128", "dev", name, "src", n.Addrs[1].String())
	w.Pods = append(w.Pods, p)
	serve(p.NS, name)
}

// serve answers with the server's name and who asked.
func serve(ns *testnet.NS, name string) {
	ns.Serve("tcp", ":8080", func(c net.Conn) {
		for s := bufio.NewScanner(c); s.Scan(); {
			fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr())
		}
	})
	u := ns.ListenPacket("udp", ":8080")
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(fmt.Sprintf("%s %s\n", name, from)), from)
		}
	}()
}

// Set puts a service and its endpoints, all on port 8080 of the pods, into force.
func (w *World) Set(svc *model.Service, pods ...*Pod) {
	w.t.Helper()
	ends := make([]model.Endpoint, len(pods))
	for i := range ends {
		ends[i] = model.Endpoint{Ready: true, Serving: true}
	}
	w.SetEndpoints(svc, pods, ends)
}

// SetEndpoints is Set with the conditions of each pod.
func (w *World) SetEndpoints(svc *model.Service, pods []*Pod, conditions []model.Endpoint) {
	w.t.Helper()
	err := w.Store.Write(func(tx *model.Writer) {
		own := *svc // the store keeps what it is given
		tx.PutService(&own)
		for _, is6 := range []bool{false, true} {
			s := &model.EndpointSlice{Name: model.Name{Namespace: svc.Name.Namespace,
				Name: fmt.Sprintf("%s-%v", svc.Name.Name, is6)}, Service: svc.Name.Name}
			for _, p := range svc.Ports {
				s.Ports = append(s.Ports, model.EndpointPort{Name: p.Name, Protocol: p.Protocol, Port: 8080})
			}
			for i, p := range pods {
				e := conditions[i]
				e.Addr, e.Node = p.ip(is6), w.Nodes[p.Node].Name
				s.Endpoints = append(s.Endpoints, e)
			}
			tx.PutEndpointSlice(s)
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Program()
}

// Remove takes a service away.
func (w *World) Remove(name model.Name) {
	w.t.Helper()
	if err := w.Store.Write(func(tx *model.Writer) { tx.Delete(model.ServiceKind, name) }); err != nil {
		w.t.Fatal(err)
	}
	w.Program()
}

// Program has the modes catch up with the store.
func (w *World) Program() {
	w.t.Helper()
	snap := w.Store.Snapshot()
	for i, n := range w.Nodes {
		if err := w.modes[i].Program(w.t.Context(), snap); err != nil {
			w.t.Fatalf("%s: %v", n.Name, err)
		}
	}
}

// patience is how long an answer over TCP may take, and how long silence is waited for: a
// lost segment must not pass for a slow answer, and is sent again after 1 s.
const patience = 800 * time.Millisecond

// patienceOf is how long an answer that must come may take. Nobody sends a datagram again,
// so that more time hides no loss, and a busy machine needs it.
func patienceOf(network string) time.Duration {
	if strings.HasPrefix(network, "udp") {
		return late
	}
	return patience
}

// Client is a place to ask from.
type Client struct {
	Name string
	NS   *testnet.NS
	// IPs are its addresses, IPv4 and IPv6.
	IPs []netip.Addr
}

// Clients are a pod on the first node, one on the second, the nodes themselves and
// the client outside.
func (w *World) Clients() []Client {
	return []Client{
		{"pod on node1", w.Pods[0].NS, w.Pods[0].IPs},
		{"pod on node2", w.Pods[3].NS, w.Pods[3].IPs},
		{"node1 itself", w.Nodes[0].NS, w.Nodes[0].Addrs},
		{"node2 itself", w.Nodes[1].NS, w.Nodes[1].Addrs},
		{"outside", w.Outside, []netip.Addr{netip.MustParseAddr("172.30.0.99"), netip.MustParseAddr("fd00:30::99")}},
	}
}

// Ask connects anew, and returns who answered and what address it saw. An answer or a refusal must come: ask with
// patience is for silence.
func (c Client) Ask(network string, to netip.AddrPort) (pod string, seen netip.Addr, err error) {
	return c.ask(network, to, patienceOf(network))
}

func (c Client) ask(network string, to netip.AddrPort, patience time.Duration) (pod string,
	seen netip.Addr, err error) {
	conn, err := c.NS.Dial(network, to.String(), patience)
	if err != nil {
		return "", netip.Addr{}, err
	}
	defer conn.Close()
	return say(conn, patience)
}

// Say asks over an open connection or socket, for an answer that must come.
func Say(conn net.Conn) (pod string, seen netip.Addr, err error) {
	return say(conn, patienceOf(conn.LocalAddr().Network()))
}

// SayWithin is Say for those who wait as long as they want.
func SayWithin(conn net.Conn, patience time.Duration) (pod string, seen netip.Addr, err error) {
	return say(conn, patience)
}

func say(conn net.Conn, patience time.Duration) (pod string, seen netip.Addr, err error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", netip.Addr{}, err
	}
	if _, err := fmt.Fprintln(conn, "who?"); err != nil {
		return "", netip.Addr{}, err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", netip.Addr{}, err
	}
	name, from, _ := strings.Cut(strings.TrimSpace(line), " ")
	ap, err := netip.ParseAddrPort(from)
	return name, ap.Addr().Unmap(), err
}
