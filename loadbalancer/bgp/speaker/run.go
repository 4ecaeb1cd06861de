package speaker

import (
	"errors"
	"log/slog"
	"net"
	"time"

	"wayleave.dev/internal/child"
	"wayleave.dev/internal/supervisor"
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
	agent := supervisor.NewParent[order, news](conn, latest)
	defer agent.Close()
	look, again := time.NewTicker(lookEvery), time.NewTicker(applyAgain)
	defer look.Stop()
	defer again.Stop()
	var state *bgp.State
	var reported time.Time
	var applied bool
	for {
		select {
		case <-agent.Probes:
			continue
		case o, ok := <-agent.Orders:
			if !ok {
				return agent.Err()
			}
			state, applied = o.Order.State, false
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
		agent.Put(func(n *news) { n.Report = &r })
	}
}

// latest has the loop apply only the last of the states that wait.
func latest(waiting *order, next order) bool {
	*waiting = next
	return true
}
