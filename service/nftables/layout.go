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
	"slices"

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
			{Name: "nat-output", Hook: &nft.Hook{Type: "nat", Hook: "output", Priority: -100}, Rules: translate},
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

// elements are the members of sets that a plan asks for: place → data.
type elements map[place]string

// render turns a plan into elements, and calls need for every chain that they use.
func render(p service.Plan, need func(nft.Family, int, bool)) elements {
	out := elements{}
	for _, a := range p.VIPs {
		out[place{family(a), setVIPs, nft.Pack(a)}] = ""
	}
	for _, a := range p.Hairpin {
		out[place{family(a), setHairpin, nft.Pack(a, a)}] = ""
	}
	for _, e := range p.Entries {
		out.entry(e, need)
	}
	return out
}

func (out elements) entry(e service.Entry, need func(nft.Family, int, bool)) {
	fe := e.Frontend
	f, nodePort := family(fe.Addr), fe.IsNodePort()
	key, slotSet, chainSet := []any{fe.Addr, uint8(fe.Protocol), fe.Port}, setSlots, setFrontends
	if nodePort {
		key, slotSet, chainSet = key[1:], setNodeSlots, setNodePorts
	}
	if len(e.Slots) == 0 {
		if nodePort {
			out[place{f, setRefused, nft.Pack(key...)}] = ""
		}
		return
	}
	need(f, len(e.Slots), nodePort)
	out[place{f, chainSet, nft.Pack(key...)}] = chainName(len(e.Slots), nodePort)
	for i, s := range e.Slots {
		out[place{f, slotSet, nft.Pack(append(slices.Clone(key), uint32(i))...)}] = nft.Pack(s.Addr(), s.Port())
	}
}

func family(a netip.Addr) nft.Family {
	if a.Is6() {
		return nft.IPv6
	}
	return nft.IPv4
}
