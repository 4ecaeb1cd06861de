// Package nftables renders service plans to nftables.
//
// The layout is one of data, not of code. A new connection looks its destination
// up in a verdict map, which sends it to the chain for its number of slots; that
// chain draws a number and looks up the slot. There is one chain per number of
// slots, so a changed endpoint changes elements of maps and never a rule, and a
// packet passes as many expressions at 10,000 services as at 10.
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
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// TableName is the name of our tables, one per family.
const TableName = "wayleave-service"

// BesideTableName is that of what is around IPVS.
const BesideTableName = "wayleave-ipvs"

// layout is which part of the work the tables do.
type layout struct {
	name string
	// beside says that IPVS draws the endpoints, but for the services that whole, which
	// may be nil, says yes to.
	beside bool
	whole  func(model.Name) bool
	// own is the node's address of a family, beside IPVS; localhost says that node
	// ports are served on 127.0.0.1, which IPVS cannot.
	own       map[nft.Family]netip.Addr
	localhost bool
}

// with is the layout on a node.
func (l layout) with(local service.Local) layout {
	l.own, l.localhost = owns(local), local.Localhost()
	return l
}

// like says that nothing of the layout is another with other facts of the node.
func (l layout) like(o layout) bool {
	return !l.beside || maps.Equal(l.own, o.own) && l.localhost == o.localhost
}

// owns are the first of a node's addresses of each family.
func owns(l service.Local) map[nft.Family]netip.Addr {
	out := map[nft.Family]netip.Addr{}
	for _, a := range l.NodeIPs {
		if _, ok := out[family(a)]; !ok {
			out[family(a)] = a
		}
	}
	return out
}

// balanced says whether IPVS has the service.
func (l layout) balanced(k model.Name) bool { return l.beside && (l.whole == nil || !l.whole(k)) }

// masqueradeMark is the bit of the packet mark between DNAT and masquerading, the
// one that kube-proxy uses by default. It is cleared before the packet leaves: a
// mark survives encapsulation, and would have the outer packet masqueraded, too.
const masqueradeMark = service.MasqueradeMark

// Names of sets and maps. Of each pair the first is for VIPs, with the key address .
// protocol . port, and the second for node ports, with protocol . port.
const (
	setFrontends = "frontends" // → chain
	setNodePorts = "node-ports"
	setSlots     = "slots" // key . number → endpoint
	setNodeSlots = "node-slots"

	// With externalTrafficPolicy Local clients in the cluster are sent to the slots
	// above by the chains of setInside, others to those of setOutside.
	setInside           = "inside" // → chain
	setNodeInside       = "node-inside"
	setOutside          = "outside" // → chain
	setNodeOutside      = "node-outside"
	setOutsideSlots     = "outside-slots" // key . number → endpoint
	setNodeOutsideSlots = "node-outside-slots"

	// What has no slot is refused or dropped. A VIP needs no entry to be refused.
	setUnserved     = "unserved" // → chain
	setNodeUnserved = "node-unserved"

	// Session affinity: whom to remember, and the clients with their endpoints, which
	// packets enter.
	setSticky      = "sticky" // → chain
	setNodeSticky  = "node-sticky"
	setClients     = "clients" // client . key → endpoint
	setNodeClients = "node-clients"

	setGuarded = "guarded" // key, of which only some sources may come
	setAllowed = "allowed" // key . source

	setVIPs     = "vips"
	setNodeIPs  = "node-ips"
	setPodCIDRs = "pod-cidrs"
	setOwnCIDRs = "own-pod-cidrs"
	setHairpin  = "hairpin"

	// Beside IPVS: the keys that it has, and node ports on 127.0.0.1, which it has not.
	setBalanced  = "balanced"
	setLocalhost = "localhost" // → chain
	// The addresses for clients outside, which are the node's own as well there.
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

// fieldsOf are what the keys of both are looked up by.
func fieldsOf(nodePort bool) []nft.Field {
	if nodePort {
		return []nft.Field{nft.L4Proto, nft.Dport}
	}
	return []nft.Field{nft.Daddr, nft.L4Proto, nft.Dport}
}

// table is what is fixed of a family's table.
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
	if l.beside {
		t.Sets = append(t.Sets, nft.Set{Name: setBalanced, Key: []nft.Type{nft.Addr, nft.Proto, nft.Port}},
			nft.Set{Name: setLinked, Key: []nft.Type{nft.Addr}},
			nft.Set{Name: setLocalhost, Key: []nft.Type{nft.Proto, nft.Port}, Data: []nft.Type{nft.Verdict}})
		t.Chains = append(t.Chains, nft.Chain{Name: chainBalanced, Rules: []nft.Rule{{nft.DNATToItself{}}}},
			nft.Chain{Name: chainBalancedMasked, Rules: []nft.Rule{{nft.SetMark(masqueradeMark), nft.DNATToItself{}}}})
	}
	t.Chains = append(t.Chains, l.hooks(f)...)
	return t
}

