package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var testLimits = CacheLimits{Bytes: 1 << 20, TTL: time.Hour, NegativeTTL: 30 * time.Minute, Stale: 24 * time.Hour}

// replyOf builds the answer to a question of records in zone-file form; those after
// "--" are in the authority section.
func replyOf(t testing.TB, name string, qtype uint16, rcode int, records ...string) *dns.Msg {
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

const soaRecord = "example.com. 600 IN SOA ns.example.com. h.example.com. 1 2 3 4 120"

func TestCacheLifetimes(t *testing.T) {
	for _, tc := range []struct {
		what    string
		m       *dns.Msg
		want    time.Duration
		denials bool
	}{
		{"the least TTL of the answers counts", replyOf(t, "a.example.com.", dns.TypeA, 0,
			"a.example.com. 300 IN CNAME b.example.com.", "b.example.com. 60 IN A 192.0.2.1"), time.Minute, false},
		{"a long TTL is cut", replyOf(t, "a.example.com.", dns.TypeA, 0, "a.example.com. 604800 IN A 192.0.2.1"),
			time.Hour, false},
		{"TTL 0 is not kept", replyOf(t, "a.example.com.", dns.TypeA, 0, "a.example.com. 0 IN A 192.0.2.1"), 0, false},
		{"a TTL with the highest bit is 0", replyOf(t, "a.example.com.", dns.TypeA, 0,
			"a.example.com. 4294967295 IN A 192.0.2.1"), 0, false},
		{"a name that is none: the SOA's minimum", replyOf(t, "x.example.com.", dns.TypeA, dns.RcodeNameError, "--",
			soaRecord), 2 * time.Minute, true},
		{"its TTL when that is less", replyOf(t, "x.example.com.", dns.TypeA, dns.RcodeNameError, "--",
			strings.Replace(soaRecord, "600", "5", 1)), 5 * time.Second, true},
		{"a denial is cut", replyOf(t, "x.example.com.", dns.TypeA, dns.RcodeNameError, "--",
			"example.com. 86400 IN SOA a. b. 1 2 3 4 86400"), 30 * time.Minute, true},
		{"no such record", replyOf(t, "a.example.com.", dns.TypeAAAA, 0, "--", soaRecord), 2 * time.Minute, true},
		{"an alias of nothing", replyOf(t, "a.example.com.", dns.TypeAAAA, 0,
			"a.example.com. 10 IN CNAME b.example.com.", "--", soaRecord), 10 * time.Second, true},
		{"a denial without SOA", replyOf(t, "x.example.com.", dns.TypeA, dns.RcodeNameError), 0, true},
		{"a failure", replyOf(t, "x.example.com.", dns.TypeA, dns.RcodeServerFailure), 0, false},
	} {
		got, denial := lifetime(tc.m, &testLimits)
		if got != tc.want || denial != tc.denials {
			t.Errorf("%s: kept for %v (denial %v), want %v", tc.what, got, denial, tc.want)
		}
	}
	m := replyOf(t, "a.example.com.", dns.TypeA, 0, "a.example.com. 60 IN A 192.0.2.1")
	m.Truncated = true
	if got, _ := lifetime(m, &testLimits); got != 0 {
		t.Errorf("a truncated answer is kept for %v", got)
	}
}

// wireQuery is a query's bytes.
func wireQuery(t testing.TB, name string, qtype uint16, change func(*dns.Msg)) []byte {
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

func putReply(t testing.TB, c *Cache, m *dns.Msg, now time.Time) {
	t.Helper()
	key, err := keyOf(m)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Put(key, m, now) {
		t.Fatalf("not kept: %v", m)
	}
}

func lookup(t testing.TB, c *Cache, query []byte, size int, now time.Time) (*dns.Msg, Hit) {
	t.Helper()
	b, hit := c.Lookup(nil, query, size, now)
	if hit == Miss {
		return nil, hit
	}
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatalf("the cache's reply %x: %v", b, err)
	}
	return m, hit
}

func TestTheCacheAnswersAsTheClientAsked(t *testing.T) {
	c, now := NewCache(), time.Now()
	c.Limit(testLimits)
	putReply(t, c, replyOf(t, "www.example.com.", dns.TypeA, 0, "www.example.com. 300 IN CNAME web.example.com.",
		"web.example.com. 7200 IN A 192.0.2.1"), now)

	m, hit := lookup(t, c, wireQuery(t, "wWw.Example.COM.", dns.TypeA, nil), maxUDP, now.Add(100*time.Second))
	if hit != Fresh || m.Id != 0x1234 || !m.Response || !m.RecursionDesired || !m.RecursionAvailable ||
		m.IsEdns0() != nil {
		t.Fatalf("%v: %v", hit, m)
	}
	if m.Question[0].Name != "wWw.Example.COM." || m.Answer[0].Header().Name != "wWw.Example.COM." {
		t.Errorf("letters are not as asked: %v", m)
	}
	// No TTL is above the limit of an hour, and 100 s have gone.
	if a, b := m.Answer[0].Header().Ttl, m.Answer[1].Header().Ttl; a != 200 || b != 3500 {
		t.Errorf("TTLs are %d and %d, want 200 and 3500", a, b)
	}
	m, _ = lookup(t, c, wireQuery(t, "www.example.com.", dns.TypeA, func(q *dns.Msg) { q.SetEdns0(4096, false) }),
		maxUDP, now)
	if opt := m.IsEdns0(); opt == nil || opt.UDPSize() != maxUDP || opt.Do() {
		t.Errorf("with EDNS: %v", m)
	}
	for what, change := range map[string]func(*dns.Msg){
		"DO":                   func(q *dns.Msg) { q.SetEdns0(4096, true) },
		"CD":                   func(q *dns.Msg) { q.CheckingDisabled = true },
		"no recursion":         func(q *dns.Msg) { q.RecursionDesired = false },
		"another type":         func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeAAAA },
		"another class":        func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS },
		"another opcode":       func(q *dns.Msg) { q.Opcode = dns.OpcodeNotify },
		"two questions":        func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) },
		"EDNS of version 1":    func(q *dns.Msg) { q.SetEdns0(4096, false); q.IsEdns0().SetVersion(1) },
		"a reply":              func(q *dns.Msg) { q.Response = true },
		"a record in a query":  func(q *dns.Msg) { q.Answer = []dns.RR{soa("x.")} },
		"another extra record": func(q *dns.Msg) { q.Extra = []dns.RR{soa("x.")} },
	} {
		if m, hit := lookup(t, c, wireQuery(t, "www.example.com.", dns.TypeA, change), maxUDP, now); hit != Miss {
			t.Errorf("%s was answered from the cache: %v", what, m)
		}
	}
}

