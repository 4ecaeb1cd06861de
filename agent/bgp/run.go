package bgp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/loadbalancer/bgp"
	"wayleave.dev/loadbalancer/bgp/speaker"
	"wayleave.dev/model"
	"wayleave.dev/writeback"
)

const (
	// quiet is how long objects must not change before sessions follow, and atMost when they follow anyway.
	quiet = 50 * time.Millisecond
	// serviceLoop is the loop that programs Services: nothing is announced before it has.
	serviceLoop = "service"
	// rulesEvery is how often the loop is looked at until then.
	rulesEvery = 100 * time.Millisecond
	// announcedFile says that the node's rules in the kernel are those of announced addresses. Its folder is empty
	// after a reboot, as the kernel is.
	announcedFile = "bgp-announced"
)

// announcer has the process bgp do what the objects say.
type announcer struct {
	node *agent.Node
	sup  *speaker.Supervisor

	// fallback is how long the process may tell no routes before nodes are reached without it.
	fallback time.Duration
	// down is since when sessions are down, of the goroutine of follow.
	down map[string]time.Time

	// chosen has whether this cluster's writer serves Services without a class, after each change of that.
	chosen chan bool

	mu   sync.Mutex
	last bgp.State
	has  bool // last is in force
}

// announce runs the process until ctx ends.
func (f *Feature) announce(ctx context.Context, n *agent.Node) error {
	a := &announcer{node: n, sup: speaker.New(n.Log, "bgp"), down: map[string]time.Time{}, chosen: make(chan bool),
		fallback: fallbackAfter}
	a.sup.Logs = n.Logs
	f.announcer.Store(a)
	defer f.announcer.Store(nil)
	choice := func(ctx context.Context) error {
		return f.followChoice(ctx, n, func(own bool) {
			select {
			case a.chosen <- own:
			case <-ctx.Done():
			}
		})
	}
	return agent.All(ctx, a.sup.Run, choice, a.plan, a.follow)
}

// followChoice follows whether Services without a class are Wayleave's: two load balancers must not announce one
// address.
func followChoice(ctx context.Context, n *agent.Node, set func(own bool)) error {
	if n.Config.LoadBalancer.Enabled && n.Config.LoadBalancer.Default {
		return writeback.FollowBalancerChoice(ctx, n.Client.Interface, set)
	}
	set(false)
	<-ctx.Done()
	return ctx.Err()
}

// plan gives the process the desired state, and again after each change. The first is complete: its End-of-RIB has
// peers drop what it lacks.
func (a *announcer) plan(ctx context.Context) error {
	if err := a.node.Store.WaitSynced(ctx, bgp.Kinds); err != nil {
		return err
	}
	if err := a.awaitRules(ctx); err != nil {
		return err
	}
	var own bool // before it is known, nothing is announced, and so nothing is withdrawn
	select {
	case own = <-a.chosen:
	case <-ctx.Done():
		return ctx.Err()
	}
	restarting, err := kept(a.node)
	if err != nil {
		a.node.Log.Warn("bgp: whether the node's rules were kept is not known", "err", err)
	}
	w, err := a.node.Store.Watch(bgp.Kinds)
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		snap, err := a.next(ctx, w, &own)
		if err != nil {
			return err
		}
		a.set(snap, restarting, own)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(quiet):
		}
	}
}

// next returns a snapshot when an object has changed, or the choice of a load balancer, which it writes to own.
func (a *announcer) next(ctx context.Context, w *model.Watcher, own *bool) (model.Snapshot, error) {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := make(chan bool, 1)
	go func() {
		defer close(changed)
		select {
		case now := <-a.chosen:
			changed <- now
			cancel()
		case <-waiting.Done():
		}
	}()
	snap, _, err := w.Next(waiting)
	cancel()
	if now, ok := <-changed; ok {
		*own = now
		if err != nil && ctx.Err() == nil {
			return a.node.Store.Snapshot(), nil
		}
	}
	return snap, err
}

// awaitRules waits until the kernel has the rules of all Services, if this program makes them.
func (a *announcer) awaitRules(ctx context.Context) error {
	if !a.node.Config.Service.Enabled {
		return nil
	}
	for !a.node.States()[serviceLoop].Synced {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rulesEvery):
		}
	}
	return nil
}

