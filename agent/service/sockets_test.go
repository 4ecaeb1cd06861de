package service

import (
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/kernel/bpf/sockets"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/dataplane"
	"wayleave.dev/service/ebpf"
	"wayleave.dev/service/nftables"
)

// Status and metrics count what is served at the sockets, what is left to nftables, and what does not fit.
func TestStatusCountsWhatTheSocketsServe(t *testing.T) {
	f, maps := New(), sockets.NewFake()
	if lines := f.sockets(); lines != nil || len(gather(t, f)) != 0 {
		t.Errorf("before the mode runs: %q", lines)
	}
	full := netip.MustParseAddr("10.96.0.3")
	maps.Fail = func(e sockets.Frontend) error {
		if e.At.Addr() == full {
			return sockets.ErrFull
		}
		return nil
	}
	mode := ebpf.New(nftables.New(nft.NewFake(), &conntrack.Fake{}), maps, nil)
	plans := map[model.Name]service.Plan{}
	for i, a := range []string{"10.96.0.1", "10.96.0.2", full.String()} {
		vip := netip.MustParseAddr(a)
		e := service.FrontendPlan{Frontend: service.Frontend{Addr: vip, Protocol: model.TCP, Port: 80}}
		if i != 1 { // that one has no endpoint
			e.Slots = []netip.AddrPort{netip.MustParseAddrPort("10.244.1.2:80")}
		}
		plans[model.Name{Name: a}] = service.Plan{VIPs: []netip.Addr{vip}, Frontends: []service.FrontendPlan{e}}
	}
	if err := mode.Sync(t.Context(), plans); err != nil {
		t.Fatal(err)
	}
	f.running.Store(&dataplane.Made{Mode: mode})
	want := "at the sockets of pods: 1 frontends; left to nftables: 2, 1 of them because a map is full; maps: 0.0 MiB"
	if lines := f.sockets(); len(lines) != 1 || lines[0] != want {
		t.Errorf("the status says %q, want %q", lines, want)
	}
	got := gather(t, f)
	for by, n := range map[string]float64{"sockets": 1, "rules": 2, "full": 1} {
		if got[by] != n {
			t.Errorf("the metric says %v by %s, want %v", got[by], by, n)
		}
	}
}

// gather returns wayleave_service_frontends by its label.
func gather(t *testing.T, f *Feature) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(socketMetrics{f})
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, family := range families {
		if family.GetName() == "wayleave_service_frontends" {
			for _, m := range family.Metric {
				out[m.Label[0].GetValue()] = m.Gauge.GetValue()
			}
		}
	}
	return out
}
