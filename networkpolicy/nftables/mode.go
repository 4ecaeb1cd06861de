package nftables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/nft/program"
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
	// shrunk is signalled when flows may have become forbidden, or allowed again, see Run.
	shrunk chan struct{}

	mu      sync.Mutex
	program *program.Program[entryKey, entry]
	// cut is how many flows the last Sweep found forbidden.
	cut int
}

var _ reconcile.Target[entryKey, entry] = (*Mode)(nil)

// New makes the mode; the kernel is not touched before Sync.
func New(conn nft.Conn, track conntrack.Marker) *Mode {
	m := &Mode{conn: conn, track: track, shrunk: make(chan struct{}, 1)}
	m.program = program.New(program.Config[entryKey, entry]{Conn: conn, Table: table, Render: render,
		Compare: compareKeys, Committed: m.committed})
	return m
}

// Sync implements reconcile.Target, see program.Program.Sync.
func (m *Mode) Sync(ctx context.Context, plans map[entryKey]entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.ring()
	return finish(m.program.Sync(ctx, plans))
}

// Apply implements reconcile.Target, see program.Program.Apply.
func (m *Mode) Apply(ctx context.Context, set map[entryKey]entry, del []entryKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.program.Synced() {
		defer m.ring()
	}
	return finish(m.program.Apply(ctx, set, del))
}

func compareKeys(a, b entryKey) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Profile, b.Profile),
		a.Addr.Compare(b.Addr))
}

// finish joins the errors.
func finish(failed failures, err error) error {
	if err != nil {
		return fmt.Errorf("network policy: %w", err)
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// committed requests a sweep when something that was allowed may be forbidden now, or when there are cut flows.
func (m *Mode) committed(c program.Commit[entryKey, entry]) {
	narrower := c.Whole || m.cut > 0
	inForce := m.program.InForce()
	for k, e := range c.Plans {
		allows := k.Kind == networkpolicy.PeerEntry || k.Kind == networkpolicy.BlocksEntry
		_, had := inForce[k]
		narrower = narrower || had || !allows && e != nil
	}
	if narrower {
		m.ring()
	}
}

// ring requests a sweep, see Run.
func (m *Mode) ring() {
	select {
	case m.shrunk <- struct{}{}:
	default: // one is waiting already
	}
}

// Watch reports foreign changes to our tables.
func (m *Mode) Watch(ctx context.Context) (<-chan struct{}, error) { return m.program.Watch(ctx) }

// Remove takes everything of this mode out of the kernel: all pods are open.
func (m *Mode) Remove(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.program.Remove(ctx); err != nil {
		return fmt.Errorf("network policy: %w", err)
	}
	return m.release(ctx)
}

// Remains names what of this mode is in the kernel.
func (m *Mode) Remains(ctx context.Context) ([]string, error) { return m.program.Remains(ctx) }

// Isolated are the entries in force of this node's isolated addresses.
func (m *Mode) Isolated() map[networkpolicy.Key]networkpolicy.Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[networkpolicy.Key]networkpolicy.Entry{}
	for k, e := range m.program.InForce() {
		if k.Kind == networkpolicy.PodEntry {
			out[k] = e
		}
	}
	return out
}

// End is an isolated end of a connection.
type End = networkpolicy.End

// Drops returns how many packets were dropped at each isolated local address, since it became isolated.
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

// Text renders entries as nft text, for people.
func Text(entries map[entryKey]entry) string {
	batches := New(nil, nil).program.Fresh(entries)
	out := ""
	for _, f := range nft.Families() {
		b, t := batches[f], table(f)
		t.Sets = append(t.Sets, b.Sets...)
		out += t.Text(b.Add, b.Chains)
	}
	return out
}
