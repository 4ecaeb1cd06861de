package agent_test

import (
	"maps"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/agent"
	"wayleave.dev/config"
)

// supervising is a feature with processes.
type supervising struct {
	name string
	runs map[string]bool
}

func (s supervising) Name() string                    { return s.name }
func (s supervising) Enabled(config.Config) bool      { return true }
func (s supervising) Kinds(config.Config) agent.Kinds { return agent.Kinds{} }
func (s supervising) Processes() map[string]bool      { return s.runs }

// The processes of all features are in one metric, which no feature registers.
func TestProcessesOfFeaturesAreInOneMetric(t *testing.T) {
	c := core(objects(t), supervising{"a", map[string]bool{"l2": true}},
		supervising{"b", map[string]bool{"bgp": false}},
		supervising{"c", nil})
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(agent.Collectors(&agent.Node{Core: c})...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "wayleave_process_up" {
				got[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	if want := map[string]float64{"l2": 1, "bgp": 0}; !maps.Equal(got, want) {
		t.Errorf("wayleave_process_up: %v, want %v", got, want)
	}
}
