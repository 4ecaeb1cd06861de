package podnetwork

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/bpf/fastpath"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/firewall"
	"wayleave.dev/kernel/iptables"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/routes"
	"wayleave.dev/reconcile"
)

// machine is a node of the test, with the agent's part and the real plugin.
type machine struct {
	t    *testing.T
	name string
	ns   *testnet.NS
	dir  string
	bin  string
	stop func()
	net  *Network
	mode routes.Mode
	// probe is how often paths are probed.
	probe time.Duration
	// ingress has the node keep the addresses of an ingress proxy.
	ingress bool
	bad     sync.Map // problems by finder and key
	vxlan   uint16   // port, 0 for the default
	carries sync.Map // by node: what was told of the tunnel
	// encrypt is how it encrypts, nil for not at all; sockets is the folder of the processes that do.
	encrypt *encrypted
	sockets string
	// fast is the mode ebpf.
	fast bool
}

// cluster is two nodes and a host outside, on one segment.
type cluster struct {
	t       *testing.T
	store   *model.Store
	nodes   []*machine
	outside *testnet.NS
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func newCluster(t *testing.T) *cluster {
	t.Helper()
	return newClusterWith(t, routes.Auto)
}

// plugin builds the real one.
func plugin(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root (CAP_SYS_ADMIN)")
	}
	if bin := os.Getenv("WAYLEAVE_TEST_CNI"); bin != "" { // in a VM, which has no Go
		return bin
	}
	bin := filepath.Join(t.TempDir(), "wayleave-cni")
	build := exec.Command("go", "build", "-o", bin, "wayleave.dev/cmd/wayleave-cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v: %s", err, out)
	}
	return bin
}

func newClusterWith(t *testing.T, mode routes.Mode) *cluster {
	t.Helper()
	return newClusterOf(t, mode, nil)
}

// newClusterOf is newClusterWith; change is called for each machine before it starts, and may be nil.
func newClusterOf(t *testing.T, mode routes.Mode, change func(*machine)) *cluster {
	t.Helper()
	bin := plugin(t)
	c := &cluster{t: t, outside: testnet.New(t, "outside")}
	var err error
	if c.store, err = model.NewStore(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.store.Close() })
	fabric := testnet.New(t, "fabric")
	plug := fabric.Bridge("br0")
	attach := func(n *testnet.NS, port string, addrs ...string) {
		testnet.Veth(n, "eth0", fabric, port)
		plug(port)
		for _, a := range addrs {
			n.Addr("eth0", a)
		}
	}
	attach(c.outside, "p9", "172.30.0.99/24", "fd00:30::99/64")
	for i := 1; i <= 2; i++ {
		m := &machine{t: t, name: fmt.Sprintf("node%d", i), ns: testnet.New(t, fmt.Sprintf("node%d", i)),
			dir: t.TempDir(), bin: bin, mode: mode}
		attach(m.ns, fmt.Sprintf("p%d", i), fmt.Sprintf("172.30.0.1%d/24", i), fmt.Sprintf("fd00:30::1%d/64", i))
		m.ns.Sysctl("net/ipv4/conf/all/rp_filter", "1") // as strict as many hosts are
		m.ns.Route("0.0.0.0/0", "172.30.0.99")
		m.ns.Route("::/0", "fd00:30::99")
		c.nodes = append(c.nodes, m)
		c.put(&model.Node{Name: m.name,
			InternalIPs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("172.30.0.1%d", i)),
				netip.MustParseAddr(fmt.Sprintf("fd00:30::1%d", i))},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i)),
				netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", i))}, Ready: true})
	}
	c.store.MarkSynced(model.NodeKind)
	learnAll(t, c.store)
	for _, m := range c.nodes {
		if change != nil {
			change(m)
		}
		m.start(c.store)
	}
	return c
}

func (c *cluster) put(n *model.Node) {
	c.t.Helper()
	if err := c.store.Write(func(w *model.Writer) { w.PutNode(n) }); err != nil {
		c.t.Fatal(err)
	}
}

