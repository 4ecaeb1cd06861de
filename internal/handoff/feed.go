package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"wayleave.dev/internal/frame"
)

// Feed is the agent's side. It sends every child that connects what that child lacks. S is a socket, T the agent's
// state of one child, U an update and R a report. Set the fields before Serve. Methods may be called concurrently.
type Feed[S comparable, T, U, R any] struct {
	Protocol Protocol
	// AllowUID may connect; root may, too.
	AllowUID uint32
	Log      *slog.Logger
	// Adopt takes the descriptors of a hello, one for each of its Holds. Only a protocol that passes sockets needs it.
	Adopt func([]S, []*os.File)
	// Begin creates the state of a child. Next takes what the child lacks. Report records what the child reports; an
	// error ends the connection. End, if not nil, releases the state. All are called with the lock held.
	Begin  func(Hello[S]) *T
	Next   func(*T) Update[U]
	Report func(*T, R) error
	End    func(*T)

	mu       sync.Mutex
	children map[*session[T]]struct{}
}

// Update is what one child lacks.
type Update[U any] struct {
	// Frame is nil when there is nothing to send now.
	Frame *U
	// Files are passed with the frame, and closed after it.
	Files []*os.File
	// Retry is when to check again at the latest; 0 waits for a change.
	Retry time.Duration
}

// session is one connected child.
type session[T any] struct {
	note *T
	wake chan struct{}
}

func (s *session[T]) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Change runs fn with the lock held, and then sends every child what it lacks.
func (f *Feed[S, T, U, R]) Change(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
	for s := range f.children {
		s.poke()
	}
}

// View calls fn with the lock held, for the state of every connected child. fn must not retain it.
func (f *Feed[S, T, U, R]) View(fn func(children []*T)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]*T, 0, len(f.children))
	for s := range f.children {
		list = append(list, s.note)
	}
	fn(list)
}

// Children returns the number of connected children.
func (f *Feed[S, T, U, R]) Children() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.children)
}

// Serve accepts children until ctx ends, whose error it returns then.
func (f *Feed[S, T, U, R]) Serve(ctx context.Context, l *net.UnixListener) error {
	lost := func(err error) { f.Log.Warn(f.Protocol.Child+" lost", "err", err) }
	if err := frame.Serve(ctx, l, f.serve, lost); err != nil && ctx.Err() == nil {
		return fmt.Errorf("feed of the %s: %w", f.Protocol.Child, err)
	}
	return ctx.Err()
}

// serve handles one connection from start to end.
func (f *Feed[S, T, U, R]) serve(ctx context.Context, c *net.UnixConn) error {
	hello, err := f.greeted(c)
	if err != nil {
		return err
	}
	s := f.begin(hello)
	defer f.end(s)
	gone := make(chan error, 1)
	go func() { gone <- f.reports(ctx, c, s) }() // detects the child's end
	return f.talk(ctx, c, s, gone)
}

// greeted reads the hello of a child that may connect.
func (f *Feed[S, T, U, R]) greeted(c *net.UnixConn) (h Hello[S], err error) {
	if err := frame.Only(c, f.AllowUID); err != nil {
		return h, err
	}
	if err := c.SetReadDeadline(time.Now().Add(helloWithin)); err != nil {
		return h, err
	}
	files, err := frame.ReceiveWithin(c, &h, f.Protocol.helloLimits())
	if err != nil {
		return h, err
	}
	if f.Adopt != nil {
		f.Adopt(h.Holds, files)
	}
	if h.Version != f.Protocol.Version {
		return h, fmt.Errorf("the %s speaks version %d, this agent %d", f.Protocol.Child, h.Version, f.Protocol.Version)
	}
	return h, c.SetReadDeadline(time.Time{})
}

func (f *Feed[S, T, U, R]) begin(h Hello[S]) *session[T] {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &session[T]{note: f.Begin(h), wake: make(chan struct{}, 1)}
	if f.children == nil {
		f.children = map[*session[T]]struct{}{}
	}
	f.children[s] = struct{}{}
	s.poke()
	return s
}

func (f *Feed[S, T, U, R]) end(s *session[T]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.children, s)
	if f.End != nil {
		f.End(s.note)
	}
}

// reports reads the reports of a child until it ends, or sends another message.
func (f *Feed[S, T, U, R]) reports(ctx context.Context, c *net.UnixConn, s *session[T]) error {
	for {
		var r R
		if _, err := frame.ReceiveWithin(c, &r, f.Protocol.reportLimits()); err != nil {
			return err
		}
		f.mu.Lock()
		err := f.Report(s.note, r)
		f.mu.Unlock()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(f.Protocol.ReportPause):
		}
	}
}

// talk sends what the child lacks after each change.
func (f *Feed[S, T, U, R]) talk(ctx context.Context, c *net.UnixConn, s *session[T], gone <-chan error) error {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-gone:
			return err
		case <-s.wake:
		case <-retry.C:
		}
		u := f.next(s)
		if err := send(c, u); err != nil {
			return err
		}
		if retry.Stop(); u.Retry > 0 {
			retry.Reset(u.Retry)
		}
	}
}

func (f *Feed[S, T, U, R]) next(s *session[T]) Update[U] {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Next(s.note)
}

func send[U any](c *net.UnixConn, u Update[U]) error {
	defer closeAll(u.Files)
	if u.Frame == nil {
		return nil
	}
	return errors.Join(c.SetWriteDeadline(time.Now().Add(writeWithin)), frame.Send(c, u.Frame, u.Files))
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was written
	}
}
