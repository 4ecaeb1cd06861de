// Package nftables renders service plans to nftables.
//
// The layout puts Services into data instead of rules. A new connection is looked up by its destination in a verdict
// map, which sends it to the chain for its number of slots; that chain draws a number and looks up the slot. There is
// one chain per number of slots, so a changed endpoint changes elements of maps and never a rule, and a packet
// evaluates as many expressions with 10,000 Services as with 10.
package nftables

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/nft/program"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// TableName is the name of the tables, one per family.
const TableName = "wayleave-service"

// CompanionTableName is the name of the tables that complement IPVS.
const CompanionTableName = "wayleave-ipvs"

// layout says which part of the work the tables do.
type layout struct {
	name string
	// ipvsCompanion means that IPVS chooses the endpoints, except for the Services that bypassIPVS (may be nil)
	// selects.
	ipvsCompanion bool
	bypassIPVS    func(model.Name) bool
	// own is the node's address of a family, for the companion of IPVS; localhost means that node ports are served on
	// 127.0.0.1, which IPVS cannot do.
	own       map[nft.Family]netip.Addr
	localhost bool
}

// companion is the layout of the tables that complement IPVS.
func companion(bypassIPVS func(model.Name) bool) layout {
	return layout{name: CompanionTableName, ipvsCompanion: true, bypassIPVS: bypassIPVS}
}

// with returns the layout on a node.
func (l layout) with(facts service.NodeFacts) layout {
	l.own, l.localhost = owns(facts), facts.Localhost()
	return l
}

// like reports whether both layouts give the same rules.
func (l layout) like(o layout) bool {
	return !l.ipvsCompanion || maps.Equal(l.own, o.own) && l.localhost == o.localhost
}

// owns returns the first of a node's addresses of each family.
func owns(l service.NodeFacts) map[nft.Family]netip.Addr {
	out := map[nft.Family]netip.Addr{}
	for _, a := range l.NodeIPs {
		if _, ok := out[family(a)]; !ok {
			out[family(a)] = a
		}
	}
	return out
}

// byIPVS reports whether IPVS serves the Service.
func (l layout) byIPVS(k model.Name) bool {
	return l.ipvsCompanion && (l.bypassIPVS == nil || !l.bypassIPVS(k))
}

// masqueradeMark is the bit of the packet mark between DNAT and masquerading, the same as kube-proxy's default. It is
// cleared before the packet leaves: a mark survives encapsulation, and would cause the outer packet to be masqueraded,
// too.
const masqueradeMark = service.MasqueradeMark

// Names of sets and maps. Of each pair the first is for VIPs, with the key address .
// protocol . port, and the second for node ports, with protocol . port.
const (
	setFrontends = "frontends" // → chain
	setNodePorts = "node-ports"
	setSlots     = "slots" // key . number → endpoint
	setNodeSlots = "node-slots"

	// With externalTrafficPolicy Local, the chains of setInside send clients in the cluster to the slots above; those
	// of setOutside send other clients to the slots below.
	setInside           = "inside" // → chain
	setNodeInside       = "node-inside"
	setOutside          = "outside" // → chain
	setNodeOutside      = "node-outside"
	setOutsideSlots     = "outside-slots" // key . number → endpoint
	setNodeOutsideSlots = "node-outside-slots"

	// Frontends without slots are refused or dropped. VIPs are refused without an element.
	setUnserved     = "unserved" // → chain
	setNodeUnserved = "node-unserved"

	// Session affinity: the frontends that have it, and clients with their endpoints, which packets add.
	setSticky      = "sticky" // → chain
	setNodeSticky  = "node-sticky"
	setClients     = "clients" // client . key → endpoint
	setNodeClients = "node-clients"

	setGuarded = "guarded" // key, restricted to some sources
	setAllowed = "allowed" // key . source

	setVIPs     = "vips"
	setNodeIPs  = "node-ips"
	setPodCIDRs = "pod-cidrs"
	setOwnCIDRs = "own-pod-cidrs"
	setHairpin  = "hairpin"

	// For the companion of IPVS: the keys that IPVS serves, and node ports on 127.0.0.1, which it cannot serve.
	setBalanced  = "balanced"
	setLocalhost = "localhost" // → chain
	// The external addresses, which here are the node's own as well.
	setLinked = "linked"
)

