// Package dataplane is the registry of data planes. A data plane programs the kernel for all features that handle
// packets: Services, NetworkPolicies, the cluster DNS, host ports and masquerading. The setting mode chooses one.
//
// A plane is added by an entry of service/dataplane.Kinds, for Services, and, unless it leaves the rest to nftables, by
// its Rules in All.
package dataplane

import (
	"fmt"
	"slices"

	"wayleave.dev/config"
	"wayleave.dev/dns"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/networkpolicy"
	policynft "wayleave.dev/networkpolicy/nftables"
	"wayleave.dev/podnetwork"
	"wayleave.dev/service/dataplane"
)

// Plane is one data plane: what it offers to each feature.
type Plane interface {
	// Kind is for Services.
	dataplane.Kind
	Rules
	// FastPath reports whether established connections of pods are redirected past the network stack. Rules decide
	// about them as in the other planes.
	FastPath() bool
}

// Rules are what a data plane offers to the other features. Values are comparable: planes may share them.
type Rules interface {
	// Policies makes what enforces NetworkPolicies.
	Policies(Kernel) networkpolicy.Mode
	// DNS makes what keeps queries for the node's own DNS server from the service proxy.
	DNS(Kernel) dns.Bypass
	// PodNetwork makes what translates host ports and what pods send out of the cluster.
	PodNetwork(Kernel) func(podnetwork.RulesConfig) podnetwork.Rules
}

// ebpf is the name of the plane with a fast path.
const ebpf = "ebpf"

// Kernel is the kernel of a network namespace.
type Kernel struct {
	// NSFD is the descriptor of the namespace, 0 for that of this process.
	NSFD int
	NFT  nft.Conn
}

// All are the data planes, the default first.
func All() (out []Plane) {
	for _, k := range dataplane.Kinds() {
		out = append(out, plane{k, nftables{}})
	}
	return out
}

// For is the data plane that the settings ask for.
func For(cfg config.Config) (Plane, error) {
	for _, p := range All() {
		if p.Name() == cfg.DataPlane() {
			return p, nil
		}
	}
	return nil, fmt.Errorf("mode: there is no data plane %q", cfg.DataPlane())
}

// AllRules are those of all planes, each once: what may have been left by any of them.
func AllRules() (out []Rules) {
	for _, p := range All() {
		if r := p.(plane).Rules; !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}

// plane pairs the two halves.
type plane struct {
	dataplane.Kind
	Rules
}

// FastPath implements Plane.
func (p plane) FastPath() bool { return p.Name() == ebpf }

// nftables are the rules of every plane that has none of its own.
type nftables struct{}

func (nftables) Policies(k Kernel) networkpolicy.Mode {
	return policynft.New(k.NFT, conntrack.NewTracker(k.NSFD))
}

func (nftables) DNS(k Kernel) dns.Bypass { return dns.NFTables{Conn: k.NFT} }

func (nftables) PodNetwork(k Kernel) func(podnetwork.RulesConfig) podnetwork.Rules {
	return podnetwork.NFTables(k.NFT)
}
