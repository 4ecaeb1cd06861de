package server

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/internal/testnet"
)

// loopback is a server at an address of this host that no other test has.
func loopback(t testing.TB) (*Server, net.Conn) {
	t.Helper()
	s := New(fill(t, dnstest.Cluster(t)), prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	s.Configure(schema.Settings{Domains: []string{"cluster.local."},
		Clients: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := schema.Socket{Network: "udp", Addr: conn.LocalAddr().(*net.UDPAddr).AddrPort()}
	s.Listen(k, nil, conn)
	client, err := net.Dial("udp", k.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return s, client
}

func askOnce(t testing.TB, client net.Conn, name string) *dns.Msg {
	t.Helper()
	if err := client.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	c := &dns.Conn{Conn: client}
	if err := c.WriteMsg(new(dns.Msg).SetQuestion(name, dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	m, err := c.ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A server that waits for queries, or answers them, is not hung; one whose loops
// stand is, and is told by its socket.
func TestAHungServerIsSeen(t *testing.T) {
	s, client := loopback(t)
	hung := make(chan schema.Socket, 1)
	go s.watch(t.Context(), func(k schema.Socket) { hung <- k })
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Second / 2) {
		askOnce(t, client, backendName)
	}
	select {
	case k := <-hung:
		t.Fatalf("%v works and is taken for hung", k)
	default:
	}
	release := hang(s)
	in := packed(t, backendName, dns.TypeA)
	if _, err := client.Write(in); err != nil {
		t.Fatal(err)
	}
	select {
	case <-hung:
	case <-time.After(10 * time.Second):
		t.Error("nobody saw that the server hangs")
	}
	release()
	s.Keep(nil)
}

// hang has no loop of the server get past its next query until release.
func hang(s *Server) (release func()) {
	var held []*tally
	for _, u := range s.udpSockets() {
		for _, r := range u.readers {
			r.tally.mu.Lock()
			held = append(held, r.tally)
		}
	}
	return func() {
		for _, t := range held {
			t.mu.Unlock()
		}
	}
}

// The process of a hung server ends by itself, and its socket with it: the port is
// free, which is what sends queries to other nodes.
func TestAHungServerEndsItself(t *testing.T) {
	const env = "WAYLEAVE_TEST_HANG"
	if os.Getenv(env) != "" {
		s, client := loopback(t)
		askOnce(t, client, backendName)
		os.Stdout.WriteString("at " + client.RemoteAddr().String() + "\n")
		hang(s)
		if _, err := client.Write(packed(t, backendName, dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		s.watch(t.Context(), func(schema.Socket) { os.Exit(7) })
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAHungServerEndsItself$")
	cmd.Env = append(os.Environ(), env+"=1")
	out, err := cmd.Output()
	if cmd.ProcessState.ExitCode() != 7 {
		t.Fatalf("it ended with %v: %s", err, out)
	}
	at := strings.TrimSpace(strings.TrimPrefix(string(out), "at "))
	testnet.Eventually(t, 5*time.Second, func() error {
		l, err := net.ListenPacket("udp", at)
		if err == nil {
			err = l.Close()
		}
		return err
	})
}

// A look at a reader counts only while it has something to do and does not turn.
func TestTheWatchdogsLooks(t *testing.T) {
	r, l := &reader{}, &look{}
	for i, step := range []struct {
		turn, busy, waits bool
		want              int
	}{{true, false, false, 0}, {false, false, false, 0}, {false, true, false, 1}, {false, true, true, 2},
		{true, true, true, 0}, {false, false, true, 1}, {false, false, false, 0}} {
		if step.turn {
			r.turns.Add(1)
		}
		r.busy.Store(step.busy)
		if got := l.at(r, step.waits); got != step.want {
			t.Errorf("look %d: still for %d, want %d", i, got, step.want)
		}
	}
}
