package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	agent "wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/zone"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// rig is an agent's feed and a server, on a network of a node and a client.
type rig struct {
	t            *testing.T
	node, client *testnet.NS
	dir          string
	store        *model.Store
	feed         *agent.Feed // of the last agent
	forwarding   schema.Forwarding
	before       string // the file in which an earlier agent left the place
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, node: testnet.New(t, "node"), client: testnet.New(t, "client"), dir: t.TempDir(),
		store: dnstest.Cluster(t)}
	r.store.MarkSynced(model.ServiceKind | model.EndpointSliceKind | model.NamespaceKind)
	testnet.Veth(r.node, "eth0", r.client, "eth0")
	for _, a := range []string{"10.7.0.1/24", "fd07::1/64"} {
		r.node.Addr("eth0", a)
	}
	for _, a := range []string{"10.7.0.2/24", "10.7.0.66/24", "fd07::2/64"} {
		r.client.Addr("eth0", a)
	}
	return r
}

func (r *rig) sockets() []schema.Socket {
	var out []schema.Socket
	for _, a := range []string{"10.7.0.1:53", "[fd07::1]:53"} {
		for _, n := range []string{"udp", "tcp"} {
			out = append(out, schema.Socket{Network: n, Addr: netip.MustParseAddrPort(a)})
		}
	}
	return out
}

func (r *rig) open(k schema.Socket) (*os.File, error) {
	var f *os.File
	err := r.node.Do(func() error {
		var err error
		f, err = agent.OpenSocket(k)
		return err
	})
	return f, err
}

// agent runs a feed until the returned function is called.
func (r *rig) agent() (stop func()) {
	r.t.Helper()
	return r.agentThat(true)
}

// agentThat runs a feed that knows its settings and sockets, or not yet.
func (r *rig) agentThat(knows bool) (stop func()) {
	r.t.Helper()
	log := slog.New(slog.DiscardHandler)
	feed := &agent.Feed{Open: r.open, Log: log}
	r.feed = feed
	if r.before != "" {
		if err := agent.Remember(r.before, feed); err != nil {
			r.t.Fatal(err)
		}
	}
	if knows {
		r.configure(feed)
	}
	path := filepath.Join(r.dir, "dns.sock")
	r.remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan struct{}, 2)
	go func() { _ = feed.Serve(ctx, l); done <- struct{}{} }()
	go func() {
		if knows {
			_ = r.loop(feed, log).Run(ctx)
		}
		done <- struct{}{}
	}()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			<-done
			<-done
		}
	}
	r.t.Cleanup(stop)
	return stop
}

func (r *rig) remove(path string) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.t.Fatal(err)
	}
}

func (r *rig) loop(feed *agent.Feed, log *slog.Logger) *reconcile.Loop[model.Name, schema.Records] {
	return &reconcile.Loop[model.Name, schema.Records]{Name: "dns", Store: r.store,
		Kinds:   model.ServiceKind | model.NamespaceKind,
		Planner: reconcile.PlannerOf(agent.Keys, agent.Plan), Equal: schema.Equal, Target: feed,
		Health: reconcile.NewHealth(nil, nil), Log: log}
}

func (r *rig) configure(feed *agent.Feed) {
	feed.Configure(schema.Settings{Domains: []string{"cluster.local."}, Forwarding: r.forwarding,
		Clients: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/26"), netip.MustParsePrefix("fd07::/64")}})
	feed.Listen(r.sockets())
}

// server runs a process that answers until the returned function is called.
func (r *rig) server() (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = Run(ctx, Config{Socket: filepath.Join(r.dir, "dns.sock"), StateFile: filepath.Join(r.dir, "snapshot"),
			HealthSocket: filepath.Join(r.dir, "health.sock"), Log: slog.New(slog.DiscardHandler)})
	}()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			<-done
		}
	}
	r.t.Cleanup(stop)
	return stop
}

// ask queries from the client's namespace.
func (r *rig) ask(network, from, server, name string, qtype uint16) (*dns.Msg, error) {
	conn, err := r.client.DialFrom(network, from, server, time.Second)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c := dns.Client{Net: network, Timeout: time.Second}
	m, _, err := c.ExchangeWithConn(new(dns.Msg).SetQuestion(name, qtype), &dns.Conn{Conn: conn})
	return m, err
}

func (r *rig) expect(network, server, name, want string) {
	r.t.Helper()
	testnet.Eventually(r.t, 10*time.Second, func() error {
		m, err := r.ask(network, "", server, name, dns.TypeA)
		if err != nil {
			return err
		}
		if got := dnstest.Text(m); got != want {
			return fmt.Errorf("%s by %s: %s, want %s", name, network, got, want)
		}
		return nil
	})
}

const backendName = "backend.default.svc.cluster.local."

func TestQueriesOverSockets(t *testing.T) {
	r := newRig(t)
	r.agent()
	r.server()
	for _, server := range []string{"10.7.0.1:53", "[fd07::1]:53"} {
		for _, network := range []string{"udp", "tcp"} {
			r.expect(network, server, backendName, "NOERROR: A 10.96.100.50")
			r.expect(network, server, "nobody.default.svc.cluster.local.", "NXDOMAIN:  +SOA")
		}
	}
	r.expect("udp", "10.7.0.1:53", "google.com.", "SERVFAIL: ") // no upstream is known
}

