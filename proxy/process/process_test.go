package process

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/schema"
)

// Foreign clients of all versions, plain and encrypted, get the host's endpoint.
func TestEveryVersionServes(t *testing.T) {
	r := newRig(t)
	proto := func(w http.ResponseWriter, q *http.Request) {
		fmt.Fprintf(w, "%s %s %s", q.Host, q.Header.Get("X-Forwarded-Proto"), q.Header.Get("X-Forwarded-For"))
	}
	r.up(map[string]schema.Host{"app1.example.com": route("app1.example.com", "d/app1:80", "d/app1"),
		"app2.example.com": route("app2.example.com", "d/app2:80", "")},
		map[string]schema.Backend{"d/app1:80": r.backend("d/app1:80", proto), "d/app2:80": r.backend("d/app2:80",
			says("two"))},
		map[string]schema.Certificate{"d/app1": r.ca.issue("d/app1", "app1.example.com")})
	for _, http2 := range []bool{false, true} {
		c := r.client(http2)
		for _, scheme := range []string{"http", "https"} {
			resp, err := c.Get(scheme + "://app1.example.com/x")
			if err != nil {
				t.Errorf("HTTP/2 %v, %s: %v", http2, scheme, err)
				continue
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if want := "app1.example.com " + scheme + " 127.0.0.1"; string(body) != want ||
				resp.ProtoMajor == 2 != http2 {
				t.Errorf("HTTP/2 %v, %s: %s %q, want %q", http2, scheme, resp.Proto, body, want)
			}
		}
		if _, body, err := fetch(c, "http://app2.example.com/"); err != nil || body != "two" {
			t.Errorf("app2: %q, %v", body, err)
		}
		if status, _, err := fetch(c, "http://nobody.example.com/"); err != nil || status != 404 {
			t.Errorf("a host that nobody has: %d, %v", status, err)
		}
	}
}

// curl is a client that others wrote.
func TestCurl(t *testing.T) {
	testnet.Need(t, "curl")
	r := newRig(t)
	r.up(map[string]schema.Host{"app1.example.com": route("app1.example.com", "d/app1:80", "d/app1")},
		map[string]schema.Backend{"d/app1:80": r.backend("d/app1:80", func(w http.ResponseWriter, q *http.Request) {
			n, err := io.Copy(io.Discard, q.Body)
			fmt.Fprintf(w, "%s %d %v", q.Method, n, err)
		})},
		map[string]schema.Certificate{"d/app1": r.ca.issue("d/app1", "app1.example.com")})
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	to := []string{"--connect-to", "app1.example.com:80:" + r.plain.String(), "--connect-to", "app1.example.com:443:" +
		r.https.String()}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--http1.1", "http://app1.example.com/"}, "GET 0 <nil> 1.1 200"},
		{[]string{"--http1.0", "http://app1.example.com/"}, "GET 0 <nil> 1.1 200"},
		{[]string{"--http2-prior-knowledge", "http://app1.example.com/"}, "GET 0 <nil> 2 200"},
		{[]string{"-k", "--http1.1", "https://app1.example.com/"}, "GET 0 <nil> 1.1 200"},
		{[]string{"-k", "--http2", "https://app1.example.com/"}, "GET 0 <nil> 2 200"},
		{[]string{"-k", "--tlsv1.2", "--tls-max", "1.2", "https://app1.example.com/"}, "GET 0 <nil> 2 200"},
		{[]string{"--data-binary", "@" + big, "http://app1.example.com/"}, "POST 3145728 <nil> 1.1 200"},
		{[]string{"-H", "Transfer-Encoding: chunked", "--data-binary", "@" + big, "http://app1.example.com/"},
			"POST 3145728 <nil> 1.1 200"},
		{[]string{"-k", "--http2", "--data-binary", "@" + big, "https://app1.example.com/"},
			"POST 3145728 <nil> 2 200"},
		{[]string{"-k", "--http2", "-X", "PUT", "-H", "Expect: 100-continue", "--data-binary", "@" + big,
			"https://app1.example.com/"}, "PUT 3145728 <nil> 2 200"},
	} {
		args := append(append([]string{"-sS", "--max-time", "20", "-w", " %{http_version} %{http_code}"},
			to...), c.args...)
		out, err := exec.CommandContext(t.Context(), "curl", args...).CombinedOutput()
		if err != nil || string(out) != c.want {
			t.Errorf("curl %s: %q, %v; want %q", strings.Join(c.args, " "), out, err, c.want)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "curl",
		append([]string{"-sk", "--max-time", "5", "--tls-max", "1.1", "https://app1.example.com/"},
			to...)...).CombinedOutput(); err == nil {
		t.Errorf("TLS 1.1 is spoken: %q", out)
	}
}

// Each name gets its certificate, or the default one.
func TestSNI(t *testing.T) {
	r := newRig(t)
	b := r.backend("b", says("b"))
	hosts := map[string]schema.Host{}
	for name, cert := range map[string]string{
		"app1.example.com": "d/app1", "app2.example.com": "d/app2", "*.wild.example.com": "d/wild",
		"own.wild.example.com": "d/own", "bare.wild.example.com": "",
		"bare.other.com": "", "lost.example.com": "d/lost", "bad.example.com": "d/bad",
		"lost.wild.example.com": "d/lost",
	} {
		hosts[name] = route(name, "b", cert)
	}
	r.up(hosts, map[string]schema.Backend{"b": b}, map[string]schema.Certificate{
		"d/app1": r.ca.issue("d/app1", "app1.example.com"), "d/app2": r.ca.issue("d/app2", "app2.example.com"),
		"d/wild": r.ca.issue("d/wild", "*.wild.example.com"),
		"d/own":  r.ca.issue("d/own", "own.wild.example.com"), "d/bad": {Key: "d/bad", Chain: []byte("no PEM"),
			Priv: []byte("no PEM")}, "d/general": r.ca.issue("d/general", "general.example.com"),
	})
	const made = "Wayleave Ingress default certificate"
	check := func(general string, want map[string]string) {
		t.Helper()
		for name, cn := range want {
			if got, err := r.handshake(name); err != nil || got != cn {
				t.Errorf("default %q, name %q: certificate of %q, %v; want %q", general, name, got, err, cn)
			}
		}
	}
	same := map[string]string{
		"app1.example.com": "d/app1", "APP1.example.COM": "d/app1", "app2.example.com": "d/app2",
		"a.wild.example.com": "d/wild", "own.wild.example.com": "d/own",
		"bare.wild.example.com": "d/wild",
	}
	check("", same)
	check("", map[string]string{
		"": made, "nobody.com": made, "a.b.wild.example.com": made, "wild.example.com": made, "bare.other.com": made,
		"lost.example.com": made, "bad.example.com": made, "lost.wild.example.com": made,
	})
	// The default certificate is for all these, when there is one.
	r.feed.Configure(schema.Settings{DefaultCertificate: "d/general"})
	testnet.Eventually(t, 5*time.Second, func() error {
		if got, err := r.handshake("nobody.com"); err != nil || got != "d/general" {
			return fmt.Errorf("%q, %v", got, err)
		}
		return nil
	})
	check("d/general", same)
	check("d/general", map[string]string{"": "d/general", "bare.other.com": "d/general",
		"lost.example.com": "d/general", "bad.example.com": "d/general"})
	// A bad pair does not replace the last good one, and is reported.
	set := func(c schema.Certificate) {
		if err := r.feed.Certificates().Apply(t.Context(), map[string]schema.Certificate{c.Key: c}, nil); err != nil {
			t.Fatal(err)
		}
	}
	bad := r.ca.issue("d/app1", "app1.example.com")
	bad.Priv = r.ca.issue("d/app1", "app1.example.com").Priv
	set(bad)
	testnet.Eventually(t, 5*time.Second, func() error {
		if why := r.feed.Reports().Certificates["d/app1"]; !strings.Contains(why, "private key does not match") {
			return fmt.Errorf("reported: %q", why)
		}
		return nil
	})
	check("d/general", same)
	if why := r.feed.Reports().Certificates["d/bad"]; why == "" {
		t.Error("a certificate that is none is not reported")
	}
	set(r.ca.issue("d/app1", "app1.example.com"))
	testnet.Eventually(t, 5*time.Second, func() error {
		if why, ok := r.feed.Reports().Certificates["d/app1"]; ok {
			return fmt.Errorf("still reported: %q", why)
		}
		return nil
	})
	// One that goes leaves its host with the default one.
	if err := r.feed.Certificates().Apply(t.Context(), nil, []string{"d/app1"}); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		if got, err := r.handshake("app1.example.com"); err != nil || got != "d/general" {
			return fmt.Errorf("%q, %v", got, err)
		}
		return nil
	})
}

