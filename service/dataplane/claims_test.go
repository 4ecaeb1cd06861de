package dataplane

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/kernel/bpf/sockets"
	"wayleave.dev/kernel/conntrack"
	kernelipt "wayleave.dev/kernel/iptables"
	kernelipvs "wayleave.dev/kernel/ipvs"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
	"wayleave.dev/service/ebpf"
	"wayleave.dev/service/iptables"
	"wayleave.dev/service/ipvs"
	"wayleave.dev/service/nftables"
)

// rig is a mode on a kernel in memory, whose state can be told as text.
type rig struct {
	mode  service.Mode
	state func() string
	// refuse has the kernel refuse what is of the address; nil: nothing.
	refuse func(netip.Addr)
	// count is how much was written, in the mode's own unit.
	count func() int
}

func rigs() map[string]func() rig {
	return map[string]func() rig{
		"nftables": func() rig {
			f := nft.NewFake()
			refuse := func(a netip.Addr) { f.Fail = refuseElements(a) }
			return rig{nftables.New(f, &conntrack.Fake{}), func() string { return tables(f, nftables.TableName) },
				refuse, func() int { return f.Commits }}
		},
		"ebpf": func() rig {
			f, programs := nft.NewFake(), sockets.NewFake()
			refuse := func(a netip.Addr) {
				programs.Fail = func(e sockets.Frontend) error {
					if a == e.At.Addr() {
						return errRefused
					}
					return nil
				}
			}
			return rig{ebpf.New(nftables.New(f, &conntrack.Fake{}), programs, nil),
				func() string { return programs.Text() + tables(f, nftables.TableName) }, refuse,
				func() int { return programs.Sets }}
		},
		"ebpf, refused by nftables": func() rig {
			f, programs := nft.NewFake(), sockets.NewFake()
			return rig{ebpf.New(nftables.New(f, &conntrack.Fake{}), programs, nil),
				func() string { return programs.Text() + tables(f, nftables.TableName) },
				func(a netip.Addr) { f.Fail = refuseElements(a) }, func() int { return f.Commits }}
		},
		"iptables": func() rig {
			f := kernelipt.NewFake()
			refuse := func(a netip.Addr) {
				f.Fail = func(_ kernelipt.Family, text string) error {
					if a.IsValid() && strings.Contains(text, a.String()+"/32 ") {
						return errRefused
					}
					return nil
				}
			}
			return rig{iptables.New(f, &conntrack.Fake{}), func() string { return chains(f) }, refuse, func() int {
				return strings.Count(strings.Join(f.Texts, ""), "\n:")
			}}
		},
		"ipvs": func() rig {
			f, around := kernelipvs.NewFake(netip.MustParseAddr("192.0.2.11")), nft.NewFake()
			m := ipvs.New(f, nftables.NewIPVSCompanion(around, &conntrack.Fake{}, nil), &conntrack.Fake{},
				ipvs.Options{Scheduler: "dh"})
			refuse := func(a netip.Addr) {
				f.Fail = func(s kernelipvs.Server) error {
					if a == s.Addr {
						return errRefused
					}
					return nil
				}
			}
			return rig{m, func() string { return servers(f) + tables(around, nftables.CompanionTableName) }, refuse,
				func() int { return f.Sets }}
		},
	}
}

var errRefused = errors.New("the kernel takes it not")

func refuseElements(a netip.Addr) func(nft.Batch) error {
	return func(b nft.Batch) error {
		for _, list := range b.Add {
			if a.IsValid() && slices.ContainsFunc(list, func(e nft.Element) bool {
				return strings.HasPrefix(e.Key,
					nft.Pack(a))
			}) {
				return errRefused
			}
		}
		return nil
	}
}

func tables(f *nft.Fake, name string) string {
	var lines []string
	for _, family := range nft.Families() {
		st, _ := f.Read(context.Background(), nft.Table{Family: family, Name: name})
		for set, list := range st.Elements {
			for _, e := range list {
				lines = append(lines, fmt.Sprintf("%s %s %x %x %x", family, set, e.Key, e.End, e.Data))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func chains(f *kernelipt.Fake) string {
	var lines []string
	for _, family := range kernelipt.Families() {
		for _, table := range []string{"nat", "filter"} {
			t, _ := f.Read(context.Background(), family, table)
			for chain, rules := range t {
				lines = append(lines, fmt.Sprintf("%s %s %s %s", family, table, chain, strings.Join(rules, " | ")))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func servers(f *kernelipvs.Fake) string {
	list, _ := f.Servers(context.Background())
	var lines []string
	for _, s := range list {
		back, _ := f.Backends(context.Background(), s.Key)
		lines = append(lines, fmt.Sprint(s, back))
	}
	on, _, _ := f.Addresses(context.Background(), ipvs.Link)
	slices.Sort(lines)
	return strings.Join(lines, "\n") + fmt.Sprint(on) + "\n"
}

// change puts or removes a Service that claims a few addresses and ports, of a few ages.
func change(r *rand.Rand, w *model.Writer) {
	n := r.IntN(8)
	name := model.Name{Namespace: fmt.Sprintf("ns%d", n%3), Name: fmt.Sprintf("s%d", n)}
	if r.IntN(6) == 0 {
		w.Delete(model.ServiceKind, name)
		return
	}
	s := &model.Service{Name: name, Created: time.Date(2026, 1, 1, 0, r.IntN(3), 0, 0, time.UTC),
		Type:       model.LoadBalancer,
		ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 1, byte(r.IntN(12))})}}
	for range r.IntN(3) {
		s.ExternalIPs = append(s.ExternalIPs, netip.AddrFrom4([4]byte{203, 0, 113, byte(r.IntN(4))}))
		s.LoadBalancerIPs = append(s.LoadBalancerIPs, netip.AddrFrom4([4]byte{203, 0, 113, byte(r.IntN(4))}))
	}
	if r.IntN(8) == 0 {
		s.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(r.IntN(4))})}
	}
	s.Ports = []model.ServicePort{{Protocol: model.TCP, Port: uint16(80 + r.IntN(2)),
		NodePort: uint16(30000 + r.IntN(3))}}
	w.PutService(s)
	w.PutEndpointSlice(&model.EndpointSlice{Name: name, Service: name.Name,
		Ports:     []model.EndpointPort{{Protocol: model.TCP, Port: 8080}},
		Endpoints: []model.Endpoint{{Addr: netip.AddrFrom4([4]byte{10, 244, 1, byte(n)}), Ready: true, Serving: true}}})
}

// What the kernel has follows from the objects alone: after any changes it is, in every
// mode, what a node has that starts now.
func TestEveryModeHasTheSameOwnersAfterChangesAndAtAStart(t *testing.T) {
	const runs, steps = 6, 25
	for name, build := range rigs() {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(runs) {
				follow(t, build, rand.New(rand.NewPCG(seed, 14)), steps)
			}
		})
	}
}

