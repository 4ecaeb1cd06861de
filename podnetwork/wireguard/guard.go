package wireguard

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/nft/program"
	"wayleave.dev/kernel/wireguard"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/routes"
)

// TableName is the name of the guard's tables, one per family.
const TableName = "wayleave-encryption"

// The sets of networks of other nodes' pods, which count packets by network.
const (
	plainOut = "plain-out" // left unencrypted
	plainIn  = "plain-in"  // arrived unencrypted
	noKey    = "no-key"    // to a node that cannot be reached encrypted: the route is unreachable
)

// guard holds the rules of strict encryption, beside the routes that make networks unreachable. All sets but node-ips
// are empty unless encryption is strict.
func guard(f nft.Family, ports [Devices]uint16) nft.Table {
	counted := func(name string) nft.Set {
		return nft.Set{Name: name, Key: []nft.Type{nft.Addr}, Interval: true, Counted: true}
	}
	// A set counts what it finds, so it comes last in its rule.
	from := nft.In{Fields: []nft.Field{nft.Saddr}, Set: "own-pods"}
	to := func(set string) nft.In { return nft.In{Fields: []nft.Field{nft.Daddr}, Set: set} }
	t := nft.Table{Family: f, Name: TableName, Sets: []nft.Set{
		{Name: "own-pods", Key: []nft.Type{nft.Addr}, Interval: true},
		{Name: "node-ips", Key: []nft.Type{nft.Addr}},
		counted(plainOut), counted(plainIn), counted(noKey), counted("node-out"), counted("peer-nodes"),
	}}
	var outer, own []nft.Rule
	for _, port := range ports {
		arrives := nft.Rule{nft.ProtoIs(17), nft.DportIs(port), nft.LocalDaddr{}}
		outer = append(outer, slices.Concat(arrives, nft.Rule{nft.In{Fields: []nft.Field{nft.Saddr}, Set: "node-ips",
			Not: true}, nft.Counter(), nft.Drop()}), slices.Concat(arrives, nft.Rule{nft.Notrack()}))
		own = append(own, nft.Rule{nft.ProtoIs(17), nft.DportIs(port), to("node-ips"), nft.Notrack()})
	}
	t.Chains = []nft.Chain{
		// Encrypted packets are taken from nodes only, and are not tracked: every packet inside is.
		{Name: "outer-in", Hook: &nft.Hook{Type: "filter", Hook: "prerouting", Priority: -310}, Rules: outer},
		{Name: "outer-out", Hook: &nft.Hook{Type: "filter", Hook: "output", Priority: -310}, Rules: own},
		{Name: "in", Hook: &nft.Hook{Type: "filter", Hook: "prerouting", Priority: -290}, Rules: []nft.Rule{
			{nft.FromLinks(wireguard.Prefix), nft.Accept()},
			{to("own-pods"), nft.In{Fields: []nft.Field{nft.Saddr}, Set: plainIn}, nft.Drop()}}},
		// Behind the translation of destinations.
		{Name: "no-route", Hook: &nft.Hook{Type: "filter", Hook: "prerouting", Priority: -50},
			Rules: []nft.Rule{{from, to(noKey)}}},
		// Before the translation of sources.
		{Name: "out", Hook: &nft.Hook{Type: "filter", Hook: "postrouting", Priority: 50}, Rules: []nft.Rule{
			{nft.ToLinks(wireguard.Prefix), nft.Accept()},
			{from, to(plainOut), nft.Drop()},
			{to("node-out"), nft.Drop()},
			{from, to("peer-nodes"), nft.Drop()}}},
	}
	return t
}

// Guarded is what the guard enforces.
type Guarded struct {
	// Strict drops what is not encrypted, Nodes also between nodes and pods.
	Strict, Nodes bool
	Own           []netip.Prefix
	// Peers are the networks of other nodes' pods, NoKey those of nodes that cannot be reached encrypted.
	Peers, NoKey []netip.Prefix
	// NodeIPs are addresses of all nodes, PeerIPs of the others.
	NodeIPs, PeerIPs []netip.Addr
}

// MakeGuarded collects what is to be enforced on a node; e has the nodes that are reached encrypted.
func MakeGuarded(snap model.Snapshot, self string, e routes.Encryption, former *Former) Guarded {
	g := Guarded{Strict: e.Strict, Nodes: e.Nodes}
	me, ok := snap.Node(self)
	for n := range snap.Nodes() {
		g.NodeIPs = append(g.NodeIPs, n.InternalIPs...)
		if n.Name == self {
			g.Own = n.PodCIDRs
			continue
		}
		theirs := n.PodCIDRs
		if ok && me.Before(n) { // a newcomer that claims this node's network does not part its pods
			theirs = slices.DeleteFunc(slices.Clone(theirs),
				func(p netip.Prefix) bool { return overlaps(me.PodCIDRs, p) })
		}
		g.PeerIPs = append(g.PeerIPs, n.InternalIPs...)
		g.Peers = append(g.Peers, theirs...)
		if e.Via[n.Name] == "" {
			g.NoKey = append(g.NoKey, theirs...)
		}
	}
	former.add(&g)
	return g
}

