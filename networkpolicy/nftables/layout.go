// Package nftables enforces NetworkPolicy by nftables, in tables of its own, the same in every mode of the service
// proxy.
//
// Policies are data in maps, not rules. For a new connection, the source is looked up in the map `egress` and the
// destination in `ingress`. Isolated local pods are in these maps, and lead to the chain of their profile, which looks
// the peer up: a known pod by its address, any other address by its range. That leads to the chain of the allowed
// ports, which is one lookup of protocol and port. So a packet evaluates as many expressions at 1,000 policies as at
// one, and a pod that appears or ends changes elements.
//
// Invariants:
//   - A transaction leads from one complete state to the next. No state in between opens a pod.
//   - The content of a set, a map or a chain follows from its name or from the entries of its profile, so that what is
//     found in the kernel can be adopted.
//   - Rules only read the bit CutMark of a connection's mark. Only Sweep writes it.
package nftables

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/nft/program"
	"wayleave.dev/networkpolicy"
)

// TableName is the name of our tables, one per family.
const TableName = "wayleave-policy"

// CutMark is the bit of a connection's mark (ctmark) that says that policy forbids the
// connection, though it was allowed when it began.
const CutMark = 0x80000000

// Permanent sets and maps. Those of a direction have a name for each.
const (
	setDNS = "dns"
	// setProxies has the addresses of this node's ingress proxy.
	setProxies = "proxies"
)

func word(d networkpolicy.Direction) string { return strings.ToLower(d.String()) }

// isolated maps the local pod's address to the chain of its profile.
func isolated(d networkpolicy.Direction) string { return word(d) }

// selves is the set of pairs of each isolated address with itself.
func selves(d networkpolicy.Direction) string { return "self-" + word(d) }

// dropped counts dropped packets by the local pod's address.
func dropped(d networkpolicy.Direction) string { return "dropped-" + word(d) }

// Permanent chains.
const (
	chainPrerouting  = "prerouting"
	chainPostrouting = "postrouting"
	chainToDNS       = "to-dns"
	chainFromDNS     = "decided-for-dns"
	chainCut         = "cut"
)

// deny is the chain where forbidden packets end.
func deny(d networkpolicy.Direction) string { return "deny-" + word(d) }

// Prefixes of names of objects that are made as needed: for a profile, and for a set of ports.
const (
	peersOf    = "-peers-"
	blocksOf   = "-blocks-"
	profileOf  = "-profile-"
	classOf    = "-ports-"
	portsOf    = "ports-"  // ports one by one
	rangesOf   = "ranges-" // ranges of ports
	hashDigits = 16
)

func peers(d networkpolicy.Direction, profile string) string  { return word(d) + peersOf + profile }
func blocks(d networkpolicy.Direction, profile string) string { return word(d) + blocksOf + profile }
func profileChain(d networkpolicy.Direction, profile string) string {
	return word(d) + profileOf + profile
}

// portsSet returns the name of the set of these ports. Single ports are in a hash set, which costs a packet less than
// ranges.
func portsSet(p networkpolicy.Ports) string {
	h, kind := sha256.New(), portsOf
	for _, r := range p.Ranges {
		fmt.Fprintln(h, uint8(r.Protocol), r.From, r.To)
		if r.From != r.To {
			kind = rangesOf
		}
	}
	return kind + hex.EncodeToString(h.Sum(nil))[:hashDigits]
}

func directions() []networkpolicy.Direction {
	return []networkpolicy.Direction{networkpolicy.Ingress, networkpolicy.Egress}
}

// local and peer are the addresses of a packet's two ends.
func local(d networkpolicy.Direction) nft.Field {
	if d == networkpolicy.Egress {
		return nft.Saddr
	}
	return nft.Daddr
}

func peer(d networkpolicy.Direction) nft.Field {
	if d == networkpolicy.Egress {
		return nft.Daddr
	}
	return nft.Saddr
}

// table is what is fixed of a family's table.
func table(f nft.Family) nft.Table {
	t := nft.Table{Family: f, Name: TableName, Made: made,
		Sets: []nft.Set{{Name: setDNS, Key: []nft.Type{nft.Addr}}, {Name: setProxies, Key: []nft.Type{nft.Addr}}}}
	for _, d := range directions() {
		t.Sets = append(t.Sets,
			nft.Set{Name: isolated(d), Key: []nft.Type{nft.Addr}, Data: []nft.Type{nft.Verdict}},
			nft.Set{Name: selves(d), Key: []nft.Type{nft.Addr, nft.Addr}},
			nft.Set{Name: dropped(d), Key: []nft.Type{nft.Addr}, Counted: true})
		t.Chains = append(t.Chains, nft.Chain{Name: deny(d), Rules: []nft.Rule{
			// A pod reaches itself whatever the policies say.
			{nft.In{Fields: []nft.Field{nft.Saddr, nft.Daddr}, Set: selves(d)}, nft.ReturnBack()},
			{nft.In{Fields: []nft.Field{local(d)}, Set: dropped(d)}, nft.Drop()},
			{nft.Drop()}}})
	}
	t.Chains = append(t.Chains, fixed()...)
	t.Chains = append(t.Chains, hooks()...)
	return t
}

