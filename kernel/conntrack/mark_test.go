package conntrack

import (
	"errors"
	"net/netip"
	"testing"
)

// Flows are read with both tuples, and of a mark only the bits asked for change, of this
// flow only.
func TestMarksAreOfOneFlow(t *testing.T) {
	w := newWorld(t)
	w.translate(t, 8001)
	k := NewTracker(w.router.FD())
	w.dial(t, "tcp", "10.2.0.2:8002")
	for _, x := range []struct{ network, to, backend string }{
		{"tcp", vip4 + ":80", "10.2.0.2:8001"}, {"udp", vip4 + ":80", "10.2.0.2:8001"},
		{"tcp", "[" + vip6 + "]:80", "[fd00:2::2]:8001"}, {"udp", "[" + vip6 + "]:80", "[fd00:2::2]:8001"}} {
		c := w.dial(t, x.network, x.to)
		if got := say(t, c); got != "8001" {
			t.Fatalf("%s %s: %s", x.network, x.to, got)
		}
		find := func(bits uint32) (found []Tracked) {
			err := k.Each(t.Context(), bits, func(f Tracked) error {
				if f.Original.Src.String() == c.LocalAddr().String() && f.Original.Dst == ap(x.to) &&
					f.Protocol == map[string]uint8{"tcp": tcp, "udp": udp}[x.network] {
					found = append(found, f)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return found
		}
		flows := find(0)
		if len(flows) != 1 || flows[0].Reply.Src != ap(x.backend) || flows[0].Reply.Dst != flows[0].Original.Src ||
			flows[0].Mark != 0 || flows[0].Expected {
			t.Fatalf("%s %s: %+v", x.network, x.to, flows)
		}
		for _, step := range []struct{ value, mask, want uint32 }{{0x5, 0xf, 0x5}, {1 << 31, 1 << 31, 1<<31 | 5},
			{0xffffffff, 0x100, 1<<31 | 0x105}, {0, 1 << 31, 0x105}} {
			if err := k.SetMark(t.Context(), flows[0], step.value, step.mask); err != nil {
				t.Fatal(err)
			}
			if now := find(0); len(now) != 1 || now[0].Mark != step.want {
				t.Errorf("after %x of %x: %+v", step.value, step.mask, now)
			}
			if now := find(1 << 31); len(now) != int(step.want>>31) {
				t.Errorf("with the bit: %+v", now)
			}
		}
		if got := say(t, c); got != "8001" {
			t.Errorf("a marked flow: %s", got)
		}
	}
	n := 0
	if err := k.Each(t.Context(), 0x100, func(Tracked) error { n++; return nil }); err != nil || n != 4 {
		t.Errorf("%d flows are marked, want 4, %v", n, err)
	}
	// One that has ended is no error, and is not made anew.
	var gone Tracked
	stop := errors.New("stop")
	if err := k.Each(t.Context(), 0x100, func(f Tracked) error { gone = f; return stop }); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	w.router.ForgetFlows()
	if err := k.SetMark(t.Context(), gone, 1, 1); err != nil {
		t.Error(err)
	}
	if err := k.Each(t.Context(), 1,
		func(f Tracked) error { t.Errorf("%+v was made anew", f); return nil }); err != nil {
		t.Error(err)
	}
	own, err := k.Own(t.Context())
	if err != nil || !own[netip.MustParseAddr("10.1.0.1")] || !own[netip.MustParseAddr("fd00:2::1")] ||
		own[netip.MustParseAddr("10.1.0.2")] {
		t.Errorf("own addresses: %v, %v", own, err)
	}
}
