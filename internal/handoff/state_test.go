package handoff

import (
	"maps"
	"math/rand/v2"
	"testing"
)

// replica is a child that has put what a cursor gave into force.
type replica struct {
	cursor *Cursor[int, int]
	have   map[int]int
}

func (r *replica) take(t *testing.T, hold func(int, *int) bool) {
	t.Helper()
	d := r.cursor.Next(hold)
	if d == nil {
		return
	}
	if d.Whole != (r.have == nil) {
		t.Fatalf("whole is %t, and the child has %v", d.Whole, r.have)
	}
	if r.have == nil {
		r.have = map[int]int{}
	}
	maps.Copy(r.have, d.Set)
	for _, k := range d.Deleted {
		delete(r.have, k)
	}
}

// Children that come and ask at any time have in the end what the table has, whatever was changed in
// whichever order, and whatever was held back meanwhile.
func TestEveryChildEndsWithTheTable(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var table Table[int, int]
		want := map[int]int{}
		var children []*replica
		sometimes := func(int, *int) bool { return r.IntN(3) == 0 }
		for range 60 {
			switch r.IntN(6) {
			case 0:
				plans := map[int]int{}
				for range r.IntN(8) {
					plans[r.IntN(8)] = r.IntN(100)
				}
				table.Replace(plans)
				want = maps.Clone(plans)
				clear(plans) // the table must not keep the caller's map
			case 1, 2:
				k, v := r.IntN(8), r.IntN(100)
				table.Change(map[int]int{k: v}, nil)
				want[k] = v
			case 3:
				k := r.IntN(8)
				table.Change(nil, []int{k})
				delete(want, k)
			case 4:
				children = append(children, &replica{cursor: table.Cursor()})
				if n := len(children); n > 4 {
					children[0].cursor.Close()
					children = children[1:]
				}
			case 5:
				for _, c := range children {
					c.take(t, sometimes)
				}
			}
		}
		if len(table.cursors) != len(children) {
			t.Fatalf("seed %d: %d cursors for %d children", seed, len(table.cursors), len(children))
		}
		for _, c := range children {
			if c.take(t, nil); !table.Known() && c.have != nil {
				t.Fatalf("seed %d: a child has %v of a table that is not known", seed, c.have)
			}
			if table.Known() && (!maps.Equal(c.have, want) || c.cursor.Pending()) {
				t.Fatalf("seed %d: a child has %v, want %v", seed, c.have, want)
			}
		}
	}
}

// A value that is not known is not sent; a known one is sent once to each child.
func TestAValueIsSentOnce(t *testing.T) {
	var v Value[string]
	var told uint64
	if got, lacks := v.Next(&told); lacks {
		t.Errorf("sent before it was known: %q", got)
	}
	for _, want := range []string{"a", "b", ""} {
		v.Set("x")
		v.Set(want)
		if got, lacks := v.Next(&told); !lacks || got != want {
			t.Errorf("%q, %t; want %q", got, lacks, want)
		}
		if _, lacks := v.Next(&told); lacks {
			t.Error("sent twice")
		}
	}
}
