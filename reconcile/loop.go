package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"wayleave.dev/model"
)

// Retry back-off of failed work: doubled from first to last.
const (
	retryFirst = 100 * time.Millisecond
	retryLast  = 30 * time.Second
)

// Loop drives one feature. Set the fields, then call Run once.
type Loop[K comparable, P any] struct {
	// Name is the feature's, for messages and metrics: "service".
	Name  string
	Store *model.Store
	// Kinds are what the feature plans from.
	Kinds model.Kind
	// Keys turns a change into the keys to plan anew; nil keys are fine.
	Keys func(model.Snapshot, model.Changes) []K
	// Plan is pure. ok false means that nothing is wanted for the key. Problems
	// are reported; what is planned beside them is used.
	Plan func(model.Snapshot, K) (plan P, ok bool, problems []model.Problem)
	// Equal compares two plans of one key; equal plans are not applied again.
	Equal func(a, b P) bool
	// Target brings the plans about.
	Target Target[K, P]
	// Foreign tells that somebody else changed what is ours; may be nil.
	Foreign <-chan struct{}
	// Wake tells that facts changed which are not in the store: Keys is asked again, with
	// no changes; may be nil.
	Wake <-chan struct{}
	// Settled is told after each round, and may ask which keys hold: those whose last plan
	// is in effect. It must not block, nor keep holds. May be nil.
	Settled func(holds func(K) bool)
	// Report gets the problems of a key whenever it was planned; none means that
	// earlier ones are gone. May be nil.
	Report func(key string, problems []model.Problem)
	// Health gets the outcome; must be set.
	Health *Health
	Log    *slog.Logger

	plans   map[K]P
	pending map[K]struct{} // keys whose plan changed and is not in the kernel yet
	failed  map[K]struct{} // subset of pending that failed and waits for its retry
	resync  bool
	backoff time.Duration
	retryAt time.Time
	since   time.Time // of the oldest change not yet applied
}

// Run drives the feature until ctx ends, and returns ctx's error. It first waits
// until the watched kinds are synced.
func (l *Loop[K, P]) Run(ctx context.Context) error {
	if err := l.Store.WaitSynced(ctx, l.Kinds); err != nil {
		return err
	}
	w, err := l.Store.Watch(l.Kinds)
	if err != nil {
		return fmt.Errorf("%s: %w", l.Name, err)
	}
	defer w.Close()
	l.plans, l.pending, l.failed = map[K]P{}, map[K]struct{}{}, map[K]struct{}{}
	l.resync, l.since = true, time.Now()
	for {
		snap, changes, ready := w.Poll()
		l.plan(snap, changes)
		l.apply(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		if l.Settled != nil {
			l.Settled(l.holds)
		}
		l.wait(ctx, ready)
	}
}

// holds says whether the last plan of the key, or that there is none, is in effect.
func (l *Loop[K, P]) holds(k K) bool {
	_, waits := l.pending[k]
	return !l.resync && !waits
}

// wait returns when there may be something to do.
func (l *Loop[K, P]) wait(ctx context.Context, ready model.Ready) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var retry <-chan time.Time
	if !l.retryAt.IsZero() {
		t := time.NewTimer(time.Until(l.retryAt))
		defer t.Stop()
		retry = t.C
	}
	select {
	case <-ctx.Done():
	case <-ready.C(ctx):
		if l.since.IsZero() {
			l.since = time.Now()
		}
	case <-l.Wake:
		if l.since.IsZero() {
			l.since = time.Now()
		}
	case <-retry:
	case <-l.Foreign:
		l.Log.Warn("foreign change found, repairing", "feature", l.Name)
		l.Health.foreign()
		l.resync = true
		if l.since.IsZero() {
			l.since = time.Now()
		}
	}
}

func (l *Loop[K, P]) plan(snap model.Snapshot, changes model.Changes) {
	for _, k := range l.Keys(snap, changes) {
		p, ok, problems := l.Plan(snap, k)
		if l.Report != nil {
			l.Report(fmt.Sprint(k), problems)
		}
		old, had := l.plans[k]
		switch {
		case ok && had && l.Equal(old, p):
			continue
		case ok:
			l.plans[k] = p
		case had:
			delete(l.plans, k)
		default:
			continue
		}
		l.pending[k] = struct{}{}
		delete(l.failed, k) // a new plan deserves a new try at once
	}
}

// apply brings pending plans about, unless all that is left waits for a retry.
func (l *Loop[K, P]) apply(ctx context.Context) {
	now := time.Now()
	due := l.retryAt.IsZero() || !now.Before(l.retryAt)
	if l.resync {
		if due {
			l.done(l.Target.Sync(ctx, maps.Clone(l.plans)), l.pending, true)
		}
		return
	}
	set, del, keys := map[K]P{}, []K{}, map[K]struct{}{}
	for k := range l.pending {
		if _, waits := l.failed[k]; waits && !due {
			continue
		}
		keys[k] = struct{}{}
		if p, ok := l.plans[k]; ok {
			set[k] = p
		} else {
			del = append(del, k)
		}
	}
	if len(keys) == 0 {
		if len(l.pending) == 0 {
			l.since = time.Time{}
		}
		return
	}
	l.done(l.Target.Apply(ctx, set, del), keys, false)
}

// done books the outcome for the keys that were tried.
func (l *Loop[K, P]) done(err error, keys map[K]struct{}, whole bool) {
	var byKey KeyErrors[K]
	switch {
	case err == nil || errors.As(err, &byKey):
		l.resync = false
		for _, k := range slices.Collect(maps.Keys(keys)) {
			delete(l.pending, k)
			delete(l.failed, k)
		}
		for k := range byKey {
			l.pending[k] = struct{}{}
			l.failed[k] = struct{}{}
		}
	default:
		l.resync = true
	}
	if err != nil {
		l.backoff = min(max(2*l.backoff, retryFirst), retryLast)
		l.retryAt = time.Now().Add(l.backoff)
		l.Log.Error("could not apply", "feature", l.Name, "err", err, "retry", l.backoff)
		l.Health.failed(err, len(l.plans), !l.resync)
		return
	}
	if len(l.failed) == 0 {
		l.backoff, l.retryAt = 0, time.Time{}
		l.Health.applied(whole, time.Since(l.since), len(l.plans))
	}
	l.since = time.Time{}
}
