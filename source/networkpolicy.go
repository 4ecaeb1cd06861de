package source

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"wayleave.dev/model"
)

// NetworkPolicy converts a NetworkPolicy. A rule, peer or port that cannot be parsed allows nothing. A subject that
// cannot be parsed isolates no pod.
func NetworkPolicy(in *networkingv1.NetworkPolicy) (*model.NetworkPolicy, []model.Problem) {
	c := newChecker("NetworkPolicy", &in.ObjectMeta)
	out := &model.NetworkPolicy{Name: c.object, UID: string(in.UID), Subject: c.selector("spec.podSelector",
		&in.Spec.PodSelector)}
	if out.Subject.Nothing {
		c.bad("spec.podSelector", "cannot be parsed: the policy isolates no pod")
	}
	c.policyTypes(in, out)
	for i, r := range in.Spec.Ingress {
		if out.IsolatesIngress && c.within(i, maxPolicyRules, "spec.ingress", "rules") {
			out.Ingress = append(out.Ingress, c.policyRule(fmt.Sprintf("spec.ingress[%d]", i), "from", r.From, r.Ports))
		}
	}
	for i, r := range in.Spec.Egress {
		if out.IsolatesEgress && c.within(i, maxPolicyRules, "spec.egress", "rules") {
			out.Egress = append(out.Egress, c.policyRule(fmt.Sprintf("spec.egress[%d]", i), "to", r.To, r.Ports))
		}
	}
	return out, c.problems
}

// Bounds of one policy: every combination of its rules is a set of ports of its own, for each pod and block.
const (
	maxPolicyRules     = 512 // of a direction
	maxPolicyPorts     = 4096
	maxPolicySelectors = 1024
)

// within reports whether the nth part of a policy, counted from 0, is within a bound. Parts over it allow nothing.
func (c *checker) within(n, most int, field, parts string) bool {
	if n == most {
		c.bad(field, "has more than %d %s, which is the limit; the others allow nothing", most, parts)
	}
	return n < most
}

// policyTypes applies the API's defaults: ingress, and egress if there are egress rules.
func (c *checker) policyTypes(in *networkingv1.NetworkPolicy, out *model.NetworkPolicy) {
	if len(in.Spec.PolicyTypes) == 0 {
		out.IsolatesIngress, out.IsolatesEgress = true, len(in.Spec.Egress) > 0
		return
	}
	for i, t := range in.Spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			out.IsolatesIngress = true
		case networkingv1.PolicyTypeEgress:
			out.IsolatesEgress = true
		default:
			c.bad(fmt.Sprintf("spec.policyTypes[%d]", i), "%q is not a type; Ingress and Egress are allowed", t)
		}
	}
	if !out.IsolatesIngress && len(in.Spec.Ingress) > 0 {
		c.bad("spec.ingress", "has no effect: spec.policyTypes does not contain Ingress")
	}
	if !out.IsolatesEgress && len(in.Spec.Egress) > 0 {
		c.bad("spec.egress", "has no effect: spec.policyTypes does not contain Egress")
	}
}

// policyRule reads one rule; peers is "from" or "to". A missing or empty list allows everything; a list of invalid
// items allows nothing.
func (c *checker) policyRule(field, peers string, in []networkingv1.NetworkPolicyPeer,
	ports []networkingv1.NetworkPolicyPort) model.PolicyRule {
	out := model.PolicyRule{AnyPeer: len(in) == 0, AnyPort: len(ports) == 0}
	for i := range in {
		if p, ok := c.policyPeer(fmt.Sprintf("%s.%s[%d]", field, peers, i), &in[i]); ok {
			out.Peers = append(out.Peers, p)
		}
	}
	named := -1
	for i := range ports {
		if c.ports++; !c.within(c.ports-1, maxPolicyPorts, field+".ports", "ports in the policy") {
			continue // the rule has ports, and these allow nothing
		}
		if p, ok := c.policyPort(fmt.Sprintf("%s.ports[%d]", field, i), &ports[i]); ok {
			out.Ports = append(out.Ports, p)
			if p.Name != "" {
				named = i
			}
		}
	}
	blocks := slices.ContainsFunc(out.Peers, func(p model.PolicyPeer) bool { return p.Block.IsValid() })
	if peers == "to" && named >= 0 && blocks {
		c.bad(fmt.Sprintf("%s.ports[%d].port", field, named),
			"%q is a name: it allows nothing with an ipBlock, because addresses have no named ports",
			ports[named].Port.StrVal)
	}
	return out
}

