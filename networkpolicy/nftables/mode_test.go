package nftables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/nft/program/programtest"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	"wayleave.dev/reconcile"
)

func dump(f *nft.Fake) string {
	var lines []string
	for _, family := range nft.Families() {
		lines = append(lines, f.Dump(table(family))...)
		st, _ := f.Read(context.Background(), table(family))
		sets := map[string]bool{}
		for name := range st.Elements {
			sets[name] = true
		}
		chains := map[string]bool{}
		for _, name := range st.Chains {
			chains[name] = true
		}
		lines = append(lines, fmt.Sprint(sets, chains))
	}
	return strings.Join(lines, "\n")
}

func fakeMode(f *nft.Fake) *Mode {
	return New(f, &conntrack.FakeMarker{})
}

func drawn(d dice) map[entryKey]entry {
	r := rules{}.dns(dnsVIP(false))
	some := func() networkpolicy.Ports {
		return oneOf(d, all(), ports(tcp(80, 80)), ports(tcp(80, 90)), ports(tcp(80, 80), udp(53, 53)),
			networkpolicy.Ports{})
	}
	for range d.IntN(12) {
		dir := oneOf(d, in, out)
		profile, a := oneOf(d, "p", "q", "r"), addr(fmt.Sprintf("10.0.0.%d", d.IntN(6)))
		if d.IntN(2) == 0 {
			a = addr(fmt.Sprintf("fd00::%d", d.IntN(6)))
		}
		switch d.IntN(3) {
		case 0:
			r[entryKey{Kind: networkpolicy.PodEntry, Direction: dir, Addr: a}] = entry{Profile: profile}
		case 1:
			r.peer(dir, profile, some(), a)
		default:
			n := d.IntN(100)
			r.blocks(dir, profile, between(fmt.Sprintf("10.1.0.%d", n), "10.1.0.100", some()),
				between("10.1.0.101", fmt.Sprintf("10.1.0.%d", 101+n), some()), between("fd01::", "ffff::", some()))
		}
	}
	return r
}

// After any changes the kernel holds what it would had it been made at once, no more and
// no less, whether keys were applied, or found by a restart.
func TestChangesEndWhereASyncBegins(t *testing.T) {
	d := dice{rand.New(rand.NewPCG(1, 8))}
	f := nft.NewFake()
	l := &lab{t: t, mode: fakeMode(f), entries: map[entryKey]entry{}}
	l.sync()
	for i := range 500 {
		next := maps.Clone(l.entries)
		for k := range next {
			if d.IntN(3) == 0 {
				delete(next, k)
			}
		}
		maps.Copy(next, drawn(d))
		switch d.IntN(10) {
		case 0:
			l.mode, l.entries = fakeMode(f), next
			l.sync()
		default:
			l.apply(next)
		}
		fresh := nft.NewFake()
		if err := fakeMode(fresh).Sync(t.Context(), maps.Clone(next)); err != nil {
			t.Fatal(err)
		}
		if got, want := dump(f), dump(fresh); got != want {
			t.Fatalf("after %d changes the kernel holds\n%s\nand should hold\n%s", i, got, want)
		}
	}
}

// refuses has the kernel refuse what names an address.
func refuses(a netip.Addr) func(nft.Batch) error {
	return func(b nft.Batch) error {
		for _, list := range b.Add {
			for _, e := range list {
				if strings.HasPrefix(e.Key, nft.Pack(a)) {
					return unix.EINVAL
				}
			}
		}
		return nil
	}
}

func TestABadKeyStopsNoOther(t *testing.T) {
	bad := addr("10.0.0.3")
	key := entryKey{Kind: networkpolicy.PeerEntry, Direction: in, Profile: "p", Addr: bad}
	good := rules{}.peer(in, "p", ports(tcp(80, 80)), addr("10.0.0.1"), addr("10.0.0.2"), addr("fd00::1"))
	good[entryKey{Kind: networkpolicy.PodEntry, Direction: in, Addr: addr("10.0.0.9")}] = entry{Profile: "p"}
	whole := maps.Clone(good)
	whole[key] = entry{Ports: ports(tcp(80, 80))}
	fresh := nft.NewFake()
	if err := fakeMode(fresh).Sync(t.Context(), maps.Clone(good)); err != nil {
		t.Fatal(err)
	}
	for name, start := range map[string]func(m *Mode) error{
		"apply": func(m *Mode) error {
			return errors.Join(m.Sync(t.Context(), nil), m.Apply(t.Context(), whole, nil))
		},
		"sync": func(m *Mode) error { return m.Sync(t.Context(), maps.Clone(map[entryKey]entry(whole))) },
	} {
		f := nft.NewFake()
		f.Fail = refuses(bad)
		m := fakeMode(f)
		var failed reconcile.KeyErrors[entryKey]
		if err := start(m); !errors.As(err, &failed) || len(failed) != 1 || failed[key] == nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, want := dump(f), dump(fresh); got != want {
			t.Errorf("%s: the kernel holds\n%s\nand should hold\n%s", name, got, want)
		}
		f.Fail = nil
		if err := m.Apply(t.Context(), map[entryKey]entry{key: whole[key]}, nil); err != nil {
			t.Errorf("%s: tried again: %v", name, err)
		}
	}
}

