package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"wayleave.dev/config"
	"wayleave.dev/internal/buildinfo"
	"wayleave.dev/internal/logging"
	"wayleave.dev/internal/owner"
	"wayleave.dev/internal/statefile"
	"wayleave.dev/kernel"
	"wayleave.dev/kernel/bpf/fastpath"
	"wayleave.dev/kernel/firewall"
	kernelipt "wayleave.dev/kernel/iptables"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/sysctl"
	"wayleave.dev/model"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/writeback"
)

// Node is what the agent of a node gives to features.
type Node struct {
	*Core
	// Name is the name of the Node object.
	Name   string
	Kernel kernel.Features
	// NetNS is the node's network namespace, and NFT its nftables.
	NetNS *os.File // a field, or its finalizer would close it
	NFT   *nft.Kernel
	// FastPath is the fast path of pods. Each change of nftables has it forget what rules have decided.
	FastPath *fastpath.Kernel
	// Firewall is the host's own.
	Firewall firewall.Firewall
	// NodeLocalDNS are addresses that the kubelet gives to pods for DNS and that are the same on each node, such as
	// that of a NodeLocal DNSCache.
	NodeLocalDNS []netip.Addr
	// Dirs are the folders of the node, as the container of the agent has them.
	Dirs

	kubelet writeback.KubeletDNS
	// lock is there while this agent owns the node.
	lock atomic.Pointer[owner.Lock]
}

// Options are what the program starts an agent or a writer with.
type Options struct {
	// Settings is a file, or the folder of a mounted ConfigMap.
	Settings string
	Version  string
	Features []Feature
}

// newCore reads the settings and makes an empty store.
func newCore(o Options) (*Core, error) {
	cfg, err := config.Read(o.Settings)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Settings, err)
	}
	logs := logging.New(os.Stderr, cfg.Log())
	kubesource.LogTo(logs.Logger())
	store, err := model.NewStore()
	if err != nil {
		return nil, err
	}
	c := NewCore(logs.Logger(), store, cfg, o.Features)
	c.Version, c.Logs = o.Version, logs
	buildinfo.Register(c.metrics.registry, o.Version)
	return c, nil
}

func newNode(ctx context.Context, o Options) (*Node, error) {
	core, err := newCore(o)
	if err != nil {
		return nil, err
	}
	n := &Node{Core: core, Name: os.Getenv("NODE_NAME"), Dirs: hostDirs()}
	n.Sysctl, n.Cgroup = hostSysctl, hostCgroup
	n.CNIConf, n.CNIBin = n.Config.PodNetwork.CNIConfDir, n.Config.PodNetwork.CNIBinDir
	if n.Name == "" {
		return nil, errors.New("NODE_NAME is not set; the manifest sets it to spec.nodeName")
	}
	if n.Kernel, err = kernel.Detect(ctx); err != nil {
		return nil, err
	}
	if n.NetNS, err = os.Open("/proc/self/ns/net"); err != nil {
		return nil, err
	}
	if n.NFT, err = nft.NewKernel(0); err != nil {
		return nil, err
	}
	n.FastPath = &fastpath.Kernel{}
	n.NFT.Changed = n.FastPath.Revoke
	if n.Firewall, err = NewFirewall(0, n.NFT, XtablesLock); err != nil {
		return nil, err
	}
	if n.Client, err = kubesource.NewClient(n.Config.APIServer, kubesource.Host{Facts: NodeFacts}); err != nil {
		return nil, err
	}
	kubesource.Servers{Endpoints: n.Client.Endpoints, File: n.apiServersFile(), Tell: n.TellState}.Load()
	n.Log.Info("starting", "version", n.Version, "node", n.Name, "kernel", n.Kernel.Release,
		"apiServer", n.Client.Server, "from", n.Client.From)
	for _, line := range n.Config.Unused {
		n.Log.Warn("a setting has no effect", "setting", line)
	}
	if err := n.readKubelet(); err != nil {
		return nil, err
	}
	return n, n.Prepare(ctx)
}

// Prepare sets the features up, before anything runs.
func (n *Node) Prepare(ctx context.Context) error {
	for _, f := range having[Yielder](n.Features) {
		f.Yield(n)
	}
	for _, f := range having[Preparer](n.Features) {
		if err := f.Prepare(ctx, n); err != nil {
			return err
		}
	}
	return n.registerMetrics()
}

