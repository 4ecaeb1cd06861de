package routing

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/bpf/fastpath"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/firewall"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/wireguard"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork"
	"wayleave.dev/podnetwork/routes"
	plan "wayleave.dev/podnetwork/wireguard"
	"wayleave.dev/podnetwork/wireguard/frames"
	"wayleave.dev/reconcile"
)

// contestant is a way between two nodes.
type contestant struct {
	name      string
	mode      routes.Mode
	encrypted string // "kernel", "user space" or empty
	mtu       int    // of pods
}

var contestants = []contestant{
	{"direct", routes.Direct, "", 1500},
	{"vxlan", routes.VXLAN, "", 1450},
	{"bgp", routes.BGP, "", 1500},
	{"wireguard, kernel", routes.Direct, "kernel", 1440},
	{"wireguard, user space", routes.Direct, "user space", 1440},
}

// world is two nodes with the feature podnetwork, and a pod on each.
type world struct {
	client, server *testnet.NS
	to             netip.Addr
}

func podCIDR(n int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n)) }
func podIP(n int) netip.Addr     { return podCIDR(n).Addr().Next().Next() }
func nodeIP(n int) netip.Addr    { return netip.AddrFrom4([4]byte{172, 30, 0, byte(10 + n)}) }
func nodeName(n int) string      { return fmt.Sprint("node", n) }

