package handoff

import (
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"wayleave.dev/internal/frame"
)

// Listening is a list of sockets on the wire. All are those that could be opened, Wanted is their desired number.
// Passed are those whose descriptors are in the same frame, in that order.
type Listening[S comparable] struct {
	All    []S `json:"all"`
	Wanted int `json:"wanted"`
	Passed []S `json:"passed,omitempty"`
}

// Opener opens the sockets that children lack. A socket that cannot be opened blocks no other, and is retried. It is
// guarded by the feed's lock.
type Opener[S comparable] struct {
	Open func(S) (*os.File, error)
	Log  *slog.Logger

	failures map[S]error
}

// Keep forgets the failures of sockets that are not in the list.
func (o *Opener[S]) Keep(list []S) {
	maps.DeleteFunc(o.failures, func(k S, _ error) bool { return !slices.Contains(list, k) })
}

// Failures returns the sockets that could not be opened, with the reason.
func (o *Opener[S]) Failures() map[S]error { return maps.Clone(o.failures) }

// Next opens the sockets of the list that a child does not hold, and records that it holds them. retry, if not 0, is
// when to call again: a socket could not be opened, or did not fit into the frame.
func (o *Opener[S]) Next(list []S, holds map[S]bool) (l *Listening[S], files []*os.File, retry time.Duration) {
	maps.DeleteFunc(holds, func(k S, _ bool) bool { return !slices.Contains(list, k) })
	l = &Listening[S]{All: []S{}, Wanted: len(list)}
	for _, k := range list {
		if holds[k] {
			l.All = append(l.All, k)
			continue
		}
		if len(files) == frame.MaxPassed {
			retry = retryAfter
			continue
		}
		file, err := o.Open(k)
		if err != nil {
			o.failed(k, err)
			retry = retryAfter
			continue
		}
		delete(o.failures, k)
		holds[k] = true
		l.All, l.Passed, files = append(l.All, k), append(l.Passed, k), append(files, file)
	}
	return l, files, retry
}

// failed records why a socket could not be opened, and logs it once.
func (o *Opener[S]) failed(k S, err error) {
	if was := o.failures[k]; was == nil || was.Error() != err.Error() {
		o.Log.Warn("cannot open a socket; retrying", "socket", k, "err", err)
	}
	if o.failures == nil {
		o.failures = map[S]error{}
	}
	o.failures[k] = err
}

// Held records the sockets that a child holds.
func Held[S comparable](list []S) map[S]bool {
	out := make(map[S]bool, len(list))
	for _, k := range list {
		out[k] = true
	}
	return out
}
