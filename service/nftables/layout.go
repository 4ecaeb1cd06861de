// Package nftables renders service plans to nftables.
//
// The layout is one of data, not of code. A new connection looks its destination
// up in a verdict map, which sends it to the chain for its number of slots; that
// chain draws a number and looks up the slot. There is one chain per number of
// slots, so a changed endpoint changes elements of maps and never a rule, and a
// packet passes as many expressions at 10,000 services as at 10.
package nftables

import (
	"fmt"
	"net/netip"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// TableName is the name of our tables, one per family.
const TableName = "wayleave-service"

// masqueradeMark is the bit of the packet mark between DNAT and masquerading, the
// one that kube-proxy uses by default. It is cleared before the packet leaves: a
// mark survives encapsulation, and would have the outer packet masqueraded, too.
const masqueradeMark = 0x4000

// Names of sets and maps.
const (
	setFrontends = "frontends"  // VIP . protocol . port → chain
	setSlots     = "slots"      // VIP . protocol . port . number → endpoint
	setNodePorts = "node-ports" // protocol . port → chain
	setNodeSlots = "node-slots" // protocol . port . number → endpoint
	setRefused   = "refused-node-ports"
	setVIPs      = "vips"
	setNodeIPs   = "node-ips"
	setPodCIDRs  = "pod-cidrs"
	setHairpin   = "hairpin"
)

// table is what is fixed of a family's table.
func table(f nft.Family) nft.Table {
	frontend := []nft.Field{nft.Daddr, nft.L4Proto, nft.Dport}
	nodePort := []nft.Field{nft.L4Proto, nft.Dport}
	translate := []nft.Rule{
		{nft.GotoBy{Fields: frontend, Map: setFrontends}},
		{nft.In{Fields: []nft.Field{nft.Daddr}, Set: setNodeIPs}, nft.GotoBy{Fields: nodePort, Map: setNodePorts}},
	}
	// Clients that are no pods get the node's address, or the endpoint's answer
	// would go past this node. A node's own processes have its address already.
	foreign := nft.Rule{
		nft.In{Fields: []nft.Field{nft.Daddr}, Set: setVIPs},
		nft.In{Fields: []nft.Field{nft.Saddr}, Set: setPodCIDRs, Not: true},
		nft.SetMark(masqueradeMark),
	}
	// A VIP that is an address of this node, as that of DNS is, is the source that
	// the kernel chooses for it; another node would send the answer to itself.
	own := nft.Rule{
		nft.In{Fields: []nft.Field{nft.Daddr}, Set: setVIPs},
		nft.In{Fields: []nft.Field{nft.Saddr}, Set: setVIPs},
		nft.SetMark(masqueradeMark),
	}
	// What is still for a VIP after translation has no endpoint or no such port.
	check := []nft.Rule{
		{nft.New, nft.In{Fields: []nft.Field{nft.Daddr}, Set: setVIPs}, nft.Goto("refuse")},
		{nft.New, nft.In{Fields: []nft.Field{nft.Daddr}, Set: setNodeIPs}, nft.In{Fields: nodePort, Set: setRefused}, nft.Goto("refuse")},
	}
	return nft.Table{
		Family: f, Name: TableName,
		Sets: []nft.Set{
			{Name: setFrontends, Key: []nft.Type{nft.Addr, nft.Proto, nft.Port}, Data: []nft.Type{nft.Verdict}},
			{Name: setSlots, Key: []nft.Type{nft.Addr, nft.Proto, nft.Port, nft.Index}, Data: []nft.Type{nft.Addr, nft.Port}},
			{Name: setNodePorts, Key: []nft.Type{nft.Proto, nft.Port}, Data: []nft.Type{nft.Verdict}},
			{Name: setNodeSlots, Key: []nft.Type{nft.Proto, nft.Port, nft.Index}, Data: []nft.Type{nft.Addr, nft.Port}},
			{Name: setRefused, Key: []nft.Type{nft.Proto, nft.Port}},
			{Name: setVIPs, Key: []nft.Type{nft.Addr}},
			{Name: setNodeIPs, Key: []nft.Type{nft.Addr}},
			{Name: setPodCIDRs, Key: []nft.Type{nft.Addr}, Interval: true},
			{Name: setHairpin, Key: []nft.Type{nft.Addr, nft.Addr}},
		},
		Chains: []nft.Chain{
			{Name: "refuse", Rules: []nft.Rule{
				{nft.ProtoIs(model.TCP), nft.RejectTCP()},
				{nft.ProtoIs(model.UDP), nft.Reject()},
				{nft.ProtoIs(model.SCTP), nft.Reject()}}},
			{Name: "nat-prerouting", Hook: &nft.Hook{Type: "nat", Hook: "prerouting", Priority: -100}, Rules: append([]nft.Rule{foreign}, translate...)},
			{Name: "nat-output", Hook: &nft.Hook{Type: "nat", Hook: "output", Priority: -100}, Rules: append([]nft.Rule{own}, translate...)},
			{Name: "check-prerouting", Hook: &nft.Hook{Type: "filter", Hook: "prerouting", Priority: -90}, Rules: check},
			{Name: "check-output", Hook: &nft.Hook{Type: "filter", Hook: "output", Priority: -90}, Rules: check},
			{Name: "nat-postrouting", Hook: &nft.Hook{Type: "nat", Hook: "postrouting", Priority: 90}, Rules: []nft.Rule{
				{nft.HasMark(masqueradeMark), nft.ClearMark(masqueradeMark), nft.Masquerade()},
				{nft.In{Fields: []nft.Field{nft.Saddr, nft.Daddr}, Set: setHairpin}, nft.Masquerade()}}},
		},
	}
}

// slotChain is the chain for n slots of a VIP, or of a node port.
func slotChain(n int, nodePort bool) nft.Chain {
	random := nft.Random{N: uint32(n)}
	if nodePort {
		// The node answers for itself: without its address as source, the endpoint's
		// answer would not pass it.
		return nft.Chain{Name: chainName(n, true), Rules: []nft.Rule{{nft.SetMark(masqueradeMark),
			nft.DNATBy{Fields: []nft.Field{nft.L4Proto, nft.Dport, random}, Map: setNodeSlots}}}}
	}
	return nft.Chain{Name: chainName(n, false), Rules: []nft.Rule{{
		nft.DNATBy{Fields: []nft.Field{nft.Daddr, nft.L4Proto, nft.Dport, random}, Map: setSlots}}}}
}

func chainName(n int, nodePort bool) string {
	if nodePort {
		return fmt.Sprintf("node-%d", n)
	}
	return fmt.Sprintf("vip-%d", n)
}

// place is where an element lives.
type place struct {
	family nft.Family
	set    string
	key    string
}

// slotSets says where an entry lives: the verdict map and the map of slots, and
// its key in them.
func slotSets(fe service.Frontend) (f nft.Family, frontends, slots string, key []any) {
	f, key = family(fe.Addr), []any{fe.Addr, uint8(fe.Protocol), fe.Port}
	if fe.IsNodePort() {
		return f, setNodePorts, setNodeSlots, key[1:]
	}
	return f, setFrontends, setSlots, key
}

// render calls emit for every element that the plan asks for, but for those of the
// hairpin set, which plans share.
func render(p service.Plan, emit func(p place, data string)) {
	for _, a := range p.VIPs {
		emit(place{family(a), setVIPs, nft.Pack(a)}, "")
	}
	for _, e := range p.Entries {
		f, frontends, slots, parts := slotSets(e.Frontend)
		key := nft.Pack(parts...)
		if len(e.Slots) == 0 {
			if e.Frontend.IsNodePort() {
				emit(place{f, setRefused, key}, "")
			}
			continue
		}
		emit(place{f, frontends, key}, chainName(len(e.Slots), e.Frontend.IsNodePort()))
		for i, s := range e.Slots {
			emit(place{f, slots, key + nft.Pack(uint32(i))}, nft.Pack(s.Addr(), s.Port()))
		}
	}
}

// chains calls need for every chain that the plan uses.
func chains(p service.Plan, need func(f nft.Family, n int, nodePort bool)) {
	for _, e := range p.Entries {
		if n := len(e.Slots); n > 0 {
			need(family(e.Frontend.Addr), n, e.Frontend.IsNodePort())
		}
	}
}

// hairpin is the place of an endpoint's address.
func hairpin(a netip.Addr) place { return place{family(a), setHairpin, nft.Pack(a, a)} }

// localSets are the elements that follow from the node. They are few, and set
// anew in one transaction.
func localSets(f nft.Family, l service.Local) map[string][]nft.Element {
	out := map[string][]nft.Element{setPodCIDRs: podCIDRs(f, l.PodCIDRs)}
	for _, a := range l.NodeIPs {
		if family(a) == f {
			out[setNodeIPs] = append(out[setNodeIPs], nft.Element{Key: nft.Pack(a)})
		}
	}
	return out
}

// podCIDRs are the ranges of a family. Where none is known, everything counts as
// a pod's, so that nobody is masqueraded by mistake.
func podCIDRs(f nft.Family, all []netip.Prefix) []nft.Element {
	var out []nft.Element
	for _, p := range nft.Disjoint(all) {
		if family(p.Addr()) == f {
			out = append(out, nft.Range(p))
		}
	}
	if len(out) == 0 {
		zero := netip.IPv4Unspecified()
		if f == nft.IPv6 {
			zero = netip.IPv6Unspecified()
		}
		out = append(out, nft.Range(netip.PrefixFrom(zero, 0)))
	}
	return out
}

func family(a netip.Addr) nft.Family {
	if a.Is6() {
		return nft.IPv6
	}
	return nft.IPv4
}
