package bgp

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"wayleave.dev/loadbalancer"
	"wayleave.dev/model"
)

// Kinds are the kinds that Plan reads.
const Kinds = model.BGPKinds | model.AddressPoolKind | model.ServiceKind | model.EndpointSliceKind | model.NodeKind |
	model.NamespaceKind | model.ServiceCIDRKind

// Input is what Plan needs beside the objects.
type Input struct {
	// Node is the name of this node.
	Node string
	// Balancer is the setting loadbalancer.default. Without Balanced, which is loadbalancer.enabled, addresses of pools
	// are not announced.
	Balanced, Balancer bool
	// ExternalIPs is the setting service.externalIPs.
	ExternalIPs bool
	// Routing says that pods' routes are exchanged by BGP.
	Routing bool
}

// Plan returns the sessions of a node and what it announces, without Restarting. ok is false if the node must have no
// process: it is not known, or its ASN is not. A peer or advertisement with a problem has no session, or announces
// nothing.
func Plan(snap model.Snapshot, in Input) (out State, ok bool, problems []model.Problem) {
	me, known := snap.Node(in.Node)
	if !known {
		return State{}, false, nil
	}
	p := &planner{Input: in, snap: snap, me: me, cfg: snap.BGP()}
	if p.out.ASN = p.cfg.ASNOf(me); p.out.ASN == 0 {
		return State{}, false, nil // the object's condition says why
	}
	p.out.RouterID = routerID(me)
	p.out.Port, p.out.Listen = p.cfg.Port, slices.Clone(me.InternalIPs)
	for _, peer := range sorted(snap.BGPPeers(), func(x *model.BGPPeer) string { return x.Name }) {
		p.peer(peer)
	}
	p.refuse()
	if in.Routing {
		p.accept()
	}
	for _, a := range sorted(snap.BGPAdvertisements(), func(x *model.BGPAdvertisement) string { return x.Name }) {
		p.advertise(a)
	}
	if in.Routing {
		p.mesh()
	}
	p.paths()
	p.bound()
	return p.out, true, p.problems
}

func sorted[T any](list func(func(T) bool), name func(T) string) []T {
	return slices.SortedFunc(list, func(a, b T) int { return strings.Compare(name(a), name(b)) })
}

// routerID is the annotation's, the first IPv4 address, or one made of the name: it must be unique among the nodes.
func routerID(n *model.Node) netip.Addr {
	if n.BGP.RouterID.IsValid() {
		return n.BGP.RouterID
	}
	if a := n.Primary(false); a.IsValid() {
		return a
	}
	h := uint32(loadbalancer.Score(netip.IPv4Unspecified(), n.Name))
	// 0 and the classes D and E are left out: some routers refuse them.
	return netip.AddrFrom4([4]byte{byte(h>>24)%223 + 1, byte(h >> 16), byte(h >> 8), byte(h)})
}

type planner struct {
	Input
	snap     model.Snapshot
	me       *model.Node
	cfg      *model.BGPConfiguration
	out      State
	problems []model.Problem
	// peers are those with a session.
	peers []*model.BGPPeer
	// classes are the classes of each prefix, in order.
	classes map[netip.Prefix][]string
}

func (p *planner) problem(kind, object, field, reason string) {
	p.problems = append(p.problems, model.Problem{Kind: kind, Object: model.Name{Name: object}, Field: field,
		Reason: reason})
}

// SessionName is the name of the session with a BGPPeer.
func SessionName(peer string) string { return "BGPPeer " + peer }

// peer plans the session with one peer.
func (p *planner) peer(peer *model.BGPPeer) {
	if peer.Invalid != "" || !peer.Nodes.Matches(p.me.Labels) {
		return
	}
	s := Session{Name: SessionName(peer.Name), Addr: peer.Address, Interface: peer.Interface, Range: peer.Range,
		ASN: peer.ASN, LocalASN: peer.LocalASN, Port: peer.Port, Source: peer.Source, TTLSecurity: peer.TTLSecurity,
		MultiHop: peer.MultiHop, Passive: peer.Passive, V4: peer.IPv4, V6: peer.IPv6, AddPath: peer.AddPath,
		MaxPrefixes: peer.Import.MaxPrefixes, External: peer.ASN == 0 && peer.Type == model.ExternalASN}
	if peer.ASN == 0 && peer.Type == model.InternalASN {
		s.ASN = p.out.ASN
	}
	if peer.Password != (model.SecretKey{}) {
		password, ok := p.snap.Password(peer.Password)
		if !ok || password == "" {
			p.problem("BGPPeer", peer.Name, "spec.passwordSecret", fmt.Sprintf("the Secret %s/%s has no key %s; there "+
				"is no session without it", model.PeersNamespace, peer.Password.Name, peer.Password.Key))
			return
		}
		s.Password = password
	}
	if s.LocalASN == p.out.ASN {
		s.LocalASN = 0
	}
	if !p.Routing && (len(peer.Import.Networks) > 0 || peer.Import.DefaultRoute) {
		p.problem("BGPPeer", peer.Name, "spec.import", "no route is accepted: that needs the setting routing: bgp")
	}
	p.timers(&s, peer)
	p.hops(&s)
	if !s.V4 && !s.V6 {
		p.problem("BGPPeer", peer.Name, "spec.families", fmt.Sprintf("node %s has no IPv6 address, which is "+
			"the next hop of IPv6 routes in a session over IPv4; it has no session", p.Node))
		return
	}
	if err := s.Check(); err != nil {
		p.problem("BGPPeer", peer.Name, "spec", err.Error()+"; there is no session")
		return
	}
	p.peers = append(p.peers, peer)
	p.out.Sessions = append(p.out.Sessions, s)
}

