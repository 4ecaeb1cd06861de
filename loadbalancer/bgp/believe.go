package bgp

import (
	"net/netip"
	"strings"
)

// Bounds of a report. The process that sends it parses bytes of peers, and may be captured.
const (
	maxReported = 1 << 14 // sessions: ranges have a row for each neighbour
	maxRoutes   = 1 << 17
	maxText     = 512 // bytes
)

// Believe removes from a report what the process cannot know: sessions that the state does not ask for, second rows of
// a peer, and routes of other sessions. It cuts what is over the bounds. A report before any state has nothing.
func (r *Report) Believe(s *State) {
	asked := map[string]bool{}
	if s != nil {
		for _, x := range s.Sessions {
			asked[x.Name] = true
		}
	}
	type row struct {
		name string
		addr netip.Addr
	}
	seen := map[row]bool{}
	sessions := r.Sessions[:0]
	for _, x := range r.Sessions {
		at := row{x.Name, x.Addr}
		if !asked[x.Name] || seen[at] || len(sessions) == maxReported {
			continue
		}
		seen[at] = true
		x.State, x.Error = cut(x.State), cut(x.Error)
		sessions = append(sessions, x)
	}
	routes := r.Routes[:0]
	for _, x := range r.Routes {
		if asked[x.Session] && x.Prefix.IsValid() && x.Prefix == x.Prefix.Masked() && len(routes) < maxRoutes {
			routes = append(routes, x)
		}
	}
	r.Sessions, r.Routes, r.Problem = sessions, routes, cut(r.Problem)
}

func cut(s string) string {
	if len(s) > maxText {
		return strings.ToValidUTF8(s[:maxText], "")
	}
	return s
}
