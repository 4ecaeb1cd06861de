package networkpolicy

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"wayleave.dev/model"
)

// PlannerKinds are what a Planner plans from.
const PlannerKinds = model.PodKind | model.NamespaceKind | model.NetworkPolicyKind | model.NodeKind

// Planner turns the model and this node's facts into entries, for a reconcile.Loop. Its cost follows what changed: a
// new pod is matched once against each distinct pair of selectors, however many policies use it, and affects the
// profiles of this node's pods that have it as a peer.
//
// It is not safe for concurrent use: all its methods are for the loop's goroutine.
type Planner struct {
	index
	policies map[model.Name]*policy
	profiles map[string]*profile
	// isolated are the profiles of this node's addresses, by direction; "" for none.
	isolated map[netip.Addr][2]string
	// isolating counts a namespace's policies by direction.
	isolating map[string][2]int
}

// NewPlanner makes one with the initial facts of the node.
func NewPlanner(local NodeInputs) *Planner {
	p := &Planner{index: newIndex(), policies: map[model.Name]*policy{}, profiles: map[string]*profile{},
		isolated: map[netip.Addr][2]string{}, isolating: map[string][2]int{}}
	p.SetInputs(local)
	return p
}

// SetInputs replaces the facts of the node. The next Keys returns what they change, also
// when it is given no changes of the model.
func (p *Planner) SetInputs(l NodeInputs) { p.changeInputs(l.clone()) }

// Keys advances the planner to the snapshot, and returns the keys whose entries may have changed.
func (p *Planner) Keys(snap model.Snapshot, c model.Changes) []Key {
	for name := range c.Of(model.NamespaceKind) {
		ns, _ := snap.Namespace(name.Name)
		p.changeNamespace(name.Name, ns)
	}
	for name := range c.Of(model.PodKind) {
		o, _ := snap.Pod(name)
		p.changePod(name, o)
	}
	for name := range c.Of(model.NodeKind) {
		n, _ := snap.Node(name.Name)
		p.changeNode(name.Name, n)
	}
	for name := range c.Of(model.NetworkPolicyKind) {
		o, _ := snap.NetworkPolicy(name)
		p.changePolicy(name, o)
	}
	for a := range p.unsettled {
		p.settle(a)
	}
	clear(p.unsettled)
	keys := slices.Collect(maps.Keys(p.dirty))
	p.dirty = map[Key]struct{}{} // a cleared map stays as large as the largest change
	return keys
}

// Plan is the entry of a key as of the last Keys, with the same snapshot. There are no
// problems: those of policies are found by Problems.
func (p *Planner) Plan(_ model.Snapshot, k Key) (Entry, bool, []model.Problem) {
	e, ok := p.entry(k)
	return e, ok, nil
}

func (p *Planner) entry(k Key) (Entry, bool) {
	switch k.Kind {
	case ProxyEntry:
		return Entry{}, p.local.Ingress && slices.Contains(p.nodes[p.local.Node], k.Addr)
	case DNSEntry:
		return Entry{}, slices.Contains(p.local.DNS, k.Addr)
	case PodEntry:
		id := p.isolated[k.Addr][k.Direction]
		e := Entry{Profile: id}
		if prof, ok := p.profiles[id]; ok {
			e.Policies = prof.policies
		}
		return e, id != ""
	}
	prof, ok := p.profiles[k.Profile]
	if !ok {
		return Entry{}, false
	}
	if k.Kind == BlocksEntry {
		return Entry{Blocks: prof.blocks}, len(prof.blocks) > 0
	}
	peer := p.holder[k.Addr]
	if peer == nil || !p.isPeer(peer, prof.direction) {
		return Entry{}, false
	}
	ports := prof.peer(peer, k.Addr)
	return Entry{Ports: ports}, !ports.Empty()
}

// changePolicy follows a policy; o is nil when it is gone.
func (p *Planner) changePolicy(name model.Name, o *model.NetworkPolicy) {
	if o != nil && !o.IsolatesIngress && !o.IsolatesEgress {
		o = nil
	}
	old := p.policies[name]
	if old != nil && o != nil && reflect.DeepEqual(old.object, o) {
		return // annotations and the like
	}
	before := p.isolating[name.Namespace]
	var now *policy
	if o != nil {
		now = p.compile(o) // before the old is released, so that shared groups live on
	}
	if old != nil {
		p.removePolicy(old)
	}
	if now != nil {
		p.policies[name] = now
		now.subject.policies[name] = struct{}{}
		p.unsettleMembers(now.subject)
		p.count(o, 1)
	}
	p.unsettleUnknown(name.Namespace, before)
}