// Certificates change under handshakes: each client gets one of its host, and none fails.
func TestCertificatesRotateUnderHandshakes(t *testing.T) {
	r := newRig(t)
	names := []string{"app1.example.com", "app2.example.com"}
	hosts, certs := map[string]schema.Host{}, map[string]schema.Certificate{}
	for _, n := range names {
		hosts[n], certs[n] = route(n, "b", n), r.ca.issue(n, n)
	}
	r.up(hosts, map[string]schema.Backend{"b": r.backend("b", says("b"))}, certs)
	done := make(chan struct{})
	var clients sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	shakes := 0
	for _, n := range names {
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				c, err := tls.Dial("tcp", r.https.String(), &tls.Config{ServerName: n, RootCAs: r.ca.pool})
				if err != nil {
					t.Errorf("%s: %v", n, err)
					return
				}
				leaf := c.ConnectionState().PeerCertificates[0]
				c.Close()
				mu.Lock()
				seen[leaf.SerialNumber.String()] = true
				shakes++
				mu.Unlock()
			}
		})
	}
	shaken := func() int {
		mu.Lock()
		defer mu.Unlock()
		return shakes
	}
	for i := range 100 {
		n := names[i%2]
		if err := r.feed.Certificates().Apply(t.Context(), map[string]schema.Certificate{n: r.ca.issue(n, n)},
			nil); err != nil {
			t.Fatal(err)
		}
		before := shaken() // each is used before the next comes
		testnet.Eventually(t, 10*time.Second, func() error {
			if shaken() < before+2 {
				return fmt.Errorf("no handshakes")
			}
			return nil
		})
	}
	close(done)
	clients.Wait()
	t.Logf("%d handshakes through 100 rotations, %d certificates seen", shakes, len(seen))
	if len(seen) < 50 {
		t.Errorf("only %d certificates were seen in %d handshakes", len(seen), shakes)
	}
}

