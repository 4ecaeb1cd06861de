package program

import (
	"context"
	"maps"
	"slices"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/reconcile"
)

// Sync makes exactly the plans hold. It reads both tables and commits only what differs, so a restart with nothing new
// changes no element. The fixed rules are replaced in the same transaction: no packet passes between the old and the
// new. It returns the errors of keys that failed, while all others are programmed. After an error the state of the
// kernel is unknown.
func (p *Program[K, P]) Sync(ctx context.Context, plans map[K]P) (reconcile.KeyErrors[K], error) {
	failed := reconcile.KeyErrors[K]{}
	have, err := p.read(ctx)
	if err == nil {
		err = p.settle(ctx, plans, have, failed)
	}
	if nft.IsStateMismatch(err) {
		// Something that Read does not look at is in the way. A table made anew is one transaction as well.
		have.recreate()
		clear(failed)
		err = p.settle(ctx, plans, have, failed)
	}
	if p.synced = err == nil; !p.synced {
		p.unsure = maps.Clone(plans)
		return nil, err
	}
	return failed, nil
}

// kernel is what was found.
type kernel struct {
	elements map[Place]Value
	state    map[nft.Family]nft.State
	// sets lists the names of sets that were found.
	sets map[nft.Family][]string
	// recreated says that the tables are to be made anew, whatever was found.
	recreated bool
}

// recreate forgets what was found, so that the tables are made anew.
func (k *kernel) recreate() {
	k.elements, k.sets, k.recreated = map[Place]Value{}, nil, true
	for f := range k.state {
		k.state[f] = nft.State{Exists: true}
	}
}

// read returns what the kernel has, without the sets of Config.Facts.
func (p *Program[K, P]) read(ctx context.Context) (kernel, error) {
	k := kernel{state: map[nft.Family]nft.State{}, sets: map[nft.Family][]string{}}
	elements, size := map[nft.Family]map[string][]nft.Element{}, 0
	for _, f := range nft.Families() {
		st, err := p.cfg.Conn.Read(ctx, p.cfg.Table(f))
		if err != nil {
			return k, err
		}
		if !st.Exists || !st.Fits {
			st.Chains, st.Elements = nil, nil
		}
		elements[f], st.Elements = st.Elements, nil
		k.state[f] = st
		for set, list := range elements[f] {
			k.sets[f] = append(k.sets[f], set)
			size += len(list)
		}
	}
	k.elements = make(map[Place]Value, size)
	for f, bySet := range elements {
		facts := p.facts(f)
		for set, list := range bySet {
			if _, ok := facts[set]; ok {
				continue // replaced as a whole
			}
			for _, e := range list {
				k.elements[Place{f, set, e.Key}] = Value{e.Data, e.End}
			}
		}
	}
	return k, nil
}

func (p *Program[K, P]) facts(f nft.Family) map[string][]nft.Element {
	if p.cfg.Facts == nil {
		return nil
	}
	return p.cfg.Facts(f)
}

// settle makes the plans hold in a kernel that has what is given.
func (p *Program[K, P]) settle(ctx context.Context, plans map[K]P, have kernel, failed reconcile.KeyErrors[K]) error {
	p.reset()
	d := p.draft(p.plans.Change(pointers(plans)))
	touched := d.adopt(have)
	d.base(have)
	d.dropStale(have)
	err := p.commit(ctx, d)
	if err == nil {
		maps.Copy(failed, d.plans.Failed())
		return nil
	}
	if nft.Fatal(ctx, err) {
		return err
	}
	return p.isolate(ctx, d, have, touched, failed)
}

// adopt fills the batches of an empty program's draft with the difference to the kernel, and returns the keys that are
// part of it. Elements that no key asks for are deleted.
func (d *draft[K, P]) adopt(have kernel) (touched []K) {
	a := &adoption[K, P]{draft: d, have: have.elements, replaced: map[Place]bool{}}
	for k, plan := range d.plans.Plans() {
		if a.differs = false; plan != nil {
			d.program.cfg.Render(k, *plan, a)
		}
		if a.differs {
			touched = append(touched, k)
		}
	}
	arrive, _ := d.objects()
	d.make(arrive)
	for p, v := range have.elements {
		if !a.replaced[p] {
			d.del(p, v)
		}
	}
	return touched
}

// make adds the sets and chains of objects, whose elements are there or are added already.
func (d *draft[K, P]) make(list []Object) {
	for _, o := range list {
		b, parts := d.batches[o.Family], d.needs[o].parts()
		b.Sets, b.Chains = append(b.Sets, parts.Sets...), append(b.Chains, parts.Chains...)
	}
}

// adoption compares what a plan asks for with what was found. Elements that are right are taken out of have.
type adoption[K comparable, P any] struct {
	*draft[K, P]
	have     map[Place]Value
	replaced map[Place]bool
	// differs says that the kernel has something of the plan otherwise.
	differs bool
}

func (a *adoption[K, P]) Element(p Place, v Value) { a.differs = a.visit(p, v) || a.differs }

