package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"wayleave.dev/internal/child"
	"wayleave.dev/internal/frame"
	"wayleave.dev/internal/logging"
)

// Options describe a process. All durations are necessary.
type Options struct {
	// Name is the process in the log. Args start this program as that process.
	Name string
	Args []string
	// Memory is the limit of its Go runtime in bytes.
	Memory int64
	// MaxNews bounds one frame of the process, in bytes.
	MaxNews int
	// PingEvery is the interval of pings. LookEvery is the interval of calls of Agent.Tell without a Wake.
	PingEvery, LookEvery time.Duration
	// StartsWithin bounds the time before the first answer, HungAfter the time without another one.
	StartsWithin, HungAfter time.Duration
	// StuckAfter bounds one step of the process's loop, while the process answers.
	StuckAfter time.Duration
}

// Supervisor keeps a process running that takes orders O and sends news N. Its methods are safe for concurrent use.
type Supervisor[O, N any] struct {
	// Logs are the settings that the log of the process follows; nil for the defaults. Set it before Run.
	Logs *logging.Log

	Options
	log      *slog.Logger
	wake     chan struct{}
	restarts atomic.Uint64
}

// New returns a supervisor.
func New[O, N any](log *slog.Logger, o Options) *Supervisor[O, N] {
	return &Supervisor[O, N]{Options: o, log: log, wake: make(chan struct{}, 1)}
}

// Agent is the agent's part in the life of one process. Its methods are called by one goroutine.
type Agent[N any] interface {
	// Tell sends the orders that the process does not have.
	Tell() error
	// Hear receives news.
	Hear(N)
	// End is called before the connection is closed, if the process is to end.
	End() error
}

// Process is a running process, to which an Agent sends orders.
type Process[O any] struct {
	p    *child.Process
	wait time.Duration
}

// PID returns the process's id.
func (p *Process[O]) PID() int { return p.p.PID() }

// Send sends an order with descriptors. It bounds the delay by a hung process, whose socket's buffer may be full.
func (p *Process[O]) Send(o O, files ...*os.File) error {
	return send(p, toChild[O]{Order: &o}, files)
}

func send[O any](p *Process[O], f toChild[O], files []*os.File) error {
	if err := p.p.Conn.SetWriteDeadline(time.Now().Add(p.wait)); err != nil {
		return err
	}
	if err := frame.Send(p.p.Conn, f, files); err != nil {
		return fmt.Errorf("it takes no orders: %w", err)
	}
	return nil
}

// Wake has Agent.Tell called soon.
func (s *Supervisor[O, N]) Wake() { notify(s.wake) }

// Restarts counts the processes after the first one.
func (s *Supervisor[O, N]) Restarts() uint64 { return s.restarts.Load() }

// Run keeps the process running until the context ends, and then stops it. begin is called for each process,
// and ended after each with its error.
func (s *Supervisor[O, N]) Run(ctx context.Context, begin func(*Process[O]) Agent[N], ended func(error)) error {
	first := true
	return child.Keep(ctx, func(ctx context.Context) error {
		if !first {
			s.restarts.Add(1)
		}
		first = false
		return s.once(ctx, begin)
	}, func(err error) {
		ended(err)
		if ctx.Err() == nil {
			s.log.Warn(s.Name+" has exited; restarting it", "err", err)
		}
	})
}

// once runs one process to its end.
func (s *Supervisor[O, N]) once(ctx context.Context, begin func(*Process[O]) Agent[N]) error {
	p, err := child.Start(s.Memory, s.Logs, s.Args...)
	if err != nil {
		return err
	}
	now := time.Now()
	k := &keeper[O, N]{s: s, p: &Process[O]{p, s.HungAfter}, heard: now, ticked: now, patience: s.StartsWithin,
		frames: make(chan toAgent[N]), end: make(chan struct{})}
	k.agent = begin(k.p)
	defer close(k.end)
	go k.receive()
	err = k.loop(ctx)
	if ctx.Err() == nil {
		p.Kill()
		return err
	}
	return errors.Join(err, k.agent.End(), p.EndSoon())
}

// keeper is the state of one process.
type keeper[O, N any] struct {
	s      *Supervisor[O, N]
	p      *Process[O]
	agent  Agent[N]
	frames chan toAgent[N]
	end    chan struct{}

	pinged   uint64
	heard    time.Time     // the last answer
	ticked   time.Time     // the last look at it
	patience time.Duration // the maximum age of heard
	stuck    bool          // the last answer said that a step takes too long
}

func (k *keeper[O, N]) receive() {
	for {
		var f toAgent[N]
		if _, err := frame.ReceiveWithin(k.p.p.Conn, &f, frame.Limits{Bytes: k.s.MaxNews}); err != nil {
			close(k.frames)
			return
		}
		select {
		case k.frames <- f:
		case <-k.end:
			return
		}
	}
}

func (k *keeper[O, N]) loop(ctx context.Context) error {
	ping, look := time.NewTicker(k.s.PingEvery), time.NewTicker(k.s.LookEvery)
	defer ping.Stop()
	defer look.Stop()
	if err := k.agent.Tell(); err != nil {
		return err
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-k.p.p.Done():
			return errors.New("exited without an error")
		case f, ok := <-k.frames:
			if !ok {
				return errors.New("it closed its socket")
			}
			err = k.hear(f)
		case <-ping.C:
			err = k.ping(time.Now())
		case <-k.s.wake:
			err = k.agent.Tell()
		case <-look.C:
			err = k.agent.Tell()
		}
		if err != nil {
			return err
		}
	}
}

// ping asks the process for a sign of life.
func (k *keeper[O, N]) ping(now time.Time) error {
	// Time in which the agent itself did not run does not count: the answer may be waiting.
	if late := now.Sub(k.ticked) - k.s.PingEvery; late > k.s.PingEvery {
		k.heard = k.heard.Add(late)
	}
	k.ticked = now
	if since := now.Sub(k.heard); since > k.patience {
		return fmt.Errorf("it has not answered for %s", since.Round(time.Millisecond))
	}
	k.pinged++
	return send(k.p, toChild[O]{Ping: k.pinged}, nil)
}

func (k *keeper[O, N]) hear(f toAgent[N]) error {
	// A report is a sign of life, too: a process that hangs after its first one has no patience of a start.
	k.heard, k.patience = time.Now(), k.s.HungAfter
	if f.Pong != 0 {
		// One answer of a process that continues after a pause may be too early for its loop.
		stuck := f.Behind > k.s.StuckAfter
		if stuck && k.stuck {
			return fmt.Errorf("it is stuck: one step of its work takes longer than %s",
				f.Behind.Round(time.Millisecond))
		}
		k.stuck = stuck
	}
	if f.News != nil {
		k.agent.Hear(*f.News)
	}
	return nil
}