// by looks one end of the packet up in a map of verdicts.
func by(x nft.Field, set string) nft.Statement { return nft.GotoBy{Fields: []nft.Field{x}, Map: set} }

// known accepts packets of allowed connections.
func known() nft.Rule { return nft.Rule{nft.Established, nft.NoCtMark(CutMark), nft.Accept()} }

func fixed() []nft.Chain {
	in, out := networkpolicy.Ingress, networkpolicy.Egress
	return []nft.Chain{
		{Name: chainToDNS, Rules: []nft.Rule{known(), {by(nft.Saddr, isolated(out))}}},
		{Name: chainFromDNS, Rules: []nft.Rule{{by(nft.Daddr, isolated(in))}}},
		// Replies of connections that are forbidden by now: the pod that sends the reply is the server, its peer the
		// client.
		{Name: chainCut, Rules: []nft.Rule{
			{nft.In{Fields: []nft.Field{nft.Saddr}, Set: dropped(in)}, nft.Drop()},
			{nft.In{Fields: []nft.Field{nft.Daddr}, Set: dropped(out)}, nft.Drop()},
			{nft.Drop()}}},
	}
}

// hooks are the chains that packets enter by. They exist only while a local pod is isolated.
//
// Packets to the cluster's DNS are decided before translation, and before they go to a
// socket of this node: priority -150 is after connection tracking (-200) and before DNAT
// (-100). All else is decided where all paths pass, forwarding and IPVS: behind routing,
// before source NAT (100). What a pod sends to its own node does not come there, and what
// the node sends passes, unless it is its ingress proxy that sends. Replies of connections that were cut are dropped,
// and packets of
// the direction in which they began are decided anew.
func hooks() []nft.Chain {
	in, out := networkpolicy.Ingress, networkpolicy.Egress
	return []nft.Chain{
		{Name: chainPrerouting, OnDemand: true, Hook: &nft.Hook{Type: "filter", Hook: "prerouting", Priority: -150},
			Rules: []nft.Rule{
				{nft.In{Fields: []nft.Field{nft.Daddr}, Set: setDNS}, nft.Goto(chainToDNS)}}},
		{Name: chainPostrouting, OnDemand: true, Hook: &nft.Hook{Type: "filter", Hook: "postrouting", Priority: 90},
			Rules: []nft.Rule{
				known(),
				{nft.In{Fields: []nft.Field{nft.Saddr}, Set: setProxies, Not: true}, nft.LocalSaddr{}, nft.Accept()},
				{nft.Established, nft.IsReply{}, nft.Goto(chainCut)},
				// Untracked packets have no first destination, and go on with the next rule.
				{nft.In{Fields: []nft.Field{nft.OriginalDaddr}, Set: setDNS}, nft.Goto(chainFromDNS)},
				{by(nft.Saddr, isolated(out))},
				{by(nft.Daddr, isolated(in))}}},
	}
}

// made returns the declaration of a set that is made as needed.
func made(name string) (nft.Set, bool) {
	switch {
	case strings.HasPrefix(name, portsOf):
		return nft.Set{Name: name, Key: []nft.Type{nft.Proto, nft.Port}}, true
	case strings.HasPrefix(name, rangesOf):
		return nft.Set{Name: name, Key: []nft.Type{nft.Proto, nft.Port}, Interval: true}, true
	}
	for _, d := range directions() {
		switch rest, _ := strings.CutPrefix(name, word(d)); {
		case rest == name:
		case strings.HasPrefix(rest, peersOf):
			return nft.Set{Name: name, Key: []nft.Type{nft.Addr}, Data: []nft.Type{nft.Verdict}}, true
		case strings.HasPrefix(rest, blocksOf):
			return nft.Set{Name: name, Key: []nft.Type{nft.Addr}, Data: []nft.Type{nft.Verdict}, Interval: true}, true
		}
	}
	return nft.Set{}, false
}

// Kinds of objects that entries share. Of a profile and of a class there is one for each direction, which is added.
const (
	hooksObject   uint8 = 2 * iota // the base chains
	profileObject                  // the chain of a profile with its two maps
	portsObject                    // a set of ports
	classObject                    // the chain that looks into it
)

