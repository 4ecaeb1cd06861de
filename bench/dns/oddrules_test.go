package dns

import (
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// oddRule is one kind of difference before odd servers, and what decides.
type oddRule struct {
	title         string
	parts         []string
	when          func(c oddCase) bool
	coredns, ours string
	decides       string
}

// of says that a case is of one of the habits whose names begin so.
func (c oddCase) of(prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(c.habit.Name, p) })
}

func failed(m *dns.Msg) bool {
	return m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError
}

func oddRules() []oddRule {
	whole := append(content(), partTC, partRA, partFlags, partOPT, partQuestion)
	return []oddRule{
		{title: "errors of servers", parts: whole,
			when:    func(c oddCase) bool { return failed(c.theirs) && failed(c.ours) },
			coredns: "the server's code, or FORMERR for an answer that does not fit",
			ours:    "SERVFAIL, after all servers of the domain were asked",
			decides: "RFC 1035, 4.1.1: FORMERR and REFUSED are about the client's query and rights, which were in " +
				"order; clients go on to the next server for all of them"},
		{title: "errors for queries with EDNS0, or with capitals", parts: whole,
			when: func(c oddCase) bool {
				return !failed(c.ours) && (failed(c.theirs) || c.of("edns-") && options(c.q) != "none" &&
					len(c.theirs.Answer) == 0)
			},
			coredns: "the client's query as it is, so its EDNS0 and capitals meet the server's fault",
			ours:    "asked again without",
			decides: "RFC 6891, 7: a requestor falls back to queries without OPT; RFC 4343, 3: names are compared " +
				"without regard to case"},
		{title: "names with capitals that are denied", parts: whole,
			when: func(c oddCase) bool {
				return c.of("capitals-", "edns-formerr-capitals", "edns-or-capitals") &&
					mixedCase(c.q.Question[0].Name) && !failed(c.ours)
			},
			coredns: "denied, as the server does", ours: "found, in small letters",
			decides: "RFC 4343, 3: names are compared without regard to case"},
		{title: "more of a long answer", parts: append(content(), partTC, partOPT),
			when: func(c oddCase) bool {
				return strings.HasPrefix(strings.ToLower(c.q.Question[0].Name), "long") && !failed(c.ours)
			},
			coredns: "what the server put into one datagram of the client's size",
			ours:    "all of it, by TCP or a larger datagram, cut to the client's size, to 1232 bytes at the most",
			decides: "RFC 2181, 9: TC has the client ask by TCP, where all is told"},
		{title: "letters of the question", parts: []string{partQuestion},
			when: func(c oddCase) bool {
				return len(c.theirs.Question) == 1 && strings.EqualFold(c.theirs.Question[0].Name,
					c.q.Question[0].Name) && c.ours.Question[0] == c.q.Question[0]
			},
			coredns: "in small letters, as the server sends them", ours: "as the client wrote them",
			decides: "RFC 1035, 4.1.1: the question section of a response is the query's; clients that mix " +
				"letters check them"},
		{title: "RA", parts: []string{partRA}, when: func(c oddCase) bool { return c.ours.RecursionAvailable },
			coredns: "as the server says", ours: "set in all answers",
			decides: "RFC 1035, 4.1.1: RA “denotes whether recursive query support is available in the name " +
				"server”; it is"},
		{title: "AA", parts: []string{partAA}, when: func(c oddCase) bool { return !c.ours.Authoritative },
			coredns: "as the server says", ours: "not set for names outside of the cluster",
			decides: "RFC 1035, 4.1.1: AA is for an authority of the name, which a forwarder is not"},
		{title: "AD, CD and Z", parts: []string{partFlags},
			when: func(c oddCase) bool {
				return c.of("ad", "cd", "z") ||
					c.ours.CheckingDisabled == c.q.CheckingDisabled
			},
			coredns: "as the server says", ours: "AD for clients that set AD or DO, CD as in the query, Z never",
			decides: "RFC 6840, 5.8 for AD; RFC 4035, 3.2.2: CD is copied from the query; RFC 1035, 4.1.1: " +
				"Z must be zero"},
		{title: "the target of a CNAME", parts: append(content(), partFlags),
			when:    func(c oddCase) bool { return c.of("cname-alone") && hasCNAME(reply{full: c.ours}) },
			coredns: "the CNAME alone", ours: "the target is asked for, too",
			decides: "RFC 1034, 5.3.3, 4c: a resolver goes on at the CNAME's target"},
		{title: "records of other names", parts: content(),
			when:    func(c oddCase) bool { return c.of("records-of-others", "count-too-large") },
			coredns: "passed on, also as the answer for a name that has none", ours: "left out of the answer section",
			decides: "RFC 5452, 6: data that does not belong to the question is not to be taken"},
	}
}
