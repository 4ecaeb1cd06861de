package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// fakeServer is an upstream server on real sockets whose handler a test chooses, to
// misbehave as others' servers do.
type fakeServer struct {
	addr       netip.AddrPort
	udp, tcp   atomic.Int64 // queries by each
	mu         sync.Mutex
	handle     dns.HandlerFunc
	questions  []string
	servers    []*dns.Server
	packetConn net.PacketConn
}

func newFakeServer(t *testing.T, handle dns.HandlerFunc) *fakeServer {
	t.Helper()
	f := &fakeServer{handle: handle}
	f.start(t, "127.0.0.1:0")
	t.Cleanup(f.stop)
	return f
}

func (f *fakeServer) start(t *testing.T, addr string) {
	t.Helper()
	var l net.Listener
	testnet.Eventually(t, 10*time.Second, func() (err error) {
		if l, err = net.Listen("tcp", addr); err != nil {
			return err
		}
		if f.packetConn, err = net.ListenPacket("udp", l.Addr().String()); err != nil {
			l.Close()
		}
		return err
	})
	f.addr = netip.MustParseAddrPort(l.Addr().String())
	f.servers = []*dns.Server{{Listener: l, Handler: f}, {PacketConn: f.packetConn, Handler: f}}
	for _, s := range f.servers {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
	}
}

func (f *fakeServer) stop() {
	for _, s := range f.servers {
		_ = s.Shutdown()
	}
	f.servers = nil
}

func (f *fakeServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	if w.RemoteAddr().Network() == "udp" {
		f.udp.Add(1)
	} else {
		f.tcp.Add(1)
	}
	f.mu.Lock()
	handle := f.handle
	f.questions = append(f.questions, q.Question[0].Name)
	f.mu.Unlock()
	handle(w, q)
}

func (f *fakeServer) become(handle dns.HandlerFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handle = handle
}

func (f *fakeServer) asked() int { return int(f.udp.Load() + f.tcp.Load()) }

func (f *fakeServer) nameserver() model.Nameserver { return model.Nameserver{Addr: f.addr} }

// tells answers any name with an address.
func tells(addr string, ttl uint32) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(told(q, addr, ttl)) }
}

func told(q *dns.Msg, addr string, ttl uint32) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET,
		Ttl: ttl}, A: net.ParseIP(addr)}}
	return m
}

func silent(dns.ResponseWriter, *dns.Msg) {}

func code(rcode int) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetRcode(q, rcode)) }
}

// clock is moved by hand.
type clock struct{ gone atomic.Int64 }

func (c *clock) add(d time.Duration) { c.gone.Add(int64(d)) }

func newForwarder(t *testing.T, s Forwarding) (*Forwarder, *clock) {
	t.Helper()
	f, c := NewForwarder(nil), &clock{}
	base := time.Now()
	f.now = func() time.Time { return base.Add(time.Duration(c.gone.Load())) }
	s.Cache = testLimits
	f.Configure(s)
	t.Cleanup(f.Close)
	return f, c
}

func to(servers ...*fakeServer) Forwarding {
	var s Forwarding
	for _, f := range servers {
		s.Upstreams = append(s.Upstreams, f.nameserver())
	}
	return s
}

// resolve is the answer in words.
func resolve(t *testing.T, f *Forwarder, name string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := f.Forward(ctx, new(dns.Msg).SetQuestion(name, dns.TypeA))
	if err != nil {
		return "error: " + err.Error()
	}
	return answerText(m)
}

