// Package programtest is the crash-recovery test of every feature that keeps its nftables tables by package program. It
// runs on the kernel, in network namespaces: processes are killed at any moment, others change the tables, and the
// kernel refuses transactions. In the end the tables must be what a fresh start would make.
package programtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/reconcile"
)

// Feature is what is tested.
type Feature[K comparable, P any] struct {
	// Start returns the feature as a process that has just started.
	Start func(nft.Conn) reconcile.Target[K, P]
	// Table is the fixed part of its tables.
	Table func(nft.Family) nft.Table
	// Draw returns random plans, of keys that recur.
	Draw func(*rand.Rand) map[K]P
	// Equal compares two plans of one key.
	Equal func(a, b P) bool
}

// steps is how many faults there are in one run.
const steps = 60

// Run puts the feature through a random sequence of changes and faults.
func Run[K comparable, P any](t *testing.T, f Feature[K, P]) {
	testnet.Need(t, "nft")
	for seed := range uint64(2) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, f, seed)
			for range steps {
				r.step()
				if t.Failed() {
					t.Fatalf("after these steps:\n%s", strings.Join(r.log, "\n"))
				}
			}
		})
	}
}

// rig is a feature at work on a kernel, and another kernel that shows what a fresh start makes.
type rig[K comparable, P any] struct {
	Feature[K, P]
	t         *testing.T
	rand      *rand.Rand
	ns, other *testnet.NS
	conn      *faulty
	fresh     nft.Conn
	foreign   nft.Conn // as another program of the node
	target    reconcile.Target[K, P]
	plans     map[K]P
	log       []string
}

func newRig[K comparable, P any](t *testing.T, f Feature[K, P], seed uint64) *rig[K, P] {
	r := &rig[K, P]{Feature: f, t: t, rand: rand.New(rand.NewPCG(seed, 16)), ns: testnet.New(t, "node"),
		other: testnet.New(t, "fresh"), plans: map[K]P{}}
	r.conn, r.fresh, r.foreign = &faulty{Conn: kernelOf(t, r.ns)}, kernelOf(t, r.other), kernelOf(t, r.ns)
	r.start()
	return r
}

func kernelOf(t *testing.T, ns *testnet.NS) *nft.Kernel {
	t.Helper()
	k, err := nft.NewKernel(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// faulty is a Conn with faults.
type faulty struct {
	nft.Conn
	// refuse, if not nil, may refuse a transaction.
	refuse func([]nft.Change) error
	// lost, if not nil, is returned although the kernel has taken the transaction.
	lost error
}

func (c *faulty) CommitAll(ctx context.Context, changes ...nft.Change) error {
	if c.refuse != nil {
		if err := c.refuse(changes); err != nil {
			return err
		}
	}
	if err := c.Conn.CommitAll(ctx, changes...); err != nil {
		return err
	}
	return c.lost
}

// start has a new process take over.
func (r *rig[K, P]) start() {
	r.t.Helper()
	r.conn.refuse, r.conn.lost = nil, nil
	r.target = r.Start(r.conn)
	r.sync()
}

func (r *rig[K, P]) sync() {
	r.t.Helper()
	if err := r.target.Sync(r.t.Context(), maps.Clone(r.plans)); err != nil {
		r.t.Error(err)
	}
	r.check(true)
}

// change draws other plans, and applies what differs.
func (r *rig[K, P]) change() error {
	next, set, del := r.Draw(r.rand), map[K]P{}, []K{}
	for k, p := range next {
		if old, ok := r.plans[k]; !ok || !r.Equal(old, p) {
			set[k] = p
		}
	}
	for k := range r.plans {
		if _, ok := next[k]; !ok {
			del = append(del, k)
		}
	}
	r.plans = next
	return r.target.Apply(r.t.Context(), set, del)
}

// step is a change or a fault, and what follows it.
func (r *rig[K, P]) step() {
	kinds := []struct {
		name string
		run  func()
	}{
		{"change", func() { r.must(r.change()); r.check(false) }},
		{"kill", func() { r.start() }},
		{"kill, and others change", func() { r.plans = r.Draw(r.rand); r.start() }},
		{"kill before a commit", func() { r.killed(func() { r.conn.refuse = refuseAll(context.Canceled) }) }},
		{"kill behind a commit", func() { r.killed(func() { r.conn.lost = context.Canceled }) }},
		{"flush ruleset", r.flush},
		{"elements are deleted", func() { r.disturb(r.deleteElements) }},
		{"elements are added", func() { r.disturb(r.addElements) }},
		{"a table of another layout", func() { r.disturb(r.replaceTable) }},
		{"elements are refused", func() { r.refused(r.change) }},
		{"elements are refused at start", func() {
			r.refused(func() error {
				r.plans = r.Draw(r.rand)
				r.target = r.Start(r.conn)
				return r.target.Sync(r.t.Context(), maps.Clone(r.plans))
			})
		}},
		{"a fault of the node", r.nodeFault},
	}
	k := kinds[r.rand.IntN(len(kinds))]
	r.log = append(r.log, k.name)
	k.run()
}

func (r *rig[K, P]) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Error(err)
	}
}

