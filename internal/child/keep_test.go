package child

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Children that end at once are started again after waits that double, to 5 s; one that ran for a minute begins anew.
func TestKeepWaitsLongerAndLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var starts []time.Duration
		begin, failed := time.Now(), errors.New("failed")
		var told []error
		err := Keep(ctx, func(context.Context) error {
			starts = append(starts, time.Since(begin))
			switch len(starts) {
			case 10:
				time.Sleep(2 * time.Minute) // it ran well
			case 12:
				cancel()
			}
			return failed
		}, func(err error) { told = append(told, err); begin = time.Now() })
		ms := time.Millisecond
		want := []time.Duration{0, 50 * ms, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 5000 * ms,
			5000 * ms, 50 * ms, 100 * ms}
		if !slices.Equal(starts, want) {
			t.Errorf("waits are %v, want %v", starts, want)
		}
		if !errors.Is(err, failed) || len(told) != len(want) {
			t.Errorf("returned %v after %d children", err, len(told))
		}
	})
}

// An end of the context ends the wait.
func TestKeepEndsWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 75*time.Millisecond)
		defer cancel()
		n := 0
		err := Keep(ctx, func(context.Context) error { n++; return errors.New("failed") }, func(error) {})
		if err != nil || n != 2 {
			t.Errorf("%v after %d children", err, n)
		}
	})
}
