package nftables

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
)

// Local is what the mode must know of its node and cluster.
type Local = service.Local

// Mode is the data plane. Its methods may be called concurrently; they wait for
// one another.
type Mode struct {
	conn  nft.Conn
	track conntrack.Flusher
	lay   layout

	mu     sync.Mutex
	local  Local
	synced bool
	books
	// unsure are keys that failed in a Sync: what the kernel has of them is not
	// known.
	unsure map[model.Name]struct{}
	// flows and plain are UDP flows to be removed from connection tracking.
	flows []conntrack.Flow
	plain []netip.AddrPort
	// forget says that remembered clients must be looked through.
	forget bool
}

// books say what is in the kernel.
type books struct {
	*service.Books
	// common counts the plans that want an element which plans share.
	common map[place]int
	chains map[nft.Family]map[string]bool
}

func newBooks() books {
	return books{Books: service.NewBooks(), common: map[place]int{}, chains: map[nft.Family]map[string]bool{
		nft.IPv4: {}, nft.IPv6: {}}}
}

var _ service.Mode = (*Mode)(nil)

// New makes the data plane; the kernel is not touched before Sync.
func New(conn nft.Conn, track conntrack.Flusher) *Mode {
	return newMode(conn, track, layout{name: TableName})
}

// Beside makes what is around IPVS, which draws the endpoints and translates to them
// itself: who is masqueraded, who may come in, what is refused. Services that whole says
// yes to are served by rules all the same.
func Beside(conn nft.Conn, track conntrack.Flusher, whole func(model.Name) bool) *Mode {
	return newMode(conn, track, layout{name: BesideTableName, beside: true, whole: whole})
}

func newMode(conn nft.Conn, track conntrack.Flusher, lay layout) *Mode {
	return &Mode{conn: conn, track: track, lay: lay, books: newBooks(), unsure: map[model.Name]struct{}{}}
}

// SetLocal replaces the facts of the node; they take effect with the next Sync.
// Locals brings them about at once.
func (m *Mode) SetLocal(l Local) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.local = l
	m.lay = m.lay.with(l)
}

// Apply implements reconcile.Target. A transaction that the kernel refuses is
// halved until the bad keys are found, so that one bad key stops no other.
func (m *Mode) Apply(ctx context.Context, set map[model.Name]service.Plan, del []model.Name) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	todo := make(map[model.Name]*service.Plan, len(set)+len(del))
	for k, p := range set {
		todo[k] = &p
	}
	for _, k := range del {
		todo[k] = nil
	}
	if m.unknown(todo) {
		plans := maps.Clone(m.Want)
		maps.Copy(plans, set)
		for _, k := range del {
			delete(plans, k)
		}
		return m.sync(ctx, plans)
	}
	failed := reconcile.KeyErrors[model.Name]{}
	fatal := m.halve(ctx, slices.SortedFunc(maps.Keys(todo), model.Name.Compare), failed,
		func(keys []model.Name) *draft {
			part := make(map[model.Name]*service.Plan, len(keys))
			for _, k := range keys {
				part[k] = todo[k]
			}
			return m.change(part)
		})
	if fatal == nil && len(todo) >= nothingGoes && len(failed) >= len(todo) {
		// A Sync finds out whether the kernel takes anything: it begins with what is nobody's.
		fatal = fmt.Errorf("none of %d services could be programmed: %w", len(todo),
			failed[slices.MinFunc(slices.Collect(maps.Keys(failed)), model.Name.Compare)])
	}
	return m.finish(ctx, fatal, failed)
}

// nothingGoes is how many keys, all of a change, must fail before it is taken for a fault of
// the node until a Sync says otherwise.
const nothingGoes = 32

// unknown says whether the kernel must be read before these keys can be changed.
func (m *Mode) unknown(todo map[model.Name]*service.Plan) bool {
	for k := range todo {
		if _, ok := m.unsure[k]; ok {
			return true
		}
	}
	return !m.synced
}

// change drafts what turns the plans of some keys in the books into those wanted.
// Services that waited for what these give up get it in the same transaction.
func (m *Mode) change(todo map[model.Name]*service.Plan) *draft {
	d := m.newDraft(m.books)
	keys := d.Turn(todo)
	for _, k := range keys {
		d.release(k)
	}
	for _, k := range keys {
		d.claim(k, todo[k])
	}
	before, after := map[place]string{}, map[place]string{}
	for _, k := range keys {
		m.lay.render(k, m.Plans[k], func(p place, data string) { before[p] = data }, noChain)
		if p := d.Plans[k]; p != nil {
			m.lay.render(k, *p, func(p place, data string) { after[p] = data }, noChain)
		}
	}
	d.compareCommon(before, after)
	d.compare(before, after)
	return d
}

// noChain is for who wants elements only.
func noChain(nft.Family, func() nft.Chain, string) {}

// Watch tells of foreign changes to our tables.
func (m *Mode) Watch(ctx context.Context) (<-chan struct{}, error) {
	return m.conn.Watch(ctx, m.lay.name)
}

// Remove takes everything of this mode out of the kernel. Connections that are
// established live on: connection tracking has them.
func (m *Mode) Remove(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.synced = false
	for _, f := range nft.Families() {
		if err := m.conn.Remove(ctx, m.lay.table(f)); err != nil {
			return fmt.Errorf("service: %w", err)
		}
	}
	return nil
}

// Remains names what of this mode is in the kernel.
func (m *Mode) Remains(ctx context.Context) ([]string, error) {
	var tables []nft.Table
	for _, f := range nft.Families() {
		tables = append(tables, m.lay.table(f))
	}
	return nft.Remains(ctx, m.conn, tables...)
}