// needHooks has the base chains be there.
func needHooks(out program.Output, f nft.Family) {
	out.Need(program.Object{Family: f, Kind: hooksObject},
		func() program.Parts { return program.Parts{Chains: hooks()} })
}

// needProfile has the chain and the maps of a profile be there.
func needProfile(out program.Output, f nft.Family, d networkpolicy.Direction, profile string) {
	out.Need(program.Object{Family: f, Kind: profileObject + uint8(d), Name: profile}, func() program.Parts {
		return program.Parts{Sets: setsMade(peers(d, profile), blocks(d, profile)),
			Chains: []nft.Chain{{Name: profileChain(d, profile), Rules: []nft.Rule{
				{by(peer(d), peers(d, profile))},
				{by(peer(d), blocks(d, profile))},
				{nft.Goto(deny(d))}}}}}
	})
}

// needPorts has a set of ports be there, and the chain that looks into it.
func needPorts(out program.Output, f nft.Family, d networkpolicy.Direction, set string, p networkpolicy.Ports) {
	out.Need(program.Object{Family: f, Kind: portsObject, Name: set}, func() program.Parts {
		return program.Parts{Sets: setsMade(set), Elements: portElements(set, p)}
	})
	out.Need(program.Object{Family: f, Kind: classObject + uint8(d), Name: set}, func() program.Parts {
		return program.Parts{Chains: []nft.Chain{{Name: word(d) + classOf + set, Rules: []nft.Rule{
			{nft.In{Fields: []nft.Field{nft.L4Proto, nft.Dport}, Set: set}, nft.ReturnBack()},
			{nft.Goto(deny(d))}}}}}
	})
}

// setsMade are sets that are made as needed.
func setsMade(names ...string) (out []nft.Set) {
	for _, name := range names {
		if s, ok := made(name); ok {
			out = append(out, s)
		}
	}
	return out
}

// portElements are the members of a set of ports.
func portElements(set string, p networkpolicy.Ports) (out []program.Item) {
	ranges := strings.HasPrefix(set, rangesOf)
	for _, r := range p.Ranges {
		e := nft.Element{Key: nft.Pack(uint8(r.Protocol), r.From)}
		if ranges {
			e.End = nft.Pack(uint8(r.Protocol), r.To)
		}
		out = append(out, program.Item{Set: set, Element: e})
	}
	return out
}

// render calls out for everything that the entry asks for.
func render(k networkpolicy.Key, e networkpolicy.Entry, out program.Output) {
	d := k.Direction
	// Thousands of blocks of one entry can share a set of thousands of ports.
	type sharedPorts struct {
		first *networkpolicy.PortRange
		n     int
	}
	names := map[sharedPorts]string{}
	emit := func(f nft.Family, set string, el nft.Element) {
		out.Element(program.Place{Family: f, Set: set, Key: el.Key}, program.Value{Data: el.Data, End: el.End})
	}
	allow := func(f nft.Family, set string, el nft.Element, p networkpolicy.Ports) {
		needProfile(out, f, d, k.Profile)
		switch {
		case p.All:
			el.Data = nft.Return
		case len(p.Ranges) == 0:
			el.Data = deny(d)
		default:
			shared := sharedPorts{&p.Ranges[0], len(p.Ranges)}
			name := names[shared]
			if name == "" {
				name = portsSet(p)
				names[shared] = name
			}
			el.Data = word(d) + classOf + name
			needPorts(out, f, d, name, p)
		}
		emit(f, set, el)
	}
	switch k.Kind {
	case networkpolicy.PodEntry:
		f, addr := family(k.Addr), nft.Pack(k.Addr)
		emit(f, isolated(d), nft.Element{Key: addr, Data: nft.Jump(profileChain(d, e.Profile))})
		emit(f, selves(d), nft.Element{Key: addr + addr})
		emit(f, dropped(d), nft.Element{Key: addr})
		needHooks(out, f)
		needProfile(out, f, d, e.Profile)
	case networkpolicy.ProxyEntry:
		emit(family(k.Addr), setProxies, nft.Element{Key: nft.Pack(k.Addr)})
	case networkpolicy.DNSEntry:
		emit(family(k.Addr), setDNS, nft.Element{Key: nft.Pack(k.Addr)})
	case networkpolicy.PeerEntry:
		allow(family(k.Addr), peers(d, k.Profile), nft.Element{Key: nft.Pack(k.Addr)}, e.Ports)
	case networkpolicy.BlocksEntry:
		for _, b := range e.Blocks {
			allow(family(b.Range.From), blocks(d, k.Profile), nft.Between(b.Range.From, b.Range.To), b.Ports)
		}
	}
}

func family(a netip.Addr) nft.Family {
	if a.Is6() {
		return nft.IPv6
	}
	return nft.IPv4
}
