package proxy

import (
	"fmt"
	"slices"
	"time"

	"wayleave.dev/proxy/schema"
)

// retry returns the path's own rule; nil for the proxy's default.
func (x *exchange) retry() *schema.Retry {
	if o := x.endpointOptions(); o != nil {
		return o.Retry
	}
	return nil
}

// mayTry reports whether one more endpoint may be tried.
func (x *exchange) mayTry() bool {
	most, r := x.p.current().Tries, x.retry()
	if r != nil {
		if r.Never || r.Within > 0 && time.Since(x.start) > r.Within {
			return false
		}
		if r.Tries > 0 {
			most = r.Tries
		}
	}
	return x.rec.Tries < most && x.ctx.Err() == nil
}

// repeatable reports whether the request may be repeated although the first endpoint may have processed it.
func (x *exchange) repeatable() bool {
	r := x.retry()
	return idempotent(x.r.Method) || r != nil && r.Unsafe
}

func (x *exchange) retriesTimeouts() bool {
	r := x.retry()
	return r != nil && r.Timeout
}

// refusedStatus is a response that counts as a failure of its endpoint.
type refusedStatus struct{ status int }

func (e *refusedStatus) Error() string { return fmt.Sprintf("the endpoint answers %d", e.status) }

// otherAnswers is a response that another backend replaces.
type otherAnswers struct{ status int }

func (e *otherAnswers) Error() string {
	return fmt.Sprintf("another backend answers for status %d", e.status)
}

// judge decides whether the client gets a response of this status: otherwise another endpoint, or another backend,
// answers.
func (x *exchange) judge(status int) error {
	r := x.retry()
	if r != nil && slices.Contains(r.Statuses, status) && !x.begun && x.repeatable() && x.mayTry() && len(x.tried)+
		1 < x.opt.among {
		return &refusedStatus{status}
	}
	if x.errorsFor(status) != nil && !x.match.Path.Options.Errors.OwnOnly {
		return &otherAnswers{status}
	}
	return nil
}