func (g Guarded) equal(o Guarded) bool {
	return g.Strict == o.Strict && g.Nodes == o.Nodes && slices.Equal(g.Own, o.Own) && slices.Equal(g.Peers, o.Peers) &&
		slices.Equal(g.NoKey, o.NoKey) && slices.Equal(g.NodeIPs, o.NodeIPs) && slices.Equal(g.PeerIPs, o.PeerIPs)
}

func render(_ string, g Guarded, out program.Output) {
	networks := func(set string, list []netip.Prefix) {
		for _, p := range nft.Disjoint(list) {
			e := nft.Range(p)
			out.Element(program.Place{Family: family(p.Addr()), Set: set, Key: e.Key}, program.Value{End: e.End})
		}
	}
	for _, a := range g.NodeIPs {
		out.Element(program.Place{Family: family(a), Set: "node-ips", Key: nft.Pack(a)}, program.Value{})
	}
	if !g.Strict {
		return
	}
	networks("own-pods", g.Own)
	networks(plainOut, g.Peers)
	networks(plainIn, g.Peers)
	networks(noKey, g.NoKey)
	if g.Nodes {
		var hosts []netip.Prefix
		for _, a := range g.PeerIPs {
			hosts = append(hosts, netip.PrefixFrom(a, a.BitLen()))
		}
		networks("node-out", g.Peers)
		networks("peer-nodes", hosts)
	}
}

func family(a netip.Addr) nft.Family {
	if a.Is6() {
		return nft.IPv6
	}
	return nft.IPv4
}

// Guard keeps the guard's tables. Safe for concurrent use.
type Guard struct {
	conn  nft.Conn
	ports [Devices]uint16

	mu      sync.Mutex
	program *program.Program[string, Guarded]
	now     Guarded
	made    bool
}

// NewGuard makes a guard; the kernel is not touched before Set.
func NewGuard(conn nft.Conn, ports [Devices]uint16) *Guard {
	g := &Guard{conn: conn, ports: ports}
	g.program = program.New(program.Config[string, Guarded]{Conn: conn, Render: render, Compare: strings.Compare,
		Table: g.table})
	return g
}

func (g *Guard) table(f nft.Family) nft.Table { return guard(f, g.ports) }

// Watch tells of foreign changes, until ctx ends.
func (g *Guard) Watch(ctx context.Context) (<-chan struct{}, error) { return g.program.Watch(ctx) }

// Set brings the rules into the kernel. With force it compares with what is there.
func (g *Guard) Set(ctx context.Context, want Guarded, force bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.made && !force && g.now.equal(want) {
		return nil
	}
	plans := map[string]Guarded{"": want}
	failed, err := g.program.Sync(ctx, plans)
	if err == nil && len(failed) > 0 {
		err = failed
	}
	if err != nil {
		g.made = false
		return fmt.Errorf("rules of encryption: %w", err)
	}
	g.now, g.made = want, true
	return nil
}

// Remove takes the rules out of the kernel.
func (g *Guard) Remove(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.made = false
	return g.program.Remove(ctx)
}

// Remains names what is in the kernel.
func (g *Guard) Remains(ctx context.Context) ([]string, error) { return g.program.Remains(ctx) }

// Dropped are packets that were not sent or not taken because they were not encrypted.
type Dropped struct {
	// Out would have left unencrypted, In arrived unencrypted, NoKey went to a node that cannot be reached encrypted.
	Out, In, NoKey uint64
}

// Counts are the dropped packets by network of another node's pods.
func (g *Guard) Counts(ctx context.Context) (map[netip.Prefix]Dropped, error) {
	g.mu.Lock()
	want := g.now
	g.mu.Unlock()
	out := map[netip.Prefix]Dropped{}
	for _, f := range nft.Families() {
		for set, add := range map[string]func(*Dropped, uint64){
			plainOut:   func(d *Dropped, n uint64) { d.Out += n },
			"node-out": func(d *Dropped, n uint64) { d.Out += n },
			plainIn:    func(d *Dropped, n uint64) { d.In += n },
			noKey:      func(d *Dropped, n uint64) { d.NoKey += n },
		} {
			counts, err := g.conn.Counted(ctx, g.table(f), set)
			if err != nil {
				return nil, err
			}
			for _, p := range want.Peers {
				if n := counts[nft.Pack(p.Masked().Addr())]; n > 0 && family(p.Addr()) == f {
					d := out[p]
					add(&d, n)
					out[p] = d
				}
			}
		}
	}
	return out, nil
}
