package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/model"
)

// Bounds of query logs.
const (
	// maxLogs are read at once.
	maxLogs = 8
	// logQueue lines wait for a reader; more are counted and dropped.
	logQueue = 1000
	// maxLogTime is the longest that one runs.
	maxLogTime = time.Hour
)

// queryLogs are the logs with a reader. While there is none, a query costs
// one load. Safe for concurrent use.
type queryLogs struct {
	mu   sync.Mutex
	list atomic.Pointer[[]*queryLog]
}

// queryLog wants the queries of one pod or for one name, or both.
type queryLog struct {
	pod model.Name
	// name is in lower case with a final dot; empty for all.
	name    string
	lines   chan string
	dropped atomic.Int64
}

// wants says whether the log is of a query. A name is also wanted with a search domain
// behind it.
func (l *queryLog) wants(from schema.Caller, name string) bool {
	return (l.pod == model.Name{} || l.pod == from.Pod) && strings.HasPrefix(strings.ToLower(name), l.name)
}

// none says that no log has a reader.
func (l *queryLogs) none() bool {
	list := l.list.Load()
	return list == nil || len(*list) == 0
}

// of are the logs of a query.
func (l *queryLogs) of(from schema.Caller, name string) []*queryLog {
	if l.none() {
		return nil
	}
	var out []*queryLog
	for _, log := range *l.list.Load() {
		if log.wants(from, name) {
			out = append(out, log)
		}
	}
	return out
}

func (l *queryLogs) add(log *queryLog) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []*queryLog
	if p := l.list.Load(); p != nil {
		list = slices.Clone(*p)
	}
	if len(list) >= maxLogs {
		return fmt.Errorf("%d query logs are read already; no more than that", maxLogs)
	}
	list = append(list, log)
	l.list.Store(&list)
	return nil
}

func (l *queryLogs) remove(log *queryLog) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(*l.list.Load()), func(x *queryLog) bool { return x == log })
	l.list.Store(&list)
}

// put queues the line of a query for the logs, and does not wait.
func put(logs []*queryLog, line string) {
	for _, l := range logs {
		select {
		case l.lines <- line:
		default:
			l.dropped.Add(1)
		}
	}
}

// logLine is a query and its answer in one line.
func logLine(start time.Time, client netip.Addr, from schema.Caller, network string, m *dns.Msg, source string) string {
	who := "-"
	if from.Pod != (model.Name{}) {
		who = from.Pod.String()
	}
	name, qtype := "-", "-"
	if len(m.Question) == 1 {
		// A name on the wire can hold anything; the text form is escaped.
		name, qtype = m.Question[0].Name, dns.Type(m.Question[0].Qtype).String()
	}
	var answers []string
	for _, rr := range m.Answer {
		answers = append(answers, dns.Type(rr.Header().Rrtype).String()+" "+strings.TrimPrefix(rr.String(),
			rr.Header().String()))
	}
	return fmt.Sprintf("%s %s %s %s %s %s %s %s [%s] from %s", start.UTC().Format("15:04:05.000000"), client, who,
		network, name, qtype,
		dns.RcodeToString[m.Rcode], time.Since(start).Round(time.Microsecond), strings.Join(answers, "; "), source)
}

// follow writes a log until ctx ends or the time is over. flush is called when no more
// line waits.
func (s *Server) follow(ctx context.Context, w io.Writer, flush func() error, pod model.Name, name string,
	d time.Duration) error {
	if d <= 0 || d > maxLogTime {
		return fmt.Errorf("a log is for more than 0 and at most %s", maxLogTime)
	}
	if (pod == model.Name{}) && name == "" {
		return errors.New("a log is of a pod or a name")
	}
	log := &queryLog{pod: pod, lines: make(chan string, logQueue)}
	if name != "" {
		log.name = strings.ToLower(dns.Fqdn(name))
	}
	if err := s.logs.add(log); err != nil {
		return err
	}
	defer s.logs.remove(log)
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	say := fmt.Sprintf("# queries until %s UTC", time.Now().Add(d).UTC().Format(time.TimeOnly))
	if _, addrs := s.callers.pod(pod); pod != (model.Name{}) && len(addrs) == 0 {
		say += fmt.Sprintf("; pod %s is not known on this node now", pod)
	}
	lines := 0
	for {
		if _, err := fmt.Fprintln(w, say); err != nil {
			return nil // the reader has gone
		}
		if len(log.lines) == 0 {
			if err := flush(); err != nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			// A reader that has gone needs no last line.
			_, _ = fmt.Fprintf(w, "# the end: %d queries, and %d that were not read fast enough\n", lines,
				log.dropped.Load())
			return nil
		case say = <-log.lines:
			lines++
		}
	}
}