func (m *machine) config(store *model.Store) Config {
	m.t.Helper()
	kernel, err := link.NewKernel(m.ns.FD(), m.path("addresses"))
	if err != nil {
		m.t.Fatal(err)
	}
	conn, err := nft.NewKernel(m.ns.FD())
	if err != nil {
		m.t.Fatal(err)
	}
	track, err := conntrack.NewKernel(m.ns.FD())
	if err != nil {
		m.t.Fatal(err)
	}
	legacy, err := iptables.NewKernel(m.ns.FD(), iptables.Legacy)
	if err != nil {
		m.t.Fatal(err)
	}
	legacy.LockFile = m.path("xtables.lock")
	path := &fastpath.Kernel{NSFD: m.ns.FD()}
	conn.Changed = path.Revoke
	c := Config{Track: track, VXLANPort: m.vxlan, Tunnel: func(node string, ok bool) { m.carries.Store(node, ok) },
		Node: m.name, Store: store, NSFD: m.ns.FD(), StateDir: m.path("state"), Socket: m.path("cni.sock"),
		Tombstones: m.path("del"),
		Sysctl:     "/proc/sys/net", Plugin: m.bin, BinDir: m.path("bin"), ConfDir: m.path("conf"),
		CoolDown:   time.Minute,
		Masquerade: true, Routing: m.mode, ProbeEvery: m.probe, ProxyAddress: m.ingress,
		Kernel: kernel, Rules: NFTables(conn), Firewall: firewall.All{conn, iptables.Firewall{Kernel: legacy}},
		Log:      slog.New(slog.DiscardHandler),
		FastPath: FastPath{Conn: path, On: m.fast},
		Report:   func(finder, key string, p []model.Problem) { m.bad.Store(finder+" "+key, p) }}
	m.encryption(&c)
	return c
}

// start runs the agent's part; the sysctls of forwarding are written in the node.
func (m *machine) start(store *model.Store) {
	m.t.Helper()
	m.startWith(store, func() error {
		if _, err := os.Stat(filepath.Join(m.path("conf"), ConfName)); err != nil {
			return err
		}
		if !m.net.Routes.State().Synced || !m.net.Translation.State().Synced {
			return fmt.Errorf("routes: %+v, masquerade: %+v", m.net.Routes.State(), m.net.Translation.State())
		}
		return nil
	})
}

// startWith is start, until the node is as wanted.
func (m *machine) startWith(store *model.Store, wanted func() error) {
	m.t.Helper()
	var err error
	m.net, err = New(m.config(store), reconcile.NewHealth(nil, nil), reconcile.NewHealth(nil, nil))
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan error, 1)
	go func() { done <- m.ns.Do(func() error { return m.net.Run(ctx) }) }()
	stopped := false
	m.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil && ctx.Err() == nil {
			m.t.Errorf("%s: %v", m.name, err)
		}
		_ = m.net.Close()
	}
	m.t.Cleanup(m.stop)
	testnet.Eventually(m.t, time.Minute, wanted) // took 10 s at load 20
}

const conf = `{"cniVersion":"1.1.0","name":"wayleave","type":"wayleave-cni"}`

// settings tell the plugin where the machine's agent is.
func (m *machine) settings() []string {
	return []string{"WAYLEAVE_CNI_SOCKET=" + m.path("cni.sock"), "WAYLEAVE_CNI_TOMBSTONES=" + m.path("del")}
}

// plugin runs the real binary as a runtime would: in the node's namespace.
func (m *machine) plugin(stdin string, env ...string) (out string, err error) {
	cmd := exec.Command(filepath.Join(m.path("bin"), "wayleave-cni"))
	cmd.Env = append(append(append(os.Environ(), "CNI_PATH="+m.path("bin")), m.settings()...), env...)
	cmd.Stdin = strings.NewReader(stdin)
	var b, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &errs
	if err := m.ns.Do(cmd.Run); err != nil {
		return b.String(), fmt.Errorf("%w: %s%s", err, b.String(), errs.String())
	}
	return b.String(), nil
}

