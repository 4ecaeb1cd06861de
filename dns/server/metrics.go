package server

import (
	"math"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics use CoreDNS's names, so that its dashboards work. Each reader counts separately, and a scrape computes the
// sums: a query touches no shared memory.
type metrics struct {
	forwarded prometheus.Counter
	autopath  prometheus.Counter
	requests  *prometheus.Desc
	responses *prometheus.Desc
	duration  *prometheus.Desc
	refused   *prometheus.Desc
	hot       *prometheus.Desc
	full      *prometheus.Desc

	mu      sync.Mutex
	tallies map[*tally]struct{}
	// past is the sum of readers that ended.
	past map[string]*counts
}

// Sizes of the counters.
const (
	// countedTypes are the record types with their own label, by number.
	countedTypes = 66 // up to HTTPS
	countedCodes = 24
	timeBuckets  = 10
)

// counts are counters with one writer or under a lock.
type counts struct {
	types   [countedTypes]uint64 // 0 stands for all others
	codes   [countedCodes]uint64
	buckets [timeBuckets + 1]uint64 // not cumulative; the last is for longer times
	nanos   uint64
	// refused counts queries of addresses that are not allowed, hot those that the hot path answered, full those for
	// which there was no worker.
	refused, hot, full uint64
}

// tally is a counter of one protocol. Its owner adds a batch at a time.
type tally struct {
	proto string
	mu    sync.Mutex
	counts
}

// bounds are the upper ends of the buckets, as ExponentialBuckets(10 µs, 4, 10).
var bounds = func() (out [timeBuckets]time.Duration) {
	for i := range out {
		out[i] = 10 * time.Microsecond << (2 * i)
	}
	return out
}()

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		autopath: prometheus.NewCounter(prometheus.CounterOpts{Name: "coredns_autopath_success_total",
			Help: "Walks through a search list that were answered at their first step."}),
		forwarded: prometheus.NewCounter(prometheus.CounterOpts{Name: "wayleave_dns_upstream_failures_total",
			Help: "Tries at an upstream server without an answer."}),
		requests:  prometheus.NewDesc("coredns_dns_requests_total", "Queries.", []string{"proto", "type"}, nil),
		responses: prometheus.NewDesc("coredns_dns_responses_total", "Replies by code.", []string{"rcode"}, nil),
		duration:  prometheus.NewDesc("coredns_dns_request_duration_seconds", "Time per query.", nil, nil),
		refused: prometheus.NewDesc("wayleave_dns_foreign_clients_total",
			"Queries from addresses that are not allowed.", nil, nil),
		hot: prometheus.NewDesc("wayleave_dns_prebuilt_answers_total",
			"Queries answered with prebuilt bytes.", nil, nil),
		full: prometheus.NewDesc("wayleave_dns_overload_total",
			"Queries answered SERVFAIL because too many others were waiting.", nil, nil),
		tallies: map[*tally]struct{}{}, past: map[string]*counts{},
	}
	reg.MustRegister(m, m.forwarded, m.autopath)
	return m
}

// tally returns a counter; retire ends its use.
func (m *metrics) tally(proto string) *tally {
	t := &tally{proto: proto}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tallies[t] = struct{}{}
	return t
}

func (m *metrics) retire(t *tally) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tallies, t)
	if m.past[t.proto] == nil {
		m.past[t.proto] = &counts{}
	}
	m.past[t.proto].add(&t.counts)
}

// query counts one query.
func (c *counts) query(qtype uint16, rcode int, took time.Duration) {
	if qtype >= countedTypes || dns.TypeToString[qtype] == "" {
		qtype = 0
	}
	c.types[qtype]++
	c.codes[min(rcode, countedCodes-1)]++
	c.took(took, 1)
}

// took counts n queries that took the same time.
func (c *counts) took(d time.Duration, n uint64) {
	i := 0
	for i < timeBuckets && d > bounds[i] {
		i++
	}
	c.buckets[i] += n
	c.nanos += uint64(d) * n
}

func (c *counts) add(o *counts) {
	for i := range c.types {
		c.types[i] += o.types[i]
	}
	for i := range c.codes {
		c.codes[i] += o.codes[i]
	}
	for i := range c.buckets {
		c.buckets[i] += o.buckets[i]
	}
	c.nanos += o.nanos
	c.refused += o.refused
	c.hot += o.hot
	c.full += o.full
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.requests, m.responses, m.duration, m.refused, m.hot, m.full} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	var all counts
	for proto, c := range m.sums() {
		all.add(c)
		for qtype, n := range c.types {
			label := dns.TypeToString[uint16(qtype)]
			if qtype == 0 {
				label = "other"
			}
			if n > 0 {
				ch <- prometheus.MustNewConstMetric(m.requests, prometheus.CounterValue, float64(n), proto, label)
			}
		}
	}
	for code, n := range all.codes {
		if n > 0 {
			ch <- prometheus.MustNewConstMetric(m.responses, prometheus.CounterValue, float64(n),
				dns.RcodeToString[code])
		}
	}
	buckets, sum := map[float64]uint64{}, uint64(0)
	for i, n := range all.buckets {
		sum += n
		if i < timeBuckets {
			buckets[bounds[i].Seconds()] = sum
		}
	}
	ch <- prometheus.MustNewConstHistogram(m.duration, sum, float64(all.nanos)/math.Pow10(9), buckets)
	ch <- prometheus.MustNewConstMetric(m.refused, prometheus.CounterValue, float64(all.refused))
	ch <- prometheus.MustNewConstMetric(m.hot, prometheus.CounterValue, float64(all.hot))
	ch <- prometheus.MustNewConstMetric(m.full, prometheus.CounterValue, float64(all.full))
}

func (m *metrics) sums() map[string]*counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]*counts{}
	for proto, c := range m.past {
		sum := *c
		out[proto] = &sum
	}
	for t := range m.tallies {
		if out[t.proto] == nil {
			out[t.proto] = &counts{}
		}
		t.mu.Lock()
		out[t.proto].add(&t.counts)
		t.mu.Unlock()
	}
	return out
}
