package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/iptables"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
)

// Mode is the data plane. Its methods may be called concurrently; they exclude each other.
type Mode struct {
	conn  iptables.Conn
	track conntrack.Flusher

	mu     sync.Mutex
	local  service.NodeFacts
	synced bool
	owners *service.OwnershipTable
	// gone are UDP frontends whose flows are still to be removed; sweep means that there may be flows to remove.
	gone  map[service.Frontend]bool
	sweep bool
	// frozen are the Services whose new rules the kernel refuses, with their rules in the kernel.
	frozen map[iptables.Family]map[model.Name]frozen
}

var _ service.Mode = (*Mode)(nil)

// New creates the data plane; the kernel is not changed before Sync.
func New(conn iptables.Conn, track conntrack.Flusher) *Mode {
	return &Mode{conn: conn, track: track, owners: service.NewOwnershipTable(), gone: map[service.Frontend]bool{}}
}

// Flavour returns that of the tables.
func (m *Mode) Flavour() iptables.Flavour { return m.conn.Flavour() }

// SetNodeFacts implements service.Mode.
func (m *Mode) SetNodeFacts(l service.NodeFacts) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.local = l
}

// ApplyNodeFacts implements service.Mode. When the pod networks of this node change, chains of Services change, so it
// syncs everything.
func (m *Mode) ApplyNodeFacts(ctx context.Context, l service.NodeFacts) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.local
	m.local = l
	if !m.synced {
		return nil
	}
	if !slices.Equal(old.OwnPodCIDRs, l.OwnPodCIDRs) {
		return m.sync(ctx, maps.Clone(m.owners.Want))
	}
	for _, f := range iptables.Families() {
		d := newDelta(f)
		before, after := fixed(f, old), fixed(f, l)
		dirty := map[place]bool{}
		for p := range after {
			if !slices.Equal(before[p], after[p]) {
				dirty[p] = true
			}
		}
		m.rebuild(d, dirty, nil)
		if err := m.restore(ctx, d); err != nil {
			m.synced = false
			return fmt.Errorf("service: the node's addresses and the pod networks: %w", err)
		}
	}
	return nil
}

// Apply implements reconcile.Target. A change that the kernel refuses is halved until the invalid keys are found, so
// that one invalid key blocks no other.
func (m *Mode) Apply(ctx context.Context, set map[model.Name]service.Plan, del []model.Name) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.synced || m.isFrozen(set, del) {
		plans := maps.Clone(m.owners.Want)
		maps.Copy(plans, set)
		for _, k := range del {
			delete(plans, k)
		}
		return m.sync(ctx, plans)
	}
	todo := make(map[model.Name]*service.Plan, len(set)+len(del))
	for k, p := range set {
		todo[k] = &p
	}
	for _, k := range del {
		todo[k] = nil
	}
	failed := reconcile.KeyErrors[model.Name]{}
	err := reconcile.Halve(slices.SortedFunc(maps.Keys(todo), model.Name.Compare), failed,
		func(keys []model.Name) error { return m.try(ctx, keys, todo, failed) },
		func(err error) bool { return unknown(ctx, err) })
	if err != nil {
		m.synced = false
		return fmt.Errorf("service: %w", err)
	}
	return m.finish(ctx, failed)
}

// try applies the changes of some keys; a refused change is undone.
func (m *Mode) try(ctx context.Context, part []model.Name, todo map[model.Name]*service.Plan,
	failed reconcile.KeyErrors[model.Name]) error {
	some := make(map[model.Name]*service.Plan, len(part))
	for _, k := range part {
		some[k] = todo[k]
	}
	d := m.owners.Begin()
	keys := d.Change(some)
	for i, f := range iptables.Families() {
		err := m.restore(ctx, m.difference(f, d, keys))
		if err == nil {
			continue
		}
		// Tables before the refused one have changed already.
		for _, g := range iptables.Families()[:i+1] {
			if bad := m.restore(ctx, m.inverse(g, d, keys)); bad != nil {
				return errors.Join(errNotUndone, err, bad)
			}
		}
		return err
	}
	m.accept(d)
	maps.Copy(failed, d.Failed())
	return nil
}

// errNotUndone means that the kernel's state is unknown.
var errNotUndone = errors.New("refused in part, and the rollback failed")

