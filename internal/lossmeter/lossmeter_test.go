package lossmeter

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
)

// world is a client and a server namespace, with all servers running.
func world(t *testing.T) (client, server *testnet.NS) {
	client, server = testnet.New(t, "client"), testnet.New(t, "server")
	testnet.Veth(client, "eth0", server, "eth0")
	client.Addr("eth0", "10.8.0.1/24")
	server.Addr("eth0", "10.8.0.2/24")
	l, p := server.Listen("tcp", ":7"), server.ListenPacket("udp", ":7")
	go func() { _ = ServeTCP(l) }()
	go func() { _ = ServeUDP(p) }()
	web := server.Listen("tcp", ":80")
	go func() { _ = http.Serve(web, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) }()
	d := &dns.Server{PacketConn: server.ListenPacket("udp", ":53"),
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA,
				Class: dns.ClassINET}, A: net.IPv4(10, 0, 0, 1)})
			_ = w.WriteMsg(m)
		})}
	go func() { _ = d.ActivateAndServe() }()
	return client, server
}

func probes() []Probe {
	return []Probe{
		{Kind: "udp", Target: "10.8.0.2:7"}, {Kind: "tcp", Target: "10.8.0.2:7"},
		{Kind: "connect", Target: "10.8.0.2:7"}, {Kind: "datagram", Target: "10.8.0.2:7", Patience: 2 * time.Second},
		{Kind: "dns", Target: "10.8.0.2:53/a.b.", Patience: time.Second}, {Kind: "http", Target: "10.8.0.2:80/"},
	}
}

func TestQuietNetworkLosesNothing(t *testing.T) {
	client, _ := world(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	r, err := Run(ctx, client.Dial, probes())
	if err != nil {
		t.Fatal(err)
	}
	if r.Lost() != 0 {
		t.Errorf("lost something:\n%s", r)
	}
	for _, c := range r.Counts {
		if c.Sent < 20 {
			t.Errorf("%s sent only %d", c.Kind, c.Sent)
		}
	}
}

// The meter must see a loss, or it proves nothing: the server's address is away
// for a moment, and every kind of traffic must have noticed.
func TestACutIsSeenByEveryKind(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root (CAP_SYS_ADMIN)")
	}
	client, server := world(t)
	ctx, cancel := context.WithCancel(t.Context())
	var cut sync.WaitGroup
	cut.Go(func() {
		defer cancel() // the meter runs on for as long as this takes
		for _, step := range []struct {
			do    string
			after time.Duration
		}{{"del", 300 * time.Millisecond}, {"add", 2500 * time.Millisecond}} {
			time.Sleep(step.after)
			if _, err := server.Try("ip", "address", step.do, "10.8.0.2/24", "dev", "eth0"); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Second)
	})
	r, err := Run(ctx, client.Dial, probes())
	cut.Wait()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Counts {
		if c.Lost == 0 {
			t.Errorf("%s has not noticed:\n%s", c.Kind, r)
		}
		if c.Kind == "dns" && (c.Unanswered == 0 || c.Unanswered > c.Lost) {
			t.Errorf("of %d queries lost in a cut that is longer than two tries, %d were lost at the second",
				c.Lost, c.Unanswered)
		}
		if c.First == "" && c.Lost > 0 {
			t.Errorf("%s does not say what it lost first", c.Kind)
		}
	}
}

// On a link with a round trip of more than a second TCP sends the start of each connection again, though nothing is
// lost. On any link it is a loss if the first one does not arrive.
func TestLateIsNotLost(t *testing.T) {
	for _, tc := range []struct {
		name   string
		delay  time.Duration // one way
		lossy  bool
		resent bool
	}{
		{"a quick link", time.Millisecond, false, false},
		{"a slow link", 600 * time.Millisecond, false, true},
		{"a slow link that loses the start of connections", 600 * time.Millisecond, true, true},
		{"a quick link that loses the start of connections", 100 * time.Millisecond, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newSlowLink(t)
			l.delay.Store(int64(tc.delay))
			if tc.lossy {
				l.starts.Store(1)
			}
			const late = 30 * time.Second
			r := l.run(t, time.Second, Probe{Kind: "connect", Target: "10.8.0.2:7", Rate: 10, Patience: late},
				Probe{Kind: "http", Target: "10.8.0.2:80/", Rate: 10, Patience: late})
			if (l.again.Load() > 0) != tc.resent {
				t.Errorf("%d packets were sent again", l.again.Load())
			}
			for _, c := range r.Counts {
				if want := map[bool]int64{true: c.Sent}[tc.lossy]; c.Sent == 0 || c.Lost != want {
					t.Errorf("%s: %d of %d lost, want %d:\n%s", c.Kind, c.Lost, c.Sent, want, r)
				}
			}
		})
	}
}