// set plans and tells the process if something changed.
func (a *announcer) set(snap model.Snapshot, restarting, own bool) {
	cfg := a.node.Config
	state, ok, problems := bgp.Plan(snap, bgp.Input{Node: a.node.Name, Balanced: cfg.LoadBalancer.Enabled,
		Balancer: own, ExternalIPs: cfg.Service.ExternalIPs, Routing: cfg.Routing == "bgp"})
	for i, p := range problems {
		problems[i] = a.node.Problem(strings.TrimSpace(p.Kind+" "+p.Object.Name+" "+p.Field), p.Reason)
	}
	a.node.Problems.Set("bgp", "plan", problems)
	a.mu.Lock()
	defer a.mu.Unlock()
	if !ok {
		return
	}
	state.Restarting = restarting
	if a.has && state.Equal(&a.last) {
		return
	}
	a.last, a.has = state, true
	a.sup.Set(state)
	if err := remember(a.node); err != nil {
		a.node.Log.Warn("bgp: peers will drop the routes when the process restarts", "err", err)
	}
}

// follow reports what the process sees: learned routes go into the store, and failures become Events of the node.
func (a *announcer) follow(ctx context.Context) error {
	late := time.NewTimer(a.fallback)
	defer late.Stop()
	for {
		r, changed := a.sup.Watch()
		if err := a.learn(r); err != nil {
			return err
		}
		a.judge(r, time.Now())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			a.fallBack()
		case <-changed:
		}
	}
}

// fallbackAfter is longer than the process waits for sessions that are not established.
const fallbackAfter = 2 * time.Minute

// fallBack has a node whose process has told no routes reach Ready nodes as with routing: auto. Otherwise a new node
// without a process would reach no other node.
func (a *announcer) fallBack() {
	if a.node.Config.Routing != "bgp" || a.node.Store.Synced()&model.BGPRouteKind != 0 {
		return
	}
	a.node.Problems.Set("bgp", "routes", []model.Problem{a.node.Problem("routing", fmt.Sprintf("the process bgp has "+
		"told no routes for %s; until it does, Ready nodes are reached directly or by VXLAN", a.fallback))})
	a.node.Store.MarkSynced(model.BGPRouteKind)
}

// learn puts the routes of peers into the store. Before the process has all of them, none is taken away.
func (a *announcer) learn(r bgp.Report) error {
	if !r.Running {
		return nil
	}
	routes := routesOf(r.Routes)
	if !r.Converged {
		have := map[netip.Prefix]bool{}
		for _, x := range routes {
			have[x.Prefix] = true
		}
		for x := range a.node.Store.Snapshot().BGPRoutes() {
			if !have[x.Prefix] {
				routes = append(routes, x)
			}
		}
	}
	if err := a.node.Store.SetBGPRoutes(routes); err != nil {
		return fmt.Errorf("learned routes: %w", err)
	}
	if r.Converged {
		a.node.Problems.Set("bgp", "routes", nil)
		a.node.Store.MarkSynced(model.BGPRouteKind)
	}
	return nil
}

// routesOf joins the paths of each prefix, the best first.
func routesOf(list []bgp.Route) []*model.BGPRoute {
	by := map[netip.Prefix]*model.BGPRoute{}
	var out []*model.BGPRoute
	for _, best := range []bool{true, false} {
		for _, r := range list {
			if r.Best != best {
				continue
			}
			x := by[r.Prefix]
			if x == nil {
				x = &model.BGPRoute{Prefix: r.Prefix}
				by[r.Prefix] = x
				out = append(out, x)
			}
			hop := model.BGPHop{Addr: r.NextHop.WithZone(""), Interface: r.NextHop.Zone()}
			kind, name, _ := strings.Cut(r.Session, " ")
			hop.Peer, hop.Node = name, kind == "Node"
			if !slices.Contains(x.Hops, hop) {
				x.Hops = append(x.Hops, hop)
			}
		}
	}
	return out
}

// patience is how long a session may be down before that is a problem.
const patience = 10 * time.Second

// judge reports what is wrong.
func (a *announcer) judge(r bgp.Report, now time.Time) {
	var problems []model.Problem
	before := a.down
	a.down = map[string]time.Time{}
	for _, s := range r.Sessions {
		if !s.Addr.IsValid() || s.State == bgp.Established {
			continue
		}
		peer := s.Name + " " + s.Addr.String()
		since, ok := before[peer]
		if !ok {
			since = now
		}
		a.down[peer] = since
		if s.Error != "" && now.Sub(since) >= patience {
			problems = append(problems, a.node.Problem(s.Name, fmt.Sprintf("no session with %s: %s; it is tried again",
				s.Addr, s.Error)))
		}
	}
	a.node.Problems.Set("bgp", "sessions", problems)
	var wrong error
	if r.Problem != "" {
		wrong = errors.New(r.Problem)
	}
	a.node.SetCondition("bgp", wrong)
}

func file(n *agent.Node) string { return filepath.Join(n.Run, announcedFile) }

// kept says whether the kernel has the rules of an earlier agent.
func kept(n *agent.Node) (bool, error) {
	_, err := os.Stat(file(n))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func remember(n *agent.Node) error { return os.WriteFile(file(n), nil, 0o600) }

func forget(n *agent.Node) error {
	if err := os.Remove(file(n)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
