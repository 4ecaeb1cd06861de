package speaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"wayleave.dev/internal/child"
	"wayleave.dev/internal/frame"
	"wayleave.dev/internal/logging"
	"wayleave.dev/loadbalancer/l2"
)

const (
	// pingEvery and hungAfter: a hung process is killed within a second, because it may own addresses that it does
	// not answer for.
	pingEvery = 200 * time.Millisecond
	hungAfter = 900 * time.Millisecond
	// startsWithin bounds the time before its first answer: it owns nothing then.
	startsWithin = 10 * time.Second
	// lookEvery is the interval at which interfaces are read.
	lookEvery = 500 * time.Millisecond
	// drainWithin bounds Drain: others have taken over within Bound, if there are others.
	drainWithin = 2 * l2.Bound
	// Memory is the limit of the Go runtime of the process, in bytes.
	Memory = 128 << 20
)

// Supervisor keeps the process running. Its methods are safe for concurrent use.
type Supervisor struct {
	// Logs are the settings that the log of the process follows; nil for the defaults. Set it before Run.
	Logs *logging.Log

	args []string
	log  *slog.Logger

	mu       sync.Mutex
	state    *State
	draining bool
	handover bool
	report   Report
	base     Counters // of earlier processes
	restarts uint64
	changed  chan struct{} // closed at each new report
	wake     chan struct{} // there is something to send to the process
}

// New returns a supervisor that starts this program with the arguments.
func New(log *slog.Logger, args ...string) *Supervisor {
	return &Supervisor{args: args, log: log, changed: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// Set replaces the complete desired state, which must not be changed afterwards.
func (s *Supervisor) Set(state State) {
	s.mu.Lock()
	s.state = &state
	s.mu.Unlock()
	s.poke()
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
	s.poke()
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
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.report
	r.Restarts, r.Counters = s.restarts, s.base.plus(r.Counters)
	return r, s.changed
}

func (s *Supervisor) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Supervisor) publish(change func(*Report)) {
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
		s.publish(func(r *Report) {
			s.base = s.base.plus(r.Counters)
			*r = Report{}
			if err != nil {
				r.Problems = []string{err.Error()}
			}
		})
		if ctx.Err() == nil {
			s.log.Warn("l2 has exited; restarting it", "err",
				err)
		}
	})
}

// once runs one process to its end.
func (s *Supervisor) once(ctx context.Context) error {
	p, err := child.Start(Memory, s.Logs, s.args...)
	if err != nil {
		return err
	}
	k := &keeper{s: s, p: p, sent: map[passed]bool{}, pong: time.Now(), patience: startsWithin, news: make(chan news),
		end: make(chan struct{})}
	defer close(k.end)
	go k.receive()
	err = k.loop(ctx)
	if ctx.Err() == nil {
		p.Kill()
		return err
	}
	s.mu.Lock()
	handover := s.handover
	s.mu.Unlock()
	if handover {
		// If this fails, the process has exited already.
		err = k.send(order{Handover: true}, nil)
	}
	return errors.Join(err, p.EndSoon())
}

// keeper is the state of one process.
type keeper struct {
	s    *Supervisor
	p    *child.Process
	news chan news
	end  chan struct{}

	state   *State // last sent
	links   []l2.Link
	told    bool // links have been sent
	drained bool
	sent    map[passed]bool
	pinged  uint64
	pong    time.Time
	ticked  time.Time // the last look at it
	// patience is the maximum age of pong.
	patience time.Duration
}

// maxNews bounds a report of the process that parses hostile bytes: a line for each address and peer.
const maxNews = 8 << 20

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
	ping, look := time.NewTicker(pingEvery), time.NewTicker(lookEvery)
	defer ping.Stop()
	defer look.Stop()
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
			continue
		case <-k.s.wake:
		case <-look.C:
		case <-ping.C:
			k.excuse()
			if since := time.Since(k.pong); since > k.patience {
				return fmt.Errorf("it has not answered for %s", since.Round(time.Millisecond))
			}
			k.pinged++
			if err := k.send(order{Ping: k.pinged}, nil); err != nil {
				return err
			}
			continue
		}
	}
}

// excuse gives the process more time if this process hung itself: the answer may be waiting.
func (k *keeper) excuse() {
	now := time.Now()
	if now.Sub(k.ticked) > 2*pingEvery && k.patience == hungAfter {
		k.pong = now
	}
	k.ticked = now
}

func (k *keeper) hear(n news) {
	if n.Pong != 0 {
		k.pong, k.patience = time.Now(), hungAfter
	}
	if n.Report == nil && n.Counters == nil {
		return
	}
	k.s.publish(func(r *Report) {
		if n.Report != nil {
			*r = *n.Report
		}
		if n.Counters != nil {
			r.Counters = *n.Counters
		}
		r.PID = k.p.PID()
	})
}

// tell sends what the process does not know yet: interfaces with their sockets first, so that addresses can be
// announced as soon as they are known.
func (k *keeper) tell() error {
	k.s.mu.Lock()
	state, draining := k.s.state, k.s.draining
	k.s.mu.Unlock()
	if state == nil {
		return nil
	}
	if err := k.tellLinks(state); err != nil {
		return err
	}
	o := order{Drain: draining && !k.drained}
	if state != k.state {
		o.State = state
	}
	if o.State == nil && !o.Drain {
		return nil
	}
	k.state, k.drained = state, draining
	return k.send(o, nil)
}

// tellLinks sends the interfaces that addresses need, and sockets for new ones.
func (k *keeper) tellLinks(state *State) error {
	links, err := wanted(state)
	if err != nil {
		return err
	}
	if !k.told || !slices.Equal(links, k.links) {
		if err := k.send(order{Links: &links}, nil); err != nil {
			return err
		}
		k.links, k.told = links, true
	}
	open := map[passed]bool{}
	for _, l := range links {
		for _, kind := range []l2.Kind{l2.KindARP, l2.KindNDP} {
			key := passed{kind, l.Index}
			if open[key] = k.sent[key]; open[key] {
				continue
			}
			// An interface that disappears meanwhile is tried again later.
			f, err := l2.OpenSocket(kind, l.Index)
			if err != nil {
				k.s.log.Warn("no packet socket", "interface", l.Name, "err", err)
				continue
			}
			err = k.send(order{Passed: []passed{key}}, []*os.File{f})
			_ = f.Close()
			if err != nil {
				return err
			}
			open[key] = true
		}
	}
	k.sent = open
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

// send bounds the delay by a hung process: its socket's buffer may be full.
func (k *keeper) send(o order, files []*os.File) error {
	if err := k.p.Conn.SetWriteDeadline(time.Now().Add(hungAfter)); err != nil {
		return err
	}
	return frame.Send(k.p.Conn, o, files)
}
