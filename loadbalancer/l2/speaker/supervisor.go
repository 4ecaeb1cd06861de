package speaker

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"wayleave.dev/internal/logging"
	"wayleave.dev/internal/supervisor"
	"wayleave.dev/loadbalancer/l2"
)

const (
	// pingEvery and hungAfter: a hung process is killed within a second, because it may own addresses that it does
	// not answer for.
	pingEvery = 200 * time.Millisecond
	hungAfter = 900 * time.Millisecond
	// stuckAfter bounds one step of the loop: two answers later, the process is killed.
	stuckAfter = hungAfter - pingEvery
	// startsWithin bounds the time before its first answer: it owns nothing then.
	startsWithin = 10 * time.Second
	// lookEvery is the interval at which interfaces are read.
	lookEvery = 500 * time.Millisecond
	// drainWithin bounds Drain: others have taken over within Bound, if there are others.
	drainWithin = 2 * l2.Bound
	// Memory is the limit of the Go runtime of the process, in bytes.
	Memory = 128 << 20
	// maxNews bounds a report of the process that parses hostile bytes, in bytes: a line for each address and peer.
	maxNews = 8 << 20
)

// Supervisor keeps the process running. Its methods are safe for concurrent use.
type Supervisor struct {
	// Logs are the settings that the log of the process follows; nil for the defaults. Set it before Run.
	Logs *logging.Log

	log     *slog.Logger
	process *supervisor.Supervisor[order, news]
	now     supervisor.Watched[watched]

	mu       sync.Mutex
	state    *State
	draining bool
	handover bool
}

// watched is what Watch returns.
type watched struct {
	report Report
	base   Counters // of earlier processes
}

// New returns a supervisor that starts this program with the arguments.
func New(log *slog.Logger, args ...string) *Supervisor {
	return &Supervisor{log: log, process: supervisor.New[order, news](log, supervisor.Options{Name: "l2", Args: args,
		Memory: Memory, MaxNews: maxNews, PingEvery: pingEvery, LookEvery: lookEvery, StartsWithin: startsWithin,
		HungAfter: hungAfter, StuckAfter: stuckAfter})}
}

// Set replaces the complete desired state, which must not be changed afterwards.
func (s *Supervisor) Set(state State) {
	s.mu.Lock()
	s.state = &state
	s.mu.Unlock()
	s.process.Wake()
}

// Handover says that another process of this node, with a Settle of 0, follows the end of Run at once: peers are not
// told of the end, and addresses do not move.
func (s *Supervisor) Handover() {
	s.mu.Lock()
	s.handover = true
	s.mu.Unlock()
}

// Drain gives all addresses to other nodes, and returns when they own them. It is an error if there is no other node
// for some. Only the end of Run follows.
func (s *Supervisor) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	s.process.Wake()
	ctx, cancel := context.WithTimeout(ctx, drainWithin)
	defer cancel()
	for {
		r, changed := s.Watch()
		if !r.Running || (r.Draining && len(r.VIPs) == 0) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d addresses went to no other node: %w", len(r.VIPs), ctx.Err())
		}
	}
}

// Report returns the state of the process.
func (s *Supervisor) Report() Report {
	r, _ := s.Watch()
	return r
}

// Watch returns Report, and a channel that is closed when there is a new one.
func (s *Supervisor) Watch() (Report, <-chan struct{}) {
	w, changed := s.now.Watch()
	r := w.report
	r.Restarts, r.Counters = s.process.Restarts(), w.base.plus(r.Counters)
	return r, changed
}

// Run keeps the process running until the context ends, and then stops it.
func (s *Supervisor) Run(ctx context.Context) error {
	s.process.Logs = s.Logs
	return s.process.Run(ctx, func(p *supervisor.Process[order]) supervisor.Agent[news] {
		return &teller{s: s, p: p, sent: map[passed]bool{}}
	}, func(err error) {
		s.now.Change(func(w *watched) {
			*w = watched{base: w.base.plus(w.report.Counters)}
			if err != nil {
				w.report.Problems = []string{err.Error()}
			}
		})
	})
}

// teller tells one process what to do.
type teller struct {
	s *Supervisor
	p *supervisor.Process[order]

	state   *State // last sent
	links   []l2.Link
	told    bool // links have been sent
	drained bool
	sent    map[passed]bool
}

// Hear implements supervisor.Agent.
func (t *teller) Hear(n news) {
	t.s.now.Change(func(w *watched) {
		if n.Report != nil {
			w.report = *n.Report
		}
		if n.Counters != nil {
			w.report.Counters = *n.Counters
		}
		w.report.PID = t.p.PID()
	})
}

// End implements supervisor.Agent. If it fails, the process has exited already.
func (t *teller) End() error {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if !t.s.handover {
		return nil
	}
	return t.p.Send(order{Handover: true})
}

// Tell sends what the process does not know yet: interfaces with their sockets first, so that addresses can be
// announced as soon as they are known.
func (t *teller) Tell() error {
	t.s.mu.Lock()
	state, draining := t.s.state, t.s.draining
	t.s.mu.Unlock()
	if state == nil {
		return nil
	}
	if err := t.tellLinks(state); err != nil {
		return err
	}
	o := order{Drain: draining && !t.drained}
	if state != t.state {
		o.State = state
	}
	if o.State == nil && !o.Drain {
		return nil
	}
	t.state, t.drained = state, draining
	return t.p.Send(o)
}

// tellLinks sends the interfaces that addresses need, and sockets for new ones.
func (t *teller) tellLinks(state *State) error {
	links, err := wanted(state)
	if err != nil {
		return err
	}
	if !t.told || !slices.Equal(links, t.links) {
		if err := t.p.Send(order{Links: &links}); err != nil {
			return err
		}
		t.links, t.told = links, true
	}
	open := map[passed]bool{}
	for _, l := range links {
		for _, kind := range []l2.Kind{l2.KindARP, l2.KindNDP} {
			key := passed{kind, l.Index}
			if open[key] = t.sent[key]; open[key] {
				continue
			}
			// An interface that disappears meanwhile is tried again later.
			f, err := l2.OpenSocket(kind, l.Index)
			if err != nil {
				t.s.log.Warn("no packet socket", "interface", l.Name, "err", err)
				continue
			}
			err = t.p.Send(order{Passed: []passed{key}}, f)
			_ = f.Close()
			if err != nil {
				return err
			}
			open[key] = true
		}
	}
	t.sent = open
	return nil
}

// wanted returns the interfaces of this node that addresses name.
func wanted(state *State) ([]l2.Link, error) {
	names := map[string]bool{}
	for _, v := range state.VIPs {
		for _, n := range v.Interfaces {
			names[n] = true
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	var links []l2.Link
	for _, i := range all {
		if names[i.Name] && len(i.HardwareAddr) == len(l2.MAC{}) {
			links = append(links, l2.Link{Name: i.Name, Index: i.Index, MAC: l2.MAC(i.HardwareAddr),
				Up: i.Flags&(net.FlagUp|net.FlagRunning) == net.FlagUp|net.FlagRunning})
		}
	}
	return links, nil
}