func TestAChangeIsAnsweredAtOnce(t *testing.T) {
	r := newRig(t)
	r.agent()
	r.server()
	r.expect("udp", "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
	err := r.store.Write(func(w *model.Writer) {
		w.PutService(&model.Service{Name: dnstest.Name("default/backend"),
			ClusterIPs: []netip.Addr{dnstest.Addr("10.96.0.51")}})
		w.Delete(model.ServiceKind, dnstest.Name("unknown/orphan"))
	})
	if err != nil {
		t.Fatal(err)
	}
	r.expect("udp", "10.7.0.1:53", backendName, "NOERROR: A 10.96.0.51")
	r.expect("udp", "10.7.0.1:53", "orphan.unknown.svc.cluster.local.", "NXDOMAIN:  +SOA")
}

func TestStrangersGetNoAnswer(t *testing.T) {
	r := newRig(t)
	r.agent()
	r.server()
	r.expect("udp", "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
	for _, network := range []string{"udp", "tcp"} {
		if m, err := r.ask(network, "10.7.0.66:0", "10.7.0.1:53", backendName, dns.TypeA); err == nil {
			t.Errorf("a client outside of the allowed networks was answered by %s: %v", network, m)
		}
	}
}

// TestAnswersGoOnWithoutTheAgent: the agent dies, and then the server too, which
// a new agent gives its sockets anew; the sockets that it holds stay its own.
func TestAnswersGoOnWithoutTheAgent(t *testing.T) {
	r := newRig(t)
	stopAgent := r.agent()
	stopServer := r.server()
	r.expect("udp", "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
	stopAgent()
	for range 20 { // no query may be lost
		m, err := r.ask("udp", "", "10.7.0.1:53", backendName, dns.TypeA)
		if err != nil || m.Rcode != dns.RcodeSuccess {
			t.Fatalf("without the agent: %v, %v", m, err)
		}
	}
	// An agent that has just started knows nothing yet; that is no news for a server.
	stopAgent = r.agentThat(false)
	for range 100 {
		if m, err := r.ask("udp", "", "10.7.0.1:53", backendName, dns.TypeA); err != nil ||
			m.Rcode != dns.RcodeSuccess {
			t.Fatalf("while the agent starts: %v, %v", m, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	stopAgent()
	conn, err := r.client.Dial("tcp", "10.7.0.1:53", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r.agent() // it must not replace sockets that work
	time.Sleep(200 * time.Millisecond)
	c := dns.Client{Net: "tcp", Timeout: time.Second}
	if _, _, err := c.ExchangeWithConn(new(dns.Msg).SetQuestion(backendName, dns.TypeA),
		&dns.Conn{Conn: conn}); err != nil {
		t.Errorf("an open connection broke when the agent came back: %v", err)
	}
	stopServer()
	r.server()
	r.expect("udp", "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
}

func TestTheLastSnapshotIsReadAtStart(t *testing.T) {
	r := newRig(t)
	stopAgent := r.agent()
	stopServer := r.server()
	r.expect("udp", "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
	stopAgent()
	stopServer()
	info, err := os.Stat(filepath.Join(r.dir, "snapshot"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("snapshot: %v, %v", info, err)
	}
	// The socket comes from the test, in the place of an agent that is away.
	p := &process{Config: Config{StateFile: filepath.Join(r.dir, "snapshot"), Log: slog.New(slog.DiscardHandler)},
		zone: zone.New()}
	p.server = New(p.zone, prometheus.NewRegistry(), p.Log)
	if err := p.load(); err != nil {
		t.Fatal(err)
	}
	if n, ok := p.zone.Look("backend.default.svc"); !ok || len(n.Addrs) != 2 {
		t.Errorf("the snapshot has %v", n)
	}
	if err := os.WriteFile(p.StateFile, []byte(`{"version":2,"ent`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.load(); err == nil || !strings.Contains(err.Error(), "snapshot") {
		t.Errorf("a torn snapshot was read: %v", err)
	}
	if n, ok := p.zone.Look("backend.default.svc"); !ok || len(n.Addrs) != 2 {
		t.Errorf("with a torn snapshot the names are %v", n)
	}
}

func TestLongAnswersAreTruncatedAndComeByTCP(t *testing.T) {
	r := newRig(t)
	slice := &model.EndpointSlice{Name: dnstest.Name("default/many-1"), Service: "many"}
	for i := range 100 {
		slice.Endpoints = append(slice.Endpoints,
			model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, 9, byte(i)}), Ready: true})
	}
	err := r.store.Write(func(w *model.Writer) {
		w.PutService(&model.Service{Name: dnstest.Name("default/many"), Headless: true})
		w.PutEndpointSlice(slice)
	})
	if err != nil {
		t.Fatal(err)
	}
	r.agent()
	r.server()
	const many = "many.default.svc.cluster.local."
	testnet.Eventually(t, 10*time.Second, func() error {
		m, err := r.ask("udp", "", "10.7.0.1:53", many, dns.TypeA)
		if err != nil {
			return err
		}
		m.Compress = true
		if !m.Truncated || m.Len() > dns.MinMsgSize {
			return fmt.Errorf("truncated %v at %d bytes", m.Truncated, m.Len())
		}
		return nil
	})
	m, err := r.ask("tcp", "", "10.7.0.1:53", many, dns.TypeA)
	if err != nil || len(m.Answer) != 100 {
		t.Errorf("by TCP: %d answers, %v", len(m.Answer), err)
	}
}