// removePolicy dissolves the profiles that the policy is part of. settle finds their replacements later.
func (p *Planner) removePolicy(old *policy) {
	name := old.object.Name
	for prof := range old.profiles {
		for a := range prof.addrs {
			p.unsettled[a] = struct{}{}
			p.leave(a, prof)
		}
	}
	delete(old.subject.policies, name)
	p.unsettleMembers(old.subject)
	for _, g := range old.groups() {
		p.release(g)
	}
	delete(p.policies, name)
	p.count(old.object, -1)
}

func (p *Planner) unsettleMembers(g *group) {
	for m := range g.members {
		for a := range m.addrs {
			p.unsettle(a)
		}
	}
}

// count counts a policy of a namespace.
func (p *Planner) count(o *model.NetworkPolicy, step int) {
	n := p.isolating[o.Name.Namespace]
	for _, d := range []Direction{Ingress, Egress} {
		if isolates(o, d) {
			n[d] += step
		}
	}
	if p.isolating[o.Name.Namespace] = n; n == [2]int{} {
		delete(p.isolating, o.Name.Namespace)
	}
}

// unsettleUnknown schedules pods that are not in the model, when a namespace gets its first policy or loses its last.
func (p *Planner) unsettleUnknown(namespace string, before [2]int) {
	now := p.isolating[namespace]
	if (before[Ingress] > 0) == (now[Ingress] > 0) && (before[Egress] > 0) == (now[Egress] > 0) {
		return
	}
	for _, a := range p.unknown(namespace) {
		p.unsettled[a] = struct{}{}
	}
}

// settle finds the profiles of an address again.
func (p *Planner) settle(a netip.Addr) {
	had := p.isolated[a]
	var want [2]string
	var from [2]origin
	if p.isLocal(a) {
		want, from = p.wanted(a)
	}
	for _, d := range []Direction{Ingress, Egress} {
		if want[d] == had[d] {
			continue
		}
		p.dirty[Key{Kind: PodEntry, Direction: d, Addr: a}] = struct{}{}
		if prof, ok := p.profiles[had[d]]; ok {
			p.leave(a, prof)
		}
		p.join(a, d, want[d], from[d])
	}
}

// wanted returns the profile of an address of this node in each direction, and its origin, which is empty for a pod
// that is not in the model.
func (p *Planner) wanted(a netip.Addr) (id [2]string, from [2]origin) {
	pod := p.holder[a]
	if pod == nil {
		for d, n := range p.isolating[p.local.Pods[a].Namespace] {
			if n > 0 {
				id[d] = closed(Direction(d))
			}
		}
		return id, from
	}
	var by [2][]*policy
	for g := range pod.groups {
		for name := range g.policies {
			pol := p.policies[name]
			for d := range by {
				if isolates(pol.object, Direction(d)) {
					by[d] = append(by[d], pol)
				}
			}
		}
	}
	for d, list := range by {
		if len(list) > 0 {
			from[d] = originOf(Direction(d), list, pod.ports)
			id[d] = from[d].id()
		}
	}
	return id, from
}

// setProfile records the profile of an address.
func (p *Planner) setProfile(a netip.Addr, d Direction, id string) {
	ids := p.isolated[a]
	ids[d] = id
	if p.isolated[a] = ids; ids == [2]string{} {
		delete(p.isolated, a)
	}
}

// join adds an address to a profile, which is made for its first address; an empty ID is none.
func (p *Planner) join(a netip.Addr, d Direction, id string, from origin) {
	p.setProfile(a, d, id)
	if len(from.policies) == 0 {
		return
	}
	prof, ok := p.profiles[id]
	if !ok {
		prof = newProfile(id, from)
		p.profiles[id] = prof
		for _, pol := range from.policies {
			pol.profiles[prof] = struct{}{}
		}
		for g := range prof.grants {
			g.profiles[prof] = struct{}{}
		}
		p.markProfile(prof)
	}
	prof.addrs[a] = struct{}{}
}

// leave removes an address from its profile, which goes with the last.
func (p *Planner) leave(a netip.Addr, prof *profile) {
	p.dirty[Key{Kind: PodEntry, Direction: prof.direction, Addr: a}] = struct{}{}
	p.setProfile(a, prof.direction, "")
	if delete(prof.addrs, a); len(prof.addrs) > 0 {
		return
	}
	p.markProfile(prof)
	delete(p.profiles, prof.id)
	for _, name := range prof.policies {
		if pol, ok := p.policies[name]; ok {
			delete(pol.profiles, prof)
		}
	}
	for g := range prof.grants {
		delete(g.profiles, prof)
	}
}

// markProfile marks all entries of a profile.
func (p *Planner) markProfile(prof *profile) {
	p.dirty[Key{Kind: BlocksEntry, Direction: prof.direction, Profile: prof.id}] = struct{}{}
	for g := range prof.grants {
		for m := range g.members {
			for a := range m.addrs {
				p.mark(prof, m, a)
			}
		}
	}
}