// A query whose options do not end where their record does is left to the library,
// which says FORMERR.
func TestBrokenOptionsAreNotForTheCache(t *testing.T) {
	c, now := NewCache(), time.Now()
	c.Limit(testLimits)
	putReply(t, c, replyOf(t, "a.example.", dns.TypeA, 0, "a.example. 300 IN A 192.0.2.1"), now)
	for _, tc := range []struct {
		options []byte
		want    Hit
	}{{nil, Fresh}, {[]byte{0, 3, 0, 0}, Fresh}, {[]byte{0, 3, 0, 1, 9, 0, 8, 0, 0}, Fresh}, {[]byte{0}, Miss},
		{[]byte{0, 3, 0}, Miss}, {[]byte{0, 3, 0, 1}, Miss}, {[]byte{0, 3, 0, 0, 0, 3, 0, 2, 9}, Miss}} {
		q := append(wireQuery(t, "a.example.", dns.TypeA, func(q *dns.Msg) { q.SetEdns0(1232, false) }), tc.options...)
		q[len(q)-len(tc.options)-1] = byte(len(tc.options))
		if _, hit := c.Lookup(nil, q, maxUDP, now); hit != tc.want {
			t.Errorf("options %x: %v, want %v", tc.options, hit, tc.want)
		}
	}
}

func TestTheCacheKeepsRepliesForDNSSECApart(t *testing.T) {
	c, now := NewCache(), time.Now()
	c.Limit(testLimits)
	m := replyOf(t, "www.example.com.", dns.TypeA, 0, "www.example.com. 300 IN A 192.0.2.2")
	m.SetEdns0(maxUDP, true)
	putReply(t, c, m, now)
	if _, hit := lookup(t, c, wireQuery(t, "www.example.com.", dns.TypeA, nil), maxUDP, now); hit != Miss {
		t.Error("a client without DO got the reply of one with it")
	}
	got, hit := lookup(t, c, wireQuery(t, "www.example.com.", dns.TypeA, func(q *dns.Msg) { q.SetEdns0(4096, true) }),
		maxUDP, now)
	if hit != Fresh || !got.IsEdns0().Do() {
		t.Errorf("with DO: %v, %v", hit, got)
	}
}

