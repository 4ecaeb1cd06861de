// Package api holds the types that Wayleave adds to a Kubernetes API, and the
// definitions (CRDs) by which an API server knows them.
//
// Invariants:
//   - What an API server can check (the schema, CEL rules) it checks; what it cannot,
//     package source does, and says so by Event and condition.
//   - The Go types and the YAML of the definition have the same fields.
package api

import (
	_ "embed"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The group and version of all types.
const (
	Group        = "wayleave.dev"
	Version      = "v1alpha1"
	GroupVersion = Group + "/" + Version
	// AddressPools is the resource of AddressPool, Kind its kind.
	AddressPools    = "addresspools"
	AddressPoolKind = "AddressPool"
)

// AddressPoolCRD is the YAML of the CustomResourceDefinition of AddressPool.
//
//go:embed addresspool.yaml
var AddressPoolCRD []byte

// AddressPool is a set of addresses that Services of type LoadBalancer may get.
type AddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              AddressPoolSpec   `json:"spec"`
	Status            AddressPoolStatus `json:"status,omitempty"`
}

// AddressPoolSpec is what a user wants.
type AddressPoolSpec struct {
	// Addresses are CIDRs, ranges "FROM-TO" and single addresses, of both families.
	Addresses []string `json:"addresses"`
	// AutoAssign gives addresses to Services that ask for none; unset is true.
	AutoAssign *bool `json:"autoAssign,omitempty"`
	// AvoidBuggyAddresses leaves out IPv4 addresses that end in .0 and .255.
	AvoidBuggyAddresses bool `json:"avoidBuggyAddresses,omitempty"`
	// ServiceSelector and NamespaceSelector say whose Services may have an address;
	// unset is all.
	ServiceSelector   *metav1.LabelSelector `json:"serviceSelector,omitempty"`
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	L2                L2                    `json:"l2,omitempty"`
}

// L2 is how the addresses are answered for on the local network.
type L2 struct {
	// Enabled has nodes answer ARP and NDP; unset is true.
	Enabled *bool `json:"enabled,omitempty"`
	// Interfaces are names or globs (eth*) of those to answer on; empty: the ones that
	// have an InternalIP of the node.
	Interfaces []string `json:"interfaces,omitempty"`
	// NodeSelector says which nodes may answer; unset is all.
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
}

// AddressPoolStatus is what became of it.
type AddressPoolStatus struct {
	// Used and Free count addresses; more than 2^63-1 are told as 2^63-1.
	Used int64 `json:"used"`
	Free int64 `json:"free"`
	// Conditions has one of type Ready; its reasons are Ready, Full, Overlaps and Invalid.
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
