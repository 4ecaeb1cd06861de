package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/schema"
)

// connections of the flood; eight times as many are the proxy's bound.
const floodConns = 1024

// perConn is what one may cost, so that all of the bound stay within the container's
// 512 MiB beside 100 MiB for the rest.
const perConn = (512 - 100) << 20 / 8192

// A flood of TLS connections costs the proxy's process so little for each that its bound
// on connections keeps it within its memory, also while each asks for something.
func TestAFloodFitsTheMemory(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	hold := make(chan struct{})
	var holding atomic.Int64
	go func() {
		_ = http.Serve(backend, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.URL.Path == "/hold" {
				holding.Add(1)
				<-hold
			}
			_, _ = io.WriteString(w, strings.Repeat("x", 64<<10))
		}))
	}()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(free.Addr().String())
	free.Close()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	f := feed.New(proxyTestUser, feed.NewKeeper("", log), log)
	f.Configure(schema.Settings{Drain: time.Millisecond, ConnectionsPerClient: -1})
	f.Listen([]schema.Socket{{Addr: addr, TLS: true}})
	if err := errors.Join(f.Hosts().Sync(ctx,
		map[string]schema.Host{"": {Paths: []schema.Path{{Kind: schema.Prefix, Path: "/", Backend: "b"}}}}),
		f.Backends().Sync(ctx, map[string]schema.Backend{
			"b": {Key: "b", Endpoints: []schema.Endpoint{{Addr: netip.MustParseAddrPort(backend.Addr().String())}}}}),
		f.Certificates().Sync(ctx, nil)); err != nil {
		t.Fatal(err)
	}
	dir, own := proxyDir(t), proxyDir(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(own, "proxy.sock")})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(own, "proxy.sock"), 0o666); err != nil {
		t.Fatal(err)
	}
	go func() { _ = f.Serve(ctx, l) }()
	startProxy(t, plainBinary(t, dir), own)
	health := filepath.Join(own, "health.sock")
	resident := func() (n float64, err error) {
		text, code, err := agent.Ask(t.Context(), health, "/metrics")
		if err != nil || code != http.StatusOK {
			return 0, fmt.Errorf("%d, %w", code, err)
		}
		for line := range strings.Lines(text) {
			if v, ok := strings.CutPrefix(line, "process_resident_memory_bytes "); ok {
				_, err = fmt.Sscan(v, &n)
				return n, err
			}
		}
		return 0, errors.New("no such metric")
	}
	testnet.Eventually(t, 30*time.Second, func() error {
		_, code, err := agent.Ask(t.Context(), health, "/readyz")
		if err == nil && code != http.StatusOK {
			err = errors.New("not ready")
		}
		return err
	})
	before, err := resident()
	if err != nil {
		t.Fatal(err)
	}
	open := make([]*tls.Conn, 0, floodConns)
	for i := range floodConns {
		c, err := tls.Dial("tcp", addr.String(), &tls.Config{InsecureSkipVerify: true,
			NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 64<<10 {
			t.Fatalf("connection %d: %d bytes, %v", i, n, err)
		}
		open = append(open, c)
	}
	check := func(when string) {
		t.Helper()
		after, err := resident()
		if err != nil {
			t.Fatal(err)
		}
		each := (after - before) / floodConns
		t.Logf("%s: %.0f KiB for each of %d connections; %.0f MiB in all", when, each/1024, floodConns, after/(1<<20))
		if each > perConn {
			t.Errorf("%s: %.0f bytes for each, %d are allowed", when, each, perConn)
		}
	}
	check("idle")
	for _, c := range open {
		if _, err := io.WriteString(c, "GET /hold HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	testnet.Eventually(t, 30*time.Second, func() error { // all wait for their endpoint
		if n := holding.Load(); n < floodConns {
			return fmt.Errorf("%d are there", n)
		}
		return nil
	})
	check("waiting for endpoints")
	close(hold)
}
