package ingress

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/schema"
)

// fieldCase plans a manifest that users of ingress-nginx have.
func fieldCase(t *testing.T, name string) *fixture {
	t.Helper()
	raw, err := os.ReadFile("testdata/field/" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	return newFixture(t, Settings{AdoptNginx: true}, string(raw))
}

// noProblems fails where an Ingress is told something.
func (w *fixture) noProblems() {
	w.t.Helper()
	if all := w.allProblems(); len(all) > 0 {
		w.t.Errorf("problems:\n%s", strings.Join(all, "\n"))
	}
}

// serveBackend has a backend answered by h, over TLS or plain.
func (n *node) serveBackend(key string, encrypted bool, h http.HandlerFunc) {
	s := httptest.NewUnstartedServer(h)
	if encrypted {
		s.StartTLS()
	} else {
		s.Start()
	}
	n.root.Cleanup(s.Close)
	n.servers[key] = netip.MustParseAddrPort(s.Listener.Addr().String())
}

// ask sends a request from an address of the loopback network and returns the response.
func (n *node) ask(from, url string, fields ...string) (*http.Response, string) {
	n.t.Helper()
	scheme, rest, _ := strings.Cut(url, "://")
	host, path, _ := strings.Cut(rest, "/")
	dialer := &net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	var conn net.Conn
	var err error
	if scheme == "https" {
		conn, err = tls.DialWithDialer(dialer, "tcp", n.https, &tls.Config{ServerName: host, InsecureSkipVerify: true})
	} else {
		conn, err = dialer.Dial("tcp", n.plain)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n", path, host,
		strings.Join(append(fields, ""), "\r\n")); err != nil {
		n.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return resp, string(body)
}

// expect plays the plans and asks; each line is "URL = ANSWER".
func (n *node) expect(w *fixture, lines ...string) {
	n.t.Helper()
	n.play(w.plans)
	for _, line := range lines {
		url, want, _ := strings.Cut(line, " = ")
		if got := n.answer(url); got != want {
			n.t.Errorf("%s is %s, want %s", url, got, want)
		}
	}
}

// A boolean in capitals keeps a canary the canary, and plain requests plain.
func TestBooleansInCapitals(t *testing.T) {
	n, w := newNode(t), fieldCase(t, "01-bool-capital")
	w.noProblems()
	n.play(w.plans)
	got := map[string]int{}
	for range 300 {
		got[n.answer("http://one.bugs.test/")]++
	}
	if got["bugs/main:80"] < 200 || got["bugs/trial:80"] == 0 || got["bugs/main:80"]+got["bugs/trial:80"] != 300 {
		t.Errorf("answers of a canary of 10 %%: %v", got)
	}
	if resp, _ := n.ask("127.0.0.1", "http://one.bugs.test/", "Origin: https://x.test"); resp.Header.Get(
		"Access-Control-Allow-Origin") != "*" {
		t.Errorf("fields: %v", resp.Header)
	}
}

// A protocol in small letters is spoken to the endpoint.
func TestBackendProtocolInSmallLetters(t *testing.T) {
	n, w := newNode(t), fieldCase(t, "02-backend-protocol-lower")
	w.noProblems()
	n.serveBackend("bugs/main:80", true, func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "by TLS: %v",
			r.TLS != nil)
	})
	n.expect(w, "http://two.bugs.test/ = by TLS: true")
	if got := optionsText(w.hosts(), "http://two-grpc.bugs.test/"); got != `{"protocol":"GRPC"}` {
		t.Errorf("options are %s", got)
	}
}

// Exact and longer paths are served before a rewritten catch-all.
func TestPathsBeforeACatchAll(t *testing.T) {
	n, w := newNode(t), fieldCase(t, "03-catch-all-regex")
	w.noProblems()
	n.expect(w, "http://three.bugs.test/healthz = bugs/api:80", "http://three.bugs.test/api/v2/orders = bugs/api:80",
		"http://three.bugs.test/API/v2/orders/7 = bugs/api:80",
		"http://three.bugs.test/api/v2/order = bugs/site:80", "http://three.bugs.test/ = bugs/site:80",
		"http://three.bugs.test/x/y = bugs/site:80")
}

// A pattern for everything leaves the challenge to its solver.
func TestChallengeUnderAPattern(t *testing.T) {
	n, w := newNode(t), fieldCase(t, "04-acme-under-regex")
	n.expect(w, "http://four.bugs.test/.well-known/acme-challenge/tok-en_1 = bugs/solver:80",
		"https://four.bugs.test/.well-known/acme-challenge/tok-en_1 = bugs/solver:80",
		"http://four.bugs.test/ = 308 https", "https://four.bugs.test/x = bugs/shop:80")
}