func expectText(t *testing.T, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

const tellsOne = "NOERROR: A 192.0.2.1"

// TestForwarding asks real servers: the first is dead, the second truncates.
func TestForwarding(t *testing.T) {
	t.Parallel()
	up := newFakeServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := told(q, "192.0.2.1", 300)
		if w.RemoteAddr().Network() == "udp" && strings.EqualFold(q.Question[0].Name, "long.example.") {
			m.Truncated, m.Answer = true, nil
		}
		_ = w.WriteMsg(m)
	})
	var failed atomic.Int64
	f := NewForwarder(func() { failed.Add(1) })
	t.Cleanup(f.Close)
	if got := resolve(t, f, "a.example."); !strings.Contains(got, "no upstream server is known") {
		t.Errorf("an answer without any upstream: %s", got)
	}
	dead := model.Nameserver{Addr: netip.MustParseAddrPort("127.0.0.1:5")}
	f.Configure(Forwarding{Upstreams: []model.Nameserver{dead, up.nameserver()}})
	for _, name := range []string{"long.example.", "a.example."} {
		expectText(t, resolve(t, f, name), tellsOne)
	}
	if up.tcp.Load() != 1 {
		t.Errorf("%d queries by TCP, want 1", up.tcp.Load())
	}
	if n := failed.Load(); n != 2 {
		t.Errorf("%d failed tries were counted, want 2", n)
	}
}

func TestOneUpstreamQueryForManyWaiters(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	up := newFakeServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		<-gate
		tells("192.0.2.1", 300)(w, q)
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
		if up.asked() == 0 {
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
			if got := resolve(t, f, "A.Example."); got != tellsOne {
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
	if n := up.asked(); n > leastTries {
		t.Errorf("51 waiters made %d upstream queries", n)
	}
	before := up.asked()
	expectText(t, resolve(t, f, "a.example."), tellsOne)
	if up.asked() != before {
		t.Error("a cached answer was asked for again")
	}
}

// That data is authenticated is what upstream says, to clients that ask for it by AD or
// DO (RFC 6840, 5.7 and 5.8), whoever asked first; and never of what is put together from
// a server that says so and one that does not.
func TestAuthenticatedData(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	signed := func(ad bool) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			m := told(q, "192.0.2.1", 300)
			if strings.EqualFold(q.Question[0].Name, "alias.example.") {
				m.Answer = []dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeCNAME,
					Class: dns.ClassINET, Ttl: 300}, Target: "a.plain.example."}}
			}
			// As a validating resolver does: only for who wants to know.
			if m.AuthenticatedData = ad && q.AuthenticatedData; m.AuthenticatedData {
				asked.Add(1)
			}
			_ = w.WriteMsg(m)
		}
	}
	yes, no := newFakeServer(t, signed(true)), newFakeServer(t, signed(false))
	settings := to(yes)
	settings.Stubs = map[string][]model.Nameserver{"plain.example.": {no.nameserver()}}
	f, _ := newForwarder(t, settings)
	r := &Resolver{Zone: NewZone(), Forward: f.Forward, Domains: []string{"cluster.local."}}
	r.Zone.Set(name("default/out"), &Entry{CNAME: "a.signed.example"})
	plain := func(*dns.Msg) {}
	ad := func(q *dns.Msg) { q.AuthenticatedData = true }
	do := func(q *dns.Msg) { q.SetEdns0(1232, true) }
	edns := func(q *dns.Msg) { q.SetEdns0(1232, false) }
	for _, tc := range []struct {
		what, name string
		change     func(*dns.Msg)
		want       bool
	}{
		{"nobody asked", "a.signed.example.", plain, false},
		{"EDNS0 alone", "a.signed.example.", edns, false},
		{"AD", "a.signed.example.", ad, true},
		{"DO", "a.signed.example.", do, true},
		{"AD of what is not authenticated", "a.plain.example.", ad, false},
		{"DO of what is not authenticated", "a.plain.example.", do, false},
		{"AD of an alias into what is not", "alias.example.", ad, false},
		{"AD of a name of the cluster that leads out", "out.default.svc.cluster.local.", ad, false},
	} {
		q := new(dns.Msg).SetQuestion(tc.name, dns.TypeA)
		tc.change(q)
		for _, when := range []string{"first", "from the cache"} {
			m := r.Resolve(t.Context(), q)
			if m.AuthenticatedData != tc.want || len(m.Answer) == 0 {
				t.Errorf("%s, %s: %v", tc.what, when, m)
			}
		}
		wire, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if b, ok := f.Answer(nil, wire, maxUDP); ok != !strings.HasSuffix(tc.name, "cluster.local.") {
			t.Errorf("%s: on the hot path it is %v", tc.what, ok)
		} else if ok && (b[3]&adBit != 0) != tc.want {
			t.Errorf("%s: the hot path answers %x", tc.what, b)
		}
	}
	if asked.Load() == 0 {
		t.Error("nothing was authenticated")
	}
}

