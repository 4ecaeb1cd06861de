package ebpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"wayleave.dev/kernel/bpf/sockets"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
)

// Mode is the data plane. Its methods may be called concurrently; they exclude each other.
type Mode struct {
	rules *nftables.Mode
	conn  sockets.Conn
	// bypass selects Services that are left to nftables.
	bypass func(model.Name) bool

	mu sync.Mutex
	// synced is false while the content of the maps is not known.
	synced bool
	have   map[sockets.Key]entry
	of     map[model.Name][]sockets.Key
	full   map[sockets.Key]bool
	// changed are plans that nftables has in force, and the maps do not follow yet; all means that any may have
	// changed.
	changed map[model.Name]*service.Plan
	all     bool
}

// entry is a frontend in the maps.
type entry struct {
	sockets.Frontend
	of model.Name
}

var _ service.Mode = (*Mode)(nil)

// New creates the data plane; the kernel is not changed before Sync. rules must belong to no other mode. Services that
// bypass (may be nil) selects are left to nftables.
func New(rules *nftables.Mode, conn sockets.Conn, bypass func(model.Name) bool) *Mode {
	m := &Mode{rules: rules, conn: conn, bypass: bypass}
	m.forget()
	rules.OnCommit(func(changed map[model.Name]*service.Plan, whole bool) {
		m.all = m.all || whole
		maps.Copy(m.changed, changed)
	})
	return m
}

// forget forgets what is in the maps.
func (m *Mode) forget() {
	m.synced, m.all = false, true
	m.have, m.of = map[sockets.Key]entry{}, map[model.Name][]sockets.Key{}
	m.full, m.changed = map[sockets.Key]bool{}, map[model.Name]*service.Plan{}
}

// wanted returns the frontends of a plan in the maps.
func (m *Mode) wanted(k model.Name, p *service.Plan) []sockets.Frontend {
	if p == nil || m.bypass != nil && m.bypass(k) {
		return nil
	}
	return frontends(*p)
}

// SetNodeFacts implements service.Mode.
func (m *Mode) SetNodeFacts(l service.NodeFacts) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rules.SetNodeFacts(l)
	_ = m.conn.SetNode(context.Background(), nodeOf(l)) // Attach writes it again, and returns the error
}

// ApplyNodeFacts implements service.Mode.
func (m *Mode) ApplyNodeFacts(ctx context.Context, l service.NodeFacts) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return errors.Join(m.rules.ApplyNodeFacts(ctx, l), m.conn.SetNode(ctx, nodeOf(l)))
}

func nodeOf(l service.NodeFacts) sockets.Node { return sockets.Node{Pods: l.OwnPodCIDRs} }

// Apply implements reconcile.Target.
func (m *Mode) Apply(ctx context.Context, set map[model.Name]service.Plan, del []model.Name) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var closed []sockets.Key
	for k, p := range set {
		closed = append(closed, m.lost(k, m.wanted(k, &p))...)
	}
	for _, k := range del {
		closed = append(closed, m.lost(k, nil)...)
	}
	err := m.delete(ctx, closed)
	return m.follow(ctx, m.rules.Apply(ctx, set, del), err)
}

// Sync implements reconcile.Target: it reads the maps, and changes only what differs.
func (m *Mode) Sync(ctx context.Context, plans map[model.Name]service.Plan) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.closeStale(ctx, plans)
	return m.follow(ctx, m.rules.Sync(ctx, plans), err)
}

// closeStale attaches the programs, reads the maps, and removes frontends that no plan has.
func (m *Mode) closeStale(ctx context.Context, plans map[model.Name]service.Plan) error {
	m.forget()
	if err := m.conn.Attach(ctx); err != nil {
		return err
	}
	return m.read(ctx, plans)
}

// read fills have from the maps, and removes frontends that no plan has.
func (m *Mode) read(ctx context.Context, plans map[model.Name]service.Plan) error {
	list, err := m.conn.Frontends(ctx)
	if err != nil {
		return err
	}
	owner := make(map[sockets.Key]model.Name, len(list))
	for k, p := range plans {
		for _, f := range m.wanted(k, &p) {
			owner[f.Key] = k
		}
	}
	var stale []sockets.Key
	for _, f := range list {
		k, ok := owner[f.Key]
		if !ok {
			stale = append(stale, f.Key)
		}
		m.put(k, f)
	}
	if err := m.delete(ctx, stale); err != nil {
		return err
	}
	m.synced = true
	return nil
}

