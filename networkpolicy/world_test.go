package networkpolicy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wayleave.dev/model"
)

// rig is a store with a watcher, a planner, and what a loop would hold of its entries.
type rig struct {
	t       testing.TB
	store   *model.Store
	watch   *model.Watcher
	planner *Planner
	local   NodeInputs
	entries map[Key]Entry
}

func newRig(t testing.TB, local NodeInputs) *rig {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	watch, err := store.Watch(PlannerKinds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		watch.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return &rig{t: t, store: store, watch: watch, planner: NewPlanner(local), local: local, entries: map[Key]Entry{}}
}

func (r *rig) write(fn func(*model.Writer)) {
	r.t.Helper()
	if err := r.store.Write(fn); err != nil {
		r.t.Fatal(err)
	}
}

// clear empties the store.
func (r *rig) clear() {
	r.t.Helper()
	r.write(func(w *model.Writer) {
		for _, k := range []model.Kind{model.PodKind, model.NamespaceKind, model.NetworkPolicyKind, model.NodeKind} {
			for _, n := range w.Names(k) {
				w.Delete(k, n)
			}
		}
	})
}

func (r *rig) setInputs(l NodeInputs) {
	r.local = l
	r.planner.SetInputs(l)
}

// step is a round of the loop; it returns how many keys were planned.
func (r *rig) step() int {
	snap, c, _ := r.watch.Poll()
	keys := r.planner.Keys(snap, c)
	for _, k := range keys {
		if e, ok, _ := r.planner.Plan(snap, k); ok {
			r.entries[k] = e
		} else {
			delete(r.entries, k)
		}
	}
	return len(keys)
}

// fresh is the entries of a planner that starts now.
func (r *rig) fresh() map[Key]Entry {
	snap := r.store.Snapshot()
	return planAll(snap, r.local)
}

func planAll(snap model.Snapshot, local NodeInputs) map[Key]Entry {
	var c model.Changes
	for n := range snap.Nodes() {
		c.Add(model.NodeKind, model.Name{Name: n.Name})
	}
	for p := range snap.Pods() {
		c.Add(model.PodKind, p.Name)
	}
	for n := range snap.Namespaces() {
		c.Add(model.NamespaceKind, model.Name{Name: n.Name})
	}
	for p := range snap.NetworkPolicies() {
		c.Add(model.NetworkPolicyKind, p.Name)
	}
	p := NewPlanner(local)
	out := map[Key]Entry{}
	for _, k := range p.Keys(snap, c) {
		if e, ok, _ := p.Plan(snap, k); ok {
			out[k] = e
		}
	}
	return out
}

// dice draws the objects of a small world, in which most things meet.
type dice struct{ *rand.Rand }

func newDice(seed uint64) dice { return dice{rand.New(rand.NewPCG(seed, 8))} }

func pick[T any](d dice, from ...T) T { return from[d.IntN(len(from))] }

func (d dice) one(in int) bool { return d.IntN(in) == 0 }

func some[T any](d dice, limit int, draw func() T) (out []T) {
	for range d.IntN(limit + 1) {
		out = append(out, draw())
	}
	return out
}

var worldNamespaces = []string{"a", "b", "kube-system"}

func (d dice) podName() model.Name {
	return model.Name{Namespace: pick(d, worldNamespaces...), Name: fmt.Sprintf("p%d", d.IntN(4))}
}

func (d dice) addr() netip.Addr {
	if d.one(3) {
		return netip.MustParseAddr(fmt.Sprintf("fd00::%x", 1+d.IntN(16)))
	}
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + d.IntN(16))})
}

func (d dice) labels() map[string]string {
	out := map[string]string{}
	for _, k := range []string{"app", "tier"} {
		if !d.one(3) {
			out[k] = pick(d, "x", "y")
		}
	}
	return out
}

func (d dice) protocol() model.Protocol { return pick(d, model.TCP, model.TCP, model.UDP, model.SCTP) }

func (d dice) port() uint16 { return pick[uint16](d, 53, 80, 80, 81, 65535) }

func (d dice) pod(name model.Name) *model.Pod {
	p := &model.Pod{Name: name, Node: pick(d, "here", "here", "there"), HostNetwork: d.one(10), Labels: d.labels(),
		Created: time.Unix(int64(d.IntN(3)), 0)}
	p.IPs = some(d, 2, d.addr)
	p.Ports = some(d, 3, func() model.NamedPort {
		return model.NamedPort{Name: pick(d, "web", "dns"), Protocol: d.protocol(), Port: d.port()}
	})
	return p
}

