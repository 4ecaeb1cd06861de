package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/internal/hostile"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// serverDir names the folder that the process of startProcess works in.
const serverDir = "WAYLEAVE_TEST_DNS_SERVER"

// hostilePeak is the most memory that the server's process may take under any flood. Its container has 320 MiB, of
// which 64 are for its folder.
const hostilePeak = 200 << 20

// TestServerProcess is the process that hostile clients meet.
func TestServerProcess(t *testing.T) {
	dir := os.Getenv(serverDir)
	if dir == "" {
		return // it is only there for the others
	}
	go func() { // ends with its parent
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	debug.SetMemoryLimit(160 << 20) // as `wayleave dns` does in its container
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	err := Run(t.Context(), Config{Socket: filepath.Join(dir, "dns.sock"), StateFile: filepath.Join(dir, "snapshot"),
		HealthSocket: filepath.Join(dir, "health.sock"), Log: log})
	t.Fatal(err)
}

// process starts a server as a process of its own, with what else stands in front of its program.
func (r *rig) process(before ...string) (pid int) {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	args := append(before, self, "-test.run=^TestServerProcess$")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), serverDir+"="+r.dir)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		stdin.Close()
	})
	return cmd.Process.Pid
}

// newHostileRig has pods at 10.7.0.0/26, 10.8.0.0/16 and fd07::/64, and strangers at 10.7.0.66 and
// 10.9.0.0/16. Names below good.example are answered, those below dead.example never.
func newHostileRig(t *testing.T, before ...string) (*rig, int) {
	t.Helper()
	if len(before) > 0 {
		testnet.Need(t, before[0])
	}
	r := newRig(t)
	r.node.Route("10.8.0.0/15", "10.7.0.2")
	for _, a := range goodPods[1:] {
		r.client.Addr("eth0", a+"/32")
	}
	for i := range 64 {
		r.client.Addr("eth0", fmt.Sprintf("10.8.0.%d/32", i+1))
		r.client.Addr("eth0", fmt.Sprintf("10.9.0.%d/32", i+1))
		r.client.Addr("eth0", fmt.Sprintf("fd07::1:%x/128", i+1))
	}
	good, dead := upstreamAt(t, r.node, "10.7.0.1:5300", false), upstreamAt(t, r.node, "10.7.0.1:5301", true)
	r.forwarding = schema.Forwarding{Upstreams: []model.Nameserver{good}, Stubs: map[string][]model.Nameserver{
		"dead.example.": {dead}},
		Cache: schema.CacheLimits{Bytes: 16 << 20, TTL: time.Hour, NegativeTTL: time.Hour, Stale: 24 * time.Hour}}
	r.agentThat(true)
	r.feed.Configure(schema.Settings{Domains: []string{"cluster.local."}, Forwarding: r.forwarding,
		Clients: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/26"), netip.MustParsePrefix("10.8.0.0/16"),
			netip.MustParsePrefix("fd07::/64")}})
	var pid int
	r.node.Must(func() error { pid = r.process(before...); return nil })
	r.expect("tcp", "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
	return r, pid
}

// upstreamAt is a server in the node's namespace, which answers everything or nothing.
func upstreamAt(t *testing.T, ns *testnet.NS, at string, isSilent bool) model.Nameserver {
	s := &dns.Server{PacketConn: ns.ListenPacket("udp", at),
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			if !isSilent {
				dnstest.Tells("192.0.2.1", 300)(w, q)
			}
		})}
	go func() { _ = s.ActivateAndServe() }()
	t.Cleanup(func() { _ = s.Shutdown() })
	return model.Nameserver{Addr: netip.MustParseAddrPort(at)}
}

func addrsFrom(first string, n int) (out []netip.Addr) {
	for a := netip.MustParseAddr(first); len(out) < n; a = a.Next() {
		out = append(out, a)
	}
	return out
}

// framed is a query as it goes over TCP.
func framed(t testing.TB, name string) []byte {
	t.Helper()
	raw := dnstest.Query(t, name, dns.TypeA, nil)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...)
}

// patient is how long a client waits: the machine is busy with the flood.
const patient = 30 * time.Second

// wellBehaved asks for a name of the cluster by TCP and by UDP, and for one outside. A datagram is sent
// three times at the most, as resolvers do.
func (r *rig) wellBehaved(from string) error {
	for _, q := range []struct{ network, name, want string }{
		{"tcp", backendName, "NOERROR: A 10.96.100.50"}, {"udp", backendName, "NOERROR: A 10.96.100.50"},
		{"udp", "www.good.example.", dnstest.TellsOne},
		{"tcp", fmt.Sprintf("n%d.good.example.", time.Now().UnixNano()), dnstest.TellsOne},
	} {
		m, err := r.askFor(from, q.network, q.name)
		for try := 1; err != nil && q.network == "udp" && try < 3; try++ {
			m, err = r.askFor(from, q.network, q.name)
		}
		if err != nil {
			return fmt.Errorf("%s by %s: %w", q.name, q.network, err)
		}
		if got := dnstest.Text(m); got != q.want {
			return fmt.Errorf("%s by %s: %s", q.name, q.network, got)
		}
	}
	return nil
}

