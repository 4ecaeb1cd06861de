package model

import (
	"iter"
	"net/netip"
	"slices"
)

// BGPRoute is what this node has learned about a prefix by BGP. It comes from peers and not from the API server: the
// kind is synced once the sessions that the node had before have told all of their routes again.
type BGPRoute struct {
	Prefix netip.Prefix
	// Hops are the next hops of all accepted paths, the best first.
	Hops []BGPHop
}

// BGPHop is a path that a peer announces.
type BGPHop struct {
	// Addr is the next hop. Interface is the link that a link-local one is at, or empty.
	Addr      netip.Addr
	Interface string
	// Peer is the BGPPeer or, in a mesh, the Node that announces the path; Node says that it is the latter.
	Peer string
	Node bool
}

// Equal compares two routes.
func (r *BGPRoute) Equal(o *BGPRoute) bool {
	return r.Prefix == o.Prefix && slices.Equal(r.Hops, o.Hops)
}

var bgpRoutes = describe(descriptor[*BGPRoute]{kind: BGPRouteKind, label: "BGPRoute",
	name: func(r *BGPRoute) Name { return Name{Name: r.Prefix.String()} }})

// PutBGPRoute sets a route; the store owns it from now on.
func (w *Writer) PutBGPRoute(o *BGPRoute) { put(w, bgpRoutes, o) }

// BGPRoute returns what was learned about the prefix.
func (v Snapshot) BGPRoute(p netip.Prefix) (*BGPRoute, bool) {
	return get(v, bgpRoutes, Name{Name: p.String()})
}

// BGPRoutes yields all learned routes.
func (v Snapshot) BGPRoutes() iter.Seq[*BGPRoute] { return all(v, bgpRoutes) }

// SetBGPRoutes makes these the learned routes, and changes only what differs.
func (s *Store) SetBGPRoutes(routes []*BGPRoute) error {
	have := s.Snapshot()
	keep := make(map[string]bool, len(routes))
	return s.WriteKinds(BGPRouteKind, func(w *Writer) {
		for _, r := range routes {
			keep[r.Prefix.String()] = true
			if old, ok := have.BGPRoute(r.Prefix); !ok || !old.Equal(r) {
				w.PutBGPRoute(r)
			}
		}
		for _, n := range w.Names(BGPRouteKind) {
			if !keep[n.Name] {
				w.Delete(BGPRouteKind, n)
			}
		}
	})
}
