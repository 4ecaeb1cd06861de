package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/cache"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

func newForwarder(t *testing.T, s schema.Forwarding) (*Forwarder, *dnstest.Clock) {
	t.Helper()
	f, c := New(nil), &dnstest.Clock{}
	base := time.Now()
	f.now = func() time.Time { return base.Add(time.Duration(c.Gone.Load())) }
	s.Cache = dnstest.Limits
	f.Configure(s)
	t.Cleanup(f.Close)
	return f, c
}

func to(servers ...*dnstest.Server) schema.Forwarding {
	var s schema.Forwarding
	for _, f := range servers {
		s.Upstreams = append(s.Upstreams, f.Nameserver())
	}
	return s
}

// resolve is the answer in words.
func resolve(t *testing.T, f *Forwarder, name string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	m, err := f.Forward(ctx, new(dns.Msg).SetQuestion(name, dns.TypeA))
	if err != nil {
		return "error: " + err.Error()
	}
	return dnstest.Text(m)
}

// TestForwarding asks real servers: the first is dead, the second truncates.
func TestForwarding(t *testing.T) {
	t.Parallel()
	up := dnstest.NewServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := dnstest.Told(q, "192.0.2.1", 300)
		if w.RemoteAddr().Network() == "udp" && strings.EqualFold(q.Question[0].Name, "long.example.") {
			m.Truncated, m.Answer = true, nil
		}
		_ = w.WriteMsg(m)
	})
	var failed atomic.Int64
	f := New(func() { failed.Add(1) })
	t.Cleanup(f.Close)
	if got := resolve(t, f, "a.example."); !strings.Contains(got, "there is no upstream server") {
		t.Errorf("an answer without any upstream: %s", got)
	}
	dead := model.Nameserver{Addr: netip.MustParseAddrPort("127.0.0.1:5")}
	f.Configure(schema.Forwarding{Upstreams: []model.Nameserver{dead, up.Nameserver()}})
	for _, name := range []string{"long.example.", "a.example."} {
		dnstest.ExpectText(t, resolve(t, f, name), dnstest.TellsOne)
	}
	if up.TCP.Load() != 1 {
		t.Errorf("%d queries by TCP, want 1", up.TCP.Load())
	}
	if n := failed.Load(); n != 2 {
		t.Errorf("%d failed tries were counted, want 2", n)
	}
}

func TestOneUpstreamQueryForManyWaiters(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	up := dnstest.NewServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		<-gate
		dnstest.Tells("192.0.2.1", 300)(w, q)
	})
	f, _ := newForwarder(t, to(up))
	// The first one gives up; the others get their answer all the same.
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() {
		_, err := f.Forward(ctx, new(dns.Msg).SetQuestion("a.example.", dns.TypeA))
		gaveUp <- err
	}()
	testnet.Eventually(t, 5*time.Second, func() error {
		if up.Asked() == 0 {
			return errors.New("not asked yet")
		}
		return nil
	})
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up got %v", err)
	}
	var wg sync.WaitGroup
	var arrived atomic.Int64
	for range 50 {
		wg.Go(func() {
			arrived.Add(1)
			if got := resolve(t, f, "A.Example."); got != dnstest.TellsOne {
				t.Errorf("got %s", got)
			}
		})
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		if n := arrived.Load(); n < 50 {
			return fmt.Errorf("%d have asked", n)
		}
		return nil
	})
	close(gate)
	wg.Wait()
	// At most a repeated datagram, never one for each.
	if n := up.Asked(); n > leastTries {
		t.Errorf("51 waiters made %d upstream queries", n)
	}
	before := up.Asked()
	dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
	if up.Asked() != before {
		t.Error("a cached answer was asked for again")
	}
}

