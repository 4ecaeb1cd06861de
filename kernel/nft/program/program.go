// Package program keeps nftables tables in step with plans: one plan for each key, such as a Service or an address. A
// feature says what a plan looks like in the kernel (Config.Render), and the package does the rest:
//
//   - It computes the difference between two plans, so that a change costs what has changed.
//   - At start it reads the kernel, and commits only what differs from the plans.
//   - When the kernel refuses a transaction, it halves it until the bad keys are found. All others are programmed.
//   - What the kernel has of a key that failed is unknown: the kernel is read before that key is tried again.
//   - After a foreign change (`nft flush ruleset`), Sync restores the tables.
//
// The caller retries failed keys, each with its own back-off; reconcile.Loop does.
//
// Invariants:
//   - A transaction takes the kernel from one complete state to the next.
//   - The record of what is in the kernel changes only after a commit has succeeded.
//   - What a table holds follows from the plans, so a restart can adopt what it finds.
package program

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/reconcile"
)

// Config is what a feature supplies. Conn, Table, Render and Compare must be set.
type Config[K comparable, P any] struct {
	Conn nft.Conn
	// Table returns the fixed part of a family's table.
	Table func(nft.Family) nft.Table
	// Render tells out everything that the plan of a key asks for. It must be pure, but it may follow facts that
	// change only together with a Sync.
	Render func(key K, plan P, out Output)
	// Compare orders keys, for equal transactions and messages.
	Compare func(a, b K) int
	// Facts, if not nil, returns sets that belong to no key, such as the addresses of the node. They are few, and
	// each Sync and each CommitFacts replaces them. Every such set of a family must be in the result.
	Facts func(nft.Family) map[string][]nft.Element
	// Inert, if not nil, says that elements of the set have no effect by themselves. While some keys fail, elements
	// that no plan asks for stay in such sets: a failed key may still need them.
	Inert func(set string) bool
	// Plans, if not nil, decides what each key gets, where keys compete. By default each gets what it asks for.
	Plans Plans[K, P]
	// Committed, if not nil, is told of each transaction that the kernel has taken. Plans has the previous state still.
	Committed func(Commit[K, P])
}

// Commit describes a transaction that the kernel has taken.
type Commit[K comparable, P any] struct {
	// Plans are those of the changed keys; nil where a key has none any more.
	Plans map[K]*P
	// Batches are what was done to the table of each family.
	Batches map[nft.Family]*nft.Batch
	// Whole says that it is part of a Sync.
	Whole bool
}

// Program is the plans of a feature in the kernel. Its methods must not be called concurrently.
type Program[K comparable, P any] struct {
	cfg   Config[K, P]
	plans Plans[K, P]
	// synced is false while the state of the kernel is not known.
	synced bool
	// refs counts the keys that need an object; lasting are the objects that stay until the next Sync.
	refs    map[Object]int
	lasting map[Object]bool
	// unsure are the wanted plans of keys that failed in a Sync: what the kernel has of them is not known.
	unsure map[K]P
}

// New makes a program. The kernel is not touched before the first Sync.
func New[K comparable, P any](cfg Config[K, P]) *Program[K, P] {
	p := &Program[K, P]{cfg: cfg, plans: cfg.Plans}
	if p.plans == nil {
		p.plans = &ownPlans[K, P]{}
	}
	p.reset()
	return p
}

// reset forgets what is in the kernel.
func (p *Program[K, P]) reset() {
	p.plans.Reset()
	p.refs, p.lasting, p.unsure = map[Object]int{}, map[Object]bool{}, map[K]P{}
}

// Synced says whether the state of the kernel is known.
func (p *Program[K, P]) Synced() bool { return p.synced }

// InForce returns the plans that are in the kernel. They must not be changed, and are valid until the next call.
func (p *Program[K, P]) InForce() map[K]P { return p.plans.InForce() }

// Wanted returns the plans of all keys as they were asked for last.
func (p *Program[K, P]) Wanted() map[K]P {
	out := maps.Clone(p.plans.Wanted())
	maps.Copy(out, p.unsure)
	return out
}

// Apply changes the plans of some keys and removes those of others, in one transaction if the kernel takes it. It
// returns the errors of keys that failed, while all others are programmed. After an error the state of the kernel is
// unknown, and the next Apply reads it.
func (p *Program[K, P]) Apply(ctx context.Context, set map[K]P, del []K) (reconcile.KeyErrors[K], error) {
	todo := make(map[K]*P, len(set)+len(del))
	for k, plan := range set {
		todo[k] = &plan
	}
	for _, k := range del {
		todo[k] = nil
	}
	if p.isUnknown(todo) {
		plans := p.Wanted()
		maps.Copy(plans, set)
		for _, k := range del {
			delete(plans, k)
		}
		return p.Sync(ctx, plans)
	}
	failed := reconcile.KeyErrors[K]{}
	err := p.halve(ctx, slices.SortedFunc(maps.Keys(todo), p.cfg.Compare), failed, func(keys []K) *draft[K, P] {
		part := make(map[K]*P, len(keys))
		for _, k := range keys {
			part[k] = todo[k]
		}
		return p.change(part)
	})
	if err == nil && len(todo) >= manyKeys && len(failed) >= len(todo) {
		// A Sync finds out whether the kernel takes anything: it begins with what is of no key.
		first := slices.MinFunc(slices.Collect(maps.Keys(failed)), p.cfg.Compare)
		err = fmt.Errorf("none of %d keys could be programmed: %w", len(todo), failed[first])
	}
	if err != nil {
		p.synced = false
		return nil, err
	}
	return failed, nil
}

