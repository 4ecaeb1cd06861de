package service

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// Books say which plans of a data plane hold, and which Service has which frontend and
// which VIP: nobody shares. Who has something keeps it; of those that ask at once the
// first by name gets it, and the others wait until it is free.
//
// They are not safe for concurrent use.
type Books struct {
	// Plans are what is in force: of those wanted what nobody else had.
	Plans map[model.Name]Plan
	// Want are the plans as they were given.
	Want   map[model.Name]Plan
	owner  map[Frontend]model.Name
	vips   map[netip.Addr]model.Name
	losers map[model.Name]struct{} // whose plan in force lacks something
}

// NewBooks makes empty ones.
func NewBooks() *Books {
	return &Books{Plans: map[model.Name]Plan{}, Want: map[model.Name]Plan{}, owner: map[Frontend]model.Name{},
		vips: map[netip.Addr]model.Name{}, losers: map[model.Name]struct{}{}}
}

// Entry is that of a frontend now; empty when nobody has it.
func (b *Books) Entry(fe Frontend) (Entry, bool) { return b.Plans[b.owner[fe]].Entry(fe) }

// Draft is a change of the books that does not hold yet.
type Draft struct {
	base *Books
	// Given are the plans as wanted, Plans what of them can be had; nil: none.
	Given, Plans map[model.Name]*Plan
	// Waited are keys that nobody asked for now: they get what others give up.
	Waited map[model.Name]bool
	// Conflicts say what of a key's plan belongs to another.
	Conflicts map[model.Name]error
	// owner and vips are what changes; the zero Name means free.
	owner map[Frontend]model.Name
	vips  map[netip.Addr]model.Name
}

// Draft begins one. The books are not touched before Accept.
func (b *Books) Draft() *Draft {
	return &Draft{base: b, Given: map[model.Name]*Plan{}, Plans: map[model.Name]*Plan{}, Waited: map[model.Name]bool{},
		Conflicts: map[model.Name]error{}, owner: map[Frontend]model.Name{}, vips: map[netip.Addr]model.Name{}}
}

// Turn lists the keys of a change in the order in which they are to be claimed, with
// those added to it that wait for what others may give up.
func (d *Draft) Turn(todo map[model.Name]*Plan) []model.Name {
	for k := range d.base.losers {
		if _, ok := todo[k]; !ok {
			p := d.base.Want[k]
			todo[k] = &p
			d.Waited[k] = true
		}
	}
	return slices.SortedFunc(maps.Keys(todo), func(a, b model.Name) int {
		return cmp.Or(cmp.Compare(d.base.rank(a), d.base.rank(b)), a.Compare(b))
	})
}

// rank is 0 for who has all that it wants: it is to keep it.
func (b *Books) rank(k model.Name) int {
	_, has := b.Plans[k]
	_, waits := b.losers[k]
	if has && !waits {
		return 0
	}
	return 1
}

// Release frees what the key has in the books.
func (d *Draft) Release(k model.Name) {
	p := d.base.Plans[k]
	for _, e := range p.Entries {
		d.owner[e.Frontend] = model.Name{}
	}
	for _, a := range p.VIPs {
		d.vips[a] = model.Name{}
	}
}

// Claim gives a key what its plan asks for and nobody has; nil asks for nothing. It
// returns what that is.
func (d *Draft) Claim(k model.Name, want *Plan) *Plan {
	d.Given[k], d.Plans[k] = want, want
	if want == nil {
		return nil
	}
	got := *want
	got.VIPs = d.claimVIPs(k, want.VIPs)
	got.Entries = d.claimEntries(k, want.Entries)
	d.Plans[k] = &got
	return &got
}

// Change releases and claims for all keys of a change, see Turn.
func (d *Draft) Change(todo map[model.Name]*Plan) (keys []model.Name) {
	keys = d.Turn(todo)
	for _, k := range keys {
		d.Release(k)
	}
	for _, k := range keys {
		d.Claim(k, todo[k])
	}
	return keys
}

// Failed are the conflicts of keys that were asked for now.
func (d *Draft) Failed() map[model.Name]error {
	out := map[model.Name]error{}
	for k, err := range d.Conflicts {
		if !d.Waited[k] {
			out[k] = err
		}
	}
	return out
}

// Accept enters a draft of these books into them.
func (b *Books) Accept(d *Draft) {
	for k, p := range d.Plans {
		delete(b.losers, k)
		if p == nil {
			delete(b.Plans, k)
			delete(b.Want, k)
			continue
		}
		b.Plans[k], b.Want[k] = *p, *d.Given[k]
		if d.Conflicts[k] != nil {
			b.losers[k] = struct{}{}
		}
	}
	for fe, k := range d.owner {
		if b.owner[fe] = k; k == (model.Name{}) {
			delete(b.owner, fe)
		}
	}
	for a, k := range d.vips {
		if b.vips[a] = k; k == (model.Name{}) {
			delete(b.vips, a)
		}
	}
}

func (d *Draft) claimVIPs(k model.Name, want []netip.Addr) []netip.Addr {
	return keep(want, func(a netip.Addr) bool {
		o, changed := d.vips[a]
		if !changed {
			o = d.base.vips[a]
		}
		if o != (model.Name{}) && o != k {
			d.Conflicts[k] = fmt.Errorf("spec.clusterIPs: %s belongs to service %s already, which keeps it", a, o)
			return false
		}
		d.vips[a] = k
		return true
	})
}

func (d *Draft) claimEntries(k model.Name, want []Entry) []Entry {
	return keep(want, func(e Entry) bool {
		o, changed := d.owner[e.Frontend]
		if !changed {
			o = d.base.owner[e.Frontend]
		}
		if o != (model.Name{}) && o != k {
			d.Conflicts[k] = fmt.Errorf("spec.ports: %s belongs to service %s already, which keeps it", e.Frontend, o)
			return false
		}
		d.owner[e.Frontend] = k
		return true
	})
}

// keep is the list without what is refused, and the list itself when nothing is.
func keep[T any](list []T, ok func(T) bool) []T {
	var out []T
	same := true
	for i, x := range list {
		switch good := ok(x); {
		case good && !same:
			out = append(out, x)
		case !good && same:
			out, same = slices.Clone(list[:i]), false
		}
	}
	if same {
		return list
	}
	return out
}
