package nftables

import (
	"cmp"
	"slices"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/networkpolicy"
)

// books say what is in the kernel.
type books struct {
	entries map[networkpolicy.Key]networkpolicy.Entry
	// refs counts what needs an object.
	refs map[object]int
}

func newBooks() books {
	return books{map[networkpolicy.Key]networkpolicy.Entry{}, map[object]int{}}
}

// draft is one transaction that is not committed yet, and what the books will say once it
// is. The books are not touched before.
type draft struct {
	base    books
	todo    map[networkpolicy.Key]*networkpolicy.Entry // nil is to be removed
	refs    map[object]int                             // by how much the count changes
	ports   map[object]networkpolicy.Ports
	before  map[place]value
	after   map[place]value
	batches map[nft.Family]*nft.Batch
}

func newDraft(base books) *draft {
	d := &draft{base: base, todo: map[networkpolicy.Key]*networkpolicy.Entry{}, refs: map[object]int{},
		ports:  map[object]networkpolicy.Ports{},
		before: map[place]value{}, after: map[place]value{}, batches: map[nft.Family]*nft.Batch{}}
	for _, f := range nft.Families() {
		d.batches[f] = &nft.Batch{Delete: map[string][]nft.Element{}, Add: map[string][]nft.Element{}}
	}
	return d
}

// turn has a key be another entry than in the books, nil for none.
func (d *draft) turn(k networkpolicy.Key, to *networkpolicy.Entry) {
	d.todo[k] = to
	if old, ok := d.base.entries[k]; ok {
		render(k, old, func(p place, v value) { d.before[p] = v }, func(o object, _ networkpolicy.Ports) {
			d.refs[o]--
		})
	}
	if to != nil {
		render(k, *to, func(p place, v value) { d.after[p] = v }, func(o object, p networkpolicy.Ports) {
			if d.refs[o]++; o.kind == portsObject {
				d.ports[o] = p
			}
		})
	}
}

// shrinks says whether something that was allowed may be no more.
func (d *draft) shrinks() bool {
	for k, e := range d.todo {
		if _, had := d.base.entries[k]; had || k.Kind != networkpolicy.PeerEntry &&
			k.Kind != networkpolicy.BlocksEntry && e != nil {
			return true
		}
	}
	return false
}

// objects lists those that the draft makes, and those that it drops, in order.
func (d *draft) objects() (arrive, leave []object) {
	for o, by := range d.refs {
		switch had, has := d.base.refs[o] > 0, d.base.refs[o]+by > 0; {
		case !had && has:
			arrive = append(arrive, o)
		case had && !has:
			leave = append(leave, o)
		}
	}
	for _, list := range [][]object{arrive, leave} {
		slices.SortFunc(list, func(a, b object) int {
			return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.dir, b.dir), cmp.Compare(a.name, b.name))
		})
	}
	return arrive, leave
}

// arrive has the batches make an object. To make what is there already is no error.
func (d *draft) arrive(o object) {
	b := d.batches[o.family]
	for _, name := range o.sets() {
		if s, ok := made(name); ok {
			b.Sets = append(b.Sets, s)
		}
	}
	b.Chains = append(b.Chains, o.chains()...)
	if o.kind == portsObject {
		portElements(o.family, d.ports[o], func(p place, v value) { d.after[p] = v })
	}
}

func (d *draft) leave(o object) {
	b := d.batches[o.family]
	for _, c := range o.chains() {
		b.DropChains = append(b.DropChains, c.Name)
	}
	b.DropSets = append(b.DropSets, o.sets()...)
}

// build fills the batches with the difference to the books.
func (d *draft) build() {
	arrive, leave := d.objects()
	for _, o := range arrive {
		d.arrive(o)
	}
	for _, o := range leave {
		d.leave(o)
	}
	d.compare(d.before)
}

// compare adds the elements that differ.
func (d *draft) compare(before map[place]value) {
	for p, old := range before {
		if now, ok := d.after[p]; !ok || now != old {
			d.batches[p.family].Delete[p.set] = append(d.batches[p.family].Delete[p.set], p.element(old))
		}
	}
	for p, now := range d.after {
		if old, ok := before[p]; !ok || old != now {
			d.batches[p.family].Add[p.set] = append(d.batches[p.family].Add[p.set], p.element(now))
		}
	}
}

// changes are the batches that are not empty, with elements in order: drafts of equal
// content are equal.
func (d *draft) changes() []nft.Change {
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
		out = append(out, nft.Change{Table: table(f), Batch: *b})
	}
	return out
}

// accept enters a committed draft into the books.
func (b *books) accept(d *draft) {
	for k, e := range d.todo {
		if e == nil {
			delete(b.entries, k)
		} else {
			b.entries[k] = *e
		}
	}
	for o, by := range d.refs {
		if b.refs[o] += by; b.refs[o] == 0 {
			delete(b.refs, o)
		}
	}
}
