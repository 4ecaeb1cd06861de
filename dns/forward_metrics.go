package dns

import "github.com/prometheus/client_golang/prometheus"

// The metrics of forwarding, under CoreDNS's names where the meaning is the same.
// They are added up when somebody asks, so that counting costs the hot path little.
var (
	cacheEntries   = prometheus.NewDesc("coredns_cache_entries", "Replies in the cache, also those past their time.", nil, nil)
	cacheBytes     = prometheus.NewDesc("wayleave_dns_cache_bytes", "Size of the cache.", nil, nil)
	cacheHits      = prometheus.NewDesc("coredns_cache_hits_total", "Queries answered from the cache.", []string{"type"}, nil)
	cacheMisses    = prometheus.NewDesc("coredns_cache_misses_total", "Queries that the cache had nothing for.", nil, nil)
	cacheStale     = prometheus.NewDesc("coredns_cache_served_stale_total", "Replies told past their time, since servers fail.", nil, nil)
	cachePrefetch  = prometheus.NewDesc("coredns_cache_prefetch_total", "Popular replies fetched anew before their time ended.", nil, nil)
	cacheEvictions = prometheus.NewDesc("coredns_cache_evictions_total", "Replies dropped for others.", nil, nil)
	forwardAsked   = prometheus.NewDesc("coredns_forward_requests_total", "Tries at an upstream server.", []string{"to"}, nil)
	forwardFailed  = prometheus.NewDesc("wayleave_dns_forward_failures_total", "Tries at an upstream server without a usable answer.", []string{"to"}, nil)
	forwardProbes  = prometheus.NewDesc("wayleave_dns_forward_probes_total", "Probes of an upstream server that does not answer.", []string{"to"}, nil)
	forwardUp      = prometheus.NewDesc("wayleave_dns_forward_up", "1 when an upstream server answers.", []string{"to"}, nil)
)

// Describe implements prometheus.Collector.
func (f *Forwarder) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(f, to) }

// Collect implements prometheus.Collector.
func (f *Forwarder) Collect(to chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	entries, bytes := f.Cache.Size()
	gauge(cacheEntries, entries)
	gauge(cacheBytes, bytes)
	var hits, denials, misses, stale, prefetched, evicted uint64
	for i := range f.Cache.shards {
		s := &f.Cache.shards[i]
		hits, denials, misses = hits+s.hits.Load(), denials+s.denials.Load(), misses+s.misses.Load()
		stale, prefetched, evicted = stale+s.stale.Load(), prefetched+s.prefetched.Load(), evicted+s.evicted.Load()
	}
	counter(cacheHits, hits, "success")
	counter(cacheHits, denials, "denial")
	counter(cacheMisses, misses)
	counter(cacheStale, stale)
	counter(cachePrefetch, prefetched)
	counter(cacheEvictions, evicted)
	for _, u := range f.routes.Load().servers() {
		counter(forwardAsked, u.asked.Load(), u.String())
		counter(forwardFailed, u.failed.Load(), u.String())
		counter(forwardProbes, u.probes.Load(), u.String())
		gauge(forwardUp, 1-btoi(u.down()), u.String())
	}
}
