// Package api holds the types that Wayleave adds to the Kubernetes API, and their definitions (CRDs).
//
// Invariants:
//   - The API server checks what it can (the schema, CEL rules). Package source checks the rest, and reports it by
//
// Event and condition.
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
	// AddressPools is the resource of AddressPool; Kind is its kind.
	AddressPools    = "addresspools"
	AddressPoolKind = "AddressPool"
)

// AddressPoolCRD is the YAML of the CustomResourceDefinition of AddressPool.
//
//go:embed addresspool.yaml
var AddressPoolCRD []byte

// AddressPool is a set of addresses for Services of type LoadBalancer.
type AddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              AddressPoolSpec   `json:"spec"`
	Status            AddressPoolStatus `json:"status,omitempty"`
}

// AddressPoolSpec is the desired state.
type AddressPoolSpec struct {
	// Addresses are CIDRs, ranges "FROM-TO" and single addresses, of both families.
	Addresses []string `json:"addresses"`
	// AutoAssign allocates addresses to Services that request none; unset is true.
	AutoAssign *bool `json:"autoAssign,omitempty"`
	// AvoidBuggyAddresses skips IPv4 addresses that end in .0 and .255.
	AvoidBuggyAddresses bool `json:"avoidBuggyAddresses,omitempty"`
	// ServiceSelector and NamespaceSelector select the Services that may use the pool; unset selects all.
	ServiceSelector   *metav1.LabelSelector `json:"serviceSelector,omitempty"`
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	L2                L2                    `json:"l2,omitempty"`
	BGP               BGP                   `json:"bgp,omitzero"`
}

// BGP configures the announcement to routers.
type BGP struct {
	// Enabled announces the addresses as BGPAdvertisements say; unset is false.
	Enabled bool `json:"enabled,omitempty"`
}

// L2 configures the announcement on the local network.
type L2 struct {
	// Enabled announces the addresses by ARP and NDP; unset is true.
	Enabled *bool `json:"enabled,omitempty"`
	// Interfaces are names or globs (eth*) of interfaces; empty: those with an InternalIP of the node.
	Interfaces []string `json:"interfaces,omitempty"`
	// NodeSelector selects the candidate nodes; unset selects all.
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
}

// AddressPoolStatus is the observed state.
type AddressPoolStatus struct {
	// Used and Free count addresses, at most 2^63-1.
	Used int64 `json:"used"`
	Free int64 `json:"free"`
	// Conditions has one of type Ready; its reasons are Ready, Full, Overlaps and Invalid.
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
