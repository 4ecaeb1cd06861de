package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/loadbalancer"
	"wayleave.dev/loadbalancer/l2"
	"wayleave.dev/loadbalancer/l2/speaker"
	"wayleave.dev/loadbalancer/peers"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/writeback"
)

// interfacesEvery is how often the node's interfaces are looked at.
const interfacesEvery = 2 * time.Second

// announcer tells the process that answers for addresses what there is to do, whole, and
// remembers who owned what since when.
type announcer struct {
	node string
	cfg  speaker.State // what does not change
	sup  *speaker.Supervisor
	// began is when it was made.
	began time.Time

	mu sync.Mutex
	// planned says that plans are those of all Services.
	planned bool
	plans   map[model.Name]loadbalancer.Announcement
	peers   []peers.Peer
	keys    [][]byte
	last    speaker.State
	seen    map[netip.Addr]vipStatus
}

var _ reconcile.Target[model.Name, loadbalancer.Announcement] = (*announcer)(nil)

// Sync implements reconcile.Target.
func (n *announcer) Sync(_ context.Context, plans map[model.Name]loadbalancer.Announcement) error {
	n.mu.Lock()
	n.plans, n.planned = plans, true
	n.mu.Unlock()
	return n.tell()
}

// Apply implements reconcile.Target.
func (n *announcer) Apply(_ context.Context, set map[model.Name]loadbalancer.Announcement, del []model.Name) error {
	n.mu.Lock()
	maps.Copy(n.plans, set)
	for _, k := range del {
		delete(n.plans, k)
	}
	n.mu.Unlock()
	return n.tell()
}

// preparedWithin is how long a standby waits for the key of heartbeats: an elected writer
// that is of an earlier version may give none.
const preparedWithin = 30 * time.Second

