package networkpolicy

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"wayleave.dev/model"
)

// TestAPodWaitsForItsIsolation: a pod passes when the loop has planned with its lease
// and its keys hold, not before.
func TestAPodWaitsForItsIsolation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate("node1")
		a := netip.MustParseAddr("10.244.0.5")
		known := make(chan error, 1)
		go func() { known <- g.Known(t.Context()) }()
		synctest.Wait()
		select {
		case <-known:
			t.Fatal("leases are known that nobody gave")
		default:
		}
		g.Leases(map[netip.Addr]model.Name{a: {Namespace: "x", Name: "a"}})
		synctest.Wait()
		if err := <-known; err != nil {
			t.Fatal(err)
		}
		g.Take()
		g.Leases(map[netip.Addr]model.Name{a: {Namespace: "x", Name: "b"}}) // the address has another pod now
		passed := make(chan error, 1)
		go func() { passed <- g.Isolate(t.Context(), []netip.Addr{a}) }()
		synctest.Wait()
		yes, no := func(Key) bool { return true }, func(k Key) bool { return k.Direction != Egress }
		g.AfterRound(yes) // of the lease before
		synctest.Wait()
		if len(passed) > 0 {
			t.Fatal("it passed by the isolation of the pod before")
		}
		if l, changed := g.Take(); !changed || l.Pods[a].Name != "b" {
			t.Fatalf("the loop takes %v, %v", l, changed)
		}
		g.AfterRound(no)
		synctest.Wait()
		if len(passed) > 0 {
			t.Fatal("it passed while one direction does not hold")
		}
		g.AfterRound(yes)
		if err := <-passed; err != nil {
			t.Fatal(err)
		}
		// A pod whose keys hold already is let pass by the next round, which it asks for.
		<-g.Wake()
		go func() { passed <- g.Isolate(t.Context(), []netip.Addr{a}) }()
		<-g.Wake()
		g.AfterRound(yes)
		if err := <-passed; err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.Isolate(ctx, []netip.Addr{a}); err == nil {
			t.Error("a pod passed though nothing was programmed")
		}
	})
}
