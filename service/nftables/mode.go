package nftables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
)

// Local is what the data plane must know of its node and cluster.
type Local struct {
	// NodeIPs are the addresses on which node ports are served.
	NodeIPs []netip.Addr
	// PodCIDRs are those of the whole cluster. Clients outside of them that use a
	// VIP are masqueraded. None of a family means that this is not known, and that
	// nobody is.
	PodCIDRs []netip.Prefix
}

// Mode is the data plane. Its methods are for one goroutine.
type Mode struct {
	conn  nft.Conn
	track conntrack.Flusher
	local Local
	// want is what each key asks for; count is how many keys ask for a place.
	want  map[model.Name]elements
	count map[place]int
	data  map[place]string
	owner map[place]model.Name
	// chains are those made in the kernel.
	chains map[nft.Family]map[string]bool
}

var _ reconcile.Target[model.Name, service.Plan] = (*Mode)(nil)

// New makes the data plane; the kernel is not touched before Sync.
func New(conn nft.Conn, track conntrack.Flusher) *Mode {
	m := &Mode{conn: conn, track: track}
	m.reset()
	return m
}

func (m *Mode) reset() {
	m.want, m.count, m.data, m.owner = map[model.Name]elements{}, map[place]int{}, map[place]string{}, map[place]model.Name{}
	m.chains = map[nft.Family]map[string]bool{nft.IPv4: {}, nft.IPv6: {}}
}

// SetLocal replaces the facts of the node; they take effect with the next Sync.
func (m *Mode) SetLocal(l Local) { m.local = l }

// change is one transaction of a family.
type change struct {
	batch nft.Batch
	// gone and new are the elements of slots, to find the flows they leave behind.
	gone, added map[place]string
}

func newChange() *change {
	return &change{batch: nft.Batch{Delete: map[string][]nft.Element{}, Add: map[string][]nft.Element{}}, gone: map[place]string{}, added: map[place]string{}}
}

func (c *change) del(p place, data string) {
	c.batch.Delete[p.set] = append(c.batch.Delete[p.set], nft.Element{Key: p.key, Data: data})
	c.gone[p] = data
}

func (c *change) add(p place, data string) {
	c.batch.Add[p.set] = append(c.batch.Add[p.set], nft.Element{Key: p.key, Data: data})
	c.added[p] = data
}

func (c *change) empty() bool {
	return len(c.batch.Delete)+len(c.batch.Add)+len(c.batch.Chains) == 0
}

// sort makes a change of equal content equal, and elements that go come before
// those that arrive at the same key, as Batch promises.
func (c *change) sort() {
	for _, m := range []map[string][]nft.Element{c.batch.Delete, c.batch.Add} {
		for _, list := range m {
			slices.SortFunc(list, func(a, b nft.Element) int { return cmp.Compare(a.Key, b.Key) })
		}
	}
}

// Apply implements reconcile.Target. When the transaction of all keys fails, each
// key is tried alone, so that one bad key stops no other.
func (m *Mode) Apply(ctx context.Context, set map[model.Name]service.Plan, del []model.Name) error {
	wanted := make(map[model.Name]*service.Plan, len(set)+len(del))
	for k, p := range set {
		wanted[k] = &p
	}
	for _, k := range del {
		wanted[k] = nil
	}
	err := m.transact(ctx, wanted)
	if err == nil || len(wanted) == 0 {
		return err
	}
	var conflicts reconcile.KeyErrors[model.Name]
	if errors.As(err, &conflicts) {
		return err
	}
	failed := reconcile.KeyErrors[model.Name]{}
	for _, k := range slices.SortedFunc(maps.Keys(wanted), model.Name.Compare) {
		if err := m.transact(ctx, map[model.Name]*service.Plan{k: wanted[k]}); err != nil {
			failed[k] = err
		}
	}
	switch len(failed) {
	case 0:
		return nil
	case len(wanted):
		return fmt.Errorf("nothing could be applied: %w", failed[slices.SortedFunc(maps.Keys(failed), model.Name.Compare)[0]])
	}
	return failed
}

