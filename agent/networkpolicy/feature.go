// Package networkpolicy runs NetworkPolicies in the agent and the writer.
package networkpolicy

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"

	"wayleave.dev/agent"
	"wayleave.dev/agent/dataplane"
	"wayleave.dev/config"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	"wayleave.dev/reconcile"
)

// Feature is the enforcement of NetworkPolicies.
type Feature struct {
	// gate holds back new pods until their policies are in the kernel.
	gate *networkpolicy.Gate
	// enforced is there while policies are enforced.
	enforced atomic.Pointer[policies]
}

var (
	_ agent.Feature       = (*Feature)(nil)
	_ agent.Preparer      = (*Feature)(nil)
	_ agent.Owner         = (*Feature)(nil)
	_ agent.Leaver        = (*Feature)(nil)
	_ agent.Reporter      = (*Feature)(nil)
	_ agent.Lister        = (*Feature)(nil)
	_ agent.Metered       = (*Feature)(nil)
	_ agent.Writer        = (*Feature)(nil)
	_ agent.Uninstaller   = (*Feature)(nil)
	_ agent.LeaseFollower = (*Feature)(nil)
	_ agent.Isolator      = (*Feature)(nil)
)

// New makes the feature of one process.
func New() *Feature { return &Feature{} }

// Name implements agent.Feature.
func (f *Feature) Name() string { return "networkpolicy" }

// Enabled implements agent.Feature.
func (f *Feature) Enabled(cfg config.Config) bool { return cfg.NetworkPolicy.Enabled }

// Kinds implements agent.Feature.
func (f *Feature) Kinds(config.Config) agent.Kinds {
	return agent.Kinds{Required: networkpolicy.PlannerKinds}
}

// Prepare implements agent.Preparer.
func (f *Feature) Prepare(_ context.Context, n *agent.Node) error {
	f.gate = networkpolicy.NewGate(n.Name)
	return nil
}

// Own implements agent.Owner.
func (f *Feature) Own(n *agent.Node) []agent.Part {
	return []agent.Part{{Name: f.Name(), Run: func(ctx context.Context) error { return f.enforce(ctx, n) }}}
}

// Leave implements agent.Leaver: it removes what was enforced before.
func (f *Feature) Leave(n *agent.Node) []agent.Part {
	return []agent.Part{{Name: f.Name(), Run: func(ctx context.Context) error {
		if err := remove(ctx, dataplane.Kernel{NFT: n.NFT}); err != nil {
			n.SetCondition("networkpolicy: what was enforced before", err)
		}
		<-ctx.Done()
		return ctx.Err()
	}}}
}

// Leases implements agent.LeaseFollower.
func (f *Feature) Leases(pods map[netip.Addr]model.Name) { f.gate.Leases(pods) }

// Isolate implements agent.Isolator.
func (f *Feature) Isolate(ctx context.Context, ips []netip.Addr) error {
	return f.gate.Isolate(ctx, ips)
}

// Uninstall implements agent.Uninstaller.
func (f *Feature) Uninstall(ctx context.Context, h *agent.Host) error {
	return remove(ctx, dataplane.Kernel{NSFD: h.FD(), NFT: h.NFT})
}

// remove takes out what any data plane enforces.
func remove(ctx context.Context, k dataplane.Kernel) error {
	var errs []error
	for _, r := range dataplane.AllRules() {
		errs = append(errs, r.Policies(k).Remove(ctx))
	}
	return errors.Join(errs...)
}

// Remains implements agent.Uninstaller.
func (f *Feature) Remains(ctx context.Context, h *agent.Host) ([]string, error) {
	var left []string
	var errs []error
	for _, r := range dataplane.AllRules() {
		found, err := r.Policies(dataplane.Kernel{NSFD: h.FD(), NFT: h.NFT}).Remains(ctx)
		left, errs = append(left, found...), append(errs, err)
	}
	return left, errors.Join(errs...)
}

// enforce keeps policies in the kernel.
func (f *Feature) enforce(ctx context.Context, n *agent.Node) error {
	plane, err := dataplane.For(n.Config)
	if err != nil {
		return err
	}
	p := &policies{mode: plane.Policies(dataplane.Kernel{NFT: n.NFT})}
	f.enforced.Store(p)
	foreign, err := p.mode.Watch(ctx)
	if err != nil {
		return err
	}
	health := n.Health(f.Name())
	if n.Config.PodNetwork.Enabled {
		// Pods that run are known by their leases before anything is taken for gone.
		if err := f.gate.Known(ctx); err != nil {
			return err
		}
	}
	f.gate.Ingress(n.Config.Ingress.Enabled)
	parts := []func(context.Context) error{func(ctx context.Context) error {
		return p.mode.Run(ctx, func(s networkpolicy.Swept, err error) {
			n.SetCondition("networkpolicy: connections that policies forbid", err)
			p.cut.Add(int64(s.Cut))
		})
	}}
	// Where another program serves the cluster DNS, its pods are pods like any other.
	if n.Config.DNS.Enabled {
		f.gate.DNS(dnsAddresses(n)) // before the first Sync, which must not leave queries undecided
		parts = append(parts, func(ctx context.Context) error { return f.followDNS(ctx, n) })
	}
	l := loop(n.Store, f.gate, p.mode)
	l.Foreign, l.Health, l.Log = foreign, health, n.Log
	return agent.All(ctx, append(parts, l.Run)...)
}

// loop drives a mode by the model and the leases.
func loop(store *model.Store, gate *networkpolicy.Gate, mode networkpolicy.Mode) *reconcile.Loop[networkpolicy.Key,
	networkpolicy.Entry] {
	local, _ := gate.Take()
	planner := networkpolicy.NewPlanner(local)
	return &reconcile.Loop[networkpolicy.Key, networkpolicy.Entry]{
		Name: "networkpolicy", Store: store, Kinds: networkpolicy.PlannerKinds, Equal: networkpolicy.Entry.Equal,
		Target: mode,
		Planner: reconcile.PlannerOf(func(s model.Snapshot, c model.Changes) []networkpolicy.Key {
			if l, changed := gate.Take(); changed {
				planner.SetInputs(l)
			}
			return planner.Keys(s, c)
		}, planner.Plan),
		Wake: gate.Wake(), AfterRound: gate.AfterRound,
	}
}

// followDNS keeps the addresses of the cluster DNS that policies know.
func (f *Feature) followDNS(ctx context.Context, n *agent.Node) error {
	w, err := n.Store.Watch(model.ServiceKind)
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		_, changes, err := w.Next(ctx)
		if err != nil {
			return err
		}
		if changes.Has(model.ServiceKind, agent.ClusterDNS()) {
			f.gate.DNS(dnsAddresses(n))
		}
	}
}

// dnsAddresses are the addresses of the Service kube-dns, or while there is none those that it will have.
func dnsAddresses(n *agent.Node) []netip.Addr {
	if s, ok := n.Store.Snapshot().Service(agent.ClusterDNS()); ok && len(s.ClusterIPs) > 0 {
		return slices.Concat(s.ClusterIPs, n.NodeLocalDNS)
	}
	return slices.Concat(n.Config.ClusterDNS, n.NodeLocalDNS)
}