func (r *rig) askFor(from, network, name string) (*dns.Msg, error) {
	conn, err := r.client.DialFrom(network, from+":0", "10.7.0.1:53", patient)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c := dns.Client{Net: network, Timeout: patient}
	m, _, err := c.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), &dns.Conn{Conn: conn})
	return m, err
}

// Whatever connections do, the process stays within its memory and serves a well-behaved pod.
func TestHostileConnections(t *testing.T) {
	r, pid := newHostileRig(t)
	stranger, pod := addrsFrom("10.7.0.66", 1), addrsFrom("10.8.0.1", 1)
	strangers, pods, six := addrsFrom("10.9.0.1", 64), addrsFrom("10.8.0.1", 64), addrsFrom("fd07::1:1", 64)
	query, slow := framed(t, backendName), framed(t, "a.dead.example.")
	block := make([]byte, 64<<10)
	const node, node6 = "10.7.0.1:53", "[fd07::1]:53"
	for _, tc := range []struct {
		what   string
		from   []netip.Addr
		target string
		n      int
		do     func(context.Context, net.Conn) error
	}{
		{"a stranger's 64 KiB", stranger, node, 4500, hostile.Bytes([]byte{0xff, 0xff}, block, false)},
		{"many strangers' 64 KiB", strangers, node, 4500, hostile.Bytes([]byte{0xff, 0xff}, block, false)},
		{"many strangers, idle", strangers, node, 4500, hostile.Idle},
		{"a pod, idle", pod, node, 4500, hostile.Idle},
		{"many pods, idle", pods, node, 4500, hostile.Idle},
		{"many pods, half a message", pods, node, 4500, hostile.Partial(append([]byte{0xff, 0xff}, block[:32<<10]...))},
		{"many pods, 64 KiB", pods, node, 4500, hostile.Bytes([]byte{0xff, 0xff}, block, false)},
		{"many pods, slow", pods, node, 2000, hostile.Slow(query, 200*time.Millisecond)},
		{"many pods that read no answer", pods, node, 2000, hostile.Bytes(nil, query, false)},
		{"many pods, pipelines to a dead server", pods, node, 2000, hostile.Bytes(nil, slow, true)},
		{"one /64, idle", six, node6, 4500, hostile.Idle},
		{"one /64, 64 KiB", six, node6, 4500, hostile.Bytes([]byte{0xff, 0xff}, block, false)},
	} {
		t.Run(tc.what, func(t *testing.T) {
			f := &hostile.Flood{NS: r.client, Target: tc.target, Sources: tc.from, Connections: tc.n, Do: tc.do}
			r.meanwhile(t, pid, f, tc.n)
		})
	}
	t.Run("half-open", func(t *testing.T) {
		good := r.pods(t)
		for range 20 {
			hostile.HalfOpen(t, r.client, netip.MustParsePrefix("10.8.64.0/18"), netip.MustParseAddrPort(node), 1000)
		}
		r.served(t, pid, good)
	})
}

// meanwhile holds a flood until it has been at its height and the well-behaved client was served a
// number of times.
func (r *rig) meanwhile(t *testing.T, pid int, f *hostile.Flood, n int) {
	t.Helper()
	hostile.ResetPeak(t, pid)
	stop := f.Start(t)
	testnet.Eventually(t, 60*time.Second, func() error {
		if f.Opened()+f.Failed() < n {
			return fmt.Errorf("%d connections were opened, %d failed", f.Opened(), f.Failed())
		}
		return nil
	})
	r.served(t, pid, r.pods(t))
	t.Logf("%d opened, %d open, %d closed by the server, %d KiB sent", f.Opened(), f.Open(), f.Closed(), f.Sent()>>10)
	stop()
}

// pods starts well-behaved pods.
func (r *rig) pods(t *testing.T) (out []good) {
	for _, from := range goodPods {
		client, stop := hostile.Ask(t, 20*time.Millisecond, func() error { return r.wellBehaved(from) })
		out = append(out, good{client, stop})
	}
	return out
}

// goodPods are the addresses of well-behaved pods.
var goodPods = []string{"10.7.0.2", "10.7.0.3", "10.7.0.4", "10.7.0.5"}

type good struct {
	*hostile.Client
	stop func()
}