func (a *adoption[K, P]) visit(p Place, v Value) (differs bool) {
	old, ok := a.have[p]
	switch {
	case !ok:
		a.add(p, v)
	case old != v:
		a.del(p, old)
		a.add(p, v)
		a.replaced[p] = true
	default:
		delete(a.have, p)
		return false
	}
	return true
}

func (a *adoption[K, P]) Need(o Object, parts func() Parts) {
	n, isNew := a.need(o, 1, parts)
	if isNew {
		for _, item := range parts().Elements {
			p, v := item.at(o.Family)
			n.differs = a.visit(p, v) || n.differs
		}
	}
	a.differs = a.differs || n.differs
}

// base adds what each Sync sets: the fixed part of the tables, and the facts.
func (d *draft[K, P]) base(have kernel) {
	d.whole = true
	for _, f := range nft.Families() {
		b, st := d.batches[f], have.state[f]
		b.Base, b.Recreate = true, st.Exists && !st.Fits
		facts := d.program.facts(f)
		b.Clear = slices.Sorted(maps.Keys(facts))
		maps.Copy(b.Add, facts)
	}
}

// dropStale drops sets and chains in our tables that nothing needs.
func (d *draft[K, P]) dropStale(have kernel) {
	for _, f := range nft.Families() {
		b, t := d.batches[f], d.program.cfg.Table(f)
		needed := map[string]bool{}
		for _, c := range t.Chains {
			needed[c.Name] = !c.OnDemand
		}
		for _, c := range b.Chains {
			needed[c.Name] = true
		}
		b.DropChains = stale(have.state[f].Chains, needed)
		needed = map[string]bool{}
		for _, s := range slices.Concat(t.Sets, b.Sets) {
			needed[s.Name] = true
		}
		b.DropSets = stale(have.sets[f], needed)
	}
}

// stale returns the names that are not needed, in order.
func stale(names []string, needed map[string]bool) []string {
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return needed[name] })
	slices.Sort(names)
	return names
}

// isolate is how a Sync goes on when the kernel refuses its transaction. First everything is committed but the keys
// that change something, then those in halves, so that the bad keys are found and all others are programmed. What no
// key asks for goes at once, unless it is inert. What bad keys had stays, with the chains that it needs.
func (p *Program[K, P]) isolate(ctx context.Context, all *draft[K, P], have kernel, touched []K,
	failed reconcile.KeyErrors[K]) error {
	if !have.recreated { // adopt has changed it
		var err error
		if have, err = p.read(ctx); err != nil {
			return err
		}
	}
	if err := p.commit(ctx, p.untouched(all, have, touched)); err != nil {
		return err
	}
	maps.Copy(failed, all.plans.Failed())
	for _, k := range touched {
		p.unsure[k] = *all.plans.Given()[k]
	}
	slices.SortFunc(touched, p.cfg.Compare)
	return p.halve(ctx, touched, failed, func(keys []K) *draft[K, P] {
		d := p.draft(all.plans.Part(keys))
		for k, plan := range d.plans.Plans() {
			p.cfg.Render(k, *plan, addition[K, P]{d})
		}
		arrive, _ := d.objects()
		d.arrive(arrive)
		for place := range d.after {
			if old, ok := have.elements[place]; ok {
				d.before[place] = old
			}
		}
		d.compare()
		return d
	})
}

// untouched drafts what a Sync does beside changing the keys given.
func (p *Program[K, P]) untouched(all *draft[K, P], have kernel, touched []K) *draft[K, P] {
	later := make(map[K]bool, len(touched))
	for _, k := range touched {
		later[k] = true
	}
	var keys []K
	wanted := places[K, P]{p.draft(all.plans.Part(nil)), map[Place]bool{}}
	for k, plan := range all.plans.Plans() {
		p.cfg.Render(k, *plan, wanted)
		if !later[k] {
			keys = append(keys, k)
		}
	}
	d := p.draft(all.plans.Part(keys))
	for k, plan := range d.plans.Plans() {
		p.cfg.Render(k, *plan, objectsOnly[K, P]{d})
	}
	arrive, _ := d.objects()
	d.make(arrive)
	for place, v := range have.elements {
		if !wanted.at[place] && (p.cfg.Inert == nil || !p.cfg.Inert(place.Set)) {
			d.del(place, v)
		}
	}
	d.base(have)
	return d
}

// places collects where elements of plans are.
type places[K comparable, P any] struct {
	*draft[K, P]
	at map[Place]bool
}

func (w places[K, P]) Element(p Place, _ Value) { w.at[p] = true }

func (w places[K, P]) Need(o Object, parts func() Parts) {
	if _, isNew := w.need(o, 1, parts); isNew {
		for _, item := range parts().Elements {
			p, _ := item.at(o.Family)
			w.at[p] = true
		}
	}
}

// objectsOnly takes the objects of plans whose elements are right.
type objectsOnly[K comparable, P any] struct{ *draft[K, P] }

func (objectsOnly[K, P]) Element(Place, Value) {}

func (x objectsOnly[K, P]) Need(o Object, parts func() Parts) { x.need(o, 1, parts) }
