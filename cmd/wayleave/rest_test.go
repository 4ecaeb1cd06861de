package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wayleave.dev/agent"
	dnsfeature "wayleave.dev/agent/dns"
	"wayleave.dev/agent/ingress"
	"wayleave.dev/config"
	"wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/server"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	kubesource "wayleave.dev/source/kubernetes"
)

// containerChild is what a child of TestContainersOfFeaturesThatAreOff does: the words of
// wayleave's command line, or "feeds" for the agent's part of it.
const containerChild = "WAYLEAVE_TEST_CONTAINER"

// TestContainerChild is a process in a container's root folder.
func TestContainerChild(t *testing.T) {
	words := strings.Fields(os.Getenv(containerChild))
	if len(words) == 0 {
		return // it is only there for the other
	}
	if words[0] == "replace" {
		for _, path := range words[1:] {
			if err := replace(path); !errors.Is(err, os.ErrPermission) {
				t.Errorf("user %d, in the place of %s: %v", os.Getuid(), path, err)
			}
		}
		return
	}
	if words[0] != "feeds" && words[0] != "outside" {
		c := root()
		c.SetArgs(words)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		if err := c.ExecuteContext(ctx); err != nil {
			t.Fatal(err)
		}
		return
	}
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	all := []agent.Feature{dnsfeature.New(), ingress.New()}
	a := &agent.Node{Name: "n", Core: agent.NewCore(log, store, config.Config{}, all)}
	a.Client = &kubesource.Client{}
	if words[0] == "outside" { // with a client that nothing can be asked of
		a.Config.Ingress.Enabled, a.Config.Ingress.NodeSelector = true, map[string]string{"ingress": "yes"}
		if err := store.Write(func(w *model.Writer) { w.PutNode(&model.Node{Name: "n", Ready: true}) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	var parts []func(context.Context) error
	for _, p := range a.Always() {
		parts = append(parts, p.Run)
	}
	t.Error(agent.All(t.Context(), parts...))
}

// replace puts a socket in the place of another, as a captured process would.
func replace(path string) error {
	own := path + ".new"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: own})
	if err != nil {
		own = filepath.Join("/own", filepath.Base(path))
		if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: own}); err != nil {
			return err
		}
	}
	defer l.Close()
	if err := os.Rename(own, path); err != nil {
		return errors.Join(err, os.Remove(own))
	}
	return nil
}

