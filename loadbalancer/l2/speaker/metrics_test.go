package speaker

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// The metrics are there under the names of the docs, also before the process runs.
func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	s := New(slog.New(slog.DiscardHandler))
	if err := reg.Register(s); err != nil {
		t.Fatal(err)
	}
	s.now.Change(func(w *watched) {
		w.report.Members = []Member{{"a", true, true}, {"b", true, false}, {"c", false, false}, {"d", false, false}}
		w.report.Counters.Takeovers = 3
		w.base = Counters{Takeovers: 4}
	})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "/" + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{"wayleave_l2_owned_vips": 0, "wayleave_l2_takeovers_total": 7,
		"wayleave_l2_disputes_total":    0,
		"wayleave_l2_foreign_addresses": 0, "wayleave_l2_answers_total": 0, "wayleave_l2_restarts_total": 0,
		"wayleave_peers/willing": 1, "wayleave_peers/reluctant": 1, "wayleave_peers/dead": 2} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, %t; want %v", name, v, ok, want)
		}
	}
}