// NewFirewall is the host's firewall of a namespace, in nf_tables and, where the programs are installed, in
// iptables-legacy.
func NewFirewall(nsfd int, tables *nft.Kernel, lockFile string) (firewall.Firewall, error) {
	all := firewall.All{tables}
	if kernelipt.Installed() {
		legacy, err := kernelipt.NewKernel(nsfd, kernelipt.Legacy)
		if err != nil {
			return nil, err
		}
		legacy.LockFile = lockFile
		all = append(all, kernelipt.Firewall{Kernel: legacy})
	}
	return all, nil
}

// readKubelet fills settings that are empty from what the kubelet was told.
func (n *Node) readKubelet() error {
	vips, domain, err := kubesource.Host{Facts: NodeFacts}.ClusterDNS()
	if err != nil && (len(n.Config.ClusterDNS) == 0 || n.Config.ClusterDomain == "") {
		return err
	}
	if err != nil {
		n.Log.Warn("the settings clusterDNS and clusterDomain are used", "err", err)
	}
	var local []netip.Addr
	vips, local = SplitDNS(vips)
	n.kubelet = writeback.KubeletDNS{VIPs: vips, Domain: domain}
	n.Config.ClusterDNS, n.NodeLocalDNS = SplitDNS(n.Config.ClusterDNS)
	if len(n.Config.ClusterDNS) == 0 {
		n.Config.ClusterDNS = vips
	}
	if len(n.NodeLocalDNS) == 0 {
		n.NodeLocalDNS = local
	}
	if n.Config.ClusterDomain == "" {
		n.Config.ClusterDomain = domain
	}
	if n.Config.ClusterDomain == "" {
		n.Config.ClusterDomain = "cluster.local"
	}
	return nil
}

// kinds are those that features read on this node.
func (n *Node) kinds() Kinds {
	k := Kinds{Required: baseKinds}
	for _, f := range Enabled[Feature](n.Config, n.Features) {
		k = k.join(f.Kinds(n.Config))
	}
	return k
}

// Lease is the Lease of this node, the one object that the agent writes.
func (n *Node) Lease() writeback.NodeLease {
	return writeback.NodeLease{Client: n.Client.Interface, Namespace: writeback.PeersNamespace, Node: n.Name}
}

// Owns says whether this agent owns the node.
func (n *Node) Owns() bool { return n.lock.Load() != nil }

// Awaited says whether another agent waits to own the node. An agent that does not own it is not awaited.
func (n *Node) Awaited() (bool, error) {
	lock := n.lock.Load()
	if lock == nil {
		return false, nil
	}
	return lock.Awaited()
}

// Problem is a problem of this node.
func (n *Node) Problem(field, reason string) model.Problem {
	return model.Problem{Kind: "Node", Object: model.Name{Name: n.Name}, Field: field, Reason: reason}
}

// TellState reports what is wrong with a state file, until the file has been written again. The agent goes on.
func (n *Node) TellState(path string, err error) {
	var problems []model.Problem
	if err != nil {
		n.Log.Warn("state file", "err", err)
		problems = []model.Problem{n.Problem(path, err.Error())}
	}
	n.Problems.Set("state", path, problems)
}

var _ statefile.Tell = (*Node)(nil).TellState

// Links are the node's links, of which the file remembers the addresses that were set.
func (n *Node) Links(file string) (*link.Kernel, error) {
	k, err := link.NewKernel(int(n.NetNS.Fd()), filepath.Join(n.State, file))
	if err != nil {
		return nil, err
	}
	k.Tell, k.Sysctl = n.TellState, n.Sysctl
	return k, nil
}

// Sysctls are the node's, and remember what they were for uninstall.
func (n *Node) Sysctls() sysctl.Set {
	return sysctl.Set{Root: n.Sysctl, State: filepath.Join(n.State, "sysctl"), Tell: n.TellState}
}

// report tells the writer, by the node's Lease, what the kubelet gives to pods and what is wrong with this node.
func (n *Node) report(ctx context.Context) error {
	const component = "report to the writer"
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		err := n.Lease().Kubelet(ctx, n.kubelet)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n.SetCondition(component, err)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
	n.Problems.Tell(ctx, n.Reports, func(ctx context.Context, list []model.Problem) error {
		err := n.Lease().Report(ctx, list)
		if ctx.Err() == nil {
			n.SetCondition(component, err)
		}
		return err
	})
	return ctx.Err()
}

// Reports selects the problems that this agent reports: those of its own Node, and those that a feature has nodes
// report.
func (n *Node) Reports(p model.Problem) bool {
	if p.Kind == "Node" {
		return p.Object.Name == n.Name
	}
	if !writeback.Reportable(p, n.Name) {
		return false
	}
	for _, f := range Enabled[NodeReporter](n.Config, n.Features) {
		if f.Reports(n, p) {
			return true
		}
	}
	return false
}
