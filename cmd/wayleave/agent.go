package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"wayleave.dev/config"
	"wayleave.dev/dns"
	"wayleave.dev/internal/memlimit"
	"wayleave.dev/internal/owner"
	"wayleave.dev/internal/statefile"
	"wayleave.dev/kernel"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/firewall"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/sysctl"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	"wayleave.dev/podnetwork"
	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/routes"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
	"wayleave.dev/service/dataplane"
	"wayleave.dev/service/healthcheck"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/writeback"
)

// dnsUser is the user of the dns container.
const dnsUser = 65532

func agentCommand() *cobra.Command {
	var settings string
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run this node's network (what the DaemonSet starts)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := memlimit.Set(1, 2); err != nil {
				fmt.Fprintln(os.Stderr, "going on without:", err)
			}
			return runAgent(cmd.Context(), settings)
		},
	}
	c.Flags().StringVar(&settings, "config", configDir, "the settings: a file, or the folder of a mounted ConfigMap")
	return c
}

// agent is the wiring of the features of one node.
type agent struct {
	node     string
	cfg      config.Config
	log      *slog.Logger
	features kernel.Features
	store    *model.Store
	problems *writeback.Problems
	client   *kubesource.Client
	nft      *nft.Kernel
	netns    *os.File // of the node; a field, or its finalizer would close it
	metrics  *metrics
	firewall firewall.Firewall // the host's own
	planes   dataplane.Planes
	// kubelet is what the kubelet gives to pods, for the writer, and nodeDNS what it gives of addresses that are
	// the same on each node (NodeLocal DNSCache).
	kubelet writeback.KubeletDNS
	nodeDNS []netip.Addr
	// gate holds back new pods until their policies are in the kernel.
	gate *networkpolicy.Gate

	owner   atomic.Bool
	network atomic.Pointer[podnetwork.Network]
	// lock is there while this agent owns the node.
	lock atomic.Pointer[owner.Lock]
	// announcer is there while this agent answers for addresses, or waits to.
	announcer atomic.Pointer[announcer]
	feed      *dns.Feed
	roll      *dns.Roll
	policies  atomic.Pointer[policies]
	ingress   *ingressFeed

	mu      sync.Mutex
	healths map[string]*reconcile.Health
	wrong   map[string]string
	facts   map[string]string // a line of a feature about itself, for status
}

