package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/internal/execfile"
	"wayleave.dev/internal/logging"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/process"
	"wayleave.dev/proxy/schema"
)

// proxyChild names the folder that the child of TestProxyProcesses works in.
const proxyChild = "WAYLEAVE_TEST_PROXY"

// proxyTestUser is the user that the manifest gives the container.
const proxyTestUser = 65533

// TestProxyChild is the process that TestProxyProcesses starts.
func TestProxyChild(t *testing.T) {
	dir := os.Getenv(proxyChild)
	if dir == "" {
		return // it is only there for the other
	}
	endWithParent()
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGTERM)
	defer stop()
	logs := logging.New(os.Stderr, logging.Settings{})
	err := process.Run(ctx, process.Config{Socket: filepath.Join(dir, "proxy.sock"), HealthSocket: filepath.Join(dir,
		"health.sock"), MetricsSocket: filepath.Join(dir, "metrics.sock"), Version: version,
		AccessLog: errorLines(filepath.Join(dir, proxyErrors)), Log: logs.Logger(), Logs: logs})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// proxyErrors is the file for the lines of the child's access log that name an error, when
// the agent has it write one.
const proxyErrors = "errors.log"

type errorLines string

func (name errorLines) Write(p []byte) (int, error) {
	f, err := os.OpenFile(string(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for line := range strings.Lines(string(p)) {
		if strings.Contains(line, `"error":`) {
			if _, err := f.WriteString(line); err != nil {
				return 0, err
			}
		}
	}
	return len(p), nil
}

// proxyDir is a folder that the proxy's user may write to, as the pod's is.
func proxyDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// endWithParent ends this process when the one that started it has ended.
func endWithParent() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
}

// startProxy runs the child as the proxy's user, until stop tells it to end; it must then
// end by itself.
func startProxy(t *testing.T, binary, dir string) (stop func()) {
	t.Helper()
	return startProxyIn(t, nil, binary, dir)
}

// startProxyIn is startProxy in a namespace, nil for that of the test.
func startProxyIn(t *testing.T, ns *testnet.NS, binary, dir string) (stop func()) {
	t.Helper()
	cmd := exec.Command(binary, "-test.run=^TestProxyChild$")
	cmd.Dir = dir
	cmd.Env = []string{proxyChild + "=" + dir, "GOMAXPROCS=2"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: proxyTestUser, Gid: proxyTestUser}}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if _, err := cmd.StdinPipe(); err != nil { // see endWithParent
		t.Fatal(err)
	}
	start := cmd.Start
	if ns != nil {
		start = func() error { return ns.Do(cmd.Start) }
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("SIGTERM: %v", err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the proxy ended with %v: %s", err, out.String())
		}
	})
	t.Cleanup(stop)
	return stop
}

// testBinary is this program where other users may run it.
func testBinary(t *testing.T, dir string) string {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "test")
	if err := execfile.Install(name, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// Processes without any right serve one after the other: each ends by SIGTERM while the
// next has its sockets, and no connection is refused, nor a request lost.
func TestProxyProcesses(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = http.Serve(backend, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "ok")
		}))
	}()
	defer backend.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(free.Addr().String())
	free.Close()
	dir := proxyDir(t)
	binary := testBinary(t, dir)
	pod := func() (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		keeper := feed.NewKeeper(filepath.Join(dir, "sockets.sock"), log)
		if err := keeper.Inherit(ctx); err != nil {
			t.Fatal(err)
		}
		var running sync.WaitGroup
		running.Go(func() { _ = keeper.Serve(ctx) })
		f := feed.New(proxyTestUser, keeper, log)
		f.Configure(schema.Settings{Drain: 10 * time.Second})
		f.Listen([]schema.Socket{{Addr: addr}})
		if err := errors.Join(f.Hosts().Sync(ctx,
			map[string]schema.Host{"": {Paths: []schema.Path{{Kind: schema.Prefix, Path: "/", Backend: "b"}}}}),
			f.Backends().Sync(ctx, map[string]schema.Backend{
				"b": {Key: "b", Endpoints: []schema.Endpoint{
					{Addr: netip.MustParseAddrPort(backend.Addr().String())}}}}),
			f.Certificates().Sync(ctx, nil)); err != nil {
			t.Fatal(err)
		}
		own := proxyDir(t)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(own, "proxy.sock")})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(own, "proxy.sock"), 0o666); err != nil {
			t.Fatal(err)
		}
		running.Go(func() { _ = f.Serve(ctx, l) })
		end := startProxy(t, binary, own)
		testnet.Eventually(t, 20*time.Second, func() error {
			text, code, err := agent.Ask(t.Context(), filepath.Join(own, "health.sock"), "/readyz")
			if err == nil && code != http.StatusOK {
				err = errors.New(text)
			}
			return err
		})
		return func() {
			cancel()
			running.Wait()
			keeper.Keep(nil)
			end()
		}
	}
	stop := pod()
	var asked, lost atomic.Int64
	var first atomic.Value
	var askers sync.WaitGroup
	done := make(chan struct{})
	for i := range 6 {
		c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: i%2 == 0}}
		askers.Go(func() {
			for tick := time.NewTicker(4 * time.Millisecond); ; {
				select {
				case <-done:
					tick.Stop()
					c.CloseIdleConnections()
					return
				case <-tick.C:
				}
				asked.Add(1)
				resp, err := c.Post("http://"+addr.String()+"/", "text/plain", strings.NewReader("x"))
				if err == nil {
					_, err = io.ReadAll(resp.Body)
					resp.Body.Close()
					if err == nil && resp.StatusCode != http.StatusOK {
						err = errors.New(resp.Status)
					}
				}
				if err != nil {
					lost.Add(1)
					first.CompareAndSwap(nil, err.Error())
				}
			}
		})
	}
	for range 4 {
		next := pod()
		before := asked.Load()
		testnet.Eventually(t, 20*time.Second, func() error { // both accept
			if asked.Load() < before+100 {
				return errors.New("no load")
			}
			return nil
		})
		stop()
		stop = next
	}
	close(done)
	askers.Wait()
	stop()
	t.Logf("%d requests through 4 upgrades", asked.Load())
	if lost.Load() > 0 {
		t.Errorf("%d of %d requests are lost, the first: %v", lost.Load(), asked.Load(), fmt.Sprint(first.Load()))
	}
}

// plainBinary is the test's program without the race detector, which takes many times the
// memory: of a process that is measured.
func plainBinary(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(dir, "test")
	build := exec.Command("go", "test", "-c", "-o", name, "wayleave.dev/cmd/wayleave")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return name
}