func TestOldAnswersWhenServersFail(t *testing.T) {
	t.Parallel()
	for what, bad := range map[string]dns.HandlerFunc{"fails": code(dns.RcodeServerFailure), "is silent": silent} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			up := newFakeServer(t, tells("192.0.2.1", 300))
			f, clock := newForwarder(t, to(up))
			expectText(t, resolve(t, f, "a.example."), tellsOne)
			up.become(bad)
			clock.add(time.Hour)
			m, err := f.Forward(t.Context(), new(dns.Msg).SetQuestion("a.example.", dns.TypeA))
			if err != nil || answerText(m) != tellsOne || m.Answer[0].Header().Ttl != staleTTL {
				t.Fatalf("an old answer: %v, %v", m, err)
			}
			// The next client does not wait: the cache alone answers.
			q := wireQuery(t, "a.example.", dns.TypeA, nil)
			b, ok := f.Answer(nil, q, maxUDP)
			if !ok {
				t.Fatal("the second client has to wait for the dead server too")
			}
			m = new(dns.Msg)
			if err := m.Unpack(b); err != nil || answerText(m) != tellsOne || m.Answer[0].Header().Ttl != staleTTL {
				t.Errorf("from the cache: %v, %v", m, err)
			}
			// The server comes back: who asks half a minute later brings the news in.
			up.become(tells("192.0.2.2", 300))
			clock.add(staleRecheck + time.Second)
			testnet.Eventually(t, 10*time.Second, func() error {
				clock.add(staleRecheck)
				if got := resolve(t, f, "a.example."); got != "NOERROR: A 192.0.2.2" {
					return errors.New(got)
				}
				return nil
			})
			// Nothing lasts for ever.
			up.become(code(dns.RcodeServerFailure))
			clock.add(testLimits.Stale + time.Hour)
			expectText(t, resolve(t, f, "a.example."), "error:")
		})
	}
}

func TestPopularNamesAreFetchedBeforeTheyEnd(t *testing.T) {
	t.Parallel()
	up := newFakeServer(t, tells("192.0.2.1", 300))
	f, clock := newForwarder(t, to(up))
	expectText(t, resolve(t, f, "often.example."), tellsOne)
	expectText(t, resolve(t, f, "seldom.example."), tellsOne)
	q := wireQuery(t, "often.example.", dns.TypeA, nil)
	for range 2 * prefetchHits {
		if _, ok := f.Answer(nil, q, maxUDP); !ok {
			t.Fatal("not in the cache")
		}
	}
	if n := up.asked(); n != 2 {
		t.Fatalf("%d upstream queries, want 2", n)
	}
	up.become(tells("192.0.2.2", 300))
	clock.add(280 * time.Second) // in the last tenth
	if _, ok := f.Answer(nil, wireQuery(t, "seldom.example.", dns.TypeA, nil), maxUDP); !ok {
		t.Fatal("not in the cache")
	}
	for range 5 {
		if _, ok := f.Answer(nil, q, maxUDP); !ok {
			t.Fatal("a client has to wait")
		}
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		if got := resolve(t, f, "often.example."); got != "NOERROR: A 192.0.2.2" {
			return errors.New(got)
		}
		return nil
	})
	if n := up.asked(); n != 3 {
		t.Errorf("%d upstream queries, want one more than 2: seldom asked names are not fetched, others once", n)
	}
}

