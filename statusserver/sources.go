package statusserver

import (
	"context"
	"net"
	"net/http"
	"time"

	"wayleave.dev/internal/frame"
)

// accept passes the connections of a source on to the process until ctx ends. Not a byte of them is read here.
func (s *Supervisor) accept(ctx context.Context, source Source) {
	for {
		l, err := s.ListenSource(source.Socket)
		if err == nil {
			s.Say(source.Socket, nil)
			err = frame.Serve(ctx, l, func(ctx context.Context, c *net.UnixConn) error {
				return s.passOn(ctx, source, c)
			}, func(err error) { s.Log.Warn("a connection for metrics is refused", "of", source.Name, "err", err) })
		}
		if ctx.Err() != nil {
			return
		}
		s.Say(source.Socket, err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryEvery):
		}
	}
}

func (s *Supervisor) passOn(ctx context.Context, source Source, c *net.UnixConn) error {
	if err := frame.Only(c, source.UID); err != nil {
		return err
	}
	f, err := c.File()
	if err != nil {
		return err
	}
	select {
	case s.connected <- connection{source.Name, f}:
		return nil
	case <-ctx.Done():
		return f.Close()
	}
}

// maxReviewing bounds the reviews that wait for the API server: a captured process must not keep it busy.
const maxReviewing = 4

// reviews are those that one process asked for.
type reviews struct {
	ask    Reviewer
	ctx    context.Context
	end    context.CancelFunc
	done   chan review
	places chan struct{}
}

func newReviews(ctx context.Context, ask Reviewer) *reviews {
	ctx, end := context.WithCancel(ctx)
	return &reviews{ask: ask, ctx: ctx, end: end, done: make(chan review, maxReviewing),
		places: make(chan struct{}, maxReviewing)}
}

// begin answers a review in done, soon.
func (r *reviews) begin(question review) {
	result := review{ID: question.ID, Status: http.StatusServiceUnavailable}
	select {
	case r.places <- struct{}{}:
	default:
		r.give(result)
		return
	}
	go func() {
		defer func() { <-r.places }()
		ctx, cancel := context.WithTimeout(r.ctx, answerTimeout)
		defer cancel()
		if r.ask != nil && tokens.MatchString(question.Token) {
			result.Status = r.ask(ctx, question.Token)
		}
		select {
		case r.done <- result:
		case <-r.ctx.Done():
		}
	}()
}

// give answers at once, unless the process asks faster than it reads: its question then runs out of time.
func (r *reviews) give(result review) {
	select {
	case r.done <- result:
	default:
	}
}
