package dns

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Resolver answers messages: from the zone, or by the forwarder.
type Resolver struct {
	Zone *Zone
	// Forward resolves what is not of the cluster.
	Forward func(ctx context.Context, q *dns.Msg) (*dns.Msg, error)
	// Domains are the cluster's, in lower case with a final dot.
	Domains []string
	// Pods is how the names of pods are answered; empty is PodsDisabled.
	Pods string
	// Servers are the addresses of the cluster DNS, those of ns.dns.<domain>.
	Servers []netip.Addr
	// Walks are those that Autopath has seen begin; nil remembers none.
	Walks *Walks
}

// Resolve makes the reply to a query. It never fails: what cannot be answered is
// answered with the code that says so.
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
			m.SetEdns0(maxUDP, false)
			return m
		}
		m.SetEdns0(maxUDP, opt.Do())
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
	if a, ok := reverseAddr(name); ok && r.pointer(m, a) {
		note(ctx, "zone")
		r.lack(m, reverseZone(a))
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
	// Who did not ask is not told that the data is authenticated (RFC 6840, 5.8).
	m.AuthenticatedData = got.AuthenticatedData && (q.AuthenticatedData || doBit(q))
	for _, rr := range got.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			m.Extra = append(m.Extra, rr)
		}
	}
	return m
}

// pointer answers for an address of the cluster; false when it is none.
func (r *Resolver) pointer(m *dns.Msg, a netip.Addr) bool {
	names := r.Zone.pointer(a)
	if len(names) == 0 || len(r.Domains) == 0 {
		return false
	}
	m.Authoritative = true
	q := m.Question[0]
	if q.Qtype == dns.TypePTR {
		for _, n := range names {
			m.Answer = append(m.Answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: fromWire(n) + "." +
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
	case "ns.dns": // the name of the server that SOA and NS tell
		m.Answer = addresses(q.Name, q.Qtype, r.Servers)
		fallthrough
	case "dns":
		r.lack(m, domain)
		return
	}
	n, ok := r.Zone.look(rel)
	if !ok {
		m.Rcode = dns.RcodeNameError
		m.Ns = append(m.Ns, soa(domain))
		return
	}
	switch {
	case n.cname != "":
		r.alias(ctx, m, n.cname)
	case q.Qtype == dns.TypeA || q.Qtype == dns.TypeAAAA:
		m.Answer = addresses(q.Name, q.Qtype, n.addrs)
	case q.Qtype == dns.TypeSRV:
		r.services(m, domain, n.srv)
	case q.Qtype == dns.TypeTXT && len(n.txt) > 0:
		m.Answer = append(m.Answer, &dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: n.txt})
	}
	r.lack(m, domain)
}

// lack says of an answer that is empty for how long that may be remembered.
func (r *Resolver) lack(m *dns.Msg, domain string) {
	if len(m.Answer) == 0 {
		m.Ns = append(m.Ns, soa(domain))
	}
}

// belowPod cuts "pod" off the end of a relative name.
func belowPod(rel string) (string, bool) {
	if rel == "pod" {
		return "", true
	}
	return strings.CutSuffix(rel, ".pod")
}

func (r *Resolver) apex(m *dns.Msg, domain string) {
	switch m.Question[0].Qtype {
	case dns.TypeSOA:
		m.Answer = append(m.Answer, soa(domain))
	case dns.TypeNS:
		m.Answer = append(m.Answer, &dns.NS{Hdr: header(m.Question[0].Name, dns.TypeNS), Ns: "ns.dns." + domain})
		m.Extra = append(m.Extra, addresses("ns.dns."+domain, dns.TypeA, r.Servers)...)
		m.Extra = append(m.Extra, addresses("ns.dns."+domain, dns.TypeAAAA, r.Servers)...)
	default:
		m.Ns = append(m.Ns, soa(domain))
	}
}

// addresses are those of one family, starting at random.
func addresses(name string, rrtype uint16, addrs []netip.Addr) []dns.RR {
	var out []dns.RR
	for _, a := range addrs {
		switch {
		case rrtype == dns.TypeA && a.Is4():
			out = append(out, &dns.A{Hdr: header(name, rrtype), A: net.IP(a.AsSlice())})
		case rrtype == dns.TypeAAAA && a.Is6():
			out = append(out, &dns.AAAA{Hdr: header(name, rrtype), AAAA: net.IP(a.AsSlice())})
		}
	}
	return turned(out)
}

// turned is the list from a random place on, so that clients that take the first
// spread over all (RFC 1794). The list itself stays.
func turned[T any](list []T) []T {
	if len(list) < 2 {
		return list
	}
	k := rand.IntN(len(list))
	return append(list[k:len(list):len(list)], list[:k]...)
}

// services answers with SRV records and the addresses of their targets.
func (r *Resolver) services(m *dns.Msg, domain string, list []srv) {
	if len(list) == 0 {
		return
	}
	list = turned(list)
	seen := map[string]bool{}
	for _, s := range list {
		target := fromWire(s.target) + "." + domain
		m.Answer = append(m.Answer, &dns.SRV{Hdr: header(m.Question[0].Name, dns.TypeSRV), Priority: 0,
			Weight: weight(len(list)), Port: s.port, Target: target})
		if seen[target] {
			continue
		}
		seen[target] = true
		if n, ok := r.Zone.lookWire(s.target); ok {
			m.Extra = append(m.Extra, addresses(target, dns.TypeA, n.addrs)...)
			m.Extra = append(m.Extra, addresses(target, dns.TypeAAAA, n.addrs)...)
		}
	}
}

// weight is that of each of n SRV records: all have the same share.
func weight(n int) uint16 { return uint16(max(1, 100/n)) }

// maxAliases bounds a chain of ExternalName services that point at each other.
const maxAliases = 8

type aliasDepth struct{}

// alias answers with a CNAME and, for an address, with what the target has.
func (r *Resolver) alias(ctx context.Context, m *dns.Msg, target string) {
	q := m.Question[0]
	target = dns.Fqdn(target)
	m.Answer = append(m.Answer, &dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: target})
	depth, _ := ctx.Value(aliasDepth{}).(int)
	if q.Qtype == dns.TypeCNAME || depth >= maxAliases {
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

// soa says how long the absence of a name may be remembered.
func soa(domain string) dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: domain, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: negativeTTL},
		Ns:  "ns.dns." + domain, Mbox: "hostmaster." + domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: negativeTTL,
	}
}
