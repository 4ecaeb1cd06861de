package podnetwork

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/nft/program"
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

// tableKey is the key of what the tables hold: a lease with host ports, or the cluster's facts, which have the zero
// key.
type tableKey = ipam.Key

// tablePlan is what a key asks for: a lease's host ports, or the facts.
type tablePlan struct {
	facts *ClusterFacts
	ips   []netip.Addr
	ports []hostport.Mapping
}

func (p tablePlan) equal(o tablePlan) bool {
	if p.facts != nil && o.facts != nil {
		return p.facts.equal(*o.facts)
	}
	return p.facts == o.facts && slices.Equal(p.ips, o.ips) && slices.Equal(p.ports, o.ports)
}

// render calls out for the elements of a plan.
func render(_ tableKey, p tablePlan, out program.Output) {
	if p.facts != nil {
		p.facts.render(out)
	}
	for _, f := range nft.Families() {
		for set, list := range hostport.Elements(f, p.ips, p.ports) {
			for _, e := range list {
				emit(out, f, set, e)
			}
		}
	}
}

func (w ClusterFacts) render(out program.Output) {
	for _, p := range w.Own {
		emit(out, family(p.Addr()), "own-pod-cidrs", nft.Range(p))
	}
	for _, p := range nft.Disjoint(w.All) {
		emit(out, family(p.Addr()), "pod-cidrs", nft.Range(p))
	}
	for _, a := range w.Nodes {
		emit(out, family(a), "node-ips", nft.Element{Key: nft.Pack(a)})
	}
}

func emit(out program.Output, f nft.Family, set string, e nft.Element) {
	out.Element(program.Place{Family: f, Set: set, Key: e.Key}, program.Value{Data: e.Data, End: e.End})
}

func family(a netip.Addr) nft.Family {
	if a.Is6() {
		return nft.IPv6
	}
	return nft.IPv4
}

func (w ClusterFacts) equal(o ClusterFacts) bool {
	return slices.Equal(w.Own, o.Own) && slices.Equal(w.All, o.All) && slices.Equal(w.Nodes, o.Nodes)
}

// makeClusterFacts collects the networks of pods and the addresses of nodes.
func makeClusterFacts(s model.Snapshot, self string, masquerade bool) ClusterFacts {
	var w ClusterFacts
	for node := range s.Nodes() {
		w.All = append(w.All, node.PodCIDRs...)
		w.Nodes = append(w.Nodes, node.InternalIPs...)
		if node.Name == self && masquerade {
			w.Own = append(w.Own, node.PodCIDRs...)
		}
	}
	return w
}

// tables keeps both tables. Safe for concurrent use.
type tables struct {
	track  conntrack.Flusher
	leases func() []ipam.Lease

	mu      sync.Mutex
	program *program.Program[tableKey, tablePlan]
	// facts is nil before the first Sync.
	facts *ClusterFacts
}

var _ Rules = (*tables)(nil)

// newTables makes them; the kernel is not touched before Sync.
func newTables(conn nft.Conn, c RulesConfig) *tables {
	return &tables{track: c.Track, leases: c.Leases, program: program.New(program.Config[tableKey, tablePlan]{
		Conn: conn, Table: func(f nft.Family) nft.Table { return table(f, cmp.Or(c.VXLANPort, routes.Port)) },
		Render: render, Compare: compareKeys})}
}

// Watch implements Rules.
func (t *tables) Watch(ctx context.Context) (<-chan struct{}, error) { return t.program.Watch(ctx) }

// Remove implements Rules.
func (t *tables) Remove(ctx context.Context) error { return t.program.Remove(ctx) }

// Remains implements Rules.
func (t *tables) Remains(ctx context.Context) ([]string, error) { return t.program.Remains(ctx) }

func compareKeys(a, b tableKey) int {
	return cmp.Or(cmp.Compare(a.Container, b.Container), cmp.Compare(a.Interface, b.Interface))
}

// wanted returns the plans of the facts and of the leases as they are now.
func (t *tables) wanted() map[tableKey]tablePlan {
	out := map[tableKey]tablePlan{{}: {facts: t.facts}}
	for _, l := range t.leases() {
		if len(l.Ports) > 0 {
			out[l.Key] = tablePlan{ips: l.IPs, ports: l.Ports}
		}
	}
	return out
}

// Sync implements reconcile.Target; the only key is "". It also looks at the leases.
func (t *tables) Sync(ctx context.Context, plans map[string]ClusterFacts) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	facts := plans[""]
	t.facts = &facts
	return finish(t.program.Sync(ctx, t.wanted()))
}

// Apply implements reconcile.Target.
func (t *tables) Apply(ctx context.Context, set map[string]ClusterFacts, _ []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	facts := set[""]
	t.facts = &facts
	return finish(t.apply(ctx))
}

// refresh writes the host ports of the leases as they are now, and returns what went wrong with one of them. Before the
// first Sync there is nothing to do: that writes them, too.
func (t *tables) refresh(ctx context.Context, l ipam.Lease) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.facts == nil {
		return nil
	}
	failed, err := t.apply(ctx)
	if err = cmp.Or(err, failed[l.Key]); err != nil {
		return fmt.Errorf("host ports of %s: %w", l.Pod, err)
	}
	return nil
}

// apply programs what is wanted otherwise than it is in force.
func (t *tables) apply(ctx context.Context) (reconcile.KeyErrors[tableKey], error) {
	wanted, inForce := t.wanted(), t.program.InForce()
	set, del := map[tableKey]tablePlan{}, []tableKey{}
	for k, p := range wanted {
		if old, ok := inForce[k]; !ok || !old.equal(p) {
			set[k] = p
		}
	}
	for k := range t.program.Wanted() {
		if _, ok := wanted[k]; !ok {
			del = append(del, k)
		}
	}
	return t.program.Apply(ctx, set, del)
}

// finish joins the errors. A failed lease is not a key of the loop, so the loop has to look at everything again.
func finish(failed reconcile.KeyErrors[tableKey], err error) error {
	if err == nil && len(failed) > 0 {
		err = errors.New(failed.Error())
	}
	return err
}

// Map implements cni.Ports: the lease is in the book. UDP flows that went to the
// node itself until now go to the pod from their next packet on.
func (t *tables) Map(ctx context.Context, l ipam.Lease) error {
	if err := t.refresh(ctx, l); err != nil {
		return err
	}
	t.mu.Lock()
	var nodes []netip.Addr
	if t.facts != nil {
		nodes = slices.Clone(t.facts.Nodes)
	}
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
	if err := t.refresh(ctx, l); err != nil {
		return err
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
