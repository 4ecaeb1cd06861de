package model

import (
	"iter"
	"net/netip"

	"github.com/cilium/statedb"
)

// Snapshot is the state at one moment. It costs nothing to take, never changes,
// and may be read by any number of goroutines. Iteration is in order of names.
type Snapshot struct {
	s   *Store
	txn statedb.ReadTxn
}

// Snapshot returns the state as of now.
func (s *Store) Snapshot() Snapshot { return Snapshot{s: s, txn: s.db.ReadTxn()} }

// Service returns the service of that name.
func (v Snapshot) Service(n Name) (*Service, bool) {
	o, _, ok := v.s.services.Get(v.txn, serviceByName.Query(n))
	return o, ok
}

// Services yields all services.
func (v Snapshot) Services() iter.Seq[*Service] {
	return statedb.ToSeq(v.s.services.All(v.txn))
}

// EndpointSlices yields the slices of one service.
func (v Snapshot) EndpointSlices(service Name) iter.Seq[*EndpointSlice] {
	return statedb.ToSeq(v.s.slices.List(v.txn, sliceByService.Query(service)))
}

// Pod returns the pod of that name.
func (v Snapshot) Pod(n Name) (*Pod, bool) {
	o, _, ok := v.s.pods.Get(v.txn, podByName.Query(n))
	return o, ok
}

// PodByIP returns a pod of the pod network that has the address.
func (v Snapshot) PodByIP(a netip.Addr) (*Pod, bool) {
	o, _, ok := v.s.pods.Get(v.txn, podByIP.Query(a))
	return o, ok
}

// Pods yields all pods.
func (v Snapshot) Pods() iter.Seq[*Pod] { return statedb.ToSeq(v.s.pods.All(v.txn)) }

// PodsOf yields the pods of one namespace.
func (v Snapshot) PodsOf(namespace string) iter.Seq[*Pod] {
	return statedb.ToSeq(v.s.pods.Prefix(v.txn, podByName.Query(Name{Namespace: namespace})))
}

// Node returns the node of that name.
func (v Snapshot) Node(name string) (*Node, bool) {
	o, _, ok := v.s.nodes.Get(v.txn, nodeByName.Query(name))
	return o, ok
}

// Nodes yields all nodes.
func (v Snapshot) Nodes() iter.Seq[*Node] { return statedb.ToSeq(v.s.nodes.All(v.txn)) }

// Namespace returns the namespace of that name.
func (v Snapshot) Namespace(name string) (*Namespace, bool) {
	o, _, ok := v.s.namespaces.Get(v.txn, namespaceByName.Query(name))
	return o, ok
}

// Namespaces yields all namespaces.
func (v Snapshot) Namespaces() iter.Seq[*Namespace] {
	return statedb.ToSeq(v.s.namespaces.All(v.txn))
}

// AddressPool returns the pool of that name.
func (v Snapshot) AddressPool(name string) (*AddressPool, bool) {
	o, _, ok := v.s.pools.Get(v.txn, poolByName.Query(name))
	return o, ok
}

// AddressPools yields all pools.
func (v Snapshot) AddressPools() iter.Seq[*AddressPool] {
	return statedb.ToSeq(v.s.pools.All(v.txn))
}

// NetworkPolicy returns the policy of that name.
func (v Snapshot) NetworkPolicy(n Name) (*NetworkPolicy, bool) {
	o, _, ok := v.s.policies.Get(v.txn, policyByName.Query(n))
	return o, ok
}

// NetworkPolicies yields all policies.
func (v Snapshot) NetworkPolicies() iter.Seq[*NetworkPolicy] {
	return statedb.ToSeq(v.s.policies.All(v.txn))
}

// NetworkPoliciesOf yields the policies of one namespace.
func (v Snapshot) NetworkPoliciesOf(namespace string) iter.Seq[*NetworkPolicy] {
	return statedb.ToSeq(v.s.policies.Prefix(v.txn, policyByName.Query(Name{Namespace: namespace})))
}

// Ingress returns the Ingress of that name.
func (v Snapshot) Ingress(n Name) (*Ingress, bool) {
	o, _, ok := v.s.ingresses.Get(v.txn, ingressByName.Query(n))
	return o, ok
}

// Ingresses yields all Ingresses.
func (v Snapshot) Ingresses() iter.Seq[*Ingress] {
	return statedb.ToSeq(v.s.ingresses.All(v.txn))
}

// IngressClass returns the class of that name.
func (v Snapshot) IngressClass(name string) (*IngressClass, bool) {
	o, _, ok := v.s.classes.Get(v.txn, classByName.Query(name))
	return o, ok
}

// IngressClasses yields all classes.
func (v Snapshot) IngressClasses() iter.Seq[*IngressClass] {
	return statedb.ToSeq(v.s.classes.All(v.txn))
}

// Secret returns the Secret of that name, if an Ingress names it.
func (v Snapshot) Secret(n Name) (*Secret, bool) {
	o, _, ok := v.s.secrets.Get(v.txn, secretByName.Query(n))
	return o, ok
}

// Count is the number of objects of one kind.
func (v Snapshot) Count(kind Kind) int {
	switch kind {
	case ServiceKind:
		return v.s.services.NumObjects(v.txn)
	case EndpointSliceKind:
		return v.s.slices.NumObjects(v.txn)
	case PodKind:
		return v.s.pods.NumObjects(v.txn)
	case NodeKind:
		return v.s.nodes.NumObjects(v.txn)
	case NamespaceKind:
		return v.s.namespaces.NumObjects(v.txn)
	case AddressPoolKind:
		return v.s.pools.NumObjects(v.txn)
	case NetworkPolicyKind:
		return v.s.policies.NumObjects(v.txn)
	case IngressKind:
		return v.s.ingresses.NumObjects(v.txn)
	case IngressClassKind:
		return v.s.classes.NumObjects(v.txn)
	case SecretKind:
		return v.s.secrets.NumObjects(v.txn)
	}
	return 0
}
