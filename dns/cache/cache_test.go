package cache

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
	"wayleave.dev/internal/dnstest"
)

const soaRecord = "example.com. 600 IN SOA ns.example.com. h.example.com. 1 2 3 4 120"

func TestCacheLifetimes(t *testing.T) {
	for _, tc := range []struct {
		what    string
		m       *dns.Msg
		want    time.Duration
		denials bool
	}{
		{"the least TTL of the answers counts", dnstest.Reply(t, "a.example.com.", dns.TypeA, 0,
			"a.example.com. 300 IN CNAME b.example.com.", "b.example.com. 60 IN A 192.0.2.1"), time.Minute, false},
		{"a long TTL is cut", dnstest.Reply(t, "a.example.com.", dns.TypeA, 0, "a.example.com. 604800 IN A 192.0.2.1"),
			time.Hour, false},
		{"TTL 0 is not kept", dnstest.Reply(t, "a.example.com.", dns.TypeA, 0, "a.example.com. 0 IN A 192.0.2.1"), 0,
			false},
		{"a TTL with the highest bit is 0", dnstest.Reply(t, "a.example.com.", dns.TypeA, 0,
			"a.example.com. 4294967295 IN A 192.0.2.1"), 0, false},
		{"a name that is none: the SOA's minimum", dnstest.Reply(t, "x.example.com.", dns.TypeA,
			dns.RcodeNameError, "--",
			soaRecord), 2 * time.Minute, true},
		{"its TTL when that is less", dnstest.Reply(t, "x.example.com.", dns.TypeA, dns.RcodeNameError, "--",
			strings.Replace(soaRecord, "600", "5", 1)), 5 * time.Second, true},
		{"a denial is cut", dnstest.Reply(t, "x.example.com.", dns.TypeA, dns.RcodeNameError, "--",
			"example.com. 86400 IN SOA a. b. 1 2 3 4 86400"), 30 * time.Minute, true},
		{"no such record", dnstest.Reply(t, "a.example.com.", dns.TypeAAAA, 0, "--", soaRecord), 2 * time.Minute, true},
		{"an alias of nothing", dnstest.Reply(t, "a.example.com.", dns.TypeAAAA, 0,
			"a.example.com. 10 IN CNAME b.example.com.", "--", soaRecord), 10 * time.Second, true},
		{"a denial without SOA", dnstest.Reply(t, "x.example.com.", dns.TypeA, dns.RcodeNameError), 0, true},
		{"a failure", dnstest.Reply(t, "x.example.com.", dns.TypeA, dns.RcodeServerFailure), 0, false},
	} {
		got, denial := lifetime(tc.m, &dnstest.Limits)
		if got != tc.want || denial != tc.denials {
			t.Errorf("%s: kept for %v (denial %v), want %v", tc.what, got, denial, tc.want)
		}
	}
	m := dnstest.Reply(t, "a.example.com.", dns.TypeA, 0, "a.example.com. 60 IN A 192.0.2.1")
	m.Truncated = true
	if got, _ := lifetime(m, &dnstest.Limits); got != 0 {
		t.Errorf("a truncated answer is kept for %v", got)
	}
}

func putReply(t testing.TB, c *Cache, m *dns.Msg, now time.Time) {
	t.Helper()
	key, err := KeyOf(m)
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
	c, now := New(), time.Now()
	c.Limit(dnstest.Limits)
	putReply(t, c, dnstest.Reply(t, "www.example.com.", dns.TypeA, 0, "www.example.com. 300 IN CNAME web.example.com.",
		"web.example.com. 7200 IN A 192.0.2.1"), now)

	m, hit := lookup(t, c, dnstest.Query(t, "wWw.Example.COM.", dns.TypeA, nil), wire.MaxUDP, now.Add(100*time.Second))
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
	m, _ = lookup(t, c, dnstest.Query(t, "www.example.com.", dns.TypeA, func(q *dns.Msg) { q.SetEdns0(4096, false) }),
		wire.MaxUDP, now)
	if opt := m.IsEdns0(); opt == nil || opt.UDPSize() != wire.MaxUDP || opt.Do() {
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
		"a record in a query":  func(q *dns.Msg) { q.Answer = []dns.RR{wire.SOA("x.")} },
		"another extra record": func(q *dns.Msg) { q.Extra = []dns.RR{wire.SOA("x.")} },
	} {
		if m, hit := lookup(t, c, dnstest.Query(t, "www.example.com.", dns.TypeA, change), wire.MaxUDP,
			now); hit != Miss {
			t.Errorf("%s was answered from the cache: %v", what, m)
		}
	}
}

