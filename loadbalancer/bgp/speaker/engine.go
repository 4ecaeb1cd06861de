package speaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/server"

	"wayleave.dev/loadbalancer/bgp"
)

// engine keeps a gobgp server in step with the desired state. It belongs to the goroutine of Run.
type engine struct {
	log     *slog.Logger
	events  *events
	changed chan struct{} // a session or a route changed

	server *server.BgpServer // nil before the first State
	began  time.Time
	global global
	// sessions are those in the server by name, with the address that was found for an Interface.
	sessions map[string]bgp.Session
	classes  classes
	// policy is what the policy in force was made of.
	policy policy
	paths  map[netip.Prefix]announced
	// unresolved says that a neighbour of an interface is not known yet.
	unresolved bool
	problem    string
	// silenced are peers that sent too many prefixes, and when each may try again.
	silenced map[netip.Addr]time.Time
	routes   routeCache
	ends     endsOfRIB
}

// global is what a running server cannot change.
type global struct {
	asn      uint32
	routerID netip.Addr
	port     uint16
	listen   string
}

func globalOf(s *bgp.State) global {
	return global{s.ASN, s.RouterID, s.Port, fmt.Sprint(s.Listen)}
}

func newEngine(log *slog.Logger) *engine {
	e := &engine{log: log, changed: make(chan struct{}, 1), sessions: map[string]bgp.Session{},
		paths: map[netip.Prefix]announced{}, silenced: map[netip.Addr]time.Time{}}
	e.events = newEvents(log, e.poke)
	return e
}

func (e *engine) poke() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// apply brings the server in step with a state. What failed is the problem of the report, and is tried again, except
// errRestart.
func (e *engine) apply(s *bgp.State) error {
	err := e.step(s)
	e.problem = ""
	if err != nil {
		e.problem = err.Error()
	}
	return err
}

// step orders the changes: paths and policy first, so that a new session announces everything at once, and its
// End-of-RIB is true.
func (e *engine) step(s *bgp.State) error {
	if err := s.Check(); err != nil {
		return err
	}
	if e.server == nil {
		if err := e.start(s); err != nil {
			return err
		}
	}
	if e.global != globalOf(s) {
		return errRestart
	}
	sessions, errs := e.resolve(s.Sessions)
	removed := e.removeSessions(sessions)
	policyErr := e.setPolicy(s, sessions)
	if policyErr == nil {
		policyErr = e.setPaths(s)
	}
	return errors.Join(removed, policyErr, e.addSessions(s, sessions), errors.Join(errs...))
}

// errRestart ends the process: ASN, router id and port are those of the whole server.
var errRestart = errors.New("the ASN, the router id or the port of this node has changed")

// start makes the server listen, with a policy that refuses everything.
func (e *engine) start(s *bgp.State) error {
	b := server.NewBgpServer(server.LoggerOption(slog.New(e.events), nil))
	go b.Serve()
	g := &api.Global{Asn: s.ASN, RouterId: s.RouterID.String(), ListenPort: -1, UseMultiplePaths: true}
	for _, a := range s.Listen {
		// One address that is not the node's must not cost all sessions.
		if s.Port != 0 && !missing(netip.AddrPortFrom(a, s.Port)) {
			g.ListenPort = int32(s.Port)
			g.ListenAddresses = append(g.ListenAddresses, a.String())
		}
	}
	ctx := context.Background()
	if err := b.StartBgp(ctx, &api.StartBgpRequest{Global: g}); err != nil {
		b.Stop()
		return fmt.Errorf("port %d: %w", s.Port, err)
	}
	if err := refuseAll(ctx, b); err != nil {
		b.Stop()
		return err
	}
	err := b.WatchEvent(ctx, server.WatchEventMessageCallbacks{
		OnBestPath:   func([]*apiutil.Path, time.Time) { e.routes.stale.Store(true); e.poke() },
		OnPathUpdate: func([]*apiutil.Path, time.Time) { e.routes.stale.Store(true); e.poke() },
		OnPathEor: func(p *apiutil.Path, _ time.Time) {
			e.ends.note(p.PeerAddress, p.Family)
			e.routes.stale.Store(true)
			e.poke()
		},
		OnPeerUpdate: func(*apiutil.WatchEventMessage_PeerEvent, time.Time) { e.routes.stale.Store(true); e.poke() },
	}, server.WatchBestPath(false), server.WatchPostUpdate(false, "", ""), server.WatchEor(false), server.WatchPeer())
	if err != nil {
		b.Stop()
		return fmt.Errorf("watch: %w", err)
	}
	e.server, e.began, e.global = b, time.Now(), globalOf(s)
	return nil
}

