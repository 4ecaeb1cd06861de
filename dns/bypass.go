package dns

import (
	"context"
	"net/netip"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
)

// Bypass is what a data plane provides for the cluster DNS: while the local server has an open socket, queries to it
// and its replies bypass connection tracking, and so the service proxy. Other queries are handled like those to any
// Service.
type Bypass interface {
	// Set replaces the addresses whose port 53 the local server serves.
	Set(ctx context.Context, vips []netip.Addr) error
	// Watch reports foreign changes, until ctx ends.
	Watch(context.Context) (<-chan struct{}, error)
	// Remove removes everything from the kernel.
	Remove(context.Context) error
	// Remains lists what is in the kernel.
	Remains(context.Context) ([]string, error)
}

// TableName is the name of the tables of NFTables, one per family.
const TableName = "wayleave-dns"

// NFTables is the Bypass with nftables rules.
type NFTables struct{ Conn nft.Conn }

var _ Bypass = NFTables{}

// table keeps queries to the local server out of connection tracking: nothing needs translation, and conntrack's races
// that lose DNS packets cannot happen. Without an open socket the packet is tracked, so that the service proxy sends it
// to another node's server.
func table(f nft.Family) nft.Table {
	raw := int32(-300)
	toVIP := nft.In{Fields: []nft.Field{nft.Daddr, nft.L4Proto, nft.Dport}, Set: "vips"}
	fromVIP := nft.In{Fields: []nft.Field{nft.Saddr, nft.L4Proto, nft.Sport}, Set: "vips"}
	return nft.Table{
		Family: f, Name: TableName,
		Sets: []nft.Set{{Name: "vips", Key: []nft.Type{nft.Addr, nft.Proto, nft.Port}}},
		Chains: []nft.Chain{
			{Name: "queries", Hook: &nft.Hook{Type: "filter", Hook: "prerouting", Priority: raw}, Rules: []nft.Rule{
				{toVIP, nft.SocketOfAnyAddress{}, nft.Accept()}, // of another program, on this node's port 53
				{toVIP, nft.SocketOpen{}, nft.Notrack()}}},
			{Name: "replies", Hook: &nft.Hook{Type: "filter", Hook: "output", Priority: raw},
				Rules: []nft.Rule{{fromVIP, nft.Notrack()}}},
		},
	}
}

// Set implements Bypass.
func (n NFTables) Set(ctx context.Context, vips []netip.Addr) error {
	for _, f := range nft.Families() {
		have, err := n.Conn.Read(ctx, table(f))
		if err != nil {
			return err
		}
		b := nft.Batch{Base: true, Recreate: have.Exists && !have.Fits, Clear: []string{"vips"},
			Add: map[string][]nft.Element{}}
		for _, a := range vips {
			if a.Is6() != (f == nft.IPv6) {
				continue
			}
			for _, proto := range []model.Protocol{model.UDP, model.TCP} {
				b.Add["vips"] = append(b.Add["vips"], nft.Element{Key: nft.Pack(a, uint8(proto), uint16(53))})
			}
		}
		if err := n.Conn.Commit(ctx, table(f), b); err != nil {
			return err
		}
	}
	return nil
}

// Watch implements Bypass.
func (n NFTables) Watch(ctx context.Context) (<-chan struct{}, error) {
	return n.Conn.Watch(ctx, TableName)
}

// Remove implements Bypass.
func (n NFTables) Remove(ctx context.Context) error {
	for _, f := range nft.Families() {
		if err := n.Conn.Remove(ctx, table(f)); err != nil {
			return err
		}
	}
	return nil
}

// Remains implements Bypass.
func (n NFTables) Remains(ctx context.Context) ([]string, error) {
	return nft.Remains(ctx, n.Conn, table(nft.IPv4), table(nft.IPv6))
}
