package nftables

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
)

// Sync implements reconcile.Target: it reads both tables, and commits only what
// differs, so that a restart with nothing new changes no element. The rules, of
// which there are a few, are replaced in the same transaction: no packet passes
// between the old and the new.
func (m *Mode) Sync(ctx context.Context, plans map[model.Name]service.Plan) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sync(ctx, plans)
}

func (m *Mode) sync(ctx context.Context, plans map[model.Name]service.Plan) error {
	failed := reconcile.KeyErrors[model.Name]{}
	have, err := m.read(ctx)
	if err == nil {
		err = m.settle(ctx, plans, have, failed)
	}
	if nft.OtherThanRead(err) {
		// Something that Read does not look at is in the way. A table made anew is
		// one transaction as well.
		have.anew()
		clear(failed)
		err = m.settle(ctx, plans, have, failed)
	}
	m.synced = err == nil
	return m.finish(ctx, err, failed)
}

// settle makes the plans hold in a kernel that has what is given.
func (m *Mode) settle(ctx context.Context, plans map[model.Name]service.Plan, have kernel,
	failed reconcile.KeyErrors[model.Name]) error {
	m.books = newBooks()
	m.unsure = map[model.Name]struct{}{}
	keys := slices.SortedFunc(maps.Keys(plans), model.Name.Compare)
	d := m.newDraft(m.books)
	for _, k := range keys {
		p := plans[k]
		d.claim(k, &p)
	}
	d.fixed(have, m.local)
	touched := d.adopt(have, keys)
	err := m.commit(ctx, d)
	if err == nil {
		maps.Copy(failed, d.Conflicts)
		return nil
	}
	if nft.Fatal(ctx, err) {
		return err
	}
	return m.isolate(ctx, d, have, touched, failed)
}

// kernel is what was found.
type kernel struct {
	elements map[place]string
	state    map[nft.Family]nft.State
}

// anew forgets all that was found, so that the tables are made anew.
func (k *kernel) anew() {
	k.elements = map[place]string{}
	for f := range k.state {
		k.state[f] = nft.State{Exists: true}
	}
}

// localNames are the sets that follow from the node, which are set anew as a whole.
func localNames() []string { return []string{setNodeIPs, setPodCIDRs, setOwnCIDRs} }

func (m *Mode) read(ctx context.Context) (kernel, error) {
	k := kernel{map[place]string{}, map[nft.Family]nft.State{}}
	for _, f := range nft.Families() {
		st, err := m.conn.Read(ctx, m.lay.table(f))
		if err != nil {
			return k, err
		}
		if st.Exists && st.Fits {
			for set, list := range st.Elements {
				if slices.Contains(localNames(), set) {
					continue // set anew, see fixed
				}
				for _, e := range list {
					k.elements[place{f, set, e.Key}] = cmp.Or(e.Data, e.End)
				}
			}
		} else {
			st.Chains = nil
		}
		st.Elements = nil
		k.state[f] = st
	}
	return k, nil
}

// fixed adds to the draft what every Sync sets: rules, and what follows from the
// node; and chains that are ours and stale are dropped.
func (d *draft) fixed(have kernel, l Local) {
	for _, f := range nft.Families() {
		b, st := d.batches[f], have.state[f]
		b.Base, b.Recreate = true, st.Exists && !st.Fits
		b.Clear = localNames()
		maps.Copy(b.Add, localSets(f, l))
		for _, name := range st.Chains {
			known := slices.ContainsFunc(d.lay.table(f).Chains, func(x nft.Chain) bool { return x.Name == name })
			if !known && !d.chains[f][name] {
				b.DropChains = append(b.DropChains, name)
			}
		}
	}
}

// adopt fills the batches with the difference to the kernel, and returns the keys
// that have a part in it. Elements that are right are taken out of have. Those that
// nobody wants are deleted.
func (d *draft) adopt(have kernel, keys []model.Name) (touched []model.Name) {
	d.forget = true
	replaced := map[place]bool{}
	visit := func(p place, data string) (changed bool) {
		old, ok := have.elements[p]
		switch {
		case !ok:
			d.add(p, data)
			d.arrives(p)
		case old != data:
			d.del(p, old)
			d.add(p, data)
			replaced[p] = true
		default:
			delete(have.elements, p)
			return false
		}
		return true
	}
	for _, k := range keys {
		changed := false
		d.lay.render(k, *d.Plans[k], func(p place, data string) { changed = visit(p, data) || changed }, noChain)
		if changed {
			touched = append(touched, k)
		}
	}
	for at := range d.common {
		visit(at, "")
	}
	for p, data := range have.elements {
		if !replaced[p] {
			d.del(p, data)
		}
	}
	return touched
}