// TestAFailureIsRememberedForASecond, so that a storm of retries does not reach the
// servers.
func TestAFailureIsRememberedForASecond(t *testing.T) {
	t.Parallel()
	up := newFakeServer(t, code(dns.RcodeServerFailure))
	f, clock := newForwarder(t, to(up))
	expectText(t, resolve(t, f, "a.example."), "it answered SERVFAIL")
	for range 10 {
		expectText(t, resolve(t, f, "a.example."), "SERVFAIL")
	}
	if n := up.asked(); n != inBothForms {
		t.Errorf("%d upstream queries, want %d", n, inBothForms)
	}
	up.become(tells("192.0.2.1", 300))
	clock.add(failureTTL)
	expectText(t, resolve(t, f, "a.example."), tellsOne)
}

func TestDeadServersAreLeftAloneUntilTheyLive(t *testing.T) {
	t.Parallel()
	first, second := newFakeServer(t, silent), newFakeServer(t, tells("192.0.2.2", 300))
	f, _ := newForwarder(t, to(first, second))
	up := f.routes.Load().upstream[0]
	for i := range downAfter {
		expectText(t, resolve(t, f, fmt.Sprintf("n%d.example.", i)), "A 192.0.2.2") // by the second, asked beside it
	}
	testnet.Eventually(t, 10*time.Second, func() error {
		if !up.down() {
			return errors.New("the dead server still counts as well")
		}
		return nil
	})
	before := second.asked()
	first.mu.Lock()
	first.questions = nil
	first.mu.Unlock()
	for i := range 20 {
		expectText(t, resolve(t, f, fmt.Sprintf("m%d.example.", i)), "A 192.0.2.2")
	}
	first.mu.Lock()
	for _, q := range first.questions {
		if q != "." {
			t.Errorf("a dead server was asked for %s", q)
		}
	}
	first.mu.Unlock()
	if n := second.asked() - before; n < 20 {
		t.Errorf("the second server was asked %d times", n)
	}
	first.become(tells("192.0.2.1", 300))
	testnet.Eventually(t, 10*time.Second, func() error {
		if up.down() {
			return errors.New("still down")
		}
		return nil
	})
	expectText(t, resolve(t, f, "back.example."), tellsOne)
	// When all are down, they are asked all the same.
	for _, u := range f.routes.Load().upstream {
		u.fails.Store(downAfter)
	}
	expectText(t, resolve(t, f, "all.example."), tellsOne)
}

// TestALostDatagramIsAskedAgain, also where there is one server only.
func TestALostDatagramIsAskedAgain(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	up := newFakeServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if n.Add(1) > 1 {
			tells("192.0.2.1", 300)(w, q)
		}
	})
	f, _ := newForwarder(t, to(up))
	expectText(t, resolve(t, f, "a.example."), tellsOne)
}

// inBothForms is how often a server is asked that refuses, and that nothing is known of: as others are, and without
// what it may not understand.
const inBothForms = 2

