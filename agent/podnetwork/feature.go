// Package podnetwork runs the pod network in the agent.
package podnetwork

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/agent"
	"wayleave.dev/agent/dataplane"
	"wayleave.dev/config"
	"wayleave.dev/kernel/bpf/fastpath"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/wireguard"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork"
	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/routes"
	kubesource "wayleave.dev/source/kubernetes"
)

// addressesFile would remember, in the folder of state, local addresses: the pod network sets none by its links.
const addressesFile = "no-addresses"

// Feature is the pod network.
type Feature struct {
	network atomic.Pointer[podnetwork.Network]
	path    *prometheus.GaugeVec
	tunnel  *prometheus.GaugeVec
	// other is the configuration for which Yield has left the pod network to another CNI, empty for none.
	other string
}

var (
	_ agent.Feature     = (*Feature)(nil)
	_ agent.Yielder     = (*Feature)(nil)
	_ agent.Idler       = (*Feature)(nil)
	_ agent.Owner       = (*Feature)(nil)
	_ agent.Leaver      = (*Feature)(nil)
	_ agent.Reporter    = (*Feature)(nil)
	_ agent.Lister      = (*Feature)(nil)
	_ agent.Metered     = (*Feature)(nil)
	_ agent.Uninstaller = (*Feature)(nil)
)

// New makes the feature of one process.
func New() *Feature {
	return &Feature{
		path: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "wayleave_path_mtu_bytes",
			Help: "The largest packet that reaches a node."}, []string{"node"}),
		tunnel: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "wayleave_tunnel_carries",
			Help: "Whether packets by VXLAN reach a node: 1, or 0 where they do not and others do."}, []string{"node"}),
	}
}

// Name implements agent.Feature.
func (f *Feature) Name() string { return "podnetwork" }

// Enabled implements agent.Feature.
func (f *Feature) Enabled(cfg config.Config) bool { return cfg.PodNetwork.Enabled }

// Kinds implements agent.Feature. With `routing: bgp`, the feature bgp has the kinds of BGP read.
func (f *Feature) Kinds(config.Config) agent.Kinds { return agent.Kinds{} }

// Own implements agent.Owner.
func (f *Feature) Own(n *agent.Node) []agent.Part {
	return []agent.Part{{Name: f.Name(), Run: func(ctx context.Context) error { return f.run(ctx, n) }}}
}

// Leave implements agent.Leaver: pods are of another CNI, whose bridges are looked at for what depends on them.
func (f *Feature) Leave(n *agent.Node) []agent.Part {
	// Pods that an earlier agent has made may be running still.
	if err := n.FastPath.Remove(context.Background()); err != nil {
		n.SetCondition("podnetwork: the fast path of an earlier agent", err)
	}
	if !n.Config.Service.Enabled && !n.Config.NetworkPolicy.Enabled {
		return nil
	}
	return []agent.Part{{Name: "bridges", Run: func(ctx context.Context) error { return watchBridges(ctx, n) }}}
}

// Facts implements agent.Reporter.
func (f *Feature) Facts(*agent.Node, model.Snapshot) []string {
	if network := f.network.Load(); network != nil {
		return network.Facts()
	}
	return nil
}

// Metrics implements agent.Metered.
func (f *Feature) Metrics(*agent.Node) []prometheus.Collector {
	return []prometheus.Collector{f.path, f.tunnel, encryptionMetrics{f}, fastPathMetrics{f}}
}