// manyKeys is how many keys, all of a change, must fail before that counts as a fault of the node.
const manyKeys = 32

// isUnknown says whether the kernel must be read before these keys can be changed.
func (p *Program[K, P]) isUnknown(todo map[K]*P) bool {
	for k := range todo {
		if _, ok := p.unsure[k]; ok {
			return true
		}
	}
	return !p.synced
}

// change drafts what turns the plans in force of some keys into those wanted.
func (p *Program[K, P]) change(todo map[K]*P) *draft[K, P] {
	d := p.draft(p.plans.Change(todo))
	inForce := p.plans.InForce()
	for k, plan := range d.plans.Plans() {
		if old, ok := inForce[k]; ok {
			p.cfg.Render(k, old, removal[K, P]{d})
		}
		if plan != nil {
			p.cfg.Render(k, *plan, addition[K, P]{d})
		}
	}
	arrive, leave := d.objects()
	d.arrive(arrive)
	d.leave(leave)
	d.compare()
	return d
}

// halve commits drafts of the keys, see reconcile.Halve.
func (p *Program[K, P]) halve(ctx context.Context, keys []K, failed reconcile.KeyErrors[K],
	drafted func([]K) *draft[K, P]) error {
	return reconcile.Halve(keys, failed, func(part []K) error {
		d := drafted(part)
		if err := p.commit(ctx, d); err != nil {
			return err
		}
		maps.Copy(failed, d.plans.Failed())
		return nil
	}, func(err error) bool { return nft.Fatal(ctx, err) })
}

// commit sends a draft, and records it as what is in the kernel.
func (p *Program[K, P]) commit(ctx context.Context, d *draft[K, P]) error {
	if changes := d.changes(); len(changes) > 0 {
		if err := p.cfg.Conn.CommitAll(ctx, changes...); err != nil {
			return err
		}
	}
	if p.cfg.Committed != nil {
		p.cfg.Committed(Commit[K, P]{Plans: d.plans.Plans(), Batches: d.batches, Whole: d.whole})
	}
	for k := range d.plans.Plans() {
		delete(p.unsure, k)
	}
	for o, n := range d.needs {
		switch {
		case o.Lasting:
			p.lasting[o] = true
		case p.refs[o]+n.by == 0:
			delete(p.refs, o)
		default:
			p.refs[o] += n.by
		}
	}
	d.plans.Accept()
	return nil
}

// CommitFacts replaces the sets of Config.Facts. It must not be called before a Sync has succeeded.
func (p *Program[K, P]) CommitFacts(ctx context.Context) error {
	var changes []nft.Change
	for _, f := range nft.Families() {
		sets := p.cfg.Facts(f)
		changes = append(changes, nft.Change{Table: p.cfg.Table(f), Batch: nft.Batch{
			Clear: slices.Sorted(maps.Keys(sets)), Add: sets}})
	}
	return p.cfg.Conn.CommitAll(ctx, changes...)
}

// Resync is Sync with the plans that were wanted last.
func (p *Program[K, P]) Resync(ctx context.Context) (reconcile.KeyErrors[K], error) {
	return p.Sync(ctx, p.Wanted())
}

// Watch reports foreign changes to the tables, until ctx ends.
func (p *Program[K, P]) Watch(ctx context.Context) (<-chan struct{}, error) {
	return p.cfg.Conn.Watch(ctx, p.cfg.Table(nft.IPv4).Name)
}

// Remove takes both tables out of the kernel.
func (p *Program[K, P]) Remove(ctx context.Context) error {
	p.synced = false
	p.reset()
	var errs []error
	for _, f := range nft.Families() {
		errs = append(errs, p.cfg.Conn.Remove(ctx, p.cfg.Table(f)))
	}
	return errors.Join(errs...)
}

// Remains names the tables that are in the kernel.
func (p *Program[K, P]) Remains(ctx context.Context) ([]string, error) {
	var tables []nft.Table
	for _, f := range nft.Families() {
		tables = append(tables, p.cfg.Table(f))
	}
	return nft.Remains(ctx, p.cfg.Conn, tables...)
}

// Fresh returns the batches that bring the plans into an empty kernel. It changes nothing.
func (p *Program[K, P]) Fresh(plans map[K]P) map[nft.Family]*nft.Batch {
	d := p.draft(p.plans.Change(pointers(plans)))
	d.adopt(kernel{})
	d.base(kernel{})
	return d.batches
}

func pointers[K comparable, P any](plans map[K]P) map[K]*P {
	out := make(map[K]*P, len(plans))
	for k, plan := range plans {
		out[k] = &plan
	}
	return out
}
