package podnetwork

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/hostport"
	"wayleave.dev/podnetwork/ipam"
	"wayleave.dev/podnetwork/routes"
	"wayleave.dev/reconcile"
)

// TableName is the name of our tables, one per family.
const TableName = "wayleave-podnetwork"

// table holds the rules of the pod network. What pods send out of the cluster gets
// the node's address: from a pod of this node, to no pod and to no node. Between pods
// and nodes nothing is translated, as the Kubernetes network model asks.
func table(f nft.Family, vxlanPort uint16) nft.Table {
	return nft.Table{
		Family: f, Name: TableName,
		Sets: append([]nft.Set{
			{Name: "own-pod-cidrs", Key: []nft.Type{nft.Addr}, Interval: true},
			{Name: "pod-cidrs", Key: []nft.Type{nft.Addr}, Interval: true},
			{Name: "node-ips", Key: []nft.Type{nft.Addr}},
		}, hostport.Sets()...),
		Chains: append([]nft.Chain{
			// A pod sends from its own addresses only: those that are routed to its link.
			// ARP and neighbour discovery cannot lie either: the node's entries for pods
			// are permanent, and each link has a table of its own.
			// VXLAN is taken from nodes only, and not tracked: there is nothing to
			// translate, and every packet inside is tracked anyway.
			{Name: "arriving", Hook: &nft.Hook{Type: "filter", Hook: "prerouting", Priority: -310}, Rules: []nft.Rule{
				{nft.FromLinks(call.Prefix), nft.Spoofed{}, nft.Counter(), nft.Drop()},
				append(vxlan(vxlanPort), nft.In{Fields: []nft.Field{nft.Saddr}, Set: "node-ips",
					Not: true}, nft.Drop()),
				append(vxlan(vxlanPort), nft.Notrack())}},
			{Name: "vxlan-out", Hook: &nft.Hook{Type: "filter", Hook: "output", Priority: -300},
				Rules: []nft.Rule{append(vxlan(vxlanPort), nft.Notrack())}},
			{Name: "leaving", Hook: &nft.Hook{Type: "nat", Hook: "postrouting", Priority: 100}, Rules: []nft.Rule{{
				nft.In{Fields: []nft.Field{nft.Saddr}, Set: "own-pod-cidrs"},
				nft.In{Fields: []nft.Field{nft.Daddr}, Set: "pod-cidrs", Not: true},
				nft.In{Fields: []nft.Field{nft.Daddr}, Set: "node-ips", Not: true},
				nft.Masquerade(),
			}}}}, hostport.Chains(f)...),
	}
}

// vxlan matches packets of our VXLAN, by port and VNI: others may use the port, too.
func vxlan(port uint16) nft.Rule {
	return nft.Rule{nft.ProtoIs(17), nft.DportIs(port), nft.VNIIs(routes.VNI)}
}

// members are the elements of a family's sets.
func members(f nft.Family, w world, leases []ipam.Lease) map[string][]nft.Element {
	out := map[string][]nft.Element{}
	for _, p := range w.own {
		if family(p.Addr()) == f {
			out["own-pod-cidrs"] = append(out["own-pod-cidrs"], nft.Range(p))
		}
	}
	for _, p := range nft.Disjoint(w.all) {
		if family(p.Addr()) == f {
			out["pod-cidrs"] = append(out["pod-cidrs"], nft.Range(p))
		}
	}
	for _, a := range w.nodes {
		if family(a) == f {
			out["node-ips"] = append(out["node-ips"], nft.Element{Key: nft.Pack(a)})
		}
	}
	for _, l := range leases {
		for set, list := range hostport.Elements(f, l.IPs, l.Ports) {
			out[set] = append(out[set], list...)
		}
	}
	return out
}

func family(a netip.Addr) nft.Family {
	if a.Is6() {
		return nft.IPv6
	}
	return nft.IPv4
}

// world is what the rules depend on, beside the leases.
type world struct {
	// own is empty when nothing is to be masqueraded.
	own, all []netip.Prefix
	nodes    []netip.Addr
}

func (w world) equal(o world) bool {
	return slices.Equal(w.own, o.own) && slices.Equal(w.all, o.all) && slices.Equal(w.nodes, o.nodes)
}

