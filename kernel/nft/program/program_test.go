package program_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/nft/program"
	"wayleave.dev/kernel/nft/program/programtest"
	"wayleave.dev/reconcile"
)

// toy is a feature as small as one can be. Its keys are members of a group each, which has a chain and a set.
type toy struct {
	*program.Program[int, string]
	reads int
}

func toyTable(f nft.Family) nft.Table {
	return nft.Table{Family: f, Name: "wayleave-toy", Sets: []nft.Set{
		{Name: "members", Key: []nft.Type{nft.Addr}, Data: []nft.Type{nft.Verdict}},
		{Name: "facts", Key: []nft.Type{nft.Addr}}},
		Made: func(name string) (nft.Set, bool) {
			return nft.Set{Name: name, Key: []nft.Type{nft.Addr}}, strings.HasPrefix(name, "group-")
		}}
}

func addr(f nft.Family, i int) string {
	if f == nft.IPv6 {
		return nft.Pack(netip.AddrFrom16([16]byte{0xfd, 15: byte(i)}))
	}
	return nft.Pack(netip.AddrFrom4([4]byte{10, 3: byte(i)}))
}

func toyRender(k int, group string, out program.Output) {
	for _, f := range nft.Families() {
		out.Element(program.Place{Family: f, Set: "members", Key: addr(f, k)}, program.Value{Data: "to-" + group})
		out.Need(program.Object{Family: f, Name: group}, func() program.Parts {
			set, made := toyTable(f).Made("group-" + group)
			if !made {
				return program.Parts{}
			}
			return program.Parts{Sets: []nft.Set{set}, Chains: []nft.Chain{{Name: "to-" + group,
				Rules: []nft.Rule{{nft.In{Fields: []nft.Field{nft.Saddr}, Set: set.Name}, nft.ReturnBack()}}}},
				Elements: []program.Item{{Set: set.Name, Element: nft.Element{Key: addr(f, len(group))}}}}
		})
	}
}

func newToy(c nft.Conn) *toy {
	t := &toy{}
	t.Program = program.New(program.Config[int, string]{Conn: &counting{c, &t.reads}, Table: toyTable,
		Render:  toyRender,
		Compare: cmp.Compare[int], Facts: func(f nft.Family) map[string][]nft.Element {
			return map[string][]nft.Element{"facts": {{Key: addr(f, 250)}}}
		}})
	return t
}

// counting counts how often the kernel is read.
type counting struct {
	nft.Conn
	reads *int
}

func (c *counting) Read(ctx context.Context, t nft.Table) (nft.State, error) {
	*c.reads++
	return c.Conn.Read(ctx, t)
}

func (t *toy) Sync(ctx context.Context, plans map[int]string) error {
	return join(t.Program.Sync(ctx, plans))
}

func (t *toy) Apply(ctx context.Context, set map[int]string, del []int) error {
	return join(t.Program.Apply(ctx, set, del))
}

func join(failed reconcile.KeyErrors[int], err error) error {
	if err == nil && len(failed) > 0 {
		return failed
	}
	return err
}

func TestRecoversFromAnyFault(t *testing.T) {
	t.Parallel()
	programtest.Run(t, programtest.Feature[int, string]{Table: toyTable,
		Start: func(c nft.Conn) reconcile.Target[int, string] { return newToy(c) },
		Equal: func(a, b string) bool { return a == b },
		Draw: func(r *rand.Rand) map[int]string {
			out := map[int]string{}
			for k := range 12 {
				if r.IntN(3) > 0 {
					out[k] = []string{"a", "bb", "ccc"}[r.IntN(3)]
				}
			}
			return out
		}})
}

// refuses has the kernel refuse a member.
func refuses(k int) func(nft.Batch) error {
	return func(b nft.Batch) error {
		if slices.ContainsFunc(b.Add["members"], func(e nft.Element) bool { return e.Key == addr(nft.IPv4, k) }) {
			return unix.EINVAL
		}
		return nil
	}
}

// A key that failed in a Sync may have anything in the kernel: it is read before the key is tried again. Changes of
// other keys need no reading.
func TestAKeyOfUnknownStateIsReadFirst(t *testing.T) {
	f := nft.NewFake()
	p := newToy(f)
	f.Fail = refuses(3)
	plans := map[int]string{1: "a", 2: "a", 3: "bb"}
	var failed reconcile.KeyErrors[int]
	if err := p.Sync(t.Context(), plans); !errors.As(err, &failed) || len(failed) != 1 || failed[3] == nil {
		t.Fatalf("error is %v", err)
	}
	if got := fmt.Sprint(p.Wanted(), p.InForce()); got != "map[1:a 2:a 3:bb] map[1:a 2:a]" {
		t.Errorf("wanted and in force are %s", got)
	}
	p.reads = 0
	if err := p.Apply(t.Context(), map[int]string{4: "a"}, []int{2}); err != nil || p.reads > 0 {
		t.Errorf("another key: %v, %d reads", err, p.reads)
	}
	f.Fail = nil
	if err := p.Apply(t.Context(), map[int]string{3: "bb"}, nil); err != nil || p.reads == 0 {
		t.Errorf("the key again: %v, %d reads", err, p.reads)
	}
	if got := fmt.Sprint(p.InForce()); got != "map[1:a 3:bb 4:a]" {
		t.Errorf("in force is %s", got)
	}
	p.reads = 0
	if err := p.Apply(t.Context(), map[int]string{3: "a"}, nil); err != nil || p.reads > 0 {
		t.Errorf("the key once it is known: %v, %d reads", err, p.reads)
	}
}

// After an error whose keys are not known, nothing that was wanted is forgotten.
func TestNothingIsForgottenAfterAFault(t *testing.T) {
	f := nft.NewFake()
	p := newToy(f)
	f.Fail = func(nft.Batch) error { return unix.EPERM }
	if err := p.Sync(t.Context(), map[int]string{1: "a", 2: "bb"}); !errors.Is(err, unix.EPERM) || p.Synced() {
		t.Fatalf("error is %v, synced %t", err, p.Synced())
	}
	f.Fail = nil
	if err := p.Apply(t.Context(), map[int]string{3: "a"}, []int{2}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(p.InForce()); got != "map[1:a 3:a]" {
		t.Errorf("in force is %s", got)
	}
}

// When every one of many keys fails, the node is at fault and not the keys.
func TestWhenAllKeysFailTheNodeIsAtFault(t *testing.T) {
	f := nft.NewFake()
	p := newToy(f)
	if err := p.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	f.Fail = func(nft.Batch) error { return unix.EINVAL }
	for n, want := range map[int]bool{2: true, 100: false} {
		set := map[int]string{}
		for k := range n {
			set[k] = "a"
		}
		var failed reconcile.KeyErrors[int]
		if err := p.Apply(t.Context(), set, nil); !errors.Is(err, unix.EINVAL) || errors.As(err, &failed) != want {
			t.Errorf("%d keys: error is %v", n, err)
		}
		f.Fail = nil
		if err := p.Sync(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		f.Fail = func(nft.Batch) error { return unix.EINVAL }
	}
}