func TestOldAnswersWhenServersFail(t *testing.T) {
	t.Parallel()
	for what, bad := range map[string]dns.HandlerFunc{"fails": dnstest.Code(dns.RcodeServerFailure),
		"is silent": dnstest.Silent} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			up := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300))
			f, clock := newForwarder(t, to(up))
			dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
			up.Become(bad)
			clock.Add(time.Hour)
			m, err := f.Forward(t.Context(), new(dns.Msg).SetQuestion("a.example.", dns.TypeA))
			if err != nil || dnstest.Text(m) != dnstest.TellsOne || m.Answer[0].Header().Ttl != cache.StaleTTL {
				t.Fatalf("an old answer: %v, %v", m, err)
			}
			// The next client does not wait: the cache alone answers.
			q := dnstest.Query(t, "a.example.", dns.TypeA, nil)
			b, ok := f.Answer(nil, q, wire.MaxUDP)
			if !ok {
				t.Fatal("the second client has to wait for the dead server too")
			}
			m = new(dns.Msg)
			if err := m.Unpack(b); err != nil || dnstest.Text(m) != dnstest.TellsOne ||
				m.Answer[0].Header().Ttl != cache.StaleTTL {
				t.Errorf("from the cache: %v, %v", m, err)
			}
			// The server comes back: a query half a minute later refreshes the answer.
			up.Become(dnstest.Tells("192.0.2.2", 300))
			clock.Add(cache.StaleRecheck + time.Second)
			testnet.Eventually(t, 10*time.Second, func() error {
				clock.Add(cache.StaleRecheck)
				if got := resolve(t, f, "a.example."); got != "NOERROR: A 192.0.2.2" {
					return errors.New(got)
				}
				return nil
			})
			// Nothing lasts for ever.
			up.Become(dnstest.Code(dns.RcodeServerFailure))
			clock.Add(dnstest.Limits.Stale + time.Hour)
			dnstest.ExpectText(t, resolve(t, f, "a.example."), "error:")
		})
	}
}

func TestPopularNamesAreFetchedBeforeTheyEnd(t *testing.T) {
	t.Parallel()
	up := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300))
	f, clock := newForwarder(t, to(up))
	dnstest.ExpectText(t, resolve(t, f, "often.example."), dnstest.TellsOne)
	dnstest.ExpectText(t, resolve(t, f, "seldom.example."), dnstest.TellsOne)
	q := dnstest.Query(t, "often.example.", dns.TypeA, nil)
	for range 2 * cache.PrefetchHits {
		if _, ok := f.Answer(nil, q, wire.MaxUDP); !ok {
			t.Fatal("not in the cache")
		}
	}
	if n := up.Asked(); n != 2 {
		t.Fatalf("%d upstream queries, want 2", n)
	}
	up.Become(dnstest.Tells("192.0.2.2", 300))
	clock.Add(280 * time.Second) // in the last tenth
	if _, ok := f.Answer(nil, dnstest.Query(t, "seldom.example.", dns.TypeA, nil), wire.MaxUDP); !ok {
		t.Fatal("not in the cache")
	}
	for range 5 {
		if _, ok := f.Answer(nil, q, wire.MaxUDP); !ok {
			t.Fatal("a client has to wait")
		}
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		if got := resolve(t, f, "often.example."); got != "NOERROR: A 192.0.2.2" {
			return errors.New(got)
		}
		return nil
	})
	if n := up.Asked(); n != 3 {
		t.Errorf("%d upstream queries, want one more than 2: seldom asked names are not fetched, others once", n)
	}
}

// TestAFailureIsRememberedForASecond, so that a storm of retries does not reach the
// servers.
func TestAFailureIsRememberedForASecond(t *testing.T) {
	t.Parallel()
	up := dnstest.NewServer(t, dnstest.Code(dns.RcodeServerFailure))
	f, clock := newForwarder(t, to(up))
	dnstest.ExpectText(t, resolve(t, f, "a.example."), "it answered SERVFAIL")
	for range 10 {
		dnstest.ExpectText(t, resolve(t, f, "a.example."), "SERVFAIL")
	}
	if n := up.Asked(); n != inBothForms {
		t.Errorf("%d upstream queries, want %d", n, inBothForms)
	}
	up.Become(dnstest.Tells("192.0.2.1", 300))
	clock.Add(cache.FailureTTL)
	dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
}

