package networkpolicy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"wayleave.dev/model"
)

// tally counts how often a branch of the evaluator decided to allow and to deny.
type tally map[string][2]int

func (t tally) add(branch string, allowed bool) {
	n := t[branch]
	if allowed {
		n[1]++
	} else {
		n[0]++
	}
	t[branch] = n
}

// probe is a packet seen from one of its ends.
type probe struct {
	d           Direction
	local, peer netip.Addr
	proto       model.Protocol
	port        uint16
}

func (p probe) String() string {
	return fmt.Sprintf("%s of %s, %s, %s port %d", p.d, p.local, p.peer, p.proto, p.port)
}

// evaluate is what the evaluator says of the probe's direction, with the question that
// it asked and the party at the other end.
func (p probe) evaluate(v model.Snapshot, l NodeInputs) (h Half, q question, other Party) {
	self := Identify(v, l, p.local)
	other = Identify(v, l, p.peer)
	from, to := self, other
	if p.d == Ingress {
		from, to = other, self
	}
	q = question{v, p.proto, p.port, to.Pod}
	if to.DNS {
		q.target = dnsPod()
	}
	verdict := Evaluate(v, from, to, p.proto, p.port)
	if p.d == Ingress {
		return verdict.Ingress, q, other
	}
	return verdict.Egress, q, other
}

// fill puts a random world into the store, in which most pods have an address of their
// own, and policies meet pods. The facts of the node mostly agree.
func (r *rig) fill(d dice) {
	l := NodeInputs{Node: "here", DNS: d.facts().DNS, Ingress: !d.one(4)}
	if !d.one(3) {
		l.Pods = map[netip.Addr]model.Name{}
	}
	r.clear()
	r.write(func(w *model.Writer) {
		for n, ns := range worldNamespaces {
			if !d.one(20) {
				w.PutNamespace(d.namespace(ns))
			}
			for i := range 4 {
				p := d.pod(model.Name{Namespace: ns, Name: fmt.Sprintf("p%d", i)})
				if !d.one(8) {
					p.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + 4*n + i)}),
						netip.MustParseAddr(fmt.Sprintf("fd00::%x", 1+4*n+i))}
				}
				w.PutPod(p)
				for _, a := range p.IPs {
					if l.Pods != nil && p.Node == "here" && !p.HostNetwork && !d.one(20) {
						l.Pods[a] = p.Name
					}
				}
			}
		}
		for _, n := range []string{"here", "there"} {
			w.PutNode(d.node(n))
		}
		if l.Pods != nil && d.one(3) {
			l.Pods[d.addr()] = d.podName()
		}
		for range 1 + d.IntN(6) {
			w.PutNetworkPolicy(d.policy())
		}
	})
	r.local = l
}

