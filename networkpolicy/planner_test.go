package networkpolicy

import (
	"maps"
	"testing"

	"wayleave.dev/model"
)

// change makes one random change of the world.
func (r *rig) change(d dice) {
	switch d.IntN(11) {
	case 0:
		r.setInputs(d.facts())
	case 1:
		r.write(func(w *model.Writer) { w.Delete(model.PodKind, d.podName()) })
	case 2, 3, 4:
		r.write(func(w *model.Writer) { w.PutPod(d.pod(d.podName())) })
	case 5:
		r.changeSlightly(d)
	case 6:
		name := pick(d, worldNamespaces...)
		if d.one(4) {
			r.write(func(w *model.Writer) { w.Delete(model.NamespaceKind, model.Name{Name: name}) })
			return
		}
		r.write(func(w *model.Writer) { w.PutNamespace(d.namespace(name)) })
	case 7:
		r.write(func(w *model.Writer) { w.Delete(model.NetworkPolicyKind, d.policy().Name) })
	case 8:
		name := pick(d, "here", "there")
		if d.one(4) {
			r.write(func(w *model.Writer) { w.Delete(model.NodeKind, model.Name{Name: name}) })
			return
		}
		r.write(func(w *model.Writer) { w.PutNode(d.node(name)) })
	default:
		r.write(func(w *model.Writer) { w.PutNetworkPolicy(d.policy()) })
	}
}

// changeSlightly changes one field of a pod that is there.
func (r *rig) changeSlightly(d dice) {
	old, ok := r.store.Snapshot().Pod(d.podName())
	if !ok {
		return
	}
	p, other := *old, d.pod(old.Name)
	switch d.IntN(6) {
	case 0:
		p.Labels = other.Labels
	case 1:
		p.Ports = other.Ports
	case 2:
		p.IPs = other.IPs
	case 3:
		p.Node = other.Node
	case 4:
		p.Created = other.Created
	case 5:
		p.HostNetwork = !p.HostNetwork
	}
	r.write(func(w *model.Writer) { w.PutPod(&p) })
}

func TestChangesEndWhereAFreshPlannerBegins(t *testing.T) {
	kinds := map[EntryKind]int{}
	for seed := range uint64(30) {
		d := newDice(seed)
		r := newRig(t, d.facts())
		for step := range 400 {
			for range 1 + d.IntN(3) { // changes of one moment come together
				r.change(d)
			}
			r.step()
			if want := r.fresh(); !maps.EqualFunc(r.entries, want, Entry.Equal) {
				t.Fatalf("seed %d, step %d: %s", seed, step, difference(r.entries, want))
			}
			for k := range r.entries {
				kinds[k.Kind]++
			}
		}
		r.checkSize()
	}
	for _, k := range []EntryKind{PodEntry, PeerEntry, BlocksEntry, ProxyEntry} {
		if kinds[k] < 3_000 {
			t.Errorf("only %d entries of kind %d were compared", kinds[k], k)
		}
	}
}

// checkSize says that nothing is left in the planner when all has gone.
func (r *rig) checkSize() {
	r.t.Helper()
	r.setInputs(NodeInputs{Node: "here"})
	r.clear()
	r.step()
	p := r.planner
	for what, n := range map[string]int{"entries": len(r.entries), "policies": len(p.policies),
		"profiles": len(p.profiles), "isolated": len(p.isolated),
		"isolating": len(p.isolating), "namespaces": len(p.namespaces), "pods": len(p.pods), "groups": len(p.groups),
		"own groups":  len(p.ownGroups),
		"wide groups": len(p.wideGroups), "claims": len(p.claims), "holders": len(p.holder), "leased": len(p.leased),
		"groups of kube-dns":  len(p.dns.groups),
		"groups of the proxy": len(p.proxy.groups), "nodes": len(p.nodes), "addresses of proxies": len(p.proxies)} {
		if n != 0 {
			r.t.Errorf("%d %s are left of nothing", n, what)
		}
	}
}

func difference(got, want map[Key]Entry) string {
	for k, w := range want {
		if g, ok := got[k]; !ok || !g.Equal(w) {
			return sprint(k, "is", g, "there", ok, "but fresh", w)
		}
	}
	for k, g := range got {
		if _, ok := want[k]; !ok {
			return sprint(k, "is", g, "but fresh none")
		}
	}
	return ""
}