func TestDeadServersAreLeftAloneUntilTheyLive(t *testing.T) {
	t.Parallel()
	first, second := dnstest.NewServer(t, dnstest.Silent), dnstest.NewServer(t, dnstest.Tells("192.0.2.2", 300))
	f, _ := newForwarder(t, to(first, second))
	up := f.routes.Load().upstream[0]
	for i := range downAfter {
		// by the second, asked beside it
		dnstest.ExpectText(t, resolve(t, f, fmt.Sprintf("n%d.example.", i)), "A 192.0.2.2")
	}
	testnet.Eventually(t, 10*time.Second, func() error {
		if !up.down() {
			return errors.New("the dead server still counts as well")
		}
		return nil
	})
	before := second.Asked()
	first.Mu.Lock()
	first.Questions = nil
	first.Mu.Unlock()
	for i := range 20 {
		dnstest.ExpectText(t, resolve(t, f, fmt.Sprintf("m%d.example.", i)), "A 192.0.2.2")
	}
	first.Mu.Lock()
	for _, q := range first.Questions {
		if q != "." {
			t.Errorf("a dead server was asked for %s", q)
		}
	}
	first.Mu.Unlock()
	if n := second.Asked() - before; n < 20 {
		t.Errorf("the second server was asked %d times", n)
	}
	first.Become(dnstest.Tells("192.0.2.1", 300))
	testnet.Eventually(t, 10*time.Second, func() error {
		if up.down() {
			return errors.New("still down")
		}
		return nil
	})
	dnstest.ExpectText(t, resolve(t, f, "back.example."), dnstest.TellsOne)
	// When all are down, they are asked all the same.
	for _, u := range f.routes.Load().upstream {
		u.fails.Store(downAfter)
	}
	dnstest.ExpectText(t, resolve(t, f, "all.example."), dnstest.TellsOne)
}

// TestALostDatagramIsAskedAgain, also where there is one server only.
func TestALostDatagramIsAskedAgain(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	up := dnstest.NewServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if n.Add(1) > 1 {
			dnstest.Tells("192.0.2.1", 300)(w, q)
		}
	})
	f, _ := newForwarder(t, to(up))
	dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
}

// inBothForms is how often a server is asked that refuses, and that nothing is known of: as others are, and without
// what it may not understand.
const inBothForms = 2

func TestServersThatRefuseAreNotAskedTwice(t *testing.T) {
	t.Parallel()
	refuses, tellsAll := dnstest.NewServer(t, dnstest.Code(dns.RcodeRefused)),
		dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300))
	f, _ := newForwarder(t, to(refuses, tellsAll))
	dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
	f, _ = newForwarder(t, to(refuses))
	dnstest.ExpectText(t, resolve(t, f, "a.example."), "it answered REFUSED")
	if n := refuses.Asked(); n != 2*inBothForms {
		t.Errorf("asked %d times, want %d", n, 2*inBothForms)
	}
	if f.routes.Load().upstream[0].down() {
		t.Error("a server that answers counts as dead")
	}
}

// TestForgedAnswers: what anybody could send is passed over, the right answer that
// comes after it is taken.
func TestForgedAnswers(t *testing.T) {
	t.Parallel()
	forged := map[string]func(q *dns.Msg) *dns.Msg{
		"another id": func(q *dns.Msg) *dns.Msg { m := dnstest.Told(q, "192.0.2.66", 300); m.Id++; return m },
		"another question": func(q *dns.Msg) *dns.Msg {
			m := dnstest.Told(q, "192.0.2.66", 300)
			m.Question[0].Name = "b.example."
			return m
		},
		"another type": func(q *dns.Msg) *dns.Msg {
			m := dnstest.Told(q, "192.0.2.66", 300)
			m.Question[0].Qtype = dns.TypeAAAA
			return m
		},
		"no question": func(q *dns.Msg) *dns.Msg {
			m := dnstest.Told(q, "192.0.2.66",
				300)
			m.Question = nil
			return m
		},
		"a query": func(q *dns.Msg) *dns.Msg {
			m := dnstest.Told(q, "192.0.2.66",
				300)
			m.Response = false
			return m
		},
	}
	for what, forge := range forged {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var honest atomic.Bool
			honest.Store(true)
			up := dnstest.NewServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
				if _, err := w.Write([]byte("junk")); err != nil {
					t.Error(err)
				}
				_ = w.WriteMsg(forge(q))
				if honest.Load() {
					dnstest.Tells("192.0.2.1", 300)(w, q)
				}
			})
			f, _ := newForwarder(t, to(up))
			dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
			honest.Store(false)
			dnstest.ExpectText(t, resolve(t, f, "c.example."), "error: ")
		})
	}
}

