package nft

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Fake is a Conn in memory with faults on demand. As the kernel does, it refuses to add an element twice with other
// data, or one that leads to a missing chain.
type Fake struct {
	mu     sync.Mutex
	tables map[string]*fakeTable
	// Fail, if set, is asked before every commit.
	Fail func(b Batch) error
	// Commits counts those that succeeded.
	Commits int
	foreign chan struct{}
}

var _ Conn = (*Fake)(nil)

type fakeTable struct {
	sets   map[string]map[string]Element
	chains map[string]bool
}

// refers says whether an element of a verdict map leads to the chain.
func (ft *fakeTable) refers(t Table, chain string) (set string, ok bool) {
	for name, set := range ft.sets {
		s, err := t.set(name)
		if err != nil || len(s.Data) == 0 || s.Data[0] != Verdict {
			continue
		}
		for _, e := range set {
			if target(e.Data) == chain {
				return name, true
			}
		}
	}
	return "", false
}

// target is the chain that the data of a verdict map leads to, or nothing.
func target(data string) string { return verdictOf(data).Chain }

// NewFake makes an empty one.
func NewFake() *Fake { return &Fake{tables: map[string]*fakeTable{}, foreign: make(chan struct{}, 1)} }

func id(t Table) string { return t.Family.String() + " " + t.Name }

// Read implements Conn.
func (f *Fake) Read(_ context.Context, t Table) (State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := State{Fits: true, Elements: map[string][]Element{}}
	ft, ok := f.tables[id(t)]
	if !ok {
		return st, nil
	}
	st.Exists = true
	for name, set := range ft.sets {
		st.Elements[name] = nil
		for _, e := range set {
			st.Elements[name] = append(st.Elements[name], e)
		}
	}
	for name := range ft.chains {
		st.Chains = append(st.Chains, name)
	}
	return st, nil
}

// Filled implements Conn: no packet fills a set here.
func (f *Fake) Filled(context.Context, Table, string) ([]Element, error) { return nil, nil }

// Counted implements Conn: no packet passes here.
func (f *Fake) Counted(context.Context, Table, string) (map[string]uint64, error) { return nil, nil }

// Forget implements Conn.
func (f *Fake) Forget(context.Context, Table, string, []Element) error { return nil }

// Commit implements Conn.
func (f *Fake) Commit(ctx context.Context, t Table, b Batch) error {
	return f.CommitAll(ctx, Change{t, b})
}

// CommitAll implements Conn.
func (f *Fake) CommitAll(_ context.Context, changes ...Change) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := map[string]*fakeTable{}
	for _, ch := range changes {
		if f.Fail != nil {
			if err := f.Fail(ch.Batch); err != nil {
				return err
			}
		}
		ft, err := f.after(ch.Table, ch.Batch)
		if err != nil {
			return fmt.Errorf("fake: table %s: %w", id(ch.Table), err)
		}
		next[id(ch.Table)] = ft
	}
	for name, ft := range next {
		f.tables[name] = ft
	}
	f.Commits++
	return nil
}

// after is the table as the batch leaves it.
func (f *Fake) after(t Table, b Batch) (*fakeTable, error) {
	next := &fakeTable{sets: map[string]map[string]Element{}, chains: map[string]bool{}}
	have, ok := f.tables[id(t)]
	switch {
	case ok && !b.Recreate:
		for name, set := range have.sets {
			next.sets[name] = maps.Clone(set)
		}
		next.chains = maps.Clone(have.chains)
	case !b.Base && !b.Recreate:
		return nil, fmt.Errorf("no such table: %w", unix.ENOENT)
	}
	return next, next.apply(t, b)
}

func (ft *fakeTable) apply(t Table, b Batch) error {
	if b.Base || b.Recreate {
		ft.make(t.Sets)
		for _, c := range t.Chains {
			if !c.OnDemand {
				ft.chains[c.Name] = true
			}
		}
	}
	ft.make(b.Sets)
	for _, c := range b.Chains {
		ft.chains[c.Name] = true
	}
	for _, name := range b.Clear {
		ft.sets[name] = map[string]Element{}
	}
	for name, list := range b.Delete {
		for _, e := range list {
			if have, ok := ft.sets[name][e.Key]; !ok || have.End != e.End {
				return fmt.Errorf("set %s: delete: no such element: %w", name, unix.ENOENT)
			}
			delete(ft.sets[name], e.Key)
		}
	}
	for name, list := range b.Add {
		s, err := t.set(name)
		if err != nil {
			return err
		}
		if ft.sets[name] == nil {
			return fmt.Errorf("set %s: no such set: %w", name, unix.ENOENT)
		}
		for _, e := range list {
			if old, ok := ft.sets[name][e.Key]; ok && old != e {
				return fmt.Errorf("set %s: add: %w", name, unix.EEXIST)
			}
			if len(s.Data) > 0 && s.Data[0] == Verdict && e.Data != Return && !ft.chains[target(e.Data)] {
				return fmt.Errorf("set %s: no chain %s: %w", name, e.Data, unix.ENOENT)
			}
			ft.sets[name][e.Key] = e
		}
	}
	for _, name := range b.DropChains {
		if set, ok := ft.refers(t, name); ok || !ft.chains[name] {
			return fmt.Errorf("chain %s cannot be dropped, there is one: %t, set %s leads to it: %w", name,
				ft.chains[name], set, unix.EBUSY)
		}
		delete(ft.chains, name)
	}
	for _, name := range b.DropSets {
		if ft.sets[name] == nil {
			return fmt.Errorf("set %s: no such set: %w", name, unix.ENOENT)
		}
		delete(ft.sets, name)
	}
	return nil
}

func (ft *fakeTable) make(sets []Set) {
	for _, s := range sets {
		if ft.sets[s.Name] == nil {
			ft.sets[s.Name] = map[string]Element{}
		}
	}
}

// Remove implements Conn.
func (f *Fake) Remove(_ context.Context, t Table) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.tables, id(t))
	return nil
}

// Watch implements Conn.
func (f *Fake) Watch(context.Context, ...string) (<-chan struct{}, error) { return f.foreign, nil }

// Flush is a foreign `nft flush ruleset`.
func (f *Fake) Flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.tables)
	select {
	case f.foreign <- struct{}{}:
	default:
	}
}

// Dump prints the elements of a table, a line each, sorted.
func (f *Fake) Dump(t Table) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	ft, ok := f.tables[id(t)]
	if !ok {
		return nil
	}
	for name, set := range ft.sets {
		s, err := t.set(name)
		if err != nil {
			out = append(out, name+" is of another layout")
			continue
		}
		for _, e := range set {
			out = append(out, name+" "+strings.TrimSpace(s.elementText(t.Family, e)))
		}
	}
	slices.Sort(out)
	return out
}
