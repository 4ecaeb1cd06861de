package server

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
	"wayleave.dev/model"
)

// autopathPatience bounds the rest of a walk: if upstreams are dead, the client gets the plain answer early, and walks
// by itself.
const autopathPatience = 2 * time.Second

// leastWalked is the minimum number of labels of a name whose walk is shortened: with one label, the first step is also
// the full name of a Service.
const leastWalked = 2

// walked are the types for which resolvers use the search list.
var walked = map[uint16]bool{dns.TypeA: true, dns.TypeAAAA: true, dns.TypeHTTPS: true, dns.TypeSRV: true,
	dns.TypeMX: true, dns.TypeTXT: true}

// Autopath does the rest of a pod's walk through its search list if the first step found no name: m, the reply to q,
// becomes the records of the first existing name on the way, after a CNAME to it. It reports whether m was changed.
// search is the node's own list.
//
// m stays unchanged if the client's own walk could end differently:
//   - if the query is not the first step of this caller: a name in its own namespace, with fewer dots than its ndots;
//   - for one label, and for names below a Service of the namespace: the query may be a full name, which no resolver
//     walks on from;
//   - for a later step of a walk whose first one was seen: the walk of a.b.NAMESPACE has the second step of a.b's as
//     its first; and for a name that a domain of the node's own list has, which only clients that walk may get;
//   - if a name on the way lacks the type: some resolvers continue there (glibc), some do not (musl);
//   - if no name exists, and if the walk cannot be completed.
func (r *Resolver) Autopath(ctx context.Context, q, m *dns.Msg, c schema.Caller, search []string) bool {
	if m.Rcode != dns.RcodeNameError || len(m.Answer) > 0 || !c.Usual() || len(r.Domains) == 0 || !q.RecursionDesired ||
		!walked[q.Question[0].Qtype] {
		return false
	}
	asked := q.Question[0].Name
	list := c.Search(r.Domains[0], search)
	cut := len(asked) - len(list[0]) - 2 // a dot separates them, and one ends the name
	if cut < 1 || !strings.EqualFold(asked[cut:], "."+list[0]+".") || r.Walks.later(c, asked, time.Now()) {
		return false
	}
	r.Walks.first(c, asked[:cut], list, time.Now())
	if !r.isWalk(asked[:cut], c) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, autopathPatience)
	defer cancel()
	for i, suffix := range append(list[1:], "") {
		name := dns.Fqdn(strings.TrimSuffix(asked[:cut]+"."+suffix, "."))
		if _, ok := dns.IsDomainName(name); !ok {
			continue
		}
		step := new(dns.Msg).SetQuestion(name, q.Question[0].Qtype)
		step.CheckingDisabled = q.CheckingDisabled
		if opt := q.IsEdns0(); opt != nil {
			step.SetEdns0(wire.MaxUDP, opt.Do())
		}
		inner, sources := traced(ctx)
		got := r.Resolve(inner, step)
		note(ctx, "autopath "+name+" "+dns.RcodeToString[got.Rcode]+" from "+sources.String())
		if got.Rcode == dns.RcodeNameError {
			continue
		}
		cluster := i < schema.ClusterSuffixes-1 && slices.ContainsFunc(got.Answer,
			func(rr dns.RR) bool { return rr.Header().Rrtype == q.Question[0].Qtype })
		if got.Rcode != dns.RcodeSuccess || got.Truncated || !cluster && suffix != "" {
			return false
		}
		shortcut(m, name, got)
		return true
	}
	return false
}

// isWalk reports whether a name below the caller's namespace can only be the first step of a walk, as far as known: not
// the full name of a Service, or of an endpoint or a port of an existing one, ready or not.
func (r *Resolver) isWalk(name string, c schema.Caller) bool {
	labels := dns.SplitDomainName(name)
	if len(labels) < leastWalked || len(labels) > c.NDots {
		return false
	}
	return !r.Zone.HasService(model.Name{Namespace: c.Pod.Namespace, Name: strings.ToLower(labels[len(labels)-1])})
}

// firstStep reports whether a missing name may be the first step of the caller's walk, which Autopath would complete:
// all others can be answered on the hot path.
func firstStep(c *schema.Caller, q *wire.Question, domains []wire.Domain) bool {
	if !c.Usual() || len(domains) == 0 || !q.Recursion || !walked[q.Qtype] {
		return false
	}
	at, below := q.Below(&domains[0])
	labels := len(q.Starts) - domains[0].Labels - 2 // before the namespace and "svc"
	if !below || labels < leastWalked || labels > c.NDots || string(q.Name[q.Starts[labels+1]:at]) != "\x03svc" {
		return false
	}
	namespace := q.Name[q.Starts[labels]:q.Starts[labels+1]]
	return string(namespace[1:]) == c.Pod.Namespace
}

// shortcut replaces m by the answer got after a CNAME.
func shortcut(m *dns.Msg, name string, got *dns.Msg) {
	cname := &dns.CNAME{Hdr: wire.Header(m.Question[0].Name, dns.TypeCNAME), Target: name}
	for _, rr := range got.Answer {
		cname.Hdr.Ttl = min(cname.Hdr.Ttl, rr.Header().Ttl)
	}
	m.Rcode, m.Answer, m.Ns = dns.RcodeSuccess, append([]dns.RR{cname}, got.Answer...), got.Ns
	for _, rr := range got.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			m.Extra = append(m.Extra, rr)
		}
	}
}

// Bounds of recorded walks.
const (
	// walkFor is how long the later steps of a walk may take.
	walkFor = 30 * time.Second
	// mostWalks are recorded; above that, all are dropped.
	mostWalks = 4096
)

// Walks are recent walks whose later steps look like the first step of another one. Safe for concurrent use.
type Walks struct {
	mu    sync.Mutex
	steps map[walkStep]time.Time // until
}

// walkStep is a query of a pod, with its name in lower case.
type walkStep struct {
	pod  model.Name
	name string
}

// first records the later steps of the walk for name that are below the caller's namespace.
func (w *Walks) first(c schema.Caller, name string, list []string, now time.Time) {
	if w == nil {
		return
	}
	name = strings.ToLower(name)
	for _, suffix := range append(list[1:schema.ClusterSuffixes:schema.ClusterSuffixes], "") {
		step := dns.Fqdn(strings.TrimSuffix(name+"."+suffix, "."))
		if !strings.HasSuffix(step, "."+list[0]+".") {
			continue
		}
		w.mu.Lock()
		if w.steps == nil || len(w.steps) >= mostWalks {
			w.steps = map[walkStep]time.Time{}
		}
		w.steps[walkStep{c.Pod, step}] = now.Add(walkFor)
		w.mu.Unlock()
	}
}

// later reports whether a query may be a later step of a recorded walk.
func (w *Walks) later(c schema.Caller, asked string, now time.Time) bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return now.Before(w.steps[walkStep{c.Pod, strings.ToLower(asked)}])
}