// TestAnswersOfOtherSourcesAreNotTaken: the right answer from another port is none.
func TestAnswersOfOtherSourcesAreNotTaken(t *testing.T) {
	t.Parallel()
	other, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	ports := map[string]bool{}
	var mu sync.Mutex
	up := dnstest.NewServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		ports[w.RemoteAddr().String()] = true
		mu.Unlock()
		b, err := dnstest.Told(q, "192.0.2.66", 300).Pack()
		if err != nil {
			t.Error(err)
		}
		_, _ = other.WriteTo(b, w.RemoteAddr())
		if strings.EqualFold(q.Question[0].Name, "a.example.") {
			dnstest.Tells("192.0.2.1", 300)(w, q)
		}
	})
	f, _ := newForwarder(t, to(up))
	dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
	dnstest.ExpectText(t, resolve(t, f, "b.example."), "no answer")
	mu.Lock()
	defer mu.Unlock()
	if len(ports) < 1+leastTries {
		t.Errorf("%d source ports for %d queries", len(ports), 1+leastTries)
	}
}

// TestLettersAreMixedAndChecked: a forger must guess the letters as well; a server
// that does not keep them is asked by TCP, and in plain letters from then on.
func TestLettersAreMixedAndChecked(t *testing.T) {
	t.Parallel()
	const long = "abcdefghijklmnopqrstuvwxyz.abcdefghijklmnopqrstuvwxyz.example."
	up := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300))
	f, _ := newForwarder(t, to(up))
	m, err := f.Forward(t.Context(), new(dns.Msg).SetQuestion("X."+long, dns.TypeA))
	if err != nil || m.Answer[0].Header().Name != "X."+long || m.Question[0].Name != "X."+long {
		t.Errorf("the client's letters are lost: %v, %v", m, err)
	}
	up.Mu.Lock()
	if q := up.Questions[0]; q == strings.ToLower(q) || !strings.EqualFold(q, "x."+long) {
		t.Errorf("asked for %s", q)
	}
	up.Mu.Unlock()

	plain := dnstest.NewServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		q.Question[0].Name = strings.ToLower(q.Question[0].Name)
		dnstest.Tells("192.0.2.1", 300)(w, q)
	})
	f, _ = newForwarder(t, to(plain))
	for i := range 3 {
		dnstest.ExpectText(t, resolve(t, f, fmt.Sprintf("n%d.", i)+long), dnstest.TellsOne)
	}
	if plain.TCP.Load() != 1 || plain.UDP.Load() != 3 {
		t.Errorf("%d queries by TCP and %d by UDP, want 1 and 3", plain.TCP.Load(), plain.UDP.Load())
	}
}

func TestChainsOfAnswers(t *testing.T) {
	t.Parallel()
	zone := map[string][]string{
		"ring.example.": {"ring.example. 300 IN CNAME b.example.", "b.example. 300 IN CNAME ring.example."},
		"self.example.": {"self.example. 300 IN CNAME self.example."},
		"chain.example.": {"b.example. 300 IN A 192.0.2.1", "chain.example. 300 IN CNAME b.example.",
			"bank.example. 300 IN A 192.0.2.66"},
	}
	up := dnstest.NewServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := dnstest.Reply(t, q.Question[0].Name, dns.TypeA, 0, zone[strings.ToLower(q.Question[0].Name)]...)
		m.Id = q.Id
		_ = w.WriteMsg(m)
	})
	f, _ := newForwarder(t, to(up))
	dnstest.ExpectText(t, resolve(t, f, "ring.example."), "its CNAMEs form a loop")
	dnstest.ExpectText(t, resolve(t, f, "self.example."), "its CNAMEs form a loop")
	if got := resolve(t, f, "chain.example."); got != "NOERROR: A 192.0.2.1, CNAME b.example." {
		t.Errorf("records that nobody asked for stay: %s", got)
	}
}