// protocols are those that have ports.
func protocols() []model.Protocol { return []model.Protocol{model.TCP, model.UDP, model.SCTP} }

// ends are the chains where packets go behind translation: what was translated is
// remembered where there is session affinity. (The program nft wants the protocol
// before the original port, though the fields have it.)
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

// splits are the chains of externalTrafficPolicy Local. Pods of this node and its own
// processes are sent to any endpoint; the latter get the node's address, since what
// they have chosen may be one that is only theirs.
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
	if l.beside { // IPVS has the rest, and no later chain
		for i := range chains {
			chains[i].Rules = append(chains[i].Rules, nft.Rule{nft.DNATToItself{}})
		}
	}
	return chains
}

// hooks are the chains that packets enter by.
func (l layout) hooks(f nft.Family) []nft.Chain {
	frontend, nodePort := fieldsOf(false), fieldsOf(true)
	toNode := nft.In{Fields: []nft.Field{nft.Daddr}, Set: setNodeIPs}
	translate := []nft.Rule{
		{nft.GotoBy{Fields: frontend, Map: setFrontends}},
		{nft.LocalDaddr{}, toNode, nft.GotoBy{Fields: nodePort, Map: setNodePorts}},
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
	// loadBalancerSourceRanges, before translation.
	guard := []nft.Rule{{nft.New, nft.In{Fields: frontend, Set: setGuarded},
		nft.In{Fields: append(slices.Clone(frontend), nft.Saddr), Set: setAllowed, Not: true}, nft.Drop()}}
	check := []nft.Rule{
		{nft.New, nft.Translated{}, nft.Goto("translated")},
		// What is still for a VIP after translation has no endpoint or no such port.
		{nft.New, nft.GotoBy{Fields: frontend, Map: setUnserved}},
		{nft.New, nft.LocalDaddr{}, toNode, nft.GotoBy{Fields: nodePort, Map: setNodeUnserved}},
		{nft.New, nft.In{Fields: []nft.Field{nft.Daddr}, Set: setVIPs}, nft.Goto("refuse")},
	}
	fromLinks := guard
	if f == nft.IPv4 {
		// Where node ports are served on 127.0.0.1 the kernel routes it, and this keeps
		// it the node's own.
		fromLinks = append([]nft.Rule{{nft.NotLoopbackIn{}, nft.Within{Field: nft.Daddr,
			Prefix: netip.MustParsePrefix("127.0.0.0/8")}, nft.Drop()}}, guard...)
	}
	masquerade := []nft.Rule{
		{nft.HasMark(masqueradeMark), nft.ClearMark(masqueradeMark), nft.Masquerade()},
		{nft.In{Fields: []nft.Field{nft.Saddr, nft.Daddr}, Set: setHairpin}, nft.Masquerade()}}
	output, checkOutput := append([]nft.Rule{own}, translate...), int32(-90)
	if l.beside {
		checkOutput = -99 // IPVS takes what the node sends at -98
		// All VIPs are addresses of this node, and it sends from the one that it sends
		// to. Its own address is what it would have taken, and not that of the link.
		source := nft.Statement(nft.Masquerade())
		if own, ok := l.own[f]; ok {
			source = nft.SNATTo{Addr: own}
		}
		masquerade = append([]nft.Rule{{nft.In{Fields: []nft.Field{nft.Saddr}, Set: setVIPs}, source}}, masquerade...)
		output = translate
		if f == nft.IPv4 {
			output = append([]nft.Rule{{nft.Within{Field: nft.Daddr, Prefix: netip.MustParsePrefix("127.0.0.0/8")},
				toNode, nft.GotoBy{Fields: nodePort, Map: setLocalhost}}}, translate...)
		}
		last := &check[len(check)-1]
		*last = nft.Rule{nft.New, nft.In{Fields: []nft.Field{nft.Daddr}, Set: setVIPs},
			nft.In{Fields: frontend, Set: setBalanced, Not: true}, nft.Goto("refuse")}
	}
	input := append([]nft.Rule{foreign}, translate...)
	input, output = append(input, l.keep()...), append(slices.Clone(output), l.keep()...)
	return []nft.Chain{
		{Name: "guard-prerouting", Hook: &nft.Hook{Type: "filter", Hook: "prerouting", Priority: -110},
			Rules: fromLinks},
		{Name: "guard-output", Hook: &nft.Hook{Type: "filter", Hook: "output", Priority: -110}, Rules: guard},
		{Name: "nat-prerouting", Hook: &nft.Hook{Type: "nat", Hook: "prerouting", Priority: -100}, Rules: input},
		{Name: "nat-output", Hook: &nft.Hook{Type: "nat", Hook: "output", Priority: -100}, Rules: output},
		{Name: "check-prerouting", Hook: &nft.Hook{Type: "filter", Hook: "prerouting", Priority: -90}, Rules: check},
		{Name: "check-output", Hook: &nft.Hook{Type: "filter", Hook: "output", Priority: checkOutput}, Rules: check},
		{Name: "nat-postrouting", Hook: &nft.Hook{Type: "nat", Hook: "postrouting", Priority: 90}, Rules: masquerade},
	}
}

// keep ends translation for addresses of Services: later chains, of a pod's host port, must
// not take what is for them. Such an address may be one of the node's: that of DNS, and
// beside IPVS all.
func (l layout) keep() []nft.Rule {
	sets := []string{setVIPs}
	if l.beside {
		sets = append(sets, setLinked)
	}
	var out []nft.Rule
	for _, set := range sets {
		out = append(out, nft.Rule{nft.In{Fields: []nft.Field{nft.Daddr}, Set: set}, nft.DNATToItself{}})
	}
	return out
}

// kind is what a chain does beside drawing one of its slots.
type kind string

const (
	plain    kind = "vip" // nothing
	masked   kind = "ext" // has the client's address replaced
	outside  kind = "out" // uses the slots for clients outside
	split    kind = "split"
	remember kind = "remember"
)

// Chains of what IPVS draws: as it is, and with the client's address replaced.
const (
	chainBalanced       = "balanced"
	chainBalancedMasked = "balanced-masked"
)

// chainName is for n slots, or with remember for n seconds. Those of node ports begin
// with "node-".
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

// slotChain draws one of n slots, or takes that which the client had.
func slotChain(k kind, n int, sticky, nodePort bool) nft.Chain {
	sets, fields := namesOf(nodePort), fieldsOf(nodePort)
	c := nft.Chain{Name: chainName(k, n, sticky, nodePort)}
	if k == masked {
		// The node answers for itself: without its address as source, the endpoint's
		// answer would not pass it.
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

// place is where an element lives.
type place struct {
	family nft.Family
	set    string
	key    string
}

// element is that of a place. Of a range the data is its end.
func (p place) element(data string) nft.Element {
	if p.set == setAllowed {
		return nft.Element{Key: p.key, End: data}
	}
	return nft.Element{Key: p.key, Data: data}
}

// render calls emit for every element that the plan asks for, but for those of the
// hairpin set, which plans share; and need for every chain beside those of the table.
func (l layout) render(k model.Name, p service.Plan, emit func(p place, data string),
	need func(f nft.Family, c func() nft.Chain, name string)) {
	for _, a := range p.VIPs {
		emit(place{family(a), setVIPs, nft.Pack(a)}, "")
	}
	for _, e := range p.Entries {
		l.renderEntry(e, l.balanced(k), emit, need)
	}
}

func (l layout) renderEntry(e service.Entry, balanced bool, emit func(p place, data string),
	need func(f nft.Family, c func() nft.Chain, name string)) {
	f, nodePort, sticky := family(e.Frontend.Addr), e.Frontend.IsNodePort(), e.Affinity > 0
	sets := namesOf(nodePort)
	key := nft.Pack(uint8(e.Frontend.Protocol), e.Frontend.Port)
	if !nodePort {
		key = nft.Pack(e.Frontend.Addr) + key
	}
	to := func(set string, k kind, slots []netip.AddrPort) {
		if len(slots) == 0 {
			return
		}
		name := chainName(k, len(slots), sticky, nodePort)
		emit(place{f, set, key}, name)
		need(f, func() nft.Chain { return slotChain(k, len(slots), sticky, nodePort) }, name)
	}
	fill := func(set string, slots []netip.AddrPort) {
		for i, s := range slots {
			emit(place{f, set, key + nft.Pack(uint32(i))}, nft.Pack(s.Addr(), s.Port()))
		}
	}
	localhost := balanced && l.localhost && nodePort && !e.Split && f == nft.IPv4
	if !balanced || e.Split || localhost {
		fill(sets.slots, e.Slots)
	}
	if localhost {
		to(setLocalhost, masked, e.Slots)
	}
	served := e.Slots
	switch {
	case balanced && e.Split:
		// The virtual server has the endpoints for clients outside.
		emit(place{f, sets.frontends, key}, chainName(split, 0, false, nodePort))
		to(sets.inside, plain, e.Slots)
		served = e.Outside
	case balanced && len(e.Slots) == 0:
	case balanced && e.External:
		emit(place{f, sets.frontends, key}, chainBalancedMasked)
	case balanced:
		emit(place{f, sets.frontends, key}, chainBalanced)
		emit(place{f, setBalanced, key}, "")
	case e.Split:
		emit(place{f, sets.frontends, key}, chainName(split, 0, false, nodePort))
		to(sets.inside, plain, e.Slots)
		to(sets.outside, outside, e.Outside)
		fill(sets.outsideSlots, e.Outside)
		served = e.Outside
	case e.External:
		to(sets.frontends, masked, e.Slots)
	default:
		to(sets.frontends, plain, e.Slots)
	}
	if len(served) == 0 {
		end := "refuse"
		if e.Drop {
			end = "discard"
		}
		emit(place{f, sets.unserved, key}, end)
	}
	if sticky && len(e.Slots) > 0 && (!balanced || e.Split || localhost) {
		name := chainName(remember, int(e.Affinity.Seconds()), false, nodePort)
		emit(place{f, sets.sticky, key}, name)
		need(f, func() nft.Chain { return rememberChain(e.Affinity, nodePort) }, name)
	}
	if len(e.Sources) > 0 && !nodePort {
		emit(place{f, setGuarded, key}, "")
		for _, r := range nft.Disjoint(e.Sources) {
			el := nft.RangeOf(r, e.Frontend.Addr, uint8(e.Frontend.Protocol), e.Frontend.Port)
			emit(place{f, setAllowed, el.Key}, el.End)
		}
	}
}

// common calls emit for the elements of a plan that others may want, too: endpoints on this
// node, and beside IPVS addresses for clients outside.
func (l layout) common(k model.Name, p service.Plan, emit func(place)) {
	for _, a := range p.Hairpin {
		emit(place{family(a), setHairpin, nft.Pack(a, a)})
	}
	if !l.balanced(k) {
		return
	}
	var last netip.Addr // entries are sorted by address
	for _, e := range p.Entries {
		if a := e.Frontend.Addr; e.External && !e.Frontend.IsNodePort() && a != last {
			last = a
			emit(place{family(a), setLinked, nft.Pack(a)})
		}
	}
}

// localSets are the elements that follow from the node. They are few, and set
// anew in one transaction.
func localSets(f nft.Family, l service.Local) map[string][]nft.Element {
	out := map[string][]nft.Element{setPodCIDRs: podCIDRs(f, l.PodCIDRs)}
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

// NodePorts lists the node ports that the tables in the kernel know, with the
// unspecified address of their family.
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
