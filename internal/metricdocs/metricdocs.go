// Package metricdocs lists the metrics of all processes, as their registries describe them, for docs/metrics.md.
package metricdocs

import (
	"cmp"
	_ "embed"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/agent"
	"wayleave.dev/agent/features"
	"wayleave.dev/config"
	"wayleave.dev/dns/server"
	"wayleave.dev/dns/zone"
	"wayleave.dev/internal/scrape"
	"wayleave.dev/model"
	"wayleave.dev/proxy/process"
	"wayleave.dev/statusserver"
)

// Metric is one metric.
type Metric struct {
	Name string
	// Type is counter, gauge, histogram or summary.
	Type string
	Help string
	// Labels are those of the process itself, without the label process that the scrape port adds.
	Labels []string
	// Processes have the metric, in the order of their names.
	Processes []string
}

// recorder keeps what is registered.
type recorder struct{ collectors []prometheus.Collector }

// Register implements prometheus.Registerer.
func (r *recorder) Register(c prometheus.Collector) error {
	r.collectors = append(r.collectors, c)
	return nil
}

// MustRegister implements prometheus.Registerer.
func (r *recorder) MustRegister(list ...prometheus.Collector) {
	r.collectors = append(r.collectors, list...)
}

// Unregister implements prometheus.Registerer.
func (r *recorder) Unregister(prometheus.Collector) bool { return false }

// All returns the metrics of all processes, sorted by name. Those of the Go runtime and of the operating system, go_…
// and process_…, are left out.
func All() ([]Metric, error) {
	store, err := model.NewStore()
	if err != nil {
		return nil, err
	}
	defer store.Close()
	quiet := slog.New(slog.DiscardHandler)
	node := &agent.Node{Core: agent.NewCore(quiet, store, config.Default(), features.All())}
	var self, dns, proxy recorder
	statusserver.Describe(&self)
	server.New(zone.New(), &dns, quiet)
	process.Describe(&proxy)
	all := map[string]Metric{scrape.LeftOut: {Name: scrape.LeftOut, Type: "gauge", Help: scrape.LeftOutHelp,
		Processes: []string{"dns", "proxy", "status-server"}}}
	for name, collectors := range map[string][]prometheus.Collector{"agent": agent.Collectors(node),
		"status-server": self.collectors, "dns": dns.collectors, "proxy": proxy.collectors} {
		for _, c := range collectors {
			for _, m := range describe(c) {
				if old, ok := all[m.Name]; ok {
					m.Processes = old.Processes
				}
				if !slices.Contains(m.Processes, name) {
					m.Processes = append(slices.Clone(m.Processes), name)
				}
				slices.Sort(m.Processes)
				all[m.Name] = m
			}
		}
	}
	build := all["wayleave_build_info"]
	build.Processes = []string{"agent", "dns", "proxy", "status-server"}
	all[build.Name] = build
	return slices.SortedFunc(maps.Values(all), func(a, b Metric) int { return cmp.Compare(a.Name, b.Name) }), nil
}

// descriptions are what a Desc prints, which has no other way to tell.
var descriptions = regexp.MustCompile(
	`fqName: "([^"]+)", help: "((?:[^"\\]|\\.)*)", (?:unit: "[^"]*", )?constLabels: \{([^}]*)\}, ` +
		`variableLabels: \{([^}]*)\}`)

func describe(c prometheus.Collector) (out []Metric) {
	ch := make(chan *prometheus.Desc, 1000)
	c.Describe(ch)
	close(ch)
	for d := range ch {
		m := descriptions.FindStringSubmatch(d.String())
		if m == nil || strings.HasPrefix(m[1], "go_") || strings.HasPrefix(m[1], "process_") {
			continue
		}
		one := Metric{Name: m[1], Type: typeOf(c, m[1]), Help: m[2]}
		for label := range strings.SplitSeq(m[3], ",") {
			if name, _, ok := strings.Cut(label, "="); ok {
				one.Labels = append(one.Labels, name)
			}
		}
		for label := range strings.SplitSeq(m[4], ",") {
			if label != "" {
				one.Labels = append(one.Labels, label)
			}
		}
		out = append(out, one)
	}
	return out
}

// typeOf is the type of a metric. Collectors that make their metrics themselves do not say it: their names do, by
// Prometheus' rules, but for the one histogram.
func typeOf(c prometheus.Collector, name string) string {
	switch c.(type) {
	case *prometheus.HistogramVec, prometheus.Histogram:
		return "histogram"
	}
	switch {
	case strings.HasSuffix(name, "_total"):
		return "counter"
	case name == "coredns_dns_request_duration_seconds":
		return "histogram"
	}
	return "gauge"
}

// File is the page, from the top of the checkout.
const File = "docs/metrics.md"

// head is the text before the table.
//
//go:embed head.txt
var head string

// Page is the content of File.
func Page() ([]byte, error) {
	all, err := All()
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString(head)
	for _, m := range all {
		labels := "–"
		if len(m.Labels) > 0 {
			labels = "`" + strings.Join(m.Labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", m.Name, m.Type, labels, strings.Join(m.Processes, ", "),
			strings.ReplaceAll(m.Help, "|", "\\|"))
	}
	return []byte(b.String()), nil
}