func follow(t *testing.T, build func() rig, r *rand.Rand, steps int) {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	watcher, err := store.Watch(service.Kinds)
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	options := func(model.Name) service.Options { return service.Options{Node: "n1"} }
	planner, long := &service.Planner{Options: options}, build()
	local := service.NodeFacts{NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.11")}}
	long.mode.SetNodeFacts(local)
	if err := long.mode.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for step := range steps {
		if err := store.Write(func(w *model.Writer) {
			for range 1 + r.IntN(3) {
				change(r, w)
			}
		}); err != nil {
			t.Fatal(err)
		}
		snap, changes, _ := watcher.Poll()
		set, del := map[model.Name]service.Plan{}, []model.Name{}
		for _, k := range planner.Keys(snap, changes) {
			if p, ok, _ := planner.Plan(snap, k); ok {
				set[k] = p
			} else {
				del = append(del, k)
			}
		}
		if err := long.mode.Apply(t.Context(), set, del); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		fresh, all := build(), map[model.Name]service.Plan{}
		fresh.mode.SetNodeFacts(local)
		for s := range snap.Services() {
			if p, ok, _ := service.MakeWith(snap, s.Name, options(s.Name)); ok {
				all[s.Name] = p
			}
		}
		if err := fresh.mode.Sync(t.Context(), all); err != nil {
			t.Fatal(err)
		}
		if a, b := long.state(), fresh.state(); a != b {
			t.Fatalf("step %d: after changes\n%s\nat a start\n%s", step, a, b)
		}
	}
}

// A Service that the kernel refuses is named alone, in every mode: what others change is
// written at once, costs what changed, and is all there; and when the kernel takes it, it
// is as if it had always.
func TestOneRefusedServiceStaysOneInEveryMode(t *testing.T) {
	const n = 60
	simple := func(i, backend int) service.Plan {
		vip := netip.AddrFrom4([4]byte{10, 96, 2, byte(i)})
		return service.Plan{VIPs: []netip.Addr{vip},
			Frontends: []service.FrontendPlan{{Frontend: service.Frontend{Addr: vip, Protocol: model.TCP, Port: 80},
				Slots: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 1, byte(backend)}), 80)}}}}
	}
	name := func(i int) model.Name { return model.Name{Namespace: "ns", Name: fmt.Sprintf("s%02d", i)} }
	bad, vip := name(13), netip.AddrFrom4([4]byte{10, 96, 2, 13})
	named := func(t *testing.T, err error) {
		t.Helper()
		var keys reconcile.KeyErrors[model.Name]
		if !errors.As(err, &keys) || len(keys) != 1 || !errors.Is(keys[bad], errRefused) {
			t.Fatalf("the error is %v", err)
		}
	}
	for mode, build := range rigs() {
		t.Run(mode, func(t *testing.T) {
			r, all := build(), map[model.Name]service.Plan{}
			for i := range n {
				all[name(i)] = simple(i, i)
			}
			r.refuse(vip)
			named(t, r.mode.Sync(t.Context(), all))
			for round := range 5 {
				before := r.count()
				all[name(20)] = simple(20, 100+round)
				if err := r.mode.Apply(t.Context(), map[model.Name]service.Plan{name(20): all[name(20)]},
					nil); err != nil {
					t.Fatal(err)
				}
				if c := r.count() - before; c == 0 || c > 8 {
					t.Errorf("one change wrote %d things", c)
				}
				named(t, r.mode.Apply(t.Context(), map[model.Name]service.Plan{bad: all[bad]}, nil)) // its retry
				all[name(21)], all[bad] = simple(21, 100+round), simple(13, 200+round)
				named(t, r.mode.Apply(t.Context(), map[model.Name]service.Plan{name(21): all[name(21)],
					bad: all[bad]}, nil))
			}
			r.refuse(netip.Addr{})
			if err := r.mode.Apply(t.Context(), map[model.Name]service.Plan{bad: all[bad]}, nil); err != nil {
				t.Fatal(err)
			}
			fresh := build()
			if err := fresh.mode.Sync(t.Context(), all); err != nil {
				t.Fatal(err)
			}
			if a, b := r.state(), fresh.state(); a != b {
				t.Errorf("in the end\n%s\nwant\n%s", a, b)
			}
		})
	}
}
