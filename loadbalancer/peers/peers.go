// Package peers detects which agents of a cluster live, by heartbeats between nodes: the API server takes 40 seconds
// to notice that a node is gone.
//
// It uses hashicorp/memberlist (the protocol SWIM), encrypted and authenticated by a key of the cluster. Only known
// nodes can join, at their own addresses: data from another address is dropped or reset before it is read. Data of
// nodes is bounded, too (transport.go, check.go).
package peers

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Times of heartbeats. In a cluster of three nodes, a dead one is probed after at most 3 intervals, does not answer
// for one, and is suspected for five: it is excluded within a second. Most of that is suspicion, in which a node that
// only waited for a CPU can still answer.
const (
	ProbeInterval = 100 * time.Millisecond
	suspicion     = 5 // intervals
	rejoinEvery   = time.Second
	streamTimeout = time.Second
)

// DefaultPort is the port of heartbeats, UDP and TCP.
const DefaultPort = 7946

// Peer is a node of the cluster.
type Peer struct {
	Name string `json:"name"`
	// Addrs are its own addresses. Heartbeats go to the first one of this node's family.
	Addrs []netip.Addr `json:"addrs"`
}

// Config configures the heartbeats.
type Config struct {
	// Node is the name of this node.
	Node string
	// Addr is where it listens.
	Addr netip.AddrPort
	// Keys are 16, 24 or 32 bytes each, the newest first. That one encrypts, all decrypt.
	Keys [][]byte
	// Nodes is the approximate number of nodes.
	Nodes int
	Log   *slog.Logger
}

// Member is a peer and its state.
type Member struct {
	Name string
	Live bool
	// Meta is its last state, also if it is dead.
	Meta Meta
}

// Peers sends this node's heartbeats and receives those of others. Its methods are safe for concurrent use.
type Peers struct {
	cfg     Config
	list    *memberlist.Memberlist
	ring    *memberlist.Keyring
	wire    *transport
	changed chan struct{}
	done    chan struct{}
	ready   chan struct{}
	once    sync.Once
	running sync.WaitGroup

	mu    sync.Mutex
	peers map[string]Peer
	self  Meta
	// live are the living nodes by memberlist's events: it changes the entries of its own list.
	live  map[string]bool
	known map[string]Meta // the last state of each

	telling sync.Mutex
}

// Start listens and sends heartbeats. It knows no peer before SetPeers.
func Start(cfg Config, meta Meta) (*Peers, error) {
	if len(cfg.Keys) == 0 {
		return nil, errors.New("heartbeats: no key")
	}
	ring, err := memberlist.NewKeyring(cfg.Keys, cfg.Keys[0])
	if err != nil {
		return nil, fmt.Errorf("heartbeats: key: %w", err)
	}
	p := &Peers{cfg: cfg, ring: ring, self: meta, changed: make(chan struct{}, 1), done: make(chan struct{}),
		ready: make(chan struct{}),
		live:  map[string]bool{}, known: map[string]Meta{}}
	if p.wire, err = listen(cfg.Addr, checker{ring}); err != nil {
		return nil, fmt.Errorf("heartbeats at %s: %w", cfg.Addr, err)
	}
	if p.list, err = memberlist.Create(p.config()); err != nil {
		return nil, errors.Join(fmt.Errorf("heartbeats at %s: %w", cfg.Addr, err), p.wire.Shutdown())
	}
	return p, nil
}

func (p *Peers) config() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label = p.cfg.Node, label
	c.BindAddr, c.BindPort = p.cfg.Addr.Addr().String(), int(p.cfg.Addr.Port())
	c.AdvertiseAddr, c.AdvertisePort = c.BindAddr, c.BindPort
	c.ProbeInterval, c.ProbeTimeout = ProbeInterval, ProbeInterval/2
	// memberlist suspects for longer in large clusters: in proportion to the logarithm of their size.
	c.SuspicionMult = max(1, int(suspicion/max(1, math.Log10(float64(p.cfg.Nodes)))))
	c.SuspicionMaxTimeoutMult = 1
	c.AwarenessMaxMultiplier = 1 // the bound must hold under load, too
	c.GossipInterval = 50 * time.Millisecond
	c.PushPullInterval = 10 * time.Second
	c.TCPTimeout = streamTimeout
	c.DeadNodeReclaimTime = time.Second
	c.EnableCompression = false // names and flags are short
	c.Keyring = p.ring
	// memberlist's own list of allowed networks cannot change at run time; the transport's can.
	c.Transport = p.wire
	d := delegate{p}
	c.Delegate, c.Events, c.Alive = d, d, d
	c.Logger = logger(p.cfg.Log)
	return c
}

// Changed is sent to after a peer came, disappeared, or changed its state.
func (p *Peers) Changed() <-chan struct{} { return p.changed }

// Ready is closed when a peer was reached at the start, which names all others, or when none can be: before that, an
// empty list means nothing.
func (p *Peers) Ready() <-chan struct{} { return p.ready }

// SetPeers replaces the list of nodes; this node may be among them. The first call starts the search.
func (p *Peers) SetPeers(peers []Peer) {
	all := make(map[string]Peer, len(peers))
	for _, peer := range peers {
		all[peer.Name] = peer
	}
	p.mu.Lock()
	first := p.peers == nil
	p.peers = all
	maps.DeleteFunc(p.known, func(name string, _ Meta) bool { _, ok := all[name]; return !ok && !p.live[name] })
	p.mu.Unlock()
	if err := p.wire.setNodes(p.addresses(peers)); err != nil {
		p.cfg.Log.Warn("heartbeats: no kernel filter for other sources; this process refuses them", "err", err)
	}
	p.wake()
	if first {
		p.running.Add(1)
		go p.search()
	}
}