func (d dice) namespace(name string) *model.Namespace {
	return &model.Namespace{Name: name, Labels: map[string]string{"name": name, "env": pick(d, "prod", "test")}}
}

func (d dice) selector(keys ...string) model.Selector {
	if d.one(20) {
		return model.Selector{Nothing: true}
	}
	return model.Selector{Requirements: some(d, 2, func() model.Requirement {
		r := model.Requirement{Key: pick(d, keys...), Operator: model.Operator(d.IntN(4))}
		if r.Operator <= model.NotIn {
			r.Values = []string{pick(d, "x", "x", "y", "y", "prod", "a", "kube-dns", "ingress")}
		}
		return r
	})}
}

func (d dice) pods() model.Selector {
	return d.selector("app", "app", "app", "tier", "tier", "k8s-app", "app.kubernetes.io/component")
}

func (d dice) peer() model.PolicyPeer {
	switch d.IntN(4) {
	case 0:
		return model.PolicyPeer{Pods: d.pods()}
	case 1, 2:
		ns := d.selector("name", "env")
		return model.PolicyPeer{Namespaces: &ns, Pods: d.pods()}
	}
	block := d.block(0, 24)
	peer := model.PolicyPeer{Block: block}
	for _, e := range some(d, 2, func() netip.Prefix { return d.block(29, 32) }) {
		if e.Addr().Is4() == block.Addr().Is4() {
			peer.Except = append(peer.Except, e)
		}
	}
	return peer
}

// block draws a prefix; the bits are those of IPv4, and 96 more for IPv6.
func (d dice) block(least, most int) netip.Prefix {
	bits := least + d.IntN(most-least+1)
	a := d.addr()
	if a.Is6() {
		bits += 96
	}
	return netip.PrefixFrom(a, bits).Masked()
}

func (d dice) policyPort() model.PolicyPort {
	p := model.PolicyPort{Protocol: d.protocol()}
	switch d.IntN(4) {
	case 0:
		p.Name = pick(d, "web", "dns", "dns-tcp")
	case 1:
		p.To = 65535
	case 2:
		p.From = d.port()
		p.To = max(p.From, d.port())
	default:
		p.From = d.port()
		p.To = p.From
	}
	return p
}

func (d dice) rule() model.PolicyRule {
	r := model.PolicyRule{AnyPeer: d.one(6), AnyPort: d.one(3)}
	if !r.AnyPeer {
		r.Peers = some(d, 3, d.peer)
	}
	if !r.AnyPort {
		r.Ports = some(d, 3, d.policyPort)
	}
	return r
}

func (d dice) policy() *model.NetworkPolicy {
	p := &model.NetworkPolicy{Name: model.Name{Namespace: pick(d, worldNamespaces...),
		Name: fmt.Sprintf("np%d", d.IntN(3))},
		Subject: d.pods(), IsolatesIngress: !d.one(3), IsolatesEgress: !d.one(3)}
	if p.IsolatesIngress {
		p.Ingress = some(d, 2, d.rule)
	}
	if p.IsolatesEgress {
		p.Egress = some(d, 2, d.rule)
	}
	return p
}

// node has pod networks whose last addresses are some of those that pods draw from.
func (d dice) node(name string) *model.Node {
	return &model.Node{Name: name, PodCIDRs: some(d, 2, func() netip.Prefix {
		return netip.MustParsePrefix(pick(d, "10.0.0.0/29", "10.0.0.8/29", "10.0.0.16/29", "fd00::/125", "fd00::8/125",
			"fd00::10/125"))
	})}
}

func (d dice) facts() NodeInputs {
	l := NodeInputs{Node: pick(d, "here", "here", "here", "there"), Ingress: !d.one(3)}
	l.DNS = some(d, 2, func() netip.Addr {
		return pick(d, netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a"))
	})
	slices.SortFunc(l.DNS, netip.Addr.Compare)
	l.DNS = slices.Compact(l.DNS)
	l.Pods = map[netip.Addr]model.Name{}
	for range d.IntN(8) {
		l.Pods[d.addr()] = d.podName()
	}
	return l
}

func sprint(parts ...any) string { return fmt.Sprintln(parts...) }