func TestServersThatRefuseAreNotAskedTwice(t *testing.T) {
	t.Parallel()
	refuses, tellsAll := newFakeServer(t, code(dns.RcodeRefused)), newFakeServer(t, tells("192.0.2.1", 300))
	f, _ := newForwarder(t, to(refuses, tellsAll))
	expectText(t, resolve(t, f, "a.example."), tellsOne)
	f, _ = newForwarder(t, to(refuses))
	expectText(t, resolve(t, f, "a.example."), "it answered REFUSED")
	if n := refuses.asked(); n != 2*inBothForms {
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
		"another id": func(q *dns.Msg) *dns.Msg { m := told(q, "192.0.2.66", 300); m.Id++; return m },
		"another question": func(q *dns.Msg) *dns.Msg {
			m := told(q, "192.0.2.66", 300)
			m.Question[0].Name = "b.example."
			return m
		},
		"another type": func(q *dns.Msg) *dns.Msg {
			m := told(q, "192.0.2.66", 300)
			m.Question[0].Qtype = dns.TypeAAAA
			return m
		},
		"no question": func(q *dns.Msg) *dns.Msg { m := told(q, "192.0.2.66", 300); m.Question = nil; return m },
		"a query":     func(q *dns.Msg) *dns.Msg { m := told(q, "192.0.2.66", 300); m.Response = false; return m },
	}
	for what, forge := range forged {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var honest atomic.Bool
			honest.Store(true)
			up := newFakeServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
				if _, err := w.Write([]byte("junk")); err != nil {
					t.Error(err)
				}
				_ = w.WriteMsg(forge(q))
				if honest.Load() {
					tells("192.0.2.1", 300)(w, q)
				}
			})
			f, _ := newForwarder(t, to(up))
			expectText(t, resolve(t, f, "a.example."), tellsOne)
			honest.Store(false)
			expectText(t, resolve(t, f, "c.example."), "error: ")
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
	up := newFakeServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		ports[w.RemoteAddr().String()] = true
		mu.Unlock()
		b, err := told(q, "192.0.2.66", 300).Pack()
		if err != nil {
			t.Error(err)
		}
		_, _ = other.WriteTo(b, w.RemoteAddr())
		if strings.EqualFold(q.Question[0].Name, "a.example.") {
			tells("192.0.2.1", 300)(w, q)
		}
	})
	f, _ := newForwarder(t, to(up))
	expectText(t, resolve(t, f, "a.example."), tellsOne)
	expectText(t, resolve(t, f, "b.example."), "no answer")
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
	up := newFakeServer(t, tells("192.0.2.1", 300))
	f, _ := newForwarder(t, to(up))
	m, err := f.Forward(t.Context(), new(dns.Msg).SetQuestion("X."+long, dns.TypeA))
	if err != nil || m.Answer[0].Header().Name != "X."+long || m.Question[0].Name != "X."+long {
		t.Errorf("the client's letters are lost: %v, %v", m, err)
	}
	up.mu.Lock()
	if q := up.questions[0]; q == strings.ToLower(q) || !strings.EqualFold(q, "x."+long) {
		t.Errorf("asked for %s", q)
	}
	up.mu.Unlock()

	plain := newFakeServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		q.Question[0].Name = strings.ToLower(q.Question[0].Name)
		tells("192.0.2.1", 300)(w, q)
	})
	f, _ = newForwarder(t, to(plain))
	for i := range 3 {
		expectText(t, resolve(t, f, fmt.Sprintf("n%d.", i)+long), tellsOne)
	}
	if plain.tcp.Load() != 1 || plain.udp.Load() != 3 {
		t.Errorf("%d queries by TCP and %d by UDP, want 1 and 3", plain.tcp.Load(), plain.udp.Load())
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
	up := newFakeServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := replyOf(t, q.Question[0].Name, dns.TypeA, 0, zone[strings.ToLower(q.Question[0].Name)]...)
		m.Id = q.Id
		_ = w.WriteMsg(m)
	})
	f, _ := newForwarder(t, to(up))
	expectText(t, resolve(t, f, "ring.example."), "its CNAMEs run in circles")
	expectText(t, resolve(t, f, "self.example."), "its CNAMEs run in circles")
	if got := resolve(t, f, "chain.example."); got != "NOERROR: A 192.0.2.1, CNAME b.example." {
		t.Errorf("records that nobody asked for stay: %s", got)
	}
}

