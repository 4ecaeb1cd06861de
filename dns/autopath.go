package dns

import (
	"context"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// autopathPatience bounds the rest of a walk: with dead upstreams the client gets the
// plain answer early, and walks by itself.
const autopathPatience = 2 * time.Second

// walked are the types for which resolvers use the search list.
var walked = map[uint16]bool{dns.TypeA: true, dns.TypeAAAA: true, dns.TypeHTTPS: true, dns.TypeSRV: true, dns.TypeMX: true, dns.TypeTXT: true}

// Autopath takes the rest of a pod's walk through its search list when the first step
// of it found no name: m, the reply to q, becomes what the first name on the way
// that exists has, behind a CNAME to it. m stays as it is when no name exists, when the
// walk cannot be finished, and for what is not the first step of this caller: a name in
// its own namespace, with fewer dots than its ndots. search is the node's own list. It says
// whether m was changed.
func (r *Resolver) Autopath(ctx context.Context, q, m *dns.Msg, c Caller, search []string) bool {
	if m.Rcode != dns.RcodeNameError || len(m.Answer) > 0 || !c.Usual() || len(r.Domains) == 0 || !q.RecursionDesired || !walked[q.Question[0].Qtype] {
		return false
	}
	asked := q.Question[0].Name
	list := c.search(r.Domains[0], search)
	cut := len(asked) - len(list[0]) - 2 // between is a dot, and one ends it
	if cut < 1 || !strings.EqualFold(asked[cut:], "."+list[0]+".") || strings.Count(asked[:cut], ".") >= c.NDots {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, autopathPatience)
	defer cancel()
	for _, suffix := range append(list[1:], "") {
		name := dns.Fqdn(strings.TrimSuffix(asked[:cut]+"."+suffix, "."))
		if _, ok := dns.IsDomainName(name); !ok {
			continue
		}
		step := new(dns.Msg).SetQuestion(name, q.Question[0].Qtype)
		step.CheckingDisabled = q.CheckingDisabled
		if opt := q.IsEdns0(); opt != nil {
			step.SetEdns0(maxUDP, opt.Do())
		}
		inner, sources := traced(ctx)
		got := r.Resolve(inner, step)
		note(ctx, "autopath "+name+" "+dns.RcodeToString[got.Rcode]+" from "+sources.String())
		switch got.Rcode {
		case dns.RcodeNameError:
			continue
		case dns.RcodeSuccess:
			shortcut(m, name, got)
			return true
		}
		return false
	}
	return false
}

// firstStep says whether a missing name may be the first step of the caller's walk, of
// which Autopath takes the rest: all others can be answered on the hot path.
func (c *Caller) firstStep(q *question, domains []wireDomain) bool {
	if !c.Usual() || len(domains) == 0 || !q.recursion || !walked[q.qtype] {
		return false
	}
	at, below := q.below(&domains[0])
	labels := len(q.starts) - domains[0].labels - 2 // in front of the namespace and "svc"
	if !below || labels < 1 || labels > c.NDots || string(q.name[q.starts[labels+1]:at]) != "\x03svc" {
		return false
	}
	namespace := q.name[q.starts[labels]:q.starts[labels+1]]
	return string(namespace[1:]) == c.Pod.Namespace
}

// shortcut makes m the answer of got behind a CNAME.
func shortcut(m *dns.Msg, name string, got *dns.Msg) {
	cname := &dns.CNAME{Hdr: header(m.Question[0].Name, dns.TypeCNAME), Target: name}
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
