// Package dns runs the cluster DNS in the agent, and keeps its Service in the writer.
package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"wayleave.dev/agent"
	"wayleave.dev/agent/dataplane"
	"wayleave.dev/config"
	"wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/kernel/firewall"
	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/statusserver"
)

const (
	// User is the user of the dns container.
	User = 65532
	// Socket is the agent's, in a folder that only the dns container has, too, which cannot write there.
	Socket = "/pod-dns/feed.sock"
	// MetricsSocket is likewise, for the metrics of the container.
	MetricsSocket = "/pod-dns/metrics.sock"
	// placeFile remembers, in the folder of state, where DNS is served.
	placeFile = "dns-place"
	// addressesFile remembers, in the folder of state, the addresses that were set for it.
	addressesFile = "dns-addresses"
)

// Feature is the cluster DNS: it feeds the dns container of the pod, and serves at the cluster's DNS addresses.
type Feature struct {
	feed *dns.Feed
	roll *dns.CallerTable
}

var (
	_ agent.Feature       = (*Feature)(nil)
	_ agent.Preparer      = (*Feature)(nil)
	_ agent.Runner        = (*Feature)(nil)
	_ agent.Idler         = (*Feature)(nil)
	_ agent.Standby       = (*Feature)(nil)
	_ agent.Owner         = (*Feature)(nil)
	_ agent.Reporter      = (*Feature)(nil)
	_ agent.Writer        = (*Feature)(nil)
	_ agent.Admitter      = (*Feature)(nil)
	_ agent.LeaseFollower = (*Feature)(nil)
	_ agent.Scraped       = (*Feature)(nil)
	_ agent.Uninstaller   = (*Feature)(nil)
)

// New makes the feature of one process.
func New() *Feature { return &Feature{} }

// Name implements agent.Feature.
func (f *Feature) Name() string { return "dns" }

// Enabled implements agent.Feature.
func (f *Feature) Enabled(cfg config.Config) bool { return cfg.DNS.Enabled }

// Kinds implements agent.Feature.
func (f *Feature) Kinds(cfg config.Config) agent.Kinds {
	return agent.Kinds{AllPods: cfg.DNS.Pods == schema.PodsVerified || !cfg.PodNetwork.Enabled}
}

// Prepare implements agent.Preparer.
func (f *Feature) Prepare(_ context.Context, n *agent.Node) error {
	f.feed = &dns.Feed{Open: dns.OpenSocket, AllowUID: User, Log: n.Log}
	if n.Config.DNS.Enabled {
		file := filepath.Join(n.State, placeFile)
		if err := dns.Remember(file, f.feed); err != nil {
			n.TellState(file, err)
		}
	}
	f.roll = &dns.CallerTable{Feed: f.feed, Leased: n.Config.PodNetwork.Enabled}
	return nil
}

// Run implements agent.Runner: it serves the dns container of this pod, as owner and as standby.
func (f *Feature) Run(n *agent.Node) []agent.Part {
	part := func(name string, run func(context.Context, *agent.Node) error) agent.Part {
		return agent.Part{Name: name, Run: func(ctx context.Context) error { return run(ctx, n) }}
	}
	return []agent.Part{{Name: "dns feed", Run: f.serve}, part("dns names", f.names), part("dns callers", f.callers),
		part("dns clients", f.clients)}
}

// Idle implements agent.Idler: the container is told that DNS is off, and is ready, or the pod would never be.
func (f *Feature) Idle(*agent.Node) []agent.Part {
	f.feed.Disable()
	return []agent.Part{{Name: "dns feed", Run: f.serve}}
}

// StandBy implements agent.Standby: it gives the dns container its sockets while another agent owns the node.
func (f *Feature) StandBy(n *agent.Node) []agent.Part {
	p := f.placement(n, nil)
	loop := placementLoop(n, "dns standby", p)
	loop.Target, loop.Health = dns.Standby{Placement: p}, reconcile.NewHealth(nil, nil)
	return []agent.Part{{Name: "dns standby", Run: loop.Run}}
}

// Own implements agent.Owner.
func (f *Feature) Own(n *agent.Node) []agent.Part {
	return []agent.Part{{Name: "dns placement", Run: func(ctx context.Context) error { return f.place(ctx, n) }}}
}

// Scraped implements agent.Scraped.
func (f *Feature) Scraped() statusserver.Source {
	return statusserver.Source{Name: "dns", Prefixes: []string{"coredns_", "wayleave_dns_"}, Socket: MetricsSocket,
		UID: User}
}

// Leases implements agent.LeaseFollower.
func (f *Feature) Leases(pods map[netip.Addr]model.Name) { f.roll.Leases(pods) }

