// Package podnetwork is the network of pods: addresses, links, routes between
// nodes, and the plugin that the container runtime calls.
//
// Invariants:
//   - What keeps pods connected is in the kernel: it lives without the agent.
//   - The CNI configuration is written only when ADD can be served, so the kubelet
//     calls a node Ready only then.
//   - An agent that starts adopts the links and leases it finds.
package podnetwork

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"wayleave.dev/internal/execfile"
	"wayleave.dev/internal/statefile"
	"wayleave.dev/kernel/bpf/fastpath"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/firewall"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/cni"
	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/hostport"
	"wayleave.dev/podnetwork/ipam"
	"wayleave.dev/podnetwork/routes"
	"wayleave.dev/podnetwork/veth"
	"wayleave.dev/reconcile"
)

// Config is what the network is made with.
type Config struct {
	// Node is the name of this node.
	Node  string
	Store *model.Store
	// NSFD is a descriptor of the node's network namespace.
	NSFD int
	// StateDir and Socket are on the node; Sysctl is a writable /proc/sys/net.
	StateDir, Socket, Tombstones, Sysctl string
	// Plugin is the plugin's program, to be copied to BinDir; ConfDir gets the
	// configuration.
	Plugin, BinDir, ConfDir string
	// Tell is told of a state file that is damaged or cannot be written; may be nil.
	Tell       statefile.Tell
	CoolDown   time.Duration
	Masquerade bool
	Routing    routes.Mode
	// VXLANPort is the UDP port of VXLAN, 0 for routes.Port. It must be the same on all nodes.
	VXLANPort uint16
	// ProbeEvery is how often the paths to other nodes are probed, 0 for never.
	ProbeEvery time.Duration
	// PathMTU is told what was found, for metrics; may be nil.
	PathMTU func(node string, bytes int)
	// Tunnel is told whether packets reach a node by VXLAN, for metrics; may be nil.
	Tunnel func(node string, carries bool)
	// Leases is told who has which address, at first and whenever that changes, before
	// a new pod has its address; may be nil.
	Leases func(map[netip.Addr]model.Name)
	// ProxyAddress has the node keep the addresses of its ingress proxy, see
	// model.ProxyAddr.
	ProxyAddress bool
	// Proxy is told these addresses, at first and whenever they change; may be nil.
	Proxy func([]netip.Addr)
	// Reserved are ports of the nodes' programs that are no host ports.
	Reserved model.Reserved
	// Isolate is that of cni.Server; may be nil.
	Isolate func(ctx context.Context, ips []netip.Addr) error
	Kernel  link.Net
	// Encryption is how packets to pods of other nodes are encrypted, with NFT as the kernel's tables.
	Encryption Encryption
	NFT        nft.Conn
	// FastPath is for the mode ebpf.
	FastPath FastPath
	// Rules makes the data plane's rules.
	Rules    func(RulesConfig) Rules
	Track    conntrack.Flusher
	Firewall firewall.Firewall
	Report   func(finder, key string, problems []model.Problem)
	Log      *slog.Logger
}

// ConfName is the CNI configuration's file name.
const ConfName = "10-wayleave.conflist"

const conflist = `{
  "cniVersion": "1.1.0",
  "name": "wayleave",
  "plugins": [{"type": "wayleave-cni", ` +
	`"capabilities": {"portMappings": true, "bandwidth": true, "ips": true, "mac": true}}]
}
`

// Network is the feature at work.
type Network struct {
	Config
	leases *ipam.LeaseStore
	host   *veth.Host
	server *cni.Server
	rules  Rules
	// encryption is there also when it is off.
	encryption *encryption
	// links are what is known of the node's own links; set before anything else runs.
	links  atomic.Pointer[routes.NodeLinks]
	looked chan struct{} // closed once links is set
	// probed is what the probes found, and found tells when that is news.
	probed atomic.Pointer[findings]
	found  chan struct{}
	// proxy are the addresses of the ingress proxy once they are set, and released tells
	// that leases have changed, one of which may have had one.
	proxy    atomic.Pointer[[]netip.Addr]
	released chan struct{}
	// firewall is what the host's firewall does with packets of pods, and relook tells that what must pass has changed.
	firewall atomic.Pointer[firewallFound]
	relook   chan struct{}
	// accelerated is the last result of the fast path; moved tells that a link of a pod was made or removed.
	accelerated atomic.Pointer[fastpath.Report]
	moved       chan struct{}
	// Routes and Translation are the healths of the two loops.
	Routes, Translation *reconcile.Health
}

