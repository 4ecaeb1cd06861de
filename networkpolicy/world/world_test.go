package world_test

import (
	"net/netip"
	"strings"
	"testing"

	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	"wayleave.dev/networkpolicy/world"
)

func sets(t *testing.T) []world.Set {
	t.Helper()
	all, err := world.Sets()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// The evaluator agrees with what was reasoned by hand, on every packet of every set.
func TestTheEvaluatorAgreesWithWhatWasReasoned(t *testing.T) {
	all := sets(t)
	if len(all) < 200 {
		t.Errorf("only %d sets", len(all))
	}
	const icmp = model.Protocol(1)
	probes, denied := 0, 0
	for _, set := range all {
		store, err := model.NewStore()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		for i, step := range set.Steps {
			if err := step.Put(store); err != nil {
				t.Fatal(err)
			}
			snap, wrong := store.Snapshot(), 0
			who := identities(snap)
			for p := range step.ProbesOf(model.TCP, model.UDP, model.SCTP, icmp) {
				got := networkpolicy.Evaluate(snap, who(p.From, p.IPv6), who(p.To, p.IPv6), p.Protocol, p.Port)
				probes++
				if !p.Want {
					denied++
				}
				if got.Allowed != p.Want {
					if wrong++; wrong <= 5 {
						t.Errorf("%s (%s, step %d): %s: allowed is %v, reasoned %v; %+v", set.Name, step.At, i+1, p,
							got.Allowed, p.Want, got)
					}
				}
			}
		}
	}
	t.Logf("%d sets, %d probes, %d of them denied", len(all), probes, denied)
}

// identities are who the addresses belong to in a snapshot.
func identities(snap model.Snapshot) func(string, bool) networkpolicy.Party {
	all := map[netip.Addr]networkpolicy.Party{}
	for _, n := range world.Names() {
		for _, is6 := range []bool{false, true} {
			all[world.Addr(n, is6)] = networkpolicy.Identify(snap, world.Local(), world.Addr(n, is6))
		}
	}
	return func(name string, is6 bool) networkpolicy.Party { return all[world.Addr(name, is6)] }
}

// Names are for messages, and a set that says the same as another proves nothing more.
func TestSetsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range sets(t) {
		if seen[s.Name] {
			t.Errorf("%q is there twice", s.Name)
		}
		seen[s.Name] = true
	}
}

func TestBadSets(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"policy u/p: {podSelector: {}}", "before the first set"},
		{"== a\npolicy q/p: {podSelector: {}}", "x.txt:2: \"q/p\" is not NS/NAME"},
		{"== a\npolicy u/p: {podSelectors: {}}", "unknown field"},
		{"== a\npolicy u/p: {podSelector: {}, ingress: [{ports: [{port: 0}]}]}", "spec.ingress[0].ports[0].port"},
		{"== a\ndelete u/p", "there is no policy"},
		{"== a\nlabel u/q a=b", "no pod and no namespace"},
		{"== a\nports u/a web=80", "is not any, tcp"},
		{"== a\nin u/a: any from nobody", "are no pods"},
		{"== a\nin u/a: any to v/a", "has no from"},
		{"== a\nin u/a: none\nin u/*: none", "said twice"},
		{"== a\nallow u/a", "is unknown"},
	} {
		if _, err := world.Read("x.txt", tc.in); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v, want %s", tc.in, err, tc.want)
		}
	}
}
