package ebpf

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/kernel/bpf/sockets"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
)

var (
	web   = model.Name{Namespace: "default", Name: "web"}
	other = model.Name{Namespace: "default", Name: "other"}
)

const vip = "10.96.0.1:80"

// plan is a Service with one TCP port at the VIP.
func plan(at string, change func(*service.FrontendPlan), backends ...string) service.Plan {
	a := netip.MustParseAddrPort(at)
	f := service.FrontendPlan{Frontend: service.Frontend{Addr: a.Addr(), Protocol: model.TCP, Port: a.Port()}}
	for _, b := range backends {
		f.Slots = append(f.Slots, netip.MustParseAddrPort(b))
	}
	if change != nil {
		change(&f)
	}
	return service.Plan{VIPs: []netip.Addr{a.Addr()}, Frontends: []service.FrontendPlan{f}}
}

type rig struct {
	*Mode
	rules *nft.Fake
	maps  *sockets.Fake
}

func newRig() rig {
	rules, maps := nft.NewFake(), sockets.NewFake()
	return rig{New(nftables.New(rules, &conntrack.Fake{}), maps, nil), rules, maps}
}

func (r rig) want(t *testing.T, want string) {
	t.Helper()
	if got := r.maps.Text(); got != want {
		t.Errorf("the maps have %q, want %q", got, want)
	}
}

// What the programs do not serve exactly is not in the maps.
func TestWhatIsLeftToNftables(t *testing.T) {
	const backend = "10.244.1.2:8080"
	type change = func(*service.FrontendPlan)
	for name, tc := range map[string]struct {
		change change
		served string
	}{
		"ClusterIP": {nil, "TCP 10.96.0.1:80 → " + backend},
		"UDP": {func(f *service.FrontendPlan) { f.Frontend.Protocol = model.UDP },
			"UDP 10.96.0.1:80 → " + backend},
		"external, Local": {func(f *service.FrontendPlan) { f.External, f.Split = true, true },
			"TCP 10.96.0.1:80, pods only → " + backend},
		"internal, Local": {func(f *service.FrontendPlan) { f.Local = true },
			"TCP 10.96.0.1:80 → " + backend},
		"internal, dropped": {func(f *service.FrontendPlan) { f.Local, f.Drop, f.Slots = true, true, nil }, ""},
		"no endpoints":      {func(f *service.FrontendPlan) { f.Slots = nil }, ""},
		"SCTP":              {func(f *service.FrontendPlan) { f.Frontend.Protocol = model.SCTP }, ""},
		"session affinity":  {func(f *service.FrontendPlan) { f.Affinity = time.Minute }, ""},
		"source ranges": {func(f *service.FrontendPlan) {
			f.Sources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		}, ""},
		"external":  {func(f *service.FrontendPlan) { f.External = true }, ""},
		"node port": {func(f *service.FrontendPlan) { f.Frontend.Addr = netip.IPv4Unspecified() }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig()
			p := plan(vip, tc.change, backend)
			if err := r.Sync(t.Context(), map[model.Name]service.Plan{web: p}); err != nil {
				t.Fatal(err)
			}
			r.want(t, tc.served)
		})
	}
}