func TestStubDomains(t *testing.T) {
	t.Parallel()
	world, corp, lab := newFakeServer(t, tells("192.0.2.1", 300)), newFakeServer(t, tells("192.0.2.2", 300)),
		newFakeServer(t, tells("192.0.2.3", 300))
	s := to(world)
	s.Stubs = map[string][]model.Nameserver{"corp.example.": {corp.nameserver()},
		"lab.corp.example.": {lab.nameserver()}}
	f, _ := newForwarder(t, s)
	for name, want := range map[string]string{
		"corp.example.": "192.0.2.2", "a.CORP.example.": "192.0.2.2", "x.lab.corp.example.": "192.0.2.3",
		"lab.corp.example.": "192.0.2.3",
		"example.":          "192.0.2.1", "xcorp.example.": "192.0.2.1", ".": "192.0.2.1",
	} {
		expectText(t, resolve(t, f, name), "A "+want)
	}
	// Who is asked for a domain is the only one: a dead server is no reason to tell
	// its names to the world.
	corp.become(code(dns.RcodeServerFailure))
	expectText(t, resolve(t, f, "secret.corp.example."), "SERVFAIL")
	world.mu.Lock()
	defer world.mu.Unlock()
	for _, q := range world.questions {
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
			m := replyOf(t, q.Question[0].Name, dns.TypeA, 0, q.Question[0].Name+" 300 IN CNAME "+target)
			m.Id = q.Id
			_ = w.WriteMsg(m)
		}
	}
	world, corp := newFakeServer(t, tells("192.0.2.1", 300)), newFakeServer(t, alias("www.example."))
	s := to(world)
	s.Stubs = map[string][]model.Nameserver{"corp.example.": {corp.nameserver()}}
	f, _ := newForwarder(t, s)
	if got := resolve(t, f, "a.corp.example."); got != "NOERROR: A 192.0.2.1, CNAME www.example." {
		t.Errorf("got %s", got)
	}
	world.become(func(w dns.ResponseWriter, q *dns.Msg) { alias("b.corp.example.")(w, q) })
	expectText(t, resolve(t, f, "b.corp.example."), "its CNAMEs run in circles")
	var n atomic.Int64
	endless := func(w dns.ResponseWriter, q *dns.Msg) { alias(fmt.Sprintf("n%d.corp.example.", n.Add(1)))(w, q) }
	corp.become(endless)
	expectText(t, resolve(t, f, "c.corp.example."), "more than 8 CNAMEs")
	// An alias of what has no such record.
	corp.become(alias("www.example."))
	world.become(func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetReply(q)) })
	if got := resolve(t, f, "d.corp.example."); got != "NOERROR: CNAME www.example." {
		t.Errorf("got %s", got)
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	up := newFakeServer(t, tells("192.0.2.1", 300))
	s := to(up)
	s.Hosts = map[string][]netip.Addr{"printer.corp.example.": {addr("10.0.0.9")},
		"nas.corp.example.": {addr("10.0.0.9"), addr("fd00::9")}}
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
		{"other.corp.example.", dns.TypeA, tellsOne},
	} {
		m, err := f.Forward(t.Context(), new(dns.Msg).SetQuestion(tc.name, tc.qtype))
		if err != nil || answerText(m) != tc.want {
			t.Errorf("%s %s: %v, %v, want %s", tc.name, dns.TypeToString[tc.qtype], m, err, tc.want)
		}
	}
	// A change is answered at once: what the cache knows of other servers goes.
	s.Hosts = map[string][]netip.Addr{"other.corp.example.": {addr("10.0.0.8")}}
	s.Cache = testLimits
	f.Configure(s)
	if _, ok := f.Answer(nil, wireQuery(t, "other.corp.example.", dns.TypeA, nil), maxUDP); ok {
		t.Error("the cache still has what servers said before")
	}
	expectText(t, resolve(t, f, "other.corp.example."), "A 10.0.0.8")
	expectText(t, resolve(t, f, "printer.corp.example."), tellsOne)
}

