package speaker

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"wayleave.dev/internal/logging"
	"wayleave.dev/internal/supervisor"
	"wayleave.dev/loadbalancer/bgp"
)

const (
	pingEvery = time.Second
	// hungAfter is when a process that does not answer is killed. The minimum hold time is 3 seconds.
	hungAfter = 15 * time.Second
	// stuckAfter bounds one step of the loop. A flood of prefixes kept it busy for 16 seconds.
	stuckAfter = 2 * time.Minute
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

	process *supervisor.Supervisor[order, news]
	now     supervisor.Watched[watched]

	mu    sync.Mutex
	state *bgp.State
}

// watched is what Watch returns.
type watched struct {
	report  bgp.Report
	refused uint64 // by earlier processes
}

// New returns a supervisor that starts this program with the arguments.
func New(log *slog.Logger, args ...string) *Supervisor {
	return &Supervisor{process: supervisor.New[order, news](log, supervisor.Options{Name: "bgp", Args: args,
		Memory: Memory, MaxNews: maxNews, PingEvery: pingEvery, LookEvery: pingEvery, StartsWithin: hungAfter,
		HungAfter: hungAfter, StuckAfter: stuckAfter})}
}

// Set replaces the complete desired state, which must not be changed afterwards. A process has no session before.
func (s *Supervisor) Set(state bgp.State) {
	s.mu.Lock()
	s.state = &state
	s.mu.Unlock()
	s.process.Wake()
}

// Report returns the state of the process.
func (s *Supervisor) Report() bgp.Report {
	r, _ := s.Watch()
	return r
}

// Watch returns Report, and a channel that is closed when there is a new one.
func (s *Supervisor) Watch() (bgp.Report, <-chan struct{}) {
	w, changed := s.now.Watch()
	r := w.report
	r.Restarts, r.Refused = s.process.Restarts(), w.refused+r.Refused
	return r, changed
}

// Run keeps the process running until the context ends, and then stops it.
func (s *Supervisor) Run(ctx context.Context) error {
	s.process.Logs = s.Logs
	return s.process.Run(ctx, func(p *supervisor.Process[order]) supervisor.Agent[news] {
		return &teller{s: s, p: p}
	}, func(err error) {
		s.now.Change(func(w *watched) {
			*w = watched{refused: w.refused + w.report.Refused}
			if err != nil {
				w.report.Problem = err.Error()
			}
		})
	})
}

// teller tells one process what to do.
type teller struct {
	s     *Supervisor
	p     *supervisor.Process[order]
	state *bgp.State // last sent
}

// Hear implements supervisor.Agent.
func (t *teller) Hear(n news) {
	if n.Report == nil {
		return
	}
	n.Report.Believe(t.state)
	t.s.now.Change(func(w *watched) {
		w.report = *n.Report
		w.report.Running, w.report.PID = true, t.p.PID()
	})
}

// Tell sends the desired state, if the process has another one.
func (t *teller) Tell() error {
	t.s.mu.Lock()
	state := t.s.state
	t.s.mu.Unlock()
	if state == nil || state == t.state {
		return nil
	}
	t.state = state
	if t.s.process.Restarts() > 0 && !state.Restarting {
		// The rules of this node outlived the process.
		again := *state
		again.Restarting = true
		state = &again
	}
	return t.p.Send(order{State: state})
}

// End implements supervisor.Agent.
func (t *teller) End() error { return nil }
