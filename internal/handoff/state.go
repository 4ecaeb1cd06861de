package handoff

import (
	"iter"
	"maps"
)

// Value is a part of the state that is always sent completely. The zero value is unknown. It is guarded by the feed's
// lock.
type Value[T any] struct {
	value    T
	revision uint64
}

// Set replaces the value.
func (v *Value[T]) Set(value T) {
	v.value = value
	v.revision++
}

// Get returns the value; false if it is unknown.
func (v *Value[T]) Get() (value T, known bool) { return v.value, v.revision > 0 }

// Revision increases with each Set; 0 means unknown.
func (v *Value[T]) Revision() uint64 { return v.revision }

// Next returns the value if the child with that mark lacks it, and advances the mark. While a value is unknown, a child
// keeps an earlier agent's.
func (v *Value[T]) Next(told *uint64) (value T, lacks bool) {
	if v.revision == *told {
		return value, false
	}
	*told = v.revision
	return v.value, true
}

// Table is a part of the state by key: it is sent completely to a new child, and then by changed keys. The zero value
// is unknown. It is guarded by the feed's lock.
type Table[K comparable, V any] struct {
	have    map[K]V
	known   bool
	cursors map[*Cursor[K, V]]struct{}
}

// Cursor is a child's position in the changes of a table.
type Cursor[K comparable, V any] struct {
	table *Table[K, V]
	whole bool // the child lacks the complete table
	dirty map[K]struct{}
}

// Delta is a change of a table. Whole means that Set is the complete table.
type Delta[K comparable, V any] struct {
	Whole   bool    `json:"whole,omitempty"`
	Set     map[K]V `json:"set,omitempty"`
	Deleted []K     `json:"deleted,omitempty"`
}

// Replace replaces the complete table. Children get every key again, because the changes are unknown.
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

// Known reports whether Replace was called.
func (t *Table[K, V]) Known() bool { return t.known }

// Get returns the value of a key.
func (t *Table[K, V]) Get(k K) (V, bool) {
	v, ok := t.have[k]
	return v, ok
}

// All yields the keys and their values.
func (t *Table[K, V]) All() iter.Seq2[K, V] { return maps.All(t.have) }

// Cursor returns one for a child that has nothing of the table. Close ends it.
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

// LacksWhole reports whether the child has nothing of the table yet.
func (c *Cursor[K, V]) LacksWhole() bool { return c.whole }

// Pending reports whether the child lacks changes.
func (c *Cursor[K, V]) Pending() bool { return c.whole || len(c.dirty) > 0 }

// Next returns what the child lacks; nil if nothing. hold, if not nil, defers a change to a later call; it gets the new
// value, nil for a deletion. The complete table is never deferred.
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
