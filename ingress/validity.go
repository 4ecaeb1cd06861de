package ingress

import (
	"context"
	"fmt"
	"time"

	"wayleave.dev/model"
)

// Reasons of Events about certificates that stay in use.
const (
	ReasonExpired     = "CertificateExpired"
	ReasonNotYetValid = "CertificateNotYetValid"
	ReasonExpiring    = "CertificateExpiring"
)

// expiring is how long before its end a certificate is reported, as in ingress-nginx.
const expiring = 10 * 24 * time.Hour

// longest bounds how long the planner sleeps until a certificate expires: clocks can be set.
const longest = time.Hour

// validity returns the problem of a certificate in use; nil for none.
func (p *Planner) validity(s *model.Secret, of model.Name, field string) *model.Problem {
	q := &model.Problem{Kind: "Ingress", Object: of, Field: field}
	text := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch now := p.now(); {
	case s.Until.IsZero():
		return nil
	case !now.Before(s.Until):
		q.Event, q.Reason = ReasonExpired,
			fmt.Sprintf("the certificate of Secret %s expired on %s; it stays in use, and clients refuse it",
				s.Name, text(s.Until))
	case now.Before(s.From):
		q.Event, q.Reason = ReasonNotYetValid,
			fmt.Sprintf(
				"the certificate of Secret %s is not valid before %s; it stays in use, and clients refuse it",
				s.Name, text(s.From))
	case !now.Add(expiring).Before(s.Until):
		q.Event, q.Reason = ReasonExpiring, fmt.Sprintf("the certificate of Secret %s expires on %s", s.Name,
			text(s.Until))
	default:
		return nil
	}
	return q
}

// dueAt is when the state of a certificate changes next (valid, expires soon, expired); the zero time for
// never.
func dueAt(s *model.Secret, now time.Time) time.Time {
	for _, t := range []time.Time{s.From, s.Until.Add(-expiring), s.Until} {
		if now.Before(t) && !s.Until.IsZero() {
			return t
		}
	}
	return time.Time{}
}

// expire touches the Secrets whose certificates have changed their state by time.
func (r *round) expire(changed map[model.Name]struct{}) {
	p, now := r.p, r.p.now()
	for n := range changed {
		delete(p.due, n)
		if s, ok := r.snap.Secret(n); ok {
			if t := dueAt(s, now); !t.IsZero() {
				p.due[n] = t
			}
		}
	}
	defer p.sleep()
	if len(changed) == 0 && now.Before(p.nextDue) {
		return
	}
	p.nextDue = now.Add(longest)
	for n, t := range p.due {
		if !now.Before(t) {
			r.secret(n)
			delete(p.due, n)
			s, ok := r.snap.Secret(n)
			if !ok {
				continue
			}
			if t = dueAt(s, now); t.IsZero() {
				continue
			}
			p.due[n] = t
		}
		if t.Before(p.nextDue) {
			p.nextDue = t
		}
	}
}

// sleep tells Run when to wake the loop; it replaces the previous time.
func (p *Planner) sleep() {
	select {
	case <-p.slept:
	default:
	}
	p.slept <- p.nextDue
}

// Wake tells a loop to call Keys without a change: a certificate has expired. It works while Run does.
func (p *Planner) Wake() <-chan struct{} { return p.wake }

// Run watches the clock until ctx ends.
func (p *Planner) Run(ctx context.Context) error {
	t := time.NewTimer(longest)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case at := <-p.slept:
			t.Reset(max(at.Sub(p.now()), 0))
		case <-t.C:
			t.Reset(longest)
			select {
			case p.wake <- struct{}{}:
			default:
			}
		}
	}
}