func TestStubDomains(t *testing.T) {
	t.Parallel()
	world, corp, lab := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300)),
		dnstest.NewServer(t, dnstest.Tells("192.0.2.2", 300)),
		dnstest.NewServer(t, dnstest.Tells("192.0.2.3", 300))
	s := to(world)
	s.Stubs = map[string][]model.Nameserver{"corp.example.": {corp.Nameserver()},
		"lab.corp.example.": {lab.Nameserver()}}
	f, _ := newForwarder(t, s)
	for name, want := range map[string]string{
		"corp.example.": "192.0.2.2", "a.CORP.example.": "192.0.2.2", "x.lab.corp.example.": "192.0.2.3",
		"lab.corp.example.": "192.0.2.3",
		"example.":          "192.0.2.1", "xcorp.example.": "192.0.2.1", ".": "192.0.2.1",
	} {
		dnstest.ExpectText(t, resolve(t, f, name), "A "+want)
	}
	// Who is asked for a domain is the only one: a dead server is no reason to tell
	// its names to the world.
	corp.Become(dnstest.Code(dns.RcodeServerFailure))
	dnstest.ExpectText(t, resolve(t, f, "secret.corp.example."), "SERVFAIL")
	world.Mu.Lock()
	defer world.Mu.Unlock()
	for _, q := range world.Questions {
		if strings.Contains(strings.ToLower(q), ".corp.example.") {
			t.Errorf("the world was asked for %s", q)
		}
	}
}

// TestAliasesOutOfAStubDomain: its server knows its own zone only, so the target is
// asked for where that belongs. Servers that send each other on end.
func TestAliasesOutOfAStubDomain(t *testing.T) {
	t.Parallel()
	alias := func(target string) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			m := dnstest.Reply(t, q.Question[0].Name, dns.TypeA, 0, q.Question[0].Name+" 300 IN CNAME "+target)
			m.Id = q.Id
			_ = w.WriteMsg(m)
		}
	}
	world, corp := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300)), dnstest.NewServer(t, alias("www.example."))
	s := to(world)
	s.Stubs = map[string][]model.Nameserver{"corp.example.": {corp.Nameserver()}}
	f, _ := newForwarder(t, s)
	if got := resolve(t, f, "a.corp.example."); got != "NOERROR: A 192.0.2.1, CNAME www.example." {
		t.Errorf("got %s", got)
	}
	world.Become(func(w dns.ResponseWriter, q *dns.Msg) { alias("b.corp.example.")(w, q) })
	dnstest.ExpectText(t, resolve(t, f, "b.corp.example."), "its CNAMEs form a loop")
	var n atomic.Int64
	endless := func(w dns.ResponseWriter, q *dns.Msg) { alias(fmt.Sprintf("n%d.corp.example.", n.Add(1)))(w, q) }
	corp.Become(endless)
	dnstest.ExpectText(t, resolve(t, f, "c.corp.example."), "more than 8 CNAMEs")
	// An alias of what has no such record.
	corp.Become(alias("www.example."))
	world.Become(func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetReply(q)) })
	if got := resolve(t, f, "d.corp.example."); got != "NOERROR: CNAME www.example." {
		t.Errorf("got %s", got)
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	up := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300))
	s := to(up)
	s.Hosts = map[string][]netip.Addr{"printer.corp.example.": {dnstest.Addr("10.0.0.9")},
		"nas.corp.example.": {dnstest.Addr("10.0.0.9"), dnstest.Addr("fd00::9")}}
	f, _ := newForwarder(t, s)
	for _, tc := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"Printer.corp.example.", dns.TypeA, "NOERROR: A 10.0.0.9"},
		{"printer.corp.example.", dns.TypeAAAA, "NOERROR: "},
		{"nas.corp.example.", dns.TypeAAAA, "NOERROR: AAAA fd00::9"},
		{"9.0.0.10.in-addr.arpa.", dns.TypePTR, "NOERROR: PTR nas.corp.example., PTR printer.corp.example."},
		{"other.corp.example.", dns.TypeA, dnstest.TellsOne},
	} {
		m, err := f.Forward(t.Context(), new(dns.Msg).SetQuestion(tc.name, tc.qtype))
		if err != nil || dnstest.Text(m) != tc.want {
			t.Errorf("%s %s: %v, %v, want %s", tc.name, dns.TypeToString[tc.qtype], m, err, tc.want)
		}
	}
	// A change is answered at once: what the cache knows of other servers goes.
	s.Hosts = map[string][]netip.Addr{"other.corp.example.": {dnstest.Addr("10.0.0.8")}}
	s.Cache = dnstest.Limits
	f.Configure(s)
	if _, ok := f.Answer(nil, dnstest.Query(t, "other.corp.example.", dns.TypeA, nil), wire.MaxUDP); ok {
		t.Error("the cache still has what servers said before")
	}
	dnstest.ExpectText(t, resolve(t, f, "other.corp.example."), "A 10.0.0.8")
	dnstest.ExpectText(t, resolve(t, f, "printer.corp.example."), dnstest.TellsOne)
}

