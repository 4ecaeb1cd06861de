package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	policynft "wayleave.dev/networkpolicy/nftables"
	"wayleave.dev/reconcile"
)

// policies is the feature at work, for status and metrics.
type policies struct {
	mode *policynft.Mode
	// cut counts the connections that were.
	cut atomic.Int64
}

// policyStatus is an isolated pod of this node.
type policyStatus struct {
	Pod       string     `json:"pod"`
	Addr      netip.Addr `json:"addr"`
	Direction string     `json:"direction"`
	// Policies isolate it: a packet was dropped because none of them allows it.
	Policies []string `json:"policies"`
	Dropped  uint64   `json:"dropped"`
}

// look lists the isolated pods with what was dropped.
func (p *policies) look(ctx context.Context, snap model.Snapshot) []policyStatus {
	drops, err := p.mode.Drops(ctx)
	if err != nil {
		drops = nil // the loop has the error, too
	}
	isolated := p.mode.Isolated()
	out := make([]policyStatus, 0, len(isolated))
	for k, e := range isolated {
		s := policyStatus{Pod: "?", Addr: k.Addr, Direction: k.Direction.String(),
			Dropped: drops[policynft.End{Direction: k.Direction, Addr: k.Addr}]}
		if pod, ok := snap.PodByIP(k.Addr); ok {
			s.Pod = pod.Name.String()
		}
		for _, n := range e.Policies {
			s.Policies = append(s.Policies, n.String())
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b policyStatus) int {
		return cmp.Or(cmp.Compare(a.Pod, b.Pod), a.Addr.Compare(b.Addr), cmp.Compare(a.Direction, b.Direction))
	})
	return out
}

// facts are lines for status.
func (p *policies) facts(snap model.Snapshot) []string {
	pods := map[netip.Addr]bool{}
	for k := range p.mode.Isolated() {
		pods[k.Addr] = true
	}
	return []string{fmt.Sprintf("%d policies, %d addresses of this node's pods isolated, %d connections cut",
		snap.Count(model.NetworkPolicyKind), len(pods), p.cut.Load())}
}

// swept counts the connections that a sweep cut.
func (a *agent) swept(p *policies) func(policynft.Swept, error) {
	return func(s policynft.Swept, err error) {
		a.say("networkpolicy: connections that policies forbid", err)
		p.cut.Add(int64(s.Cut))
	}
}

// enforce keeps policies in the kernel.
func (a *agent) enforce(ctx context.Context) error {
	p := &policies{mode: policynft.New(a.nft, conntrack.NewTracker(0))}
	if err := a.metrics.registry.Register(&policyMetrics{p, a.store}); err != nil {
		return err
	}
	a.policies.Store(p)
	foreign, err := p.mode.Watch(ctx)
	if err != nil {
		return err
	}
	health := a.health("networkpolicy")
	if a.cfg.PodNetwork.Enabled {
		// Pods that run are known by their leases before anything is taken for gone.
		if err := a.gate.Known(ctx); err != nil {
			return err
		}
	}
	a.gate.Ingress(a.cfg.Ingress.Enabled)
	if a.cfg.DNS.Enabled { // before the first Sync, which must not leave queries undecided
		a.gate.DNS(a.knownDNS())
	}
	loop := policyLoop(a.store, a.gate, p.mode)
	loop.Foreign, loop.Health, loop.Log = foreign, health, a.log
	return all(ctx, loop.Run, a.policyDNS, func(ctx context.Context) error { return p.mode.Run(ctx, a.swept(p)) })
}

// policyLoop drives a mode by the model and the leases.
func policyLoop(store *model.Store, gate *networkpolicy.Gate, mode *policynft.Mode) *reconcile.Loop[networkpolicy.Key,
	networkpolicy.Entry] {
	local, _ := gate.Take()
	planner := networkpolicy.NewPlanner(local)
	return &reconcile.Loop[networkpolicy.Key, networkpolicy.Entry]{
		Name: "networkpolicy", Store: store, Kinds: networkpolicy.PlannerKinds, Equal: networkpolicy.Entry.Equal,
		Plan: planner.Plan, Target: mode,
		Keys: func(s model.Snapshot, c model.Changes) []networkpolicy.Key {
			if l, changed := gate.Take(); changed {
				planner.SetInputs(l)
			}
			return planner.Keys(s, c)
		},
		Wake: gate.Wake(), Settled: gate.AfterRound,
	}
}

// policyDNS tells policies the addresses of the cluster DNS. Where another program serves
// it, its pods are pods like any other.
func (a *agent) policyDNS(ctx context.Context) error {
	if !a.cfg.DNS.Enabled {
		<-ctx.Done()
		return ctx.Err()
	}
	w, err := a.store.Watch(model.ServiceKind)
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		_, changes, err := w.Next(ctx)
		if err != nil {
			return err
		}
		if _, ok := changes.Services[dnsService()]; ok {
			a.gate.DNS(a.knownDNS())
		}
	}
}

// knownDNS are the addresses of the Service kube-dns, or while there is none those that it
// will have.
func (a *agent) knownDNS() []netip.Addr {
	if s, ok := a.store.Snapshot().Service(dnsService()); ok && len(s.ClusterIPs) > 0 {
		return slices.Concat(s.ClusterIPs, a.nodeDNS)
	}
	return slices.Concat(a.cfg.ClusterDNS, a.nodeDNS)
}

// leavePolicies takes what was enforced out, once the feature is switched off.
func (a *agent) leavePolicies(ctx context.Context) error {
	if err := policynft.New(a.nft, conntrack.NewTracker(0)).Remove(ctx); err != nil {
		a.say("networkpolicy: what was enforced before", err)
	}
	<-ctx.Done()
	return ctx.Err()
}

// policyMetrics counts what was dropped, by pod, direction and policy: as many series as
// this node has isolated pods, times two.
type policyMetrics struct {
	p     *policies
	store *model.Store
}

// Describe implements prometheus.Collector.
func (policyMetrics) Describe(c chan<- *prometheus.Desc) { c <- droppedDesc() }

func droppedDesc() *prometheus.Desc {
	return prometheus.NewDesc("wayleave_networkpolicy_dropped_packets_total", "Packets that policies dropped at a "+
		"pod of this node; policies are those that isolate it, none of which allowed them.",
		[]string{"namespace", "pod", "address", "direction", "policies"}, nil)
}

// longestPolicies bounds the label that names policies.
const longestPolicies = 200

// Collect implements prometheus.Collector.
func (m policyMetrics) Collect(c chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	snap := m.store.Snapshot()
	for _, s := range m.p.look(ctx, snap) {
		var ns, name string
		if pod, ok := snap.PodByIP(s.Addr); ok {
			ns, name = pod.Name.Namespace, pod.Name.Name
		}
		by := ""
		for i, n := range s.Policies {
			if i > 0 {
				by += ","
			}
			if by += n; len(by) > longestPolicies {
				by = by[:longestPolicies] + "…"
				break
			}
		}
		c <- prometheus.MustNewConstMetric(droppedDesc(), prometheus.CounterValue, float64(s.Dropped), ns, name,
			s.Addr.String(), s.Direction, by)
	}
}
