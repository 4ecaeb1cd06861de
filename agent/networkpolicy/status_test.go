package networkpolicy

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	policynft "wayleave.dev/networkpolicy/nftables"
)

// The isolated pods of the node, and as a metric: as many series as there are, with the
// names of policies cut where they are many.
func TestStatusOfPolicies(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	a := netip.MustParseAddr("10.244.1.5")
	if err := store.Write(func(w *model.Writer) {
		w.PutPod(&model.Pod{Name: model.Name{Namespace: "shop", Name: "web"}, IPs: []netip.Addr{a}})
	}); err != nil {
		t.Fatal(err)
	}
	f := New()
	p := &policies{mode: policynft.New(nft.NewFake(), nil)}
	f.enforced.Store(p)
	var many []model.Name
	for i := range 40 {
		many = append(many, model.Name{Namespace: "shop", Name: fmt.Sprintf("policy-%d", i)})
	}
	if err := p.mode.Sync(t.Context(), map[networkpolicy.Key]networkpolicy.Entry{
		{Kind: networkpolicy.PodEntry, Direction: networkpolicy.Egress, Addr: a}: {Profile: "p", Policies: many},
		{Kind: networkpolicy.PodEntry, Addr: netip.MustParseAddr("10.244.1.6")}:  {Profile: "q"},
		{Kind: networkpolicy.PeerEntry, Profile: "q", Addr: a}: {
			Ports: networkpolicy.Ports{All: true}},
	}); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(f.Rows(nil, store.Snapshot()))
	if err != nil {
		t.Fatal(err)
	}
	text, err := f.List().Text(raw, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"POD", "shop/web", "10.244.1.5", "Egress", "shop/policy-39", "10.244.1.6",
		"until the pod is known"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if got, err := f.List().Text(nil, time.Now()); err != nil ||
		!strings.Contains(got, "no pod of this node is isolated") {
		t.Errorf("without any it says %q", got)
	}
	r := prometheus.NewRegistry()
	r.MustRegister(f.Metrics(&agent.Node{Core: agent.NewCore(slog.New(slog.DiscardHandler), store,
		config.Default(), nil)})...)
	families, err := r.Gather()
	if err != nil || len(families) != 1 || len(families[0].Metric) != 2 {
		t.Fatalf("metrics are %v, %v", families, err)
	}
	for _, m := range families[0].Metric {
		for _, l := range m.Label {
			if l.GetName() == "policies" && len(l.GetValue()) > longestPolicies+len("…") {
				t.Errorf("the label has %d bytes", len(l.GetValue()))
			}
		}
	}
}
