package l2

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"wayleave.dev/loadbalancer"
)

// duel is an address and two nodes, of which the better one in its order is the first.
func duel() (addr netip.Addr, better, worse string) {
	addr = netip.MustParseAddr("192.0.2.7")
	order := loadbalancer.Order(addr, []string{"a", "b"})
	return addr, order[0], order[1]
}

// all says that these nodes live and are willing.
func all(nodes ...string) func(string) loadbalancer.Standing {
	return func(n string) loadbalancer.Standing {
		if slices.Contains(nodes, n) {
			return loadbalancer.Willing
		}
		return loadbalancer.Dead
	}
}

// bench is an arbiter with a clock.
type bench struct {
	t    *testing.T
	a    *Arbiter
	now  time.Time
	addr netip.Addr
	vips []VIP
}

func newBench(t *testing.T, self string, addr netip.Addr) *bench {
	return &bench{t: t, a: NewArbiter(self), now: time.Unix(1000, 0), addr: addr,
		vips: []VIP{{Addr: addr, Eligible: []string{"a", "b"}, Interfaces: []string{"eth0"}}}}
}

func (b *bench) set(live ...string) { b.a.Set(b.now, b.vips, all(live...)) }

// run lets time pass as the arbiter asks for it, and returns when the address was announced.
func (b *bench) run(d time.Duration) []time.Duration {
	var at []time.Duration
	start := b.now
	for end := b.now.Add(d); ; {
		announce, again := b.a.Tick(b.now)
		for range announce {
			at = append(at, b.now.Sub(start))
		}
		if again.IsZero() || again.After(end) {
			b.now = end
			return at
		}
		if !again.After(b.now) {
			again = b.now.Add(time.Millisecond)
		}
		b.now = again
	}
}

func (b *bench) answers(want bool, when string) {
	b.t.Helper()
	if _, got := b.a.Answering()[b.addr]; got != want {
		b.t.Errorf("%s: it answers: %t, want %t", when, got, want)
	}
}

// An address that is taken is announced at once and then ever more seldom.
func TestAnAddressThatIsTakenIsAnnounced(t *testing.T) {
	addr, better, worse := duel()
	b := newBench(t, better, addr)
	b.set(better, worse)
	at := b.run(time.Minute)
	if len(at) != 1+len(gaps) || at[0] != 0 {
		t.Fatalf("announced at %v", at)
	}
	for i, gap := range gaps {
		if at[i+1]-at[i] != gap {
			t.Errorf("announced at %v, want gaps of %v", at, gaps)
		}
	}
	b.answers(true, "owner")
	if b.a.Takeovers != 1 || b.a.Disputes != 0 {
		t.Errorf("%d takeovers, %d disputes", b.a.Takeovers, b.a.Disputes)
	}
	// The interface was away.
	b.a.Again(b.now)
	if at := b.run(time.Minute); len(at) != 1+len(gaps) {
		t.Errorf("announced again at %v", at)
	}
}

// The one that loses an address answers until the one that gets it says that it is there, and no longer
// than the bound.
func TestTheOldOwnerWaitsForTheNew(t *testing.T) {
	addr, better, worse := duel()
	for _, heard := range []bool{true, false} {
		b := newBench(t, worse, addr)
		b.set(worse)
		b.run(time.Minute)
		b.answers(true, "alone")
		b.set(better, worse)
		b.run(Bound / 2)
		b.answers(true, "the new owner has said nothing")
		if heard {
			b.a.Heard(b.now, addr, better)
			b.answers(false, "the new owner is there")
		}
		if at := b.run(Bound); len(at) > 0 {
			t.Errorf("it announces at %v what is not its own", at)
		}
		b.answers(false, "the bound is over")
		if b.a.Disputes != 0 {
			t.Errorf("a hand-over counts as dispute")
		}
		// It comes back as soon as the other one dies.
		b.set(worse)
		if at := b.run(0); len(at) != 1 {
			t.Errorf("announced %d times", len(at))
		}
		b.answers(true, "alone again")
	}
}

