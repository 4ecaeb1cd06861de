package speaker

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"wayleave.dev/internal/child"
	"wayleave.dev/internal/supervisor"
	"wayleave.dev/loadbalancer"
	"wayleave.dev/loadbalancer/l2"
	"wayleave.dev/loadbalancer/peers"
)

const (
	// retry is the wait before heartbeats are started again, for example because the previous process still has the
	// port.
	retry = 50 * time.Millisecond
	// resolve is how long nodes have to identify the owner of an unknown MAC.
	resolve = 300 * time.Millisecond
	// maxPending bounds the unknown MACs that are being resolved.
	maxPending = 256
	// reportEvery is the minimum interval of reports to the agent.
	reportEvery = 50 * time.Millisecond
)

// errElsewhere ends a process whose node got another name or address: a new one is started.
var errElsewhere = errors.New("this node's name or address has changed")

// process is the running speaker. Its fields belong to the goroutine of Run.
type process struct {
	log     *slog.Logger
	agent   *supervisor.Parent[order, news]
	started time.Time
	heard   chan l2.Heard

	state    State
	links    []l2.Link
	draining bool
	handover bool

	arbiter   *l2.Arbiter
	responder *l2.Responder
	peers     *peers.Peers
	beats     string // the error that prevents heartbeats
	looked    bool   // the search for other nodes is complete
	node      string
	at        netip.AddrPort

	members   []peers.Member
	willing   bool
	answering map[netip.Addr][]string
	pending   map[unknown]pending
	asked     time.Time

	stale    bool // the state or the members have changed since the arbiter's last update
	announce error
	retryAt  time.Time

	reported time.Time
	news     bool // the agent's report is outdated
}

type unknown struct {
	addr netip.Addr
	mac  l2.MAC
}

type pending struct {
	link string
	due  time.Time
}

// Main is the whole of the process that a Supervisor starts.
func Main() error { return child.Main("l2", Run) }

// Run answers and sends heartbeats as the agent's orders say, until the socket is closed.
func Run(conn *net.UnixConn, log *slog.Logger) error {
	p := &process{log: log, agent: supervisor.NewParent[order, news](conn, nil), started: time.Now(),
		heard: make(chan l2.Heard, 1024), pending: map[unknown]pending{}, news: true}
	p.responder = l2.NewResponder(log, p.heard)
	defer p.agent.Close()
	err := p.loop()
	// Answering ends first: other nodes take over as soon as they know.
	p.responder.Close()
	if p.peers != nil {
		err = errors.Join(err, p.peers.Close(!p.handover))
	}
	return err
}

func (p *process) loop() error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		var changed, ready <-chan struct{}
		if p.peers != nil {
			changed = p.peers.Changed()
			if !p.looked {
				ready = p.peers.Ready()
			}
		}
		select {
		case <-p.agent.Probes:
			c := p.counters()
			p.agent.Put(func(n *news) { n.Counters = &c })
		case o, ok := <-p.agent.Orders:
			if !ok {
				return p.agent.Err()
			}
			if err := p.take(o.Order, o.Files); err != nil {
				return err
			}
		case <-changed:
			p.stale = true
		case <-ready:
			p.looked, p.stale = true, true
		case h := <-p.heard:
			p.hear(time.Now(), h)
		case <-timer.C:
		}
		timer.Reset(p.step(time.Now()))
	}
}

// take applies an order.
func (p *process) take(o order, files []*os.File) error {
	for i, f := range files {
		if i < len(o.Passed) {
			p.responder.Adopt(o.Passed[i].Kind, o.Passed[i].Index, f)
		} else {
			_ = f.Close()
		}
	}
	if o.Links != nil {
		if p.arbiter != nil && gained(p.links, *o.Links) {
			p.arbiter.Again(time.Now())
		}
		p.links, p.stale, p.answering = *o.Links, true, nil
	}
	if o.Drain && !p.draining {
		p.draining, p.stale = true, true
	}
	p.handover = p.handover || o.Handover
	if o.State == nil {
		return nil
	}
	at, _ := o.State.listen()
	// Before the nodes are known it has no address.
	if p.arbiter != nil && (o.State.Node != p.node || p.at.IsValid() && at != p.at) {
		return errElsewhere
	}
	if p.arbiter == nil {
		p.arbiter, p.node = l2.NewArbiter(o.State.Node), o.State.Node
	}
	p.at = at
	p.state, p.stale, p.answering = *o.State, true, nil
	if p.peers != nil {
		p.peers.SetPeers(o.State.Peers)
		if err := p.peers.SetKeys(o.State.Keys); err != nil {
			p.beats = err.Error()
		} else {
			p.beats = ""
		}
	}
	return nil
}