// New opens the leases and adopts what is there.
func New(c Config, routing, translation *reconcile.Health) (*Network, error) {
	leases := ipam.Open(c.StateDir, c.CoolDown, nil, c.Tell)
	host, err := veth.NewHost(c.NSFD, c.Sysctl)
	if err != nil {
		return nil, errors.Join(err, leases.Close())
	}
	n := &Network{Config: c, leases: leases, host: host, Routes: routing, Translation: translation,
		looked: make(chan struct{}), found: make(chan struct{}, 1), relook: make(chan struct{}, 1),
		released: make(chan struct{}, 1), moved: make(chan struct{}, 1)}
	leases.Follow(func(list []ipam.Lease) {
		if c.Leases != nil {
			c.Leases(holders(list))
		}
		select {
		case n.released <- struct{}{}:
		default:
		}
	})
	n.encryption = newEncryption(n, c.NFT)
	n.rules = c.Rules(RulesConfig{Track: c.Track, VXLANPort: c.VXLANPort, Leases: leases.List})
	n.server = &cni.Server{Leases: leases, Links: fastPathLinks{host, n.ringFastPath},
		Node: n.nodeNetwork, Ports: n.rules, Full: n.full,
		Isolate: c.Isolate, Log: c.Log,
		Reserved: func(p model.Protocol, port uint16) string { return c.Reserved.Port(c.Store.Snapshot(), p, port) }}
	return n, nil
}

// holders are the pods by address. Where the runtime did not say whose the lease is,
// nobody is named.
func holders(list []ipam.Lease) map[netip.Addr]model.Name {
	out := map[netip.Addr]model.Name{}
	for _, l := range list {
		ns, name, ok := strings.Cut(l.Pod, "/")
		for _, a := range l.IPs {
			if ok {
				out[a] = model.Name{Namespace: ns, Name: name}
			}
		}
	}
	return out
}

// nodeNetwork is the node's facts for the CNI server.
func (n *Network) nodeNetwork() (cni.NodeNetwork, bool) {
	node, ok := n.Store.Snapshot().Node(n.Node)
	if !ok || len(node.PodCIDRs) == 0 {
		return cni.NodeNetwork{}, false
	}
	links := n.links.Load()
	if links == nil {
		return cni.NodeNetwork{}, false
	}
	mtu := links.PodMTU(n.Store.Snapshot())
	return cni.NodeNetwork{PodCIDRs: node.PodCIDRs, NodeIPs: node.InternalIPs, MTU: mtu}, true
}

