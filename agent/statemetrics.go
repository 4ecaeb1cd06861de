package agent

import (
	"github.com/prometheus/client_golang/prometheus"
)

var (
	failingDesc = prometheus.NewDesc("wayleave_feature_failing",
		"1 while a loop of the node fails or has not synced yet, 0 when it is in sync; wayleave status has the reason.",
		[]string{"feature"}, nil)
	problemsDesc = prometheus.NewDesc("wayleave_problems",
		"What this agent reports as wrong, as wayleave status lists it, without the loops that fail.", nil, nil)
)

// state has what `wayleave status` says as metrics.
type state struct{ core *Core }

// Describe implements prometheus.Collector.
func (s state) Describe(to chan<- *prometheus.Desc) {
	to <- failingDesc
	to <- problemsDesc
}

// Collect implements prometheus.Collector.
func (s state) Collect(to chan<- prometheus.Metric) {
	for name, loop := range s.core.States() {
		failing := 0.0
		if loop.Error != "" || !loop.Synced {
			failing = 1
		}
		to <- prometheus.MustNewConstMetric(failingDesc, prometheus.GaugeValue, failing, name)
	}
	s.core.mu.Lock()
	problems := len(s.core.conditions)
	s.core.mu.Unlock()
	for _, p := range s.core.Problems.List() {
		if !p.Note {
			problems++
		}
	}
	to <- prometheus.MustNewConstMetric(problemsDesc, prometheus.GaugeValue, float64(problems))
}
