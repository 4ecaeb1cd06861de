package nftables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/nft/program/programtest"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
)

func name(i int) model.Name { return model.Name{Namespace: "default", Name: fmt.Sprintf("s%05d", i)} }

func addr4(block byte, i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, block, byte(i >> 8), byte(i)})
}

func addr6(block byte, i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, block, 14: byte(i >> 8), 15: byte(i)})
}

// plan is that of the i-th service: UDP and TCP on its VIPs and on a node port, with
// these backends, of which even ones are on this node.
func plan(i int, backends ...int) service.Plan {
	p := service.Plan{VIPs: []netip.Addr{addr4(96, i), addr6(96, i)}}
	for _, v := range []struct {
		vip, any netip.Addr
		pod      func(byte, int) netip.Addr
	}{{addr4(96, i), netip.IPv4Unspecified(), addr4}, {addr6(96, i), netip.IPv6Unspecified(), addr6}} {
		var slots []netip.AddrPort
		for _, b := range backends {
			slots = append(slots, netip.AddrPortFrom(v.pod(244, b), 8080))
			if b%2 == 0 {
				p.Hairpin = append(p.Hairpin, v.pod(244, b))
			}
		}
		for _, proto := range []model.Protocol{model.TCP, model.UDP} {
			p.Frontends = append(p.Frontends, service.FrontendPlan{Frontend: service.Frontend{Addr: v.vip,
				Protocol: proto,
				Port:     80}, Slots: slots},
				service.FrontendPlan{Frontend: service.Frontend{Addr: v.any, Protocol: proto, Port: uint16(30000 + i)},
					Slots: slots})
		}
	}
	slices.SortFunc(p.Frontends, func(a, b service.FrontendPlan) int { return a.Frontend.Compare(b.Frontend) })
	return p
}