// names are the sets for VIPs, or those for node ports.
type names struct{ frontends, slots, inside, outside, outsideSlots, unserved, sticky, clients string }

func namesOf(nodePort bool) names {
	if nodePort {
		return names{setNodePorts, setNodeSlots, setNodeInside, setNodeOutside, setNodeOutsideSlots, setNodeUnserved,
			setNodeSticky, setNodeClients}
	}
	return names{setFrontends, setSlots, setInside, setOutside, setOutsideSlots, setUnserved, setSticky, setClients}
}

// fieldsOf returns the fields by which keys of VIPs or node ports are looked up.
func fieldsOf(nodePort bool) []nft.Field {
	if nodePort {
		return []nft.Field{nft.L4Proto, nft.Dport}
	}
	return []nft.Field{nft.Daddr, nft.L4Proto, nft.Dport}
}

// table returns the fixed part of a family's table.
func (l layout) table(f nft.Family) nft.Table {
	t := nft.Table{Family: f, Name: l.name}
	for _, nodePort := range []bool{false, true} {
		n, key := namesOf(nodePort), []nft.Type{nft.Proto, nft.Port}
		if !nodePort {
			key = append([]nft.Type{nft.Addr}, key...)
		}
		for _, name := range []string{n.frontends, n.inside, n.outside, n.unserved, n.sticky} {
			t.Sets = append(t.Sets, nft.Set{Name: name, Key: key, Data: []nft.Type{nft.Verdict}})
		}
		for _, name := range []string{n.slots, n.outsideSlots} {
			t.Sets = append(t.Sets, nft.Set{Name: name, Key: append(slices.Clone(key), nft.Index),
				Data: []nft.Type{nft.Addr, nft.Port}})
		}
		t.Sets = append(t.Sets, nft.Set{Name: n.clients, Key: append([]nft.Type{nft.Addr}, key...),
			Data: []nft.Type{nft.Addr, nft.Port}, Filled: true})
	}
	t.Sets = append(t.Sets,
		nft.Set{Name: setGuarded, Key: []nft.Type{nft.Addr, nft.Proto, nft.Port}},
		nft.Set{Name: setAllowed, Key: []nft.Type{nft.Addr, nft.Proto, nft.Port, nft.Addr}, Interval: true},
		nft.Set{Name: setVIPs, Key: []nft.Type{nft.Addr}},
		nft.Set{Name: setNodeIPs, Key: []nft.Type{nft.Addr}, Interval: true},
		nft.Set{Name: setPodCIDRs, Key: []nft.Type{nft.Addr}, Interval: true},
		nft.Set{Name: setOwnCIDRs, Key: []nft.Type{nft.Addr}, Interval: true},
		nft.Set{Name: setHairpin, Key: []nft.Type{nft.Addr, nft.Addr}})
	t.Chains = append(ends(), l.splits(false)...)
	t.Chains = append(t.Chains, l.splits(true)...)
	if l.ipvsCompanion {
		t.Sets = append(t.Sets, nft.Set{Name: setBalanced, Key: []nft.Type{nft.Addr, nft.Proto, nft.Port}},
			nft.Set{Name: setLinked, Key: []nft.Type{nft.Addr}},
			nft.Set{Name: setLocalhost, Key: []nft.Type{nft.Proto, nft.Port}, Data: []nft.Type{nft.Verdict}})
		t.Chains = append(t.Chains, nft.Chain{Name: chainBalanced, Rules: []nft.Rule{{nft.DNATToItself{}}}},
			nft.Chain{Name: chainBalancedMasked, Rules: []nft.Rule{{nft.SetMark(masqueradeMark), nft.DNATToItself{}}}})
	}
	t.Chains = append(t.Chains, l.hooks(f)...)
	return t
}

