package reconcile

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"wayleave.dev/model"
)

// pause lets time pass, and waits until all goroutines wait again: the target may be looked at
// and changed after that.
func pause(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// A repair does not wait for the retry of a key that fails: 30 s, once it has failed often.
func TestARepairWaitsForNoKey(t *testing.T) {
	run(t, func(w *fixture) {
		w.target.failKey[name(1)] = 1 << 30
		w.put(1, 1)
		w.put(2, 1)
		w.store.MarkSynced(model.ServiceKind)
		pause(5 * time.Minute)
		for range 50 { // whenever it comes
			w.target.have = map[model.Name]int{}
			w.foreign <- struct{}{}
			w.want(map[model.Name]int{name(2): 1})
			pause(700 * time.Millisecond)
		}
	})
}

// When all of it failed, a foreign change has it tried within a second, and a storm of them
// does not have it tried without pause.
func TestARepairIsTriedWithinASecondAfterAFailure(t *testing.T) {
	run(t, func(w *fixture) {
		w.target.failAll = 1 << 30
		w.put(1, 1)
		w.store.MarkSynced(model.ServiceKind)
		pause(5 * time.Minute)
		w.target.failAll = 0
		w.foreign <- struct{}{}
		pause(time.Second)
		w.want(map[model.Name]int{name(1): 1})

		w.target.failAll = 1 << 30
		before := len(w.target.calls)
		w.foreign <- struct{}{}
		for range 1000 {
			w.foreign <- struct{}{}
			pause(10 * time.Millisecond)
		}
		if n := len(w.target.calls) - before; n > 25 {
			t.Errorf("%d tries in 10 s", n)
		}
	})
}

// Each failing key has a back-off of its own: doubled, from 100 ms to 30 s, whatever the
// others do.
func TestEachKeyHasItsOwnBackoff(t *testing.T) {
	run(t, func(w *fixture) {
		w.store.MarkSynced(model.ServiceKind)
		synctest.Wait()
		w.target.failKey[name(1)] = 1 << 30
		w.put(1, 1)
		pause(10 * time.Minute) // at 30 s by now
		w.target.failKey[name(2)] = 3
		start := time.Now()
		w.put(2, 1)
		pause(100*time.Millisecond + 200*time.Millisecond + 400*time.Millisecond + time.Millisecond)
		w.want(map[model.Name]int{name(2): 1})
		if w.target.failKey[name(2)] != 0 {
			t.Errorf("%s after the first try the second key still fails", time.Since(start))
		}
	})
}

// Some keys fail for a time, others come and change, and foreign hands take things away:
// what does not fail is in the kernel at once, what is taken away within a second, and what
// fails is tried often enough and not more.
func TestRandomFailuresDelayNothingElse(t *testing.T) {
	for seed := range uint64(20) {
		run(t, func(w *fixture) { random(t, w, rand.New(rand.NewPCG(seed, 14))) })
	}
}

func random(t *testing.T, w *fixture, r *rand.Rand) {
	w.store.MarkSynced(model.ServiceKind)
	synctest.Wait()
	want := map[model.Name]int{}
	bad := map[int]bool{}
	good := func() map[model.Name]int {
		out := maps.Clone(want)
		maps.DeleteFunc(out, func(k model.Name, _ int) bool { return w.target.failKey[k] > 0 })
		return out
	}
	check := func(when string) {
		t.Helper()
		w.target.mu.Lock()
		defer w.target.mu.Unlock()
		for k, v := range good() {
			if w.target.have[k] != v {
				t.Fatalf("%s: %s is %d, want %d (calls %v)", when, k, w.target.have[k], v, w.target.calls)
			}
		}
	}
	for range 60 {
		synctest.Wait()
		i := r.IntN(12)
		switch r.IntN(4) {
		case 0: // fails from now on
			w.target.mu.Lock()
			w.target.failKey[name(i)] = 1 << 30
			w.target.mu.Unlock()
			bad[i] = true
			want[name(i)] = 1 + r.IntN(1000)
			w.put(i, portsOf(want[name(i)]))
			want[name(i)] = portsOf(want[name(i)])
		case 1: // foreign hands
			w.target.mu.Lock()
			w.target.have = map[model.Name]int{}
			w.target.mu.Unlock()
			w.foreign <- struct{}{}
			pause(time.Second)
			check("a second after a foreign change")
		case 2:
			pause(time.Duration(r.IntN(40)) * time.Second)
		default:
			if bad[i] {
				continue
			}
			want[name(i)] = portsOf(1 + r.IntN(1000))
			w.put(i, want[name(i)])
			synctest.Wait()
			check("right after a change")
		}
	}
	w.target.mu.Lock()
	w.target.failKey = map[model.Name]int{}
	w.target.mu.Unlock()
	pause(retryLast)
	check("when nothing fails any more")
	if s := w.health.State(); s.Error != "" {
		t.Errorf("health says %q", s.Error)
	}
}

// portsOf avoids the number of ports that the fixture takes for a problem.
func portsOf(n int) int {
	if n == 99 {
		return 98
	}
	return n
}

// However many keys fail, those that do not are tried, and the state is known.
func TestManyBadKeysStopNoOther(t *testing.T) {
	const bad, good = 2000, 200
	keys := make([]int, 0, bad+good)
	for i := range bad + good {
		keys = append(keys, i) // the bad ones first
	}
	done, tries := map[int]bool{}, 0
	for round := 0; len(done) < good; round++ {
		if round > 100 {
			t.Fatalf("%d of %d good keys after %d rounds", len(done), good, round)
		}
		failed := KeyErrors[int]{}
		err := Halve(keys, failed, func(part []int) error {
			tries++
			if slices.ContainsFunc(part, func(k int) bool { return k < bad }) {
				return fmt.Errorf("no")
			}
			for _, k := range part {
				done[k] = true
			}
			return nil
		}, func(error) bool { return false })
		if err != nil {
			t.Fatal(err)
		}
		keys = slices.DeleteFunc(keys, func(k int) bool { return failed[k] == nil })
		for _, k := range keys {
			if k >= bad && !errors.Is(failed[k], errUntried) {
				t.Fatalf("key %d: %v", k, failed[k])
			}
		}
	}
	t.Logf("%d tries", tries)
}
