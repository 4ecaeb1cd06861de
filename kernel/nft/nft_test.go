package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
)

// sample uses every kind of set, statement and element.
func sample(f Family) (Table, Batch) {
	a, b := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("10.244.1.5")
	p := netip.MustParsePrefix("10.244.0.0/16")
	if f == IPv6 {
		a, b = netip.MustParseAddr("fd00:96::1"), netip.MustParseAddr("fd00:244::5")
		p = netip.MustParsePrefix("fd00:244::/56")
	}
	key := []Field{Daddr, L4Proto, Dport}
	t := Table{Family: f, Name: "wayleave-test",
		Sets: []Set{
			{Name: "addrs", Key: []Type{Addr}},
			{Name: "cidrs", Key: []Type{Addr}, Interval: true},
			{Name: "pairs", Key: []Type{Addr, Addr}},
			{Name: "frontends", Key: []Type{Addr, Proto, Port}, Data: []Type{Verdict}},
			{Name: "slots", Key: []Type{Addr, Proto, Port, Index}, Data: []Type{Addr, Port}},
			{Name: "np-slots", Key: []Type{Proto, Port, Index}, Data: []Type{Addr, Port}},
		},
		Chains: []Chain{
			{Name: "refuse", Rules: []Rule{{ProtoIs(6), RejectTCP()}, {Reject()}}},
			{Name: "raw-prerouting", Hook: &Hook{"filter", "prerouting", -300},
				Rules: []Rule{{In{Fields: []Field{Daddr}, Set: "addrs"}, ProtoIs(17), SocketOpen{}, Notrack()}}},
			{Name: "nat-prerouting", Hook: &Hook{"nat", "prerouting", -100}, Rules: []Rule{
				{In{Fields: []Field{Daddr}, Set: "addrs"}, In{Fields: []Field{Saddr}, Set: "cidrs", Not: true},
					SetMark(0x4000)},
				{GotoBy{Fields: key, Map: "frontends"}}}},
			{Name: "check", Hook: &Hook{"filter", "prerouting", -90},
				Rules: []Rule{{New, In{Fields: []Field{Daddr}, Set: "addrs"}, Goto("refuse")}}},
			{Name: "post", Hook: &Hook{"nat", "postrouting", 100}, Rules: []Rule{
				{In{Fields: []Field{Saddr, Daddr}, Set: "pairs"}, Masquerade()},
				{HasMark(0x4000), ClearMark(0x4000), Masquerade()}}},
		},
	}
	n2 := Chain{Name: "n2", Rules: []Rule{{DNATBy{Fields: []Field{Daddr, L4Proto, Dport, Random{2}}, Map: "slots"}}}}
	np2 := Chain{Name: "np2", Rules: []Rule{{SetMark(0x4000), DNATBy{Fields: []Field{L4Proto, Dport, Random{2}},
		Map: "np-slots"}}}}
	return t, Batch{Base: true, Chains: []Chain{n2, np2}, Add: map[string][]Element{
		"addrs":     {{Key: Pack(a)}},
		"cidrs":     {Range(p)},
		"pairs":     {{Key: Pack(b, b)}},
		"frontends": {{Key: Pack(a, uint8(6), uint16(80)), Data: "n2"}},
		"np-slots":  {{Key: Pack(uint8(6), uint16(30080), uint32(1)), Data: Pack(b, uint16(8081))}},
		"slots": {{Key: Pack(a, uint8(6), uint16(80), uint32(0)), Data: Pack(b, uint16(8080))},
			{Key: Pack(a, uint8(6), uint16(80), uint32(1)), Data: Pack(b, uint16(8081))}},
	}}
}

// The kernel takes a direction as one byte, and logs a complaint about four. nft knows the length of the first
// destination only by the key of its family.
func TestADirectionIsOneByte(t *testing.T) {
	for _, f := range Families() {
		key := map[Family]uint32{IPv4: unix.NFT_CT_DST_IP, IPv6: unix.NFT_CT_DST_IP6}[f]
		for field, want := range map[Field]uint32{OriginalDaddr: key, OriginalDport: unix.NFT_CT_PROTO_DST} {
			es, _ := field.load(f, firstRegister)
			raw, err := encode(f, es[0])
			if err != nil {
				t.Fatal(err)
			}
			found := map[uint16][]byte{}
			in(raw, unix.NFTA_EXPR_DATA, func(data []byte) {
				for _, kind := range []uint16{unix.NFTA_CT_KEY, unix.NFTA_CT_DIRECTION, unix.NFTA_CT_DREG} {
					in(data, kind, func(value []byte) { found[kind] = value })
				}
			})
			if got := found[unix.NFTA_CT_KEY]; len(got) != 4 || binary.BigEndian.Uint32(got) != want {
				t.Errorf("%s: key is %v, want %d", field.text(f), got, want)
			}
			if got := found[unix.NFTA_CT_DIRECTION]; !bytes.Equal(got, []byte{0}) {
				t.Errorf("%s: direction is %v", field.text(f), got)
			}
			if got := found[unix.NFTA_CT_DREG]; !bytes.Equal(got, []byte{0, 0, 0, firstRegister}) {
				t.Errorf("%s: register is %v", field.text(f), got)
			}
		}
	}
}

