package process

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/internal/buildinfo"
	"wayleave.dev/proxy"
	"wayleave.dev/proxy/server"
)

// Bounds of labels: each host of the routing table has its own label, up to a limit; unknown hosts have none.
const (
	mostHosts  = 1000
	otherHosts = "other"
	noHost     = "none"
	restHost   = "default"
)

// classes are the labels of a status: its class, or no answer.
var classes = [6]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

// hostCounts are one host's requests by class.
type hostCounts [len(classes)]atomic.Uint64

// metrics of a proxy. A request costs a few atomic additions; a scrape computes the sums.
type metrics struct {
	requests  *prometheus.Desc
	sent      *prometheus.Desc
	conns     *prometheus.Desc
	waiting   *prometheus.Desc
	listeners *prometheus.Desc
	certs     *prometheus.Desc
	tunnels   *prometheus.Desc
	logLost   *prometheus.Desc
	oversized *prometheus.Desc
	duration  prometheus.Histogram
	failures  prometheus.Counter
	retries   prometheus.Counter
	refused   *prometheus.CounterVec
	updates   prometheus.Counter

	bytes atomic.Uint64
	hosts atomic.Pointer[map[string]*hostCounts]
	mu    sync.Mutex // for writing hosts

	proxy  *proxy.Proxy
	server *server.Server
	pairs  *server.Certificates
	log    *accessLog
}

// Describe registers the metrics of a proxy, for the documentation. They cannot be collected.
func Describe(reg prometheus.Registerer) { newMetrics(reg, "") }

func newMetrics(reg prometheus.Registerer, version string) *metrics {
	m := &metrics{
		requests: prometheus.NewDesc("wayleave_proxy_requests_total",
			"Requests by host of the routes and class of status.", []string{"host", "status"}, nil),
		sent: prometheus.NewDesc("wayleave_proxy_response_bytes_total",
			"Bytes of bodies that were sent to clients.", nil, nil),
		conns: prometheus.NewDesc("wayleave_proxy_connections", "Open connections of clients.", nil, nil),
		waiting: prometheus.NewDesc("wayleave_proxy_connections_waiting",
			"Connections of clients that wait for a handshake or the rest of a request's head.", nil, nil),
		listeners: prometheus.NewDesc("wayleave_proxy_listeners", "Sockets that are listened on.", nil, nil),
		certs: prometheus.NewDesc("wayleave_proxy_certificates", "Certificates by whether they are of use.",
			[]string{"state"}, nil),
		tunnels: prometheus.NewDesc("wayleave_proxy_tunnels", "Open connections of upgraded protocols.", nil, nil),
		logLost: prometheus.NewDesc("wayleave_proxy_access_log_lost_total",
			"Lines of the access log that could not be written.", nil, nil),
		oversized: prometheus.NewDesc("wayleave_proxy_responses_too_large_total",
			"Responses of endpoints whose head was larger than the settings allow, answered with 502.", nil, nil),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "wayleave_proxy_request_duration_seconds",
			Help:    "From a request's head to the end of its response.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "wayleave_proxy_upstream_failures_total",
			Help: "Requests that ended with an error of an endpoint, or of the way to it."}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{Name: "wayleave_proxy_upstream_retries_total",
			Help: "Tries at a further endpoint."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "wayleave_proxy_refused_total",
			Help: "Connections and requests that were not served, by reason."}, []string{"reason"}),
		updates: prometheus.NewCounter(prometheus.CounterOpts{Name: "wayleave_proxy_updates_total",
			Help: "Changes that the agent told."}),
	}
	m.hosts.Store(&map[string]*hostCounts{})
	reg.MustRegister(m, m.duration, m.failures, m.retries, m.refused, m.updates)
	buildinfo.Register(reg, version)
	return m
}

// observe counts a request.
func (m *metrics) observe(r *proxy.Record) {
	name := noHost
	if r.Host != nil {
		if name = r.Host.Name; name == "" {
			name = restHost
		}
	}
	class := r.Status / 100
	if class < 0 || class >= len(classes) {
		class = 0
	}
	m.host(name)[class].Add(1)
	m.duration.Observe(r.Took.Seconds())
	if r.Sent > 0 {
		m.bytes.Add(uint64(r.Sent))
	}
	if r.Tries > 1 {
		m.retries.Add(float64(r.Tries - 1))
	}
	if r.Err != nil && r.Endpoint.IsValid() {
		m.failures.Inc()
	}
}

func (m *metrics) host(name string) *hostCounts {
	if c := (*m.hosts.Load())[name]; c != nil {
		return c
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := *m.hosts.Load()
	if len(now) >= mostHosts && name != otherHosts {
		if now[name] == nil {
			name = otherHosts
		}
	}
	if c := now[name]; c != nil {
		return c
	}
	next := make(map[string]*hostCounts, len(now)+1)
	for k, v := range now {
		next[k] = v
	}
	c := &hostCounts{}
	next[name] = c
	m.hosts.Store(&next)
	return c
}

func (m *metrics) refuse(why server.Refusal) { m.refused.WithLabelValues(string(why)).Inc() }

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.requests, m.sent, m.conns, m.waiting, m.tunnels, m.listeners, m.certs,
		m.logLost, m.oversized} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for name, c := range *m.hosts.Load() {
		for i := range c {
			if n := c[i].Load(); n > 0 {
				ch <- prometheus.MustNewConstMetric(m.requests, prometheus.CounterValue, float64(n), name, classes[i])
			}
		}
	}
	ch <- prometheus.MustNewConstMetric(m.sent, prometheus.CounterValue, float64(m.bytes.Load()))
	ch <- prometheus.MustNewConstMetric(m.conns, prometheus.GaugeValue, float64(m.server.Conns()))
	ch <- prometheus.MustNewConstMetric(m.waiting, prometheus.GaugeValue, float64(m.server.Waiting()))
	ch <- prometheus.MustNewConstMetric(m.tunnels, prometheus.GaugeValue, float64(m.proxy.Tunnels()))
	ch <- prometheus.MustNewConstMetric(m.listeners, prometheus.GaugeValue, float64(m.server.Listening()))
	ch <- prometheus.MustNewConstMetric(m.certs, prometheus.GaugeValue, float64(m.pairs.Len()), "good")
	ch <- prometheus.MustNewConstMetric(m.certs, prometheus.GaugeValue, float64(len(m.pairs.Problems())), "bad")
	ch <- prometheus.MustNewConstMetric(m.logLost, prometheus.CounterValue, float64(m.log.lost.Load()))
	ch <- prometheus.MustNewConstMetric(m.oversized, prometheus.CounterValue, float64(m.proxy.Oversized()))
}

// observer counts each request.
func (m *metrics) observer(log *accessLog) func(*proxy.Record) {
	return func(r *proxy.Record) {
		m.observe(r)
		log.add(r, time.Now())
	}
}
