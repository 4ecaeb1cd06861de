// Package ebpf is the mode of Services that translates at the socket where it can, and by nftables everywhere.
//
// The mode contains the complete mode nftables. Beside it, it fills the maps of kernel/bpf/sockets with the frontends
// that the socket programs serve exactly as the rules do (left gives the reasons of the others). What the programs do
// not translate meets the rules.
//
// A Service is opened in nftables first and closed in the maps first. The maps follow the plans that nftables has in
// force, so claims are decided once, and a Service that nftables refuses does not change in the maps either.
package ebpf

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"wayleave.dev/kernel/bpf/sockets"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
)

// left returns why a frontend is left to nftables; empty if the socket programs serve it.
func left(e service.FrontendPlan) string {
	switch {
	case e.Frontend.IsNodePort():
		return "node port: nftables replaces the client's address"
	case e.Frontend.Protocol != model.TCP && e.Frontend.Protocol != model.UDP:
		return "the protocol has no hook"
	case len(e.Slots) == 0:
		return "no endpoints: nftables refuses or drops"
	case e.Affinity > 0:
		return "session affinity: nftables remembers clients"
	case len(e.Sources) > 0:
		return "source ranges: nftables knows the client's address"
	case e.External && !e.Split:
		return "external address: nftables replaces the client's address"
	}
	return ""
}

// frontends returns what the maps hold for a plan.
func frontends(p service.Plan) (out []sockets.Frontend) {
	for _, e := range p.Frontends {
		if left(e) == "" {
			// With externalTrafficPolicy Local, nftables replaces the address of the node's processes, and leaves that
			// of pods unchanged.
			out = append(out, sockets.Frontend{Key: keyOf(e.Frontend), Backends: e.Slots, PodsOnly: e.Split})
		}
	}
	return out
}

func keyOf(f service.Frontend) sockets.Key {
	return sockets.Key{At: netip.AddrPortFrom(f.Addr, f.Port), Protocol: f.Protocol}
}

// Text renders plans for people: the frontends in the maps, those that are left to nftables, and its tables.
func Text(plans map[model.Name]service.Plan, l service.NodeFacts) string {
	var served, others []string
	for _, k := range slices.SortedFunc(maps.Keys(plans), model.Name.Compare) {
		for _, f := range frontends(plans[k]) {
			served = append(served, "  "+f.String())
		}
		for _, e := range plans[k].Frontends {
			if why := left(e); why != "" {
				others = append(others, fmt.Sprintf("  %s: %s", e.Frontend, why))
			}
		}
	}
	var b strings.Builder
	b.WriteString("# translated at the socket\n")
	for _, line := range served {
		fmt.Fprintf(&b, "#%s\n", line)
	}
	b.WriteString("# left to nftables\n")
	for _, line := range others {
		fmt.Fprintf(&b, "#%s\n", line)
	}
	return b.String() + nftables.Text(plans, l)
}
