// Package conformance is one table of packet tests that every mode of the service proxy must pass: real packets through
// the kernel, in network namespaces for two nodes with pods and an external client.
//
// The table knows nothing about the modes, so that other programs can be tested with it, too.
package conformance

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// Mode is a data plane on one node.
type Mode interface {
	// Program makes the kernel serve exactly the Services of the snapshot. It is called whenever they change.
	Program(ctx context.Context, snap model.Snapshot) error
	// Disturb removes the mode's rules without telling it.
	Disturb(node *testnet.NS)
}

// Node describes a node to a mode.
type Node struct {
	Name     string
	NS       *testnet.NS
	Addrs    []netip.Addr
	PodCIDRs []netip.Prefix // of the whole cluster
	OwnCIDRs []netip.Prefix
	Zone     string
	// Cgroup creates a cgroup for the processes of the node and of its pods, and returns its path.
	Cgroup func() string
}

// World is the network: two nodes and an external client on one segment, and two pods on each node.
type World struct {
	t       *testing.T
	Nodes   []*Node
	Pods    []*Pod
	Hosts   []*Pod // a host-network pod of each node
	Outside *testnet.NS
	Store   *model.Store
	modes   []Mode
	start   func(*Node) Mode
}

// Restart replaces the modes by new instances, as if their processes had been killed.
func (w *World) Restart() {
	w.t.Helper()
	for i, n := range w.Nodes {
		w.modes[i] = w.start(n)
	}
	w.Program()
}

// Pod is a pod with a server on port 8080, TCP and UDP, which answers each line or datagram with its name and the
// client address that it saw.
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

// cidrs returns the pod networks.
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
		// The kernel limits the rate of ICMP errors per destination, and here all have the same one.
		n.NS.Sysctl("net/ipv4/icmp_ratelimit", "0")
		n.NS.Sysctl("net/ipv6/icmp/ratelimit", "0")
		w.Nodes = append(w.Nodes, n)
	}
	w.Outside = testnet.New(t, "outside")
	attach(w.Outside, 9, "172.30.0.99/24", "fd00:30::99/64")
	// All other packets go to the external client, which drops them.
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
	for i, n := range w.Nodes {
		n.Cgroup = sync.OnceValue(func() string { return w.cgroup(i) })
	}
	for _, n := range w.Nodes {
		w.modes = append(w.modes, start(n))
	}
	return w
}

// cgroup has a node and its pods enter a cgroup.
func (w *World) cgroup(node int) string {
	path := testnet.Cgroup(w.t)
	w.Nodes[node].NS.Enter(path)
	for _, p := range w.Pods {
		if p.Node == node {
			p.NS.Enter(path)
		}
	}
	return path
}

// awaitAddresses waits until duplicate address detection has ended: packets from and to tentative addresses are lost.
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

// newStore gives the world a store that has only the nodes.
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

// fresh returns the world to a new test: without Services, and without flows of earlier tests.
func (w *World) fresh(t *testing.T) *World {
	t.Helper()
	own := *w
	own.t = t
	own.newStore()
	own.Program()
	own.forgetFlows()
	return &own
}

// route gives a node the routes to the other node's pods.
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

// serve answers with the server's name and the client's address.
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

// Set programs a Service with endpoints on port 8080 of the pods.
func (w *World) Set(svc *model.Service, pods ...*Pod) {
	w.t.Helper()
	ends := make([]model.Endpoint, len(pods))
	for i := range ends {
		ends[i] = model.Endpoint{Ready: true, Serving: true}
	}
	w.SetEndpoints(svc, pods, ends)
}

// SetEndpoints is like Set, with explicit conditions of each endpoint.
func (w *World) SetEndpoints(svc *model.Service, pods []*Pod, conditions []model.Endpoint) {
	w.t.Helper()
	err := w.Store.Write(func(tx *model.Writer) {
		own := *svc // the store keeps a reference
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

// Remove deletes a Service.
func (w *World) Remove(name model.Name) {
	w.t.Helper()
	if err := w.Store.Write(func(tx *model.Writer) { tx.Delete(model.ServiceKind, name) }); err != nil {
		w.t.Fatal(err)
	}
	w.Program()
}

// Program applies the store's state in all modes.
func (w *World) Program() {
	w.t.Helper()
	snap := w.Store.Snapshot()
	for i, n := range w.Nodes {
		if err := w.modes[i].Program(w.t.Context(), snap); err != nil {
			w.t.Fatalf("%s: %v", n.Name, err)
		}
	}
}

// patience is the time limit for an answer over TCP, and the time for which silence is checked. It must exceed the 1 s
// after which a lost segment is sent again.
const patience = 800 * time.Millisecond

// patienceOf is the time limit for an answer that must arrive. Datagrams are never sent again, so a long limit hides no
// loss, and a busy machine needs it.
func patienceOf(network string) time.Duration {
	if strings.HasPrefix(network, "udp") {
		return late
	}
	return patience
}

// Client is a place from which to connect.
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

// Ask makes a new connection, and returns the name of the server that answered and the client address that it saw. An
// answer or a refusal must arrive: use ask with patience to check for silence.
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

// Say sends over an open connection or socket, and requires an answer.
func Say(conn net.Conn) (pod string, seen netip.Addr, err error) {
	return say(conn, patienceOf(conn.LocalAddr().Network()))
}

// SayWithin is Say with a time limit.
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
