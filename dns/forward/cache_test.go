package forward

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/cache"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
	"wayleave.dev/internal/dnstest"
)

// FuzzUpstreamReply: no bytes of a server break what checks, keeps and tells them, and
// what is told is what was kept, whatever the order of addresses.
func FuzzUpstreamReply(f *testing.F) {
	ask := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
	key, err := cache.KeyOf(ask)
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range []*dns.Msg{
		dnstest.Reply(f, "A.eXample.", dns.TypeA, 0, "A.eXample. 300 IN CNAME b.A.eXample.",
			"b.A.eXample. 60 IN A 192.0.2.1",
			"b.A.eXample. 60 IN A 192.0.2.2", "b.A.eXample. 60 IN A 192.0.2.3"),
		dnstest.Reply(f, "a.example.", dns.TypeA, 0, "a.example. 300 IN DNAME b.test.",
			"a.example. 300 IN CNAME b.test."),
		dnstest.Reply(f, "a.example.", dns.TypeA, dns.RcodeNameError, "--",
			"example. 600 IN SOA ns.example. h.example. 1 2 3 4 120"),
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
	query, now := dnstest.Query(f, "a.example.", dns.TypeA, nil), time.Now()
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
		c := cache.New()
		c.Limit(dnstest.Limits)
		if !c.Put(key, got, now) {
			return
		}
		e, _ := c.Find(key, now)
		kept, err := c.Message(e, now)
		if err != nil {
			t.Fatalf("what is kept for %x cannot be read: %v", raw, err)
		}
		reply, hit := c.Lookup(nil, query, dns.MaxMsgSize, now)
		told := new(dns.Msg)
		if err := told.Unpack(reply); err != nil {
			t.Fatalf("%x is told for %x: %v", reply, raw, err)
		}
		kept.Id, kept.RecursionDesired, kept.AuthenticatedData = told.Id, true, false
		if hit != cache.Fresh || dnstest.Sorted(told) != dnstest.Sorted(kept) {
			t.Fatalf("%x is kept as\n%v\nand told as\n%v", raw, kept, told)
		}
	})
}

// Times of the cache and of health are readings of the monotonic clock: a change of the node's clock makes no answer
// older or younger.
func TestAClockThatIsSetMovesNoAnswer(t *testing.T) {
	f := New(nil)
	defer f.Close()
	if at := f.now(); !strings.Contains(at.String(), "m=") {
		t.Errorf("now is of the wall clock: %v", at)
	}
	up := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300))
	f.Configure(schema.Forwarding{Upstreams: to(up).Upstreams, Cache: dnstest.Limits})
	dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
	for range 3 {
		dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
	}
	if n := up.Asked(); n != 1 {
		t.Errorf("asked %d times, want 1", n)
	}
}

// One pod's names push no more out of the cache than its size allows, and nothing that others use.
func TestRandomNamesLeaveTheCacheWithinItsBytes(t *testing.T) {
	up := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300))
	f, clock := newForwarder(t, to(up))
	dnstest.ExpectText(t, resolve(t, f, "used.example."), dnstest.TellsOne)
	q := dnstest.Query(t, "used.example.", dns.TypeA, nil)
	m := dnstest.Told(new(dns.Msg).SetQuestion("a.example.", dns.TypeA), "192.0.2.1", 300)
	for i := range 20000 {
		m.Question[0].Name = fmt.Sprintf("%d.%s.example.", i, strings.Repeat("x", i%60+1))
		m.Answer[0].Header().Name = m.Question[0].Name
		key, err := cache.KeyOf(m)
		if err != nil {
			t.Fatal(err)
		}
		f.Cache.Put(key, m, f.now())
		clock.Add(time.Millisecond)
		if i%100 == 0 {
			if _, ok := f.Answer(nil, q, wire.MaxUDP); !ok {
				t.Fatalf("a name in use was pushed out by %d others", i)
			}
		}
	}
	if _, n := f.Cache.Size(); n > dnstest.Limits.Bytes {
		t.Errorf("the cache has %d bytes, %d are allowed", n, dnstest.Limits.Bytes)
	}
}
