package networkpolicy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"wayleave.dev/model"
)

// policy is a NetworkPolicy with the groups of its selectors.
type policy struct {
	object   *model.NetworkPolicy
	subject  *group
	rules    [2][]rule // by direction
	profiles map[*profile]struct{}
}

// rule is one rule of a policy in one direction.
type rule struct {
	groups  []*group
	anyPeer bool
	// blocks are the addresses of its ipBlocks, maybe overlapping.
	blocks []model.Range
	ports  Ports
	names  []portName
}

// isolates says whether the policy isolates its subject in the direction.
func isolates(p *model.NetworkPolicy, d Direction) bool {
	if d == Egress {
		return p.IsolatesEgress
	}
	return p.IsolatesIngress
}

// compile acquires the groups of a policy. Each must be released.
func (x *index) compile(o *model.NetworkPolicy) *policy {
	p := &policy{object: o, subject: x.acquire(subjectOf(o)), profiles: map[*profile]struct{}{}}
	if o.IsolatesIngress {
		for _, r := range o.Ingress {
			p.rules[Ingress] = append(p.rules[Ingress], x.compileRule(o.Name.Namespace, r, Ingress))
		}
	}
	if o.IsolatesEgress {
		for _, r := range o.Egress {
			p.rules[Egress] = append(p.rules[Egress], x.compileRule(o.Name.Namespace, r, Egress))
		}
	}
	return p
}

func (x *index) compileRule(namespace string, in model.PolicyRule, d Direction) rule {
	r := rule{anyPeer: in.AnyPeer}
	r.ports, r.names = rulePorts(in)
	if in.AnyPeer {
		r.blocks = everywhere()
		if d == Egress && len(r.names) > 0 {
			r.groups = append(r.groups, x.acquire(anyPod())) // names mean something at pods only
		}
		return r
	}
	for _, peer := range in.Peers {
		if peer.Block.IsValid() {
			r.blocks = append(r.blocks, subtract(peer.Block, peer.Except)...)
			continue
		}
		r.groups = append(r.groups, x.acquire(peersOf(namespace, peer)))
	}
	return r
}

// groups returns all groups that compile acquired, each as often.
func (p *policy) groups() []*group {
	out := []*group{p.subject}
	for _, rules := range p.rules {
		for _, r := range rules {
			out = append(out, r.groups...)
		}
	}
	return out
}

// profile is what a set of policies allows the pods that they isolate.
type profile struct {
	id        string
	direction Direction
	policies  []model.Name
	// grants are the ports that each group may reach.
	grants map[*group]grant
	blocks []Block
	// addrs are those of this node's pods that have the profile.
	addrs map[netip.Addr]struct{}
}

// grant is ports by number, and by names that each peer resolves.
type grant struct {
	ports Ports
	names []portName
}

// origin is what a profile is made from, and what its ID depends on. It is the same in every agent, so that a starting
// agent finds its profiles in the kernel.
type origin struct {
	direction Direction
	policies  []*policy // sorted by name
	// named are the subject's ports that the policies name; for ingress only.
	named []model.NamedPort
}

// id is 16 hex digits.
func (o origin) id() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", o.direction)
	for _, p := range o.policies {
		fmt.Fprintf(&b, "%s\n", p.object.Name)
	}
	for _, n := range o.named {
		fmt.Fprintf(&b, "%q %d %d\n", n.Name, n.Protocol, n.Port)
	}
	return hash(b.String())
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// closed is the ID of the profile of pods that are not in the model yet.
func closed(d Direction) string { return hash(d.String() + "\nunknown pods") }

// originOf is the origin of a pod's profile from the policies that isolate it.
func originOf(d Direction, policies []*policy, ports []model.NamedPort) origin {
	slices.SortFunc(policies, func(a, b *policy) int { return a.object.Name.Compare(b.object.Name) })
	o := origin{direction: d, policies: policies}
	if d == Egress || len(ports) == 0 {
		return o
	}
	used := map[portName]bool{}
	for _, p := range policies {
		for _, r := range p.rules[d] {
			for _, n := range r.names {
				used[n] = true
			}
		}
	}
	for _, p := range ports {
		if used[portName{p.Protocol, p.Name}] {
			o.named = append(o.named, p)
		}
	}
	slices.SortFunc(o.named, func(a, b model.NamedPort) int {
		if c := (portName{a.Protocol, a.Name}).compare(portName{b.Protocol, b.Name}); c != 0 {
			return c
		}
		return int(a.Port) - int(b.Port)
	})
	o.named = slices.Compact(o.named)
	return o
}

// newProfile joins the rules of all policies of an origin.
func newProfile(id string, o origin) *profile {
	prof := &profile{id: id, direction: o.direction, grants: map[*group]grant{}, addrs: map[netip.Addr]struct{}{}}
	var blocks []Block
	for _, p := range o.policies {
		prof.policies = append(prof.policies, p.object.Name)
		for _, r := range p.rules[o.direction] {
			blocks = prof.add(r, o.named, blocks)
		}
	}
	prof.blocks = overlay(blocks)
	return prof
}

// add adds a rule's groups to the profile, and its blocks to the list. Where packets go
// to the subject, it is the subject whose ports have the names.
func (prof *profile) add(r rule, named []model.NamedPort, blocks []Block) []Block {
	ports, names := r.ports, r.names
	if prof.direction == Ingress {
		ports, names = union(ports, resolve(names, named)), nil
	}
	for _, g := range r.groups {
		had := prof.grants[g]
		prof.grants[g] = grant{union(had.ports, ports), slices.Concat(had.names, names)}
	}
	for _, b := range r.blocks {
		blocks = append(blocks, Block{b, ports})
	}
	return blocks
}

// peer returns the ports that a pod may reach from one of its addresses; empty when the profile's groups grant none.
func (prof *profile) peer(p *pod, a netip.Addr) (out Ports) {
	var sets []Ports
	if len(p.groups) < len(prof.grants) {
		for g := range p.groups {
			if grant, ok := prof.grants[g]; ok {
				sets = append(sets, grant.at(p))
			}
		}
	} else {
		for g, grant := range prof.grants {
			if _, ok := p.groups[g]; ok {
				sets = append(sets, grant.at(p))
			}
		}
	}
	if out = unionOf(sets); out.Empty() {
		return out
	}
	return union(out, portsAt(prof.blocks, a))
}

func (g grant) at(p *pod) Ports {
	if len(g.names) == 0 {
		return g.ports
	}
	return union(g.ports, resolve(g.names, p.ports))
}