func TestTheCacheTruncates(t *testing.T) {
	c, now := NewCache(), time.Now()
	c.Limit(testLimits)
	var records []string
	for i := range 60 {
		records = append(records, fmt.Sprintf("many.example.com. 300 IN A 192.0.2.%d", i))
	}
	putReply(t, c, replyOf(t, "many.example.com.", dns.TypeA, 0, records...), now)
	for _, tc := range []struct {
		wish uint16
		size int
		want int
	}{{0, maxUDP, 0}, {900, maxUDP, 0}, {1232, maxUDP, 60}, {4096, maxUDP, 60}, {100, maxUDP, 0},
		{0, dns.MaxMsgSize, 60}} {
		b, _ := c.Lookup(nil, wireQuery(t, "many.example.com.", dns.TypeA, func(q *dns.Msg) {
			if tc.wish > 0 {
				q.SetEdns0(tc.wish, false)
			}
		}), tc.size, now)
		m := new(dns.Msg)
		if err := m.Unpack(b); err != nil {
			t.Fatal(err)
		}
		if len(m.Answer) != tc.want || m.Truncated != (tc.want == 0) || (m.IsEdns0() != nil) != (tc.wish > 0) {
			t.Errorf("wish %d of %d: %d answers in %d bytes, truncated %v", tc.wish, tc.size, len(m.Answer),
				len(b), m.Truncated)
		}
	}
}

func TestDenialsAreCached(t *testing.T) {
	c, now := NewCache(), time.Now()
	c.Limit(testLimits)
	putReply(t, c, replyOf(t, "x.example.com.", dns.TypeA, dns.RcodeNameError, "--", soaRecord), now)
	q := wireQuery(t, "x.example.com.", dns.TypeA, nil)
	m, hit := lookup(t, c, q, maxUDP, now.Add(50*time.Second))
	if hit != Fresh || m.Rcode != dns.RcodeNameError || len(m.Ns) != 1 || m.Ns[0].Header().Ttl != 70 {
		t.Errorf("%v: %v", hit, m)
	}
	if _, hit := lookup(t, c, q, maxUDP, now.Add(121*time.Second)); hit != Miss {
		t.Error("a denial outlived what the SOA says")
	}
}

