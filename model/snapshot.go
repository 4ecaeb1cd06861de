package model

import (
	"iter"

	"github.com/cilium/statedb"
)

// Snapshot is the state at one moment. It costs nothing to take, never changes,
// and may be read by any number of goroutines. Iteration is in order of names.
// The accessors of each kind are beside its type.
type Snapshot struct {
	s   *Store
	txn statedb.ReadTxn
}

// Snapshot returns the state as of now.
func (s *Store) Snapshot() Snapshot { return Snapshot{s: s, txn: s.db.ReadTxn()} }

// get returns the object of that name.
func get[O any](v Snapshot, d *descriptor[O], n Name) (O, bool) {
	o, _, ok := tableOf(v.s, d).Get(v.txn, d.byName.Query(n))
	return o, ok
}

// all yields all objects of a kind.
func all[O any](v Snapshot, d *descriptor[O]) iter.Seq[O] {
	return statedb.ToSeq(tableOf(v.s, d).All(v.txn))
}

// allIn yields the objects of one namespace.
func allIn[O any](v Snapshot, d *descriptor[O], namespace string) iter.Seq[O] {
	return statedb.ToSeq(tableOf(v.s, d).Prefix(v.txn, d.byName.Query(Name{Namespace: namespace})))
}

// list yields the objects that an index finds.
func list[O any](v Snapshot, d *descriptor[O], q statedb.Query[O]) iter.Seq[O] {
	return statedb.ToSeq(tableOf(v.s, d).List(v.txn, q))
}

// Count is the number of objects of one kind.
func (v Snapshot) Count(kind Kind) int {
	if t := v.s.table(kind); t != nil {
		return t.count(v.txn)
	}
	return 0
}
