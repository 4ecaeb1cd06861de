package agent

import (
	"bytes"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"wayleave.dev/statusserver"
)

// metrics of the process, and of the loops of all features.
type metrics struct {
	registry *prometheus.Registry
	sync     *prometheus.HistogramVec
	events   *prometheus.CounterVec
}

// Buckets are those of histograms of the time that a change takes: 0.5 ms to 65 s.
func Buckets() []float64 { return prometheus.ExponentialBuckets(0.0005, 2, 18) }

func newMetrics(r *prometheus.Registry) *metrics {
	m := &metrics{
		registry: r,
		sync: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "wayleave_apply_duration_seconds",
			Help: "From seeing a change to its commit, by feature.", Buckets: Buckets()}, []string{"feature"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "wayleave_events_total",
			Help: "Errors and repairs of foreign changes, by feature."}, []string{"feature", "event"}),
	}
	r.MustRegister(m.sync, m.events)
	return m
}

// registerMetrics has the metrics of features served.
func (n *Node) registerMetrics() error {
	for _, m := range append(featureMetrics(n), state{n.Core}, processes{n.Features}) {
		if err := n.metrics.registry.Register(m); err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
	}
	return nil
}

func featureMetrics(n *Node) (out []prometheus.Collector) {
	for _, f := range having[Metered](n.Features) {
		out = append(out, f.Metrics(n)...)
	}
	return out
}

// Collectors are those of the metrics of an agent, for the documentation. The node need not be prepared.
func Collectors(n *Node) []prometheus.Collector {
	return append([]prometheus.Collector{n.metrics.sync, n.metrics.events, state{n.Core},
		processes{n.Features}}, featureMetrics(n)...)
}

// MetricsPage is all metrics as text.
func (c *Core) MetricsPage() statusserver.Answer {
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	out := statusserver.Answer{Status: http.StatusOK, ContentType: string(format)}
	families, err := c.metrics.registry.Gather()
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

func (m *metrics) observer(loop string, also ...func(bool, time.Duration)) func(bool, time.Duration) {
	return func(full bool, took time.Duration) {
		m.sync.WithLabelValues(loop).Observe(took.Seconds())
		for _, observe := range also {
			observe(full, took)
		}
	}
}

func (m *metrics) counter(loop string) func(string) {
	return func(event string) { m.events.WithLabelValues(loop, event).Inc() }
}
