package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"wayleave.dev/internal/frame"
)

// Client is the child's side. Set the fields, then call Run once. The functions are called one after the other.
type Client[S comparable, U, R any] struct {
	Protocol Protocol
	// Socket is the agent's.
	Socket string
	// Hello returns the child's state. Run fills in the version. The files are passed if the protocol does that, and
	// closed.
	Hello func() (Hello[S], []*os.File)
	// Take applies an update. The files are closed when it returns.
	Take func(U, []*os.File)
	// Report returns what the agent should know. It is sent after an update, and every ReportEvery if that is not 0,
	// unless it is the Same as the last one; the first is compared with the zero R.
	Report      func() R
	Same        func(a, b R) bool
	ReportEvery time.Duration
	// Quiet, if not nil, is called when no update has come for a second.
	Quiet func()
	// Lost is called when there is no agent, with the reason. Ended, if not nil, is called before it if there was a
	// connection.
	Lost  func(error)
	Ended func()
}

// quietAfter is the time without an update before Quiet is called.
const quietAfter = time.Second

// Run follows the agent until ctx ends, whose error it returns. It reconnects after each disconnect.
func (c *Client[S, U, R]) Run(ctx context.Context) error {
	return frame.Follow(ctx, c.Socket, func(_ context.Context, conn *net.UnixConn) error {
		err := c.follow(conn)
		if c.Ended != nil {
			c.Ended()
		}
		return fmt.Errorf("agent: %w", err)
	}, c.Lost)
}

type received[U any] struct {
	update U
	files  []*os.File
	err    error
}

// follow takes updates from one connection, until that ends.
func (c *Client[S, U, R]) follow(conn *net.UnixConn) error {
	if err := c.greet(conn); err != nil {
		return err
	}
	quiet := time.NewTimer(time.Hour)
	defer quiet.Stop()
	var tick <-chan time.Time
	if c.ReportEvery > 0 {
		t := time.NewTicker(c.ReportEvery)
		defer t.Stop()
		tick = t.C
	}
	frames, done := make(chan received[U]), make(chan struct{})
	defer close(done)
	go receive(conn, frames, done)
	var told R
	for {
		select {
		case f := <-frames:
			if f.err != nil {
				return f.err
			}
			c.Take(f.update, f.files)
			closeAll(f.files)
			quiet.Reset(quietAfter)
		case <-quiet.C:
			if c.Quiet != nil {
				c.Quiet()
			}
			continue
		case <-tick:
		}
		r := c.Report()
		if c.Same(told, r) {
			continue
		}
		if err := say(conn, r, nil); err != nil {
			return err
		}
		told = r
	}
}

func (c *Client[S, U, R]) greet(conn *net.UnixConn) error {
	h, files := c.Hello()
	defer closeAll(files)
	h.Version = c.Protocol.Version
	return say(conn, h, files)
}

func say(conn *net.UnixConn, v any, files []*os.File) error {
	return errors.Join(conn.SetWriteDeadline(time.Now().Add(writeWithin)), frame.Send(conn, v, files))
}

// receive reads frames until the connection ends.
func receive[U any](conn *net.UnixConn, to chan<- received[U], done <-chan struct{}) {
	for {
		var f received[U]
		f.files, f.err = frame.Receive(conn, &f.update)
		select {
		case to <- f:
		case <-done:
			closeAll(f.files)
			return
		}
		if f.err != nil {
			return
		}
	}
}
