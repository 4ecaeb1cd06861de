package testnet

import (
	"sync/atomic"
	"testing"
	"time"
)

// Stalls measures for how long this machine gave the test no processor. A bound of the product, such as "within a
// second", does not include that time.
type Stalls struct {
	total atomic.Int64
}

const (
	stallEvery = 5 * time.Millisecond
	// stallFrom is the delay of a tick that counts as a stall; shorter ones are the kernel's timers.
	stallFrom = 20 * time.Millisecond
)

// WatchStalls measures until the test ends.
func WatchStalls(t testing.TB) *Stalls {
	s := &Stalls{}
	start, stop := time.Now(), make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() {
		for last := start; ; {
			select {
			case <-stop:
				return
			case <-time.After(stallEvery):
			}
			now := time.Now()
			if late := now.Sub(last) - stallEvery; late > stallFrom {
				s.total.Add(int64(late))
			}
			last = now
		}
	}()
	return s
}

// Total returns the sum so far.
func (s *Stalls) Total() time.Duration { return time.Duration(s.total.Load()) }

// Promptly is Eventually for a bound of the product: the machine's stalls do not count, up to 20 times the bound.
func Promptly(t testing.TB, within time.Duration, fn func() error) {
	t.Helper()
	s, start := WatchStalls(t), time.Now()
	for {
		err := fn()
		if err == nil {
			return
		}
		if took := time.Since(start); took > within+min(s.Total(), 20*within) {
			t.Fatalf("not within %s and %s of stalls: %v", within, s.Total(), err)
		}
		time.Sleep(stallEvery)
	}
}
