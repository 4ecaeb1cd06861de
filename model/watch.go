package model

import (
	"context"
	"fmt"

	"github.com/cilium/statedb"
)

// Changes names the objects that a change touched, so that work follows what changed and not what exists. A slice's
// change is a change of its Service. The zero value is no change.
type Changes struct {
	kinds map[Kind]map[Name]struct{}
}

// Add has the object changed, too. Objects of the cluster have no Namespace.
func (c *Changes) Add(kind Kind, n Name) {
	set := c.kinds[kind]
	if set == nil {
		set = map[Name]struct{}{}
		if c.kinds == nil {
			c.kinds = map[Kind]map[Name]struct{}{}
		}
		c.kinds[kind] = set
	}
	set[n] = struct{}{}
}

// Of are the changed objects of one kind; it is only read.
func (c Changes) Of(kind Kind) map[Name]struct{} { return c.kinds[kind] }

// Has says whether the object changed.
func (c Changes) Has(kind Kind, n Name) bool {
	_, ok := c.kinds[kind][n]
	return ok
}

// Any says whether an object of one of these kinds changed.
func (c Changes) Any(kinds Kind) bool {
	for k := range c.kinds {
		if k&kinds != 0 {
			return true
		}
	}
	return false
}

// Empty is true when nothing changed.
func (c Changes) Empty() bool { return len(c.kinds) == 0 }

// Watcher tells one reader what changed since it last asked. Changes that pile
// up in between are merged. It must be used by one goroutine only, and closed.
type Watcher struct {
	s         *Store
	followers []follower
}

// Watch starts a Watcher of the kinds; its first Next reports all that exists.
func (s *Store) Watch(kinds Kind) (*Watcher, error) {
	w := &Watcher{s: s}
	for _, d := range s.kinds {
		if kinds&s.together(d) == 0 {
			continue
		}
		f, err := s.table(d.bit()).follow(s.db)
		if err != nil {
			w.Close()
			return nil, fmt.Errorf("model: watch %s: %w", d, err)
		}
		w.followers = append(w.followers, f)
	}
	return w, nil
}

// together is the kinds that are watched whenever this one is: its own, what it is part of, and its parts.
func (s *Store) together(d described) Kind {
	kinds := d.watched()
	for _, o := range s.kinds {
		if o.watched()&d.bit() != 0 {
			kinds |= o.watched()
		}
	}
	return kinds
}

// Close ends the watch.
func (w *Watcher) Close() {
	for _, f := range w.followers {
		f.close()
	}
}

// Next waits until something of the watched kinds has changed, and returns the
// state and the changed keys. It returns ctx's error when that ends first.
func (w *Watcher) Next(ctx context.Context) (Snapshot, Changes, error) {
	for {
		snap, c, ready := w.Poll()
		if !c.Empty() {
			return snap, c, nil
		}
		if err := ready.wait(ctx); err != nil {
			return Snapshot{}, Changes{}, err
		}
	}
}

// Poll is Next without waiting: it returns what has changed so far, maybe
// nothing, and a handle to wait for more with.
func (w *Watcher) Poll() (Snapshot, Changes, Ready) {
	snap := w.s.Snapshot()
	var c Changes
	set := statedb.NewWatchSet()
	for _, f := range w.followers {
		f.drain(snap, &c, set)
	}
	return snap, c, Ready{set}
}

// follower follows the changes of one kind, for a Watcher.
type follower interface {
	drain(Snapshot, *Changes, *statedb.WatchSet)
	close()
}

// followerFor follows the changes of a kind with objects of type O.
type followerFor[O any] struct {
	*descriptor[O]
	changes statedb.ChangeIterator[O]
	// last is the owner that each object had, since it may change its owner.
	last map[Name]Name
}

func (t *tableFor[O]) follow(db *statedb.DB) (follower, error) {
	txn := db.WriteTxn(t.rows)
	defer txn.Commit()
	changes, err := t.rows.Changes(txn)
	if err != nil {
		return nil, err
	}
	return &followerFor[O]{t.descriptor, changes, map[Name]Name{}}, nil
}

func (f *followerFor[O]) close() { f.changes.Close() }

func (f *followerFor[O]) drain(snap Snapshot, c *Changes, set *statedb.WatchSet) {
	seq, watch := f.changes.Next(snap.txn)
	for ch := range seq {
		if f.owner == nil {
			c.Add(f.kind, f.name(ch.Object))
			continue
		}
		f.changed(ch, c)
	}
	set.Add(watch)
}

// changed has the owners changed that the object had and has.
func (f *followerFor[O]) changed(ch statedb.Change[O], c *Changes) {
	name, owner := f.name(ch.Object), f.owner(ch.Object)
	if last, ok := f.last[name]; ok && last != owner {
		c.Add(f.partOf, last)
	}
	c.Add(f.partOf, owner)
	if ch.Deleted {
		delete(f.last, name)
		return
	}
	f.last[name] = owner
}

// Ready is closed over the tables of a Poll.
type Ready struct{ set *statedb.WatchSet }

// C is closed when something may have changed since the Poll, or ctx ended.
func (r Ready) C(ctx context.Context) <-chan struct{} {
	c := make(chan struct{})
	go func() {
		defer close(c)
		_ = r.wait(ctx) // an ended ctx is the caller's to see
	}()
	return c
}

func (r Ready) wait(ctx context.Context) error {
	_, err := r.set.Wait(ctx, 0)
	return err
}

// MarkSynced says that the source has delivered all that exists of the kinds.
// Nothing may be taken for stale before that.
func (s *Store) MarkSynced(kinds Kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.synced|kinds == s.synced {
		return
	}
	s.synced |= kinds
	close(s.waiter)
	s.waiter = make(chan struct{})
}

// Synced is the set of kinds that were marked so far.
func (s *Store) Synced() Kind {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced
}

// WaitSynced waits until all kinds were marked, or ctx ends.
func (s *Store) WaitSynced(ctx context.Context, kinds Kind) error {
	for {
		s.mu.Lock()
		have, waiter := s.synced, s.waiter
		s.mu.Unlock()
		if have&kinds == kinds {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-waiter:
		}
	}
}
