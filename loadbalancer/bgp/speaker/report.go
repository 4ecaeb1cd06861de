package speaker

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	packet "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"wayleave.dev/loadbalancer/bgp"
)

const (
	// convergeWithin bounds the wait for routes of peers after a start.
	convergeWithin = 60 * time.Second
	// routesWithin is the wait for the routes of a peer that does not mark their end.
	routesWithin = 5 * time.Second
	// silence is how long a peer that sent too many prefixes has no session.
	silence = 5 * time.Minute
	// maxReceived bounds what all peers together may send, in prefixes: some 25 MiB. A flood of four times as many kept
	// the process so busy on a slow machine that it was taken for hung.
	maxReceived = 1 << 16
	// maxRoutes bounds the routes of a report.
	maxRoutes = 1 << 17
)

// routeCache are the accepted paths, which are listed again only after a change.
type routeCache struct {
	stale atomic.Bool
	list  []bgp.Route
}

// report is the state of everything.
func (e *engine) report() bgp.Report {
	r := bgp.Report{Running: true, Problem: e.problem, Refused: e.events.refused()}
	if e.server == nil {
		return r
	}
	now := time.Now()
	by := map[netip.Addr]string{}
	established := map[string]bool{}
	converged := true
	var internal []bgp.Session
	_ = e.server.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) {
		s, ok := e.sessionReport(p)
		if !ok {
			return
		}
		if x := e.sessions[s.Name]; x.External && s.State == bgp.Established && s.ASN == e.global.asn {
			internal = append(internal, x)
		}
		by[s.Addr] = s.Name
		established[s.Name] = established[s.Name] || s.State == bgp.Established
		converged = converged && e.hasRoutes(p, s, now)
		e.unsilence(p, s, now)
		r.Sessions = append(r.Sessions, s)
	})
	e.refuseInternal(internal)
	e.tame(r.Sessions, now)
	for name, s := range e.sessions {
		converged = converged && (established[name] || s.Range.IsValid())
		if s.Range.IsValid() {
			r.Sessions = append(r.Sessions, bgp.SessionReport{Name: name, State: "listening"})
		}
	}
	slices.SortFunc(r.Sessions, func(a, b bgp.SessionReport) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), a.Addr.Compare(b.Addr))
	})
	e.events.forget(func(a netip.Addr) bool { _, ok := by[a]; return ok })
	e.ends.forget(by)
	r.Converged = e.problem == "" && converged || now.Sub(e.began) > convergeWithin
	r.Routes = e.listRoutes(by)
	return r
}

// refuseInternal ends sessions with peers whose ASN is this node's, and must not be.
func (e *engine) refuseInternal(list []bgp.Session) {
	for _, s := range list {
		if s.Range.IsValid() {
			continue // the library has no way to end one of the peers for good
		}
		e.events.shared.fail(s.Addr, ours+"the peer has the ASN of this node, and must have another one")
		if err := e.remove(s); err == nil {
			delete(e.sessions, s.Name)
			e.unresolved = true // it is tried again
		}
	}
}

// sessionReport is the report of one peer. ok is false for a peer of a session that has just ended.
func (e *engine) sessionReport(p *api.Peer) (s bgp.SessionReport, ok bool) {
	addr, err := netip.ParseAddr(p.State.NeighborAddress)
	if err != nil {
		return s, false
	}
	s = bgp.SessionReport{Name: cmp.Or(p.Conf.PeerGroup, p.Conf.Description), Addr: addr,
		State: state(p.State.SessionState), ASN: p.State.PeerAsn}
	want, ok := e.sessions[s.Name]
	if !ok {
		return s, false
	}
	if s.State == bgp.Established && p.Timers != nil && p.Timers.State != nil && p.Timers.State.Uptime != nil {
		s.Since = p.Timers.State.Uptime.AsTime()
	}
	for _, f := range p.AfiSafis {
		if f.State != nil {
			s.Received += f.State.Received
			s.Accepted += f.State.Accepted
		}
	}
	for _, c := range p.State.RemoteCap {
		s.GracefulRestart = s.GracefulRestart || want.Restart > 0 && c.GetGracefulRestart() != nil
	}
	if m := p.State.Messages; m != nil && m.Received != nil && m.Sent != nil {
		s.MessagesIn, s.MessagesOut = m.Received.Total, m.Sent.Total
	}
	if s.State == bgp.Established {
		s.Advertised = e.advertised(want)
	}
	if f := e.events.failure(addr); f.text != "" && (s.State != bgp.Established || f.at.After(s.Since)) {
		s.Error, s.ErrorAt = f.text, f.at
		if want.Password != "" && strings.HasPrefix(f.text, "no connection") {
			s.Error += " (a peer without this password does not answer)"
		}
	}
	return s, true
}