func conn(t *testing.T) (*testnet.NS, *Kernel) {
	ns := testnet.New(t, "ns")
	k, err := NewKernel(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	return ns, k
}

// What we send by netlink is what nft makes of our text: the foreign judge is nft
// itself, which prints both.
func TestNetlinkAndTextAreTheSame(t *testing.T) {
	testnet.Need(t, "nft")
	for _, f := range Families() {
		t.Run(f.String(), func(t *testing.T) {
			table, batch := sample(f)
			a, k := conn(t)
			if err := k.Commit(t.Context(), table, batch); err != nil {
				t.Fatal(err)
			}
			b := testnet.New(t, "text")
			file := filepath.Join(t.TempDir(), "x.nft")
			if err := os.WriteFile(file, []byte(table.Text(batch.Add, batch.Chains)), 0o600); err != nil {
				t.Fatal(err)
			}
			b.Run("nft", "-f", file)
			if got, want := plain(a.Run("nft", "-y", "list", "ruleset")),
				plain(b.Run("nft", "-y", "list", "ruleset")); got != want {
				t.Errorf("by netlink:\n%s\nby text:\n%s", got, want)
			}
		})
	}
}

// plain takes the one difference out: nft keeps with a set by what expression its
// type was named, and prints numbers of an unnamed type otherwise.
func plain(text string) string {
	text = regexp.MustCompile(`(?m)^\t\ttype(of)? .*$`).ReplaceAllString(text, "")
	return regexp.MustCompile(`0x0000000([01]) :`).ReplaceAllString(text, "$1 :")
}

func TestReadReturnsWhatWasCommitted(t *testing.T) {
	for _, f := range Families() {
		table, batch := sample(f)
		_, k := conn(t)
		st, err := k.Read(t.Context(), table)
		if err != nil || st.Exists {
			t.Fatalf("before: %+v, %v", st, err)
		}
		if err := k.Commit(t.Context(), table, batch); err != nil {
			t.Fatal(err)
		}
		if st, err = k.Read(t.Context(), table); err != nil || !st.Exists || !st.Fits {
			t.Fatalf("%+v, %v", st, err)
		}
		for _, name := range []string{"addrs", "pairs", "frontends", "slots"} {
			have := map[Element]bool{}
			for _, e := range st.Elements[name] {
				have[e] = true
			}
			for _, e := range batch.Add[name] {
				if !have[e] {
					t.Errorf("%s: element %q is missing in %q", name, e, st.Elements[name])
				}
			}
		}
		if len(st.Chains) != 7 {
			t.Errorf("chains are %v", st.Chains)
		}
		// The same again changes nothing and is no error.
		again := batch
		if err := k.Commit(t.Context(), table, again); err != nil {
			t.Errorf("the same again: %v", err)
		}
	}
}

func TestABatchIsWholeOrNothing(t *testing.T) {
	table, batch := sample(IPv4)
	_, k := conn(t)
	if err := k.Commit(t.Context(), table, batch); err != nil {
		t.Fatal(err)
	}
	bad := Batch{Add: map[string][]Element{
		"addrs":     {{Key: Pack(netip.MustParseAddr("10.96.0.2"))}},
		"frontends": {{Key: Pack(netip.MustParseAddr("10.96.0.2"), uint8(6), uint16(80)), Data: "nowhere"}},
	}}
	if err := k.Commit(t.Context(), table, bad); err == nil || !strings.Contains(err.Error(), "wayleave-test") {
		t.Fatalf("error is %v", err)
	}
	st, err := k.Read(t.Context(), table)
	if err != nil || len(st.Elements["addrs"]) != 1 {
		t.Errorf("half of a failed batch is there: %v, %v", st.Elements["addrs"], err)
	}
}

// Each transaction is told before it returns, also one that the kernel refuses, and a failure to tell is its own.
func TestEachTransactionIsTold(t *testing.T) {
	_, k := conn(t)
	table, batch := sample(IPv4)
	told := 0
	var failed error
	k.Changed = func() error { told++; return failed }
	if err := k.CommitAll(t.Context(), Change{table, batch}); err != nil || told != 1 {
		t.Errorf("a commit: told %d times, %v", told, err)
	}
	key := Pack(netip.MustParseAddr("10.96.0.9"), uint8(6), uint16(1))
	wrong := Batch{Add: map[string][]Element{"frontends": {{Key: key, Data: "no-such-chain"}}}}
	if err := k.Commit(t.Context(), table, wrong); err == nil || told != 2 {
		t.Errorf("a commit that is refused: told %d times, %v", told, err)
	}
	failed = errors.New("not told")
	if err := k.Remove(t.Context(), table); !errors.Is(err, failed) || told != 3 {
		t.Errorf("a removal: told %d times, %v", told, err)
	}
}

func TestAnotherLayoutDoesNotFit(t *testing.T) {
	table, batch := sample(IPv4)
	_, k := conn(t)
	if err := k.Commit(t.Context(), table, batch); err != nil {
		t.Fatal(err)
	}
	table.Sets[0].Key = []Type{Addr, Proto}
	st, err := k.Read(t.Context(), table)
	if err != nil || st.Fits {
		t.Errorf("%+v, %v", st, err)
	}
	table.Chains = table.Chains[:1]
	if err := k.Commit(t.Context(), table, Batch{Recreate: true}); err != nil {
		t.Fatal(err)
	}
	if st, err = k.Read(t.Context(), table); err != nil || !st.Fits || len(st.Chains) != 1 {
		t.Errorf("after making it anew: %+v, %v", st, err)
	}
}

func TestForeignChangesAreSeenAndOwnAreNot(t *testing.T) {
	testnet.Need(t, "nft")
	table, batch := sample(IPv4)
	ns, k := conn(t)
	seen, err := k.Watch(t.Context(), table.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Commit(t.Context(), table, batch); err != nil {
		t.Fatal(err)
	}
	ns.Run("nft", "add", "table", "ip", "other")
	select {
	case <-seen:
		t.Error("an own change, or one of another table, was taken for a foreign one")
	case <-time.After(300 * time.Millisecond):
	}
	ns.Run("nft", "flush", "ruleset")
	select {
	case <-seen:
	case <-time.After(5 * time.Second):
		t.Error("the flush was not seen")
	}
}

// The kernel lets no chain move to another hook, so that is another layout, too.
func TestAnotherHookDoesNotFit(t *testing.T) {
	table, batch := sample(IPv4)
	_, k := conn(t)
	if err := k.Commit(t.Context(), table, batch); err != nil {
		t.Fatal(err)
	}
	for i, c := range table.Chains {
		if c.Name == "check" {
			table.Chains[i].Hook = &Hook{"filter", "prerouting", -80}
		}
	}
	if st, err := k.Read(t.Context(), table); err != nil || st.Fits {
		t.Errorf("%+v, %v", st, err)
	}
	if err := k.Commit(t.Context(), table, Batch{Recreate: true}); err != nil {
		t.Fatal(err)
	}
	if st, err := k.Read(t.Context(), table); err != nil || !st.Fits {
		t.Errorf("after making it anew: %+v, %v", st, err)
	}
}

// A change of two tables is one transaction: a fault in one stops the other.
func TestTwoTablesChangeTogether(t *testing.T) {
	t4, b4 := sample(IPv4)
	t6, b6 := sample(IPv6)
	_, k := conn(t)
	bad := Batch{Base: true, Add: map[string][]Element{
		"frontends": {{Key: b6.Add["frontends"][0].Key, Data: "nowhere"}}}}
	if err := k.CommitAll(t.Context(), Change{t4, b4}, Change{t6, bad}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("error is %v", err)
	}
	if st, err := k.Read(t.Context(), t4); err != nil || st.Exists {
		t.Errorf("half of a failed transaction is there: %v, %v", st, err)
	}
	if err := k.CommitAll(t.Context(), Change{t4, b4}, Change{t6, b6}); err != nil {
		t.Error(err)
	}
}

func TestAHundredThousandElementsInOneTransaction(t *testing.T) {
	table, batch := sample(IPv4)
	_, k := conn(t)
	const n = 100_000
	batch.Add["slots"] = nil
	backend := Pack(netip.MustParseAddr("10.244.1.5"), uint16(8080))
	for i := range uint32(n) {
		batch.Add["slots"] = append(batch.Add["slots"], Element{Key: Pack(netip.MustParseAddr("10.96.0.1"), uint8(6),
			uint16(80), i), Data: backend})
	}
	start := time.Now()
	if err := k.Commit(t.Context(), table, batch); err != nil {
		t.Fatal(err)
	}
	st, err := k.Read(t.Context(), table)
	if err != nil || len(st.Elements["slots"]) != n {
		t.Errorf("%d elements, %v", len(st.Elements["slots"]), err)
	}
	t.Logf("written and read in %s", time.Since(start))
}

func TestDisjoint(t *testing.T) {
	var in []netip.Prefix
	for _, s := range []string{"10.2.0.0/16", "10.0.0.0/8", "10.0.0.0/8", "fd00::/64", "fd00::/48", "11.0.0.0/8"} {
		in = append(in, netip.MustParsePrefix(s))
	}
	if got := fmt.Sprint(Disjoint(in)); got != "[10.0.0.0/8 11.0.0.0/8 fd00::/48]" {
		t.Error(got)
	}
}