// pod is a namespace with an interface that ADD made.
type pod struct {
	id  string
	ns  *testnet.NS
	m   *machine
	ips []netip.Addr
	out string
}

func (p *pod) env(command string) []string {
	return []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + p.id, "CNI_IFNAME=eth0", "CNI_NETNS=" + p.ns.Path(),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + p.id}
}

func (m *machine) add(id string) (*pod, error) { return m.addIn(id, testnet.New(m.t, id)) }

// addIn is add for a namespace that is there already.
func (m *machine) addIn(id string, ns *testnet.NS) (*pod, error) {
	p := &pod{id: id, ns: ns, m: m}
	var err error
	if p.out, err = m.plugin(conf, p.env("ADD")...); err != nil {
		return nil, err
	}
	var r struct {
		IPs        []struct{ Address netip.Prefix }
		Interfaces []struct{ Name, Sandbox, Mac string }
	}
	if err := json.Unmarshal([]byte(p.out), &r); err != nil {
		return nil, err
	}
	for _, ip := range r.IPs {
		p.ips = append(p.ips, ip.Address.Addr())
	}
	if len(r.Interfaces) != 2 || r.Interfaces[1].Sandbox != p.ns.Path() || r.Interfaces[1].Mac == "" {
		return nil, fmt.Errorf("interfaces of %s", p.out)
	}
	return p, nil
}

func (m *machine) mustAdd(id string) *pod {
	m.t.Helper()
	p, err := m.add(id)
	if err != nil {
		m.t.Fatal(err)
	}
	return p
}

// who asks an address who it sees; something must listen there.
func who(from *testnet.NS, to netip.AddrPort) (netip.Addr, error) {
	c, err := from.Dial("tcp", to.String(), time.Second)
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return netip.Addr{}, err
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		return netip.Addr{}, err
	}
	ap, err := netip.ParseAddrPort(string(buf[:n]))
	return ap.Addr().Unmap(), err
}

func tell(ns *testnet.NS) {
	ns.Serve("tcp", ":80", func(c net.Conn) { _, _ = c.Write([]byte(c.RemoteAddr().String())) })
}

func expectSeen(t *testing.T, from *testnet.NS, to netip.Addr, want netip.Addr) {
	t.Helper()
	expectSeenWithin(t, 5*time.Second, from, to, want)
}

// TestEverybodyReachesEverybody: "pods can communicate with all other pods without
// NAT, nodes with all pods without NAT, and a pod sees itself as others see it";
// outside of the cluster its node's address is seen.
func TestEverybodyReachesEverybody(t *testing.T) {
	c := newCluster(t)
	a, b, d := c.nodes[0].mustAdd("a"), c.nodes[0].mustAdd("b"), c.nodes[1].mustAdd("d")
	for _, p := range []*pod{a, b, d} {
		tell(p.ns)
	}
	for _, ns := range []*testnet.NS{c.nodes[0].ns, c.nodes[1].ns, c.outside} {
		tell(ns)
	}
	node := func(i, f int) netip.Addr {
		n, _ := c.store.Snapshot().Node(c.nodes[i].name)
		return n.InternalIPs[f]
	}
	outside := []netip.Addr{netip.MustParseAddr("172.30.0.99"), netip.MustParseAddr("fd00:30::99")}
	for f := range 2 {
		for _, from := range []*pod{a, b, d} {
			for _, to := range []*pod{a, b, d} {
				expectSeen(t, from.ns, to.ips[f], from.ips[f])
			}
			for i := range 2 {
				expectSeen(t, from.ns, node(i, f), from.ips[f])
			}
		}
		for i := range 2 {
			for _, to := range []*pod{a, b, d} {
				expectSeen(t, c.nodes[i].ns, to.ips[f], node(i, f))
			}
		}
		expectSeen(t, a.ns, outside[f], node(0, f))
		expectSeen(t, d.ns, outside[f], node(1, f))
	}
}

