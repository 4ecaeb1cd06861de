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

// Retry back-off of failed work: doubled from first to last. A foreign change is repaired
// at once, or when the last try of all failed, repairAfter that.
const (
	retryFirst  = 100 * time.Millisecond
	retryLast   = 30 * time.Second
	repairAfter = 500 * time.Millisecond
)

// retry is when failed work is tried again, and why it failed.
type retry struct {
	at      time.Time
	backoff time.Duration
	err     error
}

// after is the retry that follows one more failure; r may be nil.
func (r *retry) after(err error) *retry {
	next := &retry{backoff: retryFirst, err: err}
	if r != nil {
		next.backoff = min(2*r.backoff, retryLast)
	}
	next.at = time.Now().Add(next.backoff)
	return next
}

// Loop drives one feature. Set the fields, then call Run once.
type Loop[K comparable, P any] struct {
	// Name is the feature's, for messages and metrics: "service".
	Name  string
	Store *model.Store
	// Kinds are what the feature plans from.
	Kinds model.Kind
	// Planner makes the plans.
	Planner Planner[K, P]
	// Equal compares two plans of one key; equal plans are not applied again.
	Equal func(a, b P) bool
	// Target brings the plans about.
	Target Target[K, P]
	// Foreign tells that somebody else changed what is ours; may be nil.
	Foreign <-chan struct{}
	// Wake tells that facts changed which are not in the store: the planner is asked again,
	// with no changes; may be nil.
	Wake <-chan struct{}
	// AfterRound is called after each round. applied says whether the last plan of a key is
	// in effect. It must not block, nor keep applied. May be nil.
	AfterRound func(applied func(K) bool)
	// Report gets the problems of a key whenever it was planned; none means that
	// earlier ones are gone. May be nil.
	Report func(key string, problems []model.Problem)
	// Health gets the outcome; must be set.
	Health *Health
	Log    *slog.Logger

	plans   map[K]P
	pending map[K]struct{} // keys whose plan changed and is not in the kernel yet
	failed  map[K]*retry   // of pending, what failed: each waits for its own retry
	// resync says that everything is to be looked at: at start, after a foreign change, and
	// when the state is not known. whole is its retry, when it failed.
	resync bool
	whole  *retry
	since  time.Time // of the oldest change not yet applied
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
	l.plans, l.pending, l.failed = map[K]P{}, map[K]struct{}{}, map[K]*retry{}
	l.resync, l.since = true, time.Now()
	for {
		snap, changes, ready := w.Poll()
		l.plan(snap, changes)
		l.apply(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		if l.AfterRound != nil {
			l.AfterRound(l.applied)
		}
		l.wait(ctx, ready)
	}
}

// applied says whether the last plan of the key, or that there is none, is in effect.
func (l *Loop[K, P]) applied(k K) bool {
	_, waits := l.pending[k]
	return !l.resync && !waits
}

// wait returns when there may be something to do.
func (l *Loop[K, P]) wait(ctx context.Context, ready model.Ready) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var retry <-chan time.Time
	if at := l.nextRetry(); !at.IsZero() {
		t := time.NewTimer(time.Until(at))
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
		if at := time.Now().Add(repairAfter); l.whole != nil && l.whole.at.After(at) {
			l.whole.at = at
		}
		if l.since.IsZero() {
			l.since = time.Now()
		}
	}
}

// nextRetry is when the next failed work is due; zero for none. While everything is to be
// looked at, that alone counts.
func (l *Loop[K, P]) nextRetry() (at time.Time) {
	if l.resync {
		if l.whole != nil {
			at = l.whole.at
		}
		return at
	}
	for _, r := range l.failed {
		if at.IsZero() || r.at.Before(at) {
			at = r.at
		}
	}
	return at
}

func (l *Loop[K, P]) plan(snap model.Snapshot, changes model.Changes) {
	for _, k := range l.Planner.Keys(snap, changes) {
		p, ok, problems := l.Planner.Plan(snap, k)
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

// apply brings pending plans about, but for those that wait for their own retry. Back-off
// of single keys delays nothing else: neither a repair, nor another key.
func (l *Loop[K, P]) apply(ctx context.Context) {
	now := time.Now()
	if l.resync {
		if l.whole == nil || !now.Before(l.whole.at) {
			if l.since.IsZero() {
				l.since = now
			}
			l.done(l.Target.Sync(ctx, maps.Clone(l.plans)), l.pending, true)
		}
		return
	}
	set, del, keys := map[K]P{}, []K{}, map[K]struct{}{}
	for k := range l.pending {
		if r, waits := l.failed[k]; waits && now.Before(r.at) {
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
	if l.since.IsZero() { // a retry
		l.since = now
	}
	l.done(l.Target.Apply(ctx, set, del), keys, false)
}

// done records the outcome for the keys that were tried.
func (l *Loop[K, P]) done(err error, keys map[K]struct{}, whole bool) {
	var byKey KeyErrors[K]
	if err != nil && !errors.As(err, &byKey) {
		l.resync, l.whole = true, l.whole.after(err)
		l.Log.Error("could not apply", "feature", l.Name, "err", err, "retry", l.whole.backoff)
		l.Health.failed(err, len(l.plans), false)
		return
	}
	l.resync, l.whole = false, nil
	for _, k := range slices.Collect(maps.Keys(keys)) {
		delete(l.pending, k)
		if byKey[k] == nil {
			delete(l.failed, k)
		}
	}
	l.keep(byKey)
	took := time.Since(l.since)
	l.since = time.Time{}
	switch {
	case len(l.failed) == 0:
		l.Health.applied(whole, took, len(l.plans))
	case len(byKey) == 0 || len(byKey) < len(keys):
		l.Health.progressed(l.failures(), took, len(l.plans))
	}
	if len(byKey) > 0 {
		l.Log.Error("could not apply", "feature", l.Name, "err", byKey)
		l.Health.failed(l.failures(), len(l.plans), true)
	}
}

// keep has each failed key wait for its own retry. A key that failed in passing, before its
// retry was due, as in a repair, keeps that.
func (l *Loop[K, P]) keep(byKey KeyErrors[K]) {
	now := time.Now()
	for k, err := range byKey {
		l.pending[k] = struct{}{}
		if r := l.failed[k]; r != nil && now.Before(r.at) {
			r.err = err
			continue
		}
		l.failed[k] = l.failed[k].after(err)
	}
}

// failures are the errors of all keys that fail now.
func (l *Loop[K, P]) failures() KeyErrors[K] {
	out := make(KeyErrors[K], len(l.failed))
	for k, r := range l.failed {
		out[k] = r.err
	}
	return out
}