func (c *checker) policyPeer(field string, in *networkingv1.NetworkPolicyPeer) (out model.PolicyPeer, ok bool) {
	selectors := in.PodSelector != nil || in.NamespaceSelector != nil
	switch {
	case in.IPBlock != nil && selectors:
		c.bad(field+".ipBlock", "is allowed only without podSelector and namespaceSelector")
		return out, false
	case in.IPBlock != nil:
		return c.ipBlock(field+".ipBlock", in.IPBlock)
	case !selectors:
		c.bad(field, "is empty; podSelector, namespaceSelector, both or ipBlock are allowed")
		return out, false
	}
	if c.selectors++; !c.within(c.selectors-1, maxPolicySelectors, field, "selectors in the policy") {
		return out, false
	}
	out.Pods = c.selector(field+".podSelector", in.PodSelector)
	if in.NamespaceSelector != nil {
		namespaces := c.selector(field+".namespaceSelector", in.NamespaceSelector)
		out.Namespaces = &namespaces
	}
	return out, !out.Pods.Nothing && (out.Namespaces == nil || !out.Namespaces.Nothing)
}

// ipBlock reads a block. A block with an invalid exception allows nothing, because the exception may be an address
// that must be denied.
func (c *checker) ipBlock(field string, in *networkingv1.IPBlock) (out model.PolicyPeer, ok bool) {
	if out.Block, ok = c.cidr(field+".cidr", in.CIDR); !ok {
		return out, false
	}
	for i, s := range in.Except {
		at := fmt.Sprintf("%s.except[%d]", field, i)
		p, readable := c.cidr(at, s)
		switch {
		case !readable:
			ok = false
		case !p.Overlaps(out.Block):
			c.bad(at, "%s is not in %s and excludes nothing", p, out.Block)
		default:
			out.Except = append(out.Except, p)
		}
	}
	return out, ok
}

func (c *checker) policyPort(field string, in *networkingv1.NetworkPolicyPort) (out model.PolicyPort, ok bool) {
	if out.Protocol, ok = c.protocol(field+".protocol", deref(in.Protocol, "")); !ok {
		return out, false
	}
	switch {
	case in.Port == nil && in.EndPort != nil:
		c.bad(field+".endPort", "%d has no port, where the range begins", *in.EndPort)
		return out, false
	case in.Port == nil:
		out.To = 65535
		return out, true
	case in.Port.Type == intstr.String && in.EndPort != nil:
		c.bad(field+".endPort", "%d is allowed only if port is a number, not %q", *in.EndPort, in.Port.StrVal)
		return out, false
	case in.Port.Type == intstr.String:
		if len(validation.IsValidPortName(in.Port.StrVal)) > 0 {
			c.bad(field+".port", "%q is neither the name of a port nor a number", in.Port.StrVal)
			return out, false
		}
		out.Name = intern(in.Port.StrVal)
		return out, true
	}
	if out.From, ok = c.port(field+".port", in.Port.IntVal); !ok {
		return out, false
	}
	out.To = out.From
	if in.EndPort != nil {
		if out.To, ok = c.port(field+".endPort", *in.EndPort); ok && out.To < out.From {
			c.bad(field+".endPort", "%d is before port %d", out.To, out.From)
			ok = false
		}
	}
	return out, ok
}

// namedPorts returns the ports that policies can name: of containers, and of restartable init containers (KEP-753).
func (c *checker) namedPorts(in *corev1.Pod, out *model.Pod) {
	for i := range in.Spec.Containers {
		c.containerPorts(fmt.Sprintf("spec.containers[%d]", i), &in.Spec.Containers[i], out)
	}
	for i := range in.Spec.InitContainers {
		if deref(in.Spec.InitContainers[i].RestartPolicy, "") == corev1.ContainerRestartPolicyAlways {
			c.containerPorts(fmt.Sprintf("spec.initContainers[%d]", i), &in.Spec.InitContainers[i], out)
		}
	}
}

func (c *checker) containerPorts(field string, in *corev1.Container, out *model.Pod) {
	for i, p := range in.Ports {
		if p.Name == "" {
			continue
		}
		at := fmt.Sprintf("%s.ports[%d]", field, i)
		proto, ok := c.protocol(at+".protocol", p.Protocol)
		if !ok {
			continue
		}
		port, ok := c.port(at+".containerPort", p.ContainerPort)
		if n := (model.NamedPort{Name: intern(p.Name), Protocol: proto, Port: port}); ok &&
			!slices.Contains(out.Ports, n) {
			out.Ports = append(out.Ports, n)
		}
	}
}
