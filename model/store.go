package model

import (
	"fmt"
	"sync"

	"github.com/cilium/statedb"
)

// Store holds the desired state. All methods may be called concurrently.
//
// It is a set of statedb tables: against a plain locked map (bench_test.go) a
// write costs a few microseconds more, and in return snapshots are free and
// consistent over all kinds, which every feature relies on.
type Store struct {
	db     *statedb.DB
	kinds  []described
	tables [maxKinds]table // by Kind.place

	mu     sync.Mutex
	synced Kind
	waiter chan struct{} // closed and replaced whenever synced grows
}

// NewStore makes an empty store. Close it when done.
func NewStore() (*Store, error) { return newStore(kinds) }

func newStore(kinds []described) (*Store, error) {
	s := &Store{db: statedb.New(), kinds: kinds, waiter: make(chan struct{})}
	for _, d := range kinds {
		t, err := d.open(s.db)
		if err != nil {
			return nil, fmt.Errorf("model: %w", err)
		}
		s.tables[d.bit().place()] = t
	}
	if err := s.db.Start(); err != nil {
		return nil, fmt.Errorf("model: start store: %w", err)
	}
	return s, nil
}

// Close ends the store's background work.
func (s *Store) Close() error { return s.db.Stop() }

// table is that of one kind, nil when the store has no such.
func (s *Store) table(k Kind) table {
	if i := k.place(); i < maxKinds {
		return s.tables[i]
	}
	return nil
}

// Writer changes the store within one transaction.
type Writer struct {
	s   *Store
	txn statedb.WriteTxn
	err error
}

// Write runs fn in one transaction over all tables: readers see all of its
// changes or none. An error means that the store was closed, or a bug.
func (s *Store) Write(fn func(*Writer)) error {
	return s.WriteKinds(^Kind(0), fn)
}

// WriteKinds is Write for fewer tables: a source that owns one kind does not
// wait for the writers of others.
func (s *Store) WriteKinds(kinds Kind, fn func(*Writer)) error {
	var tables []statedb.TableMeta
	for _, d := range s.kinds {
		if kinds&d.bit() != 0 {
			tables = append(tables, s.table(d.bit()).meta())
		}
	}
	w := &Writer{s: s, txn: s.db.WriteTxn(tables...)}
	fn(w)
	if w.err != nil {
		w.txn.Abort()
		return fmt.Errorf("model: write: %w", w.err)
	}
	w.txn.Commit()
	return nil
}

func (w *Writer) keep(err error) {
	if w.err == nil {
		w.err = err
	}
}

// put sets an object; the store owns it from now on.
func put[O any](w *Writer, d *descriptor[O], o O) {
	_, _, err := tableOf(w.s, d).Insert(w.txn, o)
	w.keep(err)
}

// Delete removes the object of the kind and name; nothing happens when there
// is none. Cluster-wide kinds have an empty Namespace.
func (w *Writer) Delete(kind Kind, n Name) {
	if t := w.s.table(kind); t != nil {
		w.keep(t.remove(w.txn, n))
	}
}

// Names lists the stored objects of one kind, as the transaction sees them.
func (w *Writer) Names(kind Kind) []Name {
	if t := w.s.table(kind); t != nil {
		return t.names(w.txn)
	}
	return nil
}
