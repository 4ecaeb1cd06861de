package dns

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// Caller is a pod of this node, as far as its queries are concerned.
type Caller struct {
	Pod model.Name `json:"pod"`
	// Cluster says that the pod has the cluster's search list.
	Cluster bool `json:"cluster,omitempty"`
	// Searches are the pod's own additions to that list.
	Searches []string `json:"searches,omitempty"`
	// NDots is the option of that name in the pod's resolv.conf.
	NDots int `json:"ndots,omitempty"`
}

// Usual says that the pod walks the search list which the kubelet writes by itself.
func (c Caller) Usual() bool { return c.Cluster && len(c.Searches) == 0 && c.NDots >= 2 }

func (c Caller) equal(o Caller) bool {
	return c.Pod == o.Pod && c.Cluster == o.Cluster && c.NDots == o.NDots && slices.Equal(c.Searches, o.Searches)
}

// clusterSuffixes of a search list are the cluster's own; they come first.
const clusterSuffixes = 3

// search is the pod's search list, as the kubelet writes it: names without a final
// dot; the root is empty. node is the list of the node's resolv.conf.
func (c Caller) search(domain string, node []string) []string {
	domain = strings.TrimSuffix(domain, ".")
	list := append([]string{c.Pod.Namespace + ".svc." + domain, "svc." + domain, domain}, node...)
	if !c.Cluster {
		list = nil
	}
	var out []string
	for _, s := range append(list, c.Searches...) {
		isRoot := s == "." // the name itself, in this place of the walk
		if s = strings.ToLower(strings.TrimSuffix(s, ".")); (s != "" || isRoot) && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// Callers is the table of this node's pods by address, on the server's side. The zero
// value knows nobody. Safe for concurrent use; a look takes no lock.
type Callers struct {
	table atomic.Pointer[map[netip.Addr]*caller]
}

// caller counts its queries; the addresses of one pod share it.
type caller struct {
	Caller
	queries atomic.Uint64
}

// Lookup says who has an address.
func (t *Callers) Lookup(a netip.Addr) (Caller, bool) {
	c := t.at(a)
	if c == nil {
		return Caller{}, false
	}
	return c.Caller, true
}

func (t *Callers) at(a netip.Addr) *caller {
	table := t.table.Load()
	if table == nil {
		return nil
	}
	return (*table)[a]
}

// Set replaces the table. Counts of pods that stay go on. Not to be called
// concurrently with itself.
func (t *Callers) Set(list map[netip.Addr]Caller) {
	pods := map[model.Name]*caller{}
	for _, c := range t.all() {
		pods[c.Pod] = c
	}
	table := make(map[netip.Addr]*caller, len(list))
	fresh := map[model.Name]*caller{}
	for a, c := range list {
		if fresh[c.Pod] == nil {
			fresh[c.Pod] = &caller{Caller: c}
			if old := pods[c.Pod]; old != nil {
				fresh[c.Pod].queries.Store(old.queries.Load())
			}
		}
		table[a] = fresh[c.Pod]
	}
	t.table.Store(&table)
}

// all yields a caller of every address.
func (t *Callers) all() map[netip.Addr]*caller {
	if table := t.table.Load(); table != nil {
		return *table
	}
	return nil
}

var podQueries = prometheus.NewDesc("wayleave_dns_pod_queries_total",
	"Queries of a pod of this node, as long as the pod is there.", []string{"namespace", "pod"}, nil)

// Describe implements prometheus.Collector.
func (t *Callers) Describe(ch chan<- *prometheus.Desc) { ch <- podQueries }

// Collect implements prometheus.Collector. There are as many series as the node has
// pods that have asked.
func (t *Callers) Collect(ch chan<- prometheus.Metric) {
	seen := map[*caller]bool{}
	for _, c := range t.all() {
		if n := c.queries.Load(); n > 0 && !seen[c] {
			seen[c] = true
			ch <- prometheus.MustNewConstMetric(podQueries, prometheus.CounterValue, float64(n),
				c.Pod.Namespace, c.Pod.Name)
		}
	}
}

// CallerPlan is what one pod brings to the table.
type CallerPlan struct {
	Caller
	Addrs []netip.Addr
}

// Equal compares two plans.
func (p CallerPlan) Equal(o CallerPlan) bool {
	return p.equal(o.Caller) && slices.Equal(p.Addrs, o.Addrs)
}

// CallerKeys are the pods that changed.
func CallerKeys(_ model.Snapshot, c model.Changes) []model.Name {
	return slices.Collect(maps.Keys(c.Of(model.PodKind)))
}

// PlanCaller makes the plan of a pod of this node. Pods with the node's network have
// no address of their own to be known by.
func PlanCaller(node string) func(model.Snapshot, model.Name) (CallerPlan, bool, []model.Problem) {
	return func(snap model.Snapshot, key model.Name) (CallerPlan, bool, []model.Problem) {
		p, ok := snap.Pod(key)
		if !ok || p.HostNetwork || p.Node != node || len(p.IPs) == 0 {
			return CallerPlan{}, false, nil
		}
		return CallerPlan{Caller{Pod: key, Cluster: p.ClusterDNS, Searches: p.Searches, NDots: p.NDots},
			p.IPs}, true, nil
	}
}

// Roll is the agent's side of the table: it joins what the API says of pods with the
// leases of addresses, and feeds the servers. An address that two pods claim is
// nobody's, and where there are leases, one that the API and the lease give to
// different pods, too: the API learns of the end of a pod late.
type Roll struct {
	Feed *Feed
	// Leased says that the pod network is ours: nobody is known before Leases was called.
	Leased bool

	mu     sync.Mutex
	synced bool
	plans  map[model.Name]CallerPlan
	leases map[netip.Addr]model.Name
}

var _ reconcile.Target[model.Name, CallerPlan] = (*Roll)(nil)

// Sync implements reconcile.Target.
func (r *Roll) Sync(_ context.Context, plans map[model.Name]CallerPlan) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plans, r.synced = maps.Clone(plans), true
	r.tell()
	return nil
}

// Apply implements reconcile.Target.
func (r *Roll) Apply(_ context.Context, set map[model.Name]CallerPlan, del []model.Name) error {
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

// Leases replaces the list of who has which address.
func (r *Roll) Leases(list map[netip.Addr]model.Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leases = list
	r.tell()
}

func (r *Roll) tell() {
	if !r.synced || r.Leased && r.leases == nil {
		return
	}
	table, twice := map[netip.Addr]Caller{}, map[netip.Addr]bool{}
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
	r.Feed.Know(table)
}
