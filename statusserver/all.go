package statusserver

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"wayleave.dev/internal/buildinfo"
	"wayleave.dev/internal/scrape"
)

// self and agent are the values of the label process for this process and for the agent.
const (
	self  = "status-server"
	agent = "agent"
)

// metrics are those of all processes, and of this one.
type metrics struct {
	registry *prometheus.Registry
	up       *prometheus.GaugeVec
	requests *prometheus.CounterVec

	collecting sync.Mutex // one at a time, for all that ask
	answer     Answer
	at         time.Time

	mu      sync.Mutex
	sources []*source
}

// source is a process that has metrics, and its connection, nil while it has none.
type source struct {
	Source
	mu   sync.Mutex
	conn net.Conn
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry(),
		up: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: scrape.Up, Help: scrape.UpHelp},
			[]string{scrape.ProcessLabel}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "wayleave_metrics_requests_total",
			Help: "Requests for the metrics of the node, by the status of the response."}, []string{"code"})}
	m.registry.MustRegister(m.up, m.requests)
	return m
}

// Describe registers the metrics of the process, for the documentation.
func Describe(reg prometheus.Registerer) {
	m := newMetrics()
	reg.MustRegister(m.up, m.requests)
	buildinfo.Register(reg, "")
}

// expect sets which processes there are.
func (m *metrics) expect(version string, list []Source) {
	m.mu.Lock()
	defer m.mu.Unlock()
	buildinfo.Register(m.registry, version)
	for _, s := range list {
		m.sources = append(m.sources, &source{Source: s})
	}
}

func (m *metrics) known() []*source {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sources
}

// connect takes the connection of a source. A later one replaces an earlier one.
func (m *metrics) connect(name string, f *os.File) error {
	defer f.Close()
	for _, s := range m.known() {
		if s.Name != name {
			continue
		}
		c, err := net.FileConn(f)
		if err != nil {
			return err
		}
		s.replace(c)
	}
	return nil
}

func (s *source) replace(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.Close()
	}
	s.conn = c
}

// ask returns the metrics of the process, nil when it does not give them in time. Only collect calls it.
func (s *source) ask(deadline time.Time) []byte {
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	text, err := scrape.Ask(c, deadline)
	if err == nil {
		return text
	}
	_ = c.Close() // a process that lives connects again
	s.mu.Lock()
	if s.conn == c {
		s.conn = nil
	}
	s.mu.Unlock()
	return nil
}

// collect returns the metrics of all processes. Those that do not answer are missing, with wayleave_process_up 0.
func (p *process) collect() Answer {
	m := p.metrics
	m.collecting.Lock()
	defer m.collecting.Unlock()
	if !m.at.IsZero() && time.Since(m.at) < AllMetrics.freshFor() {
		return m.answer
	}
	all := []scrape.Families{nil} // the first is of this process
	for _, part := range p.askAll(time.Now().Add(answerTimeout)) {
		families, err := part.Parse()
		if err != nil {
			p.log.Warn("metrics of a process are left out", "of", part.Process, "err", err)
		}
		up := 1.0
		if part.Text == nil || err != nil {
			up = 0
		}
		m.up.WithLabelValues(part.Process).Set(up)
		all = append(all, families)
	}
	all[0] = p.own()
	var out bytes.Buffer
	for _, f := range scrape.Join(all...) {
		if _, err := expfmt.MetricFamilyToText(&out, f); err != nil {
			p.log.Warn("a metric is left out", "name", f.GetName(), "err", err)
		}
	}
	m.answer = Answer{Status: http.StatusOK, ContentType: string(expfmt.NewFormat(expfmt.TypeTextPlain)),
		Body: out.Bytes()}
	m.at = time.Now()
	return m.answer
}

// own are the metrics of this process.
func (p *process) own() scrape.Families {
	text, err := scrape.Text(p.metrics.registry, scrape.MaxBytes)
	if err != nil {
		p.log.Warn("own metrics", "err", err)
	}
	families, err := scrape.Part{Process: self, Text: text}.Parse()
	if err != nil {
		p.log.Warn("own metrics", "err", err)
	}
	return families
}

// askAll asks all processes at once.
func (p *process) askAll(deadline time.Time) []scrape.Part {
	sources := p.metrics.known()
	parts := make([]scrape.Part, 1+len(sources))
	var wg sync.WaitGroup
	wg.Go(func() {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		parts[0] = scrape.Part{Process: agent}
		a, err := p.page(Metrics).get(ctx, Metrics.freshFor(), func() error { return p.ask(ask{Page: Metrics}) })
		if err == nil && a.Status == http.StatusOK {
			parts[0].Text = a.Body
		}
	})
	for i, s := range sources {
		wg.Go(func() {
			parts[1+i] = scrape.Part{Process: s.Name, Prefixes: s.Prefixes, Text: s.ask(deadline)}
		})
	}
	wg.Wait()
	return parts
}
