package podnetwork

import "github.com/prometheus/client_golang/prometheus"

// fastPathMetrics are read from the kernel when they are asked for.
type fastPathMetrics struct{ f *Feature }

var redirectedDesc = prometheus.NewDesc("wayleave_fast_path_packets_total",
	"Packets that took the fast path of mode ebpf since the agent started, by destination: pod or node.",
	[]string{"to"}, nil)

var begunDesc = prometheus.NewDesc("wayleave_fast_path_connections_total",
	"TCP connections that began on the fast path of mode ebpf since the agent started, by result: begun, or dropped "+
		"(answers to the first packet of a connection that policies forbade meanwhile).", []string{"result"}, nil)

// Describe implements prometheus.Collector.
func (fastPathMetrics) Describe(to chan<- *prometheus.Desc) {
	to <- redirectedDesc
	to <- begunDesc
}

// Collect implements prometheus.Collector.
func (m fastPathMetrics) Collect(to chan<- prometheus.Metric) {
	network := m.f.network.Load()
	if network == nil || !network.FastPath.On {
		return
	}
	n, err := network.Redirected()
	if err != nil {
		return
	}
	for where, packets := range map[string]uint64{"pod": n.Local, "node": n.Remote} {
		to <- prometheus.MustNewConstMetric(redirectedDesc, prometheus.CounterValue, float64(packets), where)
	}
	for result, connections := range map[string]uint64{"begun": n.Begun, "dropped": n.Dropped} {
		to <- prometheus.MustNewConstMetric(begunDesc, prometheus.CounterValue, float64(connections), result)
	}
}
