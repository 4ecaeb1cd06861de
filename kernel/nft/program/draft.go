package program

import (
	"cmp"
	"slices"

	"wayleave.dev/kernel/nft"
)

// Place is where an element is.
type Place struct {
	Family nft.Family
	Set    string
	Key    string
}

// Value is what an element says beside its key, see nft.Element.
type Value struct{ Data, End string }

// Element returns the element at the place.
func (p Place) Element(v Value) nft.Element { return nft.Element{Key: p.Key, Data: v.Data, End: v.End} }

// Object identifies something that several keys may need. It is in the kernel while at least one does.
type Object struct {
	Family nft.Family
	// Kind and Name identify the object in its family; both are the feature's own.
	Kind uint8
	Name string
	// Lasting objects are made when a key first needs them, and stay until a Sync finds that none does.
	Lasting bool
}

func (o Object) compare(q Object) int {
	return cmp.Or(cmp.Compare(o.Family, q.Family), cmp.Compare(o.Kind, q.Kind), cmp.Compare(o.Name, q.Name))
}

// Parts are what an object consists of.
type Parts struct {
	// Sets and Chains are the object's alone.
	Sets   []nft.Set
	Chains []nft.Chain
	// Elements are in these sets, or in sets of the table.
	Elements []Item
}

// Item is an element of a set.
type Item struct {
	Set     string
	Element nft.Element
}

// Output takes what a plan asks for.
type Output interface {
	// Element is an element that belongs to the key alone.
	Element(Place, Value)
	// Need is an object that the key needs. parts is called when it has to be made or dropped.
	Need(o Object, parts func() Parts)
}

// draft is one transaction that is not committed yet.
type draft[K comparable, P any] struct {
	program *Program[K, P]
	plans   PlanChange[K, P]
	// whole says that it is part of a Sync.
	whole bool
	needs map[Object]*need
	// before and after are the elements of keys and objects as they are, and as they are to be.
	before, after map[Place]Value
	batches       map[nft.Family]*nft.Batch
}

// need is how a draft changes the number of keys that need an object.
type need struct {
	by    int
	parts func() Parts
	// differs says that an element of the object is not in the kernel as it should be.
	differs bool
}

func (p *Program[K, P]) draft(plans PlanChange[K, P]) *draft[K, P] {
	d := &draft[K, P]{program: p, plans: plans, needs: map[Object]*need{}, before: map[Place]Value{},
		after: map[Place]Value{}, batches: map[nft.Family]*nft.Batch{}}
	for _, f := range nft.Families() {
		d.batches[f] = &nft.Batch{Delete: map[string][]nft.Element{}, Add: map[string][]nft.Element{}}
	}
	return d
}

// need counts that one key more, or less, needs the object. isNew says that the draft did not know the object.
func (d *draft[K, P]) need(o Object, by int, parts func() Parts) (n *need, isNew bool) {
	n, ok := d.needs[o]
	if !ok {
		n = &need{parts: parts}
		d.needs[o] = n
	}
	n.by += by
	return n, !ok
}

// removal takes what a plan in force asked for.
type removal[K comparable, P any] struct{ *draft[K, P] }

func (r removal[K, P]) Element(p Place, v Value) { r.before[p] = v }

func (r removal[K, P]) Need(o Object, parts func() Parts) {
	if !o.Lasting {
		r.need(o, -1, parts)
	}
}

// addition takes what a plan asks for that is to be in force.
type addition[K comparable, P any] struct{ *draft[K, P] }

func (a addition[K, P]) Element(p Place, v Value) { a.after[p] = v }

func (a addition[K, P]) Need(o Object, parts func() Parts) {
	a.need(o, 1, parts)
}

// objects lists those that the draft makes, and those that it drops, in order.
func (d *draft[K, P]) objects() (arrive, leave []Object) {
	for o, n := range d.needs {
		had := d.program.refs[o] > 0 || d.program.lasting[o]
		has := o.Lasting || d.program.refs[o]+n.by > 0
		switch {
		case !had && has:
			arrive = append(arrive, o)
		case had && !has:
			leave = append(leave, o)
		}
	}
	slices.SortFunc(arrive, Object.compare)
	slices.SortFunc(leave, Object.compare)
	return arrive, leave
}

// arrive makes objects. To make what is there already is no error.
func (d *draft[K, P]) arrive(list []Object) {
	for _, o := range list {
		b, parts := d.batches[o.Family], d.needs[o].parts()
		b.Sets, b.Chains = append(b.Sets, parts.Sets...), append(b.Chains, parts.Chains...)
		for _, item := range parts.Elements {
			p, v := item.at(o.Family)
			d.after[p] = v
		}
	}
}

// leave drops objects.
func (d *draft[K, P]) leave(list []Object) {
	for _, o := range list {
		b, parts := d.batches[o.Family], d.needs[o].parts()
		for _, c := range parts.Chains {
			b.DropChains = append(b.DropChains, c.Name)
		}
		for _, s := range parts.Sets {
			b.DropSets = append(b.DropSets, s.Name)
		}
		for _, item := range parts.Elements {
			isOwn := func(s nft.Set) bool { return s.Name == item.Set }
			if !slices.ContainsFunc(parts.Sets, isOwn) { // else they go with the set
				p, v := item.at(o.Family)
				d.before[p] = v
			}
		}
	}
}

func (i Item) at(f nft.Family) (Place, Value) {
	return Place{f, i.Set, i.Element.Key}, Value{i.Element.Data, i.Element.End}
}

// compare fills the batches with the difference between before and after.
func (d *draft[K, P]) compare() {
	for p, old := range d.before {
		if now, ok := d.after[p]; !ok || now != old {
			d.del(p, old)
		}
	}
	for p, now := range d.after {
		if old, ok := d.before[p]; !ok || old != now {
			d.add(p, now)
		}
	}
}

func (d *draft[K, P]) del(p Place, v Value) {
	b := d.batches[p.Family]
	b.Delete[p.Set] = append(b.Delete[p.Set], p.Element(v))
}

func (d *draft[K, P]) add(p Place, v Value) {
	b := d.batches[p.Family]
	b.Add[p.Set] = append(b.Add[p.Set], p.Element(v))
}

// changes returns the batches that are not empty, with elements in order: drafts of equal content are equal.
func (d *draft[K, P]) changes() []nft.Change {
	var out []nft.Change
	for _, f := range nft.Families() {
		b := d.batches[f]
		if len(b.Delete)+len(b.Add)+len(b.Chains)+len(b.Sets)+len(b.DropChains)+len(b.DropSets) == 0 &&
			!b.Base && !b.Recreate {
			continue
		}
		for _, bySet := range []map[string][]nft.Element{b.Delete, b.Add} {
			for _, list := range bySet {
				slices.SortFunc(list, func(a, b nft.Element) int { return cmp.Compare(a.Key, b.Key) })
			}
		}
		out = append(out, nft.Change{Table: d.program.cfg.Table(f), Batch: *b})
	}
	return out
}
