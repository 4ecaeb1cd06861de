package dns

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/model"
)

// The address of a NodeLocal DNSCache is served beside that of the Service.
func TestTheAddressOfANodeLocalDNSCacheIsServed(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := store.Write(func(w *model.Writer) {
		w.PutService(&model.Service{Name: agent.ClusterDNS(),
			ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}})
	}); err != nil {
		t.Fatal(err)
	}
	n := &agent.Node{Name: "n1", NodeLocalDNS: []netip.Addr{netip.MustParseAddr("169.254.20.10")},
		Core: agent.NewCore(slog.New(slog.DiscardHandler), store, config.Default(), nil)}
	place, _, _ := New().placement(n, nil).Plan(store.Snapshot(), agent.ClusterDNS())
	if got := fmt.Sprint(place.VIPs); got != "[10.96.0.10 169.254.20.10]" {
		t.Errorf("DNS is served at %s", got)
	}
}
