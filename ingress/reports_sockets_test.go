package ingress

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
)

// asking lets authentication servers of the test be asked.
func (n *node) asking() {
	n.feed.Configure(schema.Settings{Drain: time.Second, AskFromNode: true,
		AskAllowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
}

// endpoints starts servers for a backend, which answer with their number.
func (n *node) endpoints(key string, count int) {
	if n.many == nil {
		n.many = map[string][]netip.AddrPort{}
	}
	for i := range count {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, i) }))
		n.root.Cleanup(s.Close)
		n.many[key] = append(n.many[key], netip.MustParseAddrPort(s.Listener.Addr().String()))
	}
}

// raw sends bytes and reads one response.
func (n *node) raw(request string) (*http.Response, string) {
	n.t.Helper()
	conn, err := net.Dial("tcp", n.plain)
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	go func() { _, _ = io.WriteString(conn, request) }()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	return resp, string(body)
}

// browser returns a client with a cookie jar, for which every host is the proxy.
func (n *node) browser() func(url string) string {
	jar, err := cookiejar.New(nil)
	if err != nil {
		n.t.Fatal(err)
	}
	return func(to string) string {
		u, err := url.Parse(to)
		if err != nil {
			n.t.Fatal(err)
		}
		var fields []string
		for _, c := range jar.Cookies(u) {
			fields = append(fields, "Cookie: "+c.Name+"="+c.Value)
		}
		resp, body := n.ask("127.0.0.1", to, fields...)
		jar.SetCookies(u, resp.Cookies())
		return body
	}
}

// A browser that alternates between paths of one host stays with an endpoint for each (ingress-nginx#1930, #14042,
// #3959, #1232).
func TestReportsOfAffinity(t *testing.T) {
	n := newNode(t)
	n.endpoints("shop/web:80", 4)
	n.endpoints("shop/api:8080", 4)
	sticky := []string{"affinity: cookie", "session-cookie-name: route"}
	for name, tc := range map[string]struct {
		yaml string
		urls []string
	}{
		"two paths": {ing("a", sticky, rules("h.test /a P web:80 /b P api:8080")),
			[]string{"http://h.test/a/x", "http://h.test/b/x"}},
		"two paths of one cookie path": {ing("a", append(sticky, "session-cookie-path: /"),
			rules("h.test /a P web:80 /b P web:80")), []string{"http://h.test/a/x", "http://h.test/b/x"}},
		"two Ingresses of one Service": {ing("a", append(sticky, "session-cookie-path: /p"),
			rules("h.test /p P web:80")) + ing("b", append(sticky, "session-cookie-path: /p/sub"),
			rules("h.test /p/sub P web:80")),
			[]string{"http://h.test/p/x", "http://h.test/p/sub/x"}},
		"any host": {ing("a", sticky, rules("- /any/ P web:80")), []string{"http://one.test/any/x"}},
		"a rewritten path": {ing("a", append(sticky, "rewrite-target: /foo"), rules("h.test / P web:80")),
			[]string{"http://h.test/", "http://h.test/y"}},
		"a pattern": {ing("a", append(sticky, "rewrite-target: /$1"), rules("h.test /x/(.*) I web:80")),
			[]string{"http://h.test/x/1", "http://h.test/x/2"}},
	} {
		t.Run(name, func(t *testing.T) {
			n.t = t
			w := newFixture(t, Settings{Default: true}, sampleYAML(t)+tc.yaml)
			n.play(w.plans)
			moved := 0
			for range 4 {
				get, first := n.browser(), map[string]string{}
				for range 6 {
					for _, u := range tc.urls {
						if got := get(u); first[u] == "" {
							first[u] = got
						} else if first[u] != got {
							moved++
						}
					}
				}
			}
			if moved > 0 {
				t.Errorf("a browser changed its endpoint %d times", moved)
			}
		})
	}
}

