// Package buildinfo has the metrics that every process of Wayleave has: its version, its Go runtime, its memory, CPU
// time and files.
package buildinfo

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Register adds the metrics of this process. version is Wayleave's.
func Register(reg prometheus.Registerer, version string) {
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "wayleave_build_info",
		Help:        "1, with the version of Wayleave and of Go in labels.",
		ConstLabels: prometheus.Labels{"version": version, "go_version": runtime.Version(), "arch": runtime.GOARCH}})
	info.Set(1)
	reg.MustRegister(info, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}