// protocols are those with ports.
func protocols() []model.Protocol { return []model.Protocol{model.TCP, model.UDP, model.SCTP} }

// ends are the chains after translation, where session affinity remembers the client. (The program nft requires the
// protocol before the original port, although the fields contain it.)
func ends() []nft.Chain {
	translated := nft.Chain{Name: "translated"}
	original := []nft.Field{nft.L4Proto, nft.OriginalDport}
	for _, p := range protocols() {
		translated.Rules = append(translated.Rules,
			nft.Rule{nft.ProtoIs(p), nft.GotoBy{Fields: append([]nft.Field{nft.OriginalDaddr}, original...),
				Map: setSticky}},
			nft.Rule{nft.ProtoIs(p), nft.In{Fields: []nft.Field{nft.OriginalDaddr}, Set: setNodeIPs},
				nft.GotoBy{Fields: original, Map: setNodeSticky}})
	}
	return []nft.Chain{
		translated,
		{Name: "refuse", Rules: []nft.Rule{
			{nft.ProtoIs(model.TCP), nft.RejectTCP()},
			{nft.ProtoIs(model.UDP), nft.Reject()},
			{nft.ProtoIs(model.SCTP), nft.Reject()}}},
		{Name: "discard", Rules: []nft.Rule{{nft.Drop()}}},
	}
}

// splits are the chains of externalTrafficPolicy Local. Pods of this node and its own processes are sent to any
// endpoint; the latter get the node's address as source, since they may have chosen one that only this node can reach.
func (l layout) splits(nodePort bool) []nft.Chain {
	name := chainName(split, 0, false, nodePort)
	n := namesOf(nodePort)
	chains := []nft.Chain{
		{Name: name + "-inside", Rules: []nft.Rule{{nft.GotoBy{Fields: fieldsOf(nodePort), Map: n.inside}}}},
		{Name: name, Rules: []nft.Rule{
			{nft.In{Fields: []nft.Field{nft.Saddr}, Set: setOwnCIDRs}, nft.Goto(name + "-inside")},
			{nft.LocalSaddr{}, nft.SetMark(masqueradeMark), nft.Goto(name + "-inside")},
			{nft.GotoBy{Fields: fieldsOf(nodePort), Map: n.outside}}}},
	}
	if l.ipvsCompanion { // IPVS does the rest, and there is no later chain
		for i := range chains {
			chains[i].Rules = append(chains[i].Rules, nft.Rule{nft.DNATToItself{}})
		}
	}
	return chains
}

// hooks are the chains at the kernel's hooks.
func (l layout) hooks(f nft.Family) []nft.Chain {
	guard := guardRules()
	check, checkOutput, translate := l.checkRules(), int32(-90), int32(-100)
	if l.ipvsCompanion {
		checkOutput = -99 // IPVS handles locally sent packets at -98
		// While another mode is present, it translates: these chains keep packets for IPVS that it would refuse. They
		// run before host ports (-95). All chains of type nat run at -100, in the order of their priorities.
		translate = -98
	}
	return []nft.Chain{
		{Name: "guard-prerouting", Hook: &nft.Hook{Type: "filter", Hook: "prerouting", Priority: -110},
			Rules: append(localhostRules(f), guard...)},
		{Name: "guard-output", Hook: &nft.Hook{Type: "filter", Hook: "output", Priority: -110}, Rules: guard},
		{Name: "nat-prerouting", Hook: &nft.Hook{Type: "nat", Hook: "prerouting", Priority: translate},
			Rules: l.translateInput()},
		{Name: "nat-output", Hook: &nft.Hook{Type: "nat", Hook: "output", Priority: translate},
			Rules: l.translateOutput(f)},
		{Name: "check-prerouting", Hook: &nft.Hook{Type: "filter", Hook: "prerouting", Priority: -90}, Rules: check},
		{Name: "check-output", Hook: &nft.Hook{Type: "filter", Hook: "output", Priority: checkOutput}, Rules: check},
		{Name: "nat-postrouting", Hook: &nft.Hook{Type: "nat", Hook: "postrouting", Priority: 90},
			Rules: l.masqueradeRules(f)},
	}
}

