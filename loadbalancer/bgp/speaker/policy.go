package speaker

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/server"

	"wayleave.dev/loadbalancer/bgp"
)

// The library has one policy for all peers. A path of this node carries a mark for each of its classes, which are large
// communities of a reserved ASN (RFC 7300), and a rule for each class selects by mark and peer, and removes all
// marks. A path without a mark is announced to no peer.
const (
	markASN   = 4294967295
	markMatch = "^4294967295:0:%d$"
	anyMark   = "^4294967295:.*$"
)

const globalTable = "global"

// classes gives each class a number that it keeps.
type classes struct {
	ids  map[string]uint32
	next uint32
}

func (c *classes) id(name string) uint32 {
	if id, ok := c.ids[name]; ok {
		return id
	}
	if c.ids == nil {
		c.ids = map[string]uint32{}
	}
	c.next++
	c.ids[name] = c.next
	return c.next
}

// policy is what the rules depend on.
type policy struct {
	asn      uint32
	sessions []bgp.Session
	classes  []bgp.Class
	imports  []bgp.Import
}

func (p policy) equal(o policy) bool {
	return p.asn == o.asn && slices.Equal(p.sessions, o.sessions) &&
		slices.EqualFunc(p.classes, o.classes, bgp.Class.Equal) &&
		slices.EqualFunc(p.imports, o.imports, bgp.Import.Equal)
}

// refuseAll makes the policy of a server without a state.
func refuseAll(ctx context.Context, b *server.BgpServer) error {
	in, out := &api.Policy{Name: "in"}, &api.Policy{Name: "out"}
	if err := b.SetPolicies(ctx, &api.SetPoliciesRequest{Policies: []*api.Policy{in, out}}); err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	for _, a := range []*api.PolicyAssignment{
		{Name: globalTable, Direction: api.PolicyDirection_POLICY_DIRECTION_IMPORT, Policies: []*api.Policy{in}},
		{Name: globalTable, Direction: api.PolicyDirection_POLICY_DIRECTION_EXPORT, Policies: []*api.Policy{out}},
	} {
		a.DefaultAction = api.RouteAction_ROUTE_ACTION_REJECT
		if err := b.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: a}); err != nil {
			return fmt.Errorf("policy: %w", err)
		}
	}
	return nil
}

// setPolicy replaces the rules if they differ, and has all sessions follow.
func (e *engine) setPolicy(s *bgp.State, sessions []bgp.Session) error {
	want := policy{s.ASN, sessions, s.Classes, s.Imports}
	if e.policy.equal(want) {
		return nil
	}
	b := &rules{engine: e, byName: map[string]bgp.Session{}}
	for _, x := range sessions {
		b.byName[x.Name] = x
	}
	b.imports(s.Imports)
	b.nextHops(sessions)
	b.export(s.Classes)
	b.reflect(s.ASN, sessions)
	ctx := context.Background()
	if err := e.server.SetPolicies(ctx, &api.SetPoliciesRequest{DefinedSets: b.sets, Policies: []*api.Policy{
		{Name: "in", Statements: b.in}, {Name: "out", Statements: b.out}}}); err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	e.policy = want
	if err := e.server.ResetPeer(ctx, &api.ResetPeerRequest{Soft: true,
		Direction: api.ResetPeerRequest_DIRECTION_BOTH}); err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	return nil
}

// rules collects the statements of the policy.
type rules struct {
	engine  *engine
	byName  map[string]bgp.Session
	sets    []*api.DefinedSet
	in, out []*api.Statement
	count   int
}

func (b *rules) name(what string) string {
	b.count++
	return fmt.Sprintf("%s-%d", what, b.count)
}

// peers makes a set of the named sessions' peers. ok is false if there is none: to the library an empty set is
// everybody.
func (b *rules) peers(names []string) (set *api.MatchSet, ok bool) {
	var list []string
	for _, n := range names {
		s, known := b.byName[n]
		switch {
		case !known:
		case s.Range.IsValid():
			list = append(list, s.Range.String())
		default:
			a := s.Addr.WithZone("")
			list = append(list, netip.PrefixFrom(a, a.BitLen()).String())
		}
	}
	if len(list) == 0 {
		return nil, false
	}
	name := b.name("peers")
	b.sets = append(b.sets, &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_NEIGHBOR, Name: name, List: list})
	return &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: name}, true
}

