package nftables

import (
	"os"
	"strconv"
	"testing"
	"time"

	"wayleave.dev/networkpolicy/world"
)

// check tries the shots. What should have arrived and has not is sent again: a queue
// that is full loses packets, and does so a second time hardly. What arrived and should
// not have is wrong at once.
func (a *arena) check(list []shot) (wrong []shot) {
	a.t.Helper()
	for _, s := range a.try(list) {
		if !s.Want {
			wrong = append(wrong, s)
			continue
		}
		arrives := false
		for range 3 {
			arrives = arrives || len(a.try([]shot{s})) == 0
		}
		if !arrives {
			wrong = append(wrong, s)
		}
	}
	return wrong
}

// everyVariable is set to N to play each N-th set only, where the kernel is slow, and to 1
// to play all sets in all modes.
const everyVariable = "WAYLEAVE_WORLD_EVERY"

// everyLegacy is how many sets of iptables-legacy are one that is played when nobody says
// otherwise: it differs from iptables-nft by its program only. `make fuzz` plays all.
const everyLegacy = 8

// chosen are the sets to play: each of that many, unless the environment says how many.
func chosen(t *testing.T, every int) (out []world.Set) {
	t.Helper()
	sets, err := world.Sets()
	if err != nil {
		t.Fatal(err)
	}
	if len(sets) < 200 {
		t.Errorf("only %d sets", len(sets))
	}
	if v := os.Getenv(everyVariable); v != "" {
		if every, err = strconv.Atoi(v); err != nil || every < 1 {
			t.Fatalf("%s is %q, want a number from 1", everyVariable, v)
		}
	}
	for i := 0; i < len(sets); i += every {
		out = append(out, sets[i])
	}
	return out
}

// Every packet of the small world goes as it was reasoned, and as Evaluate says (which
// the world's own test shows to be the same), with each mode of the service proxy
// beside, and by a ClusterIP. Sets follow each other as changes.
func TestTheSmallWorldInAKernel(t *testing.T) {
	for _, mode := range []string{"nftables", "iptables-nft", "iptables-legacy", "ipvs"} {
		t.Run(mode, func(t *testing.T) {
			start, every := time.Now(), 1
			if mode == "iptables-legacy" {
				every = everyLegacy
			}
			sets := chosen(t, every)
			a := newArena(t)
			a.services(mode)
			probes, denied := 0, 0
			for _, set := range sets {
				for i, step := range set.Steps {
					if err := step.Put(a.store); err != nil {
						t.Fatal(err)
					}
					if err := a.follow(); err != nil {
						t.Fatal(err)
					}
					list := shots(step, true, mode == "nftables")
					for _, s := range list {
						if probes++; !s.Want {
							denied++
						}
					}
					for _, s := range a.check(list) {
						t.Errorf("%s (%s, step %d): %s: want %t", set.Name, step.At, i+1, s, s.Want)
					}
					if t.Failed() {
						t.Fatalf("after %d probes the kernel has\n%s", probes, a.node.Run("nft", "list", "ruleset"))
					}
				}
			}
			t.Logf("%d sets, %d probes, %d of them denied, in %s", len(sets), probes, denied, time.Since(start))
		})
	}
}