// makeWorld collects the networks of pods and the addresses of nodes.
func makeWorld(s model.Snapshot, self string, masquerade bool) world {
	var w world
	for node := range s.Nodes() {
		w.all = append(w.all, node.PodCIDRs...)
		w.nodes = append(w.nodes, node.InternalIPs...)
		if node.Name == self && masquerade {
			w.own = append(w.own, node.PodCIDRs...)
		}
	}
	return w
}

// tables writes both tables: few elements, whole each time, in one transaction.
// Safe for concurrent use.
type tables struct {
	conn   nft.Conn
	track  conntrack.Flusher
	leases func() []ipam.Lease
	port   uint16 // of VXLAN

	mu    sync.Mutex
	world world
	known bool // world is
}

var _ reconcile.Target[string, world] = (*tables)(nil)

// Sync implements reconcile.Target; the only key is "".
func (t *tables) Sync(ctx context.Context, plans map[string]world) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.world, t.known = plans[""], true
	var changes []nft.Change
	for _, f := range nft.Families() {
		have, err := t.conn.Read(ctx, table(f, t.port))
		if err != nil {
			return err
		}
		c := t.change(f)
		c.Batch.Base, c.Batch.Recreate = true, have.Exists && !have.Fits
		changes = append(changes, c)
	}
	return t.conn.CommitAll(ctx, changes...)
}

// Apply implements reconcile.Target.
func (t *tables) Apply(ctx context.Context, set map[string]world, _ []string) error {
	return t.Sync(ctx, set)
}

// Refresh writes the host ports of the leases as they are now. Before the first
// Sync there is nothing to do: that writes them, too.
func (t *tables) Refresh(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.known {
		return nil
	}
	var changes []nft.Change
	for _, f := range nft.Families() {
		changes = append(changes, t.change(f))
	}
	return t.conn.CommitAll(ctx, changes...)
}

// Map implements cni.Ports: the lease is in the book. UDP flows that went to the
// node itself until now go to the pod from their next packet on.
func (t *tables) Map(ctx context.Context, l ipam.Lease) error {
	if err := t.Refresh(ctx); err != nil {
		return fmt.Errorf("host ports of %s: %w", l.Pod, err)
	}
	t.mu.Lock()
	nodes := slices.Clone(t.world.nodes)
	t.mu.Unlock()
	var before []netip.AddrPort
	for _, m := range l.Ports {
		if m.Protocol == model.UDP {
			for _, a := range append(nodes, m.HostIP) {
				if a.IsValid() {
					before = append(before, netip.AddrPortFrom(a, m.HostPort))
				}
			}
		}
	}
	return t.flush(ctx, nil, before)
}

// Unmap implements cni.Ports: the lease has left the book.
func (t *tables) Unmap(ctx context.Context, l ipam.Lease) error {
	if err := t.Refresh(ctx); err != nil {
		return fmt.Errorf("host ports of %s: %w", l.Pod, err)
	}
	var flows []conntrack.Flow
	for _, m := range l.Ports {
		for _, ip := range l.IPs {
			any := netip.IPv4Unspecified()
			if ip.Is6() {
				any = netip.IPv6Unspecified()
			}
			if m.Protocol == model.UDP {
				flows = append(flows, conntrack.Flow{Dst: netip.AddrPortFrom(any, m.HostPort),
					Backend: netip.AddrPortFrom(ip, m.ContainerPort)})
			}
		}
	}
	return t.flush(ctx, flows, nil)
}

func (t *tables) flush(ctx context.Context, flows []conntrack.Flow, plain []netip.AddrPort) error {
	if t.track == nil || len(flows)+len(plain) == 0 {
		return nil
	}
	return t.track.Flush(ctx, flows, plain)
}

func (t *tables) change(f nft.Family) nft.Change {
	c := nft.Change{Table: table(f, t.port), Batch: nft.Batch{Add: members(f, t.world, t.leases())}}
	for _, s := range table(f, t.port).Sets {
		c.Batch.Clear = append(c.Batch.Clear, s.Name)
	}
	return c
}
