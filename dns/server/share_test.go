package server

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// A source has its share and no more, whatever others have, and gets back what it gives.
func TestASourceHasItsShare(t *testing.T) {
	const most, each = 160, 40
	s := newShares(most, each)
	held := map[netip.Addr]int{}
	all := 0
	sources := addrsFrom("10.8.0.1", 8)
	rng := rand.New(rand.NewPCG(1, 2))
	for step := range 10_000 {
		a := sources[rng.IntN(len(sources))]
		if rng.IntN(5) < 2 && held[a] > 0 {
			s.done(a)
			held[a]--
			all--
			continue
		}
		want := all < most && held[a] < each && (all < most*3/4 || held[a] < modest)
		if got := s.take(a); got != want {
			t.Fatalf("step %d: taken %t, want %t with %d of %d", step, got, want, held[a], all)
		}
		if want {
			held[a]++
			all++
		}
	}
	for a, n := range held {
		for range n {
			s.done(a)
		}
	}
	if s.all != 0 || len(s.each) != 0 {
		t.Errorf("left are %d, %v", s.all, s.each)
	}
}

// One pod with as many queries under way as it may have takes nothing from another.
func TestAnotherPodIsForwardedBesideAFlood(t *testing.T) {
	s, client := loopback(t)
	release := make(chan struct{})
	s.resolver.Forward = func(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
		if q.Question[0].Name == "www.example.com." {
			return dnstest.Told(q, "192.0.2.1", 60), nil
		}
		<-release
		return nil, errors.New("dead")
	}
	defer s.Keep(nil)
	defer close(release)
	pod := dnstest.Addr("10.244.0.9")
	for range maxWorkersEach {
		if !s.work.take(pod) {
			t.Fatal("less than its share")
		}
	}
	if s.work.take(pod) {
		t.Error("more than its share")
	}
	if got := dnstest.Text(askOnce(t, client, "www.example.com.")); got != dnstest.TellsOne {
		t.Errorf("another client: %s", got)
	}
}

// A full source loses its own idlest connection; when all are full, the source with the most loses one. A new
// connection of another source stays, whatever the others do.
func TestConnectionsMakeRoom(t *testing.T) {
	l := newConnections(6, 3)
	add := func(source string) *tcpConn {
		_, server := testnet.TCP(t)
		c := &tcpConn{TCPConn: server, client: dnstest.Addr(source), source: dnstest.Addr(source)}
		l.add(c)
		time.Sleep(time.Millisecond)
		return c
	}
	expect := func(what string, open, closed []*tcpConn) {
		t.Helper()
		n := 0
		for _, list := range l.sources {
			n += len(list)
		}
		if n != l.all || n > 6 {
			t.Errorf("%s: %d are counted, there are %d", what, l.all, n)
		}
		for i, c := range open {
			time.Sleep(10 * time.Microsecond) // one is idler than the next
			if !l.progress(c) {
				t.Errorf("%s: connection %d was closed", what, i)
			}
		}
		for i, c := range closed {
			if l.progress(c) {
				t.Errorf("%s: closed connection %d is there", what, i)
			}
		}
	}
	a1, a2, a3 := add("10.8.0.1"), add("10.8.0.1"), add("10.8.0.1")
	l.progress(a1)
	a4 := add("10.8.0.1")
	expect("a full source", []*tcpConn{a4, a3, a1}, []*tcpConn{a2})
	b, c, d := add("10.8.0.2"), add("10.8.0.3"), add("10.8.0.4")
	e := add("10.8.0.5")
	expect("all are full", []*tcpConn{b, c, d, e, a3, a1}, []*tcpConn{a2, a4})
	f := add("10.8.0.6") // a3 was the idlest of the source with the most
	expect("again", []*tcpConn{f, e, d, c, b, a1}, []*tcpConn{a3})
	g := add("10.8.0.7") // each source has one: the idlest of all goes
	expect("one each", []*tcpConn{g, e, d, c, b, a1}, []*tcpConn{f})
	if n := l.evicted.Load(); n != 4 {
		t.Errorf("%d were closed, want 4", n)
	}
	l.remove(g)
	l.remove(g) // a second time changes nothing
	expect("removed", []*tcpConn{a1, b, c, d, e}, []*tcpConn{g})
	l.relieve()
	expect("files run out", []*tcpConn{b, c, d, e}, []*tcpConn{a1})
}

// A source with many connections pays for its next one itself, and at once, though another one's are idler.
func TestAFloodPaysItself(t *testing.T) {
	l := newConnections(2*manyConns, 2*manyConns)
	add := func(source string) *tcpConn {
		_, server := testnet.TCP(t)
		c := &tcpConn{TCPConn: server, client: dnstest.Addr(source), source: dnstest.Addr(source)}
		l.add(c)
		return c
	}
	var one, other []*tcpConn
	for range manyConns {
		one = append(one, add("10.8.0.1"))
	}
	for range manyConns {
		other = append(other, add("10.8.0.2"))
	}
	add("10.8.0.2")
	if !l.progress(one[0]) || l.progress(other[0]) {
		t.Error("another source lost a connection for the flood's next one")
	}
	add("10.8.0.3")
	if n := len(l.sources[dnstest.Addr("10.8.0.3")]); n != 1 || l.all != 2*manyConns {
		t.Errorf("a new source has %d connections, all have %d", n, l.all)
	}
}

// Connections that ask without a pause keep no other out: the wait for room has an end.
func TestBusyConnectionsMakeRoom(t *testing.T) {
	l := newConnections(2, 1)
	connection := func(source string) *tcpConn {
		_, server := testnet.TCP(t)
		return &tcpConn{TCPConn: server, client: dnstest.Addr(source), source: dnstest.Addr(source)}
	}
	busy := []*tcpConn{connection("10.8.0.1"), connection("10.8.0.2")}
	for _, c := range busy {
		l.add(c)
	}
	done := make(chan struct{})
	go func() { l.add(connection("10.8.0.3")); close(done) }()
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(time.Millisecond) {
		select {
		case <-done:
			return
		default:
		}
		for _, c := range busy {
			l.progress(c)
		}
	}
	t.Error("busy connections kept another out for 10 s")
}

// A pod of this node is a source of its own; other IPv6 addresses of one /64 are one.
func TestSources(t *testing.T) {
	s, _ := loopback(t)
	defer s.Keep(nil)
	s.SetCallers(map[netip.Addr]schema.Caller{dnstest.Addr("fd00::7"): {Pod: model.Name{Namespace: "a", Name: "b"}}})
	for a, want := range map[string]string{"10.0.0.1": "10.0.0.1", "fd00::7": "fd00::7", "fd00::8": "fd00::",
		"fd00:0:0:1::8": "fd00:0:0:1::"} {
		if got := s.sourceOf(dnstest.Addr(a)); got != dnstest.Addr(want) {
			t.Errorf("%s counts as %s, want %s", a, got, want)
		}
	}
}