// Addresses in the cache are told from any of them on, all of them, each with its TTL,
// behind the CNAMEs that lead there; nothing else changes its place.
func TestCachedAddressesAreRotated(t *testing.T) {
	c, now := NewCache(), time.Now()
	c.Limit(testLimits)
	for _, tc := range []struct {
		what    string
		m       *dns.Msg
		firsts  int // of the answers
		orders  int
		restsAt int // what is in front of this place does not move
	}{
		{"one", replyOf(t, "one.example.", dns.TypeA, 0, "one.example. 9 IN A 192.0.2.1"), 1, 1, 1},
		{"three", replyOf(t, "a.example.", dns.TypeA, 0, "a.example. 10 IN A 192.0.2.1", "a.example. 11 IN A 192.0.2.2",
			"a.example. 12 IN A 192.0.2.3"), 3, 3, 0},
		{"IPv6", replyOf(t, "a.example.", dns.TypeAAAA, 0, "a.example. 10 IN AAAA fd00::1",
			"a.example. 10 IN AAAA fd00::2"), 2, 2, 0},
		{"behind CNAMEs", replyOf(t, "www.example.", dns.TypeA, 0, "www.example. 10 IN CNAME web.example.",
			"web.example. 10 IN CNAME w.cdn.test.", "w.cdn.test. 11 IN A 192.0.2.1", "w.cdn.test. 12 IN A 192.0.2.2"),
			1, 2, 2},
		{"two names", replyOf(t, "x.example.", dns.TypeANY, 0, "x.example. 10 IN A 192.0.2.1",
			"x.example. 10 IN A 192.0.2.2", "x.example. 10 IN AAAA fd00::1", "x.example. 10 IN AAAA fd00::2",
			"x.example. 10 IN TXT q"), 2, 4, 0},
		{"of other names", replyOf(t, "o.example.", dns.TypeA, 0, "o.example. 10 IN CNAME p.example.",
			"p.example. 10 IN A 192.0.2.1", "o.example. 10 IN A 192.0.2.2"), 1, 1, 3},
		{"of another type", replyOf(t, "m.example.", dns.TypeMX, 0, "m.example. 10 IN MX 10 b.example.",
			"m.example. 10 IN MX 10 a.example.", "--", "example. 10 IN NS a.example.", "example. 10 IN NS b.example."),
			1, 1, 2},
	} {
		putReply(t, c, tc.m, now)
		name, qtype := tc.m.Question[0].Name, tc.m.Question[0].Qtype
		forwarder := &Forwarder{Cache: c, now: func() time.Time { return now }}
		key, err := keyOf(tc.m)
		if err != nil {
			t.Fatal(err)
		}
		e, _ := c.find(key, now)
		for path, ask := range map[string]func() *dns.Msg{
			"hot": func() *dns.Msg { m, _ := lookup(t, c, wireQuery(t, name, qtype, nil), maxUDP, now); return m },
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
				if got, want := sorted(&dns.Msg{Answer: m.Answer, Ns: m.Ns}),
					sorted(&dns.Msg{Answer: tc.m.Answer, Ns: tc.m.Ns}); got != want {
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

func TestLookupAllocatesNothing(t *testing.T) {
	c, now := NewCache(), time.Now()
	c.Limit(testLimits)
	putReply(t, c, replyOf(t, "www.example.com.", dns.TypeA, 0, "www.example.com. 300 IN A 192.0.2.1"), now)
	putReply(t, c, replyOf(t, "two.example.com.", dns.TypeA, 0, "two.example.com. 300 IN A 192.0.2.1",
		"two.example.com. 300 IN A 192.0.2.2"), now)
	for _, name := range []string{"www.example.com.", "two.example.com."} {
		q, buf := wireQuery(t, name, dns.TypeA, func(q *dns.Msg) { q.SetEdns0(1232, false) }), make([]byte, 0, 4096)
		if n := testing.AllocsPerRun(100, func() {
			if _, hit := c.Lookup(buf, q, maxUDP, now); hit != Fresh {
				t.Error("missed")
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations for a look", name, n)
		}
	}
}

// TestTheCacheStaysWithinItsBytes: random names push out what nobody asks for.
func TestTheCacheStaysWithinItsBytes(t *testing.T) {
	c, now := NewCache(), time.Now()
	limits := testLimits
	limits.Bytes = 1 << 18
	c.Limit(limits)
	put := func(i int) {
		name := fmt.Sprintf("random-%d.example.com.", i)
		putReply(t, c, replyOf(t, name, dns.TypeA, 0, name+" 300 IN A 192.0.2.1"), now)
	}
	putReply(t, c, replyOf(t, "www.example.com.", dns.TypeA, 0, "www.example.com. 300 IN A 192.0.2.1"), now)
	q := wireQuery(t, "www.example.com.", dns.TypeA, nil)
	for i := range 4_000 {
		now = now.Add(time.Millisecond)
		put(i)
		if _, hit := lookup(t, c, q, maxUDP, now); hit == Miss {
			t.Fatalf("the name that everybody asks for is gone after %d others", i)
		}
	}
	entries, bytes := c.Size()
	if bytes > limits.Bytes || bytes < limits.Bytes/2 {
		t.Errorf("%d bytes in %d entries, want up to %d", bytes, entries, limits.Bytes)
	}
	var sum int
	for i := range c.shards {
		for k, e := range c.shards[i].entries {
			sum += cost(k, e)
		}
	}
	if sum != bytes {
		t.Errorf("counted %d bytes, have %d", bytes, sum)
	}
	c.Limit(CacheLimits{})
	if entries, bytes := c.Size(); entries != 0 || bytes != 0 {
		t.Errorf("without limits %d entries of %d bytes stay", entries, bytes)
	}
	key, _ := keyOf(new(dns.Msg).SetQuestion("a.", dns.TypeA))
	if c.Put(key, replyOf(t, "a.", dns.TypeA, 0, "a. 300 IN A 192.0.2.1"), now) {
		t.Error("a cache that is off keeps something")
	}
}

// FuzzCacheLookup: no bytes of a client break the cache, and its replies are
// messages that answer the question asked.
func FuzzCacheLookup(f *testing.F) {
	c, now := NewCache(), time.Now()
	c.Limit(testLimits)
	putReply(f, c, replyOf(f, "a.example.", dns.TypeA, 0, "a.example. 300 IN A 192.0.2.1"), now)
	for _, edns := range []bool{false, true} {
		f.Add(wireQuery(f, "A.example.", dns.TypeA, func(q *dns.Msg) {
			if edns {
				q.SetEdns0(600, false)
			}
		}))
	}
	f.Fuzz(func(t *testing.T, query []byte) {
		b, hit := c.Lookup(nil, query, maxUDP, now)
		if hit == Miss {
			return
		}
		m, q := new(dns.Msg), new(dns.Msg)
		if err := m.Unpack(b); err != nil {
			t.Fatalf("reply %x to %x: %v", b, query, err)
		}
		if err := q.Unpack(query[:wireHeader+11+4]); err != nil && binary.BigEndian.Uint16(query[10:]) == 0 {
			t.Fatalf("query %x: %v", query, err)
		}
		if m.Id != binary.BigEndian.Uint16(query) || !strings.EqualFold(m.Question[0].Name, "a.example.") {
			t.Fatalf("reply %v to %x", m, query)
		}
	})
}

// FuzzUpstreamReply: no bytes of a server break what checks, keeps and tells them, and
// what is told is what was kept, whatever the order of addresses.
func FuzzUpstreamReply(f *testing.F) {
	ask := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
	key, err := keyOf(ask)
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range []*dns.Msg{
		replyOf(f, "A.eXample.", dns.TypeA, 0, "A.eXample. 300 IN CNAME b.A.eXample.", "b.A.eXample. 60 IN A 192.0.2.1",
			"b.A.eXample. 60 IN A 192.0.2.2", "b.A.eXample. 60 IN A 192.0.2.3"),
		replyOf(f, "a.example.", dns.TypeA, 0, "a.example. 300 IN DNAME b.test.", "a.example. 300 IN CNAME b.test."),
		replyOf(f, "a.example.", dns.TypeA, dns.RcodeNameError, "--", strings.ReplaceAll(soaRecord,
			"example.com", "example")),
	} {
		for _, compress := range []bool{false, true} {
			m.Compress = compress
			raw, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw)
		}
	}
	query, now := wireQuery(f, "a.example.", dns.TypeA, nil), time.Now()
	f.Fuzz(func(t *testing.T, raw []byte) {
		got := new(dns.Msg)
		if got.Unpack(raw) != nil {
			return
		}
		got.Id = ask.Id
		if err := answersTo(got, ask); err != nil && !errors.Is(err, errLetters) {
			return
		}
		unmix(got, got.Question[0].Name, ask.Question[0].Name)
		got.Question = ask.Question
		if chain(got) != nil {
			return
		}
		dangling(got)
		c := NewCache()
		c.Limit(testLimits)
		if !c.Put(key, got, now) {
			return
		}
		e, _ := c.find(key, now)
		kept := new(dns.Msg)
		if err := kept.Unpack(e.wire); err != nil {
			t.Fatalf("%x is kept for %x: %v", e.wire, raw, err)
		}
		told, hit := lookup(t, c, query, dns.MaxMsgSize, now)
		kept.Id, kept.RecursionDesired, kept.AuthenticatedData = told.Id, true, false
		if hit != Fresh || sorted(told) != sorted(kept) {
			t.Fatalf("%x is kept as\n%v\nand told as\n%v", raw, kept, told)
		}
	})
}

func BenchmarkCacheLookup(b *testing.B) {
	c, now := NewCache(), time.Now()
	c.Limit(testLimits)
	putReply(b, c, replyOf(b, "www.example.com.", dns.TypeA, 0, "www.example.com. 300 IN A 192.0.2.1"), now)
	q, buf := wireQuery(b, "www.example.com.", dns.TypeA, nil), make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		c.Lookup(buf, q, maxUDP, now)
	}
}

// Times of the cache and of health are readings of the monotonic clock: who sets the node's clock makes no answer
// older or younger.
func TestAClockThatIsSetMovesNoAnswer(t *testing.T) {
	f := NewForwarder(nil)
	defer f.Close()
	for what, at := range map[string]time.Time{"now": f.now(), "the cache's start": f.Cache.start} {
		if !strings.Contains(at.String(), "m=") {
			t.Errorf("%s is of the wall clock: %v", what, at)
		}
	}
	up := newFakeServer(t, tells("192.0.2.1", 300))
	f.Configure(Forwarding{Upstreams: to(up).Upstreams, Cache: testLimits})
	expectText(t, resolve(t, f, "a.example."), tellsOne)
	for range 3 {
		expectText(t, resolve(t, f, "a.example."), tellsOne)
	}
	if n := up.asked(); n != 1 {
		t.Errorf("asked %d times, want 1", n)
	}
}