// A node that may no longer answer stops at once.
func TestANodeThatIsNotEligibleStopsAtOnce(t *testing.T) {
	addr, better, worse := duel()
	b := newBench(t, better, addr)
	b.set(better, worse)
	b.run(0)
	b.vips[0].Eligible = []string{worse}
	b.set(better, worse)
	b.answers(false, "not eligible")
	b.vips = nil
	b.set(better, worse)
	if len(b.a.Answering()) > 0 || len(b.a.Owned()) > 0 {
		t.Error("it answers for an address that is gone")
	}
}

// Two that think themselves alone: the worse is silent as long as it hears the better, and the
// better repeats itself.
func TestTheBetterOfTwoGoesOn(t *testing.T) {
	addr, better, worse := duel()
	w, b := newBench(t, worse, addr), newBench(t, better, addr)
	w.set(worse)
	b.set(better)
	w.run(time.Minute)
	b.run(time.Minute)

	b.a.Heard(b.now, addr, worse)
	if at := b.run(0); len(at) != 1 {
		t.Errorf("the better one repeats itself at %v, want at once", at)
	}
	at := b.run(10 * time.Second)
	for i := 1; i < len(at); i++ {
		if at[i]-at[i-1] > Bound {
			t.Errorf("the better one is quiet for %s", at[i]-at[i-1])
		}
	}
	b.answers(true, "better")
	if len(b.a.Disputed()) != 1 || !b.a.Disputed()[0].Answering || b.a.Disputes != 1 {
		t.Errorf("%+v, %d disputes", b.a.Disputed(), b.a.Disputes)
	}

	for range 10 {
		w.a.Heard(w.now, addr, better)
		w.answers(false, "it has heard the better one")
		if at := w.run(Bound); len(at) > 0 {
			t.Errorf("the worse one announces at %v", at)
		}
	}
	if len(w.a.Disputed()) != 1 || w.a.Disputed()[0].Answering {
		t.Errorf("%+v", w.a.Disputed())
	}
	w.run(Silence - Bound - time.Millisecond)
	w.answers(false, "it was silent for less than it must be")
	w.run(2 * time.Millisecond)
	w.answers(true, "the better one is gone")
	// Heartbeats come again: the worse one has nothing to say.
	w.a.Heard(w.now, addr, better)
	w.set(better, worse)
	w.run(Silence)
	w.answers(false, "the better one is seen")
	if len(w.a.Disputed()) > 0 {
		t.Errorf("%+v is over", w.a.Disputed())
	}
}

// Whoever floods announcements gets no flood back.
func TestAFloodIsNotAnsweredByAFlood(t *testing.T) {
	addr, better, worse := duel()
	b := newBench(t, better, addr)
	b.set(better)
	b.run(time.Minute)
	n := 0
	for range 1000 {
		b.a.Heard(b.now, addr, worse)
		b.a.HeardForeign(b.now, addr, "02:00:00:00:00:09", "eth0")
		n += len(b.run(time.Millisecond))
	}
	if n > 12 {
		t.Errorf("%d announcements in a second", n)
	}
	f := b.a.Foreigners()
	if len(f) != 1 || f[0].Count != 1000 || f[0].MAC != "02:00:00:00:00:09" {
		t.Errorf("%+v", f)
	}
	b.answers(true, "a foreign machine changes nothing")
}

// Who shows no life owns nothing.
func TestNobodyLives(t *testing.T) {
	addr, better, _ := duel()
	b := newBench(t, better, addr)
	b.set()
	if at := b.run(time.Minute); len(at) > 0 {
		t.Errorf("announced at %v", at)
	}
	b.answers(false, "nobody lives")
	b.a.Heard(b.now, netip.MustParseAddr("198.51.100.1"), "b") // an address without an owner
}

// Three that think themselves alone have one dispute, not one each time another of them is heard.
func TestADisputeOfThreeIsOne(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.7")
	order := loadbalancer.Order(addr, []string{"a", "b", "c"})
	b := newBench(t, order[0], addr)
	b.vips[0].Eligible = order
	b.set(order[0])
	for i := range 20 {
		b.a.Heard(b.now, addr, order[1+i%2])
		b.run(Bound / 2)
	}
	if b.a.Disputes != 1 || len(b.a.Disputed()) != 1 {
		t.Errorf("%d disputes, %+v", b.a.Disputes, b.a.Disputed())
	}
}
