package nftables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/networkpolicy"
	"wayleave.dev/reconcile"
)

type (
	entryKey = networkpolicy.Key
	entry    = networkpolicy.Entry
	failures = reconcile.KeyErrors[entryKey]
)

// Mode enforces entries. Its methods may be called concurrently; they wait for one another.
type Mode struct {
	conn  nft.Conn
	track conntrack.Marker
	// shrunk is rung when flows may have become forbidden, or allowed again, see Run.
	shrunk chan struct{}

	mu     sync.Mutex
	synced bool
	books
	// cut is how many flows were found forbidden by the last Sweep.
	cut int
	// unsure are keys that failed in a Sync: what the kernel has of them is not known.
	unsure map[entryKey]struct{}
}

var _ reconcile.Target[entryKey, entry] = (*Mode)(nil)

// New makes the mode; the kernel is not touched before Sync.
func New(conn nft.Conn, track conntrack.Marker) *Mode {
	return &Mode{conn: conn, track: track, shrunk: make(chan struct{}, 1), books: newBooks(),
		unsure: map[entryKey]struct{}{}}
}

// Apply implements reconcile.Target, in one transaction. One that the kernel refuses is
// halved until the bad keys are found, so that one bad key stops no other.
func (m *Mode) Apply(ctx context.Context, set map[entryKey]entry, del []entryKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	todo := make(map[entryKey]*entry, len(set)+len(del))
	for k, e := range set {
		todo[k] = &e
	}
	for _, k := range del {
		todo[k] = nil
	}
	if m.unknown(todo) {
		return m.sync(ctx, m.with(todo))
	}
	failed := failures{}
	err := m.halve(ctx, slices.SortedFunc(maps.Keys(todo), compareKeys), failed, func(keys []entryKey) *draft {
		d := newDraft(m.books)
		for _, k := range keys {
			d.turn(k, todo[k])
		}
		d.build()
		return d
	})
	return m.finish(err, failed)
}

// with is what is in the books, changed.
func (m *Mode) with(todo map[entryKey]*entry) map[entryKey]entry {
	out := maps.Clone(m.entries)
	for k, e := range todo {
		if e == nil {
			delete(out, k)
		} else {
			out[k] = *e
		}
	}
	return out
}

// unknown says whether the kernel must be read before these keys can be changed.
func (m *Mode) unknown(todo map[entryKey]*entry) bool {
	for k := range todo {
		if _, ok := m.unsure[k]; ok {
			return true
		}
	}
	return !m.synced
}

func compareKeys(a, b entryKey) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Profile, b.Profile),
		a.Addr.Compare(b.Addr))
}

// halve commits drafts of the keys, see reconcile.Halve.
func (m *Mode) halve(ctx context.Context, keys []entryKey, failed failures, draft func([]entryKey) *draft) error {
	return reconcile.Halve(keys, failed,
		func(part []entryKey) error { return m.commit(ctx, draft(part)) },
		func(err error) bool { return nft.Fatal(ctx, err) })
}

// commit sends a draft and enters it into the books.
func (m *Mode) commit(ctx context.Context, d *draft) error {
	if changes := d.changes(); len(changes) > 0 {
		if err := m.conn.CommitAll(ctx, changes...); err != nil {
			return err
		}
	}
	if d.shrinks() || m.cut > 0 {
		m.ring()
	}
	m.accept(d)
	for k := range d.todo {
		delete(m.unsure, k)
	}
	return nil
}

// finish joins the errors.
func (m *Mode) finish(fatal error, failed failures) error {
	if fatal != nil {
		m.synced = false
		return fmt.Errorf("network policy: %w", fatal)
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// ring has flows looked through, see Run.
func (m *Mode) ring() {
	select {
	case m.shrunk <- struct{}{}:
	default: // one is waiting already
	}
}

// Watch tells of foreign changes to our tables.
func (m *Mode) Watch(ctx context.Context) (<-chan struct{}, error) {
	return m.conn.Watch(ctx, TableName)
}

// Remove takes everything of this mode out of the kernel: all pods are open.
func (m *Mode) Remove(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.synced, m.books = false, newBooks()
	for _, f := range nft.Families() {
		if err := m.conn.Remove(ctx, table(f)); err != nil {
			return fmt.Errorf("network policy: %w", err)
		}
	}
	return m.release(ctx)
}

// Remains names what of this mode is in the kernel.
func (m *Mode) Remains(ctx context.Context) ([]string, error) {
	var tables []nft.Table
	for _, f := range nft.Families() {
		tables = append(tables, table(f))
	}
	return nft.Remains(ctx, m.conn, tables...)
}

// Isolated are the entries in force of this node's isolated addresses.
func (m *Mode) Isolated() map[networkpolicy.Key]networkpolicy.Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[networkpolicy.Key]networkpolicy.Entry{}
	for k, e := range m.entries {
		if k.Kind == networkpolicy.PodEntry {
			out[k] = e
		}
	}
	return out
}

// End is an isolated end of packets.
type End = networkpolicy.End

// Drops returns how many packets were dropped at each isolated local address since it is
// isolated.
func (m *Mode) Drops(ctx context.Context) (map[End]uint64, error) {
	out := map[End]uint64{}
	for _, f := range nft.Families() {
		for _, d := range directions() {
			counts, err := m.conn.Counted(ctx, table(f), dropped(d))
			if errors.Is(err, unix.ENOENT) {
				continue // nothing is enforced yet
			}
			if err != nil {
				return nil, fmt.Errorf("network policy: %w", err)
			}
			for key, n := range counts {
				if a, ok := netip.AddrFromSlice([]byte(key)); ok {
					out[End{Direction: d, Addr: a}] = n
				}
			}
		}
	}
	return out, nil
}