// toNode matches packets to an address of the node that serves node ports.
func toNode() nft.Statement { return nft.In{Fields: []nft.Field{nft.Daddr}, Set: setNodeIPs} }

// toVIP matches packets to a VIP.
func toVIP() nft.Statement { return nft.In{Fields: []nft.Field{nft.Daddr}, Set: setVIPs} }

// guardRules enforce loadBalancerSourceRanges, before translation.
func guardRules() []nft.Rule {
	key := fieldsOf(false)
	return []nft.Rule{{nft.New, nft.In{Fields: key, Set: setGuarded},
		nft.In{Fields: append(slices.Clone(key), nft.Saddr), Set: setAllowed, Not: true}, nft.Drop()}}
}

// localhostRules protect 127.0.0.1, which the kernel routes if node ports are served on it.
func localhostRules(f nft.Family) []nft.Rule {
	if f != nft.IPv4 {
		return nil
	}
	return []nft.Rule{{nft.NotLoopbackIn{}, nft.Within{Field: nft.Daddr,
		Prefix: netip.MustParsePrefix("127.0.0.0/8")}, nft.Drop()}}
}

// translate looks up frontends and node ports.
func translate() []nft.Rule {
	return []nft.Rule{
		{nft.GotoBy{Fields: fieldsOf(false), Map: setFrontends}},
		{nft.LocalDaddr{}, toNode(), nft.GotoBy{Fields: fieldsOf(true), Map: setNodePorts}},
	}
}

// translateInput is for packets that arrive. Clients that are not pods get the node's address, otherwise the endpoint's
// answer would bypass this node. The node's own processes already have its address.
func (l layout) translateInput() []nft.Rule {
	foreign := nft.Rule{toVIP(), nft.In{Fields: []nft.Field{nft.Saddr}, Set: setPodCIDRs, Not: true},
		nft.SetMark(masqueradeMark)}
	return slices.Concat([]nft.Rule{foreign}, translate(), l.keep())
}

// translateOutput is for packets that processes of the node send. If a VIP is an address of this node, like that of
// DNS, the kernel chooses it as source; another node would send the answer to itself.
func (l layout) translateOutput(f nft.Family) []nft.Rule {
	var first []nft.Rule
	switch {
	case !l.ipvsCompanion:
		first = []nft.Rule{{toVIP(), nft.In{Fields: []nft.Field{nft.Saddr}, Set: setVIPs}, nft.SetMark(masqueradeMark)}}
	case f == nft.IPv4:
		first = []nft.Rule{{nft.Within{Field: nft.Daddr, Prefix: netip.MustParsePrefix("127.0.0.0/8")}, toNode(),
			nft.GotoBy{Fields: fieldsOf(true), Map: setLocalhost}}}
	}
	return slices.Concat(first, translate(), l.keep())
}

// checkRules refuse packets that are still addressed to a VIP after translation: there is no endpoint, or no such port.
func (l layout) checkRules() []nft.Rule {
	refuse := nft.Rule{nft.New, toVIP()}
	if l.ipvsCompanion {
		refuse = append(refuse, nft.In{Fields: fieldsOf(false), Set: setBalanced, Not: true})
	}
	return []nft.Rule{
		{nft.New, nft.Translated{}, nft.Goto("translated")},
		{nft.New, nft.GotoBy{Fields: fieldsOf(false), Map: setUnserved}},
		{nft.New, nft.LocalDaddr{}, toNode(), nft.GotoBy{Fields: fieldsOf(true), Map: setNodeUnserved}},
		append(refuse, nft.Goto("refuse")),
	}
}

