package model

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
)

// widget is an object of a kind that the store does not know.
type widget struct {
	name  Name
	color string
	of    Name
}

const widgetKind Kind = 1 << 30

// A kind is added by one descriptor: its objects are stored, found by name, namespace and index, counted, listed,
// watched and deleted, in one transaction with all others.
func TestAKindIsOneDescriptor(t *testing.T) {
	byColor := statedb.Index[*widget, string]{Name: "color",
		FromObject: func(w *widget) index.KeySet { return index.NewKeySet(index.String(w.color)) },
		FromKey:    index.String}
	widgets := describe(descriptor[*widget]{kind: widgetKind, label: "Widget",
		name: func(w *widget) Name { return w.name }, indexes: []statedb.Indexer[*widget]{byColor}})
	s, err := newStore(append(slices.Clone(kinds), widgets))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w, err := s.Watch(widgetKind | NodeKind)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	red := &widget{name: Name{"a", "w"}, color: "red"}
	blue := &widget{name: Name{"b", "w"}, color: "blue"}
	put := func(w *Writer) { put(w, widgets, red); put(w, widgets, blue); w.PutNode(&Node{Name: "n"}) }
	before := s.Snapshot()
	if err := s.WriteKinds(widgetKind|NodeKind, put); err != nil {
		t.Fatal(err)
	}
	snap, c, _ := w.Poll()
	if got := slices.SortedFunc(maps.Keys(c.Of(widgetKind)), Name.Compare); !slices.Equal(got,
		[]Name{red.name, blue.name}) || !c.Has(NodeKind, Name{Name: "n"}) || c.Any(PodKind) {
		t.Errorf("changed: %v", c)
	}
	if o, ok := get(snap, widgets, red.name); !ok || o != red {
		t.Errorf("found %v", o)
	}
	if got := slices.Collect(list(snap, widgets, byColor.Query("blue"))); !slices.Equal(got, []*widget{blue}) {
		t.Errorf("blue: %v", got)
	}
	if got := slices.Collect(allIn(snap, widgets, "a")); !slices.Equal(got, []*widget{red}) {
		t.Errorf("in namespace a: %v", got)
	}
	if snap.Count(widgetKind) != 2 || before.Count(widgetKind) != 0 {
		t.Errorf("%d widgets, %d before", snap.Count(widgetKind), before.Count(widgetKind))
	}
	write(t, s, func(w *Writer) {
		if got := w.Names(widgetKind); !slices.Equal(got, []Name{red.name, blue.name}) {
			t.Errorf("names %v", got)
		}
		w.Delete(widgetKind, red.name)
	})
	after, c, _ := w.Poll()
	if !c.Has(widgetKind, red.name) || len(c.Of(widgetKind)) != 1 || after.Count(widgetKind) != 1 {
		t.Errorf("deleted: %v, %d left", c, after.Count(widgetKind))
	}
	if got := slices.Collect(all(snap, widgets)); len(got) != 2 {
		t.Errorf("the older snapshot has %v", got)
	}
}

// A kind that is part of another one is watched with it, and a change of its objects is one of their owners.
func TestAPartIsWatchedWithItsOwner(t *testing.T) {
	parts := describe(descriptor[*widget]{kind: widgetKind, label: "Part",
		name: func(w *widget) Name { return w.name }, partOf: PodKind, owner: func(w *widget) Name { return w.of }})
	s, err := newStore(append(slices.Clone(kinds), parts))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, kind := range []Kind{PodKind, widgetKind} {
		w, err := s.Watch(kind)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		w.Poll()
		step := func(fn func(*Writer), want ...Name) {
			t.Helper()
			write(t, s, fn)
			_, c, _ := w.Poll()
			if got := slices.SortedFunc(maps.Keys(c.Of(PodKind)), Name.Compare); !slices.Equal(got, want) ||
				c.Any(widgetKind) {
				t.Errorf("%s watched: %v, want %v", kind, c, want)
			}
		}
		one, two, part := Name{"a", "1"}, Name{"a", "2"}, Name{"a", "part"}
		step(func(w *Writer) { w.PutPod(&Pod{Name: one}) }, one)
		step(func(w *Writer) { put(w, parts, &widget{name: part, of: one}) }, one)
		step(func(w *Writer) { put(w, parts, &widget{name: part, of: two}) }, one, two)
		step(func(w *Writer) { w.Delete(widgetKind, part) }, two)
	}
}

// Each kind has a bit and a name of its own.
func TestKindsAreDistinct(t *testing.T) {
	seen, names := Kind(0), map[string]bool{}
	for _, d := range kinds {
		if d.bit() == 0 || d.bit()&(d.bit()-1) != 0 || seen&d.bit() != 0 {
			t.Errorf("%s: bit %#x", d, uint32(d.bit()))
		}
		seen |= d.bit()
		if s := d.bit().String(); names[s] || strings.Contains(s, "#") {
			t.Errorf("%#x is called %s", uint32(d.bit()), s)
		} else {
			names[s] = true
		}
	}
	if seen != AllKinds() || Kind(3).String() != "kinds(0x3)" {
		t.Errorf("all kinds are %s, an unknown one %s", AllKinds(), Kind(3))
	}
}