// gained reports whether an interface came up, or changed its MAC.
func gained(before, after []l2.Link) bool {
	return slices.ContainsFunc(after, func(l l2.Link) bool { return l.Up && !slices.Contains(before, l) })
}

// step does all that is due, and returns the time until the next call.
func (p *process) step(now time.Time) time.Duration {
	if p.arbiter == nil {
		return time.Hour
	}
	wait := time.Hour
	until := func(t time.Time) {
		if !t.IsZero() {
			wait = min(wait, max(t.Sub(now), time.Millisecond))
		}
	}
	// The first heartbeat must be correct: a process that replaces another one at once, with the same willingness,
	// must not appear reluctant meanwhile.
	if willing := p.wills(now); willing != p.willing {
		p.willing, p.stale = willing, true
	}
	if !now.Before(p.retryAt) {
		p.retryAt = time.Time{}
		p.beat()
	}
	if settled := p.started.Add(p.state.Settle); now.Before(settled) {
		until(settled)
	}
	p.look(now)
	p.resolve(now)
	addrs, again := p.arbiter.Tick(now)
	until(again)
	p.apply()
	if len(addrs) > 0 {
		p.announce = p.responder.Announce(addrs)
		p.news = true
	}
	for _, u := range p.pending {
		until(u.due)
	}
	if p.peers == nil && p.retryAt.IsZero() {
		p.retryAt = now.Add(retry)
	}
	until(p.retryAt)
	if p.news {
		if next := p.reported.Add(reportEvery); now.Before(next) {
			until(next)
		} else {
			p.news, p.reported = false, now
			r := p.report()
			p.agent.Put(func(n *news) { n.Report = r })
		}
	}
	return wait
}

// beat starts the heartbeats if they are not running.
func (p *process) beat() {
	if p.peers != nil {
		return
	}
	before := p.beats
	p.beats = ""
	switch {
	case len(p.state.Keys) == 0:
		p.beats = "there is no key yet"
	case !p.at.IsValid():
		p.beats = fmt.Sprintf("node %s has no address", p.node)
	default:
		list, err := peers.Start(peers.Config{Node: p.node, Addr: p.at, Keys: p.state.Keys, Nodes: len(p.state.Peers),
			Log: p.log}, p.meta())
		if err != nil {
			p.beats = err.Error()
			break
		}
		p.peers, p.stale = list, true
		list.SetPeers(p.state.Peers)
	}
	p.news = p.news || p.beats != before
}

// ready reports whether the living nodes are known.
func (p *process) ready() bool {
	if p.peers == nil {
		return false
	}
	select {
	case <-p.peers.Ready():
		return true
	default:
		return false
	}
}

// look updates the living nodes, and which addresses this node owns.
func (p *process) look(now time.Time) {
	if !p.stale {
		return
	}
	p.stale, p.news = false, true
	if p.peers != nil {
		p.peers.SetMeta(p.meta())
	}
	if !p.ready() {
		// A process without heartbeats, or before its search is complete, leaves all addresses to other nodes.
		p.arbiter.Set(now, p.state.VIPs, func(string) loadbalancer.Standing { return loadbalancer.Dead })
		return
	}
	p.members = p.peers.Members()
	p.arbiter.Set(now, p.state.VIPs, p.standing())
}

// wills reports whether this node is willing to take addresses.
func (p *process) wills(now time.Time) bool {
	return !p.draining && !now.Before(p.started.Add(p.state.Settle)) && p.connected()
}