// An open connection on a link that becomes slow sends messages again, though nothing is lost: the other side reports
// them as duplicates. It reports one less if the first one did not arrive.
func TestLateMessagesAreNotLost(t *testing.T) {
	for _, tc := range []struct {
		name  string
		delay time.Duration // one way
		lost  int64         // of each message's copies
	}{
		{"late", 700 * time.Millisecond, 0},
		{"late and lost", 700 * time.Millisecond, 1},
		{"lost", time.Millisecond, 5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newSlowLink(t)
			time.AfterFunc(700*time.Millisecond, func() {
				l.delay.Store(int64(tc.delay))
				l.messages.Store(tc.lost)
			})
			r := l.run(t, 2*time.Second, Probe{Kind: "tcp", Target: "10.8.0.2:7", Patience: 5 * time.Second})
			if l.again.Load() == 0 {
				t.Error("nothing was sent again")
			}
			if c := r.Counts[0]; c.Sent < 5 || (c.Lost > 0) != (tc.lost > 0) {
				t.Errorf("%d of %d lost:\n%s", c.Lost, c.Sent, r)
			}
		})
	}
}

// slowLink joins a client and a server by a link with a delay, which loses the first copies of packets.
type slowLink struct {
	client           *testnet.NS
	delay            atomic.Int64 // one way
	starts, messages atomic.Int64 // how many copies of a packet to the server are lost
	again            atomic.Int64 // later copies
}

func newSlowLink(t *testing.T) *slowLink {
	client, server := testnet.New(t, "client"), testnet.New(t, "server")
	l := &slowLink{client: client}
	l.delay.Store(int64(time.Millisecond))
	a, b := client.Tun("10.8.0.1/24"), server.Tun("10.8.0.2/24")
	seen := map[string]int64{}
	go l.relay(a, b, func(p []byte) bool {
		const syn = 2
		if len(p) < 40 || p[9] != unix.IPPROTO_TCP {
			return true
		}
		lost := l.messages.Load()
		if p[33] == syn {
			lost = l.starts.Load()
		} else if len(p) == 20+int(p[32]>>4*4) {
			return true // an acknowledgement
		}
		key := string(p[20:22]) + string(p[24:28]) // port and sequence number
		seen[key]++
		if seen[key] > 1 {
			l.again.Add(1)
		}
		return seen[key] > lost
	})
	go l.relay(b, a, func([]byte) bool { return true })
	echoes, web := server.Listen("tcp", ":7"), server.Listen("tcp", ":80")
	go func() { _ = ServeTCP(echoes) }()
	go func() { _ = http.Serve(web, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) }()
	return l
}

// run measures for a time.
func (l *slowLink) run(t *testing.T, during time.Duration, probes ...Probe) Report {
	ctx, cancel := context.WithTimeout(t.Context(), during)
	defer cancel()
	r, err := Run(ctx, l.client.Dial, probes)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// relay passes packets on after the delay, except those that pass refuses.
func (l *slowLink) relay(from io.Reader, to io.Writer, pass func([]byte) bool) {
	for {
		buf := make([]byte, 2048)
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if pass(buf[:n]) {
			time.AfterFunc(time.Duration(l.delay.Load()), func() { _, _ = to.Write(buf[:n]) })
		}
	}
}

func TestParseProbe(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Probe
		bad  bool
	}{
		{"udp=10.0.0.1:7", Probe{Kind: "udp", Target: "10.0.0.1:7"}, false},
		{"dns@10=10.0.0.1:53/a.", Probe{Kind: "dns", Target: "10.0.0.1:53/a.", Rate: 10}, false},
		{"udp", Probe{}, true},
		{"icmp=10.0.0.1", Probe{}, true},
		{"udp@x=10.0.0.1:7", Probe{}, true},
	} {
		got, err := ParseProbe(tc.in)
		if got != tc.want || (err != nil) != tc.bad {
			t.Errorf("%q: %+v, %v", tc.in, got, err)
		}
	}
}

// Where nothing answers, open attempts are bounded, whatever the rate and however long it lasts.
func TestOpenAttemptsAreBounded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	var open, most atomic.Int64
	c := &counter{Probe: Probe{Rate: 60}}
	err := tries(ctx, c, func(uint64) error {
		most.Store(max(most.Load(), open.Add(1)))
		defer open.Add(-1)
		<-ctx.Done()
		return nil
	})
	if err != nil || most.Load() > 64 || c.sent.Load() > 64 {
		t.Errorf("%v; %d attempts were open at a time, and %d sent; at most 64 are expected", err, most.Load(),
			c.sent.Load())
	}
	c = &counter{Probe: Probe{Rate: 1000}}
	ctx2, cancel2 := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel2()
	if err := tries(ctx2, c, func(uint64) error { <-ctx2.Done(); return nil }); err != nil || c.sent.Load() > 1000 {
		t.Errorf("%v; %d attempts were sent; at most 1000 are expected", err, c.sent.Load())
	}
}