// masqueradeRules give packets the node's address.
func (l layout) masqueradeRules(f nft.Family) []nft.Rule {
	rules := []nft.Rule{
		{nft.HasMark(masqueradeMark), nft.ClearMark(masqueradeMark), nft.Masquerade()},
		{nft.In{Fields: []nft.Field{nft.Saddr, nft.Daddr}, Set: setHairpin}, nft.Masquerade()}}
	if !l.ipvsCompanion {
		return rules
	}
	// With IPVS all VIPs are addresses of this node, which chooses them as source. The source must be the node's own
	// address instead, and not that of the interface.
	source := nft.Masquerade()
	if own, ok := l.own[f]; ok {
		source = nft.SNATTo{Addr: own}
	}
	return append([]nft.Rule{{nft.In{Fields: []nft.Field{nft.Saddr}, Set: setVIPs}, source}}, rules...)
}

// keep ends translation for addresses of Services: later chains, such as those of host ports, must not translate their
// packets. Such an address may be one of the node's: that of DNS, and with IPVS all.
func (l layout) keep() []nft.Rule {
	sets := []string{setVIPs}
	if l.ipvsCompanion {
		sets = append(sets, setLinked)
	}
	var out []nft.Rule
	for _, set := range sets {
		out = append(out, nft.Rule{nft.In{Fields: []nft.Field{nft.Daddr}, Set: set}, nft.DNATToItself{}})
	}
	return out
}

// kind is what a chain does in addition to choosing one of its slots.
type kind string

const (
	plain    kind = "vip" // nothing
	masked   kind = "ext" // replaces the client's address
	outside  kind = "out" // uses the slots for external clients
	split    kind = "split"
	remember kind = "remember"
)

// Chains for packets that IPVS balances: unchanged, and with the client's address replaced.
const (
	chainBalanced       = "balanced"
	chainBalancedMasked = "balanced-masked"
)

// chainName returns the name of the chain for n slots, or with remember for n seconds. Those of node ports begin with
// "node-".
func chainName(k kind, n int, sticky, nodePort bool) string {
	name := string(k)
	if nodePort {
		name = "node-" + name
	}
	if k != split {
		name += fmt.Sprintf("-%d", n)
	}
	if sticky {
		name += "-sticky"
	}
	return name
}

// slotChain chooses one of n slots at random, or the client's previous one.
func slotChain(k kind, n int, sticky, nodePort bool) nft.Chain {
	sets, fields := namesOf(nodePort), fieldsOf(nodePort)
	c := nft.Chain{Name: chainName(k, n, sticky, nodePort)}
	if k == masked {
		// Packets of endpoints on this node get its address as source, otherwise the endpoint's answer would bypass it.
		c.Rules = append(c.Rules, nft.Rule{nft.SetMark(masqueradeMark)})
	}
	if sticky {
		c.Rules = append(c.Rules, nft.Rule{nft.DNATBy{Fields: append([]nft.Field{nft.Saddr}, fields...),
			Map: sets.clients}})
	}
	slots := sets.slots
	if k == outside {
		slots = sets.outsideSlots
	}
	c.Rules = append(c.Rules, nft.Rule{nft.DNATBy{Fields: append(slices.Clone(fields), nft.Random{N: uint32(n)}),
		Map: slots}})
	return c
}

// rememberChain keeps a client's endpoint for a time.
func rememberChain(d time.Duration, nodePort bool) nft.Chain {
	key := []nft.Field{nft.Saddr, nft.OriginalDaddr, nft.L4Proto, nft.OriginalDport}
	if nodePort {
		key = slices.Delete(key, 1, 2)
	}
	c := nft.Chain{Name: chainName(remember, int(d.Seconds()), false, nodePort)}
	for _, p := range protocols() {
		c.Rules = append(c.Rules, nft.Rule{nft.ProtoIs(p),
			nft.Remember{Key: key, Data: []nft.Field{nft.Daddr, nft.Dport}, Map: namesOf(nodePort).clients, For: d}})
	}
	return c
}