func (p *process) standing() func(string) loadbalancer.Standing {
	of := func(willing bool) loadbalancer.Standing {
		if willing {
			return loadbalancer.Willing
		}
		return loadbalancer.Reluctant
	}
	all := map[string]loadbalancer.Standing{p.node: of(p.willing)}
	for _, m := range p.members {
		if m.Live {
			all[m.Name] = of(m.Meta.Willing)
		}
	}
	return func(node string) loadbalancer.Standing { return all[node] }
}

// connected reports whether every address that this node may answer for has an interface with a carrier.
func (p *process) connected() bool {
	up := map[string]bool{}
	for _, l := range p.links {
		up[l.Name] = l.Up
	}
	for _, v := range p.state.VIPs {
		if len(v.Interfaces) > 0 && slices.Contains(v.Eligible, p.node) && !slices.ContainsFunc(v.Interfaces,
			func(n string) bool { return up[n] }) {
			return false
		}
	}
	return true
}

func (p *process) meta() peers.Meta {
	m := peers.Meta{Willing: p.willing}
	for _, l := range p.links {
		m.MACs = append(m.MACs, l.MAC)
	}
	return m
}

// apply updates the responder if the answered addresses have changed.
func (p *process) apply() {
	answering := p.arbiter.Answering()
	if p.answering != nil && sameKeys(p.answering, answering) {
		return
	}
	p.answering, p.news = answering, true
	hosts := map[netip.Addr]string{}
	for _, peer := range p.state.Peers {
		if peer.Name == p.node {
			continue
		}
		for _, a := range peer.Addrs {
			hosts[a] = peer.Name
		}
	}
	p.responder.Set(p.state.VIPs, answering, hosts, p.links)
}

func sameKeys[V any](a, b map[netip.Addr]V) bool {
	for k := range a {
		if _, ok := b[k]; !ok {
			return false
		}
	}
	return len(a) == len(b)
}

// hear evaluates an announcement of another machine.
func (p *process) hear(now time.Time, h l2.Heard) {
	p.news = true
	if peer := p.peer(h.MAC); peer != "" {
		p.arbiter.Heard(now, h.Addr, peer)
		return
	}
	u := unknown{h.Addr, h.MAC}
	if _, ok := p.pending[u]; ok || len(p.pending) >= maxPending {
		return
	}
	// It may be a node whose heartbeats never arrived: its own address identifies its MAC.
	p.pending[u] = pending{h.Link, now.Add(resolve)}
	if now.Sub(p.asked) >= resolve {
		p.asked = now
		p.responder.Ask(p.state.own())
	}
}

// resolve evaluates the announcements whose MAC was unknown.
func (p *process) resolve(now time.Time) {
	for u, w := range p.pending {
		peer := p.peer(u.mac)
		switch {
		case peer != "":
			p.arbiter.Heard(now, u.addr, peer)
		case now.Before(w.due):
			continue
		default:
			p.arbiter.HeardForeign(now, u.addr, net.HardwareAddr(u.mac[:]).String(), w.link)
		}
		p.news = true
		delete(p.pending, u)
	}
}

// peer returns the node that has a MAC: by its heartbeats, otherwise by its address.
func (p *process) peer(mac l2.MAC) string {
	for _, m := range p.members {
		if slices.Contains(m.Meta.MACs, [6]byte(mac)) {
			return m.Name
		}
	}
	return p.responder.Peer(mac)
}

func (p *process) report() *Report {
	r := &Report{Running: true, Heartbeats: p.beats, Ready: p.ready(), Willing: p.willing, Draining: p.draining,
		VIPs: p.arbiter.Owned(), Disputes: p.arbiter.Disputed(), Foreign: p.arbiter.Foreigners(),
		Counters: p.counters()}
	for _, m := range p.members {
		r.Members = append(r.Members, Member{m.Name, m.Live, m.Live && m.Meta.Willing})
	}
	for _, err := range []error{p.responder.Problem(), p.announce} {
		if err != nil {
			r.Problems = append(r.Problems, err.Error())
		}
	}
	return r
}

func (p *process) counters() Counters {
	var c Counters
	c.Answers, c.Ignored = p.responder.Counters()
	if p.arbiter != nil {
		c.Takeovers, c.Disputes = p.arbiter.Takeovers, p.arbiter.Disputes
	}
	if p.peers != nil {
		c.Refused = p.peers.Refused()
	}
	return c
}