// ours are this node's addresses, found without the planner.
func ours(v model.Snapshot, l NodeInputs) (out []netip.Addr) {
	seen := map[netip.Addr]bool{}
	for a := range l.Pods {
		seen[a] = true
	}
	for p := range v.Pods() {
		for _, a := range p.IPs {
			if who := Identify(v, l, a); who.Pod != nil && who.Pod.Node == l.Node {
				seen[a] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(seen), netip.Addr.Compare)
}

// probe draws a packet; most of those to pods are to one of the ports that the pod names.
func (d dice) probe(v model.Snapshot, local []netip.Addr, l NodeInputs) probe {
	p := probe{d: Direction(d.IntN(2)), local: pick(d, local...), peer: d.addr(), port: pick(d, d.port(), d.port(),
		79, 82, 60000),
		proto: pick(d, model.TCP, model.TCP, model.UDP, model.SCTP, 1)}
	if p.peer.Is4() && d.one(8) {
		p.peer = netip.AddrFrom4([4]byte{203, 0, 113, byte(d.IntN(4))})
	}
	if len(l.DNS) > 0 && d.one(6) {
		p.peer = pick(d, l.DNS...)
	}
	if l.Ingress && d.one(12) {
		p.peer = netip.MustParseAddr(pick(d, "10.0.0.6", "10.0.0.14", "fd00::7", "fd00::f"))
	}
	target := p.local
	if p.d == Egress {
		target = p.peer
	}
	if to := Identify(v, l, target).Pod; to != nil && len(to.Ports) > 0 && !d.one(3) {
		named := pick(d, to.Ports...)
		p.proto, p.port = named.Protocol, named.Port
	}
	return p
}

// isolated are the local addresses that policies are about, which most probes are for.
func (r *rig) isolated(local []netip.Addr) (out []netip.Addr) {
	for _, a := range local {
		_, in := r.entries[Key{Kind: PodEntry, Direction: Ingress, Addr: a}]
		_, eg := r.entries[Key{Kind: PodEntry, Direction: Egress, Addr: a}]
		if in || eg {
			out = append(out, a)
		}
	}
	return out
}

func TestEntriesDecideAsTheEvaluator(t *testing.T) {
	counts, r := tally{}, newRig(t, NodeInputs{})
	for seed := range uint64(2500) {
		d := newDice(1_000_000 + seed)
		r.fill(d)
		snap := r.store.Snapshot()
		r.entries = planAll(snap, r.local)
		local := ours(snap, r.local)
		isolated := r.isolated(local)
		for i := range 1200 {
			from := isolated
			if len(from) == 0 || i%10 == 0 {
				from = local
			}
			if len(from) == 0 {
				break
			}
			p := d.probe(snap, from, r.local)
			if p.local == p.peer {
				continue
			}
			h, q, other := p.evaluate(snap, r.local)
			if wrong := r.wrong(p, h); wrong != "" {
				t.Fatalf("seed %d: %s: %s", seed, p, wrong)
			}
			counts.half(p, h, q, other)
		}
	}
	counts.check(t)
}

// wrong is what entries and evaluator do not agree on.
func (r *rig) wrong(p probe, h Half) string {
	e, isolated := r.entries[Key{Kind: PodEntry, Direction: p.d, Addr: p.local}]
	switch got := Decide(r.entries, p.d, p.local, p.peer, p.proto, p.port); {
	case isolated != h.Isolated:
		return sprint("isolated by entries:", isolated, "evaluator:", h)
	case !slices.Equal(e.Policies, h.Policies):
		return sprint("isolated by", e.Policies, "evaluator:", h)
	case got != h.Allowed:
		return sprint("entries say", got, "evaluator:", h)
	}
	return ""
}

// half counts the branches that decided a probe.
func (t tally) half(p probe, h Half, q question, other Party) {
	switch {
	case !h.Isolated:
		t.add("not isolated", true)
		return
	case h.Policies == nil:
		t.add("not known yet", false)
		return
	case len(h.Rules) == 0:
		t.add("no rules", false)
		return
	}
	t.add(p.proto.String(), h.Allowed)
	t.add(fmt.Sprintf("%d policies", min(len(h.Policies), 3)), h.Allowed)
	var matched []pair
	for _, name := range h.Policies {
		pol, _ := q.v.NetworkPolicy(name)
		rules := pol.Ingress
		if p.d == Egress {
			rules = pol.Egress
		}
		for _, r := range rules {
			for _, x := range pairs(r) {
				peer, port := x.matches(q, name.Namespace, p.d, other)
				switch {
				case peer && port:
					matched = append(matched, x)
				case !h.Allowed && peer != port:
					t.pair(p.d, x, other, false)
				case !h.Allowed && port && x.excepts(other.Addr):
					t.add("except", false)
				}
			}
		}
	}
	if len(matched) == 1 {
		t.pair(p.d, matched[0], other, true)
	}
}

func (t tally) pair(d Direction, x pair, other Party, allowed bool) {
	t.add(fmt.Sprintf("%s: %s, %s", d, x.peerKind(), x.portKind()), allowed)
	if x.excepts(other.Addr) {
		t.add("except", allowed)
	}
	if d == Egress && other.DNS {
		t.add("kube-dns: "+x.peerKind(), allowed)
	}
	if d == Ingress && other.Proxy != "" {
		t.add("ingress proxy: "+x.peerKind(), allowed)
	}
	if x.peer == nil {
		return
	}
	for _, s := range []*model.Selector{&x.peer.Pods, x.peer.Namespaces} {
		if s == nil {
			continue
		}
		if s.Nothing {
			t.add("selects nothing", allowed)
		}
		for _, r := range s.Requirements {
			t.add(fmt.Sprintf("operator %d", r.Operator), allowed)
		}
	}
}

// pair is one peer of a rule and one of its ports; nil is any.
type pair struct {
	peer *model.PolicyPeer
	port *model.PolicyPort
}

func pairs(r model.PolicyRule) (out []pair) {
	peers, ports := []*model.PolicyPeer{}, []*model.PolicyPort{}
	for i := range r.Peers {
		peers = append(peers, &r.Peers[i])
	}
	for i := range r.Ports {
		ports = append(ports, &r.Ports[i])
	}
	if r.AnyPeer {
		peers = append(peers, nil)
	}
	if r.AnyPort {
		ports = append(ports, nil)
	}
	for _, a := range peers {
		for _, b := range ports {
			out = append(out, pair{a, b})
		}
	}
	return out
}

func (x pair) matches(q question, namespace string, d Direction, other Party) (peer, port bool) {
	r := model.PolicyRule{AnyPort: x.port == nil}
	if x.port != nil {
		r.Ports = []model.PolicyPort{*x.port}
	}
	peer = x.peer == nil || q.peer(namespace, *x.peer, d, other)
	return peer, q.ports(r, d == Ingress || x.peer == nil || !x.peer.Block.IsValid())
}

func (x pair) excepts(a netip.Addr) bool {
	return x.peer != nil && x.peer.Block.IsValid() && x.peer.Block.Contains(a) &&
		slices.ContainsFunc(x.peer.Except, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (x pair) peerKind() string {
	switch {
	case x.peer == nil:
		return "any peer"
	case x.peer.Block.IsValid() && x.peer.Block.Addr().Is6():
		return "block of IPv6"
	case x.peer.Block.IsValid():
		return "block of IPv4"
	case x.peer.Namespaces == nil:
		return "pods of the namespace"
	}
	return "pods of namespaces"
}

func (x pair) portKind() string {
	switch {
	case x.port == nil:
		return "any port"
	case x.port.Name != "":
		return "name"
	case x.port.From == 0 && x.port.To == 65535:
		return "all ports"
	case x.port.From == x.port.To:
		return "number"
	}
	return "range"
}

// check says which branches decided too rarely for the comparison to mean something.
func (t tally) check(tt *testing.T) {
	const least = 100
	want := map[string][2]bool{"not isolated": {false, true}, "not known yet": {true, false}, "no rules": {true, false},
		"except": {true, false}, "selects nothing": {true, false}}
	for _, d := range []Direction{Ingress, Egress} {
		for _, peer := range []string{"any peer", "block of IPv4", "block of IPv6", "pods of the namespace",
			"pods of namespaces"} {
			for _, port := range []string{"any port", "name", "all ports", "number", "range"} {
				// Any peer and any port cannot deny; a block has no names to let out to.
				denies := peer != "any peer" || port != "any port"
				allows := d == Ingress || port != "name" || peer == "any peer" || peer[:4] == "pods"
				want[fmt.Sprintf("%s: %s, %s", d, peer, port)] = [2]bool{denies, allows}
			}
		}
	}
	for _, b := range []string{"TCP", "UDP", "SCTP", "protocol 1", "1 policies", "2 policies", "operator 0",
		"operator 1", "operator 2", "operator 3",
		"kube-dns: any peer", "kube-dns: block of IPv4", "kube-dns: pods of the namespace",
		"kube-dns: pods of namespaces",
		"ingress proxy: any peer", "ingress proxy: block of IPv4", "ingress proxy: pods of the namespace",
		"ingress proxy: pods of namespaces"} {
		want[b] = [2]bool{true, true}
	}
	for _, b := range slices.Sorted(maps.Keys(want)) {
		n := t[b]
		tt.Logf("%-50s denied %6d allowed %6d", b, n[0], n[1])
		if want[b][0] && n[0] < least || want[b][1] && n[1] < least {
			tt.Errorf("%s: decided %d times to deny and %d times to allow, want %d", b, n[0], n[1], least)
		}
		if !want[b][0] && n[0] > 0 || !want[b][1] && n[1] > 0 {
			tt.Errorf("%s: denied %d and allowed %d times, which cannot be", b, n[0], n[1])
		}
	}
}
