package dns

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"wayleave.dev/dns/schema"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// CallerPlan is one pod's part of the table.
type CallerPlan struct {
	schema.Caller
	Addrs []netip.Addr
}

// Equal compares two plans.
func (p CallerPlan) Equal(o CallerPlan) bool {
	return p.Caller.Equal(o.Caller) && slices.Equal(p.Addrs, o.Addrs)
}

// CallerKeys returns the changed pods.
func CallerKeys(_ model.Snapshot, c model.Changes) []model.Name {
	return slices.Collect(maps.Keys(c.Of(model.PodKind)))
}

// PlanCaller plans a pod of this node. Pods with the node's network cannot be identified by address.
func PlanCaller(node string) func(model.Snapshot, model.Name) (CallerPlan, bool, []model.Problem) {
	return func(snap model.Snapshot, key model.Name) (CallerPlan, bool, []model.Problem) {
		p, ok := snap.Pod(key)
		if !ok || p.HostNetwork || p.Node != node || len(p.IPs) == 0 {
			return CallerPlan{}, false, nil
		}
		return CallerPlan{schema.Caller{Pod: key, Cluster: p.ClusterDNS, Searches: p.Searches, NDots: p.NDots},
			p.IPs}, true, nil
	}
}

// CallerTable is the agent's side of the table of callers: it joins the pods of the API with the leases of addresses,
// and sends the table to the servers. An address that two pods claim is left out, and so is one that the API and its
// lease assign to different pods: the API shows late that a pod has ended.
type CallerTable struct {
	Feed *Feed
	// Leased means that Wayleave runs the pod network: no pod is known before Leases was called.
	Leased bool

	mu     sync.Mutex
	synced bool
	plans  map[model.Name]CallerPlan
	leases map[netip.Addr]model.Name
}

var _ reconcile.Target[model.Name, CallerPlan] = (*CallerTable)(nil)

// Sync implements reconcile.Target.
func (r *CallerTable) Sync(_ context.Context, plans map[model.Name]CallerPlan) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plans, r.synced = maps.Clone(plans), true
	r.tell()
	return nil
}

// Apply implements reconcile.Target.
func (r *CallerTable) Apply(_ context.Context, set map[model.Name]CallerPlan, del []model.Name) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, p := range set {
		r.plans[k] = p
	}
	for _, k := range del {
		delete(r.plans, k)
	}
	r.tell()
	return nil
}

// Leases replaces the list of addresses with their pods.
func (r *CallerTable) Leases(list map[netip.Addr]model.Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leases = list
	r.tell()
}

func (r *CallerTable) tell() {
	if !r.synced || r.Leased && r.leases == nil {
		return
	}
	table, twice := map[netip.Addr]schema.Caller{}, map[netip.Addr]bool{}
	for _, p := range r.plans {
		for _, a := range p.Addrs {
			if r.Leased && r.leases[a] != p.Pod {
				continue
			}
			_, taken := table[a]
			twice[a] = twice[a] || taken
			table[a] = p.Caller
		}
	}
	for a, more := range twice {
		if more {
			delete(table, a)
		}
	}
	r.Feed.SetCallers(table)
}
