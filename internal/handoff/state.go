package handoff

import (
	"iter"
	"maps"
)

// Value is a part of the state that is sent as a whole. The zero value is not known yet. It is guarded
// by the feed's lock.
type Value[T any] struct {
	value    T
	revision uint64
}

// Set replaces the value.
func (v *Value[T]) Set(value T) {
	v.value = value
	v.revision++
}

// Get is the value; false when it is not known.
func (v *Value[T]) Get() (value T, known bool) { return v.value, v.revision > 0 }

// Revision rises with each Set; 0 is not known.
func (v *Value[T]) Revision() uint64 { return v.revision }

// Next is the value if the child with that mark lacks it, and advances the mark. What the agent does
// not know yet, a child keeps from before.
func (v *Value[T]) Next(told *uint64) (value T, lacks bool) {
	if v.revision == *told {
		return value, false
	}
	*told = v.revision
	return v.value, true
}

// Table is a part of the state by key: sent whole to a new child, and then by changed keys. The zero
// value is not known yet. It is guarded by the feed's lock.
type Table[K comparable, V any] struct {
	have    map[K]V
	known   bool
	cursors map[*Cursor[K, V]]struct{}
}

// Cursor is how much of a table one child has.
type Cursor[K comparable, V any] struct {
	table *Table[K, V]
	whole bool // the child lacks the whole
	dirty map[K]struct{}
}

// Delta is a change of a table. Whole says that Set is all there is.
type Delta[K comparable, V any] struct {
	Whole   bool    `json:"whole,omitempty"`
	Set     map[K]V `json:"set,omitempty"`
	Deleted []K     `json:"deleted,omitempty"`
}

// Replace makes the plans all that the table has. Children get every key again: the caller could not
// say what changed.
func (t *Table[K, V]) Replace(plans map[K]V) {
	for k := range t.have {
		if _, stays := plans[k]; !stays {
			t.touch(k)
		}
	}
	for k := range plans {
		t.touch(k)
	}
	t.have, t.known = maps.Clone(plans), true
	if t.have == nil {
		t.have = map[K]V{}
	}
}

// Change sets some keys and deletes others.
func (t *Table[K, V]) Change(set map[K]V, deleted []K) {
	if t.have == nil {
		t.have = map[K]V{}
	}
	for k, v := range set {
		t.have[k] = v
		t.touch(k)
	}
	for _, k := range deleted {
		delete(t.have, k)
		t.touch(k)
	}
}

func (t *Table[K, V]) touch(k K) {
	for c := range t.cursors {
		if !c.whole {
			c.dirty[k] = struct{}{}
		}
	}
}

// Known says that Replace was called.
func (t *Table[K, V]) Known() bool { return t.known }

// Get is what a key has.
func (t *Table[K, V]) Get(k K) (V, bool) {
	v, ok := t.have[k]
	return v, ok
}

// All yields the keys and what they have.
func (t *Table[K, V]) All() iter.Seq2[K, V] { return maps.All(t.have) }

// Cursor makes that of a child that has nothing of the table. Close ends it.
func (t *Table[K, V]) Cursor() *Cursor[K, V] {
	c := &Cursor[K, V]{table: t, whole: true, dirty: map[K]struct{}{}}
	if t.cursors == nil {
		t.cursors = map[*Cursor[K, V]]struct{}{}
	}
	t.cursors[c] = struct{}{}
	return c
}

// Close ends the use of the cursor.
func (c *Cursor[K, V]) Close() { delete(c.table.cursors, c) }

// LacksWhole says that the child has nothing of the table yet.
func (c *Cursor[K, V]) LacksWhole() bool { return c.whole }

// Pending says that changes wait for the child.
func (c *Cursor[K, V]) Pending() bool { return c.whole || len(c.dirty) > 0 }

// Next takes what the child lacks, and nil when that is nothing. hold, if not nil, keeps a change back
// for a later call; it gets the new value, nil for a deletion. The whole is never kept back.
func (c *Cursor[K, V]) Next(hold func(K, *V) bool) *Delta[K, V] {
	switch {
	case !c.table.known:
		return nil
	case c.whole:
		c.whole = false
		return &Delta[K, V]{Whole: true, Set: maps.Clone(c.table.have)}
	}
	d := &Delta[K, V]{Set: map[K]V{}}
	for k := range c.dirty {
		v, ok := c.table.have[k]
		is := &v
		if !ok {
			is = nil
		}
		if hold != nil && hold(k, is) {
			continue
		}
		delete(c.dirty, k)
		if ok {
			d.Set[k] = v
		} else {
			d.Deleted = append(d.Deleted, k)
		}
	}
	if len(d.Set)+len(d.Deleted) == 0 {
		return nil
	}
	return d
}