func TestDelLeavesNothing(t *testing.T) {
	c := newCluster(t)
	m := c.nodes[0]
	before := m.ns.Run("sh", "-c", "ip link; ip -4 route; ip -6 route; ip neigh | grep PERMANENT || true")
	p := m.mustAdd("a")
	if m.ns.Run("sh", "-c", "ip link; ip -4 route; ip -6 route; ip neigh | grep PERMANENT || true") == before {
		t.Fatal("ADD changed nothing")
	}
	for range 2 { // DEL twice is no error
		if out, err := m.plugin(conf, p.env("DEL")...); err != nil || out != "" {
			t.Fatalf("%q, %v", out, err)
		}
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		if after := m.ns.Run("sh", "-c",
			"ip link; ip -4 route; ip -6 route; ip neigh | grep PERMANENT || true"); after != before {
			return fmt.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		return nil
	})
	if l := m.net.leases.List(); len(l) != 0 {
		t.Errorf("leases are left: %v", l)
	}
}

// TestDelWithoutTheAgent: the runtime must be able to end a pod at any time; the
// lease is freed when the agent is back. ADD says "try again later".
func TestDelWithoutTheAgent(t *testing.T) {
	c := newCluster(t)
	m := c.nodes[0]
	p := m.mustAdd("a")
	m.stop()
	if _, err := m.add("b"); err == nil || !strings.Contains(err.Error(), `"code": 11`) {
		t.Errorf("ADD without the agent: %v", err)
	}
	if _, err := m.plugin(conf, p.env("DEL")...); err != nil {
		t.Fatal(err)
	}
	if out := p.ns.Run("ip", "-o", "link"); strings.Contains(out, "eth0") {
		t.Errorf("the link is still there: %s", out)
	}
	m.start(c.store)
	if l := m.net.leases.List(); len(l) != 0 {
		t.Errorf("leases are left: %v", l)
	}
}

func TestTheAgentsRestartIsNotSeenByPods(t *testing.T) {
	c := newCluster(t)
	a, d := c.nodes[0].mustAdd("a"), c.nodes[1].mustAdd("d")
	tell(d.ns)
	for range 2 {
		for _, m := range c.nodes {
			m.stop()
			expectSeen(t, a.ns, d.ips[0], a.ips[0])
			m.start(c.store)
			expectSeen(t, a.ns, d.ips[1], a.ips[1])
		}
	}
	if e := c.nodes[0].mustAdd("e"); e.ips[0] == a.ips[0] {
		t.Error("a lease was forgotten")
	}
}

func TestStatusAndGC(t *testing.T) {
	c := newCluster(t)
	m := c.nodes[0]
	if _, err := m.plugin(conf, "CNI_COMMAND=STATUS"); err != nil {
		t.Error(err)
	}
	m.mustAdd("a")
	m.mustAdd("b")
	gc := strings.TrimSuffix(conf, "}") + `,"cni.dev/valid-attachments":[{"containerID":"b","ifname":"eth0"}]}`
	if _, err := m.plugin(gc, "CNI_COMMAND=GC"); err != nil {
		t.Fatal(err)
	}
	if l := m.net.leases.List(); len(l) != 1 || l[0].Container != "b" {
		t.Errorf("leases are %v", l)
	}
}

// A deleted route of ours is back within a second, and so is a pod's.
func TestForeignDeletionsAreRepaired(t *testing.T) {
	c := newCluster(t)
	a, d := c.nodes[0].mustAdd("a"), c.nodes[1].mustAdd("d")
	tell(d.ns)
	expectSeen(t, a.ns, d.ips[0], a.ips[0])
	for _, route := range []string{"10.244.2.0/24", a.ips[0].String()} {
		c.nodes[0].ns.Run("ip", "route", "del", route)
		testnet.Promptly(t, time.Second, func() error {
			if out := c.nodes[0].ns.Run("ip", "route", "show", route); out == "" {
				return fmt.Errorf("the route to %s is still away", route)
			}
			return nil
		})
	}
	c.nodes[0].ns.Run("ip", "route", "add", "10.99.0.0/24", "via", "172.30.0.99") // of others
	c.nodes[0].ns.Run("ip", "route", "del", "10.99.0.0/24")
	expectSeen(t, a.ns, d.ips[0], a.ips[0])
}