// prepared says what is missing for the addresses to stay when the agent before ends: the
// kubelet ends it once this one is ready.
func (n *announcer) prepared(now time.Time) error {
	if n == nil {
		return errors.New("loadbalancer: the process that answers for addresses has not been started yet")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if now.Sub(n.began) >= preparedWithin {
		return nil
	}
	switch {
	case !n.planned:
		return errors.New("loadbalancer: addresses are not planned yet")
	case len(n.peers) == 0:
		return errors.New("loadbalancer: the nodes are not known yet")
	case len(n.keys) == 0:
		return errors.New("loadbalancer: there is no key of heartbeats yet")
	case !n.sup.Report().Running:
		return errors.New("loadbalancer: the process that answers for addresses does not run yet")
	}
	return nil
}

// setKeys replaces the keys of heartbeats, the newest first.
func (n *announcer) setKeys(keys [][]byte) {
	n.mu.Lock()
	n.keys = keys
	n.mu.Unlock()
	_ = n.tell() // the loop over the interfaces tries again
}

// setPeers replaces the nodes.
func (n *announcer) setPeers(list []peers.Peer) {
	n.mu.Lock()
	n.peers = list
	n.mu.Unlock()
	_ = n.tell()
}

// tell gives the process the whole state, when it differs from what it has.
func (n *announcer) tell() error {
	links, err := interfaces()
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	state := n.cfg
	state.Peers, state.Keys = n.peers, n.keys
	own := map[netip.Addr]bool{}
	for _, p := range n.peers {
		if p.Name == n.node {
			for _, a := range p.Addrs {
				own[a] = true
			}
		}
	}
	users := users(n.plans)
	for _, v := range loadbalancer.Combine(n.plans) {
		state.VIPs = append(state.VIPs, l2.VIP{Addr: v.Addr, Service: users[v.Addr], Eligible: v.Eligible,
			Interfaces: match(links, v.Interfaces, own)})
	}
	if !reflect.DeepEqual(state, n.last) {
		n.last = state
		n.sup.Set(state)
	}
	return nil
}

// users names the Services of each address.
func users(plans map[model.Name]loadbalancer.Announcement) map[netip.Addr]string {
	names := map[netip.Addr][]string{}
	for _, k := range slices.SortedFunc(maps.Keys(plans), model.Name.Compare) {
		for _, v := range plans[k].VIPs {
			names[v.Addr] = append(names[v.Addr], k.String())
		}
	}
	out := map[netip.Addr]string{}
	for a, list := range names {
		out[a] = strings.Join(list, ",")
	}
	return out
}

// hostLink is an interface of the node with its addresses.
type hostLink struct {
	name  string
	addrs []netip.Addr
}

func interfaces() ([]hostLink, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("interfaces of the node: %w", err)
	}
	var out []hostLink
	for _, i := range list {
		if i.Flags&net.FlagLoopback != 0 || len(i.HardwareAddr) == 0 {
			continue
		}
		l := hostLink{name: i.Name}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it has just gone
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				l.addrs = append(l.addrs, p.Addr())
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// match picks the interfaces by globs; without any, those that have an address of the
// node.
func match(links []hostLink, globs []string, own map[netip.Addr]bool) (out []string) {
	for _, l := range links {
		ok := len(globs) == 0 && slices.ContainsFunc(l.addrs, func(a netip.Addr) bool { return own[a] })
		for _, g := range globs {
			hit, err := path.Match(g, l.name)
			ok = ok || err == nil && hit
		}
		if ok {
			out = append(out, l.name)
		}
	}
	return out
}

// vipStatus is a line of `wayleave status --vips`.
type vipStatus struct {
	Addr    netip.Addr `json:"addr"`
	Service string     `json:"service"`
	// Owner is the node that answers, empty when none does, as seen from here.
	Owner string `json:"owner"`
	// Since is when the owner began, or when this agent first saw it so.
	Since time.Time `json:"since"`
	// Note is what is unusual: a dispute, a foreign machine.
	Note string `json:"note,omitempty"`
}

// look brings what is seen of owners up to date and returns it, sorted by address.
func (n *announcer) look(now time.Time) []vipStatus {
	r := n.sup.Report()
	standing := standings(n.node, r)
	n.mu.Lock()
	defer n.mu.Unlock()
	fresh := map[netip.Addr]vipStatus{}
	for _, v := range n.last.VIPs {
		s := vipStatus{Addr: v.Addr, Service: v.Service, Owner: loadbalancer.Owner(v.Addr, v.Eligible,
			standing), Since: now}
		i := slices.IndexFunc(r.VIPs, func(o l2.Owned) bool { return o.Addr == v.Addr })
		switch {
		case i >= 0:
			s.Owner, s.Since = n.node, r.VIPs[i].Since
		case s.Owner == n.node:
			s.Owner = "" // ours by the rules, and not answered yet
			fallthrough
		default:
			if old, ok := n.seen[v.Addr]; ok && old.Owner == s.Owner {
				s.Since = old.Since
			}
		}
		s.Note = note(v.Addr, r)
		fresh[v.Addr] = s
	}
	n.seen = fresh
	return slices.SortedFunc(maps.Values(fresh), func(a, b vipStatus) int { return a.Addr.Compare(b.Addr) })
}

func note(a netip.Addr, r speaker.Report) string {
	for _, d := range r.Disputes {
		if d.Addr == a {
			return "disputed with " + d.Peer
		}
	}
	for _, f := range r.Foreign {
		if f.Addr == a {
			return fmt.Sprintf("%s, which is no node, says on %s that it has the address", f.MAC, f.Interface)
		}
	}
	return ""
}

// standings are those of all nodes as the process sees them.
func standings(self string, r speaker.Report) func(string) loadbalancer.Standing {
	by := map[string]loadbalancer.Standing{}
	rank := func(live, willing bool) loadbalancer.Standing {
		switch {
		case !live:
			return loadbalancer.Dead
		case willing:
			return loadbalancer.Willing
		}
		return loadbalancer.Reluctant
	}
	for _, m := range r.Members {
		by[m.Name] = rank(m.Live, m.Willing)
	}
	by[self] = rank(r.Running && r.Ready, r.Willing && !r.Draining)
	return func(n string) loadbalancer.Standing { return by[n] }
}

// announce answers for addresses of load balancers, or waits until the agent before has
// ended. settle is how long it leaves them to other nodes: not at all when it follows.
func (a *agent) announce(ctx context.Context, settle time.Duration) error {
	n := &announcer{node: a.node, began: time.Now(), sup: speaker.New(a.log, "l2"),
		plans: map[model.Name]loadbalancer.Announcement{},
		cfg:   speaker.State{Node: a.node, Port: uint16(a.cfg.LoadBalancer.PeerPort), Settle: settle}}
	for _, c := range []prometheus.Collector{n.sup, tally{a.store, a.cfg.LoadBalancer.Default}} {
		if err := a.metrics.registry.Register(c); err != nil {
			return err
		}
	}
	a.announcer.Store(n)
	defer a.announcer.Store(nil)
	keys, err := a.peerKeys()
	if err != nil {
		return err
	}
	// The process outlives ctx for as long as it takes to hand its addresses on.
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	var process sync.WaitGroup
	process.Go(func() {
		if err := n.sup.Run(running); err != nil {
			a.log.Warn("the process that answers for addresses", "err", err)
		}
	})
	defer process.Wait()
	defer end()
	err = all(ctx, func(ctx context.Context) error { return a.announcements(ctx, n) },
		func(ctx context.Context) error { return keys.Run(ctx, n.setKeys) },
		func(ctx context.Context) error { return a.followNodes(ctx, n) },
		func(ctx context.Context) error { return a.watchAnnouncer(ctx, n) })
	a.handOn(n)
	return err
}

// announcements plans what is to be answered. The kind AddressPool is made by the elected
// agent, maybe of a later version than ours is: a node is healthy without.
func (a *agent) announcements(ctx context.Context, n *announcer) error {
	if err := a.store.WaitSynced(ctx, loadbalancer.Kinds); err != nil {
		return err
	}
	loop := &reconcile.Loop[model.Name, loadbalancer.Announcement]{
		Name: "loadbalancer", Store: a.store, Kinds: loadbalancer.Kinds,
		Planner: reconcile.PlannerOf(loadbalancer.Keys, loadbalancer.Plan(a.cfg.LoadBalancer.Default)),
		Equal:   loadbalancer.Equal, Target: n, Health: a.health("loadbalancer"), Log: a.log,
		Report: func(key string, problems []model.Problem) { a.problems.Set("announce", key, problems) },
	}
	return loop.Run(ctx)
}

// handOn lets other nodes take the addresses over before this agent ends, unless another
// agent of this node follows at once.
func (a *agent) handOn(n *announcer) {
	lock := a.lock.Load()
	if lock == nil {
		return // the agent before still answers
	}
	awaited, err := lock.Awaited()
	if err != nil {
		a.log.Warn("whether another agent follows is not known", "err", err)
	}
	if awaited {
		n.sup.Handover()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := n.sup.Drain(ctx); err != nil {
		a.log.Warn("addresses of load balancers were not handed on", "err", err)
	}
}

// followNodes tells the announcer of the nodes.
func (a *agent) followNodes(ctx context.Context, n *announcer) error {
	w, err := a.store.Watch(model.NodeKind)
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		snap, _, err := w.Next(ctx)
		if err != nil {
			return err
		}
		var list []peers.Peer
		for node := range snap.Nodes() {
			if len(node.InternalIPs) > 0 {
				list = append(list, peers.Peer{Name: node.Name, Addrs: node.InternalIPs})
			}
		}
		n.setPeers(list)
	}
}

// watchAnnouncer follows what the process sees, and the node's interfaces.
func (a *agent) watchAnnouncer(ctx context.Context, n *announcer) error {
	links := time.NewTicker(interfacesEvery)
	defer links.Stop()
	for {
		r, changed := n.sup.Watch()
		n.look(time.Now())
		var problems []model.Problem
		for _, f := range r.Foreign {
			problems = append(problems, model.Problem{Kind: "Node", Object: model.Name{Name: a.node},
				Reason: fmt.Sprintf("%s, which is no node's, announces on %s the address %s of a load balancer; "+
					"take the address from that machine, or from the AddressPool", f.MAC, f.Interface, f.Addr)})
		}
		a.problems.Set("announce", "foreign", problems)
		var wrong error
		if !a.owner.Load() {
			// Another agent's process has the port.
		} else if r.Heartbeats != "" {
			wrong = fmt.Errorf("heartbeats are not sent: %s", r.Heartbeats)
		} else if len(r.Problems) > 0 {
			wrong = fmt.Errorf("%s", strings.Join(r.Problems, "; "))
		}
		a.say("l2", wrong)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-links.C:
			a.say("interfaces", n.tell())
		}
	}
}

// peerKeys is this node's part of the key of heartbeats.
func (a *agent) peerKeys() (*writeback.PeerKeys, error) {
	k := &writeback.PeerKeys{Client: a.client.Interface, Namespace: writeback.PeersNamespace, Node: a.node,
		File: stateDir + "/peer-key", Log: a.log}
	return k, k.Load()
}

// tally are metrics of what the API says of load balancers, counted when asked for.
type tally struct {
	store     *model.Store
	byDefault bool
}

// Describe is for Prometheus.
func (t tally) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(t, to) }