// The challenge is served by plain HTTP where everything else is redirected.
func TestChallengeIsNotRedirected(t *testing.T) {
	n, w := newNode(t), fieldCase(t, "05-acme-is-redirected")
	n.expect(w, "http://five.bugs.test/.well-known/acme-challenge/tok-en_2 = bugs/solver:80",
		"http://five.bugs.test/x = 308 https", "https://five.bugs.test/x = bugs/shop:80")
}

// A rewrite-target that is a URL is a redirect, with groups and the query, and without a Service.
func TestRewriteToAURL(t *testing.T) {
	n, w := newNode(t), fieldCase(t, "07-rewrite-to-url")
	w.noProblems()
	n.expect(w, "http://seven.bugs.test/old/a/b = 302 https://new.bugs.test/a/b",
		"http://seven.bugs.test/OLD/a%20b?x=1&y = 302 https://new.bugs.test/a%20b?x=1&y",
		"http://seven.bugs.test/old/ = 302 https://new.bugs.test/", "http://seven.bugs.test/new = 404")
	for _, tc := range [][3]string{
		{"https://new.test/$1?y=2", "/old/a?x=1", "302 https://new.test/a?y=2&x=1"},
		{"https://new.test/$1?", "/old/a?x=1", "302 https://new.test/a"},
		{"http://new.test", "/old/a", "302 http://new.test"},
		{"$scheme://www.$host/$1", "/old/a", "302 http://www.h.test/a"},
		{"https://new.test$request_uri?", "/old/a?x=1", "302 https://new.test/old/a?x=1"},
	} {
		w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a", []string{"rewrite-target: " + tc[0]},
			rules("h.test /old/(.*) I none:80")))
		w.noProblems()
		n.expect(w, "http://h.test"+tc[1]+" = "+tc[2])
	}
}

// A comma at the end of the list lets no client choose its identity.
func TestAuthFieldsWithACommaAtTheEnd(t *testing.T) {
	n, w := newNode(t), fieldCase(t, "08-auth-headers-comma")
	n.feed.Configure(schema.Settings{Drain: time.Second, AskFromNode: true,
		AskAllowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	w.noProblems()
	said := ""
	n.serveBackend("bugs/guard:80", false, func(rw http.ResponseWriter, _ *http.Request) {
		if said != "" {
			rw.Header().Set("X-Auth-Request-User", said)
		}
	})
	n.serveBackend("bugs/main:80", false, func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprint(rw, r.Header["X-Auth-Request-User"], r.Header["X-Auth-Request-Groups"])
	})
	n.play(w.plans)
	for _, want := range []string{"[] []", "[ann] []"} {
		said = strings.Trim(strings.TrimSuffix(want, " []"), "[]")
		testnet.Eventually(t, 10*time.Second, func() error {
			if _, got := n.ask("127.0.0.1", "http://eight.bugs.test/", "X-Auth-Request-User: admin",
				"X-Auth-Request-Groups: root"); got != want {
				return fmt.Errorf("the endpoint sees %s, want %s", got, want)
			}
			return nil
		})
	}
}

// The endpoint follows from the variables of upstream-hash-by.
func TestHashByVariables(t *testing.T) {
	n, w := newNode(t), fieldCase(t, "10-hash-binary-remote-addr")
	w.noProblems()
	var list []netip.AddrPort
	for i := range 4 {
		key := fmt.Sprintf("endpoint %d", i)
		n.serveBackend(key, false, func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, key) })
		list = append(list, n.servers[key])
	}
	n.many = map[string][]netip.AddrPort{"bugs/main:80": list}
	n.play(w.plans)
	seen := map[string]bool{}
	for c := range 24 {
		from := fmt.Sprintf("127.0.0.%d", c+2)
		_, first := n.ask(from, "http://ten.bugs.test/")
		for i := range 6 {
			if _, got := n.ask(from, fmt.Sprintf("http://ten.bugs.test/%d", i)); got != first {
				t.Fatalf("a client has %s, then %s", first, got)
			}
		}
		seen[first] = true
	}
	if len(seen) < 3 {
		t.Errorf("24 clients use %v", seen)
	}
	_, first := n.ask("127.0.0.1", "http://ten-b.bugs.test/x?y")
	if _, got := n.ask("127.0.0.9", "http://ten-b.bugs.test/x?y"); got != first {
		t.Errorf("one URI has %s and %s", first, got)
	}
}

// A variable that is not known is named, never empty in silence.
func TestUnknownVariablesAreNamed(t *testing.T) {
	for _, v := range []string{"$nothing", "$upstream_addr", "$ssl_client_s_dn", "$", "${host", "$1x$sent_http_x"} {
		w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a", []string{"upstream-hash-by: " + v},
			rules("h.test / P web:80")))
		if all := strings.Join(w.allProblems(), "\n"); !strings.Contains(all, "upstream-hash-by]") {
			t.Errorf("%s: %s", v, all)
		}
	}
}