// follow has the maps follow nftables after a change of it, which returned err. closing is the error of what was
// removed from the maps before.
func (m *Mode) follow(ctx context.Context, err, closing error) error {
	var failed reconcile.KeyErrors[model.Name]
	if err != nil && !errors.As(err, &failed) {
		return errors.Join(err, closing)
	}
	if closing != nil {
		m.synced = false
		return fmt.Errorf("service: nftables serves, the sockets fail: %w", closing)
	}
	refused, err := m.update(ctx)
	if err != nil {
		m.synced = false
		return fmt.Errorf("service: nftables serves, the sockets fail: %w", err)
	}
	if failed == nil {
		failed = reconcile.KeyErrors[model.Name]{}
	}
	for k, err := range refused {
		failed[k] = errors.Join(failed[k], err)
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// update brings the changed plans into the maps. It returns the errors of single Services.
func (m *Mode) update(ctx context.Context) (reconcile.KeyErrors[model.Name], error) {
	todo := m.changed
	if !m.synced {
		m.have, m.of, m.all = map[sockets.Key]entry{}, map[model.Name][]sockets.Key{}, true
		if err := m.conn.Attach(ctx); err != nil {
			return nil, err
		}
		if err := m.read(ctx, m.rules.InForce()); err != nil {
			return nil, err
		}
	}
	if m.all {
		todo = map[model.Name]*service.Plan{}
		for k := range m.of {
			todo[k] = nil
		}
		for k, p := range m.rules.InForce() {
			todo[k] = &p
		}
	}
	var gone []sockets.Key
	want := map[model.Name][]sockets.Frontend{}
	for k, p := range todo {
		want[k] = m.wanted(k, p)
		gone = append(gone, m.lost(k, want[k])...)
	}
	if err := m.delete(ctx, gone); err != nil {
		return nil, err
	}
	refused, err := m.set(ctx, want)
	if err != nil {
		return nil, err
	}
	m.changed, m.all = map[model.Name]*service.Plan{}, false
	return refused, nil
}

// lost returns the frontends that a Service has in the maps, and not in its plan.
func (m *Mode) lost(k model.Name, want []sockets.Frontend) (out []sockets.Key) {
	for _, at := range m.of[k] {
		if !slices.ContainsFunc(want, func(f sockets.Frontend) bool { return f.Key == at }) {
			out = append(out, at)
		}
	}
	return out
}

// set writes frontends that differ. One that the kernel refuses is removed: nftables serves it. A full map is no error.
func (m *Mode) set(ctx context.Context, want map[model.Name][]sockets.Frontend) (reconcile.KeyErrors[model.Name],
	error) {
	var list []sockets.Frontend
	of := map[sockets.Key]model.Name{}
	for k, frontends := range want {
		for _, f := range frontends {
			if old, ok := m.have[f.Key]; ok && old.of == k && old.Frontend.Equal(f) {
				continue
			}
			list, of[f.Key] = append(list, f), k
		}
	}
	if len(list) == 0 {
		return nil, nil
	}
	refused := reconcile.KeyErrors[model.Name]{}
	bad := m.conn.Set(ctx, list)
	for _, f := range list {
		err, failed := bad[f.Key]
		delete(m.full, f.Key)
		switch {
		case !failed:
			m.put(of[f.Key], f)
			continue
		case errors.Is(err, sockets.ErrFull):
			m.full[f.Key] = true
		default:
			refused[of[f.Key]] = errors.Join(refused[of[f.Key]], fmt.Errorf("%s at the sockets: %w", f.Key, err))
		}
	}
	return refused, m.delete(ctx, slices.Collect(maps.Keys(bad)))
}

// put records a frontend that is in the maps.
func (m *Mode) put(k model.Name, f sockets.Frontend) {
	if old, ok := m.have[f.Key]; ok {
		m.drop(old)
	}
	m.have[f.Key] = entry{f, k}
	m.of[k] = append(m.of[k], f.Key)
}

func (m *Mode) drop(e entry) {
	delete(m.have, e.Key)
	rest := slices.DeleteFunc(m.of[e.of], func(at sockets.Key) bool { return at == e.Key })
	if m.of[e.of] = rest; len(rest) == 0 {
		delete(m.of, e.of)
	}
}

// delete removes frontends from the maps.
func (m *Mode) delete(ctx context.Context, list []sockets.Key) error {
	list = slices.DeleteFunc(list, func(at sockets.Key) bool { _, ok := m.have[at]; return !ok })
	if len(list) == 0 {
		return nil
	}
	if err := m.conn.Delete(ctx, list); err != nil {
		return err
	}
	for _, at := range list {
		if e, ok := m.have[at]; ok {
			m.drop(e)
		}
	}
	return nil
}

// Tally counts frontends.
type Tally struct {
	// Sockets are translated at the socket, and Rules by nftables alone. Full are those of Rules for which a map had no
	// room.
	Sockets, Rules, Full int
	// Memory is the number of bytes that the maps use in the kernel; 0 if it is not known.
	Memory uint64
}

// Tally counts the frontends in force.
func (m *Mode) Tally() (t Tally) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.rules.InForce() {
		t.Rules += len(p.Frontends)
	}
	t.Sockets, t.Full = len(m.have), len(m.full)
	t.Rules -= t.Sockets
	if k, ok := m.conn.(interface{ Memory() (uint64, error) }); ok {
		t.Memory, _ = k.Memory()
	}
	return t
}

// Watch implements service.Mode.
func (m *Mode) Watch(ctx context.Context) (<-chan struct{}, error) {
	rules, err := m.rules.Watch(ctx)
	if err != nil {
		return nil, err
	}
	programs, err := m.conn.Watch(ctx)
	if err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	out := make(chan struct{}, 1)
	var wg sync.WaitGroup
	for _, in := range []<-chan struct{}{rules, programs} {
		wg.Go(func() {
			for range in {
				select {
				case out <- struct{}{}:
				default:
				}
			}
		})
	}
	go func() { wg.Wait(); close(out) }()
	return out, nil
}

// Remove implements service.Mode.
func (m *Mode) Remove(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget()
	return errors.Join(m.conn.Remove(ctx), m.rules.Remove(ctx))
}

// Remains implements service.Mode.
func (m *Mode) Remains(ctx context.Context) ([]string, error) {
	rules, err := m.rules.Remains(ctx)
	programs, err2 := m.conn.Remains(ctx)
	return append(programs, rules...), errors.Join(err, err2)
}

// Sockets is what the mode has beside nftables, as a mode that another one has replaced: its Remove leaves the rules to
// their new owner.
type Sockets struct{ *Mode }

// Remove implements service.Mode.
func (s Sockets) Remove(ctx context.Context) error { return s.conn.Remove(ctx) }

// Remains implements service.Mode.
func (s Sockets) Remains(ctx context.Context) ([]string, error) { return s.conn.Remains(ctx) }