func TestAChangeCostsWhatChanged(t *testing.T) {
	r := rules{}
	r[entryKey{Kind: networkpolicy.PodEntry, Direction: in, Addr: addr("10.0.0.1")}] = entry{Profile: "p"}
	for i := range 1000 {
		r.peer(in, "p", ports(tcp(80, 80)), netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
	}
	probe := newCounting(nft.NewFake())
	m := New(probe, &conntrack.FakeMarker{})
	if err := m.Sync(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	probe.elements, probe.rules = 0, 0
	if err := m.Apply(t.Context(), rules{}.peer(in, "p", ports(tcp(80, 80)), addr("10.2.0.1")), nil); err != nil {
		t.Fatal(err)
	}
	if probe.elements != 1 || probe.rules != 0 {
		t.Errorf("a new peer changed %d elements and %d chains", probe.elements, probe.rules)
	}
}

func TestSweepDecidesByEntries(t *testing.T) {
	track := &conntrack.FakeMarker{Addrs: []netip.Addr{addr("192.0.2.1")}}
	flow := func(mark uint32, proto model.Protocol, src, dst, back string) {
		to := netip.MustParseAddrPort
		track.Flows = append(track.Flows, conntrack.Tracked{Protocol: uint8(proto), Mark: mark,
			Original: conntrack.Tuple{Src: to(src), Dst: to(dst)}, Reply: conntrack.Tuple{Src: to(back), Dst: to(src)}})
	}
	const pod, peer = "10.0.0.1:80", "10.0.0.2:1000"
	flow(0, model.TCP, peer, pod, pod)                                 // 0 allowed
	flow(CutMark|7, model.TCP, peer, "10.96.0.1:99", pod)              // 1 allowed again, translated
	flow(5, model.UDP, peer, pod, pod)                                 // 2 forbidden
	flow(0, model.TCP, peer, "10.96.0.1:80", "10.0.0.1:81")            // 3 forbidden, translated
	flow(0, model.UDP, "192.0.2.1:5", pod, pod)                        // 4 of the node
	flow(0, model.UDP, "10.0.0.1:5", "10.96.0.1:80", "10.0.0.1:80")    // 5 to itself
	flow(0, model.UDP, "10.0.0.7:5", "10.0.0.8:5", "10.0.0.8:5")       // 6 of others
	flow(CutMark, model.UDP, "10.0.0.7:5", "10.0.0.8:6", "10.0.0.8:6") // 7 not isolated any more
	flow(0, model.UDP, "10.0.0.3:5", "10.96.0.10:53", "10.9.9.9:5353") // 8 to DNS, translated
	flow(0, model.UDP, "10.0.0.3:6", "10.9.9.9:5353", "10.9.9.9:5353") // 9 past its address
	m := New(nft.NewFake(), track)
	r := rules{}.dns(dnsVIP(false)).peer(in, "p", ports(tcp(80, 80)), addr("10.0.0.2")).peer(out, "e",
		ports(udp(53, 53)), dnsVIP(false))
	r[entryKey{Kind: networkpolicy.PodEntry, Direction: in, Addr: addr("10.0.0.1")}] = entry{Profile: "p"}
	r[entryKey{Kind: networkpolicy.PodEntry, Direction: out, Addr: addr("10.0.0.3")}] = entry{Profile: "e"}
	if err := m.Sync(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	s, err := m.Sweep(t.Context())
	if err != nil || s != (Swept{Cut: 3, Freed: 2}) {
		t.Errorf("%+v, %v", s, err)
	}
	var got []uint32
	for _, x := range track.Flows {
		got = append(got, x.Mark)
	}
	if want := fmt.Sprint([]uint32{0, 7, CutMark | 5, CutMark, 0, 0, 0, 0, 0, CutMark}); fmt.Sprint(got) != want {
		t.Errorf("marks are %v, want %s", got, want)
	}
}

// A sweep is repeated a second later: a packet that passed by the rules of before may
// have entered its flow after the first.
func TestSweepsTwiceAfterAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		m := fakeMode(nft.NewFake())
		if err := m.Sync(ctx, nil); err != nil {
			t.Fatal(err)
		}
		start, at := time.Now(), []time.Duration{}
		ended := make(chan error)
		go func() { ended <- m.Run(ctx, func(Swept, error) { at = append(at, time.Since(start)) }) }()
		time.Sleep(10 * time.Second)
		r := rules{}.isolate(&pod{addrs: [2]netip.Addr{addr("10.0.0.1"), addr("fd00::1")}}, in, "p")
		if err := m.Apply(ctx, r, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		// What only allows more needs none.
		if err := m.Apply(ctx, rules{}.peer(in, "p", all(), addr("10.0.0.2")), nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if got, want := fmt.Sprint(at), "[0s 1s 10s 11s]"; got != want {
			t.Errorf("swept at %s, want %s", got, want)
		}
	})
}

// A crash at any moment, a flush, a refusal: see package programtest.
func TestRecoversFromAnyFault(t *testing.T) {
	t.Parallel()
	programtest.Run(t, programtest.Feature[entryKey, entry]{Table: table, Equal: entry.Equal,
		Start: func(c nft.Conn) reconcile.Target[entryKey, entry] { return New(c, &conntrack.FakeMarker{}) },
		Draw:  func(r *rand.Rand) map[entryKey]entry { return drawn(dice{r}) }})
}
