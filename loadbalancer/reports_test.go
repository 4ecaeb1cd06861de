package loadbalancer

import (
	"strings"
	"testing"

	"wayleave.dev/model"
)

// Inputs of public reports about MetalLB, written anew; docs/field-reports.md lists them.
func TestReportsOfMetalLB(t *testing.T) {
	udp := func(s *model.Service) { s.Ports[0].Protocol = model.UDP }
	lan, six := aPool("lan", "192.0.2.1-192.0.2.9"), aPool("six", "2001:db8::1-2001:db8::9")
	both := aPool("both", "198.51.100.1-198.51.100.9", "2001:db8:1::1-2001:db8:1::9")
	for _, tc := range []struct {
		name    string
		pools   []*model.AddressPool
		there   []*model.Service
		ask     *model.Service
		want    string
		problem string
	}{
		{"#2724 a pool of two families, a Service of one", []*model.AddressPool{both}, nil, aService("x"),
			"198.51.100.1", ""},
		{"#1339 and #2482 PreferDualStack, a pool of one family", []*model.AddressPool{lan}, nil,
			aService("x", dual(model.PreferDualStack), fromPool("lan")), "192.0.2.1", ""},
		{"#1156 PreferDualStack, a pool for each family", []*model.AddressPool{lan, six}, nil,
			aService("x", dual(model.PreferDualStack)), "192.0.2.1 2001:db8::1", ""},
		{"pihole-kubernetes#228 one address of two families asked for", []*model.AddressPool{lan}, nil,
			aService("x", dual(model.PreferDualStack), wants("192.0.2.5")), "192.0.2.5", ""},
		{"#1557 two addresses of two pools asked for", []*model.AddressPool{lan, six}, nil,
			aService("x", dual(model.PreferDualStack), wants("192.0.2.5", "2001:db8::5")), "192.0.2.5 2001:db8::5", ""},
		{"#788 TCP and UDP share an address", []*model.AddressPool{lan}, []*model.Service{aService("a",
			shares("pihole", 53), udp)}, aService("x", shares("pihole", 53)), "192.0.2.1", ""},
		{"#801 and #1499 shared with externalTrafficPolicy Local and other pods", []*model.AddressPool{lan},
			[]*model.Service{aService("a", shares("k", 80), local("app=nginx"), wants("192.0.2.1"))},
			aService("x", shares("k", 83), local("app=nginx2"), wants("192.0.2.1")), "",
			"must have the same selector"},
		{"#801 and #1499 … and the same pods", []*model.AddressPool{lan},
			[]*model.Service{aService("a", shares("k", 80), local("app=nginx"), wants("192.0.2.1"))},
			aService("x", shares("k", 83), local("app=nginx"), wants("192.0.2.1")), "192.0.2.1", ""},
		{"#245 and #2092 one address by request, without a key", []*model.AddressPool{lan},
			[]*model.Service{aService("a", wants("192.0.2.1"))}, aService("x", shares("", 443), wants("192.0.2.1")), "",
			"in use by default/a"},
		{"#2403 a sharing Service asks for another address", []*model.AddressPool{lan},
			[]*model.Service{aService("a", shares("k", 80), udp, given("192.0.2.1"))},
			aService("x", shares("k", 80), given("192.0.2.1"), wants("192.0.2.4")), "192.0.2.4", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := allocator(tc.pools...)
			for _, s := range tc.there {
				settle(a, s)
			}
			d := settle(a, tc.ask)
			if got := text(d.Addrs); got != tc.want {
				t.Errorf("got %q, want %q: %v", got, tc.want, d.Problems)
			}
			if (tc.problem == "") != (len(d.Problems) == 0) || tc.problem != "" &&
				!strings.Contains(d.Problems[0].Error(), tc.problem) {
				t.Errorf("problems are %v, want %q", d.Problems, tc.problem)
			}
		})
	}
}

// Where every node has the label that excludes nodes from load balancers, as kubeadm gives it to control planes, it
// excludes none (metallb#2274, #2285, #2505).
func TestReportsOfExcludedNodes(t *testing.T) {
	store := storeWith(t, func(w *model.Writer) {
		w.PutService(served(aService("x"), "192.0.2.1"))
		w.PutNode(&model.Node{Name: "a", Excluded: true})
		w.PutNode(&model.Node{Name: "b", Excluded: true})
	})
	plan, ok, problems := Plan(true)(store.Snapshot(), aService("x").Name)
	if !ok || len(problems) > 0 || show(plan.VIPs) != "192.0.2.1 [] [a b c]" {
		t.Errorf("all are excluded: %s, %v", show(plan.VIPs), problems)
	}
	if err := store.Write(func(w *model.Writer) { w.PutNode(&model.Node{Name: "d"}) }); err != nil {
		t.Fatal(err)
	}
	if plan, _, _ := Plan(true)(store.Snapshot(), aService("x").Name); show(plan.VIPs) != "192.0.2.1 [] [d]" {
		t.Errorf("one is not excluded: %s", show(plan.VIPs))
	}
}