// TestNamesOutsideOverSockets: settings come by the feed, also by TLS; the answers go
// on when the agent and the servers are dead.
func TestNamesOutsideOverSockets(t *testing.T) {
	cert, ca := testAuthority(t)
	_, secure := newTLSServer(t, cert, -1)
	up := newFakeServer(t, tells("192.0.2.9", 300))
	r := newRig(t)
	r.forwarding = to(up)
	r.forwarding.CA, r.forwarding.Cache = ca, testLimits
	r.forwarding.Stubs = map[string][]model.Nameserver{
		"corp.example.": {{Addr: secure, TLS: true, ServerName: "dns.example"}}}
	r.forwarding.Hosts = map[string][]netip.Addr{"printer.corp.example.": {addr("10.0.0.9")}}
	stopAgent := r.agent()
	r.server()
	for range 2 {
		for _, network := range []string{"udp", "tcp"} {
			r.expect(network, "10.7.0.1:53", "Printer.corp.example.", "NOERROR: A 10.0.0.9")
			r.expect(network, "10.7.0.1:53", "a.corp.example.", tellsOne)
			r.expect(network, "10.7.0.1:53", "WWW.example.", "NOERROR: A 192.0.2.9")
			r.expect(network, "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
		}
		stopAgent()
		up.stop()
	}
}

func TestTheSourceOfAnAnswerIsTold(t *testing.T) {
	t.Parallel()
	up := newFakeServer(t, tells("192.0.2.1", 300))
	s := to(up)
	s.Hosts = map[string][]netip.Addr{"printer.example.": {addr("10.0.0.9")}}
	f, clock := newForwarder(t, s)
	var told string
	f.source = func(_ context.Context, what string) { told = what }
	for _, step := range []struct {
		name, want string
		first      func()
	}{
		{"printer.example.", "hosts", func() {}},
		{"a.example.", "upstream " + up.addr.String(), func() {}},
		{"a.example.", "cache", func() {}},
		{"a.example.", "cache, past its time",
			func() { up.become(code(dns.RcodeServerFailure)); clock.add(time.Hour) }},
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
	up := newFakeServer(t, tells("192.0.2.1", 300))
	f, _ := newForwarder(t, to(up))
	for range cap(f.slots) {
		f.slots <- struct{}{}
	}
	expectText(t, resolve(t, f, "a.example."), errBusy.Error())
	<-f.slots
	expectText(t, resolve(t, f, "a.example."), tellsOne)
}

func TestOwnAddressesAreNotAsked(t *testing.T) {
	list, err := Foreign([]model.Nameserver{{Addr: netip.MustParseAddrPort("10.96.0.10:53")},
		{Addr: netip.MustParseAddrPort("192.0.2.1:53")}}, []netip.Addr{addr("10.96.0.10")})
	if len(list) != 1 || err == nil || !strings.Contains(err.Error(), "10.96.0.10 is the cluster DNS itself") {
		t.Errorf("%v, %v", list, err)
	}
	if !slices.Equal(list, []model.Nameserver{{Addr: netip.MustParseAddrPort("192.0.2.1:53")}}) {
		t.Errorf("left are %v", list)
	}
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
		"TTL 0":                      {tells("192.0.2.2", 0), "NOERROR: A 192.0.2.2"},
		"a name error without SOA":   {deny(dns.RcodeNameError), "NXDOMAIN: "},
		"no data without SOA":        {deny(dns.RcodeSuccess), "NOERROR: "},
		"TTL with the highest bit":   {tells("192.0.2.2", 1<<31), "NOERROR: A 192.0.2.2"},
		"an answer that can be kept": {tells("192.0.2.2", 300), "NOERROR: A 192.0.2.2"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			up := newFakeServer(t, tells("192.0.2.1", 300))
			f, clock := newForwarder(t, to(up))
			expectText(t, resolve(t, f, "a.example."), tellsOne)
			up.become(code(dns.RcodeServerFailure))
			clock.add(time.Hour)
			expectText(t, resolve(t, f, "a.example."), tellsOne) // past its time
			up.become(tc.answer)
			clock.add(staleRecheck + time.Second)
			testnet.Eventually(t, 10*time.Second, func() error {
				if got := resolve(t, f, "a.example."); got != tc.want {
					return fmt.Errorf("got %s, want %s", got, tc.want)
				}
				return nil
			})
			// It stays away: also when the server fails, and the clock runs.
			up.become(code(dns.RcodeServerFailure))
			clock.add(time.Minute)
			if got := resolve(t, f, "a.example."); got == tellsOne {
				t.Errorf("the old answer is back: %s", got)
			}
		})
	}
}

