package speaker

import (
	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/loadbalancer/bgp"
)

var (
	restartsDesc = prometheus.NewDesc("wayleave_bgp_restarts_total", "Restarts of the process bgp.", nil, nil)
	refusedDesc  = prometheus.NewDesc("wayleave_bgp_refused_connections_total",
		"Connections to the BGP port that were refused, because they came from no peer.", nil, nil)
	sessionUp = prometheus.NewDesc("wayleave_bgp_session_up",
		"1 when the BGP session is established, 0 when it is not.", []string{"session", "peer"}, nil)
	prefixesDesc = prometheus.NewDesc("wayleave_bgp_prefixes",
		"Prefixes of a BGP session by direction: advertised, received, accepted.",
		[]string{"session", "peer", "direction"},
		nil)
	messagesDesc = prometheus.NewDesc("wayleave_bgp_messages_total",
		"Messages of a BGP session by direction: in, out.", []string{"session", "peer", "direction"}, nil)
)

// Describe implements prometheus.Collector.
func (s *Supervisor) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{restartsDesc, refusedDesc, sessionUp, prefixesDesc, messagesDesc} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Supervisor) Collect(to chan<- prometheus.Metric) {
	r := s.Report()
	give := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	give(restartsDesc, prometheus.CounterValue, float64(r.Restarts))
	give(refusedDesc, prometheus.CounterValue, float64(r.Refused))
	for _, x := range r.Sessions {
		if !x.Addr.IsValid() {
			continue
		}
		peer := x.Addr.String()
		give(sessionUp, prometheus.GaugeValue, flag(x.State == bgp.Established), x.Name, peer)
		give(prefixesDesc, prometheus.GaugeValue, float64(x.Advertised), x.Name, peer, "advertised")
		give(prefixesDesc, prometheus.GaugeValue, float64(x.Received), x.Name, peer, "received")
		give(prefixesDesc, prometheus.GaugeValue, float64(x.Accepted), x.Name, peer, "accepted")
		give(messagesDesc, prometheus.CounterValue, float64(x.MessagesIn), x.Name, peer, "in")
		give(messagesDesc, prometheus.CounterValue, float64(x.MessagesOut), x.Name, peer, "out")
	}
}
