package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/server"
	"wayleave.dev/dns/zone"
	"wayleave.dev/internal/logging"
	"wayleave.dev/internal/lossmeter"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// dnsChild names the folder that the child of TestAKilledDNSServer works in.
const dnsChild = "WAYLEAVE_TEST_DNS"

// TestDNSChild is the process that TestAKilledDNSServer kills.
func TestDNSChild(t *testing.T) {
	dir := os.Getenv(dnsChild)
	if dir == "" {
		return // it is only there for the other
	}
	go func() { // ends with its parent
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	logs := logging.New(os.Stderr, logging.Settings{})
	_ = server.Run(t.Context(), server.Config{Socket: filepath.Join(dir, "dns.sock"), StateFile: filepath.Join(dir,
		"snapshot"), HealthSocket: filepath.Join(dir, "health.sock"), MetricsSocket: filepath.Join(dir, "metrics.sock"),
		Version: version, Log: logs.Logger(), Logs: logs})
}

// A DNS server that is killed, again and again, costs no query that is asked twice:
// while it is away, another node's answers.
func TestAKilledDNSServer(t *testing.T) {
	n := newDNSNode(t)
	name := model.Name{Namespace: "default", Name: "backend"}
	entries := func() map[model.Name]schema.Records {
		return map[model.Name]schema.Records{name: {VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.50")}}}
	}
	feed := &dns.Feed{Log: slog.New(slog.DiscardHandler), Open: func(k schema.Socket) (f *os.File, err error) {
		err = n.node.Do(func() error {
			f, err = dns.OpenSocket(k)
			return err
		})
		return f, err
	}}
	if err := feed.Sync(t.Context(), entries()); err != nil {
		t.Fatal(err)
	}
	n.place(t, feed)
	dir := t.TempDir()
	serveFeed(t, feed, filepath.Join(dir, "dns.sock"))
	otherDNS(t, n, entries())
	kill := startDNS(t, dir)
	ready := func() error {
		_, err := dns.Get(t.Context(), filepath.Join(dir, "health.sock"), "/readyz")
		return err
	}
	testnet.Eventually(t, 20*time.Second, ready)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	var report lossmeter.Report
	var err error
	go func() {
		defer close(done)
		report, err = lossmeter.Run(ctx, n.pod.Dial,
			[]lossmeter.Probe{{Kind: "dns", Target: n.vip.String() + ":53/backend.default.svc.cluster.local.",
				Rate: 300, Patience: 3 * time.Second}})
	}()
	for range 4 {
		time.Sleep(300 * time.Millisecond) // traffic with the server
		kill()
		if ready() == nil {
			t.Error("a killed server says that it is ready")
		}
		time.Sleep(300 * time.Millisecond) // and without it
		kill = startDNS(t, dir)
		testnet.Eventually(t, 20*time.Second, ready)
	}
	cancel()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	if c := report.Counts[0]; c.Unanswered > 0 || c.Sent < 500 {
		t.Errorf("queries that a second try did not get either, or too few in all:\n%s", report)
	}
	t.Logf("%s", report)
}

// startDNS starts a server as a process of its own; kill ends it with SIGKILL.
func startDNS(t *testing.T, dir string) (kill func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestDNSChild$")
	cmd.Env = append(os.Environ(), dnsChild+"="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill = func() {
		if killed {
			return
		}
		killed = true
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // says that it was killed
		stdin.Close()
	}
	t.Cleanup(kill)
	return kill
}

func serveFeed(t *testing.T, feed *dns.Feed, path string) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = feed.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
}

// otherDNS is the server of the other node.
func otherDNS(t *testing.T, n *dnsNode, entries map[model.Name]schema.Records) {
	zone := zone.New()
	zone.Reset(entries)
	s := server.New(zone, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	s.Configure(schema.Settings{Domains: []string{"cluster.local."},
		Clients: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}})
	s.Listen(schema.Socket{Network: "udp", Addr: netip.MustParseAddrPort("172.30.0.12:10053")}, nil,
		n.other.ListenPacket("udp4", "172.30.0.12:10053"))
	t.Cleanup(func() { s.Keep(nil) })
}