// Kinds of objects that several plans can need.
const (
	chainObject   uint8 = iota // a chain for a number of slots, or for a time
	hairpinObject              // an endpoint on this node
	linkedObject               // an address for external clients, with IPVS
)

// render calls out for everything that the plan needs.
func (l layout) render(k model.Name, p service.Plan, out program.Output) {
	for _, a := range p.VIPs {
		out.Element(program.Place{Family: family(a), Set: setVIPs, Key: nft.Pack(a)}, program.Value{})
	}
	byIPVS := l.byIPVS(k)
	for _, e := range p.Frontends {
		l.renderFrontend(e, byIPVS, out)
	}
	for _, a := range p.Hairpin {
		member(out, hairpinObject, family(a), setHairpin, nft.Pack(a, a))
	}
	if !byIPVS {
		return
	}
	var last netip.Addr // frontends are sorted by address
	for _, e := range p.Frontends {
		if a := e.Frontend.Addr; e.External && !e.Frontend.IsNodePort() && a != last {
			last = a
			member(out, linkedObject, family(a), setLinked, nft.Pack(a))
		}
	}
}

// member adds a key that other plans may add, too, to a set.
func member(out program.Output, kind uint8, f nft.Family, set, key string) {
	out.Need(program.Object{Family: f, Kind: kind, Name: key}, func() program.Parts {
		return program.Parts{Elements: []program.Item{{Set: set, Element: nft.Element{Key: key}}}}
	})
}

// chain adds a chain that frontends share.
func chain(out program.Output, f nft.Family, name string, build func() nft.Chain) {
	out.Need(program.Object{Family: f, Kind: chainObject, Name: name, Lasting: true}, func() program.Parts {
		return program.Parts{Chains: []nft.Chain{build()}}
	})
}

// frontend renders a frontend.
type frontend struct {
	service.FrontendPlan
	family nft.Family
	key    string
	names
	out program.Output
}

func (e *frontend) emit(set, key, data string) {
	e.out.Element(program.Place{Family: e.family, Set: set, Key: key}, program.Value{Data: data})
}

// lead sends the frontend to the chain for a number of slots.
func (e *frontend) lead(set string, k kind, slots []netip.AddrPort) {
	if len(slots) == 0 {
		return
	}
	n, sticky, nodePort := len(slots), e.Affinity > 0, e.Frontend.IsNodePort()
	name := chainName(k, n, sticky, nodePort)
	e.emit(set, e.key, name)
	chain(e.out, e.family, name, func() nft.Chain { return slotChain(k, n, sticky, nodePort) })
}

// fill adds the slots.
func (e *frontend) fill(set string, slots []netip.AddrPort) {
	for i, s := range slots {
		e.emit(set, e.key+nft.Pack(uint32(i)), nft.Pack(s.Addr(), s.Port()))
	}
}

func (l layout) renderFrontend(plan service.FrontendPlan, byIPVS bool, out program.Output) {
	nodePort := plan.Frontend.IsNodePort()
	e := frontend{plan, family(plan.Frontend.Addr), nft.Pack(uint8(plan.Frontend.Protocol), plan.Frontend.Port),
		namesOf(nodePort), out}
	if !nodePort {
		e.key = nft.Pack(plan.Frontend.Addr) + e.key
	}
	localhost := byIPVS && l.localhost && nodePort && !e.Split && e.family == nft.IPv4
	hasSlots := !byIPVS || e.Split || localhost
	if hasSlots {
		e.fill(e.slots, e.Slots)
	}
	if localhost {
		e.lead(setLocalhost, masked, e.Slots)
	}
	served := e.Slots
	switch {
	case byIPVS && e.Split:
		// The virtual server has the endpoints for external clients.
		e.emit(e.frontends, e.key, chainName(split, 0, false, nodePort))
		e.lead(e.inside, plain, e.Slots)
		served = e.Outside
	case byIPVS && len(e.Slots) == 0:
	case byIPVS && e.External:
		e.emit(e.frontends, e.key, chainBalancedMasked)
	case byIPVS:
		e.emit(e.frontends, e.key, chainBalanced)
		e.emit(setBalanced, e.key, "")
	case e.Split:
		e.emit(e.frontends, e.key, chainName(split, 0, false, nodePort))
		e.lead(e.inside, plain, e.Slots)
		e.lead(e.outside, outside, e.Outside)
		e.fill(e.outsideSlots, e.Outside)
		served = e.Outside
	case e.External:
		e.lead(e.frontends, masked, e.Slots)
	default:
		e.lead(e.frontends, plain, e.Slots)
	}
	if len(served) == 0 {
		e.refuse()
	}
	if e.Affinity > 0 && len(e.Slots) > 0 && hasSlots {
		name, d := chainName(remember, int(e.Affinity.Seconds()), false, nodePort), e.Affinity
		e.emit(e.sticky, e.key, name)
		chain(out, e.family, name, func() nft.Chain { return rememberChain(d, nodePort) })
	}
	if len(e.Sources) > 0 && !nodePort {
		e.guard()
	}
}

