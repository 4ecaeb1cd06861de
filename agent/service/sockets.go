package service

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/service/ebpf"
)

// tally returns what the mode ebpf counts; ok is false in another mode.
func (f *Feature) tally() (t ebpf.Tally, ok bool) {
	made := f.running.Load()
	if made == nil {
		return ebpf.Tally{}, false
	}
	m, ok := made.Mode.(*ebpf.Mode)
	if !ok {
		return ebpf.Tally{}, false
	}
	return m.Tally(), true
}

// sockets is a line of the status in mode ebpf.
func (f *Feature) sockets() []string {
	t, ok := f.tally()
	if !ok {
		return nil
	}
	line := fmt.Sprintf("at the sockets of pods: %d frontends; left to nftables: %d", t.Sockets, t.Rules)
	if t.Full > 0 {
		line += fmt.Sprintf(", %d of them because a map is full", t.Full)
	}
	return []string{fmt.Sprintf("%s; maps: %.1f MiB", line, float64(t.Memory)/(1<<20))}
}

// socketMetrics are those of the mode ebpf.
type socketMetrics struct{ feature *Feature }

var (
	socketFrontends = prometheus.NewDesc("wayleave_service_frontends", "Frontends of Services in mode ebpf by what "+
		"serves them: sockets (the sockets of pods; nftables serves other clients), rules (nftables alone), full "+
		"(those of rules for which a map has no room).", []string{"by"}, nil)
	socketMemory = prometheus.NewDesc("wayleave_service_maps_bytes", "Memory of the maps of Services in mode ebpf, "+
		"as far as the kernel tells.", nil, nil)
)

// Describe implements prometheus.Collector.
func (socketMetrics) Describe(to chan<- *prometheus.Desc) {
	to <- socketFrontends
	to <- socketMemory
}

// Collect implements prometheus.Collector.
func (m socketMetrics) Collect(to chan<- prometheus.Metric) {
	t, ok := m.feature.tally()
	if !ok {
		return
	}
	for by, n := range map[string]int{"sockets": t.Sockets, "rules": t.Rules, "full": t.Full} {
		to <- prometheus.MustNewConstMetric(socketFrontends, prometheus.GaugeValue, float64(n), by)
	}
	to <- prometheus.MustNewConstMetric(socketMemory, prometheus.GaugeValue, float64(t.Memory))
}