// TestARefreshRefusedForLoadIsTriedAgain: the old answer is told only until there is room for a try.
func TestARefreshRefusedForLoadIsTriedAgain(t *testing.T) {
	t.Parallel()
	query := wireQuery(t, "a.example.", dns.TypeA, nil)
	for what, ask := range map[string]func(t *testing.T, f *Forwarder) string{
		"by the slow way": func(t *testing.T, f *Forwarder) string { return resolve(t, f, "a.example.") },
		"by the hot path": func(t *testing.T, f *Forwarder) string {
			b, ok := f.Answer(nil, query, maxUDP)
			if !ok {
				return resolve(t, f, "a.example.")
			}
			m := new(dns.Msg)
			if err := m.Unpack(b); err != nil {
				t.Fatal(err)
			}
			return answerText(m)
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			up := newFakeServer(t, tells("192.0.2.1", 300))
			f, clock := newForwarder(t, to(up))
			expectText(t, resolve(t, f, "a.example."), tellsOne)
			up.become(code(dns.RcodeServerFailure))
			clock.add(time.Hour)
			expectText(t, resolve(t, f, "a.example."), tellsOne)
			for range cap(f.slots) {
				f.slots <- struct{}{}
			}
			up.become(tells("192.0.2.2", 300))
			clock.add(staleRecheck + time.Second)
			before := up.asked()
			for range 3 {
				expectText(t, ask(t, f), tellsOne) // no room to ask
			}
			if up.asked() != before {
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
	up := newFakeServer(t, tells("192.0.2.1", 300))
	f, clock := newForwarder(t, to(up))
	expectText(t, resolve(t, f, "a.example."), tellsOne)
	up.become(code(dns.RcodeServerFailure))
	clock.add(time.Hour)
	expectText(t, resolve(t, f, "a.example."), tellsOne)
	up.become(tells("192.0.2.2", 300))
	clock.add(staleRecheck + time.Second)
	bad := wireQuery(t, "a.example.", dns.TypeA, func(q *dns.Msg) { q.SetEdns0(1232, false) })
	bad = append(bad, 0, 8, 0, 1, 0xff) // a client subnet that is cut short
	bad[len(bad)-6] = 5
	if err := new(dns.Msg).Unpack(bad); err == nil {
		t.Fatal("the library reads it")
	}
	if _, ok := f.Answer(nil, bad, maxUDP); !ok {
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
	refusals := map[string]dns.HandlerFunc{"REFUSED": code(dns.RcodeRefused), "SERVFAIL": code(dns.RcodeServerFailure),
		"FORMERR": code(dns.RcodeFormatError),
		"NOTIMP":  code(dns.RcodeNotImplemented), "a ring of CNAMEs": ring, "connection refused": nil}
	for what, no := range refusals {
		for refusing := 1; refusing <= 8; refusing += 7 {
			t.Run(fmt.Sprintf("%s by %d", what, refusing), func(t *testing.T) {
				t.Parallel()
				var s Forwarding
				var said []*fakeServer
				for range refusing {
					if no == nil {
						s.Upstreams = append(s.Upstreams, model.Nameserver{Addr: netip.AddrPortFrom(addr("127.0.0.1"),
							uint16(20+len(s.Upstreams)))})
						continue
					}
					said = append(said, newFakeServer(t, no))
					s.Upstreams = append(s.Upstreams, said[len(said)-1].nameserver())
				}
				var lost atomic.Int64
				last := newFakeServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
					if lost.Add(1) < leastTries { // all its datagrams but the last are lost
						return
					}
					tells("192.0.2.1", 300)(w, q)
				})
				s.Upstreams = append(s.Upstreams, last.nameserver())
				f, _ := newForwarder(t, s)
				expectText(t, resolve(t, f, "a.example."), tellsOne)
				want := inBothForms
				if what == "a ring of CNAMEs" {
					want = 1
				}
				for i, u := range said {
					if u.asked() != want {
						t.Errorf("server %d was asked %d times, want %d", i, u.asked(), want)
					}
				}
			})
		}
	}
}
