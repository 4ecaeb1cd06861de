package server

import (
	"context"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"wayleave.dev/dns/wire"
	"wayleave.dev/dns/zone"
)

// Resolver answers messages: from the zone, or by the forwarder.
type Resolver struct {
	Zone *zone.Zone
	// Forward resolves names outside of the cluster.
	Forward func(ctx context.Context, q *dns.Msg) (*dns.Msg, error)
	// Domains are the cluster's, in lower case with a final dot.
	Domains []string
	// Pods is how names of pods are answered; empty is PodsDisabled.
	Pods string
	// Servers are the addresses of the cluster DNS, those of ns.dns.<domain>.
	Servers []netip.Addr
	// Walks are the walks that Autopath has seen begin; nil records none.
	Walks *Walks
	// Size is the longest reply that the client can get, in bytes; 0 for no limit. No records are made that cannot fit.
	Size int
}

// Minimum sizes of records, with a pointer as owner (RFC 1035, 4.1.4) and the shortest target.
const (
	leastPTR = 14
	leastSRV = 19
)

// fitting returns the records of a list for which a reply may have room, from a random one on: a client gets few bytes
// for few bytes of work. least is the minimum size of one.
func fitting[T any](r *Resolver, m *dns.Msg, list []T, least int) []T {
	list = wire.Rotated(list)
	if most := r.Size/least + 1; r.Size > 0 && len(list) > most {
		m.Truncated = true
		list = list[:most]
	}
	return list
}

// Resolve makes the reply to a query. It never fails: a query that cannot be answered gets a response code.
func (r *Resolver) Resolve(ctx context.Context, q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	if len(q.Question) != 1 || q.Response {
		m.SetRcode(q, dns.RcodeFormatError)
		return m
	}
	m.SetReply(q)
	m.RecursionAvailable = true
	if opt := q.IsEdns0(); opt != nil {
		if opt.Version() != 0 {
			m.SetRcode(q, dns.RcodeBadVers)
			m.SetEdns0(wire.MaxUDP, false)
			return m
		}
		m.SetEdns0(wire.MaxUDP, opt.Do())
	}
	question := q.Question[0]
	switch {
	case q.Opcode != dns.OpcodeQuery:
		m.Rcode = dns.RcodeNotImplemented
		return m
	case question.Qclass != dns.ClassINET:
		m.Rcode = dns.RcodeRefused
		return m
	}
	name := strings.ToLower(question.Name)
	for _, domain := range r.Domains {
		if name == domain || strings.HasSuffix(name, "."+domain) {
			note(ctx, "zone")
			r.cluster(ctx, m, domain, strings.TrimSuffix(strings.TrimSuffix(name, domain), "."))
			return m
		}
	}
	if a, ok := wire.ReverseAddr(name); ok && r.pointer(m, a) {
		note(ctx, "zone")
		r.lack(m, wire.ReverseZone(a))
		return m
	}
	return r.forward(ctx, q, m)
}

func (r *Resolver) forward(ctx context.Context, q, m *dns.Msg) *dns.Msg {
	if !q.RecursionDesired {
		m.Rcode = dns.RcodeRefused
		return m
	}
	got, err := r.Forward(ctx, q)
	if err != nil {
		note(ctx, "nobody ("+err.Error()+")")
		m.Rcode = dns.RcodeServerFailure
		return m
	}
	m.Rcode, m.Answer, m.Ns, m.Truncated = got.Rcode, got.Answer, got.Ns, got.Truncated
	// Clients that did not ask do not learn that the data is authenticated (RFC 6840, 5.8).
	m.AuthenticatedData = got.AuthenticatedData && (q.AuthenticatedData || wire.DNSSECOK(q))
	for _, rr := range got.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			m.Extra = append(m.Extra, rr)
		}
	}
	return m
}

// pointer answers for an address of the cluster; false if it is not one.
func (r *Resolver) pointer(m *dns.Msg, a netip.Addr) bool {
	names := r.Zone.Pointer(a)
	if len(names) == 0 || len(r.Domains) == 0 {
		return false
	}
	m.Authoritative = true
	q := m.Question[0]
	if q.Qtype == dns.TypePTR {
		for _, n := range fitting(r, m, names, leastPTR) {
			m.Answer = append(m.Answer, &dns.PTR{Hdr: wire.Header(q.Name, dns.TypePTR), Ptr: wire.ToText(n) + "." +
				r.Domains[0]})
		}
	}
	return true
}