// A pod with DNS and Ingress off, or outside of ingress.nodeSelector: its containers start with nothing from before,
// and with
// names from before; their probes say that they are ready, and nothing listens.
func TestContainersOfFeaturesThatAreOff(t *testing.T) {
	base := proxyDir(t)
	binary := plainBinary(t, base)

	for _, tc := range []struct{ name, state, agent string }{
		{"fresh", "", "feeds"}, {"with names of before", `{"version":2,"settings":{},"entries":[]}`, "feeds"},
		{"outside of ingress.nodeSelector", "", "outside"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := testnet.ShortDir(t)
			for _, d := range []string{"pod", "pod-dns", "pod-proxy", "own", "run/wayleave", "tmp"} {
				if err := os.MkdirAll(filepath.Join(pod, d), 0o777); err != nil {
					t.Fatal(err)
				}
			}
			for _, d := range []string{filepath.Dir(pod), pod, filepath.Join(pod, "pod-dns"),
				filepath.Join(pod, "pod-proxy"), filepath.Join(pod, "own"), filepath.Join(pod, "tmp")} {
				if err := os.Chmod(d, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Link(binary, filepath.Join(pod, "wayleave")); err != nil {
				t.Fatal(err)
			}
			if tc.state != "" {
				if err := os.WriteFile(filepath.Join(pod, "own/snapshot"), []byte(tc.state), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			command := func(user uint32, words string) (*exec.Cmd, *said) {
				cmd := exec.Command("/wayleave", "-test.run=^TestContainerChild$")
				cmd.Dir, cmd.Env = "/", []string{containerChild + "=" + words, "GOMAXPROCS=2"}
				cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: pod, Credential: &syscall.Credential{Uid: user,
					Gid: user}, Pdeathsig: syscall.SIGKILL}
				out := &said{}
				cmd.Stdout, cmd.Stderr = out, out
				return cmd, out
			}
			start := func(user uint32, words string) {
				t.Helper()
				cmd, out := command(user, words)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					_ = cmd.Process.Kill()
					_ = cmd.Wait()
					if t.Failed() {
						t.Logf("%s: %s", words, out)
					}
				})
			}
			probe := func(user uint32, words string) error {
				cmd, out := command(user, words)
				if err := cmd.Run(); err != nil {
					return fmt.Errorf("%s: %w: %s", words, err, out)
				}
				return nil
			}
			start(dnsfeature.User, "dns")
			start(ingress.User, "proxy")
			testnet.Eventually(t, 20*time.Second, func() error {
				return errors.Join(probe(dnsfeature.User, "health dns --live"),
					probe(ingress.User, "health proxy --live"))
			})
			if probe(dnsfeature.User, "health dns") == nil || probe(ingress.User, "health proxy") == nil {
				t.Error("ready before an agent said anything")
			}
			start(0, tc.agent)
			testnet.Eventually(t, 20*time.Second, func() error {
				return errors.Join(probe(dnsfeature.User, "health dns"), probe(ingress.User, "health proxy"))
			})
			for _, user := range []uint32{dnsfeature.User, ingress.User} {
				if err := probe(user, "replace /pod-dns/feed.sock /pod-proxy/feed.sock"); err != nil {
					t.Error(err)
				}
			}
			for _, s := range []string{"own/dns-health.sock", "own/proxy-health.sock"} {
				text, _, err := agent.Ask(t.Context(), filepath.Join(pod, s), "/metrics")
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(text, "wayleave_proxy_listeners ") &&
					!strings.Contains(text, "wayleave_proxy_listeners 0\n") {
					t.Error("the proxy listens")
				}
			}
		})
	}
}

// said is what a process prints.
type said struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A server that had sockets and names from an agent with DNS closes them when the next
// agent says that DNS is off.
func TestDNSThatIsSwitchedOffClosesItsSockets(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(free.LocalAddr().String())
	free.Close()
	serve := func(f *dns.Feed) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "dns.sock")})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { defer close(done); _ = f.Serve(ctx, l) }()
		return func() { cancel(); <-done }
	}
	on := &dns.Feed{Open: dns.OpenSocket, Log: log}
	if err := on.Sync(t.Context(), map[model.Name]schema.Records{}); err != nil {
		t.Fatal(err)
	}
	on.Configure(schema.Settings{Domains: []string{"cluster.local."}})
	on.Listen([]schema.Socket{{Network: "udp", Addr: addr}})
	stop := serve(on)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Run(ctx, server.Config{Socket: filepath.Join(dir, "dns.sock"),
			StateFile:    filepath.Join(dir, "snapshot"),
			HealthSocket: filepath.Join(dir, "health.sock"), Log: log})
	}()
	t.Cleanup(func() { cancel(); <-done })
	bound := func() bool {
		c, err := net.ListenPacket("udp", addr.String())
		if err == nil {
			c.Close()
		}
		return err != nil
	}
	ready := func() error {
		_, err := dns.Get(t.Context(), filepath.Join(dir, "health.sock"), "/readyz")
		return err
	}
	testnet.Eventually(t, 10*time.Second, ready)
	if !bound() {
		t.Fatal("nothing is bound while DNS is on")
	}
	stop()
	off := &dns.Feed{Open: dns.OpenSocket, Log: log}
	off.Disable()
	t.Cleanup(serve(off))
	testnet.Eventually(t, 10*time.Second, func() error {
		if bound() {
			return errors.New("the socket is open")
		}
		return ready()
	})
}