// Run works until ctx ends. What pods need stays behind.
func (n *Network) Run(ctx context.Context) error {
	if err := n.forwarding(); err != nil {
		return err
	}
	if err := os.Remove(n.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cni socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: n.Socket})
	if err != nil {
		return fmt.Errorf("cni socket: %w", err)
	}
	if err := os.Chmod(n.Socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("cni socket: %w", err), l.Close())
	}
	if err := n.server.Bury(n.Tombstones); err != nil {
		n.Log.Warn("tombstones of the CNI plugin", "err", err)
	}
	if err := n.server.Reconcile(); err != nil {
		n.Log.Warn("leases and links differ; no address is assigned until they agree", "err", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	parts := []func(context.Context) error{
		func(ctx context.Context) error { return n.server.Serve(ctx, l) },
		n.encryption.run, n.routing, n.translation, n.publish, n.accept, n.probe, n.proxyAddress, n.keepForwarding,
		n.fastPath,
	}
	done := make(chan struct{})
	for _, part := range parts {
		go func() {
			defer func() { done <- struct{}{} }()
			if err := part(ctx); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		}()
	}
	for range parts {
		<-done
	}
	return context.Cause(ctx)
}

// repair puts back what somebody took from the links of living pods.
func (n *Network) repair() {
	local, ok := n.nodeNetwork()
	if !ok {
		return
	}
	var problems []model.Problem
	n.server.Each(func(l ipam.Lease) {
		err := n.host.Repair(veth.Link{Name: l.Interface, HostName: l.HostLink, IPs: l.IPs, MAC: l.MAC,
			NodeIPs: local.NodeIPs, Localhost: hostport.Localhost(l.Ports)})
		if err != nil {
			problems = append(problems, model.Problem{Kind: "Node", Object: model.Name{Name: n.Node},
				Reason: fmt.Sprintf("pod %s: %v", l.Pod, err)})
		}
	})
	n.report("podnetwork", "links", problems)
}

// full reports that the node has no address for another pod.
func (n *Network) full(err error) {
	var problems []model.Problem
	if err != nil {
		problems = []model.Problem{{Kind: "Node", Object: model.Name{Name: n.Node}, Field: "spec.podCIDRs",
			Reason: err.Error() + ": pods cannot start here until others end"}}
	}
	n.report("podnetwork", "addresses", problems)
}

func (n *Network) report(finder, key string, problems []model.Problem) {
	if n.Report != nil {
		n.Report(finder, key, problems)
	}
}

// translation keeps the rules.
func (n *Network) translation(ctx context.Context) error {
	foreign, err := n.rules.Watch(ctx)
	if err != nil {
		return err
	}
	loop := &reconcile.Loop[string, ClusterFacts]{
		Name: "masquerade", Store: n.Store, Kinds: model.NodeKind, Equal: ClusterFacts.equal,
		Planner: reconcile.PlannerOf(func(_ model.Snapshot, c model.Changes) []string {
			if !c.Any(model.NodeKind) {
				return nil
			}
			return []string{""}
		}, func(s model.Snapshot, _ string) (ClusterFacts, bool, []model.Problem) {
			return makeClusterFacts(s, n.Node, n.Masquerade), true, nil
		}),
		Target: n.rules, Foreign: foreign, Health: n.Translation, Log: n.Log,
	}
	return loop.Run(ctx)
}

// publish installs the plugin, and its configuration once the node has a network.
func (n *Network) publish(ctx context.Context) error {
	if err := n.put("CNI plugin", filepath.Join(n.BinDir, call.Type),
		func(to string) error { return install(n.Plugin, to) }); err != nil {
		return err
	}
	select {
	case <-n.looked:
	case <-ctx.Done():
		return ctx.Err()
	}
	w, err := n.Store.Watch(model.NodeKind)
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		if _, ok := n.nodeNetwork(); ok {
			break
		}
		if _, _, err := w.Next(ctx); err != nil {
			return err
		}
	}
	if err := n.put("CNI configuration", filepath.Join(n.ConfDir, ConfName),
		func(to string) error { return writeFile(to, []byte(conflist), 0o644) }); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// put has a file written. One that an earlier agent left serves until the disk takes another.
func (n *Network) put(what, to string, write func(to string) error) error {
	err := write(to)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", what, err)
	if _, missing := os.Stat(to); missing != nil {
		return errors.Join(err, missing)
	}
	if n.Tell != nil {
		n.Tell(to, err)
	}
	return nil
}

// install copies a program in place of a running one: the runtime may execute it meanwhile.
func install(from, to string) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return execfile.Install(to, raw, 0o755)
}

func writeFile(name string, content []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	temp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".new")
	err := os.WriteFile(temp, content, mode)
	if err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		_ = os.Remove(temp) // gives a full disk its space back
	}
	return err
}

// Facts are lines about the leases, for status.
func (n *Network) Facts() []string {
	local, ok := n.nodeNetwork()
	if !ok {
		return []string{"the node has no pod network yet"}
	}
	facts := []string{fmt.Sprintf("%d leases of %v, MTU %d", len(n.leases.List()), local.PodCIDRs, local.MTU)}
	facts = append(facts, n.encryptionFacts()...)
	facts = append(facts, n.firewallFacts()...)
	facts = append(facts, n.bgpFacts()...)
	facts = append(facts, n.fastPathFacts()...)
	if found := n.probed.Load(); found != nil {
		facts = append(facts, found.facts()...)
	}
	return facts
}

// Close ends the use of the leases.
func (n *Network) Close() error { return n.leases.Close() }
