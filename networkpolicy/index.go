package networkpolicy

import (
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// pod is a pod of the pod network, or kube-dns at its Service's addresses, or the ingress
// proxy.
type pod struct {
	name   model.Name
	labels map[string]string
	ports  []model.NamedPort
	// object is nil for kube-dns and the proxy.
	object *model.Pod
	// addrs are the addresses that the pod holds, without those that it only claims.
	addrs  map[netip.Addr]struct{}
	groups map[*group]struct{}
}

func newPod(name model.Name) *pod {
	return &pod{name: name, addrs: map[netip.Addr]struct{}{}, groups: map[*group]struct{}{}}
}

// index knows the pods of each group, and the pod of each address. A change marks the keys that depend on the previous
// or the new state, so that no comparison is needed.
type index struct {
	namespaces  map[string]*model.Namespace
	pods        map[model.Name]*pod
	inNamespace map[string]map[*pod]struct{}
	groups      map[groupKey]*group
	ownGroups   map[string]map[*group]struct{}
	wideGroups  map[*group]struct{}

	// claims are the pods that claim an address, and holder is the one that counts.
	claims map[netip.Addr]map[*pod]struct{}
	holder map[netip.Addr]*pod
	local  NodeInputs
	leased map[model.Name]map[netip.Addr]struct{}
	dns    *pod
	// proxy is the ingress proxy of all nodes, nodes are the addresses of each, and proxies
	// counts them: networks of two nodes may overlap.
	proxy   *pod
	nodes   map[string][]netip.Addr
	proxies map[netip.Addr]int

	// dirty are keys to plan again, and unsettled are addresses whose profiles are to be found again.
	dirty     map[Key]struct{}
	unsettled map[netip.Addr]struct{}
}

func newIndex() index {
	x := index{
		namespaces: map[string]*model.Namespace{}, pods: map[model.Name]*pod{},
		inNamespace: map[string]map[*pod]struct{}{},
		groups:      map[groupKey]*group{}, ownGroups: map[string]map[*group]struct{}{},
		wideGroups: map[*group]struct{}{},
		claims:     map[netip.Addr]map[*pod]struct{}{}, holder: map[netip.Addr]*pod{},
		leased: map[model.Name]map[netip.Addr]struct{}{},
		nodes:  map[string][]netip.Addr{}, proxies: map[netip.Addr]int{},
		dirty: map[Key]struct{}{}, unsettled: map[netip.Addr]struct{}{},
	}
	// No pod has an empty name, so it is never taken for one of the model.
	x.dns = newPod(model.Name{Namespace: "kube-system"})
	x.dns.labels = map[string]string{"k8s-app": "kube-dns"}
	x.dns.ports = []model.NamedPort{{Name: "dns", Protocol: model.UDP, Port: 53},
		{Name: "dns-tcp", Protocol: model.TCP, Port: 53}}
	put(x.inNamespace, x.dns.name.Namespace, x.dns)
	x.proxy = newPod(model.Name{Namespace: "kube-system"})
	x.proxy.labels = ProxyLabels()
	put(x.inNamespace, x.proxy.name.Namespace, x.proxy)
	return x
}

// markPeer marks the peer entries of a pod's address in all profiles that have the group as peers.
func (x *index) markPeer(g *group, p *pod, a netip.Addr) {
	for prof := range g.profiles {
		x.mark(prof, p, a)
	}
}

// mark marks the peer's entry of a profile.
func (x *index) mark(prof *profile, p *pod, a netip.Addr) {
	if x.isPeer(p, prof.direction) {
		x.dirty[Key{Kind: PeerEntry, Direction: prof.direction, Addr: a, Profile: prof.id}] = struct{}{}
	}
}

// isPeer says whether the pod can be a peer in the direction. The addresses of kube-dns are never a source, and those
// of the proxy never a destination.
func (x *index) isPeer(p *pod, d Direction) bool {
	return (p != x.dns || d == Egress) && (p != x.proxy || d == Ingress)
}

func (x *index) setMember(g *group, p *pod, in bool) {
	if _, was := g.members[p]; was == in {
		return
	}
	if in {
		g.members[p], p.groups[g] = struct{}{}, struct{}{}
	} else {
		delete(g.members, p)
		delete(p.groups, g)
	}
	for a := range p.addrs {
		x.markPeer(g, p, a)
		if len(g.policies) > 0 {
			x.unsettle(a)
		}
	}
}

// unsettle schedules an address of this node to find its profiles again.
func (x *index) unsettle(a netip.Addr) {
	if x.isLocal(a) {
		x.unsettled[a] = struct{}{}
	}
}

// changeNamespace follows a namespace's labels; ns is nil when it is gone.
func (x *index) changeNamespace(name string, ns *model.Namespace) {
	old := x.namespaces[name]
	if x.namespaces[name] = ns; ns == nil {
		delete(x.namespaces, name)
	}
	for g := range x.wideGroups {
		now := g.hasNamespace(name, ns)
		if now == g.hasNamespace(name, old) {
			continue
		}
		for p := range x.inNamespace[name] {
			x.setMember(g, p, now && g.pods.Matches(p.labels))
		}
	}
}

// changePod follows a pod; o is nil when it is gone.
func (x *index) changePod(name model.Name, o *model.Pod) {
	if o != nil && o.HostNetwork {
		o = nil
	}
	p, known := x.pods[name]
	switch {
	case o == nil && !known:
		return
	case o == nil:
		x.removePod(p)
		return
	case !known:
		p = newPod(name)
		p.object = o
		x.pods[name] = p
		put(x.inNamespace, name.Namespace, p)
	}
	old := p.object
	relabel := !known || !maps.Equal(p.labels, o.Labels)
	p.object, p.labels = o, o.Labels
	if !slices.Equal(p.ports, o.Ports) {
		p.ports = o.Ports
		x.markAll(p)
	}
	if relabel {
		x.regroup(p)
	}
	if !known || !slices.Equal(old.IPs, o.IPs) || !old.Created.Equal(o.Created) || old.Node != o.Node {
		x.readdress(p, old.IPs, o.IPs)
	}
}

// markAll marks all that depends on a pod's ports.
func (x *index) markAll(p *pod) {
	for a := range p.addrs {
		x.unsettle(a)
		for g := range p.groups {
			x.markPeer(g, p, a)
		}
	}
}

func (x *index) removePod(p *pod) {
	delete(x.pods, p.name)
	x.readdress(p, p.object.IPs, nil)
	take(x.inNamespace, p.name.Namespace, p)
	for g := range p.groups {
		delete(g.members, p)
	}
}

// regroup looks at each group that the pod could belong to.
func (x *index) regroup(p *pod) {
	ns := x.namespaces[p.name.Namespace]
	for g := range x.ownGroups[p.name.Namespace] {
		x.setMember(g, p, g.has(p, ns))
	}
	for g := range x.wideGroups {
		x.setMember(g, p, g.has(p, ns))
	}
}