// cluster answers for a name below a cluster domain.
func (r *Resolver) cluster(ctx context.Context, m *dns.Msg, domain, rel string) {
	m.Authoritative = true
	q := m.Question[0]
	if rel == "" {
		r.apex(m, domain)
		return
	}
	if pod, ok := belowPod(rel); ok {
		if !r.pod(m, pod) {
			m.Rcode = dns.RcodeNameError
		}
		r.lack(m, domain)
		return
	}
	switch rel {
	case "ns.dns": // the name of the server in SOA and NS
		m.Answer = wire.Addresses(q.Name, q.Qtype, r.Servers)
		fallthrough
	case "dns":
		r.lack(m, domain)
		return
	}
	n, ok := r.Zone.Look(rel)
	if !ok {
		m.Rcode = dns.RcodeNameError
		m.Ns = append(m.Ns, wire.SOA(domain))
		return
	}
	switch {
	case n.CNAME != "":
		r.alias(ctx, m, n.CNAME)
	case q.Qtype == dns.TypeA || q.Qtype == dns.TypeAAAA:
		m.Answer = wire.Addresses(q.Name, q.Qtype, n.Addrs)
	case q.Qtype == dns.TypeSRV:
		r.services(m, domain, n.SRV)
	case q.Qtype == dns.TypeTXT && len(n.TXT) > 0:
		m.Answer = append(m.Answer, &dns.TXT{Hdr: wire.Header(q.Name, dns.TypeTXT), Txt: n.TXT})
	}
	r.lack(m, domain)
}

// lack adds to an empty answer how long it may be cached.
func (r *Resolver) lack(m *dns.Msg, domain string) {
	if len(m.Answer) == 0 {
		m.Ns = append(m.Ns, wire.SOA(domain))
	}
}

// belowPod removes "pod" from the end of a relative name.
func belowPod(rel string) (string, bool) {
	if rel == "pod" {
		return "", true
	}
	return strings.CutSuffix(rel, ".pod")
}

func (r *Resolver) apex(m *dns.Msg, domain string) {
	switch m.Question[0].Qtype {
	case dns.TypeSOA:
		m.Answer = append(m.Answer, wire.SOA(domain))
	case dns.TypeNS:
		m.Answer = append(m.Answer, &dns.NS{Hdr: wire.Header(m.Question[0].Name, dns.TypeNS), Ns: "ns.dns." + domain})
		m.Extra = append(m.Extra, wire.Addresses("ns.dns."+domain, dns.TypeA, r.Servers)...)
		m.Extra = append(m.Extra, wire.Addresses("ns.dns."+domain, dns.TypeAAAA, r.Servers)...)
	default:
		m.Ns = append(m.Ns, wire.SOA(domain))
	}
}

// services answers with SRV records and the addresses of their targets.
func (r *Resolver) services(m *dns.Msg, domain string, list []zone.SRV) {
	if len(list) == 0 {
		return
	}
	weight, seen := wire.Weight(len(list)), map[string]bool{}
	for _, s := range fitting(r, m, list, leastSRV) {
		target := wire.ToText(s.Target) + "." + domain
		m.Answer = append(m.Answer, &dns.SRV{Hdr: wire.Header(m.Question[0].Name, dns.TypeSRV), Priority: 0,
			Weight: weight, Port: s.Port, Target: target})
		if seen[target] {
			continue
		}
		seen[target] = true
		if m.Truncated {
			continue // there is no room for addresses
		}
		if n, ok := r.Zone.LookWire(s.Target); ok {
			m.Extra = append(m.Extra, wire.Addresses(target, dns.TypeA, n.Addrs)...)
			m.Extra = append(m.Extra, wire.Addresses(target, dns.TypeAAAA, n.Addrs)...)
		}
	}
}

type aliasDepth struct{}

// alias answers with a CNAME and, for an address query, with the records of the target.
func (r *Resolver) alias(ctx context.Context, m *dns.Msg, target string) {
	q := m.Question[0]
	target = dns.Fqdn(target)
	m.Answer = append(m.Answer, &dns.CNAME{Hdr: wire.Header(q.Name, dns.TypeCNAME), Target: target})
	depth, _ := ctx.Value(aliasDepth{}).(int)
	if q.Qtype == dns.TypeCNAME || depth >= wire.MaxAliases {
		return
	}
	next := new(dns.Msg).SetQuestion(target, q.Qtype)
	got := r.Resolve(context.WithValue(ctx, aliasDepth{}, depth+1), next)
	switch got.Rcode {
	case dns.RcodeSuccess:
		m.Answer = append(m.Answer, got.Answer...)
	case dns.RcodeNameError:
		m.Rcode = dns.RcodeNameError
		m.Ns = got.Ns
	}
}
