// Package lossmeter measures what a disturbance costs: it keeps several kinds of traffic running and counts what is
// lost. It checks every claim that a restart, an upgrade or a change drops nothing.
//
// Kinds of traffic:
//   - udp: numbered datagrams at a fixed rate over one flow, echoed by the server;
//   - tcp: open connections that always have a numbered message in flight; a
//     reset, a closed connection or a message that takes too long is a loss.
//     TCP repairs single lost packets: these show as Retransmits, and are a loss if
//     the repair took a second;
//   - datagram: new UDP flows of one datagram each, echoed, one try each;
//   - connect: new TCP connections, each with one message and its echo;
//   - dns: queries for one name, with a resolver's time-out; the first try counts, and what a
//     second one from another port does not get either is counted separately;
//   - http: new GET requests, keep-alive off, any status but 200 is a loss.
//
// A lost packet is distinguished from a late answer: datagrams are never sent again, so more time does not bring them
// back, and TCP knows for each socket what it sent again. What is merely late, on an overloaded machine, is not lost;
// see slowest.
package lossmeter

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// patience is the default time after which an answer counts as lost: as long as the C library's resolver waits.
	patience = 5 * time.Second
	// repair is how long an answer may take if its connection retransmitted: the first packet of a connection is sent
	// again after a second.
	repair = time.Second
)

// Dial connects to a target; tests dial from within a namespace.
type Dial func(network, addr string, timeout time.Duration) (net.Conn, error)

// Probe is one kind of traffic to one target.
type Probe struct {
	Kind   string // udp, tcp, datagram, connect, dns or http
	Target string // host:port; for dns "server:port/name."; for http "host:port/path"
	// Rate is in messages per second; 0 for the kind's default.
	Rate int
	// Patience is the time after which an answer counts as lost; 0 for 5 s.
	Patience time.Duration
}

// Count is what one probe sent and lost.
type Count struct {
	Kind   string `json:"kind"`
	Target string `json:"target"`
	Sent   int64  `json:"sent"`
	Lost   int64  `json:"lost"`
	// Unanswered is how many of those lost were lost at a second try, too; dns only.
	Unanswered int64 `json:"unanswered,omitempty"`
	// Slowest is the longest time of an answer, in milliseconds.
	Slowest int64 `json:"slowestMs"`
	// First describes the first loss, with its time since the start.
	First string `json:"first,omitempty"`
}

// Report is the result of a run.
type Report struct {
	Counts []Count `json:"counts"`
	// Retransmits is the number of TCP segments that this network namespace sent again.
	Retransmits int64 `json:"retransmits"`
}

// Lost returns the sum of all losses.
func (r Report) Lost() (n int64) {
	for _, c := range r.Counts {
		n += c.Lost
	}
	return n
}

// Sent returns the sum of everything sent.
func (r Report) Sent() (n int64) {
	for _, c := range r.Counts {
		n += c.Sent
	}
	return n
}

// String returns one line per probe.
func (r Report) String() string {
	var b strings.Builder
	for _, c := range r.Counts {
		lost := fmt.Sprint(c.Lost)
		if c.Unanswered > 0 {
			lost += fmt.Sprintf(" (%d at a second try)", c.Unanswered)
		}
		fmt.Fprintf(&b, "%-8s %-40s sent %6d lost %s slowest %d ms %s\n", c.Kind, c.Target, c.Sent, lost,
			c.Slowest, c.First)
	}
	fmt.Fprintf(&b, "TCP segments sent again: %d\n", r.Retransmits)
	return b.String()
}

// counter is the state of a running probe.
type counter struct {
	Probe
	start   time.Time
	sent    atomic.Int64
	lost    atomic.Int64
	again   atomic.Int64
	slowest atomic.Int64
	mu      sync.Mutex
	first   string
}

func (c *counter) lose(n int64, format string, args ...any) {
	c.lost.Add(n)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == "" {
		c.first = fmt.Sprintf("after %s: ", time.Since(c.start).Round(time.Millisecond)) + fmt.Sprintf(format, args...)
	}
}

func (c *counter) took(d time.Duration) {
	for ms := d.Milliseconds(); ; {
		old := c.slowest.Load()
		if ms <= old || c.slowest.CompareAndSwap(old, ms) {
			return
		}
	}
}

func (c *counter) count() Count {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Count{c.Kind, c.Target, c.sent.Load(), c.lost.Load(), c.again.Load(), c.slowest.Load(), c.first}
}

// Run keeps all probes running until ctx ends, waits for the last answers, and reports. The error means that a probe
// could not start.
func Run(ctx context.Context, dial Dial, probes []Probe) (Report, error) {
	before := retransmits()
	counters := make([]*counter, len(probes))
	errs := make([]error, len(probes))
	var wg sync.WaitGroup
	for i, p := range probes {
		run, rate := runner(p.Kind)
		if run == nil {
			return Report{},
				fmt.Errorf("lossmeter: %q is not a kind of traffic; allowed: udp, tcp, datagram, connect, dns, http",
					p.Kind)
		}
		if p.Rate == 0 {
			p.Rate = rate
		}
		if p.Patience == 0 {
			p.Patience = patience
		}
		counters[i] = &counter{Probe: p, start: time.Now()}
		wg.Go(func() { errs[i] = run(ctx, dial, counters[i]) })
	}
	wg.Wait()
	var r Report
	for i, c := range counters {
		if errs[i] != nil {
			return Report{}, fmt.Errorf("lossmeter: %s %s: %w", c.Kind, c.Target, errs[i])
		}
		r.Counts = append(r.Counts, c.count())
	}
	r.Retransmits = retransmits() - before
	return r, nil
}

func runner(kind string) (run func(context.Context, Dial, *counter) error, rate int) {
	switch kind {
	case "udp":
		return udp, 1000
	case "tcp":
		return tcp, 100
	case "datagram":
		return datagram, 50
	case "connect":
		return connect, 50
	case "dns":
		return dnsQueries, 100
	case "http":
		return httpGets, 50
	}
	return nil, 0
}

// retransmits returns the namespace's counter TcpRetransSegs; 0 if it cannot be read.
func retransmits() int64 {
	raw, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		return 0
	}
	var names []string
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		if i := slices.Index(names, "RetransSegs"); i > 0 && i < len(f) {
			n, err := strconv.ParseInt(f[i], 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// ParseProbe parses "kind=target" or "kind@rate=target".
func ParseProbe(s string) (Probe, error) {
	kind, target, ok := strings.Cut(s, "=")
	if !ok || target == "" {
		return Probe{}, fmt.Errorf("probe %q: allowed: kind=target, such as udp=10.0.0.1:9", s)
	}
	p := Probe{Kind: kind, Target: target}
	if k, rate, ok := strings.Cut(kind, "@"); ok {
		n, err := strconv.Atoi(rate)
		if err != nil || n < 1 || n > 100000 {
			return Probe{}, fmt.Errorf("probe %q: rate: %q is not a number from 1 to 100000", s, rate)
		}
		p.Kind, p.Rate = k, n
	}
	if run, _ := runner(p.Kind); run == nil {
		return Probe{},
			fmt.Errorf("probe %q: %q is not a kind of traffic; allowed: udp, tcp, datagram, connect, dns, http", s,
				p.Kind)
	}
	return p, nil
}

// JSON returns the report for machines.
func (r Report) JSON() string {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Sprintf(`{"error":%q}`, err) // cannot happen: only numbers and texts
	}
	return string(b)
}
