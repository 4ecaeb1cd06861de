package speaker

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"wayleave.dev/loadbalancer/bgp"
)

func keys[K comparable, V any](m map[K]V) iter.Seq[K] { return maps.Keys(m) }

// announced is a path in the server.
type announced struct{ marks []uint32 }

// setPaths replaces the paths of this node.
func (e *engine) setPaths(s *bgp.State) error {
	want := map[netip.Prefix]announced{}
	for _, p := range s.Paths {
		var marks []uint32
		for _, c := range p.Classes {
			marks = append(marks, e.classes.id(c))
		}
		want[p.Prefix] = announced{marks}
	}
	var gone, fresh []*apiutil.Path
	for prefix, a := range e.paths {
		if _, ok := want[prefix]; ok {
			continue
		}
		p, err := pathOf(prefix, a)
		if err != nil {
			return err
		}
		gone = append(gone, p)
	}
	for prefix, a := range want {
		if have, ok := e.paths[prefix]; ok && slices.Equal(have.marks, a.marks) {
			continue
		}
		p, err := pathOf(prefix, a)
		if err != nil {
			return err
		}
		fresh = append(fresh, p)
	}
	if len(gone) > 0 {
		if err := e.server.DeletePath(apiutil.DeletePathRequest{Paths: gone}); err != nil {
			return fmt.Errorf("withdraw %d prefixes: %w", len(gone), err)
		}
	}
	if len(fresh) > 0 {
		if _, err := e.server.AddPath(apiutil.AddPathRequest{Paths: fresh}); err != nil {
			return fmt.Errorf("announce %d prefixes: %w", len(fresh), err)
		}
	}
	e.paths = want
	return nil
}

// pathOf is a path of this node. Its next hop is unspecified: the library sets the session's own address, and the
// policy another one.
func pathOf(prefix netip.Prefix, a announced) (*apiutil.Path, error) {
	nlri, err := packet.NewIPAddrPrefix(prefix)
	if err != nil {
		return nil, fmt.Errorf("prefix %s: %w", prefix, err)
	}
	marks := make([]*packet.LargeCommunity, 0, len(a.marks))
	for _, m := range a.marks {
		marks = append(marks, packet.NewLargeCommunity(markASN, 0, m))
	}
	p := &apiutil.Path{Family: packet.RF_IPv4_UC, Nlri: nlri, Attrs: []packet.PathAttributeInterface{
		packet.NewPathAttributeOrigin(packet.BGP_ORIGIN_ATTR_TYPE_IGP),
		packet.NewPathAttributeLargeCommunities(marks)}}
	hop := netip.IPv4Unspecified()
	if prefix.Addr().Is6() {
		p.Family, hop = packet.RF_IPv6_UC, netip.IPv6Unspecified()
		mp, err := packet.NewPathAttributeMpReachNLRI(p.Family, []packet.PathNLRI{{NLRI: nlri}}, hop)
		if err != nil {
			return nil, fmt.Errorf("prefix %s: %w", prefix, err)
		}
		p.Attrs = append(p.Attrs, mp)
		return p, nil
	}
	next, err := packet.NewPathAttributeNextHop(hop)
	if err != nil {
		return nil, fmt.Errorf("prefix %s: %w", prefix, err)
	}
	p.Attrs = append(p.Attrs, next)
	return p, nil
}