// A query whose options do not end where their record does is left to the library,
// which says FORMERR.
func TestBrokenOptionsAreNotForTheCache(t *testing.T) {
	c, now := New(), time.Now()
	c.Limit(dnstest.Limits)
	putReply(t, c, dnstest.Reply(t, "a.example.", dns.TypeA, 0, "a.example. 300 IN A 192.0.2.1"), now)
	for _, tc := range []struct {
		options []byte
		want    Hit
	}{{nil, Fresh}, {[]byte{0, 3, 0, 0}, Fresh}, {[]byte{0, 3, 0, 1, 9, 0, 8, 0, 0}, Fresh}, {[]byte{0}, Miss},
		{[]byte{0, 3, 0}, Miss}, {[]byte{0, 3, 0, 1}, Miss}, {[]byte{0, 3, 0, 0, 0, 3, 0, 2, 9}, Miss}} {
		q := append(dnstest.Query(t, "a.example.", dns.TypeA, func(q *dns.Msg) { q.SetEdns0(1232, false) }),
			tc.options...)
		q[len(q)-len(tc.options)-1] = byte(len(tc.options))
		if _, hit := c.Lookup(nil, q, wire.MaxUDP, now); hit != tc.want {
			t.Errorf("options %x: %v, want %v", tc.options, hit, tc.want)
		}
	}
}

func TestTheCacheKeepsRepliesForDNSSECApart(t *testing.T) {
	c, now := New(), time.Now()
	c.Limit(dnstest.Limits)
	m := dnstest.Reply(t, "www.example.com.", dns.TypeA, 0, "www.example.com. 300 IN A 192.0.2.2")
	m.SetEdns0(wire.MaxUDP, true)
	putReply(t, c, m, now)
	if _, hit := lookup(t, c, dnstest.Query(t, "www.example.com.", dns.TypeA, nil), wire.MaxUDP, now); hit != Miss {
		t.Error("a client without DO got the reply of one with it")
	}
	got, hit := lookup(t, c, dnstest.Query(t, "www.example.com.", dns.TypeA,
		func(q *dns.Msg) { q.SetEdns0(4096, true) }),
		wire.MaxUDP, now)
	if hit != Fresh || !got.IsEdns0().Do() {
		t.Errorf("with DO: %v, %v", hit, got)
	}
}

