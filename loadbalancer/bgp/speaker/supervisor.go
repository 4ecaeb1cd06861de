package speaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"wayleave.dev/internal/child"
	"wayleave.dev/internal/frame"
	"wayleave.dev/internal/logging"
	"wayleave.dev/loadbalancer/bgp"
)

const (
	pingEvery = time.Second
	// hungAfter is when a process that does not answer is killed. The minimum hold time is 3 seconds.
	hungAfter = 15 * time.Second
	// Memory is the limit of the Go runtime of the process, in bytes: 1,000 sessions, and the prefixes that peers may
	// send.
	Memory = 512 << 20
	// maxNews bounds a report of the process that parses hostile bytes, in bytes: a line for each session and route.
	maxNews = 64 << 20
)

// Supervisor keeps the process running. Its methods are safe for concurrent use.
type Supervisor struct {
	// Logs are the settings that the log of the process follows; nil for the defaults. Set it before Run.
	Logs *logging.Log

	args []string
	log  *slog.Logger

	mu       sync.Mutex
	state    *bgp.State
	report   bgp.Report
	refused  uint64 // by earlier processes
	restarts uint64
	changed  chan struct{} // closed at each new report
	wake     chan struct{} // there is something to send to the process
}

// New returns a supervisor that starts this program with the arguments.
func New(log *slog.Logger, args ...string) *Supervisor {
	return &Supervisor{args: args, log: log, changed: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// Set replaces the complete desired state, which must not be changed afterwards. A process has no session before.
func (s *Supervisor) Set(state bgp.State) {
	s.mu.Lock()
	s.state = &state
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Report returns the state of the process.
func (s *Supervisor) Report() bgp.Report {
	r, _ := s.Watch()
	return r
}

// Watch returns Report, and a channel that is closed when there is a new one.
func (s *Supervisor) Watch() (bgp.Report, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.report
	r.Restarts, r.Refused = s.restarts, s.refused+r.Refused
	return r, s.changed
}

func (s *Supervisor) publish(change func(*bgp.Report)) {
	s.mu.Lock()
	change(&s.report)
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
}

// Run keeps the process running until the context ends, and then stops it.
func (s *Supervisor) Run(ctx context.Context) error {
	first := true
	return child.Keep(ctx, func(ctx context.Context) error {
		if !first {
			s.mu.Lock()
			s.restarts++
			s.mu.Unlock()
		}
		first = false
		return s.once(ctx)
	}, func(err error) {
		s.publish(func(r *bgp.Report) {
			s.refused += r.Refused
			*r = bgp.Report{}
			if err != nil {
				r.Problem = err.Error()
			}
		})
		if ctx.Err() == nil {
			s.log.Warn("bgp has exited; restarting it", "err", err)
		}
	})
}

// once runs one process to its end.
func (s *Supervisor) once(ctx context.Context) error {
	p, err := child.Start(Memory, s.Logs, s.args...)
	if err != nil {
		return err
	}
	k := &keeper{s: s, p: p, pong: time.Now(), news: make(chan news), end: make(chan struct{})}
	defer close(k.end)
	go k.receive()
	err = k.loop(ctx)
	if ctx.Err() == nil {
		p.Kill()
		return err
	}
	return errors.Join(err, p.EndSoon())
}

// keeper is the state of one process.
type keeper struct {
	s    *Supervisor
	p    *child.Process
	news chan news
	end  chan struct{}

	state  *bgp.State // last sent
	pinged uint64
	pong   time.Time
	ticked time.Time
}

func (k *keeper) receive() {
	for {
		var n news
		if _, err := frame.ReceiveWithin(k.p.Conn, &n, frame.Limits{Bytes: maxNews}); err != nil {
			close(k.news)
			return
		}
		select {
		case k.news <- n:
		case <-k.end:
			return
		}
	}
}

func (k *keeper) loop(ctx context.Context) error {
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		if err := k.tell(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.p.Done():
			return errors.New("exited without an error")
		case n, ok := <-k.news:
			if !ok {
				return errors.New("it closed its socket")
			}
			k.hear(n)
		case <-k.s.wake:
		case <-ping.C:
			if err := k.ping(time.Now()); err != nil {
				return err
			}
		}
	}
}

// ping asks the process for a sign of life.
func (k *keeper) ping(now time.Time) error {
	if now.Sub(k.ticked) > 2*pingEvery {
		k.pong = now // this process hung itself: the answer may be waiting
	}
	k.ticked = now
	if since := now.Sub(k.pong); since > hungAfter {
		return fmt.Errorf("it has not answered for %s", since.Round(time.Millisecond))
	}
	k.pinged++
	return k.send(order{Ping: k.pinged})
}

func (k *keeper) hear(n news) {
	if n.Pong != 0 {
		k.pong = time.Now()
	}
	if n.Report == nil {
		return
	}
	n.Report.Believe(k.state)
	k.s.publish(func(r *bgp.Report) {
		*r = *n.Report
		r.Running, r.PID = true, k.p.PID()
	})
}

// tell sends the desired state, if the process has another one.
func (k *keeper) tell() error {
	k.s.mu.Lock()
	state, restarted := k.s.state, k.s.restarts > 0
	k.s.mu.Unlock()
	if state == nil || state == k.state {
		return nil
	}
	k.state = state
	if restarted && !state.Restarting {
		// The rules of this node outlived the process.
		again := *state
		again.Restarting = true
		state = &again
	}
	return k.send(order{State: state})
}

// send bounds the delay by a hung process: its socket's buffer may be full.
func (k *keeper) send(o order) error {
	if err := k.p.Conn.SetWriteDeadline(time.Now().Add(hungAfter)); err != nil {
		return err
	}
	return frame.Send(k.p.Conn, o, nil)
}