func TestANodeThatLeavesLosesItsRoute(t *testing.T) {
	c := newCluster(t)
	if err := c.store.Write(func(w *model.Writer) { w.Delete(model.NodeKind, model.Name{Name: "node2"}) }); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		if out := c.nodes[0].ns.Run("ip", "route", "show", "10.244.2.0/24"); out != "" {
			return fmt.Errorf("still there: %s", out)
		}
		return nil
	})
}

// Addresses of no pod go nowhere, instead of round by the default route.
func TestUnusedAddressesAreUnreachable(t *testing.T) {
	c := newCluster(t)
	a := c.nodes[0].mustAdd("a")
	start := time.Now()
	if _, err := who(a.ns, netip.MustParseAddrPort("10.244.1.200:80")); err == nil ||
		time.Since(start) > 500*time.Millisecond {
		t.Errorf("error %v after %s", err, time.Since(start))
	}
}

// One bad node is reported by field, and the others are routed.
func TestBadNodesHarmNoOther(t *testing.T) {
	c := newClusterWith(t, routes.Direct)
	good, _ := c.store.Snapshot().Node("node2")
	c.put(&model.Node{Name: "node3"})
	c.put(&model.Node{Name: "node4", PodCIDRs: good.PodCIDRs, InternalIPs: good.InternalIPs})
	c.put(&model.Node{Name: "node5", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.5.0/24")},
		InternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.5")}})
	c.put(&model.Node{Name: "node6", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.6.0/24")},
		InternalIPs: []netip.Addr{netip.MustParseAddr("172.30.0.16")}})
	c.nodes[0].ns.Run("ip", "route", "del", "default") // so that node5 is on no network
	m := c.nodes[0]
	testnet.Eventually(t, 5*time.Second, func() error {
		for key, want := range map[string]string{"routes node3": "Node node3: spec.podCIDRs: is empty",
			"routes node4": "spec.podCIDRs[0]: 10.244.2.0/24 overlaps"} {
			p, _ := m.bad.Load(key)
			if !strings.Contains(fmt.Sprint(p), want) {
				return fmt.Errorf("%s: %v", key, p)
			}
		}
		if e := m.net.Routes.State().Error; !strings.Contains(e, "node5") || !strings.Contains(e, "192.0.2.5") {
			return fmt.Errorf("health: %q", e)
		}
		if out := m.ns.Run("ip", "route", "show", "10.244.6.0/24"); !strings.Contains(out, "172.30.0.16") {
			return fmt.Errorf("no route to node6: %q", out)
		}
		return nil
	})
}

func TestUninstallLeavesNothing(t *testing.T) {
	testnet.Need(t, "nft")
	c := newCluster(t)
	m := c.nodes[0]
	m.mustAdd("a")
	m.stop()
	look := "ip -o link | grep -c ' wy'; ip route show proto 87; ip -6 route show proto 87; nft list ruleset; cat " +
		"/proc/sys/net/ipv4/ip_forward"
	if out, _ := m.ns.Try("sh", "-c", look); !strings.Contains(out, "wayleave-podnetwork") ||
		!strings.HasSuffix(out, "1\n") {
		t.Fatalf("nothing was installed: %s", out)
	}
	if err := m.ns.Do(func() error { return Uninstall(t.Context(), m.config(c.store)) }); err != nil {
		t.Fatal(err)
	}
	if out, _ := m.ns.Try("sh", "-c", look); out != "0\n0\n" {
		t.Errorf("left: %s", out)
	}
	var left []string
	_ = filepath.WalkDir(m.dir, func(p string, d os.DirEntry, _ error) error {
		if !d.IsDir() {
			left = append(left, p)
		}
		return nil
	})
	if len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
}
