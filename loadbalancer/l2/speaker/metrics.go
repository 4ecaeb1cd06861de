package speaker

import "github.com/prometheus/client_golang/prometheus"

// Describe implements prometheus.Collector.
func (s *Supervisor) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(s, to) }

// Collect returns the metrics of the process.
func (s *Supervisor) Collect(to chan<- prometheus.Metric) {
	r := s.Report()
	give := func(name, help string, kind prometheus.ValueType, v float64) {
		to <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, nil), kind, v)
	}
	give("wayleave_l2_owned_vips", "Addresses that this node answers for by ARP or NDP.", prometheus.GaugeValue,
		float64(len(r.VIPs)))
	give("wayleave_l2_takeovers_total", "Addresses that this node has taken over.", prometheus.CounterValue,
		float64(r.Counters.Takeovers))
	give("wayleave_l2_disputes_total", "Addresses that another node also claimed to own, for longer than a second.",
		prometheus.CounterValue, float64(r.Counters.Disputes))
	give("wayleave_l2_foreign_addresses", "Addresses that a machine that is not a node announced.",
		prometheus.GaugeValue, float64(len(r.Foreign)))
	give("wayleave_l2_answers_total", "Requests by ARP and NDP that were answered.", prometheus.CounterValue,
		float64(r.Counters.Answers))
	give("wayleave_peers_refused_total", "Connections and messages at the heartbeat port that were refused; "+
		"datagrams from other sources are dropped by the kernel and not counted.", prometheus.CounterValue,
		float64(r.Counters.Refused))
	give("wayleave_l2_restarts_total", "Restarts of the process l2.",
		prometheus.CounterValue, float64(r.Restarts))
	peers := prometheus.NewDesc("wayleave_peers",
		"Other nodes by state in their heartbeats: willing, reluctant (starting or stopping), dead.",
		[]string{"state"}, nil)
	count := map[string]int{"willing": 0, "reluctant": 0, "dead": 0}
	for _, m := range r.Members {
		switch {
		case m.Willing:
			count["willing"]++
		case m.Live:
			count["reluctant"]++
		default:
			count["dead"]++
		}
	}
	for state, n := range count {
		to <- prometheus.MustNewConstMetric(peers, prometheus.GaugeValue, float64(n), state)
	}
}