// unknown reports whether the tables must be read after the error.
func unknown(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, errNotUndone)
}

func (m *Mode) accept(d *service.OwnershipChange) {
	gone, udp := d.GoneUDP()
	maps.Copy(m.gone, gone)
	m.sweep = m.sweep || udp
	m.owners.Accept(d)
}

// finish removes old UDP flows. It runs after the change, so that no packet recreates them.
func (m *Mode) finish(ctx context.Context, failed reconcile.KeyErrors[model.Name]) error {
	if m.sweep {
		if err := m.track.FlushWhere(ctx, m.owners.Stale(m.gone)); err != nil {
			return fmt.Errorf("service: programmed, but UDP clients of former endpoints are not moved: %w", err)
		}
		m.sweep, m.gone = false, map[service.Frontend]bool{}
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// delta is the change of the tables of one family.
type delta struct {
	family iptables.Family
	tables map[string]*iptables.Change
}

func newDelta(f iptables.Family) *delta {
	return &delta{f, map[string]*iptables.Change{
		"nat":    {Table: "nat", Set: map[string][]string{}},
		"filter": {Table: "filter", Set: map[string][]string{}},
		"mangle": {Table: "mangle", Set: map[string][]string{}}, // of kube-proxy's canary
	}}
}

// tableNames are the tables that are read, in the order in which they are written.
func tableNames() []string { return []string{"nat", "filter", "mangle"} }

func (m *Mode) restore(ctx context.Context, d *delta) error {
	return m.restoreTables(ctx, d, tableNames())
}

func (m *Mode) restoreTables(ctx context.Context, d *delta, order []string) error {
	var text bytes.Buffer
	for _, name := range order {
		if c := d.tables[name]; !c.Empty() {
			text.Write(c.Text())
		}
	}
	if text.Len() == 0 {
		return nil
	}
	return m.conn.Restore(ctx, d.family, text.Bytes())
}

// difference returns how a change affects a family's tables.
func (m *Mode) difference(f iptables.Family, d *service.OwnershipChange, keys []model.Name) *delta {
	return m.between(f, keys, func(k model.Name) service.Plan { return m.owners.Plans[k] }, planOf(d), d)
}

// inverse undoes difference, also if that was applied in part.
func (m *Mode) inverse(f iptables.Family, d *service.OwnershipChange, keys []model.Name) *delta {
	return m.between(f, keys, planOf(d), func(k model.Name) service.Plan { return m.owners.Plans[k] }, nil)
}

// between returns the change from the plans of some keys to others. Shared chains are set as they are after the draft;
// nil means as they are now.
func (m *Mode) between(f iptables.Family, keys []model.Name, from, to func(model.Name) service.Plan,
	after *service.OwnershipChange) *delta {
	out := newDelta(f)
	dirty := map[place]bool{}
	for _, k := range keys {
		if _, ok := m.frozen[f][k]; ok {
			continue // it waits for others, and for the next Sync
		}
		old, now := from(k), to(k)
		before := map[string][]string{}
		own(k, old, m.local, func(g iptables.Family, chain string, rules []string) {
			if g == f {
				before[chain] = rules
			}
		})
		own(k, now, m.local, func(g iptables.Family, chain string, rules []string) {
			if g != f {
				return
			}
			if had, ok := before[chain]; !ok || !slices.Equal(had, rules) {
				out.tables["nat"].Set[chain] = rules
			}
			delete(before, chain)
		})
		for chain := range before {
			out.tables["nat"].Drop = append(out.tables["nat"].Drop, chain)
		}
		was, is := rulesByPlace(k, old, f), rulesByPlace(k, now, f)
		for p := range was {
			if !slices.Equal(was[p], is[p]) {
				dirty[p] = true
			}
		}
		for p := range is {
			if !slices.Equal(was[p], is[p]) {
				dirty[p] = true
			}
		}
	}
	m.rebuild(out, dirty, after)
	return out
}

// planOf returns the plan of a key after the draft; the zero Plan for none.
func planOf(d *service.OwnershipChange) func(model.Name) service.Plan {
	return func(k model.Name) (p service.Plan) {
		if now := d.Plans[k]; now != nil {
			p = *now
		}
		return p
	}
}

func rulesByPlace(k model.Name, p service.Plan, f iptables.Family) map[place][]string {
	out := map[place][]string{}
	shared(k, p, func(at place, rule string) {
		if at.family == f {
			out[at] = append(out[at], rule)
		}
	})
	return out
}

// rebuild sets chains that contain rules of many Services, as they are after the draft.
func (m *Mode) rebuild(out *delta, dirty map[place]bool, d *service.OwnershipChange) {
	if len(dirty) == 0 {
		return
	}
	plans := maps.Clone(m.owners.Plans)
	if d != nil {
		for k, p := range d.Plans {
			if p == nil {
				delete(plans, k)
			} else {
				plans[k] = *p
			}
		}
	}
	for p, rules := range m.sharedChains(out.family, plans) {
		if dirty[p] {
			out.tables[p.table].Set[p.chain] = rules
		}
	}
}

// sharedChains returns the chains that every node has, with the rules of all Services in order of their names.
func (m *Mode) sharedChains(f iptables.Family, plans map[model.Name]service.Plan) map[place][]string {
	out := map[place][]string{}
	for _, k := range slices.SortedFunc(maps.Keys(plans), model.Name.Compare) {
		for at, rules := range m.sharedOf(f, k, plans[k]) {
			out[at] = append(out[at], rules...)
		}
	}
	for p, rules := range fixed(f, m.local) {
		out[p] = append(out[p], rules...)
	}
	return out
}

// tables returns all desired chains of a family, by table.
func (m *Mode) tables(f iptables.Family, plans map[model.Name]service.Plan) map[string]iptables.Table {
	out := map[string]iptables.Table{"nat": {}, "filter": {}}
	for k, p := range plans {
		maps.Copy(out["nat"], m.ownOf(f, k, p))
	}
	for p, rules := range m.sharedChains(f, plans) {
		out[p.table][p.chain] = rules
	}
	return out
}

// Sync implements reconcile.Target: it reads the tables, and writes only chains that differ. It deletes chains of a
// service proxy that no plan needs, including kube-proxy's.
func (m *Mode) Sync(ctx context.Context, plans map[model.Name]service.Plan) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sync(ctx, plans)
}

func (m *Mode) sync(ctx context.Context, plans map[model.Name]service.Plan) error {
	m.synced = false
	owners, conflicts := service.OwnersOf(plans)
	m.owners, m.frozen = owners, map[iptables.Family]map[model.Name]frozen{}
	failed, refused := reconcile.KeyErrors[model.Name](conflicts), reconcile.KeyErrors[model.Name]{}
	for _, f := range iptables.Families() {
		have, err := m.read(ctx, f)
		if err != nil {
			return fmt.Errorf("service: %w", err)
		}
		if err := m.settle(ctx, f, have, refused); err != nil {
			return fmt.Errorf("service: %w", err)
		}
		maps.Copy(m.gone, oldUDP(f, have["nat"]))
	}
	m.synced, m.sweep = true, true
	maps.Copy(failed, refused)
	return m.finish(ctx, failed)
}

func (m *Mode) read(ctx context.Context, f iptables.Family) (map[string]iptables.Table, error) {
	out := map[string]iptables.Table{}
	for _, table := range tableNames() {
		t, err := m.conn.Read(ctx, f, table)
		if err != nil {
			return nil, err
		}
		out[table] = t
	}
	return out, nil
}

// compare returns the change from one set of tables to another.
func compare(f iptables.Family, have, want map[string]iptables.Table) *delta {
	d := newDelta(f)
	for table, c := range d.tables {
		for chain, rules := range want[table] {
			if old, ok := have[table][chain]; !ok || !slices.Equal(old, rules) {
				c.Set[chain] = rules
			}
		}
		for chain := range have[table] {
			if _, ok := want[table][chain]; !ok && ours(chain) {
				c.Drop = append(c.Drop, chain)
			}
		}
		wanted := map[iptables.Rule]bool{}
		for _, j := range slices.Backward(jumps(f)) {
			if j.table != table {
				continue
			}
			r := iptables.Rule{Chain: j.from, Rule: j.rule}
			wanted[r] = true
			if !slices.Contains(have[table][j.from], j.rule) {
				c.Insert = append(c.Insert, r)
			}
		}
		c.Delete = foreignJumps(have[table], wanted)
	}
	return d
}

// foreignJumps returns unwanted rules of the kernel's chains that lead to chains of a service proxy.
func foreignJumps(have iptables.Table, wanted map[iptables.Rule]bool) (out []iptables.Rule) {
	for _, from := range slices.Sorted(maps.Keys(have)) {
		if ours(from) {
			continue
		}
		for _, rule := range have[from] {
			r := iptables.Rule{Chain: from, Rule: rule}
			if _, target, ok := strings.Cut(rule, "-j "); ok && ours(strings.Fields(target)[0]) && !wanted[r] {
				out = append(out, r)
			}
		}
	}
	return out
}

// oldUDP returns the UDP frontends that a table leads to, ours or foreign.
func oldUDP(f iptables.Family, nat iptables.Table) map[service.Frontend]bool {
	out := map[service.Frontend]bool{}
	for _, rule := range nat[chainServices] {
		if fe, ok := udpFrontend(f, rule); ok && !fe.IsNodePort() {
			out[fe] = true
		}
	}
	for _, rule := range nat[chainNodePorts] {
		if fe, ok := udpFrontend(f, rule); ok && fe.IsNodePort() {
			out[fe] = true
		}
	}
	return out
}

func udpFrontend(f iptables.Family, rule string) (fe service.Frontend, ok bool) {
	fe = service.Frontend{Addr: netip.IPv4Unspecified(), Protocol: model.UDP}
	if f == iptables.IPv6 {
		fe.Addr = netip.IPv6Unspecified()
	}
	words := strings.Fields(rule)
	for i, w := range words[:max(len(words)-1, 0)] {
		switch value := words[i+1]; w {
		case "-d":
			if p, err := netip.ParsePrefix(value); err == nil {
				fe.Addr = p.Addr()
			}
		case "-p":
			ok = value == "udp"
		case "--dport":
			n, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				return fe, false
			}
			fe.Port = uint16(n)
		}
	}
	return fe, ok && fe.Port != 0
}