// isolate is the way on when the kernel refuses the transaction of a Sync: first
// all but the keys that change anything, then these in halves, so that the bad ones
// are found and all others served.
func (m *Mode) isolate(ctx context.Context, whole *draft, have kernel, touched []model.Name,
	failed reconcile.KeyErrors[model.Name]) error {
	if err := m.commit(ctx, m.untouched(whole, have, touched)); err != nil {
		return err
	}
	maps.Copy(failed, whole.Conflicts)
	for _, k := range touched {
		m.Want[k], m.unsure[k] = *whole.Given[k], struct{}{}
	}
	return m.halve(ctx, touched, failed, func(keys []model.Name) *draft {
		d := m.newDraft(m.books)
		before, after := map[place]string{}, map[place]string{}
		for _, k := range keys {
			d.inherit(whole, k)
			d.lay.render(k, *d.Plans[k], func(p place, data string) {
				after[p] = data
				if old, ok := have.elements[p]; ok {
					before[p] = old
				}
			}, noChain)
		}
		for at := range d.common {
			after[at] = "" // adding what is there is no error
		}
		d.compare(before, after)
		return d
	})
}

// untouched drafts what a Sync does beside changing the keys given. Ways into slots
// that nobody wants are closed; the slots themselves stay, unreachable, until the
// next Sync: a key that turns out to be bad may still be served by them.
func (m *Mode) untouched(whole *draft, have kernel, touched []model.Name) *draft {
	d := m.newDraft(m.books)
	wanted, later := map[place]bool{}, make(map[model.Name]bool, len(touched))
	for _, k := range touched {
		later[k] = true
	}
	for k, p := range whole.Plans {
		if later[k] {
			d.lay.render(k, *p, func(p place, _ string) { wanted[p] = true }, noChain)
			continue
		}
		d.inherit(whole, k)
	}
	d.fixed(have, m.local)
	for _, b := range d.batches {
		b.DropChains = nil
	}
	for at := range d.common {
		d.add(at, "")
	}
	for p, data := range have.elements {
		if !keepsSlots(p.set) && p.set != setHairpin && p.set != setLinked && !wanted[p] {
			d.del(p, data)
		}
	}
	return d
}

// inherit claims for a key what another draft had for it.
func (d *draft) inherit(from *draft, k model.Name) {
	d.claim(k, from.Plans[k])
	d.Given[k] = from.Given[k]
	if err, ok := from.Conflicts[k]; ok {
		d.Conflicts[k] = err
	}
}

// Text renders plans as nft text, for people.
func Text(plans map[model.Name]service.Plan, l service.Local) string {
	return text(layout{name: TableName}, plans, l)
}

// TextBeside is Text of what is around IPVS, see Beside.
func TextBeside(plans map[model.Name]service.Plan, l service.Local, whole func(model.Name) bool) string {
	return text(layout{name: BesideTableName, beside: true, whole: whole}.with(l), plans, l)
}

func text(lay layout, plans map[model.Name]service.Plan, l service.Local) string {
	out := ""
	d := (&Mode{lay: lay}).newDraft(newBooks())
	keys := slices.SortedFunc(maps.Keys(plans), model.Name.Compare)
	for _, k := range keys {
		p := plans[k]
		d.claim(k, &p)
	}
	d.fixed(kernel{}, l)
	d.adopt(kernel{}, keys)
	for _, f := range nft.Families() {
		b := d.batches[f]
		slices.SortFunc(b.Chains, func(x, y nft.Chain) int { return chainOrder(x.Name, y.Name) })
		out += lay.table(f).Text(b.Add, b.Chains)
	}
	return out
}

// chainOrder sorts chains for people: by kind, then by number.
func chainOrder(a, b string) int {
	split := func(s string) (string, int) {
		i := strings.IndexAny(s, "0123456789")
		n, kind := 0, s[:i]
		rest := s[i:]
		if j := strings.IndexByte(rest, '-'); j >= 0 {
			kind, rest = kind+rest[j:], rest[:j]
		}
		n, _ = strconv.Atoi(rest)
		return kind, n
	}
	kindA, numberA := split(a)
	kindB, numberB := split(b)
	return cmp.Or(cmp.Compare(kindA, kindB), cmp.Compare(numberA, numberB))
}