func local() service.NodeFacts {
	return service.NodeFacts{NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"),
		netip.MustParseAddr("2001:db8::1")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fdf4::/16")}}
}

func start(f *nft.Fake) (*Mode, *conntrack.Fake) {
	track := &conntrack.Fake{}
	m := New(f, track)
	m.SetNodeFacts(local())
	return m, track
}

func dump(f *nft.Fake) string {
	var lines []string
	for _, fam := range nft.Families() {
		lines = append(lines, f.Dump(layout{name: TableName}.table(fam))...)
	}
	return strings.Join(lines, "\n")
}

// fresh is what the kernel must hold for these plans.
func fresh(t *testing.T, plans map[model.Name]service.Plan) string {
	t.Helper()
	f := nft.NewFake()
	m, _ := start(f)
	if err := m.Sync(t.Context(), plans); err != nil {
		t.Fatal(err)
	}
	return dump(f)
}

func holds(t *testing.T, f *nft.Fake, plans map[model.Name]service.Plan) {
	t.Helper()
	if got, want := dump(f), fresh(t, plans); got != want {
		t.Fatalf("the kernel holds\n%s\nand should hold\n%s", got, want)
	}
}

// size counts the elements that a batch changes, but for those of the node.
func size(b nft.Batch) int {
	n := 0
	for _, bySet := range []map[string][]nft.Element{b.Delete, b.Add} {
		for set, list := range bySet {
			if !slices.Contains(factNames(), set) {
				n += len(list)
			}
		}
	}
	return n
}

func some(n int) map[model.Name]service.Plan {
	plans := map[model.Name]service.Plan{}
	for i := range n {
		plans[name(i)] = plan(i, i, i+1, i+2)
	}
	return plans
}

func TestAChangeCostsWhatChanged(t *testing.T) {
	f := nft.NewFake()
	m, _ := start(f)
	plans := some(50)
	if err := m.Sync(t.Context(), plans); err != nil {
		t.Fatal(err)
	}
	n := 0
	f.Fail = func(b nft.Batch) error {
		if n += size(b); b.Base || len(b.Chains) > 0 {
			t.Error("a changed endpoint changes rules")
		}
		return nil
	}
	plans[name(7)] = plan(7, 7, 8, 100) // one backend of three is another
	if err := m.Apply(t.Context(), map[model.Name]service.Plan{name(7): plans[name(7)]}, nil); err != nil {
		t.Fatal(err)
	}
	// A slot goes and one comes, of two frontends, protocols and families; and the
	// new endpoint is one of this node.
	if want := 2*2*2*2 + 2; n != want {
		t.Errorf("%d elements were changed, want %d", n, want)
	}
	holds(t, f, plans)
}

func TestARestartAdopts(t *testing.T) {
	f := nft.NewFake()
	m, _ := start(f)
	plans := some(50)
	if err := m.Sync(t.Context(), plans); err != nil {
		t.Fatal(err)
	}
	f.Fail = func(b nft.Batch) error {
		if n := size(b); n > 0 || b.Recreate || len(b.DropChains) > 0 {
			t.Errorf("%d elements were changed by a restart: %+v", n, b)
		}
		return nil
	}
	m, track := start(f)
	if err := m.Sync(t.Context(), plans); err != nil {
		t.Fatal(err)
	}
	if len(track.Flows)+len(track.Untranslated) > 0 {
		t.Errorf("live flows were removed: %v %v", track.Flows, track.Untranslated)
	}
	f.Fail = nil
	// The books are right as well: changes after the restart fit.
	delete(plans, name(3))
	plans[name(4)] = plan(4)
	if err := m.Apply(t.Context(), map[model.Name]service.Plan{name(4): plans[name(4)]},
		[]model.Name{name(3)}); err != nil {
		t.Fatal(err)
	}
	holds(t, f, plans)
}

// While the agent was away, endpoints went: their UDP flows are removed at start.
func TestARestartRepairsAndFlushes(t *testing.T) {
	f := nft.NewFake()
	m, _ := start(f)
	if err := m.Sync(t.Context(), map[model.Name]service.Plan{name(1): plan(1, 1, 2),
		name(2): plan(2, 3)}); err != nil {
		t.Fatal(err)
	}
	m, track := start(f)
	plans := map[model.Name]service.Plan{name(1): plan(1, 2)}
	if err := m.Sync(t.Context(), plans); err != nil {
		t.Fatal(err)
	}
	holds(t, f, plans)
	gone := conntrack.Flow{Dst: netip.AddrPortFrom(addr4(96, 1), 80), Backend: netip.AddrPortFrom(addr4(244, 1), 8080)}
	stays := conntrack.Flow{Dst: gone.Dst, Backend: netip.AddrPortFrom(addr4(244, 2), 8080)}
	removed := conntrack.Flow{Dst: netip.AddrPortFrom(netip.IPv6Unspecified(), 30002),
		Backend: netip.AddrPortFrom(addr6(244, 3), 8080)}
	if !slices.Contains(track.Flows, gone) || slices.Contains(track.Flows, stays) ||
		!slices.Contains(track.Flows, removed) {
		t.Errorf("flows removed: %v", track.Flows)
	}
}

func TestOneBadServiceStopsNoOther(t *testing.T) {
	bad := nft.Pack(addr4(96, 13))
	refuse := func(b nft.Batch) error {
		for _, e := range b.Add[setVIPs] {
			if e.Key == bad {
				return unix.EINVAL
			}
		}
		return nil
	}
	plans := some(40)
	others := maps.Clone(plans)
	delete(others, name(13))
	for what, do := range map[string]func(context.Context, *Mode) error{
		"apply": func(ctx context.Context, m *Mode) error { return m.Apply(ctx, plans, nil) },
		"sync":  func(ctx context.Context, m *Mode) error { return m.Sync(ctx, plans) },
	} {
		t.Run(what, func(t *testing.T) {
			f := nft.NewFake()
			m, _ := start(f)
			if err := m.Sync(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			f.Fail = refuse
			var failed reconcile.KeyErrors[model.Name]
			if err := do(t.Context(), m); !errors.As(err, &failed) || len(failed) != 1 || !errors.Is(failed[name(13)],
				unix.EINVAL) {
				t.Fatalf("error is %v", err)
			}
			holds(t, f, others)
			// The bad key fails again, alone, and does no harm.
			one := map[model.Name]service.Plan{name(13): plans[name(13)]}
			if err := m.Apply(t.Context(), one, nil); !errors.As(err, &failed) {
				t.Errorf("error is %v", err)
			}
			holds(t, f, others)
			f.Fail = nil
			if err := m.Apply(t.Context(), one, nil); err != nil {
				t.Fatal(err)
			}
			holds(t, f, plans)
		})
	}
}

// When nothing goes, it is no fault of a key.
func TestAFaultOfTheNodeIsNotOneOfKeys(t *testing.T) {
	for _, fault := range []error{unix.ENOENT, unix.EPERM, unix.EINVAL} {
		f := nft.NewFake()
		m, _ := start(f)
		if err := m.Sync(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		f.Fail = func(nft.Batch) error { return fault }
		var failed reconcile.KeyErrors[model.Name]
		if err := m.Apply(t.Context(), some(100), nil); err == nil || errors.As(err, &failed) ||
			!errors.Is(err, fault) {
			t.Errorf("%v: error is %v", fault, err)
		}
		f.Fail = nil
		if err := m.Sync(t.Context(), some(100)); err != nil {
			t.Fatal(err)
		}
		holds(t, f, some(100))
	}
}

func TestTwoServicesWantOneNodePort(t *testing.T) {
	f := nft.NewFake()
	m, _ := start(f)
	first, second := plan(1, 1), plan(2, 2)
	for i, e := range second.Frontends {
		if e.Frontend.IsNodePort() {
			second.Frontends[i].Frontend.Port = 30001
		}
	}
	if err := m.Sync(t.Context(), map[model.Name]service.Plan{name(2): second}); err != nil {
		t.Fatal(err)
	}
	var failed reconcile.KeyErrors[model.Name]
	err := m.Apply(t.Context(), map[model.Name]service.Plan{name(1): first}, nil)
	if !errors.As(err, &failed) || len(failed) != 1 || !strings.Contains(failed[name(1)].Error(), "spec.ports") ||
		!strings.Contains(failed[name(1)].Error(), name(2).String()) {
		t.Fatalf("error is %v", err)
	}
	for _, line := range []string{"frontends 10.96.0.1 . tcp . 80 : goto vip-1",
		"node-slots tcp . 30001 . 0 : 10.244.0.2 . 8080"} {
		if !strings.Contains(dump(f), line) {
			t.Errorf("%q is missing in\n%s", line, dump(f))
		}
	}
	// Once the one gives the port up, the other has it, without being asked again.
	second = plan(2, 2)
	if err := m.Apply(t.Context(), map[model.Name]service.Plan{name(2): second}, nil); err != nil {
		t.Fatal(err)
	}
	holds(t, f, map[model.Name]service.Plan{name(1): first, name(2): second})
}

// A frontend moves from one service to another in one change.
func TestAFrontendMoves(t *testing.T) {
	f := nft.NewFake()
	m, track := start(f)
	moved := plan(1, 5)
	if err := m.Sync(t.Context(), map[model.Name]service.Plan{name(1): plan(1, 4)}); err != nil {
		t.Fatal(err)
	}
	track.Untranslated = nil
	if err := m.Apply(t.Context(), map[model.Name]service.Plan{name(0): moved}, []model.Name{name(1)}); err != nil {
		t.Fatal(err)
	}
	holds(t, f, map[model.Name]service.Plan{name(0): moved})
	if len(track.Flows) != 4 || len(track.Untranslated) != 0 {
		t.Errorf("flows removed: %v, untranslated %v", track.Flows, track.Untranslated)
	}
}

func TestAFailedFlushIsTriedAgain(t *testing.T) {
	f := nft.NewFake()
	m, track := start(f)
	plans := map[model.Name]service.Plan{name(1): plan(1, 1)}
	if err := m.Sync(t.Context(), plans); err != nil {
		t.Fatal(err)
	}
	track.Err = errors.New("no luck")
	plans[name(1)] = plan(1, 2)
	if err := m.Apply(t.Context(), plans, nil); !errors.Is(err, track.Err) {
		t.Fatalf("error is %v", err)
	}
	holds(t, f, plans)
	track.Err, track.Flows = nil, nil
	if err := m.Sync(t.Context(), plans); err != nil {
		t.Fatal(err)
	}
	if len(track.Flows) != 4 {
		t.Errorf("flows removed: %v", track.Flows)
	}
}

func TestTheNodesFactsChangeLive(t *testing.T) {
	f := nft.NewFake()
	m, _ := start(f)
	if err := (service.NodeFactsTarget{Mode: m}).Sync(t.Context(),
		map[string]service.NodeFacts{"node1": {}}); err != nil || f.Commits != 0 {
		t.Fatalf("before the first Sync: %v, %d commits", err, f.Commits)
	}
	if err := m.Sync(t.Context(), some(2)); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(dump(f), "192.0.2.1") {
		t.Fatal("the facts were not replaced")
	}
	if err := (service.NodeFactsTarget{Mode: m}).Apply(t.Context(), map[string]service.NodeFacts{"node1": local()},
		nil); err != nil {
		t.Fatal(err)
	}
	holds(t, f, some(2))
}

// Whatever happens in whatever order, what the kernel holds in the end is what a
// fresh start would have made.
func TestAnyHistoryEndsTheSame(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		f := nft.NewFake()
		m, _ := start(f)
		plans := map[model.Name]service.Plan{}
		for step := range 25 {
			set, del := map[model.Name]service.Plan{}, []model.Name{}
			for range r.IntN(4) {
				i := r.IntN(8)
				if delete(set, name(i)); r.IntN(3) == 0 {
					del = append(del, name(i))
					delete(plans, name(i))
					continue
				}
				del = slices.DeleteFunc(del, func(n model.Name) bool { return n == name(i) })
				set[name(i)] = plan(i, r.Perm(6)[:r.IntN(4)]...)
				plans[name(i)] = set[name(i)]
			}
			f.Fail = nil
			whole := false
			switch r.IntN(6) {
			case 0: // the agent is killed
				m, _ = start(f)
				whole = true
			case 1: // somebody flushes everything
				f.Flush()
				whole = true
			case 2: // the kernel refuses some transactions
				left := r.IntN(5)
				f.Fail = func(nft.Batch) error {
					if left--; left >= 0 {
						return []error{unix.EINVAL, unix.ENOENT, unix.ENOMEM}[r.IntN(3)]
					}
					return nil
				}
			}
			var err error
			if whole {
				err = m.Sync(t.Context(), plans)
			} else {
				err = m.Apply(t.Context(), set, del)
			}
			f.Fail = nil
			var failed reconcile.KeyErrors[model.Name]
			switch { // what the loop does
			case errors.As(err, &failed):
				again, gone := map[model.Name]service.Plan{}, []model.Name{}
				for k := range failed {
					if p, ok := plans[k]; ok {
						again[k] = p
					} else {
						gone = append(gone, k)
					}
				}
				err = m.Apply(t.Context(), again, gone)
			case err != nil:
				err = m.Sync(t.Context(), plans)
			}
			if err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			holds(t, f, plans)
		}
	}
}

// factNames are the sets that each Sync replaces.
func factNames() []string { return []string{setNodeIPs, setPodCIDRs, setOwnCIDRs} }

// A crash at any moment, a flush, a refusal: see package programtest.
func TestRecoversFromAnyFault(t *testing.T) {
	t.Parallel()
	programtest.Run(t, programtest.Feature[model.Name, service.Plan]{Table: layout{name: TableName}.table,
		Equal: service.Equal,
		Start: func(c nft.Conn) reconcile.Target[model.Name, service.Plan] {
			m := New(c, &conntrack.Fake{})
			m.SetNodeFacts(local())
			return m
		},
		Draw: func(r *rand.Rand) map[model.Name]service.Plan {
			plans := map[model.Name]service.Plan{}
			for i := range 8 {
				if r.IntN(3) > 0 {
					plans[name(i)] = varied(r, plan(i, r.Perm(6)[:r.IntN(4)]...))
				}
			}
			return plans
		}})
}

// varied gives the frontends of a plan what Services may ask for.
func varied(r *rand.Rand, p service.Plan) service.Plan {
	affinity := []time.Duration{0, 0, time.Hour, time.Minute}[r.IntN(4)]
	for i := range p.Frontends {
		e := &p.Frontends[i]
		e.Affinity, e.External, e.Drop = affinity, r.IntN(2) == 0, r.IntN(4) == 0
		if e.Split = e.External && r.IntN(2) == 0; e.Split {
			e.Outside = e.Slots[:r.IntN(len(e.Slots)+1)]
		}
		if a := e.Frontend.Addr; !e.Frontend.IsNodePort() && r.IntN(3) == 0 {
			e.Sources = []netip.Prefix{netip.PrefixFrom(a, 8+r.IntN(16)).Masked()}
		}
	}
	return p
}