// newWorld is nil if the kernel cannot do it.
func newWorld(t *testing.T, c contestant) *world {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	var learned []*model.BGPRoute
	if err := store.Write(func(w *model.Writer) {
		for n := 1; n <= 2; n++ {
			w.PutNode(&model.Node{Name: nodeName(n), InternalIPs: []netip.Addr{nodeIP(n)},
				PodCIDRs: []netip.Prefix{podCIDR(n)}})
			learned = append(learned, &model.BGPRoute{Prefix: podCIDR(n),
				Hops: []model.BGPHop{{Addr: nodeIP(n), Peer: nodeName(n), Node: true}}})
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := store.SetBGPRoutes(learned); err != nil {
		t.Fatal(err)
	}
	store.MarkSynced(routes.BGP.Kinds())
	nodes := []*testnet.NS{testnet.New(t, "node1"), testnet.New(t, "node2")}
	testnet.Veth(nodes[0], "eth0", nodes[1], "eth0")
	b := &board{keys: map[string]plan.Published{}}
	w := &world{to: podIP(2)}
	var networks []*podnetwork.Network
	for i, node := range nodes {
		me := i + 1
		node.Addr("eth0", nodeIP(me).String()+"/24")
		node.Route("0.0.0.0/0", nodeIP(2-i).String())
		pod := testnet.New(t, "pod")
		connect(node, pod, me, c.mtu)
		if i == 0 {
			w.client = pod
		} else {
			w.server = pod
		}
		network, ok := start(t, c, store, node, me, b)
		if !ok {
			return nil
		}
		networks = append(networks, network)
	}
	testnet.Eventually(t, time.Minute, func() error {
		for i, network := range networks {
			if !network.Routes.State().Synced || !network.Translation.State().Synced {
				return fmt.Errorf("routes: %+v", network.Routes.State())
			}
			if s := network.Encryption(); c.encrypted != "" && (s == nil || s.Peers[0].Handshake.IsZero()) {
				return fmt.Errorf("no session: %+v", s)
			}
			out := nodes[i].Run("ip", "route", "get", podIP(2-i).String(), "from", podIP(i+1).String(), "iif", "pod0")
			dev := map[bool]string{true: "dev wayleave-wg", false: "dev eth0"}[c.encrypted != ""]
			if c.mode == routes.VXLAN {
				dev = "dev " + routes.Device
			}
			if !strings.Contains(out, dev) {
				return fmt.Errorf("%s: the way is %s", c.name, out)
			}
		}
		return nil
	})
	return w
}

// connect links a pod to its node, as podnetwork/veth does.
func connect(node, pod *testnet.NS, n, mtu int) {
	podMAC, nodeMAC := fmt.Sprintf("0a:57:00:00:01:%02x", n), "ee:57:4c:00:00:01"
	testnet.Veth(pod, "eth0", node, "pod0")
	pod.Run("ip", "link", "set", "eth0", "mtu", fmt.Sprint(mtu))
	node.Run("ip", "link", "set", "pod0", "mtu", fmt.Sprint(mtu))
	pod.Run("ip", "link", "set", "eth0", "address", podMAC)
	node.Run("ip", "link", "set", "pod0", "address", nodeMAC)
	pod.Addr("eth0", podIP(n).String()+"/32")
	pod.Run("ip", "neigh", "add", "169.254.1.1", "lladdr", nodeMAC, "dev", "eth0", "nud", "permanent")
	pod.Run("ip", "route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "onlink")
	node.Run("ip", "route", "add", podIP(n).String()+"/32", "dev", "pod0")
	node.Run("ip", "neigh", "add", podIP(n).String(), "lladdr", podMAC, "dev", "pod0", "nud", "permanent")
}

// start runs the feature on a node until the test ends. It is not ok where the kernel has no WireGuard.
func start(t *testing.T, c contestant, store *model.Store, node *testnet.NS, n int,
	b *board) (*podnetwork.Network, bool) {
	t.Helper()
	dir := testnet.ShortDir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	kernel, err := link.NewKernel(node.FD(), path("addresses"))
	must(err)
	tables, err := nft.NewKernel(node.FD())
	must(err)
	track, err := conntrack.NewKernel(node.FD())
	must(err)
	must(os.WriteFile(path("plugin"), nil, 0o755))
	cfg := podnetwork.Config{Node: nodeName(n), Store: store, NSFD: node.FD(), StateDir: path("state"),
		Socket: path("cni.sock"), Tombstones: path("del"), Sysctl: "/proc/sys/net", Plugin: path("plugin"),
		BinDir: path("bin"), ConfDir: path("conf"), CoolDown: time.Minute, Masquerade: true, Routing: c.mode,
		Kernel: kernel, NFT: tables, Rules: podnetwork.NFTables(tables), Track: track, Firewall: firewall.All{tables},
		FastPath: podnetwork.FastPath{Conn: &fastpath.Kernel{NSFD: node.FD()}},
		Log:      slog.New(slog.DiscardHandler)}
	if c.encrypted != "" {
		cfg.Encryption = podnetwork.Encryption{Strict: true, Port: 51871, Period: 24 * time.Hour,
			Keys: &reader{board: b, node: nodeName(n), changed: make(chan struct{}, 1)}}
		if c.encrypted == "kernel" {
			k, err := wireguard.NewKernel(node.FD(), "")
			must(err)
			if k.Probe() != nil {
				return nil, false
			}
			cfg.Encryption.Devices = k
		} else {
			u, err := wireguard.NewUser(node.FD(), "", dir, nil, frames.Process)
			must(err)
			cfg.Encryption.Devices = u
			t.Cleanup(func() {
				for i := range plan.Devices {
					_ = u.Remove(context.Background(), plan.Device(i))
				}
			})
		}
	}
	network, err := podnetwork.New(cfg, reconcile.NewHealth(nil, nil), reconcile.NewHealth(nil, nil))
	must(err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = node.Do(func() error { return network.Run(ctx) }) }()
	t.Cleanup(func() { cancel(); <-done; _ = network.Close() })
	return network, true
}

// board is where the nodes publish their keys.
type board struct {
	mu   sync.Mutex
	keys map[string]plan.Published
}

type reader struct {
	board   *board
	node    string
	changed chan struct{}
}

func (r *reader) Publish(p plan.Published) {
	r.board.mu.Lock()
	defer r.board.mu.Unlock()
	r.board.keys[r.node] = p
}

func (r *reader) Nodes() (map[string]plan.Published, bool, error) {
	r.board.mu.Lock()
	defer r.board.mu.Unlock()
	out := map[string]plan.Published{}
	for node, p := range r.board.keys {
		out[node] = p
	}
	return out, true, nil
}

func (r *reader) Changed() <-chan struct{} { return r.changed }
