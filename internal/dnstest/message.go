package dnstest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/model"
)

// Limits are those of a cache that keeps everything in a test.
var Limits = schema.CacheLimits{Bytes: 1 << 20, TTL: time.Hour, NegativeTTL: 30 * time.Minute, Stale: 24 * time.Hour}

// Reply builds the answer to a question from records in zone-file form; those after "--" are in the authority section.
func Reply(t testing.TB, name string, qtype uint16, rcode int, records ...string) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, qtype)
	m.Response, m.Rcode = true, rcode
	to := &m.Answer
	for _, r := range records {
		if r == "--" {
			to = &m.Ns
			continue
		}
		rr, err := dns.NewRR(r)
		if err != nil {
			t.Fatal(err)
		}
		*to = append(*to, rr)
	}
	return m
}

// Query returns a query's bytes.
func Query(t testing.TB, name string, qtype uint16, change func(*dns.Msg)) []byte {
	t.Helper()
	q := new(dns.Msg).SetQuestion(name, qtype)
	q.Id = 0x1234
	if change != nil {
		change(q)
	}
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Addr parses an address.
func Addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// Name parses "namespace/name".
func Name(s string) model.Name {
	ns, n, _ := strings.Cut(s, "/")
	return model.Name{Namespace: ns, Name: n}
}

// Text returns "RCODE: type data, …" with the answers sorted.
func Text(m *dns.Msg) string {
	var parts []string
	for _, rr := range m.Answer {
		f := strings.Fields(rr.String())
		parts = append(parts, strings.Join(f[3:], " "))
	}
	slices.Sort(parts)
	out := dns.RcodeToString[m.Rcode] + ": " + strings.Join(parts, ", ")
	if len(m.Ns) > 0 {
		out += " +" + dns.TypeToString[m.Ns[0].Header().Rrtype]
	}
	return out
}

// Sorted returns a message as text, with the records of each section sorted.
func Sorted(m *dns.Msg) string {
	var parts []string
	for _, list := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		var lines []string
		for _, rr := range list {
			if rr.Header().Rrtype == dns.TypeOPT {
				lines = append(lines, rr.String())
				continue
			}
			// A pointer to the question has its letter case; full names have none.
			lines = append(lines, strings.ToLower(rr.String()))
		}
		slices.Sort(lines)
		parts = append(parts, strings.Join(lines, "\n"))
	}
	return m.MsgHdr.String() + fmt.Sprint(m.Question) + strings.Join(parts, "\n--\n")
}

// Clock is set by the test.
type Clock struct{ Gone atomic.Int64 }

// Add moves the clock.
func (c *Clock) Add(d time.Duration) { c.Gone.Add(int64(d)) }

// ExpectText compares the text of an answer.
func ExpectText(t *testing.T, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TellsOne is the text of an answer with the first address of the test network.
const TellsOne = "NOERROR: A 192.0.2.1"