// transact brings the plans of some keys into the kernel, all or none, but for
// keys whose places belong to another: these are left out and returned as errors.
func (m *Mode) transact(ctx context.Context, plans map[model.Name]*service.Plan) error {
	undo := m.save(plans)
	changes := map[nft.Family]*change{nft.IPv4: newChange(), nft.IPv6: newChange()}
	conflicts := reconcile.KeyErrors[model.Name]{}
	keys := slices.SortedFunc(maps.Keys(plans), model.Name.Compare)
	touched := map[place]string{} // places and what the kernel has there
	for _, k := range keys {
		m.release(k, touched)
	}
	for _, k := range keys {
		if p := plans[k]; p != nil {
			if err := m.claim(k, *p, touched, changes); err != nil {
				conflicts[k] = err
			}
		}
	}
	for p, before := range touched {
		c := changes[p.family]
		now, wanted := m.data[p]
		had := before != absent
		if had && wanted && before == now {
			continue
		}
		if had {
			c.del(p, before)
		}
		if wanted {
			c.add(p, now)
		}
	}
	if err := m.commit(ctx, changes); err != nil {
		undo()
		return err
	}
	if len(conflicts) > 0 {
		return conflicts
	}
	return nil
}

// absent marks a place that the kernel has nothing at; no data contains it.
const absent = "\x00absent"

// save returns a function that forgets what transact does to the books.
func (m *Mode) save(plans map[model.Name]*service.Plan) func() {
	want := map[model.Name]elements{}
	for k := range plans {
		if w, ok := m.want[k]; ok {
			want[k] = w
		}
	}
	chains := map[nft.Family]map[string]bool{nft.IPv4: maps.Clone(m.chains[nft.IPv4]), nft.IPv6: maps.Clone(m.chains[nft.IPv6])}
	return func() {
		scratch := map[place]string{}
		for k := range plans {
			m.release(k, scratch)
		}
		for k, w := range want {
			for p, data := range w {
				m.take(k, p, data, scratch)
			}
			m.want[k] = w
		}
		m.chains = chains
	}
}

// release takes a key's elements out of the books.
func (m *Mode) release(k model.Name, touched map[place]string) {
	for p, data := range m.want[k] {
		if _, ok := touched[p]; !ok {
			touched[p] = data
		}
		if m.count[p]--; m.count[p] == 0 {
			delete(m.count, p)
			delete(m.data, p)
			delete(m.owner, p)
		}
	}
	delete(m.want, k)
}

// take books one element for a key.
func (m *Mode) take(k model.Name, p place, data string, touched map[place]string) {
	if _, ok := touched[p]; !ok {
		touched[p] = absent
		if have, ok := m.data[p]; ok {
			touched[p] = have
		}
	}
	m.count[p]++
	m.data[p] = data
	m.owner[p] = k
}

// claim books a key's elements; two services cannot have the same frontend.
func (m *Mode) claim(k model.Name, plan service.Plan, touched map[place]string, changes map[nft.Family]*change) error {
	var chains []func()
	w := render(plan, func(f nft.Family, n int, nodePort bool) {
		if name := chainName(n, nodePort); !m.chains[f][name] {
			chains = append(chains, func() {
				if !m.chains[f][name] {
					m.chains[f][name] = true
					changes[f].batch.Chains = append(changes[f].batch.Chains, slotChain(n, nodePort))
				}
			})
		}
	})
	for p := range w {
		if other, ok := m.owner[p]; ok && p.set != setHairpin {
			return fmt.Errorf("%s belongs to service %s already", describe(p), other)
		}
	}
	for _, make := range chains {
		make()
	}
	for p, data := range w {
		m.take(k, p, data, touched)
	}
	m.want[k] = w
	return nil
}

// describe names a place in words for an error.
func describe(p place) string {
	t := table(p.family)
	for _, s := range t.Sets {
		if s.Name == p.set {
			return fmt.Sprintf("%s of %s", nft.KeyText(t.Family, s, p.key), p.set)
		}
	}
	return p.set
}

// commit sends the changes of both families, and then flushes the UDP flows that
// they leave behind.
func (m *Mode) commit(ctx context.Context, changes map[nft.Family]*change) error {
	for _, f := range nft.Families() {
		c := changes[f]
		if c.empty() && !c.batch.Base && !c.batch.Recreate {
			continue
		}
		c.sort()
		if err := m.conn.Commit(ctx, table(f), c.batch); err != nil {
			return err
		}
	}
	if err := m.flush(ctx, changes); err != nil {
		return fmt.Errorf("programmed, but old UDP flows may live on: %w", err)
	}
	return nil
}
