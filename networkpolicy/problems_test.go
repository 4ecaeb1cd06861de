package networkpolicy

import (
	"net/netip"
	"slices"
	"testing"

	"wayleave.dev/model"
)

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestProblemsOfPolicies(t *testing.T) {
	r := newRig(t, NodeInputs{})
	web := model.Name{Namespace: "a", Name: "web"}
	r.write(func(w *model.Writer) {
		w.PutNamespace(&model.Namespace{Name: "kube-system", Labels: map[string]string{"name": "kube-system"}})
		w.PutNode(&model.Node{Name: "n", PodCIDRs: prefixes("10.0.0.0/24"),
			InternalIPs: []netip.Addr{netip.MustParseAddr("fd00::1")}})
		w.PutPod(&model.Pod{Name: web, Labels: map[string]string{"app": "web"},
			IPs:   []netip.Addr{netip.MustParseAddr("10.0.0.1")},
			Ports: []model.NamedPort{{Name: "http", Protocol: model.TCP, Port: 80}}})
		w.PutPod(&model.Pod{Name: model.Name{Namespace: "a", Name: "host"}, HostNetwork: true,
			Labels: map[string]string{"app": "host"}})
	})
	named := func(proto model.Protocol, name string) []model.PolicyPort {
		return []model.PolicyPort{{Protocol: proto, Name: name}}
	}
	block := func(s string) []model.PolicyPeer { return []model.PolicyPeer{{Block: netip.MustParsePrefix(s)}} }
	system := is("name", "kube-system")
	for _, tc := range []struct {
		name   string
		policy model.NetworkPolicy
		want   []string // fields
	}{
		{"all is well", model.NetworkPolicy{Subject: is("app", "web"), IsolatesIngress: true,
			Ingress: []model.PolicyRule{{AnyPeer: true, Ports: named(model.TCP, "http")}}}, nil},
		{"selects no pod", model.NetworkPolicy{Subject: is("app", "none"), IsolatesIngress: true},
			[]string{"spec.podSelector"}},
		{"selects only pods with hostNetwork", model.NetworkPolicy{Subject: is("app", "host"), IsolatesIngress: true},
			[]string{"spec.podSelector"}},
		{"nobody has the name", model.NetworkPolicy{IsolatesIngress: true,
			Ingress: []model.PolicyRule{{AnyPeer: true, AnyPort: true},
				{AnyPeer: true, Ports: named(model.TCP, "grpc")}}}, []string{"spec.ingress[1].ports"}},
		{"the name is of another protocol", model.NetworkPolicy{IsolatesIngress: true,
			Ingress: []model.PolicyRule{{AnyPeer: true, Ports: named(model.UDP, "http")}}},
			[]string{"spec.ingress[0].ports"}},
		{"a peer has the name", model.NetworkPolicy{IsolatesEgress: true,
			Egress: []model.PolicyRule{{Peers: []model.PolicyPeer{{Pods: is("app", "web")}},
				Ports: named(model.TCP, "http")}}}, nil},
		{"no peer has the name", model.NetworkPolicy{IsolatesEgress: true,
			Egress: []model.PolicyRule{{Peers: []model.PolicyPeer{{Pods: is("app", "db")}},
				Ports: named(model.TCP, "http")}}}, []string{"spec.egress[0].ports"}},
		{"kube-dns has the name", model.NetworkPolicy{IsolatesEgress: true,
			Egress: []model.PolicyRule{{Peers: []model.PolicyPeer{{Namespaces: &system}},
				Ports: named(model.UDP, "dns")}}}, nil},
		{"some pod has the name", model.NetworkPolicy{IsolatesEgress: true,
			Egress: []model.PolicyRule{{AnyPeer: true, Ports: named(model.TCP, "http")}}}, nil},
		{"a name at a block, out", model.NetworkPolicy{IsolatesEgress: true,
			Egress: []model.PolicyRule{{Peers: block("10.0.0.0/8"), Ports: named(model.TCP, "http")}}},
			[]string{"spec.egress[0].ports"}},
		{"a name at a block, in", model.NetworkPolicy{IsolatesIngress: true,
			Ingress: []model.PolicyRule{{Peers: block("10.0.0.0/8"), Ports: named(model.TCP, "http")}}}, nil},
		{"peers that could not be read", model.NetworkPolicy{IsolatesEgress: true,
			Egress: []model.PolicyRule{{Ports: named(model.TCP, "http")}}}, nil},
		{"a block of the other family", model.NetworkPolicy{IsolatesIngress: true,
			Ingress: []model.PolicyRule{{AnyPort: true, Peers: append(block("10.0.0.0/8"),
				block("2001:db8::/32")...)}}}, []string{"spec.ingress[0].from[1].ipBlock"}},
		{"all of the other family", model.NetworkPolicy{IsolatesEgress: true,
			Egress: []model.PolicyRule{{AnyPort: true, Peers: append(block("0.0.0.0/0"), block("::/0")...)}}}, nil},
	} {
		tc.policy.Name = model.Name{Namespace: "a", Name: "np"}
		r.write(func(w *model.Writer) { w.PutNetworkPolicy(&tc.policy) })
		var got []string
		for _, p := range Problems(r.store.Snapshot(), tc.policy.Name) {
			if p.Kind != "NetworkPolicy" || p.Object != tc.policy.Name || p.Reason == "" {
				t.Errorf("%s: %v names the wrong object", tc.name, p)
			}
			got = append(got, p.Field)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: problems at %q, want %q", tc.name, got, tc.want)
		}
	}
	if got := Problems(r.store.Snapshot(), model.Name{Namespace: "a", Name: "gone"}); got != nil {
		t.Errorf("a policy that is not there has problems: %v", got)
	}
}

// Who asks only for the policies that changes concern has the problems of all.
func TestProblemsFollowChanges(t *testing.T) {
	asked, all := 0, 0
	for seed := range uint64(6) {
		d := newDice(seed)
		r := newRig(t, NodeInputs{})
		judge, book := NewJudge(), map[model.Name][]model.Problem{}
		for step := range 300 {
			r.change(d)
			_, first, _ := r.watch.Poll()
			for range d.IntN(2) {
				r.change(d)
			}
			snap, second, _ := r.watch.Poll()
			concerned := judge.Concerned(snap, first, second)
			asked += len(concerned)
			for n := range concerned {
				if book[n] = judge.Problems(snap, n); len(book[n]) == 0 {
					delete(book, n)
				}
			}
			for o := range snap.NetworkPolicies() {
				all++
				if want := Problems(snap, o.Name); !slices.Equal(book[o.Name], want) {
					t.Fatalf("seed %d, step %d: %s: %v, want %v", seed, step, o.Name, book[o.Name], want)
				}
			}
			for n := range book {
				if _, ok := snap.NetworkPolicy(n); !ok {
					t.Fatalf("seed %d, step %d: %s is gone and has problems", seed, step, n)
				}
			}
		}
	}
	if asked*2 > all {
		t.Errorf("%d policies were asked for, of %d", asked, all)
	}
}