// Admits implements agent.Admitter: queries of pods, and those of other nodes. What is for the server of DNS on this
// node is not tracked, see dns.Placement.
func (f *Feature) Admits(n *agent.Node, snap model.Snapshot) []firewall.Pass {
	p := firewall.Pass{Hook: firewall.Input}
	if svc, ok := snap.Service(agent.ClusterDNS()); ok {
		for _, a := range slices.Concat(svc.ClusterIPs, n.NodeLocalDNS) {
			agent.AdmitPort(&p, a, 53, true)
		}
	}
	if me, ok := snap.Node(n.Name); ok {
		for _, a := range me.InternalIPs {
			agent.AdmitPort(&p, a, dns.NodePort, false)
		}
	}
	return []firewall.Pass{p}
}

// Facts implements agent.Reporter.
func (f *Feature) Facts(n *agent.Node, snap model.Snapshot) []string {
	c := n.Config
	if !c.DNS.Enabled {
		return nil
	}
	if svc, ok := snap.Service(agent.ClusterDNS()); ok && svc.OtherDNS {
		return []string{"another DNS server serves the Service kube-dns, so Wayleave answers no pod; " +
			"to switch over, see docs/migrate/coredns.md"}
	}
	return append([]string{fmt.Sprintf(
		"%d dns processes connected, VIPs %v, domain %s, %d addresses of pods known", f.feed.Servers(),
		c.ClusterDNS, c.ClusterDomain, f.feed.Callers()),
		fmt.Sprintf("upstreams set %v (none: the node's), %d stub domains, %d hosts, cache of %d MiB",
			c.DNS.Upstreams, len(c.DNS.StubDomains), len(c.DNS.Hosts), c.DNS.CacheMiB)},
		lacking(f.feed.Lacks())...)
}

// lacking are lines of status about upstream servers that lack something.
func lacking(lacks map[string][]string) (lines []string) {
	for _, server := range slices.Sorted(maps.Keys(lacks)) {
		lines = append(lines, fmt.Sprintf(
			"upstream %s does not understand: %s; it is asked without, and tried anew within an hour", server,
			strings.Join(lacks[server], ", ")))
	}
	return lines
}

// serve feeds the dns containers that connect.
func (f *Feature) serve(ctx context.Context) error {
	l, err := agent.ListenChild(Socket)
	if err != nil {
		return err
	}
	return f.feed.Serve(ctx, l)
}

// names tells the dns container the names of the cluster.
func (f *Feature) names(ctx context.Context, n *agent.Node) error {
	kinds := model.ServiceKind | model.EndpointSliceKind | model.NamespaceKind
	if n.Config.DNS.Pods == schema.PodsVerified {
		kinds |= model.PodKind
	}
	loop := &reconcile.Loop[model.Name, schema.Records]{
		Name: f.Name(), Store: n.Store, Kinds: kinds,
		Planner: reconcile.PlannerOf(dns.Keys, dns.Plan), Equal: schema.Equal, Target: f.feed,
		Health: n.Health(f.Name()), Log: n.Log,
		Report: n.ReportTo("dns"),
	}
	return loop.Run(ctx)
}

// callers tells the dns container whose the addresses of this node's pods are.
func (f *Feature) callers(ctx context.Context, n *agent.Node) error {
	const name = "dns callers"
	loop := &reconcile.Loop[model.Name, dns.CallerPlan]{
		Name: name, Store: n.Store, Kinds: model.PodKind,
		Planner: reconcile.PlannerOf(dns.CallerKeys, dns.PlanCaller(n.Name)),
		Equal:   dns.CallerPlan.Equal, Target: f.roll, Health: n.Health(name), Log: n.Log,
	}
	return loop.Run(ctx)
}

// Uninstall implements agent.Uninstaller.
func (f *Feature) Uninstall(ctx context.Context, h *agent.Host) error {
	links, err := link.NewKernel(h.FD(), filepath.Join(h.State, addressesFile))
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range dataplane.AllRules() {
		errs = append(errs, dns.Uninstall(ctx, links, r.DNS(dataplane.Kernel{NSFD: h.FD(), NFT: h.NFT})))
	}
	return errors.Join(errs...)
}

// Remains implements agent.Uninstaller.
func (f *Feature) Remains(ctx context.Context, h *agent.Host) ([]string, error) {
	links, err := link.NewKernel(h.FD(), filepath.Join(h.State, addressesFile))
	if err != nil {
		return nil, err
	}
	var left []string
	var errs []error
	for _, r := range dataplane.AllRules() {
		found, err := dns.Remains(ctx, links, r.DNS(dataplane.Kernel{NSFD: h.FD(), NFT: h.NFT}))
		left, errs = append(left, found...), append(errs, err)
	}
	return left, errors.Join(errs...)
}