// served waits until the pods have asked 20 times together, and each at least once, and says what is wrong with them
// or with the process.
func (r *rig) served(t *testing.T, pid int, pods []good) {
	t.Helper()
	testnet.Eventually(t, 300*time.Second, func() error {
		all := 0
		for _, c := range pods {
			n, _, err := c.Counts()
			if n == 0 {
				return errors.New("a well-behaved pod has no answer yet")
			}
			if all += n; err != nil {
				return err
			}
		}
		if all < 20 {
			return fmt.Errorf("the well-behaved pods asked %d times", all)
		}
		return nil
	})
	var slowest time.Duration
	for _, c := range pods {
		c.stop()
		if n, failed, err := c.Counts(); failed > 0 {
			t.Errorf("a well-behaved pod got no answer %d times of %d: %v", failed, n, err)
		}
		slowest = max(slowest, c.Slowest())
	}
	peak := hostile.Peak(t, pid)
	if peak > hostilePeak {
		t.Errorf("the process took %d MiB, %d are allowed", peak>>20, hostilePeak>>20)
	}
	t.Logf("peak %d MiB of %d, slowest round %v", peak>>20, hostilePeak>>20, slowest)
}

// Clients that send queries without a pause take turns with others: a new client is answered when each of them has been
// answered a few times, not when they have used up the scheduler's time slices.
func TestHostilePipelines(t *testing.T) {
	r, _ := newHostileRig(t)
	const clients, turns, rounds = 1000, 16, 9
	f := &hostile.Flood{NS: r.client, Target: "10.7.0.1:53", Sources: addrsFrom("10.8.0.1", 64), Connections: clients,
		Do: hostile.Bytes(nil, framed(t, backendName), false)}
	stop := f.Start(t)
	defer stop()
	testnet.Eventually(t, 60*time.Second, func() error {
		if f.Open() < clients/2 {
			return fmt.Errorf("%d connections are open", f.Open())
		}
		return nil
	})
	var others []int
	for range rounds {
		before := r.answeredByTCP(t)
		if _, err := r.askFor(goodPods[0], "tcp", backendName); err != nil {
			t.Fatal(err)
		}
		others = append(others, r.answeredByTCP(t)-before)
	}
	slices.Sort(others)
	t.Logf("answers to others meanwhile: %d", others)
	if n := others[rounds/2]; n > turns*clients {
		t.Errorf("others got %d answers before a new client got one; at most %d are expected", n, turns*clients)
	}
}

// answeredByTCP returns how many queries came by TCP so far.
func (r *rig) answeredByTCP(t *testing.T) (n int) {
	t.Helper()
	text, err := r.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if name, value, _ := strings.Cut(line, " "); strings.HasPrefix(name, "coredns_dns_requests_total{") &&
			strings.Contains(name, `proto="tcp"`) {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			n += int(v)
		}
	}
	return n
}

// A process that runs out of files serves on: the idlest connections make room, and half of the files are for
// other servers.
func TestAServerWithoutFilesServesOn(t *testing.T) {
	r, pid := newHostileRig(t, "prlimit", "--nofile=128:128")
	pods := addrsFrom("10.8.0.1", 64)
	for what, do := range map[string]func(context.Context, net.Conn) error{"idle": hostile.Idle,
		"slow": hostile.Slow(framed(t, backendName), 200*time.Millisecond)} {
		t.Run(what, func(t *testing.T) {
			r.meanwhile(t, pid, &hostile.Flood{NS: r.client, Target: "10.7.0.1:53", Sources: pods,
				Connections: 500, Do: do}, 500)
			if n := hostile.Descriptors(t, pid); n > 128 {
				t.Errorf("%d files are open", n)
			}
		})
	}
}

// Pods that ask for names that no server answers, each another, have no more than their share of the work:
// the process stays within its memory, and names of other servers are resolved for other pods.
func TestHostileNames(t *testing.T) {
	r, pid := newHostileRig(t)
	for what, from := range map[string][]netip.Addr{"one pod": addrsFrom("10.8.0.1", 1),
		"many pods": addrsFrom("10.8.0.1", 15)} {
		t.Run(what, func(t *testing.T) {
			var names atomic.Int64
			f := &hostile.Flood{NS: r.client, Network: "udp", Target: "10.7.0.1:53", Sources: from, Connections: 15,
				Do: func(ctx context.Context, c net.Conn) error {
					for ctx.Err() == nil {
						if _, err := c.Write(dnstest.Query(t, fmt.Sprintf("%d.dead.example.", names.Add(1)), dns.TypeA,
							nil)); err != nil && !errors.Is(err, net.ErrClosed) {
							return err
						}
						time.Sleep(time.Millisecond)
					}
					return nil
				}}
			hostile.ResetPeak(t, pid)
			stop := f.Start(t)
			testnet.Eventually(t, 60*time.Second, func() error { // as much as can be under way
				if n := names.Load(); n < 20000 {
					return fmt.Errorf("%d names were asked", n)
				}
				return nil
			})
			r.served(t, pid, r.pods(t))
			stop()
		})
	}
}
