package ingress

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/process"
	"wayleave.dev/proxy/schema"
)

// node is a proxy process that listens, the feed of an agent, and a server for each backend.
type node struct {
	t, root      *testing.T
	feed         *feed.Feed
	plain, https string
	servers      map[string]netip.AddrPort
	many         map[string][]netip.AddrPort // backends with several endpoints
	round        int
}

func newNode(t *testing.T) *node {
	n := &node{t: t, root: t, servers: map[string]netip.AddrPort{}}
	log := slog.New(slog.DiscardHandler)
	keeper := feed.NewKeeper("", log)
	var list []schema.Socket
	for _, encrypted := range []bool{false, true} {
		f, err := feed.OpenSocket(schema.Socket{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.FileListener(f)
		if err != nil {
			t.Fatal(err)
		}
		k := schema.Socket{Addr: netip.MustParseAddrPort(l.Addr().String()), TLS: encrypted}
		l.Close()
		if err := keeper.Adopt(k, f); err != nil {
			t.Fatal(err)
		}
		if list = append(list, k); encrypted {
			n.https = k.Addr.String()
		} else {
			n.plain = k.Addr.String()
		}
	}
	n.feed = feed.New(65533, keeper, log)
	n.feed.Configure(schema.Settings{Drain: time.Second})
	n.feed.Listen(list)
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "feed.sock")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- n.feed.Serve(ctx, l) }()
	go func() {
		done <- process.Run(ctx, process.Config{Socket: filepath.Join(dir, "feed.sock"),
			HealthSocket: filepath.Join(dir, "health.sock"), Log: log})
	}()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v", err)
			}
		}
	})
	return n
}

// server answers with the backend's key.
func (n *node) server(key string) netip.AddrPort {
	if a, ok := n.servers[key]; ok {
		return a
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, key) }))
	n.root.Cleanup(s.Close)
	a := netip.MustParseAddrPort(s.Listener.Addr().String())
	n.servers[key] = a
	return a
}

// play has the proxy serve the plans, with servers of the test as endpoints, and waits
// until it does.
func (n *node) play(plans map[Key]Plan) {
	n.t.Helper()
	n.round++
	mine := map[Key]Plan{}
	for k, p := range plans {
		if p.Backend != nil && len(p.Backend.Endpoints) > 0 {
			p.Backend = &schema.Backend{Key: p.Backend.Key}
			for _, a := range n.many[k.Name] {
				p.Backend.Endpoints = append(p.Backend.Endpoints, schema.Endpoint{Addr: a})
			}
			if len(p.Backend.Endpoints) == 0 {
				p.Backend.Endpoints = []schema.Endpoint{{Addr: n.server(k.Name)}}
			}
		}
		mine[k] = p
	}
	mark := fmt.Sprintf("round%d.test", n.round)
	mine[Key{BackendKey, "test/mark:1"}] = Plan{Backend: &schema.Backend{Key: "test/mark:1",
		Endpoints: []schema.Endpoint{{Addr: n.server("test/mark:1")}}}}
	mine[Key{HostKey, mark}] = Plan{Host: &schema.Host{Name: mark,
		Paths: []schema.Path{{Kind: schema.Prefix, Path: "/", Backend: "test/mark:1"}}}}
	if err := (Target{n.feed.Hosts(), n.feed.Backends(), n.feed.Certificates()}).Sync(n.t.Context(), mine); err != nil {
		n.t.Fatal(err)
	}
	testnet.Eventually(n.t, 10*time.Second, func() error {
		if got := n.answer("http://" + mark + "/"); got != "test/mark:1" {
			return errors.New(got)
		}
		return nil
	})
}

// answer is what answer says, by a request whose path goes as it is written.
func (n *node) answer(url string) string {
	scheme, rest, _ := strings.Cut(url, "://")
	host, path, _ := strings.Cut(rest, "/")
	name, _, _ := strings.Cut(host, ":")
	var conn net.Conn
	var err error
	if scheme == "https" {
		conn, err = tls.Dial("tcp", n.https, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	} else {
		conn, err = net.Dial("tcp", n.plain)
	}
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path,
		host); err != nil {
		return err.Error()
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err.Error()
	}
	body, err := io.ReadAll(resp.Body)
	switch to := resp.Header.Get("Location"); {
	case err != nil:
		return err.Error()
	case resp.StatusCode == http.StatusOK:
		return string(body)
	case resp.StatusCode == 308 && to == "https://"+strings.ToLower(name)+"/"+path:
		return "308 https"
	case to != "":
		return fmt.Sprintf("%d %s", resp.StatusCode, to)
	}
	return fmt.Sprint(resp.StatusCode)
}

// presented is the first certificate of a handshake for a name.
func (n *node) presented(name string) string {
	conn, err := tls.Dial("tcp", n.https, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	return string(conn.ConnectionState().PeerCertificates[0].Raw)
}

// The same cases by requests and handshakes.
func TestIngressCasesOverSockets(t *testing.T) {
	base, n := sampleYAML(t), newNode(t)
	// Without a plan there is only the self-signed certificate.
	n.play(nil)
	unsigned := n.presented("nobody.example")
	if _, err := x509.ParseCertificate([]byte(unsigned)); err != nil {
		t.Fatalf("the default certificate: %v", err)
	}
	asked := 0
	for _, tc := range ingressCases() {
		t.Run(tc.name, func(t *testing.T) {
			w := newFixture(t, tc.settings, base+tc.yaml)
			n.t = t
			n.play(w.plans)
			for _, line := range tc.want {
				q, want, _ := strings.Cut(line, " = ")
				if strings.HasPrefix(q, "opts ") {
					continue // what options do is proxy's to test
				}
				asked++
				name, ok := strings.CutPrefix(q, "cert ")
				if !ok {
					got := n.answer(q)
					for range 30 { // of a weight of 10 % that is once in 10^30
						if tc.sometimes == "" || got != tc.sometimes {
							break
						}
						got = n.answer(q)
					}
					if got != want {
						t.Errorf("%s is %s, want %s", q, got, want)
					}
					continue
				}
				raw := unsigned
				if want != "default" {
					s, _ := w.store.Snapshot().Secret(parseName(want))
					block, _ := pem.Decode(s.Chain)
					raw = string(block.Bytes)
				}
				if n.presented(name) != raw {
					t.Errorf("%s got another certificate than %s", name, want)
				}
			}
		})
	}
	n.t = t
	if asked < 120 {
		t.Errorf("only %d questions", asked)
	}
}