func (p *planner) timers(s *Session, peer *model.BGPPeer) {
	t, r := p.cfg.TimersOf(peer), p.cfg.RestartOf(peer)
	s.Hold, s.Keepalive, s.Connect = t.Hold, t.Keepalive, t.Connect
	if r.Enabled {
		s.Restart, s.LongLived = r.Time, r.LongLived
	}
}

// hops sets the next hop of the family that the session is not of. IPv4 routes of a node without an IPv4 address have
// an IPv6 next hop (RFC 8950).
func (p *planner) hops(s *Session) {
	over4 := s.Addr.Is4() || s.Range.IsValid() && s.Range.Addr().Is4()
	if over4 {
		s.NextHop6 = p.me.Primary(true)
		s.V6 = s.V6 && s.NextHop6.IsValid()
		return
	}
	s.NextHop4 = p.me.Primary(false)
	if s.Interface != "" || s.Addr.IsLinkLocalUnicast() {
		s.NextHop6 = p.me.Primary(true)
	}
}

// refuse never imports what would divert traffic of this node's own pods or of Services.
func (p *planner) refuse() {
	var own []PrefixRange
	for _, c := range p.me.PodCIDRs {
		own = append(own, Within(c))
	}
	for c := range p.snap.ServiceCIDRs() {
		for _, r := range c.CIDRs {
			own = append(own, Within(r))
		}
	}
	for svc := range p.snap.Services() {
		for _, list := range [][]netip.Addr{svc.ClusterIPs, svc.LoadBalancerIPs, svc.ExternalIPs} {
			for _, a := range list {
				own = append(own, Exactly(netip.PrefixFrom(a, a.BitLen())))
			}
		}
	}
	for _, a := range append(slices.Clone(p.me.InternalIPs), p.me.ExternalIPs...) {
		own = append(own, Exactly(netip.PrefixFrom(a, a.BitLen())))
	}
	slices.SortFunc(own, func(a, b PrefixRange) int {
		return strings.Compare(a.Prefix.String(), b.Prefix.String())
	})
	own = slices.Compact(own)
	if len(own) > 0 {
		p.out.Imports = append(p.out.Imports, Import{Prefixes: own})
	}
}

// accept imports what BGPPeers ask for. A network never includes the default route, which is asked for by itself.
func (p *planner) accept() {
	for i, peer := range p.peers {
		row := Import{Sessions: []string{p.out.Sessions[i].Name}, Accept: true}
		for _, n := range peer.Import.Networks {
			r := Within(n)
			r.Min = max(r.Min, 1)
			row.Prefixes = append(row.Prefixes, r)
		}
		if peer.Import.DefaultRoute {
			row.Prefixes = append(row.Prefixes, Exactly(netip.PrefixFrom(netip.IPv4Unspecified(), 0)),
				Exactly(netip.PrefixFrom(netip.IPv6Unspecified(), 0)))
		}
		if len(row.Prefixes) > 0 {
			p.out.Imports = append(p.out.Imports, row)
		}
	}
}

// advertise plans one advertisement: its class, and the prefixes in it.
func (p *planner) advertise(a *model.BGPAdvertisement) {
	if a.Invalid != "" || !a.Nodes.Matches(p.me.Labels) {
		return
	}
	c := Class{Name: "BGPAdvertisement " + a.Name, Communities: a.Communities, LocalPref: a.LocalPref, MED: a.MED}
	for _, l := range a.Large {
		c.Large = append(c.Large, l)
	}
	for i, peer := range p.peers {
		if a.Tells(peer) {
			c.Sessions = append(c.Sessions, p.out.Sessions[i].Name)
		}
	}
	p.out.Classes = append(p.out.Classes, c)
	if a.Addresses&model.AnnouncePodCIDRs != 0 {
		for _, cidr := range p.me.PodCIDRs {
			p.add(cidr, c.Name)
		}
	}
	for _, addr := range p.addresses(a) {
		bits := int(a.Length4)
		if addr.Is6() {
			bits = int(a.Length6)
		}
		p.add(netip.PrefixFrom(addr, bits), c.Name)
	}
}

func (p *planner) add(prefix netip.Prefix, class string) {
	prefix = prefix.Masked()
	if p.classes == nil {
		p.classes = map[netip.Prefix][]string{}
	}
	if !slices.Contains(p.classes[prefix], class) {
		p.classes[prefix] = append(p.classes[prefix], class)
	}
}

// paths lists the prefixes in order.
func (p *planner) paths() {
	for _, prefix := range slices.SortedFunc(maps.Keys(p.classes), comparePrefixes) {
		p.out.Paths = append(p.out.Paths, Path{Prefix: prefix, Classes: p.classes[prefix]})
	}
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}