func state(s api.PeerState_SessionState) string {
	switch s {
	case api.PeerState_SESSION_STATE_ESTABLISHED:
		return bgp.Established
	case api.PeerState_SESSION_STATE_OPENCONFIRM:
		return "openconfirm"
	case api.PeerState_SESSION_STATE_OPENSENT:
		return "opensent"
	case api.PeerState_SESSION_STATE_ACTIVE, api.PeerState_SESSION_STATE_CONNECT:
		return "active"
	}
	return "idle"
}

// advertised counts the paths that the session gets by the policy.
func (e *engine) advertised(s bgp.Session) (n uint64) {
	ids := map[uint32]bool{}
	for _, c := range e.policy.classes {
		if slices.Contains(c.Sessions, s.Name) {
			ids[e.classes.id(c.Name)] = true
		}
	}
	for prefix, a := range e.paths {
		if (prefix.Addr().Is4() && s.V4 || prefix.Addr().Is6() && s.V6) &&
			slices.ContainsFunc(a.marks, func(m uint32) bool { return ids[m] }) {
			n++
		}
	}
	return n
}

// hasRoutes says whether the peer has sent all its routes.
func (e *engine) hasRoutes(p *api.Peer, s bgp.SessionReport, now time.Time) bool {
	if s.State != bgp.Established {
		return p.Conf.PeerGroup != "" // a peer of a range need not come
	}
	if now.Sub(s.Since) > routesWithin {
		return true
	}
	for _, f := range p.AfiSafis {
		c := f.Config
		if c == nil || c.Family == nil || !e.ends.has(s.Addr, packet.NewFamily(uint16(c.Family.Afi),
			uint8(c.Family.Safi)), s.Since) {
			return false
		}
	}
	return true
}

// tame ends the session of the peer that sends most, while all together send more than fits the memory.
func (e *engine) tame(list []bgp.SessionReport, now time.Time) {
	var total uint64
	var most bgp.SessionReport
	for _, s := range list {
		total += s.Received
		if s.Received > most.Received {
			most = s
		}
	}
	if total <= maxReceived {
		return
	}
	e.events.shared.fail(most.Addr,
		fmt.Sprintf("the peer sent more prefixes than any other, and all together %d; %d are "+
			"allowed", total, maxReceived))
	e.silenced[most.Addr] = now.Add(silence)
	_ = e.server.DisablePeer(context.Background(), &api.DisablePeerRequest{Address: most.Addr.String()})
}

// unsilence lets a peer that sent too many prefixes try again after a while.
func (e *engine) unsilence(p *api.Peer, s bgp.SessionReport, now time.Time) {
	if a := p.State.AdminState; a != api.PeerState_ADMIN_STATE_PFX_CT && a != api.PeerState_ADMIN_STATE_DOWN {
		delete(e.silenced, s.Addr)
		return
	}
	until, ok := e.silenced[s.Addr]
	switch {
	case !ok:
		e.silenced[s.Addr] = now.Add(silence)
	case now.After(until):
		delete(e.silenced, s.Addr)
		_ = e.server.EnablePeer(context.Background(), &api.EnablePeerRequest{Address: p.State.NeighborAddress})
	}
}

// listRoutes lists the accepted paths of peers.
func (e *engine) listRoutes(by map[netip.Addr]string) []bgp.Route {
	if !e.routes.stale.Swap(false) && e.routes.list != nil {
		return e.routes.list
	}
	list := []bgp.Route{}
	for _, family := range []packet.Family{packet.RF_IPv4_UC, packet.RF_IPv6_UC} {
		_ = e.server.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: family},
			func(nlri packet.NLRI, paths []*apiutil.Path) {
				prefix, err := netip.ParsePrefix(nlri.String())
				if err != nil {
					return
				}
				for _, p := range paths {
					name, ok := by[p.PeerAddress]
					if !ok || p.Withdrawal || len(list) >= maxRoutes {
						continue
					}
					list = append(list, routeOf(prefix, name, p))
				}
			})
	}
	slices.SortFunc(list, func(a, b bgp.Route) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()),
			strings.Compare(a.Session, b.Session), a.NextHop.Compare(b.NextHop))
	})
	e.routes.list = list
	return list
}

func routeOf(prefix netip.Prefix, session string, p *apiutil.Path) bgp.Route {
	r := bgp.Route{Prefix: prefix, Session: session, Best: p.Best, Stale: p.Stale, Origin: p.PeerID}
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *packet.PathAttributeNextHop:
			r.NextHop = a.Value
		case *packet.PathAttributeMpReachNLRI:
			r.NextHop = a.Nexthop
		case *packet.PathAttributeOriginatorId:
			r.Origin = a.Value
		}
	}
	if r.NextHop.IsLinkLocalUnicast() {
		r.NextHop = r.NextHop.WithZone(p.PeerAddress.Zone())
	}
	return r
}
