package loadbalancer

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/model"
)

// storeWith holds three nodes; c is excluded, gone is being deleted.
func storeWith(t *testing.T, more func(*model.Writer)) *model.Store {
	t.Helper()
	s, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	err = s.Write(func(w *model.Writer) {
		w.PutNode(&model.Node{Name: "a", Labels: map[string]string{"rack": "1"}})
		w.PutNode(&model.Node{Name: "b", Labels: map[string]string{"rack": "2"}})
		w.PutNode(&model.Node{Name: "c", Excluded: true})
		w.PutNode(&model.Node{Name: "gone", Leaving: true})
		w.PutAddressPool(aPool("lan", "192.0.2.1-192.0.2.9"))
		w.PutAddressPool(func() *model.AddressPool {
			p := aPool("rack", "198.51.100.1-198.51.100.9")
			p.L2 = model.L2{Enabled: true, Interfaces: []string{"eth*"},
				Nodes: model.Selector{Requirements: []model.Requirement{{Key: "rack", Values: []string{"2"}}}}}
			return p
		}())
		w.PutAddressPool(func() *model.AddressPool {
			p := aPool("quiet", "203.0.113.1")
			p.L2.Enabled = false
			return p
		}())
		more(w)
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// served has the addresses in its status, as source would read it.
func served(s *model.Service, list ...string) *model.Service {
	s.LoadBalancer.Given, s.LoadBalancerIPs = addrs(list...), addrs(list...)
	return s
}

func endpoints(list ...model.Endpoint) *model.EndpointSlice {
	return &model.EndpointSlice{Name: model.Name{Namespace: "default", Name: "x-1"}, Service: "x", Endpoints: list}
}

func TestWhoMayAnswer(t *testing.T) {
	ready := func(node string) model.Endpoint { return model.Endpoint{Node: node, Ready: true, Serving: true} }
	ending := func(node string) model.Endpoint {
		return model.Endpoint{Node: node, Serving: true, Terminating: true}
	}
	for _, tc := range []struct {
		name  string
		svc   *model.Service
		slice *model.EndpointSlice
		want  string
	}{
		{"all but the excluded", served(aService("x"), "192.0.2.1"), endpoints(), "192.0.2.1 [] [a b]"},
		{"of the pool's nodes", served(aService("x"), "198.51.100.1"), endpoints(), "198.51.100.1 [eth*] [b]"},
		{"two addresses, sorted", served(aService("x"), "198.51.100.1", "192.0.2.1"), endpoints(),
			"192.0.2.1 [] [a b], 198.51.100.1 [eth*] [b]"},
		{"l2 is off", served(aService("x"), "203.0.113.1"), endpoints(), ""},
		{"outside of pools", served(aService("x"), "192.0.2.77"), endpoints(), ""},
		{"nothing given", aService("x"), endpoints(), ""},
		{"another class", served(aService("x", func(s *model.Service) { s.LoadBalancer.Class = "other" }), "192.0.2.1"),
			endpoints(), ""},
		{"local", served(aService("x", local("")), "192.0.2.1"), endpoints(ready("b"), ending("a")),
			"192.0.2.1 [] [b]"},
		{"local, only on an excluded node", served(aService("x", local("")), "192.0.2.1"), endpoints(ready("c")),
			"192.0.2.1 [] []"},
		{"local, all of it ends", served(aService("x", local("")), "192.0.2.1"),
			endpoints(ending("a"), model.Endpoint{Node: "b", Terminating: true}), "192.0.2.1 [] [a]"},
		{"local, none", served(aService("x", local("")), "192.0.2.1"), endpoints(model.Endpoint{Node: "a"}),
			"192.0.2.1 [] []"},
		{"local, not ready is published",
			served(aService("x", local(""), func(s *model.Service) { s.PublishNotReady = true }), "192.0.2.1"),
			endpoints(model.Endpoint{Node: "a"}), "192.0.2.1 [] [a]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := storeWith(t, func(w *model.Writer) { w.PutService(tc.svc); w.PutEndpointSlice(tc.slice) })
			got, ok, problems := Plan(true)(store.Snapshot(), tc.svc.Name)
			if show(got.VIPs) != tc.want || ok != (tc.want != "") || len(problems) > 0 {
				t.Errorf("planned %q (%v, %v), want %q", show(got.VIPs), ok, problems, tc.want)
			}
			if again, _, _ := Plan(true)(store.Snapshot(), tc.svc.Name); !Equal(got, again) || ok &&
				Equal(got, Announcement{}) {
				t.Error("compares wrongly")
			}
		})
	}
	store := storeWith(t, func(w *model.Writer) { w.PutService(served(aService("x"), "192.0.2.1")) })
	if _, ok, _ := Plan(false)(store.Snapshot(), aService("x").Name); ok {
		t.Error("a Service without a class is answered for without the default")
	}
}

func TestNobodyMayAnswer(t *testing.T) {
	store := storeWith(t, func(w *model.Writer) {
		w.PutService(served(aService("x"), "198.51.100.1"))
		w.Delete(model.NodeKind, model.Name{Name: "b"})
	})
	if _, _, problems := Plan(true)(store.Snapshot(), aService("x").Name); len(problems) != 1 ||
		!strings.Contains(problems[0].Error(), "AddressPool rack's spec.l2.nodeSelector") {
		t.Errorf("problems are %v", problems)
	}
}

func show(list []VIP) string {
	var out []string
	for _, v := range list {
		out = append(out, fmt.Sprint(v.Addr, " ", v.Interfaces, " ", v.Eligible))
	}
	return strings.Join(out, ", ")
}

// Of overlapping pools the one decides that has the address by the allocator.
func TestThePoolOfAnAddress(t *testing.T) {
	store := storeWith(t, func(w *model.Writer) {
		w.PutService(served(aService("x"), "192.0.2.1"))
		later := aPool("aaa", "192.0.2.0-192.0.2.255")
		later.Created, later.L2.Interfaces = epoch.Add(1), []string{"wrong"}
		w.PutAddressPool(later)
	})
	if got, _, _ := Plan(true)(store.Snapshot(), aService("x").Name); show(got.VIPs) != "192.0.2.1 [] [a b]" {
		t.Errorf("planned %s", show(got.VIPs))
	}
}

func TestKeys(t *testing.T) {
	store := storeWith(t, func(w *model.Writer) {
		w.PutService(served(aService("x"), "192.0.2.1"))
		w.PutService(aService("pending"))
	})
	w, err := store.Watch(Kinds)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	keys := func() []string {
		snap, c, _ := w.Poll()
		var out []string
		for _, k := range Keys(snap, c) {
			out = append(out, k.Name)
		}
		slices.Sort(out)
		return out
	}
	keys()
	for _, tc := range []struct {
		change func(*model.Writer)
		want   []string
	}{
		{func(w *model.Writer) { w.PutService(aService("pending")) }, []string{"pending"}},
		{func(w *model.Writer) { w.PutEndpointSlice(endpoints()) }, []string{"x"}},
		{func(w *model.Writer) { w.PutNode(&model.Node{Name: "a"}) }, []string{"x"}},
		{func(w *model.Writer) { w.Delete(model.AddressPoolKind, model.Name{Name: "lan"}) }, []string{"x"}},
	} {
		if err := store.Write(tc.change); err != nil {
			t.Fatal(err)
		}
		if got := keys(); !slices.Equal(got, tc.want) {
			t.Errorf("keys are %v, want %v", got, tc.want)
		}
	}
}

// One node answers for an address that Services share, and it must be one for all of them.
func TestSharedAddressesHaveOneOwner(t *testing.T) {
	vip := func(a string, nodes ...string) Announcement {
		return Announcement{VIPs: []VIP{{Addr: addr(a), Eligible: nodes}}}
	}
	name := func(s string) model.Name { return model.Name{Name: s} }
	got := Combine(map[model.Name]Announcement{
		name("1"): vip("192.0.2.1", "a", "b", "c"), name("2"): vip("192.0.2.1", "b", "c"),
		name("3"): vip("192.0.2.2", "a"), name("4"): vip("192.0.2.2", "b"),
		name("5"): vip("192.0.2.3"), name("6"): vip("192.0.2.3", "b"),
	})
	if show(got) != "192.0.2.1 [] [b c], 192.0.2.2 [] [a], 192.0.2.3 [] [b]" {
		t.Errorf("combined: %s", show(got))
	}
}
