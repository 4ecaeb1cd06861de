package ipvs

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/ipvs"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
)

// An address of the node (here one that its Node object does not name) is never put on the
// link, also where a plan has it: with the plan it would go from there.
func TestAnAddressOfTheNodeIsNeverPutOnTheLink(t *testing.T) {
	own, vip := netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("10.96.0.5")
	f := ipvs.NewFake(own)
	m := New(f, nftables.NewIPVSCompanion(nft.NewFake(), &conntrack.Fake{}, nil), &conntrack.Fake{},
		Options{Scheduler: "rr"})
	plan := service.Plan{VIPs: []netip.Addr{vip}}
	for _, a := range []netip.Addr{vip, own} {
		plan.Frontends = append(plan.Frontends,
			service.FrontendPlan{Frontend: service.Frontend{Addr: a, Protocol: model.TCP, Port: 80}})
	}
	name := model.Name{Namespace: "ns", Name: "web"}
	linked := func(want ...netip.Addr) {
		t.Helper()
		if on, _, err := f.Addresses(t.Context(), Link); err != nil || !slices.Equal(on, want) {
			t.Errorf("on the link %v (%v), want %v", on, err, want)
		}
	}
	if err := m.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := m.Apply(t.Context(), map[model.Name]service.Plan{name: plan}, nil); err != nil {
		t.Fatal(err)
	}
	linked(vip)
	other := netip.MustParseAddr("192.0.2.98")
	f.Own = []netip.Addr{own, other, vip} // and one that comes later is taken off
	m.look(t.Context())
	linked()
}

// Looking at what others changed takes a twentieth of a core at most, and is done every
// second where that is cheap.
func TestLooksAreRareWhereTheyAreDear(t *testing.T) {
	for _, c := range []struct{ took, rest time.Duration }{{time.Millisecond, time.Second},
		{50 * time.Millisecond, time.Second}, {500 * time.Millisecond, 10 * time.Second}} {
		if got := pace(c.took); got != c.rest {
			t.Errorf("after %s a rest of %s, want %s", c.took, got, c.rest)
		}
	}
}