// refuse handles packets to a frontend without slots.
func (e *frontend) refuse() {
	if e.Drop {
		e.emit(e.unserved, e.key, "discard")
	} else {
		e.emit(e.unserved, e.key, "refuse")
	}
}

// guard limits the sources.
func (e *frontend) guard() {
	e.emit(setGuarded, e.key, "")
	for _, r := range nft.Disjoint(e.Sources) {
		el := nft.RangeOf(r, e.Frontend.Addr, uint8(e.Frontend.Protocol), e.Frontend.Port)
		e.out.Element(program.Place{Family: e.family, Set: setAllowed, Key: el.Key}, program.Value{End: el.End})
	}
}

// factSets are the sets that depend on the node and the cluster.
func factSets(f nft.Family, l service.NodeFacts) map[string][]nft.Element {
	out := map[string][]nft.Element{setPodCIDRs: podCIDRs(f, l.PodCIDRs), setOwnCIDRs: nil, setNodeIPs: nil}
	for _, p := range nft.Disjoint(l.OwnPodCIDRs) {
		if family(p.Addr()) == f {
			out[setOwnCIDRs] = append(out[setOwnCIDRs], nft.Range(p))
		}
	}
	for _, p := range nft.Disjoint(l.NodePortNets()) {
		if family(p.Addr()) == f {
			out[setNodeIPs] = append(out[setNodeIPs], nft.Range(p))
		}
	}
	return out
}

// podCIDRs returns the ranges of a family. If none is known, every address counts as a pod's, so that no client is
// masqueraded by mistake.
func podCIDRs(f nft.Family, all []netip.Prefix) []nft.Element {
	var out []nft.Element
	for _, p := range nft.Disjoint(all) {
		if family(p.Addr()) == f {
			out = append(out, nft.Range(p))
		}
	}
	if len(out) == 0 {
		out = append(out, nft.Range(netip.PrefixFrom(unspecified(f), 0)))
	}
	return out
}

func family(a netip.Addr) nft.Family {
	if a.Is6() {
		return nft.IPv6
	}
	return nft.IPv4
}

func unspecified(f nft.Family) netip.Addr {
	if f == nft.IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// NodePorts lists the node ports of the tables in the kernel, with the unspecified address of their family.
func (m *Mode) NodePorts(ctx context.Context) (out []service.Frontend, err error) {
	for _, f := range nft.Families() {
		st, err := m.conn.Read(ctx, m.lay.table(f))
		if err != nil {
			return nil, fmt.Errorf("service: %w", err)
		}
		for _, set := range []string{setNodePorts, setNodeUnserved} {
			for _, e := range st.Elements[set] {
				if len(e.Key) >= 6 {
					out = append(out, service.Frontend{Addr: unspecified(f), Protocol: model.Protocol(e.Key[0]),
						Port: binary.BigEndian.Uint16([]byte(e.Key[4:6]))})
				}
			}
		}
	}
	return out, nil
}
