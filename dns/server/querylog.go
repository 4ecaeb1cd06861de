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
	// maxLogs is the maximum number of concurrent logs.
	maxLogs = 8
	// logQueue lines wait for a reader; further ones are counted and dropped.
	logQueue = 1000
	// maxLogTime is the longest run time of a log.
	maxLogTime = time.Hour
)

// queryLogs are the logs with a reader. Without one, a query costs one atomic load. Safe for concurrent use.
type queryLogs struct {
	mu   sync.Mutex
	list atomic.Pointer[[]*queryLog]
}

// queryLog selects the queries of one pod or for one name, or both.
type queryLog struct {
	pod model.Name
	// name is in lower case with a final dot; empty for all.
	name    string
	lines   chan string
	dropped atomic.Int64
}

// wants reports whether the log selects a query. A name is also selected with a search domain appended.
func (l *queryLog) wants(from schema.Caller, name string) bool {
	return (l.pod == model.Name{} || l.pod == from.Pod) && strings.HasPrefix(strings.ToLower(name), l.name)
}

// none reports whether no log has a reader.
func (l *queryLogs) none() bool {
	list := l.list.Load()
	return list == nil || len(*list) == 0
}

// of returns the logs that select a query.
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
		return fmt.Errorf("%d query logs are open; no more are allowed", maxLogs)
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

// logLine formats a query and its answer as one line.
func logLine(start time.Time, client netip.Addr, from schema.Caller, network string, m *dns.Msg, source string) string {
	who := "-"
	if from.Pod != (model.Name{}) {
		who = from.Pod.String()
	}
	name, qtype := "-", "-"
	if len(m.Question) == 1 {
		// A name on the wire can contain any bytes; the text form is escaped.
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
		return fmt.Errorf("duration of the log: allowed: more than 0 and at most %s", maxLogTime)
	}
	if (pod == model.Name{}) && name == "" {
		return errors.New("a log needs a pod or a name")
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
		say += fmt.Sprintf("; pod %s is currently not known on this node", pod)
	}
	lines := 0
	for {
		if _, err := fmt.Fprintln(w, say); err != nil {
			return nil // the reader has disconnected
		}
		if len(log.lines) == 0 {
			if err := flush(); err != nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			// A reader that has disconnected needs no last line.
			_, _ = fmt.Fprintf(w, "# end: %d queries, and %d dropped because the reader was too slow\n", lines,
				log.dropped.Load())
			return nil
		case say = <-log.lines:
			lines++
		}
	}
}