// A ticket spares the second handshake its certificate.
func TestSessionsResume(t *testing.T) {
	r := newRig(t)
	const n = "app1.example.com"
	r.up(map[string]schema.Host{n: route(n, "b", n)}, map[string]schema.Backend{"b": r.backend("b", says("b"))},
		map[string]schema.Certificate{n: r.ca.issue(n, n)})
	conf := &tls.Config{ServerName: n, RootCAs: r.ca.pool, ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		conf.MaxVersion = version
		for i := range 2 {
			c, err := tls.Dial("tcp", r.https.String(), conf)
			if err != nil {
				t.Fatal(err)
			}
			// TLS 1.3 sends its ticket behind the handshake: with the response at the latest.
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+n+"\r\nConnection: close\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(c); err != nil {
				t.Fatal(err)
			}
			if got := c.ConnectionState().DidResume; got != (i == 1) {
				t.Errorf("version %x, connection %d: resumed %v", version, i+1, got)
			}
			c.Close()
		}
		conf.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	}
}

// A client that shares a connection for another name gets 421 where it has not seen a
// certificate for that, and its answer where it has.
func TestMisdirectedRequests(t *testing.T) {
	r := newRig(t)
	hosts := map[string]schema.Host{}
	for n, c := range map[string]string{"a.example.com": "d/a", "b.example.com": "d/b", "x.wild.com": "d/wild",
		"y.wild.com": "d/wild"} {
		hosts[n] = route(n, "b", c)
	}
	r.up(hosts, map[string]schema.Backend{"b": r.backend("b", says("b"))}, map[string]schema.Certificate{
		"d/a": r.ca.issue("d/a", "a.example.com"), "d/b": r.ca.issue("d/b", "b.example.com"),
		"d/wild": r.ca.issue("d/wild", "*.wild.com")})
	for _, x := range []struct {
		sni, host string
		http2     bool
		want      int
	}{
		{"a.example.com", "a.example.com", true, 200}, {"a.example.com", "A.example.com:443", true, 200},
		{"a.example.com", "b.example.com", true, 421},
		{"x.wild.com", "y.wild.com", true, 200}, {"x.wild.com", "a.example.com", true, 421},
		{"a.example.com", "b.example.com", false, 200},
	} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+x.sni+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = x.host
		resp, err := r.client(x.http2).Do(req)
		if err != nil {
			t.Errorf("%+v: %v", x, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != x.want {
			t.Errorf("%+v: %d", x, resp.StatusCode)
		}
	}
}

// A proxy whose agent goes away goes on with what it has; the next agent takes its sockets
// over from it.
func TestAProxyOutlivesItsAgent(t *testing.T) {
	r := newRig(t)
	hosts := map[string]schema.Host{"a": route("a", "b", "c")}
	backends := map[string]schema.Backend{"b": r.backend("b", says("one"))}
	certs := map[string]schema.Certificate{"c": r.ca.issue("c", "a")}
	r.plan(r.feed, hosts, backends, certs)
	dir := t.TempDir()
	socket := filepath.Join(dir, "proxy.sock")
	stop := serveFeed(t, r.feed, socket)
	r.run(dir)
	c := r.client(false)
	serves := func(want string) error {
		for _, url := range []string{"http://a/", "https://a/"} {
			if _, body, err := fetch(c, url); err != nil || body != want {
				return fmt.Errorf("%s: %q, %v", url, body, err)
			}
		}
		return nil
	}
	if err := serves("one"); err != nil {
		t.Fatal(err)
	}
	stop()
	r.keeper.Keep(nil) // as the agent's end does
	if err := serves("one"); err != nil {
		t.Errorf("without agent: %v", err)
	}
	mustRemove(t, socket)
	next := feed.NewKeeper("", r.keeper.Log)
	next.Bind = func(k schema.Socket) (*os.File, error) { return nil, fmt.Errorf("%s is to be taken over", k) }
	r.feed = r.agent(next)
	backends["b"] = r.backend("b", says("two"))
	r.plan(r.feed, hosts, backends, certs)
	serveFeed(t, r.feed, socket)
	testnet.Eventually(t, 10*time.Second, func() error { return serves("two") })
	if f, err := next.Open(schema.Socket{Addr: r.plain}); err != nil {
		t.Errorf("the new agent has no socket to hand on: %v", err)
	} else {
		f.Close()
	}
	if f := r.feed.Failures(); len(f) > 0 {
		t.Errorf("failures: %v", f)
	}
	for _, e := range must(os.ReadDir(dir)) {
		if e.Type()&os.ModeSocket == 0 {
			t.Errorf("%s is on the disk", e.Name())
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// What a route leads to changes under load, and no request sees a route without its
// backend, though the two come by different ways.
func TestRoutesChangeUnderLoad(t *testing.T) {
	r := newRig(t)
	one, two := r.backend("one", says("ok")), r.backend("two", says("ok"))
	r.up(map[string]schema.Host{"a": route("a", "one", "")}, map[string]schema.Backend{"one": one}, nil)
	done := make(chan struct{})
	var clients sync.WaitGroup
	for _, http2 := range []bool{false, true} {
		clients.Go(func() {
			c := r.client(http2)
			for n := 0; ; n++ {
				select {
				case <-done:
					t.Logf("%d requests", n)
					return
				default:
				}
				if status, body, err := fetch(c, "http://a/"); err != nil || status != 200 || body != "ok" {
					t.Errorf("%d %q, %v", status, body, err)
					return
				}
			}
		})
	}
	ctx := t.Context()
	for i := range 250 {
		was, is := "one", two
		if i%2 == 1 {
			was, is = "two", one
		}
		// The worst order: the route first, then what it leads to; the old one is taken
		// away before the new one is there.
		err := r.feed.Hosts().Apply(ctx, map[string]schema.Host{"a": route("a", is.Key, "")}, nil)
		if err == nil {
			err = r.feed.Backends().Apply(ctx, nil, []string{was})
		}
		time.Sleep(2 * time.Millisecond) // so that the proxy could see it
		if err == nil {
			err = r.feed.Backends().Apply(ctx, map[string]schema.Backend{is.Key: is}, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	close(done)
	clients.Wait()
}

// The access log has a line of JSON for each request, whatever is in it.
func TestAccessLog(t *testing.T) {
	r := newRig(t)
	r.feed.Configure(schema.Settings{AccessLog: true})
	r.up(map[string]schema.Host{"a": route("a", "b", "")},
		map[string]schema.Backend{"b": r.backend("b", says("twelve bytes"))}, nil)
	c := r.client(false)
	req, _ := http.NewRequestWithContext(t.Context(), "GET", `http://a/x?q="quoted"%5c`, nil)
	req.Header.Set("User-Agent", "\"a\\b\"\xff\u00fc")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if _, _, err := fetch(c, "http://nobody/"); err != nil {
		t.Fatal(err)
	}
	var lines []map[string]any
	testnet.Eventually(t, 5*time.Second, func() error {
		lines = nil
		for s := bufio.NewScanner(strings.NewReader(r.log.String())); s.Scan(); {
			var m map[string]any
			if err := json.Unmarshal(s.Bytes(), &m); err != nil {
				t.Fatalf("%s: %v", s.Text(), err)
			}
			lines = append(lines, m)
		}
		if len(lines) != 2 {
			return fmt.Errorf("%d lines", len(lines))
		}
		return nil
	})
	if lines[0]["host"] != "a" { // each exchange writes its own
		slices.Reverse(lines)
	}
	for k, want := range map[string]any{"client": "127.0.0.1", "method": "GET", "host": "a",
		"target": `/x?q="quoted"%5c`, "protocol": "HTTP/1.1", "tls": false, "status": 200.0, "sent": 12.0,
		"backend": "b", "route": "Ingress default/b", "tries": 1.0, "userAgent": "\"a\\b\"\ufffdü"} {
		if got := lines[0][k]; got != want {
			t.Errorf("%s: %v, want %v", k, got, want)
		}
	}
	if lines[1]["status"] != 404.0 || lines[1]["endpoint"] != nil {
		t.Errorf("%v", lines[1])
	}
}

// Metrics count requests by the routes' hosts; what strangers ask for makes no label.
func TestMetrics(t *testing.T) {
	r := newRig(t)
	r.plan(r.feed, map[string]schema.Host{"a": route("a", "b", ""), "c": route("c", "none", "")},
		map[string]schema.Backend{"b": r.backend("b", says("b")), "none": {Key: "none"}},
		map[string]schema.Certificate{"good": r.ca.issue("good", "a"), "bad": {Key: "bad"}})
	dir := t.TempDir()
	serveFeed(t, r.feed, filepath.Join(dir, "proxy.sock"))
	r.run(dir)
	c := r.client(false)
	for i := range 20 {
		for _, url := range []string{"http://a/", "http://c/", fmt.Sprintf("http://stranger%d/", i)} {
			if _, _, err := fetch(c, url); err != nil {
				t.Fatal(err)
			}
		}
	}
	var text string
	testnet.Eventually(t, 5*time.Second, func() (err error) { // a request is counted behind its end
		if text, err = get(filepath.Join(dir, "health.sock"), "/metrics"); err != nil {
			return err
		}
		for _, want := range []string{
			`wayleave_proxy_requests_total{host="a",status="2xx"} 20`,
			`wayleave_proxy_requests_total{host="c",status="5xx"} 20`,
			`wayleave_proxy_requests_total{host="none",status="4xx"} 20`,
			`wayleave_proxy_certificates{state="bad"} 1`, `wayleave_proxy_certificates{state="good"} 1`,
			`wayleave_proxy_listeners 2`, `wayleave_proxy_request_duration_seconds_count 60`,
		} {
			if !strings.Contains(text, want+"\n") {
				return fmt.Errorf("%s is missing", want)
			}
		}
		return nil
	})
	if strings.Contains(text, "stranger") {
		t.Error("a stranger's host is a label")
	}
	m := &metrics{}
	m.hosts.Store(&map[string]*hostCounts{})
	for i := range 3 * mostHosts {
		m.host(fmt.Sprint(i))[0].Add(1)
	}
	if n := len(*m.hosts.Load()); n > mostHosts+1 {
		t.Errorf("%d hosts have labels", n)
	}
}

// A proxy that has none of the sockets that it should have is not ready.
func TestAProxyWithoutItsSocketsIsNotReady(t *testing.T) {
	r := newRig(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	r.plan(r.feed, nil, nil, nil)
	r.feed.Listen([]schema.Socket{{Addr: netip.MustParseAddrPort(taken.Addr().String())}})
	dir := t.TempDir()
	serveFeed(t, r.feed, filepath.Join(dir, "proxy.sock"))
	r.start(dir)
	testnet.Eventually(t, 10*time.Second, func() error {
		text, err := get(filepath.Join(dir, "health.sock"), "/metrics")
		if err == nil && (len(r.feed.Failures()) == 0 || strings.Contains(text, "wayleave_proxy_updates_total 0\n")) {
			err = fmt.Errorf("nothing is told yet")
		}
		return err
	})
	if err := ready(filepath.Join(dir, "health.sock")); err == nil {
		t.Error("it is ready")
	}
	taken.Close()
	testnet.Eventually(t, 10*time.Second, func() error { return ready(filepath.Join(dir, "health.sock")) })
}

// Where Ingress is off, the proxy has nothing to do, and is ready.
func TestAProxyWithNothingToDoIsReady(t *testing.T) {
	r := newRig(t)
	r.feed.Listen(nil)
	r.up(nil, nil, nil)
	if c, err := net.DialTimeout("tcp", r.plain.String(), time.Second); err == nil {
		c.Close()
		t.Error("it listens")
	}
}

// Nodes' proxies have one secret: the cookie of one leads to the same endpoint by every
// other, after restarts too. Who has not the secret does not find an address by trying.
func TestAffinityCookiesAreGoodOnEveryNode(t *testing.T) {
	r := newRig(t)
	b := schema.Backend{Key: "b"}
	for _, name := range []string{"x", "y", "z"} {
		b.Endpoints = append(b.Endpoints, r.backend("b", says(name)).Endpoints...)
	}
	h := route("a", "b", "")
	h.Paths[0].Options = &schema.Options{Affinity: &schema.Affinity{Name: "route"}}
	node := func(secret string) *rig {
		n := newRig(t)
		n.settings.Secret = []byte(secret)
		n.feed.Configure(n.settings)
		n.up(map[string]schema.Host{"a": h}, map[string]schema.Backend{"b": b}, nil)
		return n
	}
	ask := func(n *rig, cookie string) (body, set string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if cookie != "" {
			req.Header.Set("Cookie", "route="+cookie)
		}
		resp, err := n.client(false).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %v", resp.Status, err)
		}
		for _, c := range resp.Cookies() {
			set = c.Value
		}
		return string(raw), set
	}
	one, two, none := node("the cluster's"), node("the cluster's"), node("")
	first, cookie := ask(one, "")
	if cookie == "" {
		t.Fatal("no cookie")
	}
	again := node("the cluster's")
	for range 20 {
		for name, n := range map[string]*rig{"the same node": one, "another node": two,
			"one that started later": again} {
			if got, set := ask(n, cookie); got != first || set != "" {
				t.Fatalf("%s: endpoint %s with cookie %q, want %s and none", name, got, set, first)
			}
		}
	}
	// Without the secret, the endpoint of that cookie is not found.
	if _, set := ask(none, cookie); set == "" || set == cookie {
		t.Errorf("without the secret the cookie %s is good; it sets %q", cookie, set)
	}
	// A secret that changes is in force at once.
	one.settings.Secret = []byte("another")
	one.feed.Configure(one.settings)
	testnet.Eventually(t, 10*time.Second, func() error {
		if _, set := ask(one, cookie); set == "" || set == cookie {
			return fmt.Errorf("the old secret is in force; it sets %q", set)
		}
		return nil
	})
}
