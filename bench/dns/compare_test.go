package dns

import (
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// reply is a contestant's answer: the datagram, and all records, by TCP if the datagram was truncated.
type reply struct {
	udp, full *dns.Msg
}

// Parts of a reply that are compared separately.
const (
	partRcode     = "rcode"
	partAA        = "AA"
	partRA        = "RA"
	partTC        = "TC"
	partFlags     = "other header bits"
	partQuestion  = "question"
	partAnswer    = "answer"
	partAuthority = "authority"
	partExtra     = "additional"
	partOPT       = "OPT"
)

// differ returns the parts that differ.
func differ(theirs, ours reply) (parts []string) {
	note := func(part string, differs bool) {
		if differs {
			parts = append(parts, part)
		}
	}
	a, b := theirs.full, ours.full
	note(partRcode, a.Rcode != b.Rcode)
	note(partAA, a.Authoritative != b.Authoritative)
	note(partRA, a.RecursionAvailable != b.RecursionAvailable)
	note(partTC, theirs.udp.Truncated != ours.udp.Truncated)
	flags := func(m *dns.Msg) string {
		return fmt.Sprint(m.Response, m.Opcode, m.RecursionDesired, m.Zero, m.AuthenticatedData, m.CheckingDisabled)
	}
	note(partFlags, flags(a) != flags(b))
	note(partQuestion, !slices.Equal(a.Question, b.Question)) // including the letter case
	note(partAnswer, !slices.Equal(records(a.Answer), records(b.Answer)))
	note(partAuthority, !slices.Equal(records(a.Ns), records(b.Ns)))
	note(partExtra, !slices.Equal(records(a.Extra), records(b.Extra)))
	note(partOPT, options(a) != options(b))
	return parts
}

// records returns those of a section as sorted text: both servers rotate the order. A serial number is a time, and TTLs
// of external names count down.
func records(section []dns.RR) (list []string) {
	for _, rr := range section {
		if rr.Header().Rrtype == dns.TypeOPT {
			continue
		}
		rr = dns.Copy(rr)
		if soa, ok := rr.(*dns.SOA); ok {
			soa.Serial = 0
		}
		if outsideRecord(rr) && rr.Header().Ttl <= outsideTTL {
			rr.Header().Ttl = 0
		}
		list = append(list, strings.Join(strings.Fields(rr.String()), " "))
	}
	slices.Sort(list)
	return list
}

// outsideRecord reports whether a record came from the upstream server.
func outsideRecord(rr dns.RR) bool {
	return dns.IsSubDomain("example.org.", strings.ToLower(rr.Header().Name))
}

// options returns the EDNS0 part, without the size of datagrams, which each server chooses.
func options(m *dns.Msg) string {
	opt := m.IsEdns0()
	if opt == nil {
		return "none"
	}
	return fmt.Sprint("version ", opt.Version(), " DO ", opt.Do(), " options ", len(opt.Option))
}

// show formats a reply for people.
func show(r reply) string {
	m := r.full
	var b strings.Builder
	fmt.Fprintf(&b, "%s AA=%t RA=%t TC=%t AD=%t", dns.RcodeToString[m.Rcode], m.Authoritative, m.RecursionAvailable,
		r.udp.Truncated, m.AuthenticatedData)
	for name, section := range map[string][]dns.RR{"answer": m.Answer, "authority": m.Ns, "additional": m.Extra} {
		list := records(section)
		if len(list) > 6 {
			list = append(list[:6:6], fmt.Sprintf("and %d more", len(list)-6))
		}
		if len(list) > 0 {
			fmt.Fprintf(&b, "\n      %s: %s", name, strings.Join(list, " | "))
		}
	}
	fmt.Fprintf(&b, "\n      OPT: %s", options(m))
	return b.String()
}