func TestTheCacheTruncates(t *testing.T) {
	c, now := New(), time.Now()
	c.Limit(dnstest.Limits)
	var records []string
	for i := range 60 {
		records = append(records, fmt.Sprintf("many.example.com. 300 IN A 192.0.2.%d", i))
	}
	putReply(t, c, dnstest.Reply(t, "many.example.com.", dns.TypeA, 0, records...), now)
	for _, tc := range []struct {
		wish uint16
		size int
		want int
	}{{0, wire.MaxUDP, 0}, {900, wire.MaxUDP, 0}, {1232, wire.MaxUDP, 60}, {4096, wire.MaxUDP, 60},
		{100, wire.MaxUDP, 0},
		{0, dns.MaxMsgSize, 60}} {
		b, _ := c.Lookup(nil, dnstest.Query(t, "many.example.com.", dns.TypeA, func(q *dns.Msg) {
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
	c, now := New(), time.Now()
	c.Limit(dnstest.Limits)
	putReply(t, c, dnstest.Reply(t, "x.example.com.", dns.TypeA, dns.RcodeNameError, "--", soaRecord), now)
	q := dnstest.Query(t, "x.example.com.", dns.TypeA, nil)
	m, hit := lookup(t, c, q, wire.MaxUDP, now.Add(50*time.Second))
	if hit != Fresh || m.Rcode != dns.RcodeNameError || len(m.Ns) != 1 || m.Ns[0].Header().Ttl != 70 {
		t.Errorf("%v: %v", hit, m)
	}
	if _, hit := lookup(t, c, q, wire.MaxUDP, now.Add(121*time.Second)); hit != Miss {
		t.Error("a denial outlived what the SOA says")
	}
}

func TestLookupAllocatesNothing(t *testing.T) {
	c, now := New(), time.Now()
	c.Limit(dnstest.Limits)
	putReply(t, c, dnstest.Reply(t, "www.example.com.", dns.TypeA, 0, "www.example.com. 300 IN A 192.0.2.1"), now)
	putReply(t, c, dnstest.Reply(t, "two.example.com.", dns.TypeA, 0, "two.example.com. 300 IN A 192.0.2.1",
		"two.example.com. 300 IN A 192.0.2.2"), now)
	for _, name := range []string{"www.example.com.", "two.example.com."} {
		q, buf := dnstest.Query(t, name, dns.TypeA, func(q *dns.Msg) { q.SetEdns0(1232, false) }), make([]byte, 0, 4096)
		if n := testing.AllocsPerRun(100, func() {
			if _, hit := c.Lookup(buf, q, wire.MaxUDP, now); hit != Fresh {
				t.Error("missed")
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations for a look", name, n)
		}
	}
}

// TestTheCacheStaysWithinItsBytes: random names evict entries that are not asked for.
func TestTheCacheStaysWithinItsBytes(t *testing.T) {
	c, now := New(), time.Now()
	limits := dnstest.Limits
	limits.Bytes = 1 << 18
	c.Limit(limits)
	put := func(i int) {
		name := fmt.Sprintf("random-%d.example.com.", i)
		putReply(t, c, dnstest.Reply(t, name, dns.TypeA, 0, name+" 300 IN A 192.0.2.1"), now)
	}
	putReply(t, c, dnstest.Reply(t, "www.example.com.", dns.TypeA, 0, "www.example.com. 300 IN A 192.0.2.1"), now)
	q := dnstest.Query(t, "www.example.com.", dns.TypeA, nil)
	for i := range 4_000 {
		now = now.Add(time.Millisecond)
		put(i)
		if _, hit := lookup(t, c, q, wire.MaxUDP, now); hit == Miss {
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
	c.Limit(schema.CacheLimits{})
	if entries, bytes := c.Size(); entries != 0 || bytes != 0 {
		t.Errorf("without limits %d entries of %d bytes stay", entries, bytes)
	}
	key, _ := KeyOf(new(dns.Msg).SetQuestion("a.", dns.TypeA))
	if c.Put(key, dnstest.Reply(t, "a.", dns.TypeA, 0, "a. 300 IN A 192.0.2.1"), now) {
		t.Error("a cache that is off keeps something")
	}
}

// FuzzCacheLookup: no bytes of a client break the cache, and its replies are
// messages that answer the question asked.
func FuzzCacheLookup(f *testing.F) {
	c, now := New(), time.Now()
	c.Limit(dnstest.Limits)
	putReply(f, c, dnstest.Reply(f, "a.example.", dns.TypeA, 0, "a.example. 300 IN A 192.0.2.1"), now)
	for _, edns := range []bool{false, true} {
		f.Add(dnstest.Query(f, "A.example.", dns.TypeA, func(q *dns.Msg) {
			if edns {
				q.SetEdns0(600, false)
			}
		}))
	}
	f.Fuzz(func(t *testing.T, query []byte) {
		b, hit := c.Lookup(nil, query, wire.MaxUDP, now)
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

func BenchmarkCacheLookup(b *testing.B) {
	c, now := New(), time.Now()
	c.Limit(dnstest.Limits)
	putReply(b, c, dnstest.Reply(b, "www.example.com.", dns.TypeA, 0, "www.example.com. 300 IN A 192.0.2.1"), now)
	q, buf := dnstest.Query(b, "www.example.com.", dns.TypeA, nil), make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		c.Lookup(buf, q, wire.MaxUDP, now)
	}
}

// Times of the cache are readings of the monotonic clock: whoever sets the node's clock makes no reply older or
// younger.
func TestTheCachesClockIsMonotonic(t *testing.T) {
	if at := New().start; !strings.Contains(at.String(), "m=") {
		t.Errorf("the cache's start is of the wall clock: %v", at)
	}
}
