// Package service runs the service proxy in the agent, and finds what is wrong with Services in the writer.
package service

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/firewall"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
	"wayleave.dev/service/dataplane"
	"wayleave.dev/service/healthcheck"
)

// loopName is the name of the loop that programs Services.
const loopName = "service"

// Feature is the service proxy, with the ports for health and metrics that kube-proxy has.
type Feature struct {
	planes dataplane.Planes
	full   prometheus.Histogram
	change prometheus.Histogram
	last   prometheus.Gauge
}

var (
	_ agent.Feature     = (*Feature)(nil)
	_ agent.Preparer    = (*Feature)(nil)
	_ agent.Owner       = (*Feature)(nil)
	_ agent.Leaver      = (*Feature)(nil)
	_ agent.Reporter    = (*Feature)(nil)
	_ agent.Metered     = (*Feature)(nil)
	_ agent.Writer      = (*Feature)(nil)
	_ agent.Admitter    = (*Feature)(nil)
	_ agent.Uninstaller = (*Feature)(nil)
)

// New makes the feature of one process. Where kube-proxy has a metric of the same meaning, it carries that name.
func New() *Feature {
	return &Feature{
		full: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kubeproxy_sync_full_proxy_rules_duration_seconds", Help: "Full syncs of the service proxy.",
			Buckets: agent.Buckets()}),
		change: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kubeproxy_sync_proxy_rules_duration_seconds",
			Help: "Changes and syncs of the service proxy.", Buckets: agent.Buckets()}),
		last: prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
			Help: "When the service proxy last committed."}),
	}
}

// Name implements agent.Feature.
func (f *Feature) Name() string { return "service" }

// Enabled implements agent.Feature.
func (f *Feature) Enabled(cfg config.Config) bool { return cfg.Service.Enabled }

// Kinds implements agent.Feature.
func (f *Feature) Kinds(config.Config) agent.Kinds { return agent.Kinds{Required: service.Kinds} }

// Prepare implements agent.Preparer. A mode that is not possible here is refused.
func (f *Feature) Prepare(ctx context.Context, n *agent.Node) error {
	track, err := conntrack.NewKernel(0)
	if err != nil {
		return err
	}
	f.planes = newPlanes(0, n.NFT, track, n.Config, n.Dirs)
	f.planes.Tell, f.planes.LockFile, f.planes.Sysctl = n.TellState, agent.XtablesLock, n.Sysctl
	return f.checkMode(ctx, n)
}

// Own implements agent.Owner.
func (f *Feature) Own(n *agent.Node) []agent.Part {
	return append(f.Leave(n), agent.Part{Name: f.Name(), Run: func(ctx context.Context) error { return f.run(ctx, n) }})
}

// Leave implements agent.Leaver: health and metrics are served also without the service proxy.
func (f *Feature) Leave(n *agent.Node) []agent.Part {
	return []agent.Part{{Name: "ports", Run: ports(n).Run}}
}

// Facts implements agent.Reporter.
func (f *Feature) Facts(n *agent.Node, _ model.Snapshot) []string {
	return slices.Clone(n.Config.Unused)
}

// Metrics implements agent.Metered.
func (f *Feature) Metrics(*agent.Node) []prometheus.Collector {
	return []prometheus.Collector{f.full, f.change, f.last}
}

func (f *Feature) observe(full bool, took time.Duration) {
	f.change.Observe(took.Seconds())
	if full {
		f.full.Observe(took.Seconds())
	}
	f.last.SetToCurrentTime()
}

// WriterKinds implements agent.Writer.
func (f *Feature) WriterKinds(config.Config) agent.Kinds { return agent.Kinds{Required: service.Kinds} }

// Write implements agent.Writer: it reports what is wrong with Services.
func (f *Feature) Write(c *agent.Cluster) []agent.Part {
	planner := &service.Planner{Options: PlanOptions("", c.Config)}
	find := func(s model.Snapshot, k model.Name) []model.Problem {
		_, _, problems := planner.Plan(s, k)
		return problems
	}
	return []agent.Part{agent.Check(c, f.Name(), service.Kinds, planner.Keys, find, nil)}
}

// Admits implements agent.Admitter: what is translated here to an endpoint on another node comes in and goes out by
// uplinks. It carries the mark of the service proxy until it leaves; replies are known by connection tracking. What
// goes to and from pods of this node is the pod network's.
func (f *Feature) Admits(*agent.Node, model.Snapshot) []firewall.Pass {
	p := firewall.Pass{Hook: firewall.Forward,
		Rules: []firewall.Accepted{{Mark: service.MasqueradeMark}, {Replies: true}}}
	for _, is6 := range []bool{false, true} {
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			p.Samples = append(p.Samples, firewall.Packet{In: "any link", Out: "any link", Is6: is6, Proto: proto,
				Mark: service.MasqueradeMark, Translated: true})
		}
	}
	return []firewall.Pass{p}
}

