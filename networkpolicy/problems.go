package networkpolicy

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// Problems finds parts of a valid policy that have no effect now, for Events of the elected writer. It is pure, and
// looks at each pod of the snapshot at most a few times. None of them is an error: pods may appear later.
func Problems(snap model.Snapshot, name model.Name) []model.Problem {
	return problems(snap, name, nil)
}

// problems is Problems; families are those that the cluster has, nil when they are to be
// looked for.
func problems(snap model.Snapshot, name model.Name, families map[bool]bool) []model.Problem {
	o, ok := snap.NetworkPolicy(name)
	if !ok {
		return nil
	}
	c := critic{snap: snap, policy: o, families: families}
	c.subject()
	if o.IsolatesIngress {
		c.rules("spec.ingress", o.Ingress, Ingress)
	}
	if o.IsolatesEgress {
		c.rules("spec.egress", o.Egress, Egress)
	}
	return c.found
}

type critic struct {
	snap   model.Snapshot
	policy *model.NetworkPolicy
	found  []model.Problem
	// families are those of the cluster, nil until they are needed.
	families map[bool]bool // by Is6
}

func (c *critic) say(field, format string, args ...any) {
	c.found = append(c.found, model.Problem{Kind: "NetworkPolicy", Object: c.policy.Name, Field: field,
		Reason: fmt.Sprintf(format, args...), Note: true})
}

// selected are the pods of the pod network that a group has.
func (c *critic) selected(g *group) iter.Seq[*model.Pod] {
	return func(yield func(*model.Pod) bool) {
		pods := c.snap.Pods()
		if g.key.own != "" {
			pods = c.snap.PodsOf(g.key.own)
		}
		for o := range pods {
			if o.HostNetwork {
				continue
			}
			ns, _ := c.snap.Namespace(o.Name.Namespace)
			if g.has(&pod{name: o.Name, labels: o.Labels}, ns) && !yield(o) {
				return
			}
		}
	}
}

// anyOf says whether one of the group's pods fulfils the condition.
func (c *critic) anyOf(g *group, holds func(*model.Pod) bool) bool {
	for o := range c.selected(g) {
		if holds(o) {
			return true
		}
	}
	return false
}

func (c *critic) subject() {
	if c.anyOf(subjectOf(c.policy), func(*model.Pod) bool { return true }) {
		return
	}
	c.say("spec.podSelector",
		"selects no pod of the namespace %s, so the policy has no effect; pods with hostNetwork are never selected",
		c.policy.Name.Namespace)
}

func (c *critic) rules(field string, rules []model.PolicyRule, d Direction) {
	for i, r := range rules {
		at := fmt.Sprintf("%s[%d]", field, i)
		for j, p := range r.Peers {
			c.block(fmt.Sprintf("%s.%s[%d].ipBlock", at, peersField(d), j), p)
		}
		_, names := rulePorts(r)
		slices.SortFunc(names, portName.compare)
		for _, n := range slices.Compact(names) {
			c.name(at+".ports", r, n, d)
		}
	}
}

func peersField(d Direction) string {
	if d == Egress {
		return "to"
	}
	return "from"
}

// name looks for a pod that has the named port: among the subject's for ingress, among
// the peers for egress.
func (c *critic) name(field string, r model.PolicyRule, n portName, d Direction) {
	has := func(o *model.Pod) bool { return !resolve([]portName{n}, o.Ports).Empty() }
	if d == Ingress {
		if !c.anyOf(subjectOf(c.policy), has) {
			c.say(field, "no pod that the policy selects has a port with the name %q for %s", n.name, n.protocol)
		}
		return
	}
	groups := peerGroups(c.policy.Name.Namespace, r)
	if len(groups) == 0 && len(r.Peers) == 0 {
		return // none of them could be read, which was said
	}
	if len(groups) == 0 {
		c.say(field, "the name %q means nothing here: the rule's peers are ipBlocks, and addresses have no names "+
			"for ports; use a number", n.name)
		return
	}
	dns := newIndex().dns
	for _, g := range groups {
		ns, _ := c.snap.Namespace(dns.name.Namespace)
		if c.anyOf(g, has) || g.has(dns, ns) && !resolve([]portName{n}, dns.ports).Empty() {
			return
		}
	}
	c.say(field, "no pod that the rule's peers select has a port with the name %q for %s", n.name, n.protocol)
}

// peerGroups returns the groups of an egress rule's peers.
func peerGroups(namespace string, r model.PolicyRule) (out []*group) {
	if r.AnyPeer {
		return []*group{anyPod()}
	}
	for _, p := range r.Peers {
		if !p.Block.IsValid() {
			out = append(out, peersOf(namespace, p))
		}
	}
	return out
}

// block says when no address of the block's family is in the cluster. All addresses of a
// family are often written together with those of the other; that is no mistake.
func (c *critic) block(field string, p model.PolicyPeer) {
	if !p.Block.IsValid() || p.Block.Bits() == 0 {
		return
	}
	is6 := p.Block.Addr().Is6()
	if c.families == nil {
		c.families = families(c.snap)
	}
	if len(c.families) > 0 && !c.families[is6] {
		have, other := "IPv6", "IPv4"
		if is6 {
			have, other = other, have
		}
		c.say(field, "%s is of %s, and all addresses of this cluster's pods are of %s", p.Block, other, have)
	}
}

// families are those of the pods' addresses and of the ranges that nodes have for them;
// where there are none of these, those of the nodes.
func families(snap model.Snapshot) map[bool]bool {
	out := map[bool]bool{}
	add := func(list []netip.Addr) {
		for _, a := range list {
			out[a.Is6()] = true
		}
	}
	for n := range snap.Nodes() {
		for _, p := range n.PodCIDRs {
			out[p.Addr().Is6()] = true
		}
	}
	for p := range snap.Pods() {
		if len(out) == 2 {
			return out
		}
		if !p.HostNetwork {
			add(p.IPs)
		}
	}
	if len(out) == 0 {
		for n := range snap.Nodes() {
			add(n.InternalIPs)
		}
	}
	return out
}
