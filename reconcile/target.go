package reconcile

import (
	"context"
	"fmt"
	"maps"
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

// manyBad is how many keys may fail before it is taken for a fault of the kernel or the
// node, and not of the keys.
const manyBad = 32

// Halve tries the keys at once, and when that fails in two halves, and so on, so that one
// bad key stops no other. Keys that fail alone are put into failed. An error for which
// fatal says yes, since no other choice of keys would avoid it, is returned at once, and so
// is one of many keys that failed: the state is not known then. noun is what messages call
// the keys.
func Halve[K comparable](noun string, keys []K, failed KeyErrors[K], try func([]K) error, fatal func(error) bool) error {
	if len(keys) == 0 {
		return nil
	}
	err := try(keys)
	switch {
	case err == nil:
		return nil
	case fatal(err):
		return err
	case len(keys) > 1:
		half := len(keys) / 2
		if err := Halve(noun, keys[:half], failed, try, fatal); err != nil {
			return err
		}
		return Halve(noun, keys[half:], failed, try, fatal)
	}
	if failed[keys[0]] = err; len(failed) >= manyBad {
		return fmt.Errorf("%d %s could not be programmed: %w", len(failed), noun, err)
	}
	return nil
}
