package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/child"
	"wayleave.dev/internal/testnet"
)

type request struct {
	// Work is how long one step of the loop takes.
	Work time.Duration `json:"work,omitempty"`
	// Size is the length of the report after it.
	Size int `json:"size,omitempty"`
	// Text is reported.
	Text string `json:"text,omitempty"`
}

type report struct {
	Texts []string `json:"texts,omitempty"`
	Fill  string   `json:"fill,omitempty"`
	// Working says that a step has begun.
	Working bool `json:"working,omitempty"`
}

// The test's binary is also the supervised process, which does what it is told.
func TestMain(m *testing.M) {
	testnet.Main(m, map[string]func(*slog.Logger) error{
		"worker": func(*slog.Logger) error { return work(nil) },
		"merger": func(*slog.Logger) error {
			return work(func(waiting *request, next request) bool { *waiting = next; return true })
		},
	})
}

func work(merge func(*request, request) bool) error {
	conn, err := child.Parent()
	if err != nil {
		return err
	}
	p := NewParent[request, report](conn, merge)
	defer p.Close()
	var did report
	for {
		select {
		case <-p.Probes:
		case o, ok := <-p.Orders:
			if !ok {
				return p.Err()
			}
			p.Put(func(n *report) { n.Working = true })
			time.Sleep(o.Order.Work)
			did.Texts, did.Fill = append(did.Texts, o.Order.Text), strings.Repeat("x", o.Order.Size)
			r := did
			p.Put(func(n *report) { *n = r })
		}
	}
}

// rig is a supervisor, and what was sent to its processes and heard from them.
type rig struct {
	t *testing.T
	s *Supervisor[request, report]

	mu     sync.Mutex
	orders []request
	report report
	pid    int
	ends   []string
}

// agent is the rig's part in one process. It sends all orders in a process's life.
type agent struct {
	*rig
	p    *Process[request]
	sent int
}

func (a *agent) Hear(n report) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.report, a.pid = n, a.p.PID()
}

func (a *agent) Tell() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for ; a.sent < len(a.orders); a.sent++ {
		if err := a.p.Send(a.orders[a.sent]); err != nil {
			return err
		}
	}
	return nil
}

func (a *agent) End() error { return a.p.Send(request{Text: "end"}) }

// start runs a supervisor for the test. It waits until the process has reported.
func start(t *testing.T, role string, hung, stuck time.Duration) *rig {
	t.Helper()
	r := &rig{t: t, s: New[request, report](slog.New(slog.NewTextHandler(os.Stderr, nil)), Options{Name: "worker",
		Args: []string{role}, Memory: 256 << 20, MaxNews: 32 << 20, PingEvery: 100 * time.Millisecond,
		LookEvery: time.Hour, StartsWithin: time.Minute, HungAfter: hung, StuckAfter: stuck})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- r.s.Run(ctx, func(p *Process[request]) Agent[report] { return &agent{rig: r, p: p} }, func(err error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.ends, r.pid, r.report, r.orders = append(r.ends, fmt.Sprint(err)), 0, report{}, nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the last process: %v", err)
		}
	})
	r.tell(request{Text: "first"})
	r.eventually(func() error {
		if len(r.report.Texts) != 1 {
			return errors.New("no report")
		}
		return nil
	})
	return r
}

func (r *rig) tell(o request) {
	r.mu.Lock()
	r.orders = append(r.orders, o)
	r.mu.Unlock()
	r.s.Wake()
}

func (r *rig) eventually(ok func() error) {
	r.t.Helper()
	testnet.Eventually(r.t, time.Minute, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		return ok()
	})
}

// ended waits for the end of a process, which must have the reason.
func (r *rig) ended(reason string) {
	r.t.Helper()
	r.eventually(func() error {
		if len(r.ends) != 1 || !strings.Contains(r.ends[0], reason) {
			return fmt.Errorf("ends: %q, want %q", r.ends, reason)
		}
		return nil
	})
}

// A process whose work takes longer than it may be silent is not ended, nor is one that sends large reports.
func TestABusyProcessIsNotEnded(t *testing.T) {
	t.Parallel()
	const hung = 3 * time.Second
	r := start(t, "worker", hung, time.Minute)
	pid := r.pid
	r.tell(request{Work: 2 * hung, Text: "slow"})
	for range 20 {
		r.tell(request{Size: 8 << 20, Text: "large"})
	}
	r.eventually(func() error {
		if len(r.report.Texts) != 22 || len(r.ends) > 0 {
			return fmt.Errorf("did %q, ends %q", r.report.Texts, r.ends)
		}
		return nil
	})
	if r.pid != pid || r.s.Restarts() != 0 {
		t.Errorf("process %d, before %d; %d restarts", r.pid, pid, r.s.Restarts())
	}
}

// A stopped process does not answer, and is replaced.
func TestAHungProcessIsReplaced(t *testing.T) {
	t.Parallel()
	r := start(t, "worker", 3*time.Second, time.Minute)
	if err := unix.Kill(r.pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	r.ended("it has not answered for 3")
}

// A process whose loop does not continue answers, and is replaced.
func TestAStuckProcessIsReplaced(t *testing.T) {
	t.Parallel()
	r := start(t, "worker", time.Minute, time.Second)
	r.tell(request{Work: time.Hour})
	r.ended("it is stuck: one step of its work takes longer than 1")
	if got := r.s.Restarts(); got > 1 {
		t.Errorf("%d restarts", got)
	}
}

// Orders arrive in their sequence; where the process joins them, only the last that waits.
func TestOrdersThatWait(t *testing.T) {
	t.Parallel()
	// The process has "a" in its hand when "b" comes, if it was fast enough.
	for role, want := range map[string][]string{"worker": {"first slow a b c"},
		"merger": {"first slow c", "first slow a c"}} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			r := start(t, role, time.Minute, time.Minute)
			r.tell(request{Work: 2 * time.Second, Text: "slow"})
			r.eventually(func() error {
				if !r.report.Working {
					return fmt.Errorf("%+v", r.report)
				}
				return nil
			})
			for _, s := range []string{"a", "b", "c"} {
				r.tell(request{Text: s})
			}
			r.eventually(func() error {
				if got := strings.Join(r.report.Texts, " "); !slices.Contains(want, got) {
					return fmt.Errorf("did %q, want one of %q", got, want)
				}
				return nil
			})
		})
	}
}
