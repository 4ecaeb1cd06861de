package networkpolicy

import (
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// Verdict says whether a packet may pass, and why.
type Verdict struct {
	Allowed bool
	// Always says why policies do not apply; empty when they do.
	Always Reason
	// Egress is the verdict of the sender's policies, Ingress that of the receiver's. Both are complete, also when the
	// other denies.
	Egress, Ingress Half
}

// Reason is why a packet passes regardless of policies.
type Reason string

// The reasons.
const (
	SamePod Reason = "a pod always reaches itself"
	OwnNode Reason = "a pod and its own node always reach each other"
)

// Half is the verdict of one direction.
type Half struct {
	Allowed bool
	// Isolated says that the pod at this end accepts only what a rule allows.
	Isolated bool
	// Policies are those that isolate the pod, in order of names; none for an isolated
	// pod that is not known yet.
	Policies []model.Name
	// Rules are all rules of these policies.
	Rules []Rule
}

// Rule is the result of one rule of a policy for the packet. It allows when a peer and a port match together.
type Rule struct {
	Policy model.Name
	// Index is the rule's place in spec.ingress or spec.egress, from 0.
	Index int
	// Peer says that one of its peers is the packet's other end; Port that one of the
	// ports of such a peer matches, too.
	Peer, Port bool
}

// Allows says whether the rule lets the packet pass.
func (r Rule) Allows() bool { return r.Peer && r.Port }

// Evaluate decides the first packet of a flow by the documentation of NetworkPolicy,
// slowly and plainly: it is the reference for everything else. The parties are those after
// translation. The port is that of the receiver, and has no meaning for protocols without
// ports. Replies of allowed flows always pass, and are not evaluated here.
func Evaluate(v model.Snapshot, from, to Party, proto model.Protocol, port uint16) Verdict {
	q := question{v, proto, port, to.Pod}
	if to.DNS {
		q.target = dnsPod()
	}
	out := Verdict{Always: always(from, to), Egress: q.half(Egress, from, to), Ingress: q.half(Ingress, to, from)}
	out.Allowed = out.Always != "" || out.Egress.Allowed && out.Ingress.Allowed
	return out
}

func always(a, b Party) Reason {
	switch {
	case a.Addr == b.Addr, a.Pod != nil && b.Pod != nil && a.Pod.Name == b.Pod.Name:
		return SamePod
	case a.Pod != nil && b.Node != "" && a.Pod.Node == b.Node, b.Pod != nil && a.Node != "" && b.Pod.Node == a.Node:
		return OwnNode
	}
	return ""
}

// question is a packet. Names of ports are looked up at the target, which is the pod
// that it goes to, or nil.
type question struct {
	v      model.Snapshot
	proto  model.Protocol
	port   uint16
	target *model.Pod
}

// half evaluates the policies of the pod at one end, self, for the other end.
func (q question) half(d Direction, self, other Party) Half {
	namespace := self.Unknown.Namespace
	if self.Pod != nil {
		namespace = self.Pod.Name.Namespace
	}
	if namespace == "" {
		return Half{Allowed: true}
	}
	var h Half
	for p := range q.v.NetworkPoliciesOf(namespace) {
		isolates, rules := p.IsolatesIngress, p.Ingress
		if d == Egress {
			isolates, rules = p.IsolatesEgress, p.Egress
		}
		switch {
		case !isolates:
		case self.Pod == nil: // it may be one that the policy selects
			h.Isolated = true
		case p.Subject.Matches(self.Pod.Labels):
			h.Isolated = true
			h.Policies = append(h.Policies, p.Name)
			for i, r := range rules {
				h.Rules = append(h.Rules, q.rule(d, p.Name, i, r, other))
			}
		}
	}
	h.Allowed = !h.Isolated || slices.ContainsFunc(h.Rules, Rule.Allows)
	return h
}

func (q question) rule(d Direction, policy model.Name, index int, r model.PolicyRule, other Party) Rule {
	out := Rule{Policy: policy, Index: index, Peer: r.AnyPeer, Port: r.AnyPeer && q.ports(r, true)}
	for _, peer := range r.Peers {
		if !q.peer(policy.Namespace, peer, d, other) {
			continue
		}
		// A block is of addresses, and those have no names of ports.
		names := d == Ingress || !peer.Block.IsValid()
		out.Peer, out.Port = true, out.Port || q.ports(r, names)
	}
	return out
}

func (q question) peer(namespace string, peer model.PolicyPeer, d Direction, other Party) bool {
	if peer.Block.IsValid() {
		out := slices.ContainsFunc(peer.Except, func(p netip.Prefix) bool { return p.Contains(other.Addr) })
		return peer.Block.Contains(other.Addr) && !out
	}
	pod := other.Pod
	switch {
	case d == Egress && other.DNS:
		pod = q.target
	case d == Ingress && other.Proxy != "":
		pod = proxyPod()
	}
	if pod == nil || !peer.Pods.Matches(pod.Labels) {
		return false
	}
	if peer.Namespaces == nil {
		return pod.Name.Namespace == namespace
	}
	ns, ok := q.v.Namespace(pod.Name.Namespace)
	return ok && peer.Namespaces.Matches(ns.Labels)
}

// ports says whether the packet is for one of the rule's ports; names says whether names
// of ports mean something.
func (q question) ports(r model.PolicyRule, names bool) bool {
	return r.AnyPort || slices.ContainsFunc(r.Ports, func(p model.PolicyPort) bool {
		switch {
		case p.Protocol != q.proto:
			return false
		case p.Name == "":
			return p.From <= q.port && q.port <= p.To
		}
		return names && q.target != nil && slices.Contains(q.target.Ports, model.NamedPort{Name: p.Name,
			Protocol: q.proto, Port: q.port})
	})
}
