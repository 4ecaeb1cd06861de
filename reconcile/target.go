package reconcile

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

// Target brings plans into the kernel (or wherever they act). A Loop calls it
// from one goroutine.
type Target[K comparable, P any] interface {
	// Sync makes exactly these plans hold: it reads what is there, adopts what
	// is right, repairs what is not and removes what is ours and stale, without
	// disturbing traffic. Called at start, after foreign changes and errors.
	Sync(ctx context.Context, plans map[K]P) error
	// Apply sets the changed keys, the whole desired state of each, and removes
	// the keys in del. Its cost follows what changed.
	Apply(ctx context.Context, set map[K]P, del []K) error
}

// KeyErrors says that the named keys failed while all others hold. Any other
// error of a Target means an unknown state: the loop will Sync again.
type KeyErrors[K comparable] map[K]error

// Error lists up to three of the failed keys.
func (e KeyErrors[K]) Error() string {
	var parts []string
	for k, err := range e {
		parts = append(parts, fmt.Sprintf("%v: %v", k, err))
	}
	slices.Sort(parts)
	if len(parts) > 3 {
		parts = append(parts[:3], fmt.Sprintf("and %d more", len(e)-3))
	}
	return strings.Join(parts, "; ")
}

// Unwrap gives errors.Is and errors.As the single errors.
func (e KeyErrors[K]) Unwrap() []error { return slices.Collect(maps.Values(e)) }

// manyBad bounds the work of one round: when so many keys have failed, those that are left
// wait for their retry untried. They are in another order then.
const manyBad = 256

// errUntried is that of keys that wait for others' sake.
var errUntried = fmt.Errorf("not tried: %d others failed before it in this round", manyBad)

// Halve tries the keys at once, and when that fails in two halves, and so on, so that one
// bad key stops no other, however many there are. Keys that fail alone are put into
// failed. An error for which fatal says yes, since no other choice of keys would avoid it,
// is returned at once: the state is not known then.
func Halve[K comparable](keys []K, failed KeyErrors[K], try func([]K) error, fatal func(error) bool) error {
	if len(keys) == 0 {
		return nil
	}
	err := try(keys)
	switch {
	case err == nil:
		return nil
	case fatal(err):
		return err
	case len(keys) == 1:
		failed[keys[0]] = err
		return nil
	}
	// In any order, so that nobody's names decide who is tried first when many fail.
	keys = slices.Clone(keys)
	rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	h := halving[K]{failed, try, fatal, len(failed) + manyBad}
	if err := h.half(keys[:len(keys)/2]); err != nil {
		return err
	}
	return h.half(keys[len(keys)/2:])
}

// halving is one round of Halve; limit is how many failed keys end it.
type halving[K comparable] struct {
	failed KeyErrors[K]
	try    func([]K) error
	fatal  func(error) bool
	limit  int
}

func (h halving[K]) half(keys []K) error {
	if len(h.failed) >= h.limit {
		for _, k := range keys {
			h.failed[k] = errUntried
		}
		return nil
	}
	err := h.try(keys)
	switch {
	case err == nil:
		return nil
	case h.fatal(err):
		return err
	case len(keys) == 1:
		h.failed[keys[0]] = err
		return nil
	}
	if err := h.half(keys[:len(keys)/2]); err != nil {
		return err
	}
	return h.half(keys[len(keys)/2:])
}