// An authentication server's large answer, a long path and a large body trouble nobody (ingress-nginx#2427, #10203,
// #811, #2545, #12390).
func TestReportsOfAuthentication(t *testing.T) {
	n := newNode(t)
	n.asking()
	lengths := make(chan string, 100)
	large := strings.Repeat("c", 12<<10)
	n.serveBackend("shop/api:8080", false, func(w http.ResponseWriter, r *http.Request) {
		lengths <- fmt.Sprint(r.Header.Values("Content-Length"), r.ContentLength, r.TransferEncoding)
		w.Header().Add("Set-Cookie", "session="+large)
		w.Header().Set("X-User", large)
	})
	n.serveBackend("shop/web:80", false, func(w http.ResponseWriter, r *http.Request) {
		size, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, len(r.Header.Get("X-User")), " ", size)
	})
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a", []string{
		"auth-url: http://api.shop.svc.cluster.local:8080/auth", "auth-response-headers: X-User",
		"auth-signin: https://login.test/?rm=$request_method", "proxy-body-size: 100m"}, rules("h.test / P web:80")))
	w.noProblems()
	n.play(w.plans)
	for _, tc := range []struct{ what, request, want string }{
		{"large fields", "GET / HTTP/1.1\r\nHost: h.test\r\n\r\n", "12288 0"},
		{"long path", "GET /" + strings.Repeat("p", 3000) + " HTTP/1.1\r\nHost: h.test\r\n\r\n", "12288 0"},
		{"long field", "GET / HTTP/1.1\r\nHost: h.test\r\nAuthorization: Bearer " + strings.Repeat("t", 9<<10) +
			"\r\n\r\n", "12288 0"},
		{"large body", "POST / HTTP/1.1\r\nHost: h.test\r\nContent-Length: 8964179\r\n\r\n" +
			strings.Repeat("b", 8964179), "12288 8964179"},
		{"chunked body", "POST / HTTP/1.1\r\nHost: h.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
			"12288 5"},
	} {
		if resp, got := n.raw(tc.request); resp.StatusCode != 200 || got != tc.want {
			t.Errorf("%s: %d %.60s, want %s", tc.what, resp.StatusCode, got, tc.want)
		}
		if got := <-lengths; got != "[] 0 []" {
			t.Errorf("%s: the authentication server sees a length of %s", tc.what, got)
		}
	}
}

// Addresses, redirects and pages are what ingress-nginx makes of them (ingress-nginx#5576, #12917, #4576, #3700,
// #10175, #8469, #6244, #8212).
func TestReportsOfRequests(t *testing.T) {
	n := newNode(t)
	n.serveBackend("shop/web:80", false, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/redirect" {
			w.Header().Set("Location", "/login?x=1")
			w.WriteHeader(http.StatusFound)
		}
		fmt.Fprint(w, r.RequestURI)
	})
	n.serveBackend("shop/api:8080", false, func(w http.ResponseWriter, r *http.Request) {
		if code := r.Header.Get("X-Code"); code == "503" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, "page %s", r.Header.Get("X-Code"))
	})
	for _, tc := range []struct{ name, yaml, url, fields, want string }{
		{"#5576", ing("a", []string{"rewrite-target: /$1"}, rules("h.test /svc/(.*) I web:80")),
			"http://h.test/svc/foo%24bar%2Fx%20y%3Fz%25%23", "", "200 /foo$bar/x%20y%3Fz%25%23"},
		{"#12917", ing("a", []string{"use-regex: true", "rewrite-target: /$4", "proxy-redirect-from: /",
			"proxy-redirect-to: /$1/$2/$3/"}, rules("h.test /(prod)/([-a-z0-9]+)/(webrtc)/?(.*) I web:80")),
			"http://h.test/prod/s-1/webrtc/redirect", "", "302 /prod/s-1/webrtc/login?x=1"},
		{"#4576", ing("a", []string{"custom-http-errors: 418,504,503", "default-backend: api"},
			rules("h.test / P empty:80")), "http://h.test/x", "", "503 page 503"},
		{"#10175", ing("a", []string{"default-backend: api"}, rules("h.test / P empty:80")),
			"http://h.test/x", "", "503 page 503"},
		{"#8469", ing("a", []string{"enable-cors: true", "cors-allow-origin: https://*.Example.com"},
			rules("h.test / P web:80")), "http://h.test/", "Origin: https://App.EXAMPLE.com",
			"https://App.EXAMPLE.com"},
		{"#6244", ing("a", []string{"enable-cors: true", "cors-allow-credentials: true"}, rules("h.test / P web:80")),
			"http://h.test/", "Origin: https://x.test", "*"},
		{"#8212", ing("a", nil, rules("h.test / P empty:80")) + ing("c", []string{"canary: true",
			"canary-weight: 100"}, rules("h.test / P web:80")), "http://h.test/x", "", "200 /x"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n.t = t
			w := newFixture(t, Settings{Default: true}, sampleYAML(t)+tc.yaml)
			w.noProblems()
			n.play(w.plans)
			resp, body := n.ask("127.0.0.1", tc.url, strings.Fields(strings.ReplaceAll(tc.fields, ": ", ":"))...)
			got := fmt.Sprintf("%d %s", resp.StatusCode, body)
			if to := resp.Header.Get("Location"); to != "" {
				got = fmt.Sprintf("%d %s", resp.StatusCode, to)
			}
			if tc.fields != "" {
				got = resp.Header.Get("Access-Control-Allow-Origin")
			}
			if got != tc.want {
				t.Errorf("answered by %q, want %q; fields %v", got, tc.want, resp.Header)
			}
		})
	}
}