func (f *Feature) run(ctx context.Context, n *agent.Node) error {
	runtime, err := kubesource.Host{Facts: agent.NodeFacts}.RuntimeCNI()
	if err := checkFolders(n, runtime, err); err != nil {
		return err
	}
	plane, err := dataplane.For(n.Config)
	if err != nil {
		return err
	}
	kernel, err := n.Links(addressesFile)
	if err != nil {
		return err
	}
	track, err := conntrack.NewKernel(0)
	if err != nil {
		return err
	}
	encryption, keys, err := encryptionOf(n)
	if err != nil {
		return err
	}
	c := podnetwork.Config{
		FastPath:   podnetwork.FastPath{Conn: n.FastPath, On: plane.FastPath()},
		Encryption: encryption, NFT: n.NFT,
		Node: n.Name, Store: n.Store, NSFD: int(n.NetNS.Fd()), StateDir: n.State, Socket: call.Socket,
		Tombstones: call.Tombstones, Sysctl: n.Sysctl,
		Plugin: "/wayleave-cni", BinDir: n.CNIBin, ConfDir: n.CNIConf,
		CoolDown:   n.Config.PodNetwork.CoolDown,
		Masquerade: n.Config.PodNetwork.Masquerade, Routing: routes.Mode(n.Config.Routing),
		ProbeEvery: n.Config.PodNetwork.ProbeEvery,
		VXLANPort:  uint16(n.Config.PodNetwork.VXLANPort), Tunnel: f.tunnelTo,
		PathMTU:  func(node string, bytes int) { f.path.WithLabelValues(node).Set(float64(bytes)) },
		Reserved: agent.ReservedPorts(n.Config),
		Kernel:   kernel, Rules: plane.PodNetwork(dataplane.Kernel{NFT: n.NFT}), Track: track, Firewall: n.Firewall,
		Report: n.Problems.Set,
		Tell:   n.TellState, Log: n.Log,
	}
	meet(&c, n)
	network, err := podnetwork.New(c, n.Health(f.Name()), n.Health("masquerade"))
	if err != nil {
		return err
	}
	defer network.Close()
	f.network.Store(network)
	return agent.All(ctx, network.Run, keys.Run)
}

// meet has the other features told of leases and of the proxy's addresses, and asked before a new pod has its network.
func meet(c *podnetwork.Config, n *agent.Node) {
	followers := agent.Enabled[agent.LeaseFollower](n.Config, n.Features)
	c.Leases = func(pods map[netip.Addr]model.Name) {
		for _, f := range followers {
			f.Leases(pods)
		}
	}
	if isolators := agent.Enabled[agent.Isolator](n.Config, n.Features); len(isolators) > 0 {
		c.Isolate = func(ctx context.Context, ips []netip.Addr) error {
			for _, f := range isolators {
				if err := f.Isolate(ctx, ips); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if proxies := agent.Enabled[agent.ProxyFollower](n.Config, n.Features); len(proxies) > 0 {
		c.ProxyAddress = true
		c.Proxy = func(addrs []netip.Addr) {
			for _, f := range proxies {
				f.ProxyAddresses(addrs)
			}
		}
	}
}

// tunnelTo says whether packets reach a node by VXLAN.
func (f *Feature) tunnelTo(node string, carries bool) {
	value := 0.0
	if carries {
		value = 1
	}
	f.tunnel.WithLabelValues(node).Set(value)
}

// Uninstall implements agent.Uninstaller.
func (f *Feature) Uninstall(ctx context.Context, h *agent.Host) error {
	var errs []error
	for _, r := range dataplane.AllRules() {
		c, err := leftOn(h, r)
		if err == nil {
			err = podnetwork.Uninstall(ctx, c)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Remains implements agent.Uninstaller.
func (f *Feature) Remains(ctx context.Context, h *agent.Host) (left []string, err error) {
	var errs []error
	for _, r := range dataplane.AllRules() {
		var found []string
		c, err := leftOn(h, r)
		if err == nil {
			found, err = podnetwork.Remains(ctx, c)
		}
		left, errs = append(left, found...), append(errs, err)
	}
	return left, errors.Join(errs...)
}

// leftOn is what the feature may have on a host.
func leftOn(h *agent.Host, r dataplane.Rules) (podnetwork.Config, error) {
	links, err := link.NewKernel(h.FD(), filepath.Join(h.State, addressesFile))
	if err != nil {
		return podnetwork.Config{}, err
	}
	devices, err := wireguard.NewUser(h.FD(), h.Sysctl, h.Run, nil)
	return podnetwork.Config{NFT: h.NFT, Encryption: podnetwork.Encryption{Devices: devices}, NSFD: h.FD(),
		FastPath: podnetwork.FastPath{Conn: &fastpath.Kernel{NSFD: h.FD()}},
		StateDir: h.State, Kernel: links, Firewall: h.Firewall,
		Rules:  r.PodNetwork(dataplane.Kernel{NSFD: h.FD(), NFT: h.NFT}),
		Sysctl: h.Sysctl, BinDir: h.CNIBin, ConfDir: h.CNIConf,
		Socket:     filepath.Join(h.Run, filepath.Base(call.Socket)),
		Tombstones: filepath.Join(h.State, filepath.Base(call.Tombstones))}, err
}