func refuseAll(err error) func([]nft.Change) error { return func([]nft.Change) error { return err } }

// killed has a process end in the middle of a change.
func (r *rig[K, P]) killed(how func()) {
	how()
	_ = r.change() // the process hears of nothing any more
	r.start()
}

// flush is what operators do; it must be seen, and repaired by a Sync.
func (r *rig[K, P]) flush() {
	seen, err := r.conn.Watch(r.t.Context(), r.Table(nft.IPv4).Name)
	r.must(err)
	r.ns.Run("nft", "flush", "ruleset")
	select {
	case <-seen:
	case <-time.After(20 * time.Second):
		r.t.Error("the flush was not seen")
	}
	r.sync()
}

// disturb changes the tables behind the feature's back, which must then repair them by a Sync, or by an Apply that
// fails and the Sync that follows it.
func (r *rig[K, P]) disturb(how func()) {
	how()
	if r.rand.IntN(2) == 0 {
		_ = r.change()
	}
	r.sync()
}

// elements are those of the tables, in no order.
func (r *rig[K, P]) elements(conn nft.Conn, do func(t nft.Table, set string, e nft.Element)) {
	for _, f := range nft.Families() {
		st, err := conn.Read(r.t.Context(), r.Table(f))
		r.must(err)
		for _, set := range slices.Sorted(maps.Keys(st.Elements)) {
			list := st.Elements[set]
			slices.SortFunc(list, func(a, b nft.Element) int { return cmp.Compare(a.Key, b.Key) })
			for _, e := range list {
				do(r.Table(f), set, e)
			}
		}
	}
}

func (r *rig[K, P]) deleteElements() {
	r.elements(r.foreign, func(t nft.Table, set string, e nft.Element) {
		if r.rand.IntN(4) == 0 {
			_ = r.foreign.Commit(r.t.Context(), t, nft.Batch{Delete: map[string][]nft.Element{set: {e}}})
		}
	})
}

// addElements adds elements of other plans, where the kernel takes them.
func (r *rig[K, P]) addElements() {
	r.makeFresh(r.Draw(r.rand))
	r.elements(r.fresh, func(t nft.Table, set string, e nft.Element) {
		if r.rand.IntN(4) == 0 {
			_ = r.foreign.Commit(r.t.Context(), t, nft.Batch{Add: map[string][]nft.Element{set: {e}}})
		}
	})
}

func (r *rig[K, P]) replaceTable() {
	t := r.Table(nft.Families()[r.rand.IntN(2)])
	t.Chains = nil
	for i := range t.Sets {
		t.Sets[i].Key = append([]nft.Type{nft.Proto}, t.Sets[i].Key...)
	}
	r.must(r.foreign.Commit(r.t.Context(), t, nft.Batch{Recreate: true}))
}

// refused has the kernel refuse some elements: their keys fail, and no other.
func (r *rig[K, P]) refused(change func() error) {
	salt := r.rand.IntN(7)
	isBad := func(set string, e nft.Element) bool {
		sum := salt
		for _, b := range []byte(set + e.Key) {
			sum += int(b)
		}
		return sum%7 == 0
	}
	facts := r.factSets()
	r.conn.refuse = func(changes []nft.Change) error {
		for _, c := range changes {
			for set, list := range c.Batch.Add {
				if slices.ContainsFunc(list, func(e nft.Element) bool { return !facts[set] && isBad(set, e) }) {
					return fmt.Errorf("refused: %w", unix.EINVAL)
				}
			}
		}
		return nil
	}
	err := change()
	var failed reconcile.KeyErrors[K]
	if err != nil && !errors.As(err, &failed) {
		r.log = append(r.log, err.Error())
		r.start() // everything was refused
		return
	}
	r.others(failed)
	r.conn.refuse = nil
	set, del := map[K]P{}, []K{}
	for k := range failed {
		if p, ok := r.plans[k]; ok {
			set[k] = p
		} else {
			del = append(del, k)
		}
	}
	if len(failed) > 0 {
		r.must(r.target.Apply(r.t.Context(), set, del))
	}
	r.check(false)
}