// run programs Services until ctx ends.
func (f *Feature) run(ctx context.Context, n *agent.Node) error {
	if err := waitForKubeProxy(ctx, n); err != nil {
		return err
	}
	mode, err := f.mode(ctx, n)
	if err != nil {
		return err
	}
	// The facts of the node are there before the first Sync, or that would take the
	// node ports away for a moment.
	local, ok, _ := localOf(n.Config, n.Store.Snapshot(), n.Name)
	if ok {
		mode.SetNodeFacts(local)
	}
	if err := dataplane.EnsureSysctls(n.Sysctls(), mode, local); err != nil {
		return fmt.Errorf("mode %s: %w", n.Config.DataPlane(), err)
	}
	foreign, err := mode.Watch(ctx)
	if err != nil {
		return err
	}
	checks := &healthcheck.Server{Log: n.Log, Healthy: func() bool { return proxyState(n) == nil }}
	defer checks.Close()
	programs := f.programs(n, mode.Mode)
	programs.Foreign = foreign
	parts := []func(context.Context) error{programs.Run, addresses(n, mode.Mode).Run, healthChecks(n, checks).Run}
	if m, ok := mode.Mode.(interface{ Run(context.Context) error }); ok {
		parts = append(parts, m.Run)
	}
	go func() { _ = f.leaveOthers(ctx, n, mode.Mode) }() // ends with ctx
	go func() { _ = setTracking(ctx, n) }()              // likewise
	return agent.All(ctx, parts...)
}

// programs is the loop that keeps Services in the kernel.
func (f *Feature) programs(n *agent.Node, mode service.Mode) *reconcile.Loop[model.Name, service.Plan] {
	planner := &service.Planner{Options: PlanOptions(n.Name, n.Config)}
	return &reconcile.Loop[model.Name, service.Plan]{
		Name: loopName, Store: n.Store, Kinds: service.Kinds, Planner: planner,
		Equal: service.Equal, Target: mode, Health: n.Health(loopName, f.observe), Log: n.Log,
		Report: n.ReportTo("service"),
	}
}

// addresses is the loop that keeps what the mode must know of the node.
func addresses(n *agent.Node, mode service.Mode) *reconcile.Loop[string, service.NodeFacts] {
	const name = "service addresses"
	plan := func(snap model.Snapshot, node string) (service.NodeFacts, bool, []model.Problem) {
		return localOf(n.Config, snap, node)
	}
	return &reconcile.Loop[string, service.NodeFacts]{
		Name: name, Store: n.Store, Kinds: localKinds(n.Config),
		Planner: reconcile.PlannerOf(service.NodeFactsKeys(n.Name), plan),
		Equal:   service.NodeFactsEqual, Target: service.NodeFactsTarget{Mode: mode},
		Health: n.Health(name), Log: n.Log,
		Report: n.ReportTo("service"),
	}
}

// healthChecks is the loop that has the ports answered that load balancers probe.
func healthChecks(n *agent.Node, checks *healthcheck.Server) *reconcile.Loop[model.Name, healthcheck.Check] {
	const name = "health checks"
	return &reconcile.Loop[model.Name, healthcheck.Check]{
		Name: name, Store: n.Store, Kinds: model.ServiceKind | model.EndpointSliceKind,
		Planner: reconcile.PlannerOf(service.Keys, healthcheck.Plan(n.Name, agent.ReservedPorts(n.Config))),
		Equal:   healthcheck.Equal, Target: checks,
		Health: n.Health(name), Log: n.Log, Report: n.ReportTo(name),
	}
}

// PlanOptions say how Services are planned for a node. The cluster DNS is served by the node itself without any
// translation, as long as its server lives: what is translated is for another node's, and never for the one that is
// known to be away (dns.Placement). Without a node, as where one renders for none, no endpoint is its own.
func PlanOptions(node string, cfg config.Config) func(model.Name) service.Options {
	return func(k model.Name) service.Options {
		return service.Options{Node: node, PreferRemote: cfg.DNS.Enabled && node != "" && k == agent.ClusterDNS(),
			NoExternalIPs: !cfg.Service.ExternalIPs, Reserved: agent.ReservedPorts(cfg)}
	}
}
