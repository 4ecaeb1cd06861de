package nftables

import (
	"context"
	"fmt"
	"net/netip"
	"sync"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/nft/program"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
)

// Mode is the data plane. Its methods may be called concurrently; they exclude each other.
type Mode struct {
	conn  nft.Conn
	track conntrack.Flusher

	mu      sync.Mutex
	lay     layout
	facts   service.NodeFacts
	owners  *service.OwnershipTable
	program *program.Program[model.Name, service.Plan]
	// flows are UDP flows to remove from connection tracking. untranslated are UDP frontends that got backends: earlier
	// packets to them may be tracked as flows to the VIP itself.
	flows        []conntrack.Flow
	untranslated []netip.AddrPort
	// reviewClients means that the endpoints of remembered clients may have been removed.
	reviewClients bool
	onCommit      func(changed map[model.Name]*service.Plan, whole bool)
}

var _ service.Mode = (*Mode)(nil)

// New creates the data plane; the kernel is not changed before Sync.
func New(conn nft.Conn, track conntrack.Flusher) *Mode {
	return newMode(conn, track, layout{name: TableName})
}

// NewIPVSCompanion creates the tables that complement IPVS, which chooses endpoints and translates to them itself: the
// tables masquerade, limit sources and refuse. nftables alone serves Services that bypassIPVS (may be nil) selects.
func NewIPVSCompanion(conn nft.Conn, track conntrack.Flusher, bypassIPVS func(model.Name) bool) *Mode {
	return newMode(conn, track, companion(bypassIPVS))
}

func newMode(conn nft.Conn, track conntrack.Flusher, lay layout) *Mode {
	m := &Mode{conn: conn, track: track, lay: lay, owners: service.NewOwnershipTable()}
	m.program = program.New(program.Config[model.Name, service.Plan]{
		Conn:      conn,
		Table:     func(f nft.Family) nft.Table { return m.lay.table(f) },
		Render:    func(k model.Name, p service.Plan, out program.Output) { m.lay.render(k, p, out) },
		Compare:   model.Name.Compare,
		Facts:     func(f nft.Family) map[string][]nft.Element { return factSets(f, m.facts) },
		Inert:     isInert,
		Plans:     owned{m.owners},
		Committed: m.committed,
	})
	return m
}

// OnCommit has fn called after each transaction, with the plans in force of the Services that it changed; nil for none.
// whole means that it is part of a Sync, before which none was in force. fn must not call the mode.
func (m *Mode) OnCommit(fn func(changed map[model.Name]*service.Plan, whole bool)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onCommit = fn
}

// InForce returns the plans that are in the kernel. They must not be changed, and are valid until the next call.
func (m *Mode) InForce() map[model.Name]service.Plan {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.program.InForce()
}

// SetNodeFacts replaces the facts of the node; they take effect with the next Sync.
// ApplyNodeFacts applies them at once.
func (m *Mode) SetNodeFacts(facts service.NodeFacts) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.facts, m.lay = facts, m.lay.with(facts)
}

// ApplyNodeFacts implements service.Mode.
func (m *Mode) ApplyNodeFacts(ctx context.Context, facts service.NodeFacts) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.lay
	m.facts, m.lay = facts, m.lay.with(facts)
	switch {
	case !m.program.Synced():
		return nil
	case !m.lay.like(old):
		return m.finish(ctx)(m.program.Resync(ctx))
	}
	if err := m.program.CommitFacts(ctx); err != nil {
		return fmt.Errorf("service: the node's addresses and the pod networks: %w", err)
	}
	return nil
}

// Sync implements reconcile.Target, see program.Program.Sync.
func (m *Mode) Sync(ctx context.Context, plans map[model.Name]service.Plan) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.finish(ctx)(m.program.Sync(ctx, plans))
}

// Apply implements reconcile.Target, see program.Program.Apply.
func (m *Mode) Apply(ctx context.Context, set map[model.Name]service.Plan, del []model.Name) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.finish(ctx)(m.program.Apply(ctx, set, del))
}

// finish ends a change. It removes old flows after the commit, so that no packet recreates them, and joins the errors.
func (m *Mode) finish(ctx context.Context) func(reconcile.KeyErrors[model.Name], error) error {
	return func(failed reconcile.KeyErrors[model.Name], err error) error {
		if err != nil {
			return fmt.Errorf("service: %w", err)
		}
		if err := m.flush(ctx); err != nil {
			return fmt.Errorf("service: programmed, but UDP clients of former endpoints are not moved: %w", err)
		}
		if len(failed) > 0 {
			return failed
		}
		return nil
	}
}

// Watch reports foreign changes to the tables.
func (m *Mode) Watch(ctx context.Context) (<-chan struct{}, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.program.Watch(ctx)
}

// Remove removes this mode completely from the kernel. Connection tracking keeps established connections.
func (m *Mode) Remove(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.program.Remove(ctx); err != nil {
		return fmt.Errorf("service: %w", err)
	}
	return nil
}

// Remains lists what of this mode is in the kernel.
func (m *Mode) Remains(ctx context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.program.Remains(ctx)
}

// owned lets the OwnershipTable decide what each Service gets.
type owned struct{ *service.OwnershipTable }

func (o owned) InForce() map[model.Name]service.Plan { return o.Plans }
func (o owned) Wanted() map[model.Name]service.Plan  { return o.Want }

func (o owned) Change(todo map[model.Name]*service.Plan) program.PlanChange[model.Name, service.Plan] {
	c := o.Begin()
	c.Change(todo)
	return ownedChange{o.OwnershipTable, c}
}

type ownedChange struct {
	table  *service.OwnershipTable
	change *service.OwnershipChange
}

func (c ownedChange) Plans() map[model.Name]*service.Plan { return c.change.Plans }
func (c ownedChange) Given() map[model.Name]*service.Plan { return c.change.Given }
func (c ownedChange) Failed() map[model.Name]error        { return c.change.Failed() }
func (c ownedChange) Accept()                             { c.table.Accept(c.change) }

func (c ownedChange) Part(keys []model.Name) program.PlanChange[model.Name, service.Plan] {
	return ownedChange{c.table, c.change.Part(keys)}
}