// Collect gives Services with and without an address, and the use of pools.
func (t tally) Collect(to chan<- prometheus.Metric) {
	c := loadbalancer.Count(t.store.Snapshot(), t.byDefault)
	services := prometheus.NewDesc("wayleave_loadbalancer_services",
		"Services of type LoadBalancer by state: served (with an address), waiting.", []string{"state"}, nil)
	to <- prometheus.MustNewConstMetric(services, prometheus.GaugeValue, float64(c.Served), "served")
	to <- prometheus.MustNewConstMetric(services, prometheus.GaugeValue, float64(c.Waiting), "waiting")
	used := prometheus.NewDesc("wayleave_address_pool_used", "Addresses of a pool that Services have.",
		[]string{"pool"}, nil)
	for pool, n := range c.Used {
		to <- prometheus.MustNewConstMetric(used, prometheus.GaugeValue, float64(n), pool)
	}
}

// facts are for status.
func (n *announcer) facts(t loadbalancer.Tally) []string {
	r := n.sup.Report()
	live := 0
	for _, m := range r.Members {
		if m.Live {
			live++
		}
	}
	willing := "takes addresses"
	switch {
	case !r.Running:
		willing = "is starting"
	case r.Draining:
		willing = "gives its addresses to others"
	case !r.Willing:
		willing = "leaves addresses to others for now"
	}
	return []string{fmt.Sprintf("%d Services of the cluster have an address of %d pools, %d wait for one", t.Served,
		len(t.Used), t.Waiting),
		fmt.Sprintf("answers for %d addresses by ARP and NDP, %d of %d other nodes live, this one %s (status --vips "+
			"lists who owns what)", len(r.VIPs), live, len(r.Members), willing)}
}
