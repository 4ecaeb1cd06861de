package model

import (
	"iter"
	"net/netip"
)

// NetworkPolicy is what Wayleave uses of a NetworkPolicy (networking.k8s.io/v1).
// What of it cannot be read allows nothing.
type NetworkPolicy struct {
	Name Name
	// UID is for Events.
	UID string
	// Subject selects the pods of the policy's own namespace that it is about.
	Subject Selector
	// IsolatesIngress and IsolatesEgress are policyTypes, with the defaults applied. The
	// rules of a direction that it does not isolate have no meaning, and are not here.
	IsolatesIngress, IsolatesEgress bool
	// Ingress and Egress are the rules in the order of the API; each allows.
	Ingress, Egress []PolicyRule
}

// PolicyRule allows what comes from (ingress) or goes to (egress) one of its peers
// and is for one of its ports.
type PolicyRule struct {
	// AnyPeer is a missing or empty list of peers; else only Peers, which may be empty
	// when none of them could be read.
	AnyPeer bool
	Peers   []PolicyPeer
	// AnyPort is a missing or empty list of ports: every protocol, also those without
	// ports; else only Ports.
	AnyPort bool
	Ports   []PolicyPort
}

// PolicyPeer is pods, or addresses when Block is valid.
type PolicyPeer struct {
	// Namespaces selects the namespaces of the pods; nil is the policy's own.
	Namespaces *Selector
	// Pods selects the pods of these namespaces.
	Pods Selector
	// Block is an ipBlock without the addresses in Except.
	Block  netip.Prefix
	Except []netip.Prefix
}

// PolicyPort is ports of one protocol at the pod (ingress) or at the peer (egress).
type PolicyPort struct {
	Protocol Protocol
	// Name is the name of a port of the pod that the packet goes to; From and To are 0.
	Name string
	// From and To are the ports, both included; 0 and 65535 when all are meant.
	From, To uint16
}

var networkPolicies = describe(descriptor[*NetworkPolicy]{kind: NetworkPolicyKind, label: "NetworkPolicy",
	name: func(p *NetworkPolicy) Name { return p.Name }})

// PutNetworkPolicy sets a policy; the store owns it from now on.
func (w *Writer) PutNetworkPolicy(o *NetworkPolicy) { put(w, networkPolicies, o) }

// NetworkPolicy returns the policy of that name.
func (v Snapshot) NetworkPolicy(n Name) (*NetworkPolicy, bool) { return get(v, networkPolicies, n) }

// NetworkPolicies yields all policies.
func (v Snapshot) NetworkPolicies() iter.Seq[*NetworkPolicy] { return all(v, networkPolicies) }

// NetworkPoliciesOf yields the policies of one namespace.
func (v Snapshot) NetworkPoliciesOf(namespace string) iter.Seq[*NetworkPolicy] {
	return allIn(v, networkPolicies, namespace)
}
