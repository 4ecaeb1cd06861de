package speaker

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"wayleave.dev/internal/child"
	"wayleave.dev/internal/frame"
	"wayleave.dev/loadbalancer/bgp"
)

const (
	// reportEvery is the minimum interval of reports after an event, lookEvery that of reports without one.
	reportEvery = 200 * time.Millisecond
	lookEvery   = 3 * time.Second
	// applyAgain is the wait before a State that could not be applied is tried again, for example because the earlier
	// process still has the port.
	applyAgain = 500 * time.Millisecond
)

// Main is the whole of the process that a Supervisor starts.
func Main() error { return child.Main("bgp", Run, child.BindService) }

// Run speaks BGP as the agent's orders say, until the socket is closed. It does not end the sessions: the kernel closes
// their connections without a notification, after which peers keep the routes of a gracefully restarting process.
func Run(conn *net.UnixConn, log *slog.Logger) error {
	e := newEngine(log)
	out := newOutbox(conn)
	defer out.close()
	frames := receive(conn)
	look, again := time.NewTicker(lookEvery), time.NewTicker(applyAgain)
	defer look.Stop()
	defer again.Stop()
	var state *bgp.State
	var reported time.Time
	var applied bool
	for {
		select {
		case r := <-frames:
			// A killed agent leaves a reset socket.
			if errors.Is(r.err, io.EOF) || errors.Is(r.err, syscall.ECONNRESET) {
				return nil
			}
			if r.err != nil {
				return r.err
			}
			if r.order.Ping != 0 {
				out.put(func(n *news) { n.Pong = r.order.Ping })
			}
			if r.order.State == nil {
				continue
			}
			state, applied = r.order.State, false
		case <-e.changed:
			if d := time.Until(reported.Add(reportEvery)); d > 0 {
				time.Sleep(d)
			}
		case <-look.C:
			applied = applied && !e.unresolved
			e.routes.stale.Store(true)
		case <-again.C:
			if applied {
				continue
			}
		}
		if state == nil {
			continue
		}
		if !applied {
			err := e.apply(state)
			if errors.Is(err, errRestart) {
				return err
			}
			applied = err == nil
		}
		reported = time.Now()
		r := e.report()
		out.put(func(n *news) { n.Report = &r })
	}
}

type received struct {
	order order
	err   error
}

func receive(conn *net.UnixConn) <-chan received {
	frames := make(chan received)
	go func() {
		for {
			var r received
			if _, r.err = frame.Receive(conn, &r.order); r.err != nil {
				frames <- r
				return
			}
			frames <- r
		}
	}()
	return frames
}

// outbox sends news, the latest of each kind: an agent that does not read must not delay sessions.
type outbox struct {
	conn *net.UnixConn
	mu   sync.Mutex
	next news
	wake chan struct{}
	done chan struct{}
}

func newOutbox(conn *net.UnixConn) *outbox {
	o := &outbox{conn: conn, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go o.run()
	return o
}

func (o *outbox) put(change func(*news)) {
	o.mu.Lock()
	change(&o.next)
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) run() {
	for {
		select {
		case <-o.done:
			return
		case <-o.wake:
		}
		o.mu.Lock()
		n := o.next
		o.next = news{}
		o.mu.Unlock()
		if err := frame.Send(o.conn, n, nil); err != nil {
			return // the agent is gone, which Run notices, too
		}
	}
}

func (o *outbox) close() { close(o.done) }
