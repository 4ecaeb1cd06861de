package nftables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	"wayleave.dev/networkpolicy/world"
)

// dice draws policies for the small world, in which most things meet.
type dice struct{ *rand.Rand }

func oneOf[T any](d dice, from ...T) T { return from[d.IntN(len(from))] }

func several[T any](d dice, least, most int, draw func() T) (out []T) {
	for range least + d.IntN(most-least+1) {
		out = append(out, draw())
	}
	return out
}

func (d dice) selector(key string, values ...string) model.Selector {
	return model.Selector{Requirements: several(d, 0, 1, func() model.Requirement {
		r := model.Requirement{Key: oneOf(d, key, key, "tier"), Operator: oneOf(d, model.In, model.In, model.NotIn,
			model.Exists, model.DoesNotExist)}
		if r.Operator == model.In || r.Operator == model.NotIn {
			r.Values = several(d, 1, 2, func() string { return oneOf(d, values...) })
		}
		return r
	})}
}

func (d dice) pods() model.Selector       { return d.selector("pod", "a", "b", "c") }
func (d dice) namespaces() model.Selector { return d.selector("ns", "u", "v", "w") }

func (d dice) block(least int) netip.Prefix {
	is6 := d.IntN(2) == 0
	a := world.Addr(oneOf(d, world.Names()...), is6)
	bits := least + d.IntN(33-least)
	if is6 {
		bits = 4 * bits
	}
	p, _ := a.Prefix(bits)
	return p
}

func (d dice) peer() model.PolicyPeer {
	switch d.IntN(3) {
	case 0:
		return model.PolicyPeer{Pods: d.pods()}
	case 1:
		ns := d.namespaces()
		return model.PolicyPeer{Namespaces: &ns, Pods: d.pods()}
	}
	p := model.PolicyPeer{Block: d.block(0)}
	for range d.IntN(3) {
		if x := d.block(1); x.Addr().Is6() == p.Block.Addr().Is6() && p.Block.Contains(x.Addr()) &&
			x.Bits() > p.Block.Bits() {
			p.Except = append(p.Except, x)
		}
	}
	return p
}

func (d dice) port() model.PolicyPort {
	proto := oneOf(d, model.TCP, model.TCP, model.UDP, model.UDP, model.SCTP)
	from := oneOf[uint16](d, 79, 80, 81, 82)
	switch d.IntN(6) {
	case 0:
		return model.PolicyPort{Protocol: proto, From: 0, To: 65535}
	case 1:
		return model.PolicyPort{Protocol: proto, From: from, To: from + uint16(d.IntN(3))}
	case 2:
		return model.PolicyPort{Protocol: proto, Name: oneOf(d, "web", "alt", "dns", "last")}
	}
	return model.PolicyPort{Protocol: proto, From: from, To: from}
}

func (d dice) rule() model.PolicyRule {
	r := model.PolicyRule{Peers: several(d, 0, 3, d.peer), Ports: several(d, 0, 2, d.port)}
	r.AnyPeer, r.AnyPort = len(r.Peers) == 0, len(r.Ports) == 0
	return r
}

func (d dice) policy(name model.Name) *model.NetworkPolicy {
	p := &model.NetworkPolicy{Name: name, Subject: d.pods(), IsolatesIngress: d.IntN(3) > 0,
		IsolatesEgress: d.IntN(2) == 0}
	if p.IsolatesIngress {
		p.Ingress = several(d, 0, 2, d.rule)
	}
	if p.IsolatesEgress {
		p.Egress = several(d, 0, 2, d.rule)
	}
	return p
}

// change replaces, adds and removes some policies, and labels and names of a pod.
func (d dice) change(w *model.Writer, pods map[string]*model.Pod) {
	for range 1 + d.IntN(4) {
		name := model.Name{Namespace: oneOf(d, "u", "v", "w"), Name: fmt.Sprintf("p%d", d.IntN(2))}
		if d.IntN(3) == 0 {
			w.Delete(model.NetworkPolicyKind, name)
		} else {
			w.PutNetworkPolicy(d.policy(name))
		}
	}
	if d.IntN(2) == 0 {
		return
	}
	i := d.IntN(len(world.Names()) - 1)
	p := *pods[world.Names()[i]]
	p.Labels = map[string]string{"pod": oneOf(d, "a", "b", "c"), "ns": p.Name.Namespace}
	if d.IntN(2) == 0 {
		p.Labels["tier"] = oneOf(d, "a", "u")
	}
	p.Ports = []model.NamedPort{{Name: "web", Protocol: model.TCP, Port: 80 + uint16(d.IntN(3))},
		{Name: "dns", Protocol: model.UDP, Port: 80 + uint16(d.IntN(3))}}
	pods[world.Names()[i]] = &p
	w.PutPod(&p)
}

func setting(t *testing.T, name string, otherwise int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// Differential fuzzing: after every random change the kernel does with packets what
// Evaluate says. WAYLEAVE_POLICY_SETS says how many sets, which follow each other as
// changes; of each a part of all packets is tried. `make fuzz` plays 2,500 of a seed of its
// own.
func TestRandomPoliciesInAKernel(t *testing.T) {
	sets, seed := setting(t, "WAYLEAVE_POLICY_SETS", 100), setting(t, "WAYLEAVE_POLICY_SEED", 8)
	t.Logf("WAYLEAVE_POLICY_SEED=%d", seed)
	d := dice{rand.New(rand.NewPCG(uint64(seed), 8))}
	a := newArena(t)
	a.services("nftables")
	base, err := world.Read("base", "== base")
	if err != nil {
		t.Fatal(err)
	}
	step := base[0].Steps[0]
	if err := step.Put(a.store); err != nil {
		t.Fatal(err)
	}
	pods := step.Pods
	all, count := shots(step, true, true), map[string]int{}
	for i := range sets {
		if err := a.store.Write(func(w *model.Writer) { d.change(w, pods) }); err != nil {
			t.Fatal(err)
		}
		if err := a.follow(); err != nil {
			t.Fatalf("set %d: %v", i, err)
		}
		snap := a.store.Snapshot()
		who := map[netip.Addr]networkpolicy.Party{}
		for _, n := range world.Names() {
			for _, is6 := range families() {
				who[world.Addr(n, is6)] = networkpolicy.Identify(snap, world.Local(), world.Addr(n, is6))
			}
		}
		var list []shot
		for _, s := range all {
			if d.IntN(4) > 0 {
				continue
			}
			v := networkpolicy.Evaluate(snap, who[world.Addr(s.From, s.IPv6)], who[world.Addr(s.To, s.IPv6)],
				s.Protocol, s.Port)
			s.Want = v.Allowed
			count[fmt.Sprintf("ingress isolated %t allowed %t", v.Ingress.Isolated, v.Ingress.Allowed)]++
			count[fmt.Sprintf("egress isolated %t allowed %t", v.Egress.Isolated, v.Egress.Allowed)]++
			count[fmt.Sprintf("allowed %t", v.Allowed)]++
			list = append(list, s)
		}
		for _, s := range a.check(list) {
			t.Errorf("set %d: %s: Evaluate says %t", i, s, s.Want)
		}
		if t.Failed() {
			for p := range snap.NetworkPolicies() {
				t.Logf("%+v", *p)
			}
			t.Fatalf("the kernel has\n%s", a.node.Run("nft", "list", "ruleset"))
		}
	}
	t.Log(count)
	if count["allowed true"] < 100 || count["allowed false"] < 100 {
		t.Errorf("too few of a kind: %v", count)
	}
}
