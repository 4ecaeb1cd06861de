package upstream

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wayleave.dev/proxy/schema"
)

func addr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
}

func backend(n int) *schema.Backend {
	b := &schema.Backend{Key: "b"}
	for i := range n {
		b.Endpoints = append(b.Endpoints, schema.Endpoint{Addr: addr(i)})
	}
	return b
}

// set makes a set with one backend "b" of n endpoints, which are no newer than slow start.
func set(n int) (*Set, *Backend) {
	s := Defaults()
	s.SlowStart = 0
	x := NewSet(s)
	x.Replace(map[string]*schema.Backend{"b": backend(n)})
	return x, x.Lookup("b")
}

func TestRoundRobinGivesEachItsTurn(t *testing.T) {
	_, b := set(5)
	got := map[netip.AddrPort]int{}
	for range 500 {
		got[b.Pick(RoundRobin, nil).Addr]++
	}
	for a, n := range got {
		if n != 100 || len(got) != 5 {
			t.Errorf("%s: %d of 500", a, n)
		}
	}
}

func TestRandomTwoPrefersTheLessBusy(t *testing.T) {
	_, b := set(4)
	b.all[0].active.Store(100)
	got := map[*Endpoint]int{}
	for range 4000 {
		got[b.Pick(RandomTwo, nil)]++
	}
	if got[b.all[0]] != 0 {
		t.Errorf("the busiest of four was drawn %d times", got[b.all[0]])
	}
	for _, e := range b.all[1:] {
		if n := got[e]; n < 1000 || n > 1700 {
			t.Errorf("%s: %d of 4000", e.Addr, n)
		}
	}
}

func TestHashMovesOnlyTheKeysOfWhoLeaves(t *testing.T) {
	s, b := set(10)
	before, load := map[string]*Endpoint{}, map[*Endpoint]int{}
	for i := range 5000 {
		k := fmt.Sprint("key", i)
		e := b.Hash([]byte(k), nil)
		before[k] = e
		load[e]++
	}
	for e, n := range load {
		if math.Abs(float64(n)-500) > 125 {
			t.Errorf("%s has %d of 5000 keys", e.Addr, n)
		}
	}
	less := backend(10)
	less.Endpoints = append(less.Endpoints[:3:3], less.Endpoints[4:]...)
	s.Change(map[string]*schema.Backend{"b": less})
	b = s.Lookup("b")
	for k, e := range before {
		now := b.Hash([]byte(k), nil)
		if e.Addr != addr(3) && now != e {
			t.Fatalf("%s moved from %s to %s", k, e.Addr, now.Addr)
		}
		if now.Addr == addr(3) {
			t.Fatalf("%s stays with who left", k)
		}
	}
}

func TestEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, b := set(3)
		bad := b.all[1]
		share := func() (n int) {
			for range 300 {
				if b.Pick(RoundRobin, nil) == bad {
					n++
				}
			}
			return n
		}
		for i, out := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
			for range 4 {
				bad.Failed()
			}
			if share() != 100 {
				t.Fatalf("%d: ejected after 4 failures", i)
			}
			bad.Failed()
			if share() != 0 || !bad.Ejected() {
				t.Fatalf("%d: not ejected after 5 failures", i)
			}
			time.Sleep(out - time.Millisecond)
			if share() != 0 {
				t.Fatalf("%d: back before %v", i, out)
			}
			time.Sleep(2 * time.Millisecond)
			if share() != 100 {
				t.Fatalf("%d: not back after %v", i, out)
			}
		}
		// A success between two failures starts the count anew, and the back-off.
		bad.Worked()
		for range 20 {
			for range 4 {
				bad.Failed()
			}
			bad.Worked()
		}
		if bad.Ejected() {
			t.Error("ejected by failures that were not in a row")
		}
		// All are ejected: an endpoint is still asked, and one that was not tried.
		for _, e := range b.all {
			for range 5 {
				e.Failed()
			}
		}
		tried := b.all[:2]
		for range 50 {
			for _, how := range []Balance{RandomTwo, RoundRobin} {
				if e := b.Pick(how, tried); e != b.all[2] {
					t.Fatal("one that was tried, where another was not")
				}
			}
			if b.Hash([]byte("k"), nil) == nil {
				t.Fatal("nobody")
			}
		}
	})
}

func TestSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(Defaults())
		s.Replace(map[string]*schema.Backend{"b": backend(2)})
		time.Sleep(time.Minute)
		s.Replace(map[string]*schema.Backend{"b": backend(3)})
		b := s.Lookup("b")
		for _, e := range b.all {
			e.active.Store(2) // a steady load
		}
		share := func() (n int) {
			for range 1000 {
				if b.Pick(RandomTwo, nil).Addr == addr(2) {
					n++
				}
			}
			return n
		}
		if n := share(); n > 50 {
			t.Errorf("at first the new one gets %d of 1000", n)
		}
		time.Sleep(time.Minute)
		if n := share(); n < 250 || n > 420 {
			t.Errorf("later it gets %d of 1000", n)
		}
	})
}

func TestDrainingOnesGetNothingNew(t *testing.T) {
	s, _ := set(0)
	some := backend(3)
	some.Endpoints[1].Draining = true
	s.Replace(map[string]*schema.Backend{"b": some})
	b := s.Lookup("b")
	for i := range 300 {
		if b.Pick(RoundRobin, nil).Addr == addr(1) || b.Pick(RandomTwo, nil).Addr == addr(1) ||
			b.Hash([]byte(fmt.Sprint(i)), nil).Addr == addr(1) {
			t.Fatal("drawn")
		}
	}
	if !slices.ContainsFunc(b.All(), func(e *Endpoint) bool { return e.Addr == addr(1) }) {
		t.Error("a client that has a cookie for it loses it before it is gone")
	}
}

// Endpoints are the same objects through all changes while any backend has them.
func TestEndpointsOutliveChanges(t *testing.T) {
	s, b := set(2)
	first := b.all[0]
	s.Change(map[string]*schema.Backend{"c": backend(1)})
	s.Change(map[string]*schema.Backend{"b": nil})
	if s.Lookup("b") != nil || s.Lookup("c").all[0] != first || first.gone {
		t.Error("it is another, or gone")
	}
	s.Replace(map[string]*schema.Backend{"d": backend(2)})
	if s.Lookup("d").all[0] != first || first.gone {
		t.Error("it is another after Replace")
	}
	same := s.Lookup("d")
	s.Replace(map[string]*schema.Backend{"d": backend(2)})
	if s.Lookup("d") != same {
		t.Error("an equal backend is made anew")
	}
	s.Replace(nil)
	if len(s.endpoints) != 0 || !first.gone {
		t.Errorf("%d endpoints are left", len(s.endpoints))
	}
}

func TestIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := Defaults()
		st.IdlePerEndpoint = 3
		var open atomic.Int64
		st.Dial = func(context.Context, string, string) (net.Conn, error) {
			a, b := net.Pipe()
			open.Add(1)
			go func() {
				_, _ = b.Read(make([]byte, 1)) // until the other side is closed
				open.Add(-1)
			}()
			return a, nil
		}
		s := NewSet(st)
		s.Replace(map[string]*schema.Backend{"b": backend(1)})
		e := s.Lookup("b").all[0]
		ctx, cancel := context.WithCancel(t.Context())
		go s.Run(ctx)
		get := func(n int, reuse bool) {
			t.Helper()
			for range n {
				c, reused, err := e.Get(t.Context(), false, false, time.Second)
				if err != nil || reused != reuse {
					t.Fatal(reused, err)
				}
				defer e.Put(c, false)
			}
		}
		check := func(want int64) {
			t.Helper()
			if synctest.Wait(); open.Load() != want {
				t.Fatalf("%d connections are open, want %d", open.Load(), want)
			}
		}
		get(5, false)
		check(3) // two had no room
		time.Sleep(40 * time.Second)
		get(1, true)
		time.Sleep(25 * time.Second)
		check(1) // the others were idle for a minute
		get(1, true)
		s.Replace(nil)
		check(0)
		cancel()
		synctest.Wait()
	})
}
