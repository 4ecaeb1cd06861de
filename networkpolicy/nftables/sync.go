package nftables

import (
	"context"
	"maps"
	"slices"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/networkpolicy"
)

// Sync implements reconcile.Target: it reads both tables, and commits only what differs, so
// that a restart with nothing new changes no element. The rules are replaced in the same
// transaction: no packet passes between the old and the new.
func (m *Mode) Sync(ctx context.Context, plans map[entryKey]entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sync(ctx, plans)
}

func (m *Mode) sync(ctx context.Context, plans map[entryKey]entry) error {
	failed := failures{}
	have, err := m.read(ctx)
	if err == nil {
		err = m.settle(ctx, plans, have, failed)
	}
	if nft.OtherThanRead(err) {
		// Something that Read does not look at is in the way. A table made anew is one
		// transaction as well.
		have.anew()
		clear(failed)
		err = m.settle(ctx, plans, have, failed)
	}
	m.synced = err == nil
	m.ring()
	return m.finish(err, failed)
}

// kernel is what was found.
type kernel struct {
	elements map[place]value
	state    map[nft.Family]nft.State
}

// anew forgets all that was found, so that the tables are made anew.
func (k *kernel) anew() {
	k.elements = map[place]value{}
	for f := range k.state {
		k.state[f] = nft.State{Exists: true}
	}
}

func (m *Mode) read(ctx context.Context) (kernel, error) {
	k := kernel{map[place]value{}, map[nft.Family]nft.State{}}
	for _, f := range nft.Families() {
		st, err := m.conn.Read(ctx, table(f))
		if err != nil {
			return k, err
		}
		if !st.Fits {
			st.Chains, st.Elements = nil, nil
		}
		for set, list := range st.Elements {
			for _, e := range list {
				k.elements[place{f, set, e.Key}] = value{e.Data, e.End}
			}
		}
		k.state[f] = st
	}
	return k, nil
}

// settle makes the plans hold in a kernel that has what is given.
func (m *Mode) settle(ctx context.Context, plans map[entryKey]entry, have kernel, failed failures) error {
	m.books, m.unsure = newBooks(), map[entryKey]struct{}{}
	d := m.whole(plans, have)
	err := m.commit(ctx, d)
	if err == nil || nft.Fatal(ctx, err) {
		return err
	}
	return m.isolate(ctx, plans, have, failed)
}

// whole drafts what makes exactly the plans hold.
func (m *Mode) whole(plans map[entryKey]entry, have kernel) *draft {
	d := newDraft(m.books)
	for k, e := range plans {
		d.turn(k, &e)
	}
	arrive, _ := d.objects()
	for _, o := range arrive {
		d.arrive(o)
	}
	d.compare(have.elements)
	d.base4all(have)
	d.dropStale(have)
	return d
}

// base4all has the tables hold what is fixed of them.
func (d *draft) base4all(have kernel) {
	for _, f := range nft.Families() {
		b, st := d.batches[f], have.state[f]
		b.Base, b.Recreate = true, st.Exists && !st.Fits
	}
}

// dropStale drops sets and chains that are ours and that nothing needs.
func (d *draft) dropStale(have kernel) {
	for _, f := range nft.Families() {
		b := d.batches[f]
		t := table(f)
		for _, name := range have.state[f].Chains {
			is := func(c nft.Chain) bool { return c.Name == name }
			fixed := slices.ContainsFunc(t.Chains, func(c nft.Chain) bool { return is(c) && !c.OnDemand })
			if !fixed && !slices.ContainsFunc(b.Chains, is) {
				b.DropChains = append(b.DropChains, name)
			}
		}
		for name := range have.state[f].Elements {
			is := func(s nft.Set) bool { return s.Name == name }
			if !slices.ContainsFunc(t.Sets, is) && !slices.ContainsFunc(b.Sets, is) {
				b.DropSets = append(b.DropSets, name)
			}
		}
		slices.Sort(b.DropChains)
		slices.Sort(b.DropSets)
	}
}

// isolate is the way on when the kernel refuses the transaction of a Sync: first all but
// the keys that change anything, then these in halves, so that the bad ones are found and
// all others hold. What nobody wants goes at once, so that nothing stays open. What keys
// that fail had stays as it is, with the chains that it needs.
func (m *Mode) isolate(ctx context.Context, plans map[entryKey]entry, have kernel, failed failures) error {
	wanted, touched := map[place]bool{}, []entryKey{}
	rest := newDraft(m.books)
	for k, e := range plans {
		same := true
		note := func(p place, v value) {
			old, ok := have.elements[p]
			wanted[p] = true
			same = same && ok && old == v
		}
		render(k, e, note, func(o object, p networkpolicy.Ports) {
			if o.kind == portsObject {
				portElements(o.family, p, note)
			}
		})
		if same {
			rest.turn(k, &e)
		} else {
			touched = append(touched, k)
			m.unsure[k] = struct{}{}
		}
	}
	arrive, _ := rest.objects()
	for _, o := range arrive {
		rest.arrive(o)
	}
	stale := maps.Clone(have.elements)
	maps.DeleteFunc(stale, func(p place, _ value) bool { _, kept := rest.after[p]; return wanted[p] && !kept })
	rest.compare(stale)
	rest.base4all(have)
	if err := m.commit(ctx, rest); err != nil {
		return err
	}
	slices.SortFunc(touched, compareKeys)
	return m.halve(ctx, touched, failed, func(keys []entryKey) *draft {
		d := newDraft(m.books)
		for _, k := range keys {
			e := plans[k]
			d.turn(k, &e)
		}
		arrive, _ := d.objects()
		for _, o := range arrive {
			d.arrive(o)
		}
		before := map[place]value{}
		for p := range d.after {
			if old, ok := have.elements[p]; ok {
				before[p] = old
			}
		}
		d.compare(before)
		return d
	})
}

// Text renders entries as nft text, for people.
func Text(entries map[entryKey]entry) string {
	m := New(nil, nil)
	d := m.whole(entries, kernel{})
	out := ""
	for _, f := range nft.Families() {
		b, t := d.batches[f], table(f)
		t.Sets = append(t.Sets, b.Sets...)
		out += t.Text(b.Add, b.Chains)
	}
	return out
}
