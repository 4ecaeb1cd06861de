package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/internal/scrape"
)

var upDesc = prometheus.NewDesc(scrape.Up, scrape.UpHelp, []string{scrape.ProcessLabel}, nil)

// processes has whether the processes run that features supervise. A registry takes a name from one collector only, so
// that no feature has this metric.
type processes struct{ features []Feature }

// Describe implements prometheus.Collector.
func (processes) Describe(to chan<- *prometheus.Desc) { to <- upDesc }

// Collect implements prometheus.Collector.
func (p processes) Collect(to chan<- prometheus.Metric) {
	for _, f := range having[Supervising](p.features) {
		for name, running := range f.Processes() {
			up := 0.0
			if running {
				up = 1
			}
			to <- prometheus.MustNewConstMetric(upDesc, prometheus.GaugeValue, up, name)
		}
	}
}