func TestTheSourceOfAnAnswerIsTold(t *testing.T) {
	t.Parallel()
	up := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300))
	s := to(up)
	s.Hosts = map[string][]netip.Addr{"printer.example.": {dnstest.Addr("10.0.0.9")}}
	f, clock := newForwarder(t, s)
	var told string
	f.Source = func(_ context.Context, what string) { told = what }
	for _, step := range []struct {
		name, want string
		first      func()
	}{
		{"printer.example.", "hosts", func() {}},
		{"a.example.", "upstream " + up.Addr.String(), func() {}},
		{"a.example.", "cache", func() {}},
		{"a.example.", "cache, stale",
			func() { up.Become(dnstest.Code(dns.RcodeServerFailure)); clock.Add(time.Hour) }},
	} {
		step.first()
		resolve(t, f, step.name)
		if told != step.want {
			t.Errorf("%s came from %q, want %q", step.name, told, step.want)
		}
	}
}

// TestTooManyTriesAreRefused: dead servers hold up no more than their share.
func TestTooManyTriesAreRefused(t *testing.T) {
	t.Parallel()
	up := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300))
	f, _ := newForwarder(t, to(up))
	for range cap(f.slots) {
		f.slots <- struct{}{}
	}
	dnstest.ExpectText(t, resolve(t, f, "a.example."), errBusy.Error())
	<-f.slots
	dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
}

// TestARefreshThatGotAnAnswerEndsTheOldOne: also when the new answer may not be kept.
func TestARefreshThatGotAnAnswerEndsTheOldOne(t *testing.T) {
	t.Parallel()
	deny := func(rcode int) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetRcode(q, rcode)) }
	}
	for what, tc := range map[string]struct {
		answer dns.HandlerFunc
		want   string
	}{
		"TTL 0":                      {dnstest.Tells("192.0.2.2", 0), "NOERROR: A 192.0.2.2"},
		"a name error without SOA":   {deny(dns.RcodeNameError), "NXDOMAIN: "},
		"no data without SOA":        {deny(dns.RcodeSuccess), "NOERROR: "},
		"TTL with the highest bit":   {dnstest.Tells("192.0.2.2", 1<<31), "NOERROR: A 192.0.2.2"},
		"an answer that can be kept": {dnstest.Tells("192.0.2.2", 300), "NOERROR: A 192.0.2.2"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			up := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300))
			f, clock := newForwarder(t, to(up))
			dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
			up.Become(dnstest.Code(dns.RcodeServerFailure))
			clock.Add(time.Hour)
			dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne) // past its time
			up.Become(tc.answer)
			clock.Add(cache.StaleRecheck + time.Second)
			testnet.Eventually(t, 10*time.Second, func() error {
				if got := resolve(t, f, "a.example."); got != tc.want {
					return fmt.Errorf("got %s, want %s", got, tc.want)
				}
				return nil
			})
			// It stays away: also when the server fails, and the clock runs.
			up.Become(dnstest.Code(dns.RcodeServerFailure))
			clock.Add(time.Minute)
			if got := resolve(t, f, "a.example."); got == dnstest.TellsOne {
				t.Errorf("the old answer is back: %s", got)
			}
		})
	}
}

// TestARefreshRefusedForLoadIsTriedAgain: the old answer is told only until there is room for a try.
func TestARefreshRefusedForLoadIsTriedAgain(t *testing.T) {
	t.Parallel()
	query := dnstest.Query(t, "a.example.", dns.TypeA, nil)
	for what, ask := range map[string]func(t *testing.T, f *Forwarder) string{
		"by the slow way": func(t *testing.T, f *Forwarder) string { return resolve(t, f, "a.example.") },
		"by the hot path": func(t *testing.T, f *Forwarder) string {
			b, ok := f.Answer(nil, query, wire.MaxUDP)
			if !ok {
				return resolve(t, f, "a.example.")
			}
			m := new(dns.Msg)
			if err := m.Unpack(b); err != nil {
				t.Fatal(err)
			}
			return dnstest.Text(m)
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			up := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300))
			f, clock := newForwarder(t, to(up))
			dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
			up.Become(dnstest.Code(dns.RcodeServerFailure))
			clock.Add(time.Hour)
			dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
			for range cap(f.slots) {
				f.slots <- struct{}{}
			}
			up.Become(dnstest.Tells("192.0.2.2", 300))
			clock.Add(cache.StaleRecheck + time.Second)
			before := up.Asked()
			for range 3 {
				dnstest.ExpectText(t, ask(t, f), dnstest.TellsOne) // no room to ask
			}
			if up.Asked() != before {
				t.Fatal("it was asked beyond the bound")
			}
			time.Sleep(50 * time.Millisecond) // what was refused has ended
			for range cap(f.slots) {
				<-f.slots
			}
			testnet.Eventually(t, 10*time.Second, func() error {
				if got := ask(t, f); got != "NOERROR: A 192.0.2.2" {
					return errors.New(got)
				}
				return nil
			})
		})
	}
}