// Remove implements service.Mode: it removes every chain of a service proxy, including those of a former kube-proxy.
func (m *Mode) Remove(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.synced = false
	for _, f := range iptables.Families() {
		have, err := m.read(ctx, f)
		if err != nil {
			return fmt.Errorf("service: %w", err)
		}
		d := newDelta(f)
		for table, c := range d.tables {
			for chain := range have[table] {
				if ours(chain) {
					c.Drop = append(c.Drop, chain)
				}
			}
			c.Delete = foreignJumps(have[table], nil)
		}
		// Each table is a transaction of its own. Refusing rules are changed until no packet is refused: another mode
		// may own the packets by then.
		err = m.restoreTables(ctx, d, []string{"filter", "nat", "mangle"})
		for table := range d.tables {
			if err == nil {
				err = m.conn.Tidy(ctx, f, table)
			}
		}
		if err != nil {
			return fmt.Errorf("service: %w", err)
		}
	}
	return nil
}

// Remains implements service.Mode.
func (m *Mode) Remains(ctx context.Context) (out []string, err error) {
	for _, f := range iptables.Families() {
		have, err := m.read(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, table := range tableNames() {
			for _, chain := range slices.Sorted(maps.Keys(have[table])) {
				if ours(chain) {
					out = append(out, fmt.Sprintf("chain %s of %s (%s), table %s", chain, f, m.conn.Flavour(), table))
				}
			}
		}
	}
	return out, nil
}

// Watch implements service.Mode.
func (m *Mode) Watch(ctx context.Context) (<-chan struct{}, error) {
	return m.conn.Watch(ctx, func(table, chain string) bool {
		return (table == "nat" || table == "filter") && (chain == "" || ours(chain) ||
			slices.Contains([]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, chain))
	})
}

// Text renders plans as iptables-restore reads them, for people.
func Text(plans map[model.Name]service.Plan, l service.NodeFacts) string {
	m := New(nil, nil)
	m.local = l
	d := m.owners.Begin()
	todo := map[model.Name]*service.Plan{}
	for k, p := range plans {
		todo[k] = &p
	}
	d.Change(todo)
	m.owners.Accept(d)
	var b strings.Builder
	for _, f := range iptables.Families() {
		fmt.Fprintf(&b, "# %s-restore\n", f)
		delta := compare(f, nil, m.tables(f, m.owners.Plans))
		for _, table := range []string{"nat", "filter"} {
			b.Write(delta.tables[table].Text())
		}
	}
	return b.String()
}