func runAgent(ctx context.Context, settings string) error {
	a, err := newAgent(ctx, settings)
	if err != nil {
		return err
	}
	defer a.store.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	start := func(name string, fn func(context.Context) error) {
		wg.Go(func() {
			if err := fn(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	start("health", a.serveHealth)
	start("source", a.source)
	start("reports", a.tell)
	for name, fn := range a.feeds() {
		start(name, fn)
	}
	start("node", a.own)
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// feeds are what keeps the containers dns and proxy of this pod going. Where a feature is
// off its container is told so, and is ready: else the pod would never be.
func (a *agent) feeds() map[string]func(context.Context) error {
	m := map[string]func(context.Context) error{"dns feed": a.dnsFeed, "ingress": a.ingress.rest}
	if a.cfg.DNS.Enabled {
		m["dns names"], m["dns callers"], m["dns clients"] = a.dnsNames, a.dnsCallers, a.dnsGuests
	} else {
		a.feed.Rest()
	}
	if a.cfg.Ingress.Enabled {
		m["ingress"] = a.ingress.run
	}
	return m
}

func newAgent(ctx context.Context, settings string) (*agent, error) {
	cfg, err := config.Read(settings)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", settings, err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	a := &agent{node: os.Getenv("NODE_NAME"), cfg: cfg, log: log, problems: writeback.NewProblems(log),
		healths: map[string]*reconcile.Health{}, wrong: map[string]string{}, facts: map[string]string{}}
	if a.node == "" {
		return nil, errors.New("NODE_NAME is not set; the manifest sets it to spec.nodeName")
	}
	if a.features, err = kernel.Detect(ctx); err != nil {
		return nil, err
	}
	if a.netns, err = os.Open("/proc/self/ns/net"); err != nil {
		return nil, err
	}
	if a.nft, err = nft.NewKernel(0); err != nil {
		return nil, err
	}
	track, err := conntrack.NewKernel(0)
	if err != nil {
		return nil, err
	}
	a.planes = newPlanes(0, a.nft, track, cfg, stateDir)
	a.planes.Tell = a.tellState
	a.planes.LockFile, a.planes.Sysctl = xtablesLock, hostSysctl
	if a.firewall, err = newFirewall(0, a.nft, xtablesLock); err != nil {
		return nil, err
	}
	if a.store, err = model.NewStore(); err != nil {
		return nil, err
	}
	a.gate = networkpolicy.NewGate(a.node)
	a.metrics = newMetrics(prometheus.NewRegistry())
	a.client, err = kubesource.NewClient(cfg.APIServer, kubesource.Host{Facts: nodeFacts})
	if err != nil {
		return nil, err
	}
	kubesource.Servers{Endpoints: a.client.Endpoints, File: apiServersFile, Tell: a.tellState}.Load()
	log.Info("starting", "version", version, "node", a.node, "kernel", a.features.Release, "apiServer", a.client.Server,
		"from", a.client.From)
	for _, line := range cfg.Unused {
		log.Warn("a setting has no effect", "setting", line)
	}
	if err := a.checkMode(ctx); err != nil {
		return nil, err
	}
	if err := a.fromKubelet(); err != nil {
		return nil, err
	}
	a.feed = &dns.Feed{Open: dns.OpenSocket, AllowUID: dnsUser, Log: log}
	if cfg.DNS.Enabled {
		if err := dns.Remember(dnsPlaceFile, a.feed); err != nil {
			a.tellState(dnsPlaceFile, err)
		}
	}
	a.ingress = newIngressFeed(a)
	a.roll = &dns.Roll{Feed: a.feed, Leased: cfg.PodNetwork.Enabled}
	return a, nil
}

// fromKubelet fills settings that are empty from what the kubelet was told.
func (a *agent) fromKubelet() error {
	vips, domain, err := kubesource.Host{Facts: nodeFacts}.ClusterDNS()
	if err != nil {
		return err
	}
	var local []netip.Addr
	vips, local = splitDNS(vips)
	a.kubelet = writeback.KubeletDNS{VIPs: vips, Domain: domain}
	a.cfg.ClusterDNS, a.nodeDNS = splitDNS(a.cfg.ClusterDNS)
	if len(a.cfg.ClusterDNS) == 0 {
		a.cfg.ClusterDNS = vips
	}
	if len(a.nodeDNS) == 0 {
		a.nodeDNS = local
	}
	if a.cfg.ClusterDomain == "" {
		a.cfg.ClusterDomain = domain
	}
	if a.cfg.ClusterDomain == "" {
		a.cfg.ClusterDomain = "cluster.local"
	}
	return nil
}

func (a *agent) source(ctx context.Context) error {
	s := &kubesource.Source{Client: a.client.Interface, Store: a.store, NodeName: a.node, AllPods: a.cfg.DNS.Enabled &&
		(a.cfg.DNS.Pods == dns.PodsVerified || !a.cfg.PodNetwork.Enabled),
		Policies: a.cfg.NetworkPolicy.Enabled, Ingresses: a.cfg.Ingress.Enabled, Log: a.log,
		Report: func(kind string, n model.Name, problems []model.Problem) {
			if kind == model.IngressKind.String() {
				return // told by the planner, of those that are ours
			}
			a.problems.Set("source", kind+" "+n.String(), problems)
		}}
	if a.cfg.LoadBalancer.Enabled {
		s.Dynamic = a.client.Dynamic
	}
	return s.Run(ctx)
}

// lease is the Lease of this node, the one object that the agent writes.
func (a *agent) lease() writeback.NodeLease {
	return writeback.NodeLease{Client: a.client.Interface, Namespace: writeback.PeersNamespace, Node: a.node}
}

// tell reports to the writer, by the node's Lease, what the kubelet gives to pods and what
// is wrong with this node.
func (a *agent) tell(ctx context.Context) error {
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		err := a.lease().Kubelet(ctx, a.kubelet)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.say("report to the writer", err)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
	a.problems.Tell(ctx, a.reports, func(ctx context.Context, list []model.Problem) error {
		err := a.lease().Report(ctx, list)
		if ctx.Err() == nil {
			a.say("report to the writer", err)
		}
		return err
	})
	return ctx.Err()
}

// ingressReporters is how many nodes report problems of Secrets that Ingresses name: all
// nodes find the same.
const ingressReporters = 2

// reports selects the problems that this agent reports.
func (a *agent) reports(q model.Problem) bool {
	if !writeback.Reportable(q, a.node) || q.Kind == "Node" {
		return q.Kind == "Node" && q.Object.Name == a.node
	}
	n := 0
	for node := range a.store.Snapshot().Nodes() { // in order of names
		if node.Ready && servesIngress(a.cfg, node) {
			if node.Name == a.node {
				return true
			}
			if n++; n == ingressReporters {
				break
			}
		}
	}
	return false
}

// say keeps what is wrong outside of the loops, for status; nil takes it back.
func (a *agent) say(what string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		delete(a.wrong, what)
		return
	}
	if a.wrong[what] != err.Error() {
		a.log.Warn(what, "err", err)
	}
	a.wrong[what] = err.Error()
}

// fact keeps a line of a feature for status.
func (a *agent) fact(feature, line string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.facts[feature] = line
}

func (a *agent) health(name string) *reconcile.Health {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := reconcile.NewHealth(a.metrics.observer(name), a.metrics.counter(name))
	a.healths[name] = h
	return h
}

// dnsFeed serves the dns container of this pod, as owner and as standby.
func (a *agent) dnsFeed(ctx context.Context) error {
	l, err := listenChild(dnsSocket)
	if err != nil {
		return err
	}
	return a.feed.Serve(ctx, l)
}

func (a *agent) dnsNames(ctx context.Context) error {
	kinds := model.ServiceKind | model.EndpointSliceKind | model.NamespaceKind
	if a.cfg.DNS.Pods == dns.PodsVerified {
		kinds |= model.PodKind
	}
	loop := &reconcile.Loop[model.Name, dns.Entry]{
		Name: "dns", Store: a.store, Kinds: kinds,
		Keys: dns.Keys, Plan: dns.Plan, Equal: dns.Equal, Target: a.feed, Health: a.health("dns"), Log: a.log,
		Report: func(key string, problems []model.Problem) { a.problems.Set("dns", key, problems) },
	}
	return loop.Run(ctx)
}

// needed are the kinds that must have been read before the node is changed: what is not
// known would be taken for gone.
func (a *agent) needed() model.Kind {
	kinds := model.ServiceKind | model.EndpointSliceKind | model.NodeKind | model.NamespaceKind
	if a.cfg.NetworkPolicy.Enabled {
		kinds |= networkpolicy.PlannerKinds
	}
	if a.cfg.Service.Enabled {
		kinds |= model.ServiceCIDRKind
	}
	return kinds
}

// leases tells who asks whose the addresses of this node are.
func (a *agent) leases(pods map[netip.Addr]model.Name) {
	a.roll.Leases(pods)
	a.gate.Leases(pods)
}

// own waits to be the owner of the node, and then runs what changes it.
func (a *agent) own(ctx context.Context) error {
	if err := a.store.WaitSynced(ctx, a.needed()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	start := func(name string, on bool, fn func(context.Context) error) {
		if !on {
			return
		}
		wg.Go(func() {
			if err := fn(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	// The process that answers for addresses waits beside the old agent's, so that none
	// moves when that ends.
	speaking := false
	speak := func(settle time.Duration) {
		if !speaking {
			speaking = true
			start("loadbalancer", a.cfg.LoadBalancer.Enabled,
				func(ctx context.Context) error { return a.announce(ctx, settle) })
		}
	}
	waiting, owned := context.WithCancel(ctx)
	defer owned()
	var standby sync.WaitGroup
	lock, err := owner.Acquire(ctx, runDir+"/owner.lock", func() {
		a.log.Info("standby: another agent owns this node")
		speak(0)
		if a.cfg.DNS.Enabled {
			standby.Go(func() {
				if err := a.dnsStandby(waiting); err != nil && waiting.Err() == nil {
					a.log.Warn("DNS does not answer beside the other agent's", "err", err)
				}
			})
		}
	})
	owned()
	standby.Wait()
	if err != nil {
		cancel(err)
		wg.Wait()
		return err
	}
	defer func() {
		if err := lock.Release(); err != nil {
			a.log.Error("could not release the node", "err", err)
		}
	}()
	a.lock.Store(lock)
	a.owner.Store(true)
	a.log.Info("this agent owns the node")
	speak(a.cfg.LoadBalancer.Settle)
	start("API servers", true, kubesource.Servers{Endpoints: a.client.Endpoints, Store: a.store, File: apiServersFile,
		Tell: a.tellState}.Run)
	start("podnetwork", a.cfg.PodNetwork.Enabled, a.podNetwork)
	start("networkpolicy", a.cfg.NetworkPolicy.Enabled, a.enforce)
	start("networkpolicy", !a.cfg.NetworkPolicy.Enabled, a.leavePolicies)
	start("service", a.cfg.Service.Enabled, a.services)
	start("dns placement", a.cfg.DNS.Enabled, a.dnsPlacement)
	start("firewall", true, a.openDoors)
	start("bridges", !a.cfg.PodNetwork.Enabled && (a.cfg.Service.Enabled || a.cfg.NetworkPolicy.Enabled),
		a.watchBridges)
	start("status", true, a.serveStatus)
	start("ports", true, a.servePorts)
	wg.Wait()
	return context.Cause(ctx)
}

func (a *agent) links(file string) (*link.Kernel, error) {
	k, err := link.NewKernel(int(a.netns.Fd()), stateDir+"/"+file)
	if err != nil {
		return nil, err
	}
	k.Tell, k.Sysctl = a.tellState, hostSysctl
	return k, nil
}

// tellState says what is wrong with a state file, until it has been written again. Nothing ends for it.
func (a *agent) tellState(path string, err error) {
	var problems []model.Problem
	if err != nil {
		a.log.Warn("state file", "err", err)
		problems = []model.Problem{{Kind: "Node", Object: model.Name{Name: a.node}, Field: path, Reason: err.Error()}}
	}
	a.problems.Set("state", path, problems)
}

func (a *agent) podNetwork(ctx context.Context) error {
	kernel, err := a.links("no-addresses")
	if err != nil {
		return err
	}
	track, err := conntrack.NewKernel(0)
	if err != nil {
		return err
	}
	var isolate func(context.Context, []netip.Addr) error
	if a.cfg.NetworkPolicy.Enabled {
		isolate = a.gate.Isolate
	}
	var proxied func([]netip.Addr)
	if a.cfg.Ingress.Enabled {
		proxied = a.ingress.sources
	}
	n, err := podnetwork.New(podnetwork.Config{
		Node: a.node, Store: a.store, NSFD: int(a.netns.Fd()), StateDir: stateDir, Socket: call.Socket,
		Tombstones: call.Tombstones, Sysctl: hostSysctl,
		Plugin: "/wayleave-cni", BinDir: cniBinDir, ConfDir: cniConfDir, CoolDown: a.cfg.PodNetwork.CoolDown,
		Masquerade: a.cfg.PodNetwork.Masquerade, Routing: routes.Mode(a.cfg.Routing),
		ProbeEvery: a.cfg.PodNetwork.ProbeEvery,
		VXLANPort:  uint16(a.cfg.PodNetwork.VXLANPort), Tunnel: a.metrics.tunnelTo,
		PathMTU: func(node string, bytes int) { a.metrics.path.WithLabelValues(node).Set(float64(bytes)) },
		Leases:  a.leases, Isolate: isolate, Reserved: reservedPorts(a.cfg), ProxyAddress: a.cfg.Ingress.Enabled,
		Proxy:  proxied,
		Kernel: kernel, NFT: a.nft, Track: track, Firewall: a.firewall, Report: a.problems.Set,
		Tell: a.tellState, Log: a.log,
	}, a.health("podnetwork"), a.health("masquerade"))
	if err != nil {
		return err
	}
	defer n.Close()
	a.network.Store(n)
	return n.Run(ctx)
}

func (a *agent) services(ctx context.Context) error {
	if err := a.waitForKubeProxy(ctx); err != nil {
		return err
	}
	mode, err := a.mode(ctx)
	if err != nil {
		return err
	}
	// The facts of the node are there before the first Sync, or that would take the
	// node ports away for a moment.
	local, ok, _ := a.serviceLocal(a.store.Snapshot(), a.node)
	if ok {
		mode.SetNodeFacts(local)
	}
	if err := ensureSysctls(hostSysctls(a.tellState), mode, local); err != nil {
		return fmt.Errorf("mode %s: %w", modeOf(a.cfg), err)
	}
	foreign, err := mode.Watch(ctx)
	if err != nil {
		return err
	}
	report := func(key string, problems []model.Problem) { a.problems.Set("service", key, problems) }
	planner := &service.Planner{Options: planOptions(a.node, a.cfg)}
	services := &reconcile.Loop[model.Name, service.Plan]{
		Name: "service", Store: a.store, Kinds: service.Kinds, Keys: planner.Keys, Plan: planner.Plan,
		Equal:  service.Equal,
		Target: mode, Foreign: foreign, Health: a.health("service"), Log: a.log, Report: report,
	}
	addresses := &reconcile.Loop[string, service.NodeFacts]{
		Name: "service addresses", Store: a.store, Kinds: a.serviceLocalKinds(), Keys: service.NodeFactsKeys(a.node),
		Plan:  a.serviceLocal,
		Equal: service.NodeFactsEqual, Target: service.NodeFactsTarget{Mode: mode},
		Health: a.health("service addresses"),
		Log:    a.log, Report: report,
	}
	checks := &healthcheck.Server{Log: a.log, Healthy: func() bool { return a.proxyState() == nil }}
	health := &reconcile.Loop[model.Name, healthcheck.Check]{
		Name: "health checks", Store: a.store, Kinds: model.ServiceKind | model.EndpointSliceKind, Keys: service.Keys,
		Equal: healthcheck.Equal,
		Plan:  healthcheck.Plan(a.node, reservedPorts(a.cfg)), Target: checks,
		Health: a.health("health checks"), Log: a.log,
		Report: func(key string, problems []model.Problem) { a.problems.Set("health checks", key, problems) },
	}
	defer checks.Close()
	parts := []func(context.Context) error{services.Run, addresses.Run, health.Run}
	if m, ok := mode.(interface{ Run(context.Context) error }); ok {
		parts = append(parts, m.Run)
	}
	go func() { _ = a.leaveOthers(ctx, mode) }() // ends with ctx
	go func() { _ = a.setTracking(ctx) }()       // likewise
	return all(ctx, parts...)
}

// planOptions say how Services are planned for a node. That of the cluster DNS is served by the node
// itself without any translation, as long as its server lives: what is translated is for
// another node's, and never for the one that is known to be away (dns.Placement). Without
// a node, as where one renders for none, no endpoint is its own.
func planOptions(node string, cfg config.Config) func(model.Name) service.Options {
	return func(k model.Name) service.Options {
		return service.Options{Node: node, PreferRemote: cfg.DNS.Enabled && node != "" && k == dnsService(),
			NoExternalIPs: !cfg.Service.ExternalIPs, Reserved: reservedPorts(cfg)}
	}
}

// reservedPorts are ports of the nodes that settings give to Wayleave.
func reservedPorts(cfg config.Config) model.Reserved {
	var r model.Reserved
	if cfg.LoadBalancer.Enabled {
		r.Peers = uint16(cfg.LoadBalancer.PeerPort)
	}
	if cfg.PodNetwork.Enabled {
		r.VXLAN = uint16(cfg.PodNetwork.VXLANPort)
	}
	return r
}

// dnsService is the Service of the cluster DNS.
func dnsService() model.Name {
	return model.Name{Namespace: writeback.DNSNamespace, Name: writeback.DNSName}
}

// serviceLocalKinds are those that serviceLocal looks at.
func (a *agent) serviceLocalKinds() model.Kind {
	if a.cfg.PodNetwork.Enabled {
		return model.NodeKind
	}
	return model.NodeKind | model.PodKind
}

// serviceLocal is what the service proxy must know of this node. Another CNI gives pods addresses that no Node has to
// name: then no client is taken for a stranger, as with kube-proxy without a clusterCIDR, and this node's pods are
// those that the API names.
func (a *agent) serviceLocal(snap model.Snapshot, node string) (service.NodeFacts, bool, []model.Problem) {
	l, ok, problems := service.MakeNodeFacts(snap, node)
	if !a.cfg.PodNetwork.Enabled {
		l.PodCIDRs, l.OwnPodCIDRs = nil, service.PodsOf(snap, node)
	}
	l.NodePortCIDRs = slices.Clone(a.cfg.Service.NodePortAddresses)
	if a.cfg.Service.NodePortPrimary && len(l.NodePortCIDRs) > 0 {
		for _, ip := range l.NodeIPs {
			l.NodePortCIDRs = append(l.NodePortCIDRs, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	return l, ok, problems
}

// hostSysctls remembers what they were, for uninstall.
func hostSysctls(tell statefile.Tell) sysctl.Set {
	return sysctl.Set{Root: hostSysctl, State: stateDir + "/sysctl", Tell: tell}
}

func (a *agent) placement() *dns.Placement {
	domains := []string{a.cfg.ClusterDomain + "."}
	for _, d := range a.cfg.DNS.ExtraDomains {
		domains = append(domains, strings.ToLower(strings.TrimSuffix(d, "."))+".")
	}
	return &dns.Placement{Node: a.node, Service: dnsService(), Extra: a.nodeDNS,
		Feed: a.feed, NFT: a.nft, Domains: domains, Pods: a.cfg.DNS.Pods, Forwarding: a.forwarding,
		Autopath: a.cfg.DNS.Autopath, Search: a.search, Tell: a.tellState, Log: a.log}
}

// dnsStandby gives the dns container its sockets while another agent owns the node.
func (a *agent) dnsStandby(ctx context.Context) error {
	p := a.placement()
	loop := &reconcile.Loop[model.Name, dns.Place]{
		Name: "dns standby", Store: a.store, Kinds: model.ServiceKind | model.NodeKind, Keys: p.Keys, Plan: p.Plan,
		Equal:  dns.Place.Equal,
		Target: dns.Standby{Placement: p}, Health: reconcile.NewHealth(nil, nil), Log: a.log,
	}
	return loop.Run(ctx)
}

func (a *agent) dnsPlacement(ctx context.Context) error {
	local, err := a.links("dns-addresses")
	if err != nil {
		return err
	}
	p := a.placement()
	p.Net, p.File = local, dnsPlaceFile
	rules, err := a.nft.Watch(ctx, dns.TableName)
	if err != nil {
		return err
	}
	addrs, err := local.Watch(ctx)
	if err != nil {
		return err
	}
	loop := &reconcile.Loop[model.Name, dns.Place]{
		Name: "dns placement", Store: a.store, Kinds: model.ServiceKind | model.NodeKind, Keys: p.Keys, Plan: p.Plan,
		Equal:  dns.Place.Equal,
		Target: p, Foreign: merge(ctx, rules, addrs), Health: a.health("dns placement"), Log: a.log,
	}
	return loop.Run(ctx)
}

// forwarding is the settings for names outside of the cluster. own are the
// addresses of the cluster DNS, which is not asked by itself.
func (a *agent) forwarding(own []netip.Addr) dns.Forwarding {
	c := a.cfg.DNS
	out := dns.Forwarding{Hosts: c.Hosts, CA: c.TLSCA, Stubs: map[string][]model.Nameserver{},
		Cache: dns.CacheLimits{Bytes: c.CacheMiB << 20, TTL: c.CacheTTL, NegativeTTL: c.NegativeTTL, Stale: c.StaleFor}}
	for _, n := range c.PlainLetters {
		out.PlainLetters = append(out.PlainLetters, n.Addr)
	}
	var errs []error
	for domain, list := range c.StubDomains {
		servers, err := dns.Foreign(list, own)
		if err != nil {
			errs = append(errs, fmt.Errorf("dns.stubDomains: %s: %w", domain, err))
		}
		out.Stubs[domain] = servers
	}
	var err error
	if len(c.Upstreams) > 0 {
		if out.Upstreams, err = dns.Foreign(c.Upstreams, own); err != nil {
			err = fmt.Errorf("dns.upstreams: %w", err)
		}
	} else {
		out.Upstreams, err = dns.Upstreams("/etc/resolv.conf", own) // the node's: dnsPolicy Default
		if err == nil && len(out.Upstreams) == 0 {
			err = errors.New(
				"the node's /etc/resolv.conf has no nameserver: names outside of the cluster are answered SERVFAIL")
		}
	}
	a.say("dns upstreams", errors.Join(append(errs, err)...))
	return out
}

// search is the node's search list, which the kubelet gives to pods, too.
func (a *agent) search() []string {
	list, err := dns.Search("/etc/resolv.conf")
	a.say("dns search list", err)
	return list
}

// dnsCallers tells the dns container who this node's pods are.
func (a *agent) dnsCallers(ctx context.Context) error {
	loop := &reconcile.Loop[model.Name, dns.CallerPlan]{
		Name: "dns callers", Store: a.store, Kinds: model.PodKind, Keys: dns.CallerKeys, Plan: dns.PlanCaller(a.node),
		Equal:  dns.CallerPlan.Equal,
		Target: a.roll, Health: a.health("dns callers"), Log: a.log,
	}
	return loop.Run(ctx)
}

// waitForKubeProxy does not write beside another service proxy.
func (a *agent) waitForKubeProxy(ctx context.Context) error {
	const what = "kube-proxy"
	for ctx.Err() == nil {
		mode, found := kubeProxy(ctx, (&net.Dialer{}).DialContext)
		if !found {
			a.say(what, nil)
			a.problems.Set("service", what, nil)
			return nil
		}
		err := fmt.Errorf("a service proxy (mode %s) answers on 127.0.0.1:10249 of this node: Wayleave does not "+
			"write beside it; remove kube-proxy, or set service.enabled to false", mode)
		a.say(what, err)
		a.problems.Set("service", what, []model.Problem{{Kind: "Node", Object: model.Name{Name: a.node},
			Reason: err.Error()}})
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
	return ctx.Err()
}

// kubeProxy asks who serves :10249, where an older agent of ours says so.
func kubeProxy(ctx context.Context, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (
	mode string, found bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10249/proxyMode", nil)
	if err != nil {
		return "", false
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", false
	}
	defer resp.Body.Close()
	buf := make([]byte, 64)
	n, _ := resp.Body.Read(buf)
	return string(buf[:n]), resp.Header.Get("Server") != "wayleave"
}
