package networkpolicy

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"wayleave.dev/model"
)

// groupKey is what makes two groups the same. Policies that select alike share one.
type groupKey struct {
	// own is the namespace of pods that are selected without a namespace selector.
	own string
	// namespaces and pods are selectors in their normal form.
	namespaces, pods string
	// any is all pods, whether their namespace is known or not.
	any bool
}

// group is the pods that a selector of policies selects, as peers or as subjects.
type group struct {
	key        groupKey
	namespaces model.Selector
	pods       model.Selector
	members    map[*pod]struct{}
	// policies have it as their subject, profiles as peers.
	policies map[model.Name]struct{}
	profiles map[*profile]struct{}
	refs     int // of compiled policies
}

// selectorText returns the same text for selectors with the same requirements.
func selectorText(s model.Selector) string {
	if s.Nothing {
		return "nothing"
	}
	var parts []string
	for _, r := range s.Requirements {
		values := slices.Sorted(slices.Values(r.Values))
		for i, v := range values {
			values[i] = strconv.Quote(v)
		}
		parts = append(parts, strconv.Quote(r.Key)+" "+strconv.Itoa(int(r.Operator))+" "+
			strings.Join(slices.Compact(values), " "))
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), ";")
}

// subjectOf is the key of a policy's subject.
func subjectOf(p *model.NetworkPolicy) *group {
	return &group{key: groupKey{own: p.Name.Namespace, pods: selectorText(p.Subject)}, pods: p.Subject}
}

// peersOf is the group of a peer that is no block, in a policy of the namespace.
func peersOf(namespace string, p model.PolicyPeer) *group {
	if p.Namespaces == nil {
		return &group{key: groupKey{own: namespace, pods: selectorText(p.Pods)}, pods: p.Pods}
	}
	return &group{key: groupKey{namespaces: "of " + selectorText(*p.Namespaces), pods: selectorText(p.Pods)},
		namespaces: *p.Namespaces, pods: p.Pods}
}

// anyPod is the key of the group of all pods.
func anyPod() *group { return &group{key: groupKey{any: true}} }

// has says whether a pod of a namespace belongs to the group; ns is nil for one that
// is not known, which no namespace selector selects.
func (g *group) has(p *pod, ns *model.Namespace) bool {
	return g.hasNamespace(p.name.Namespace, ns) && g.pods.Matches(p.labels)
}

func (g *group) hasNamespace(name string, ns *model.Namespace) bool {
	switch {
	case g.key.any:
		return true
	case g.key.namespaces == "":
		return g.key.own == name
	}
	return ns != nil && g.namespaces.Matches(ns.Labels)
}

// acquire returns the group that is like the one given, with all its members.
func (x *index) acquire(like *group) *group {
	g, ok := x.groups[like.key]
	if !ok {
		g = like
		g.members, g.policies, g.profiles = map[*pod]struct{}{}, map[model.Name]struct{}{}, map[*profile]struct{}{}
		x.groups[g.key] = g
		x.addTo(g)
	}
	g.refs++
	return g
}

// addTo finds the members of a new group.
func (x *index) addTo(g *group) {
	names := maps.Keys(x.inNamespace)
	if g.key.own != "" {
		put(x.ownGroups, g.key.own, g)
		names = slices.Values([]string{g.key.own})
	} else {
		x.wideGroups[g] = struct{}{}
	}
	for name := range names {
		if !g.hasNamespace(name, x.namespaces[name]) {
			continue
		}
		for p := range x.inNamespace[name] {
			if g.pods.Matches(p.labels) {
				g.members[p], p.groups[g] = struct{}{}, struct{}{}
			}
		}
	}
}

// release forgets the group when no policy refers to it any more.
func (x *index) release(g *group) {
	if g.refs--; g.refs > 0 {
		return
	}
	for p := range g.members {
		delete(p.groups, g)
	}
	delete(x.groups, g.key)
	delete(x.wideGroups, g)
	take(x.ownGroups, g.key.own, g)
}

// put and take keep sets by key, without empty ones.
func put[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	if m[k] == nil {
		m[k] = map[V]struct{}{}
	}
	m[k][v] = struct{}{}
}

func take[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	delete(m[k], v)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}
