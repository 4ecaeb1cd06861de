package forward

import (
	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/dns/schema"
)

var lacksDesc = prometheus.NewDesc("wayleave_dns_forward_lacks",
	"1 while an upstream server is known not to support EDNS0, the letter case of names, or TCP.",
	[]string{"to", "what"}, nil)

// Describe implements prometheus.Collector.
func (f *Forwarder) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(f, to) }

// Collect implements prometheus.Collector. The names are CoreDNS's if the meaning is the same. Sums are computed here,
// so that counting costs the hot path little.
func (f *Forwarder) Collect(to chan<- prometheus.Metric) {
	put := func(kind prometheus.ValueType, name, help, label, value string, n uint64) {
		var labels, values []string
		if label != "" {
			labels, values = []string{label}, []string{value}
		}
		to <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, labels, nil), kind, float64(n), values...)
	}
	const counter, gauge = prometheus.CounterValue, prometheus.GaugeValue
	entries, bytes := f.Cache.Size()
	put(gauge, "coredns_cache_entries", "Replies in the cache, including expired ones.", "", "", uint64(entries))
	put(gauge, "wayleave_dns_cache_bytes", "Size of the cache.", "", "", uint64(bytes))
	n := f.Cache.Counts()
	put(counter, "coredns_cache_hits_total", "Queries answered from the cache.", "type", "success", n.Hits)
	put(counter, "coredns_cache_hits_total", "Queries answered from the cache.", "type", "denial", n.Denials)
	put(counter, "coredns_cache_misses_total", "Queries that were forwarded.", "", "", n.Misses)
	put(counter, "coredns_cache_served_stale_total", "Expired replies served because servers failed.",
		"", "", n.Stale)
	put(counter, "coredns_cache_prefetch_total", "Popular replies refreshed before they expired.", "",
		"", n.Prefetched)
	put(counter, "coredns_cache_evictions_total", "Replies evicted to make room.", "", "", n.Evicted)
	for _, u := range f.routes.Load().servers() {
		name := u.String()
		put(counter, "coredns_forward_requests_total", "Tries at an upstream server.", "to", name, u.asked.Load())
		put(counter, "wayleave_dns_forward_failures_total", "Tries at an upstream server without a usable answer.",
			"to", name, u.failed.Load())
		put(counter, "wayleave_dns_forward_probes_total", "Probes of an upstream server that does not answer.", "to",
			name, u.probes.Load())
		put(gauge, "wayleave_dns_forward_up", "1 when an upstream server answers.", "to", name,
			uint64(1-btoi(u.down())))
		for l := range schema.LackKinds {
			to <- prometheus.MustNewConstMetric(lacksDesc, gauge, float64(btoi(u.lacks(l, u.now()))), name, l.String())
		}
	}
}
