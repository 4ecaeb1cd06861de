// Package loadbalancer answers for the addresses of load balancers in the agent, and gives Services their addresses in
// the writer.
package loadbalancer

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/kernel/firewall"
	"wayleave.dev/loadbalancer"
	"wayleave.dev/model"
	"wayleave.dev/writeback"
)

// Feature is the load balancer.
type Feature struct {
	// announcer is there while this agent answers for addresses, or waits to.
	announcer atomic.Pointer[announcer]
}

var (
	_ agent.Feature   = (*Feature)(nil)
	_ agent.Successor = (*Feature)(nil)
	_ agent.Reporter  = (*Feature)(nil)
	_ agent.Lister    = (*Feature)(nil)
	_ agent.Metered   = (*Feature)(nil)
	_ agent.Writer    = (*Feature)(nil)
	_ agent.Admitter  = (*Feature)(nil)
)

// New makes the feature of one process.
func New() *Feature { return &Feature{} }

// Name implements agent.Feature.
func (f *Feature) Name() string { return "loadbalancer" }

// Enabled implements agent.Feature.
func (f *Feature) Enabled(cfg config.Config) bool { return cfg.LoadBalancer.Enabled }

// Kinds implements agent.Feature. The kind AddressPool is made by the writer, which may be of a later version than the
// agent: a node is healthy without it.
func (f *Feature) Kinds(config.Config) agent.Kinds {
	return agent.Kinds{Watched: model.AddressPoolKind}
}

// Succeed implements agent.Successor. The process that answers for addresses waits beside the old agent's, so that no
// address moves when that ends. A node that follows no agent leaves addresses to other nodes for a while.
func (f *Feature) Succeed(n *agent.Node, standby bool) []agent.Part {
	settle := n.Config.LoadBalancer.Settle
	if standby {
		settle = 0
	}
	return []agent.Part{{Name: f.Name(), Run: func(ctx context.Context) error { return f.announce(ctx, n, settle) }}}
}

// Prepared implements agent.Successor.
func (f *Feature) Prepared(now time.Time) error {
	a := f.announcer.Load()
	if a == nil {
		return errors.New("loadbalancer: the process that answers for addresses has not been started yet")
	}
	return a.prepared(now)
}

// Admits implements agent.Admitter: heartbeats.
func (f *Feature) Admits(n *agent.Node, snap model.Snapshot) []firewall.Pass {
	me, ok := snap.Node(n.Name)
	if !ok {
		return nil
	}
	p := firewall.Pass{Hook: firewall.Input}
	for _, a := range me.InternalIPs {
		agent.AdmitPort(&p, a, n.Config.LoadBalancer.PeerPort, false)
	}
	return []firewall.Pass{p}
}

// Facts implements agent.Reporter.
func (f *Feature) Facts(n *agent.Node, snap model.Snapshot) []string {
	if a := f.announcer.Load(); a != nil {
		return a.facts(loadbalancer.Count(snap, n.Config.LoadBalancer.Default && !a.leaves()))
	}
	return nil
}

// Processes implements agent.Supervising.
func (f *Feature) Processes() map[string]bool {
	a := f.announcer.Load()
	if a == nil {
		return nil
	}
	return map[string]bool{"l2": a.sup.Report().Running}
}

// Metrics implements agent.Metered.
func (f *Feature) Metrics(n *agent.Node) []prometheus.Collector {
	return []prometheus.Collector{metrics{f, n}}
}

// WriterKinds implements agent.Writer. AddressPools are not required: the leader creates that kind.
func (f *Feature) WriterKinds(config.Config) agent.Kinds {
	return agent.Kinds{Watched: model.AddressPoolKind}
}

// Write implements agent.Writer.
func (f *Feature) Write(c *agent.Cluster) []agent.Part {
	keys := &writeback.KeySealer{Client: c.Client.Interface, Namespace: writeback.PeersNamespace, Log: c.Log}
	plan := loadbalancer.Plan(c.Config.LoadBalancer.Default)
	find := func(s model.Snapshot, k model.Name) []model.Problem {
		_, _, problems := plan(s, k)
		return problems
	}
	balance := func(ctx context.Context) error { return balance(ctx, c) }
	return []agent.Part{{Name: "addresses of load balancers", Run: balance},
		{Name: "key of heartbeats", Run: keys.Run},
		agent.Check(c, "announce", loadbalancer.Kinds, loadbalancer.Keys, find, nil)}
}

// balance gives Services of type LoadBalancer their addresses.
func balance(ctx context.Context, c *agent.Cluster) error {
	own, err := byDefault(ctx, c)
	if err != nil {
		return err
	}
	return balancer(c, own).Run(ctx)
}

func balancer(c *agent.Cluster, byDefault bool) *writeback.Balancer {
	return &writeback.Balancer{
		Client: c.Client.Interface, Dynamic: c.Client.Dynamic, Store: c.Store,
		Default: byDefault, Log: c.Log,
		Report: func(key string, problems []model.Problem) {
			if key == "Service "+writeback.DNSNamespace+"/"+writeback.IngressService {
				for i := range problems { // without a pool the nodes' own addresses are used
					problems[i].Note = true
				}
			}
			c.Problems.Set("loadbalancer", key, problems)
		},
		SetCondition: func(err error) { c.SetCondition("loadbalancer", err) }}
}
