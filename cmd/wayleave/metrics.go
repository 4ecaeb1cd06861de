package main

import (
	"bytes"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"wayleave.dev/statusserver"
)

// metrics of the agent; where kube-proxy has a metric of the same meaning, it
// carries that name.
type metrics struct {
	registry *prometheus.Registry
	sync     *prometheus.HistogramVec
	full     prometheus.Histogram
	change   prometheus.Histogram
	last     prometheus.Gauge
	events   *prometheus.CounterVec
	path     *prometheus.GaugeVec
	tunnel   *prometheus.GaugeVec
}

func newMetrics(r *prometheus.Registry) *metrics {
	buckets := prometheus.ExponentialBuckets(0.0005, 2, 18)
	m := &metrics{
		registry: r,
		sync: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "wayleave_apply_duration_seconds",
			Help: "From seeing a change to its commit, by feature.", Buckets: buckets}, []string{"feature"}),
		full: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kubeproxy_sync_full_proxy_rules_duration_seconds", Help: "Full syncs of the service proxy.",
			Buckets: buckets}),
		change: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kubeproxy_sync_proxy_rules_duration_seconds",
			Help: "Changes and syncs of the service proxy.", Buckets: buckets}),
		last: prometheus.NewGauge(prometheus.GaugeOpts{Name: "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
			Help: "When the service proxy last committed."}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "wayleave_events_total",
			Help: "Errors and repairs of foreign changes, by feature."}, []string{"feature", "event"}),
	}
	m.path = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "wayleave_path_mtu_bytes",
		Help: "The largest packet that reaches a node."}, []string{"node"})
	m.tunnel = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "wayleave_tunnel_carries",
		Help: "Whether packets by VXLAN reach a node: 1, or 0 where they do not and others do."}, []string{"node"})
	r.MustRegister(m.path, m.tunnel, m.sync, m.full, m.change, m.last, m.events, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// tunnelTo tells whether packets reach a node by VXLAN.
func (m *metrics) tunnelTo(node string, carries bool) {
	value := 0.0
	if carries {
		value = 1
	}
	m.tunnel.WithLabelValues(node).Set(value)
}

// page is all metrics as text.
func (m *metrics) page() statusserver.Answer {
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	out := statusserver.Answer{Status: http.StatusOK, ContentType: string(format)}
	families, err := m.registry.Gather()
	var b bytes.Buffer
	for _, f := range families {
		if err == nil {
			err = expfmt.NewEncoder(&b, format).Encode(f)
		}
	}
	if err != nil {
		return statusserver.Answer{Status: http.StatusInternalServerError, ContentType: "text/plain; charset=utf-8",
			Body: []byte(err.Error())}
	}
	out.Body = b.Bytes()
	return out
}

func (m *metrics) observer(feature string) func(bool, time.Duration) {
	return func(whole bool, took time.Duration) {
		m.sync.WithLabelValues(feature).Observe(took.Seconds())
		if feature != "service" {
			return
		}
		m.change.Observe(took.Seconds())
		if whole {
			m.full.Observe(took.Seconds())
		}
		m.last.SetToCurrentTime()
	}
}

func (m *metrics) counter(feature string) func(string) {
	return func(what string) { m.events.WithLabelValues(feature, what).Inc() }
}