// addresses returns the addresses of the other nodes.
func (p *Peers) addresses(peers []Peer) map[netip.Addr]bool {
	all := map[netip.Addr]bool{}
	for _, peer := range peers {
		for _, a := range peer.Addrs {
			if peer.Name != p.cfg.Node && a.Is4() == p.cfg.Addr.Addr().Is4() {
				all[a] = true
			}
		}
	}
	return all
}

// Refused counts the messages and connections that were refused since the start. Datagrams that the kernel drops,
// because they come from no node, are not counted.
func (p *Peers) Refused() uint64 { return p.wire.counters() }

// SetKeys changes the keys while they are in use.
func (p *Peers) SetKeys(keys [][]byte) error {
	for i, k := range keys {
		if err := p.ring.AddKey(k); err != nil {
			return fmt.Errorf("heartbeats: key: %w", err)
		}
		if i == 0 {
			if err := p.ring.UseKey(k); err != nil {
				return fmt.Errorf("heartbeats: key: %w", err)
			}
		}
	}
	for _, have := range p.ring.GetKeys() {
		if !slices.ContainsFunc(keys, func(k []byte) bool { return slices.Equal(k, have) }) {
			// The current key is never among them.
			if err := p.ring.RemoveKey(have); err != nil && len(keys) > 0 {
				return fmt.Errorf("heartbeats: key: %w", err)
			}
		}
	}
	return nil
}

// SetMeta sends other nodes a new state of this node.
func (p *Peers) SetMeta(m Meta) {
	p.mu.Lock()
	same := p.self.equal(m)
	p.self = m
	p.mu.Unlock()
	if same {
		return
	}
	p.running.Add(1)
	go func() {
		defer p.running.Done()
		p.telling.Lock()
		defer p.telling.Unlock()
		// It is gossiped in any case; only the wait can time out.
		if err := p.list.UpdateNode(streamTimeout); err != nil {
			p.cfg.Log.Debug("heartbeats: inform peers", "err", err)
		}
	}()
}

// Members returns all peers except this node, sorted by name.
func (p *Peers) Members() []Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []Member
	for _, name := range slices.Sorted(maps.Keys(p.peers)) {
		if name != p.cfg.Node {
			all = append(all, Member{Name: name, Live: p.live[name], Meta: p.known[name]})
		}
	}
	return all
}

// Close stops the heartbeats. With leave, the peers are informed.
func (p *Peers) Close(leave bool) error {
	close(p.done)
	if leave {
		// If that takes too long, they notice by themselves.
		if err := p.list.Leave(ProbeInterval); err != nil {
			p.cfg.Log.Debug("heartbeats: say goodbye", "err", err)
		}
	}
	err := p.list.Shutdown()
	p.running.Wait()
	return err
}

// search looks for lost peers, at once and then every second.
func (p *Peers) search() {
	defer p.running.Done()
	tick := time.NewTicker(rejoinEvery)
	defer tick.Stop()
	for {
		p.join()
		p.nowReady()
		select {
		case <-p.done:
			return
		case <-tick.C:
		}
	}
}

func (p *Peers) nowReady() {
	p.once.Do(func() {
		close(p.ready)
		p.wake()
	})
}

// join tries all lost peers at once; each attempt takes at most streamTimeout.
func (p *Peers) join() {
	var tries sync.WaitGroup
	turn := make(chan struct{}, 16)
	for _, m := range p.Members() {
		addr, ok := p.address(m.Name)
		if m.Live || !ok {
			continue
		}
		tries.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			if _, err := p.list.Join([]string{m.Name + "/" + addr}); err != nil {
				p.cfg.Log.Debug("heartbeats: peer not reached", "peer", m.Name, "err", err)
				return
			}
			// It has named all others, so there is no need to wait for dead ones.
			p.nowReady()
		})
	}
	tries.Wait()
}

// address returns where a peer listens: at the first of its addresses of this node's family.
func (p *Peers) address(name string) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.peers[name].Addrs {
		if a.Is4() == p.cfg.Addr.Addr().Is4() {
			return netip.AddrPortFrom(a, p.cfg.Addr.Port()).String(), true
		}
	}
	return "", false
}

func (p *Peers) wake() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// delegate implements memberlist's callbacks. It must not call memberlist.
type delegate struct{ p *Peers }

func (d delegate) NodeMeta(int) []byte {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	return d.p.self.bytes()
}
func (delegate) NotifyMsg([]byte)                { /* no messages of our own */ }
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   { /* no state of our own */ }

func (d delegate) NotifyJoin(n *memberlist.Node)   { d.note(n, true) }
func (d delegate) NotifyLeave(n *memberlist.Node)  { d.note(n, false) }
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.note(n, true) }

// note records the state of a node; memberlist holds its lock meanwhile. A node whose state cannot be parsed counts
// as dead.
func (d delegate) note(n *memberlist.Node, live bool) {
	meta, ok := parseMeta(n.Meta)
	d.p.mu.Lock()
	if ok && live {
		d.p.known[n.Name] = meta
	}
	d.p.live[n.Name] = ok && live
	d.p.mu.Unlock()
	d.p.wake()
}

// NotifyAlive accepts only nodes of the cluster, at one of their own addresses.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	if n.Name == d.p.cfg.Node {
		return nil
	}
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	peer, ok := d.p.peers[n.Name]
	addr, _ := netip.AddrFromSlice(n.Addr)
	if !ok || !slices.Contains(peer.Addrs, addr.Unmap()) {
		return fmt.Errorf("%s at %s is not a known node", strconv.Quote(n.Name), addr)
	}
	return nil
}