// missing says whether the node does not have the address. The process then does not listen there.
func missing(a netip.AddrPort) bool {
	l, err := net.Listen("tcp", a.String())
	if err == nil {
		_ = l.Close()
	}
	return errors.Is(err, syscall.EADDRNOTAVAIL)
}

// resolve finds the neighbours of interfaces. It leaves out sessions whose neighbour is not known.
func (e *engine) resolve(list []bgp.Session) (out []bgp.Session, errs []error) {
	e.unresolved = false
	plain := map[netip.Addr]string{}
	for _, s := range list {
		if s.Interface != "" {
			e.unresolved = true // it may change
			addr, err := neighbour(s.Interface)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", s.Name, err))
				continue
			}
			s.Addr, s.Interface = addr, ""
		}
		// The policy does not know zones.
		if other, ok := plain[s.Addr.WithZone("")]; ok && s.Addr.IsValid() {
			errs = append(errs, fmt.Errorf("%s: peer %s has the same address as that of %s", s.Name, s.Addr, other))
			continue
		}
		plain[s.Addr.WithZone("")] = s.Name
		out = append(out, s)
	}
	return out, errs
}

// removeSessions ends the sessions that are not wanted, or not as they are.
func (e *engine) removeSessions(want []bgp.Session) error {
	var errs []error
	for name, have := range e.sessions {
		if slices.Contains(want, have) {
			continue
		}
		if err := e.remove(have); err != nil {
			errs = append(errs, fmt.Errorf("%s: end the session: %w", name, err))
			continue
		}
		delete(e.sessions, name)
	}
	return errors.Join(errs...)
}

func (e *engine) remove(s bgp.Session) error {
	ctx := context.Background()
	if !s.Range.IsValid() {
		return e.removePeer(ctx, s)
	}
	if err := e.server.DeleteDynamicNeighbor(ctx, &api.DeleteDynamicNeighborRequest{Prefix: s.Range.String(),
		PeerGroup: s.Name}); err != nil {
		return err
	}
	var errs []error
	err := e.server.ListPeer(ctx, &api.ListPeerRequest{}, func(p *api.Peer) {
		if p.Conf.PeerGroup == s.Name {
			errs = append(errs, e.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: p.State.NeighborAddress}))
		}
	})
	if err := errors.Join(err, errors.Join(errs...)); err != nil {
		return err
	}
	return e.server.DeletePeerGroup(ctx, &api.DeletePeerGroupRequest{Name: s.Name})
}

func (e *engine) removePeer(ctx context.Context, s bgp.Session) error {
	if s.Password != "" {
		// Only an update takes the key off the listening socket.
		open := s
		open.Password = ""
		if _, err := e.server.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: peerOf(open, false)}); err != nil {
			return err
		}
	}
	return e.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: s.Addr.String()})
}

// addSessions starts the sessions that are missing.
func (e *engine) addSessions(state *bgp.State, want []bgp.Session) error {
	var errs []error
	for _, s := range want {
		if _, ok := e.sessions[s.Name]; ok {
			continue
		}
		if err := e.add(state, s); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.Name, err))
			continue
		}
		e.sessions[s.Name] = s
	}
	return errors.Join(errs...)
}

func (e *engine) add(state *bgp.State, s bgp.Session) error {
	if s.Password != "" {
		if err := canSign(); err != nil {
			return err // otherwise the library would go on without
		}
	}
	ctx := context.Background()
	if !s.Range.IsValid() {
		return e.server.AddPeer(ctx, &api.AddPeerRequest{Peer: peerOf(s, state.Restarting)})
	}
	if err := e.server.AddPeerGroup(ctx, &api.AddPeerGroupRequest{PeerGroup: groupOf(s)}); err != nil {
		return err
	}
	return e.server.AddDynamicNeighbor(ctx, &api.AddDynamicNeighborRequest{DynamicNeighbor: &api.DynamicNeighbor{
		Prefix: s.Range.String(), PeerGroup: s.Name}})
}
