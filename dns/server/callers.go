package server

import (
	"net/netip"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/dns/schema"
	"wayleave.dev/model"
)

// Callers is the table of this node's pods by address, on the server's side. The zero value is empty. Safe for
// concurrent use; a lookup takes no lock.
type Callers struct {
	table atomic.Pointer[map[netip.Addr]*caller]
}

// caller counts its queries; the addresses of one pod share it.
type caller struct {
	schema.Caller
	queries atomic.Uint64
}

// Lookup returns the pod with an address.
func (t *Callers) Lookup(a netip.Addr) (schema.Caller, bool) {
	c := t.at(a)
	if c == nil {
		return schema.Caller{}, false
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

// Set replaces the table. Pods that stay keep their counts. It must not be called concurrently with itself.
func (t *Callers) Set(list map[netip.Addr]schema.Caller) {
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

// all yields the caller of every address.
func (t *Callers) all() map[netip.Addr]*caller {
	if table := t.table.Load(); table != nil {
		return *table
	}
	return nil
}

var podQueries = prometheus.NewDesc("wayleave_dns_pod_queries_total",
	"Queries of a pod of this node, while the pod exists.", []string{"namespace", "pod"}, nil)

// Describe implements prometheus.Collector.
func (t *Callers) Describe(ch chan<- *prometheus.Desc) { ch <- podQueries }

// Collect implements prometheus.Collector. There is one series for each pod of the node that has sent a query.
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
