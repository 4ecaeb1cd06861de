package forward

import (
	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/dns/schema"
)

// The metrics. The names are CoreDNS's if the meaning is the same.
var (
	entriesDesc   = desc("coredns_cache_entries", "Replies in the cache, including expired ones.")
	bytesDesc     = desc("wayleave_dns_cache_bytes", "Size of the cache.")
	hitsDesc      = desc("coredns_cache_hits_total", "Queries answered from the cache.", "type")
	missesDesc    = desc("coredns_cache_misses_total", "Queries that were forwarded.")
	staleDesc     = desc("coredns_cache_served_stale_total", "Expired replies served because servers failed.")
	prefetchDesc  = desc("coredns_cache_prefetch_total", "Popular replies refreshed before they expired.")
	evictionsDesc = desc("coredns_cache_evictions_total", "Replies evicted to make room.")
	requestsDesc  = desc("coredns_forward_requests_total", "Tries at an upstream server.", "to")
	failuresDesc  = desc("wayleave_dns_forward_failures_total", "Tries at an upstream server without a usable answer.",
		"to")
	probesDesc = desc("wayleave_dns_forward_probes_total", "Probes of an upstream server that does not answer.", "to")
	upDesc     = desc("wayleave_dns_forward_up", "1 when an upstream server answers.", "to")
	lacksDesc  = desc("wayleave_dns_forward_lacks",
		"1 while an upstream server is known not to support EDNS0, the letter case of names, or TCP.", "to", "what")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (f *Forwarder) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{entriesDesc, bytesDesc, hitsDesc, missesDesc, staleDesc, prefetchDesc,
		evictionsDesc, requestsDesc, failuresDesc, probesDesc, upDesc, lacksDesc} {
		to <- d
	}
}

// Collect implements prometheus.Collector. Sums are computed here, so that counting
// costs the hot path little.
func (f *Forwarder) Collect(to chan<- prometheus.Metric) {
	put := func(d *prometheus.Desc, kind prometheus.ValueType, n uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, kind, float64(n), labels...)
	}
	const counter, gauge = prometheus.CounterValue, prometheus.GaugeValue
	entries, bytes := f.Cache.Size()
	put(entriesDesc, gauge, uint64(entries))
	put(bytesDesc, gauge, uint64(bytes))
	n := f.Cache.Counts()
	put(hitsDesc, counter, n.Hits, "success")
	put(hitsDesc, counter, n.Denials, "denial")
	put(missesDesc, counter, n.Misses)
	put(staleDesc, counter, n.Stale)
	put(prefetchDesc, counter, n.Prefetched)
	put(evictionsDesc, counter, n.Evicted)
	for _, u := range f.routes.Load().servers() {
		name := u.String()
		put(requestsDesc, counter, u.asked.Load(), name)
		put(failuresDesc, counter, u.failed.Load(), name)
		put(probesDesc, counter, u.probes.Load(), name)
		put(upDesc, gauge, uint64(1-btoi(u.down())), name)
		for l := range schema.LackKinds {
			put(lacksDesc, gauge, uint64(btoi(u.lacks(l, u.now()))), name, l.String())
		}
	}
}