// TestAQueryThatCannotBeReadKeepsNoOldAnswer: what the hot path passes over and the library does not, such as
// an option with bad content, refreshes as every query does.
func TestAQueryThatCannotBeReadKeepsNoOldAnswer(t *testing.T) {
	t.Parallel()
	up := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300))
	f, clock := newForwarder(t, to(up))
	dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
	up.Become(dnstest.Code(dns.RcodeServerFailure))
	clock.Add(time.Hour)
	dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
	up.Become(dnstest.Tells("192.0.2.2", 300))
	clock.Add(cache.StaleRecheck + time.Second)
	bad := dnstest.Query(t, "a.example.", dns.TypeA, func(q *dns.Msg) { q.SetEdns0(1232, false) })
	bad = append(bad, 0, 8, 0, 1, 0xff) // a client subnet that is cut short
	bad[len(bad)-6] = 5
	if err := new(dns.Msg).Unpack(bad); err == nil {
		t.Fatal("the library reads it")
	}
	if _, ok := f.Answer(nil, bad, wire.MaxUDP); !ok {
		t.Fatal("it is not for the hot path")
	}
	testnet.Eventually(t, 10*time.Second, func() error {
		if got := resolve(t, f, "a.example."); got != "NOERROR: A 192.0.2.2" {
			return errors.New(got)
		}
		return nil
	})
}

// TestTriesGoToServersThatHaveNotRefused: whatever a server says no by, the tries are for the others.
func TestTriesGoToServersThatHaveNotRefused(t *testing.T) {
	t.Parallel()
	ring := func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeCNAME,
			Class: dns.ClassINET, Ttl: 60}, Target: q.Question[0].Name}}
		_ = w.WriteMsg(m)
	}
	refusals := map[string]dns.HandlerFunc{"REFUSED": dnstest.Code(dns.RcodeRefused),
		"SERVFAIL": dnstest.Code(dns.RcodeServerFailure),
		"FORMERR":  dnstest.Code(dns.RcodeFormatError),
		"NOTIMP":   dnstest.Code(dns.RcodeNotImplemented), "a ring of CNAMEs": ring, "connection refused": nil}
	for what, no := range refusals {
		for refusing := 1; refusing <= 8; refusing += 7 {
			t.Run(fmt.Sprintf("%s by %d", what, refusing), func(t *testing.T) {
				t.Parallel()
				var s schema.Forwarding
				var said []*dnstest.Server
				for range refusing {
					if no == nil {
						s.Upstreams = append(s.Upstreams,
							model.Nameserver{Addr: netip.AddrPortFrom(dnstest.Addr("127.0.0.1"),
								uint16(20+len(s.Upstreams)))})
						continue
					}
					said = append(said, dnstest.NewServer(t, no))
					s.Upstreams = append(s.Upstreams, said[len(said)-1].Nameserver())
				}
				var lost atomic.Int64
				last := dnstest.NewServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
					if lost.Add(1) < leastTries { // all its datagrams but the last are lost
						return
					}
					dnstest.Tells("192.0.2.1", 300)(w, q)
				})
				s.Upstreams = append(s.Upstreams, last.Nameserver())
				f, _ := newForwarder(t, s)
				dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
				want := inBothForms
				if what == "a ring of CNAMEs" {
					want = 1
				}
				for i, u := range said {
					if u.Asked() != want {
						t.Errorf("server %d was asked %d times, want %d", i, u.Asked(), want)
					}
				}
			})
		}
	}
}
