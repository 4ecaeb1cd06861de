package nft

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/internal/testnet"
)

// asNeeded is a table with sets, maps and hooks that are made as needed.
func asNeeded(f Family) (Table, Batch) {
	a, from, to, top := "10.0.0.1", "10.1.0.0", "10.1.0.9", "255.255.255.255"
	if f == IPv6 {
		a, from, to, top = "fd00::1", "fd01::", "fd01::9", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	addr := netip.MustParseAddr
	verdicts := Set{Name: "made-verdicts", Key: []Type{Addr}, Data: []Type{Verdict}, Interval: true}
	ports := Set{Name: "made-ports", Key: []Type{Proto, Port}, Interval: true}
	hook := Chain{Name: "out", OnDemand: true, Hook: &Hook{"filter", "output", 0}, Rules: []Rule{
		{Established, NoCtMark(0x80000000), Accept()},
		{Established, IsReply{}, Drop()},
		{In{Fields: []Field{OriginalDaddr}, Set: "seen"}, Goto("end")},
		{In{Fields: []Field{Daddr}, Set: "seen"}},
		{GotoBy{Fields: []Field{Daddr}, Map: "made-verdicts"}}}}
	t := Table{Family: f, Name: "wayleave-made",
		Sets:   []Set{{Name: "seen", Key: []Type{Addr}, Counted: true}},
		Chains: []Chain{{Name: "end", Rules: []Rule{{ProtoIs(17), ReturnBack()}}}, hook},
		Made: func(name string) (Set, bool) {
			for _, s := range []Set{verdicts, ports} {
				if s.Name == name {
					return s, true
				}
			}
			return Set{}, false
		}}
	first := Between(addr(from), addr(to))
	first.Data = Jump("end")
	next := Between(addr(to).Next(), addr(to).Next())
	next.Data = "end"
	last := Between(addr(top).Prev(), addr(top))
	last.Data = Return
	return t, Batch{Base: true, Sets: []Set{verdicts, ports}, Chains: []Chain{hook}, Add: map[string][]Element{
		"seen":          {{Key: Pack(addr(a))}},
		"made-verdicts": {first, next, last},
		"made-ports": {{Key: Pack(uint8(6), uint16(80)), End: Pack(uint8(6), uint16(90))},
			{Key: Pack(uint8(17), uint16(53)), End: Pack(uint8(17), uint16(53))}}}}
}

func TestWhatIsMadeAsNeeded(t *testing.T) {
	for _, f := range Families() {
		t.Run(f.String(), func(t *testing.T) {
			table, batch := asNeeded(f)
			ns, k := conn(t)
			if err := k.Commit(t.Context(), table, batch); err != nil {
				t.Fatal(err)
			}
			st, err := k.Read(t.Context(), table)
			if err != nil || !st.Fits {
				t.Fatalf("%+v, %v", st, err)
			}
			for name, want := range batch.Add {
				got := slices.Clone(st.Elements[name])
				byKey := func(a, b Element) int { return strings.Compare(a.Key, b.Key) }
				slices.SortFunc(got, byKey)
				slices.SortFunc(want, byKey)
				if !slices.Equal(got, want) {
					t.Errorf("set %s has %q, want %q", name, got, want)
				}
			}
			same(t, ns, table, batch)
			drop := Batch{Delete: map[string][]Element{"made-verdicts": batch.Add["made-verdicts"]},
				DropChains: []string{"out"}, DropSets: []string{"made-verdicts", "made-ports"}}
			if err := k.Commit(t.Context(), table, drop); err != nil {
				t.Fatal(err)
			}
			if st, err = k.Read(t.Context(), table); err != nil || fmt.Sprint(st.Chains) != "[end]" ||
				len(st.Elements) != 1 {
				t.Errorf("after dropping: %+v, %v", st, err)
			}
		})
	}
}

// same says that nft makes of the text what was sent by netlink.
func same(t *testing.T, ns *testnet.NS, table Table, b Batch) {
	t.Helper()
	testnet.Need(t, "nft")
	table.Sets = append(table.Sets, b.Sets...)
	file := filepath.Join(t.TempDir(), "x.nft")
	if err := os.WriteFile(file, []byte(table.Text(b.Add, b.Chains)), 0o600); err != nil {
		t.Fatal(err)
	}
	other := testnet.New(t, "text")
	other.Run("nft", "-f", file)
	if got, want := plain(ns.Run("nft", "-y", "list", "ruleset")),
		plain(other.Run("nft", "-y", "list", "ruleset")); got != want {
		t.Errorf("by netlink:\n%s\nby text:\n%s", got, want)
	}
}

// A set counts the packets that a rule finds in it, and goes on when the rules change.
func TestCounted(t *testing.T) {
	table, batch := asNeeded(IPv4)
	ns, k := conn(t)
	if err := k.Commit(t.Context(), table, batch); err != nil {
		t.Fatal(err)
	}
	ns.Addr("lo", "10.0.0.1/32")
	send := func() {
		c, err := ns.Dial("udp", "10.0.0.1:9", 0)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for want := uint64(1); want < 3; want++ {
		send()
		got, err := k.Counted(t.Context(), table, "seen")
		if n := got[Pack(netip.MustParseAddr("10.0.0.1"))]; err != nil || n != want {
			t.Errorf("%d packets counted, want %d, %v", n, want, err)
		}
		if err := k.Commit(t.Context(), table, Batch{Base: true, Chains: batch.Chains}); err != nil {
			t.Fatal(err)
		}
	}
}
