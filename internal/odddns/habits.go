package odddns

import (
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// when is an answer for some queries; all others get the usual one.
func when(odd func(Query) bool, then func(Query) [][]byte) func(Query) [][]byte {
	return func(q Query) [][]byte {
		if odd(q) {
			return then(q)
		}
		return usual(q)
	}
}

// says is an error for every query.
func says(rcode int) func(Query) [][]byte { return func(q Query) [][]byte { return code(q, rcode) } }

func silence(Query) [][]byte { return nil }

// changed is a modified usual answer, without EDNS0.
func changed(change func(q Query, m *dns.Msg)) func(Query) [][]byte {
	return func(q Query) [][]byte {
		m := sized(q, base(q))
		change(q, m)
		return pack(m)
	}
}

// lowered has the question and all names in lower case.
func lowered(q Query) [][]byte {
	low := q.Copy()
	low.Question[0].Name = strings.ToLower(q.name())
	return usual(Query{low, q.TCP, q.Count})
}

func both(a, b func(Query) bool) func(Query) bool { return func(q Query) bool { return a(q) || b(q) } }

// Habits are all habits, by name.
func Habits() []Habit {
	return slices.Concat(withoutEDNS(), withLetters(), withTCP(), withQuestions(), lame(), broken())
}

// withoutEDNS are servers that do not support EDNS0.
func withoutEDNS() []Habit {
	edns := Query.edns
	return []Habit{
		{Name: "usual", Reply: usual},
		{Name: "edns-ignored", Reply: changed(func(Query, *dns.Msg) {})},
		{Name: "edns-formerr", Reply: when(edns, says(dns.RcodeFormatError))},
		{Name: "edns-formerr-bare", Reply: when(edns, func(q Query) [][]byte { return bare(q, dns.RcodeFormatError) })},
		{Name: "edns-notimp", Reply: when(edns, says(dns.RcodeNotImplemented))},
		{Name: "edns-notimp-bare", Reply: when(edns,
			func(q Query) [][]byte { return bare(q, dns.RcodeNotImplemented) })},
		{Name: "edns-servfail", Reply: when(edns, says(dns.RcodeServerFailure))},
		{Name: "edns-refused", Reply: when(edns, says(dns.RcodeRefused))},
		{Name: "edns-silent", Reply: when(edns, silence)},
		{Name: "edns-badvers", Reply: when(edns, func(q Query) [][]byte {
			m := new(dns.Msg).SetReply(q.Msg)
			m.SetEdns0(512, false)
			m.Rcode = dns.RcodeBadVers
			return pack(m)
		})},
		{Name: "edns-junk", Reply: when(edns, func(q Query) [][]byte {
			b := pack(base(q))[0]
			b[11] = 1 // an additional record
			// The option is longer than the record.
			return [][]byte{append(b, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 6, 0, 8, 0, 9, 1, 2)}
		})},
		{Name: "edns-twice", Reply: when(edns, changed(func(_ Query, m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.Extra = append(m.Extra, m.Extra[0])
		}))},
	}
}

// withLetters are servers that compare names case-sensitively.
func withLetters() []Habit {
	capital := Query.capital
	return []Habit{
		{Name: "capitals-denied", Reply: when(capital, says(dns.RcodeNameError))},
		{Name: "capitals-denied-no-tcp", NoTCP: true, Reply: when(capital, says(dns.RcodeNameError))},
		{Name: "capitals-empty", Reply: when(capital, says(dns.RcodeSuccess))},
		{Name: "capitals-servfail", Reply: when(capital, says(dns.RcodeServerFailure))},
		{Name: "capitals-refused-no-tcp", NoTCP: true, Reply: when(capital, says(dns.RcodeRefused))},
		{Name: "capitals-silent", Reply: when(capital, silence)},
		{Name: "capitals-silent-no-tcp", NoTCP: true, Reply: when(capital, silence)},
		{Name: "capitals-denied-with-soa", NoTCP: true, Reply: when(capital, func(q Query) [][]byte {
			m := new(dns.Msg).SetRcode(q.Msg, dns.RcodeNameError)
			m.Ns = []dns.RR{records("test. %d IN SOA ns.test. admin.test. 1 7200 1800 86400 %d", ttl, ttl)}
			return pack(m)
		})},
		{Name: "lower", Reply: lowered},
		{Name: "lower-no-tcp", NoTCP: true, Reply: lowered},
		{Name: "lower-no-tcp-formerr", NoTCP: true, Reply: func(q Query) [][]byte {
			if q.edns() {
				return bare(q, dns.RcodeFormatError)
			}
			return lowered(q)
		}},
		{Name: "edns-formerr-capitals-denied", NoTCP: true, Reply: func(q Query) [][]byte {
			switch {
			case q.edns():
				return code(q, dns.RcodeFormatError)
			case q.capital():
				return code(q, dns.RcodeNameError)
			}
			return usual(q)
		}},
		{Name: "edns-or-capitals-silent", NoTCP: true, Reply: when(both(Query.edns, capital), silence)},
	}
}

// withTCP are servers whose long answers are not delivered.
func withTCP() []Habit {
	cut := changed(func(q Query, m *dns.Msg) {
		if len(m.Answer) > 20 {
			m.Truncated, m.Answer = true, m.Answer[:20]
		}
	})
	return []Habit{
		{Name: "cut-no-tcp", NoTCP: true, Reply: cut},
		{Name: "cut-tcp-silent", Reply: func(q Query) [][]byte {
			if q.TCP {
				return nil
			}
			return cut(q)
		}},
		{Name: "cut-tcp-servfail", Reply: func(q Query) [][]byte {
			if q.TCP {
				return code(q, dns.RcodeServerFailure)
			}
			return cut(q)
		}},
		{Name: "cut-empty-no-tcp", NoTCP: true, Reply: changed(func(_ Query, m *dns.Msg) {
			if len(m.Answer) > 20 {
				m.Truncated, m.Answer = true, nil
			}
		})},
		{Name: "cut-without-tc", Reply: func(q Query) [][]byte {
			b := pack(base(q))[0]
			if len(b) > dns.MinMsgSize && !q.TCP {
				b = b[:dns.MinMsgSize]
			}
			return [][]byte{b}
		}},
		{Name: "large-without-edns", NoTCP: true, Reply: func(q Query) [][]byte { return pack(base(q)) }},
		{Name: "usual-no-tcp", NoTCP: true, Reply: usual},
	}
}

// withQuestions are servers whose answers do not match the question.
func withQuestions() []Habit {
	return []Habit{
		{Name: "question-missing", Reply: changed(func(_ Query, m *dns.Msg) { m.Question = nil })},
		{Name: "question-other-name", Reply: changed(func(_ Query, m *dns.Msg) { m.Question[0].Name = "other.test." })},
		{Name: "question-other-type", Reply: changed(func(_ Query, m *dns.Msg) { m.Question[0].Qtype = dns.TypeMX })},
		{Name: "question-twice", Reply: changed(func(_ Query, m *dns.Msg) {
			m.Question = append(m.Question,
				m.Question[0])
		})},
		{Name: "id-other", Reply: changed(func(_ Query, m *dns.Msg) { m.Id++ })},
		{Name: "id-other-first", Reply: func(q Query) [][]byte {
			return append(changed(func(_ Query, m *dns.Msg) { m.Id++ })(q), usual(q)...)
		}},
		{Name: "query-back", Reply: changed(func(_ Query, m *dns.Msg) { m.Response = false })},
		{Name: "port-other", OtherPort: true, NoTCP: true, Reply: usual},
	}
}

// lame are servers that answer without content.
func lame() []Habit {
	return []Habit{
		{Name: "refused", Reply: says(dns.RcodeRefused)},
		{Name: "refused-bare", Reply: func(q Query) [][]byte { return bare(q, dns.RcodeRefused) }},
		{Name: "servfail", Reply: says(dns.RcodeServerFailure)},
		{Name: "formerr", Reply: says(dns.RcodeFormatError)},
		{Name: "notimp", Reply: says(dns.RcodeNotImplemented)},
		{Name: "silent", Reply: silence},
		{Name: "referral", Reply: changed(func(_ Query, m *dns.Msg) {
			m.Rcode, m.Answer, m.RecursionAvailable = dns.RcodeSuccess, nil, false
			m.Ns = []dns.RR{records("test. %d IN NS ns.test.", ttl)}
		})},
		{Name: "cname-alone", Reply: changed(func(_ Query, m *dns.Msg) {
			if len(m.Answer) > 1 && m.Answer[0].Header().Rrtype == dns.TypeCNAME {
				m.Answer = m.Answer[:1]
			}
		})},
		{Name: "cname-alone-target-refused", Reply: func(q Query) [][]byte {
			if strings.HasPrefix(strings.ToLower(q.name()), "real.") {
				return code(q, dns.RcodeRefused)
			}
			return changed(func(_ Query, m *dns.Msg) {
				if len(m.Answer) > 1 && m.Answer[0].Header().Rrtype == dns.TypeCNAME {
					m.Answer = m.Answer[:1]
				}
			})(q)
		}},
		{Name: "slow", Delay: 1200 * time.Millisecond, Reply: usual},
		{Name: "slower", Delay: 1800 * time.Millisecond, Reply: usual},
		{Name: "every-second-lost", Reply: when(func(q Query) bool { return q.Count%2 == 0 && !q.TCP }, silence)},
	}
}

// broken are servers whose answers have extra content.
func broken() []Habit {
	return []Habit{
		{Name: "recursion-not-available", Reply: changed(func(_ Query, m *dns.Msg) { m.RecursionAvailable = false })},
		{Name: "authoritative", Reply: changed(func(_ Query, m *dns.Msg) { m.Authoritative = true })},
		{Name: "ad", Reply: changed(func(_ Query, m *dns.Msg) { m.AuthenticatedData = true })},
		{Name: "cd", Reply: changed(func(_ Query, m *dns.Msg) { m.CheckingDisabled = true })},
		{Name: "z", Reply: changed(func(_ Query, m *dns.Msg) { m.Zero = true })},
		{Name: "bytes-behind", Reply: func(q Query) [][]byte {
			return [][]byte{append(changed(func(Query, *dns.Msg) {})(q)[0], "junk behind the message"...)}
		}},
		{Name: "records-of-others", Reply: changed(func(_ Query, m *dns.Msg) {
			m.Answer = append(m.Answer, records("bank.test. %d IN A 192.0.2.66", ttl))
			m.Extra = append(m.Extra, records("ns.bank.test. %d IN A 192.0.2.66", ttl))
		})},
		{Name: "count-too-large", Reply: func(q Query) [][]byte {
			b := changed(func(Query, *dns.Msg) {})(q)[0]
			b[11]++
			return [][]byte{b}
		}},
		{Name: "ttl-zero", Reply: changed(func(_ Query, m *dns.Msg) {
			for _, rr := range m.Answer {
				rr.Header().Ttl = 0
			}
		})},
		{Name: "owner-in-small-letters", Reply: changed(func(_ Query, m *dns.Msg) {
			for _, rr := range m.Answer {
				rr.Header().Name = strings.ToLower(rr.Header().Name)
			}
		})},
	}
}
