package forward

import (
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/cache"
	"wayleave.dev/dns/wire"
	"wayleave.dev/internal/dnstest"
)

// Addresses in the cache are told from any of them on, all of them, each with its TTL,
// behind the CNAMEs that lead there; nothing else changes its place.
func TestCachedAddressesAreRotated(t *testing.T) {
	c, now := cache.New(), time.Now()
	c.Limit(dnstest.Limits)
	for _, tc := range []struct {
		what    string
		m       *dns.Msg
		firsts  int // of the answers
		orders  int
		restsAt int // what is in front of this place does not move
	}{
		{"one", dnstest.Reply(t, "one.example.", dns.TypeA, 0, "one.example. 9 IN A 192.0.2.1"), 1, 1, 1},
		{"three", dnstest.Reply(t, "a.example.", dns.TypeA, 0, "a.example. 10 IN A 192.0.2.1",
			"a.example. 11 IN A 192.0.2.2",
			"a.example. 12 IN A 192.0.2.3"), 3, 3, 0},
		{"IPv6", dnstest.Reply(t, "a.example.", dns.TypeAAAA, 0, "a.example. 10 IN AAAA fd00::1",
			"a.example. 10 IN AAAA fd00::2"), 2, 2, 0},
		{"behind CNAMEs", dnstest.Reply(t, "www.example.", dns.TypeA, 0, "www.example. 10 IN CNAME web.example.",
			"web.example. 10 IN CNAME w.cdn.test.", "w.cdn.test. 11 IN A 192.0.2.1", "w.cdn.test. 12 IN A 192.0.2.2"),
			1, 2, 2},
		{"two names", dnstest.Reply(t, "x.example.", dns.TypeANY, 0, "x.example. 10 IN A 192.0.2.1",
			"x.example. 10 IN A 192.0.2.2", "x.example. 10 IN AAAA fd00::1", "x.example. 10 IN AAAA fd00::2",
			"x.example. 10 IN TXT q"), 2, 4, 0},
		{"of other names", dnstest.Reply(t, "o.example.", dns.TypeA, 0, "o.example. 10 IN CNAME p.example.",
			"p.example. 10 IN A 192.0.2.1", "o.example. 10 IN A 192.0.2.2"), 1, 1, 3},
		{"of another type", dnstest.Reply(t, "m.example.", dns.TypeMX, 0, "m.example. 10 IN MX 10 b.example.",
			"m.example. 10 IN MX 10 a.example.", "--", "example. 10 IN NS a.example.", "example. 10 IN NS b.example."),
			1, 1, 2},
	} {
		key, err := cache.KeyOf(tc.m)
		if err != nil || !c.Put(key, tc.m, now) {
			t.Fatalf("%s is not kept: %v", tc.what, err)
		}
		name, qtype := tc.m.Question[0].Name, tc.m.Question[0].Qtype
		forwarder := &Forwarder{Cache: c, now: func() time.Time { return now }}
		e, _ := c.Find(key, now)
		for path, ask := range map[string]func() *dns.Msg{
			"hot": func() *dns.Msg {
				reply, _ := c.Lookup(nil, dnstest.Query(t, name, qtype, nil), wire.MaxUDP, now)
				m := new(dns.Msg)
				if err := m.Unpack(reply); err != nil {
					t.Fatal(err)
				}
				return m
			},
			"slow": func() *dns.Msg {
				m, err := forwarder.unpack(e, new(dns.Msg).SetQuestion(name, qtype))
				if err != nil {
					t.Fatal(err)
				}
				return m
			},
			"first": func() *dns.Msg { return copyFor(tc.m, new(dns.Msg).SetQuestion(name, qtype)) },
		} {
			firsts, orders := map[string]bool{}, map[string]bool{}
			for range 200 {
				m := ask()
				firsts[m.Answer[0].String()], orders[fmt.Sprint(m.Answer)] = true, true
				for i, rr := range m.Answer[:tc.restsAt] {
					if rr.String() != tc.m.Answer[i].String() {
						t.Errorf("%s, %s: %v is at %d", tc.what, path, rr, i)
					}
				}
				if got, want := dnstest.Sorted(&dns.Msg{Answer: m.Answer, Ns: m.Ns}),
					dnstest.Sorted(&dns.Msg{Answer: tc.m.Answer, Ns: tc.m.Ns}); got != want {
					t.Fatalf("%s, %s: got\n%s\nwant\n%s", tc.what, path, got, want)
				}
			}
			if len(firsts) != tc.firsts || len(orders) != tc.orders {
				t.Errorf("%s, %s: %d first answers in %d orders, want %d in %d", tc.what, path, len(firsts),
					len(orders), tc.firsts, tc.orders)
			}
		}
	}
}