// A Service that gets source ranges leaves the maps before the rules restrict it, and comes back after they do not.
func TestServicesAreClosedInTheMapsFirst(t *testing.T) {
	r := newRig()
	open := plan(vip, nil, "10.244.1.2:8080")
	closed := plan(vip, func(f *service.FrontendPlan) {
		f.Sources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	}, "10.244.1.2:8080")
	if err := r.Sync(t.Context(), map[model.Name]service.Plan{web: open}); err != nil {
		t.Fatal(err)
	}
	var inMaps []bool
	r.rules.Fail = func(nft.Batch) error {
		inMaps = append(inMaps, len(r.maps.Have) > 0)
		return nil
	}
	for _, p := range []service.Plan{closed, open} {
		if err := r.Apply(t.Context(), map[model.Name]service.Plan{web: p}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Apply(t.Context(), nil, []model.Name{web}); err != nil {
		t.Fatal(err)
	}
	if len(inMaps) < 3 || slices.Contains(inMaps, true) {
		t.Errorf("in the maps while the rules changed: %v", inMaps)
	}
	r.want(t, "")
}

// At a start the maps are adopted: what is right stays untouched, what differs is replaced, what is stale goes before
// the rules are written.
func TestAStartAdoptsTheMaps(t *testing.T) {
	r := newRig()
	all := map[model.Name]service.Plan{web: plan(vip, nil, "10.244.1.2:8080"),
		other: plan("10.96.0.2:80", nil, "10.244.1.3:8080")}
	if err := r.Sync(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	next := New(nftables.New(r.rules, &conntrack.Fake{}), r.maps, nil)
	r.maps.Log = nil
	stale := sockets.Frontend{Key: sockets.Key{At: netip.MustParseAddrPort("10.96.0.3:80"), Protocol: model.TCP},
		Backends: []netip.AddrPort{netip.MustParseAddrPort("10.244.1.9:80")}}
	r.maps.Have[stale.Key] = stale
	all[other] = plan("10.96.0.2:80", nil, "10.244.1.4:8080")
	if err := next.Sync(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	want := []string{"delete TCP 10.96.0.3:80", "set TCP 10.96.0.2:80 → 10.244.1.4:8080"}
	if !slices.Equal(r.maps.Log, want) {
		t.Errorf("written: %q, want %q", r.maps.Log, want)
	}
}

// A Service waits in the maps as in nftables for what another one releases.
func TestTheMapsFollowTheOwners(t *testing.T) {
	r := newRig()
	mine, theirs := plan(vip, nil, "10.244.1.2:8080"), plan(vip, nil, "10.244.1.3:8080")
	if err := r.Sync(t.Context(), map[model.Name]service.Plan{web: mine}); err != nil {
		t.Fatal(err)
	}
	var failed reconcile.KeyErrors[model.Name]
	if err := r.Apply(t.Context(), map[model.Name]service.Plan{other: theirs}, nil); !errors.As(err, &failed) {
		t.Fatalf("the error is %v", err)
	}
	r.want(t, "TCP 10.96.0.1:80 → 10.244.1.2:8080")
	if err := r.Apply(t.Context(), nil, []model.Name{web}); err != nil {
		t.Fatal(err)
	}
	r.want(t, "TCP 10.96.0.1:80 → 10.244.1.3:8080")
}

// A frontend that a full map has no room for is served by nftables, and is no error. Another refusal is one of its
// Service, and what the maps had of it before goes: it may lead to endpoints that are gone.
func TestARefusedFrontendIsLeftToNftables(t *testing.T) {
	r := newRig()
	for _, fault := range []error{sockets.ErrFull, errors.New("no memory")} {
		first := map[model.Name]service.Plan{web: plan(vip, nil, "10.244.1.2:8080")}
		if err := r.Sync(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		r.maps.Fail = func(sockets.Frontend) error { return fault }
		err := r.Apply(t.Context(), map[model.Name]service.Plan{web: plan(vip, nil, "10.244.1.3:8080")}, nil)
		var failed reconcile.KeyErrors[model.Name]
		if is := errors.As(err, &failed); is == errors.Is(fault, sockets.ErrFull) || is && failed[web] == nil {
			t.Errorf("%v: the error is %v", fault, err)
		}
		r.want(t, "")
		r.maps.Fail = nil
		next := map[model.Name]service.Plan{web: plan(vip, nil, "10.244.1.3:8080")}
		if err := r.Apply(t.Context(), next, nil); err != nil {
			t.Fatal(err)
		}
		r.want(t, "TCP 10.96.0.1:80 → 10.244.1.3:8080")
	}
}

// Services that are to be bypassed are never in the maps.
func TestBypassedServicesAreNotInTheMaps(t *testing.T) {
	maps := sockets.NewFake()
	m := New(nftables.New(nft.NewFake(), &conntrack.Fake{}), maps, func(k model.Name) bool { return k == web })
	if err := m.Sync(t.Context(), map[model.Name]service.Plan{web: plan(vip, nil, "10.244.1.2:8080"),
		other: plan("10.96.0.2:80", nil, "10.244.1.3:8080")}); err != nil {
		t.Fatal(err)
	}
	if text := maps.Text(); strings.Contains(text, vip) || !strings.Contains(text, "10.96.0.2:80") {
		t.Errorf("the maps have %q", text)
	}
}