// imports begins with the paths of this node: the library asks the import policy about them, too.
func (b *rules) imports(rows []bgp.Import) {
	b.in = append(b.in, &api.Statement{Name: b.name("own"),
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT}})
	for _, row := range rows {
		c := &api.Conditions{}
		if len(row.Sessions) > 0 {
			set, ok := b.peers(row.Sessions)
			if !ok {
				continue
			}
			c.NeighborSet = set
		}
		// A set has prefixes of one family.
		for _, is4 := range []bool{true, false} {
			var list []*api.Prefix
			for _, p := range row.Prefixes {
				if p.Prefix.Addr().Is4() == is4 {
					list = append(list, &api.Prefix{IpPrefix: p.Prefix.String(), MaskLengthMin: uint32(p.Min),
						MaskLengthMax: uint32(p.Max)})
				}
			}
			if len(list) == 0 {
				continue
			}
			name := b.name("prefixes")
			b.sets = append(b.sets, &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_PREFIX, Name: name,
				Prefixes: list})
			action := &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_REJECT}
			if row.Accept {
				// Marks of a peer would make its path ours.
				action = &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT, LargeCommunity: removeMarks()}
			}
			b.in = append(b.in, &api.Statement{Name: b.name("import"), Actions: action, Conditions: &api.Conditions{
				NeighborSet: c.NeighborSet, PrefixSet: &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: name}}})
		}
	}
}

func removeMarks() *api.CommunityAction {
	return &api.CommunityAction{Type: api.CommunityAction_TYPE_REMOVE, Communities: []string{anyMark}}
}

// nextHops sets the next hop where it is not the session's own address.
func (b *rules) nextHops(sessions []bgp.Session) {
	by := map[netip.Addr][]string{}
	for _, s := range sessions {
		for _, hop := range []netip.Addr{s.NextHop4, s.NextHop6} {
			if hop.IsValid() {
				by[hop] = append(by[hop], s.Name)
			}
		}
	}
	for _, hop := range slices.SortedFunc(keys(by), netip.Addr.Compare) {
		set, ok := b.peers(by[hop])
		if !ok {
			continue
		}
		afi := api.Family_AFI_IP
		if hop.Is6() {
			afi = api.Family_AFI_IP6
		}
		b.out = append(b.out, &api.Statement{Name: b.name("hop"), Conditions: &api.Conditions{NeighborSet: set,
			RouteType: api.Conditions_ROUTE_TYPE_LOCAL,
			AfiSafiIn: []*api.Family{{Afi: afi, Safi: api.Family_SAFI_UNICAST}}},
			Actions: &api.Actions{Nexthop: &api.NexthopAction{Address: hop.String()}}})
	}
}

func (b *rules) export(list []bgp.Class) {
	for _, c := range list {
		set, ok := b.peers(c.Sessions)
		if !ok {
			continue
		}
		mark := b.name("class")
		b.sets = append(b.sets, &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_LARGE_COMMUNITY, Name: mark,
			List: []string{fmt.Sprintf(markMatch, b.engine.classes.id(c.Name))}})
		b.out = append(b.out, &api.Statement{Name: b.name("export"), Actions: attributes(c),
			Conditions: &api.Conditions{NeighborSet: set, RouteType: api.Conditions_ROUTE_TYPE_LOCAL,
				LargeCommunitySet: &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: mark}}})
	}
}

func attributes(c bgp.Class) *api.Actions {
	a := &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT, LargeCommunity: removeMarks()}
	if len(c.Large) > 0 {
		a.LargeCommunity = &api.CommunityAction{Type: api.CommunityAction_TYPE_REPLACE}
		for _, l := range c.Large {
			a.LargeCommunity.Communities = append(a.LargeCommunity.Communities,
				fmt.Sprintf("%d:%d:%d", l[0], l[1], l[2]))
		}
	}
	if len(c.Communities) > 0 {
		a.Community = &api.CommunityAction{Type: api.CommunityAction_TYPE_REPLACE}
		for _, v := range c.Communities {
			a.Community.Communities = append(a.Community.Communities, fmt.Sprintf("%d:%d", v>>16, v&0xffff))
		}
	}
	if c.MED != nil {
		a.Med = &api.MedAction{Type: api.MedAction_TYPE_REPLACE, Value: int64(*c.MED)}
	}
	if c.LocalPref != nil {
		a.LocalPref = &api.LocalPrefAction{Value: *c.LocalPref}
	}
	return a
}

// reflect lets a route reflector pass internal routes on. The library sends them to clients, and routes of clients to
// all internal peers (RFC 4456).
func (b *rules) reflect(asn uint32, sessions []bgp.Session) {
	var internal []string
	reflector := false
	for _, s := range sessions {
		reflector = reflector || s.ReflectorClient
		if s.ASN == asn && (s.LocalASN == 0 || s.LocalASN == asn) {
			internal = append(internal, s.Name)
		}
	}
	set, ok := b.peers(internal)
	if !reflector || !ok {
		return
	}
	b.out = append(b.out, &api.Statement{Name: b.name("reflect"),
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
		Conditions: &api.Conditions{NeighborSet: set, RouteType: api.Conditions_ROUTE_TYPE_INTERNAL}})
}
