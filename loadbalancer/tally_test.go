package loadbalancer

import (
	"net/netip"
	"testing"

	"wayleave.dev/model"
)

// What is counted is what the API says, of Services that are ours.
func TestTheTally(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	service := func(name, class string, given ...string) *model.Service {
		s := &model.Service{Name: model.Name{Namespace: "default", Name: name}, Type: model.LoadBalancer,
			LoadBalancer: &model.Balancer{Class: class}}
		for _, g := range given {
			s.LoadBalancer.Given = append(s.LoadBalancer.Given, netip.MustParseAddr(g))
		}
		return s
	}
	err = store.Write(func(w *model.Writer) {
		w.PutAddressPool(&model.AddressPool{Name: "lan", Ranges: []model.Range{{From: netip.MustParseAddr("192.0.2.1"),
			To: netip.MustParseAddr("192.0.2.9")}}})
		w.PutAddressPool(&model.AddressPool{Name: "empty",
			Ranges: []model.Range{{From: netip.MustParseAddr("192.0.2.11"), To: netip.MustParseAddr("192.0.2.11")}}})
		w.PutService(service("a", "", "192.0.2.1"))
		w.PutService(service("b", "wayleave.dev/l2", "192.0.2.2", "203.0.113.1"))
		w.PutService(service("waits", ""))
		w.PutService(service("another", "example.com/lb", "192.0.2.3"))
		w.PutService(&model.Service{Name: model.Name{Namespace: "default", Name: "inside"}})
	})
	if err != nil {
		t.Fatal(err)
	}
	got := Count(store.Snapshot(), true)
	if got.Served != 2 || got.Waiting != 1 || got.Used["lan"] != 2 || len(got.Used) != 2 || got.Used["empty"] != 0 {
		t.Errorf("tally is %+v", got)
	}
	if got := Count(store.Snapshot(), false); got.Served != 1 || got.Waiting != 0 {
		t.Errorf("without the default it is %+v", got)
	}
}