// factSets are the sets that have elements when there are no plans.
func (r *rig[K, P]) factSets() map[string]bool {
	r.makeFresh(map[K]P{})
	out := map[string]bool{}
	r.elements(r.fresh, func(_ nft.Table, set string, _ nft.Element) { out[set] = true })
	return out
}

// others says that what keys that have not failed ask for is there.
func (r *rig[K, P]) others(failed map[K]error) {
	r.t.Helper()
	good := maps.Clone(r.plans)
	for k := range failed {
		delete(good, k)
	}
	r.makeFresh(good)
	type at struct {
		family   nft.Family
		set, key string
	}
	have := map[at]bool{}
	r.elements(r.foreign, func(t nft.Table, set string, e nft.Element) { have[at{t.Family, set, e.Key}] = true })
	r.elements(r.fresh, func(t nft.Table, set string, e nft.Element) {
		if !have[at{t.Family, set, e.Key}] {
			r.t.Errorf("%d other keys failed, and element %q of set %s is missing", len(failed), e.Key, set)
		}
	})
}

// nodeFault has the kernel refuse whatever comes, which is no fault of a key.
func (r *rig[K, P]) nodeFault() {
	fault := []error{unix.EPERM, unix.ENOBUFS, unix.ENOENT}[r.rand.IntN(3)]
	r.conn.refuse = refuseAll(fault)
	var failed reconcile.KeyErrors[K]
	if err := r.target.Sync(r.t.Context(), maps.Clone(r.plans)); !errors.Is(err, fault) || errors.As(err, &failed) {
		r.t.Errorf("a fault of the node gave %v", err)
	}
	r.conn.refuse = nil
	if r.rand.IntN(2) == 0 {
		r.must(r.change()) // of some keys, and the others are programmed all the same
		r.check(false)
		return
	}
	r.sync()
}

// makeFresh has the other kernel hold what a fresh start makes of the plans.
func (r *rig[K, P]) makeFresh(plans map[K]P) {
	r.t.Helper()
	for _, f := range nft.Families() {
		r.must(r.fresh.Remove(r.t.Context(), r.Table(f)))
	}
	r.must(r.Start(r.fresh).Sync(r.t.Context(), maps.Clone(plans)))
}

// check compares the tables with those of a fresh start. Until a Sync there may be chains that nothing needs.
func (r *rig[K, P]) check(synced bool) {
	r.t.Helper()
	r.makeFresh(r.plans)
	if got, want := r.state(r.foreign), r.state(r.fresh); got != want {
		r.t.Errorf("the kernel has\n%s\nand a fresh start makes\n%s", got, want)
	}
	if !synced {
		return
	}
	for _, f := range nft.Families() {
		name := []string{f.String(), r.Table(f).Name}
		if got, want := listed(r.ns, name), listed(r.other, name); got != want {
			r.t.Errorf("nft lists\n%s\nand after a fresh start\n%s", got, want)
		}
	}
}

// state prints the elements of both tables.
func (r *rig[K, P]) state(conn nft.Conn) string {
	var out strings.Builder
	r.elements(conn, func(t nft.Table, set string, e nft.Element) { fmt.Fprintf(&out, "%s %s %q\n", t.Family, set, e) })
	return out.String()
}

// listed is what nft lists of a table without elements, with sets and chains in order.
func listed(ns *testnet.NS, name []string) string {
	text := ns.Run("nft", append([]string{"-s", "-t", "-y", "list", "table"}, name...)...)
	_, text, _ = strings.Cut(text, "{\n")
	blocks := strings.Split(strings.TrimSuffix(strings.TrimSpace(text), "}"), "\n\n")
	for i, b := range blocks {
		blocks[i] = strings.TrimSpace(b)
	}
	slices.Sort(blocks)
	return strings.Join(blocks, "\n\n")
}
