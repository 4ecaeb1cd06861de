package proxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// shows answers with what came: the line of the request and the fields that are named.
func shows(fields ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, r.RequestURI)
		for _, f := range fields {
			fmt.Fprintf(w, " %s=%q", f, r.Header.Values(f))
		}
	}
}

// path is one of every host, with options.
func path(o schema.Options) schema.Path {
	return schema.Path{Kind: schema.Prefix, Path: "/", Backend: "b", Options: &o,
		Source: "Ingress shop/main spec.rules[0].http.paths[0]"}
}

// hosts makes these the routes.
func (r *rig) hosts(list ...*schema.Host) {
	m := map[string]*schema.Host{}
	for _, h := range list {
		m[h.Name] = h
	}
	r.p.SetTable(table.Make(r.p.Table(), m))
}

// backends are all there are, by key.
func (r *rig) backends(m map[string][]netip.AddrPort) {
	want := map[string]*schema.Backend{}
	for key, list := range m {
		b := &schema.Backend{Key: key}
		for _, a := range list {
			b.Endpoints = append(b.Endpoints, schema.Endpoint{Addr: a})
		}
		want[key] = b
	}
	r.p.Upstreams.Replace(want)
}

// encrypted is the address of the same proxy that takes connections for TLS ones.
func (r *rig) encrypted() string {
	if r.http2 {
		return r.tls
	}
	l := listen(r.t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.s.Serve(context.Background(), c, nil, true)
		}
	}()
	return l.Addr().String()
}

// ask sends a request line with fields, each in its line, on a connection of its own.
// Without Host it is for shop.example.
func (r *rig) ask(request string) (*http.Response, string) {
	r.t.Helper()
	if r.http2 {
		return r.ask2(request)
	}
	c := r.dial()
	defer c.Close()
	line, fields, _ := strings.Cut(request, "\n")
	if !strings.Contains("\n"+fields, "\nHost:") {
		fields = strings.TrimSuffix("Host: shop.example\n"+fields, "\n")
	}
	c.send("%s HTTP/1.1\r\n%s\r\n\r\n", line, strings.ReplaceAll(fields, "\n", "\r\n"))
	method, _, _ := strings.Cut(line, " ")
	return c.response(method)
}

// asked is one case: the status, and parts of "field: value" lines and of the body.
type asks struct {
	name    string
	options schema.Options
	request string
	status  int
	want    []string
	not     []string
}

func (r *rig) check(t *testing.T, c asks) {
	t.Helper()
	r.route(path(c.options))
	resp, body := r.ask(c.request)
	var all strings.Builder
	for k, list := range resp.Header {
		for _, v := range list {
			fmt.Fprintf(&all, "%s: %s\n", k, v)
		}
	}
	all.WriteString("\n" + body)
	if resp.StatusCode != c.status {
		t.Errorf("%s: status %d, want %d\n%s", c.name, resp.StatusCode, c.status, all.String())
	}
	for _, w := range c.want {
		if !strings.Contains(all.String(), w) {
			t.Errorf("%s: no %q in\n%s", c.name, w, all.String())
		}
	}
	for _, w := range c.not {
		if strings.Contains(all.String(), w) {
			t.Errorf("%s: %q in\n%s", c.name, w, all.String())
		}
	}
}

func TestRewriteTarget(t *testing.T) {
	targets := make(chan string, 100)
	r := newRig(t, func(r *rig) { r.p.Observe = func(rec *Record) { targets <- string(rec.Request.Target) } },
		handler(t, shows("X")))
	something := func(target string) schema.Options {
		return schema.Options{PathPattern: `/something(/|$)(.*)`, RewriteTarget: target}
	}
	for _, c := range []asks{
		{name: "the documentation's example", options: something("/$2"), request: "GET /something/new", status: 200,
			want: []string{"GET shop.example /new"}},
		{name: "a group that is empty", options: something("/$2"), request: "GET /something", status: 200,
			want: []string{"example / "}},
		{name: "a trailing slash", options: something("/$2"), request: "GET /something/", status: 200,
			want: []string{"example / "}},
		{name: "the query is kept", options: something("/$2"), request: "GET /something/a?b=c%20d&e", status: 200,
			want: []string{"/a?b=c%20d&e "}},
		{name: "behind one of its own", options: something("/$2?from=$1"), request: "GET /something/a?b=c", status: 200,
			want: []string{"/a?from=%2F&b=c "}},
		{name: "or dropped", options: something("/$2?"), request: "GET /something/a?b=c", status: 200,
			want: []string{"example /a "}},
		{name: "no pattern", options: schema.Options{RewriteTarget: "/all"}, request: "GET /x/y?z", status: 200,
			want: []string{"/all?z "}},
		{name: "case", options: something("/$2"), request: "GET /SomeThing/New", status: 200, want: []string{"/New "}},
		{name: "what was escaped is escaped again", options: something("/$2"),
			request: "GET /something/a%20b%23c%3fd%25", status: 200, want: []string{"/a%20b%23c%3Fd%25 "}},
		{name: "a line's end stays an escape", options: something("/$2"), request: "GET /something/a%0d%0aX:%20y",
			status: 200, want: []string{"/a%0D%0AX:%20y ", "X=[]"}},
		{name: "a line's end in a query", options: something("/?q=$2"), request: "GET /something/a%0d%0aX:%20y&z=1",
			status: 200, want: []string{"/?q=a%0D%0AX%3A%20y%26z%3D1 "}},
		{name: "bytes above ASCII", options: something("/$2"), request: "GET /something/%c3%a4", status: 200,
			want: []string{"/%C3%A4 "}},
		{name: "a group that is not there", options: something("/$7x"), request: "GET /something/a", status: 200,
			want: []string{"/x "}},
		{name: "a target without slash", options: something("$2"), request: "GET /something/a", status: 200,
			want: []string{"example /a "}},
		{name: "a path without the pattern", options: something("/$2"), request: "GET /else", status: 404},
		{name: "the pattern is from the begin", options: something("/$2"), request: "GET /x/something/a", status: 404},
		{name: "alternatives are all from the begin", options: schema.Options{PathPattern: `/a|/b`, RewriteTarget: "/"},
			request: "GET /x/b", status: 404},
		{name: "a URL is a redirection, as in nginx", options: something("https://new.example/$2"),
			request: "GET /something/a%0d%0ab?c", status: 302,
			want: []string{"Location: https://new.example/a%0D%0Ab?c\n"}},
		{name: "dots do not climb out", options: something("/$2"), request: "GET /something/../secret", status: 404},
		{name: "a template that cannot be read closes the path", options: something("/$nothing"),
			request: "GET /something/a", status: 500},
		{name: "a pattern above the bound", options: schema.Options{PathPattern: "/|((a{40}){40})", RewriteTarget: "/"},
			request: "GET /aaa", status: 500},
	} {
		r.check(t, c)
	}
	// The record shows what the client sent, and a body goes along.
	r.route(path(something("/$2")))
	c := r.dial()
	c.send("POST /something/in HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
	if _, body := c.response("POST"); !strings.HasPrefix(body, "POST a /in") {
		t.Error(body)
	}
	for last := ""; last != "/something/in"; {
		select {
		case last = <-targets:
		case <-time.After(5 * time.Second):
			t.Fatalf("the last record shows %q", last)
		}
	}
}

func TestRedirects(t *testing.T) {
	trust := func(r *rig) { r.p.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }
	plain := newRig(t, nil, handler(t, shows()))
	trusting := newRig(t, trust, handler(t, shows()))
	tls := schema.Options{RedirectTLS: 308}
	for _, c := range []asks{
		{name: "to https", options: tls, request: "GET /a%20b?c=d", status: 308,
			want: []string{"Location: https://shop.example/a%20b?c=d\n"}},
		{name: "the port of http is not that of https", options: tls,
			request: "POST /x\nHost: Shop.Example:8080\nContent-Length: 0", status: 308,
			want: []string{"Location: https://shop.example/x\n"}},
		{name: "an IPv6 host", options: tls, request: "GET /\nHost: [2001:db8::1]:80", status: 308,
			want: []string{"Location: https://[2001:db8::1]/\n"}},
		{name: "a stranger's X-Forwarded-Proto", options: tls, request: "GET /\nX-Forwarded-Proto: https", status: 308},
		{name: "HEAD", options: tls, request: "HEAD /a", status: 308,
			want: []string{"Location: https://shop.example/a\n"}},
		{name: "OPTIONS *", options: tls, request: "OPTIONS *", status: 308,
			want: []string{"Location: https://shop.example\n"}},
		{name: "permanent", options: schema.Options{Redirect: "https://new.example/", RedirectCode: 301},
			request: "GET /a?b", status: 301, want: []string{"Location: https://new.example/\n"}},
		{name: "temporal", options: schema.Options{Redirect: "https://new.example/"}, request: "GET /a", status: 302},
		{name: "a code", options: schema.Options{Redirect: "https://new.example/", RedirectCode: 307},
			request: "GET /a", status: 307},
		{name: "with variables", options: schema.Options{Redirect: "https://new.example$request_uri",
			RedirectCode: 308},
			request: "GET /a%0d?b=c", status: 308, want: []string{"Location: https://new.example/a%0d?b=c\n"}},
		{name: "a header's value cannot end the line",
			options: schema.Options{Redirect: "https://new.example/$http_x_y"}, request: "GET /\nX-Y: a b\"<",
			status: 302, want: []string{"Location: https://new.example/a%20b%22%3C\n"}},
		{name: "the URL before https", options: schema.Options{Redirect: "https://new.example/", RedirectTLS: 308},
			request: "GET /", status: 302},
	} {
		plain.check(t, c)
	}
	for _, c := range []asks{
		{name: "a trusted balancer had TLS", options: tls, request: "GET /a\nX-Forwarded-Proto: https", status: 200},
		{name: "a trusted balancer had none", options: tls, request: "GET /a\nX-Forwarded-Proto: http", status: 308},
		{name: "a trusted balancer says nothing", options: tls, request: "GET /a", status: 308},
	} {
		trusting.check(t, c)
	}
	plain.route(path(tls))
	plain.addr = plain.encrypted()
	if resp, _ := plain.ask("GET /a"); resp.StatusCode != 200 {
		t.Errorf("with TLS: %s", resp.Status)
	}
	c := plain.dial() // HTTP/1.0 without a host
	plain.route(path(schema.Options{Redirect: "http://$host/"}))
	c.send("GET / HTTP/1.0\r\n\r\n")
	if resp, _ := c.response("GET"); resp.Header.Get("Location") != "http://127.0.0.1/" {
		t.Errorf("without Host: %q", resp.Header.Get("Location"))
	}
}

func TestBodySize(t *testing.T) {
	r := newRig(t, nil, handler(t, echo))
	r.route(path(schema.Options{MaxBody: 5}))
	c := r.dial()
	c.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
	if resp, body := c.response("POST"); resp.StatusCode != 200 || !strings.HasSuffix(body, "|hello") {
		t.Fatal(resp.Status, body)
	}
	// Before the body comes.
	c.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n")
	if resp, _ := c.response("POST"); resp.StatusCode != 413 {
		t.Fatal(resp.Status)
	}
	// A client that waits for leave sends nothing.
	c = r.dial()
	c.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n")
	if resp, _ := c.response("POST"); resp.StatusCode != 413 {
		t.Fatal(resp.Status)
	}
	c = r.dial()
	c.send("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	if resp, body := c.response("POST"); resp.StatusCode != 200 || !strings.HasSuffix(body, "|hello") {
		t.Fatal(resp.Status, body)
	}
	c.send("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n3\r\nlo!\r\n0\r\n\r\n")
	if resp, _ := c.response("POST"); resp.StatusCode != 413 {
		t.Fatal(resp.Status)
	}
	// The endpoint is not to blame for it.
	for range 6 {
		c := r.dial()
		c.send("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello!\r\n0\r\n\r\n")
		if resp, _ := c.response("POST"); resp.StatusCode != 413 {
			t.Fatal(resp.Status)
		}
	}
	if r.p.Upstreams.Lookup("b").All()[0].Ejected() {
		t.Error("the endpoint is ejected for what clients sent")
	}
	r.route(path(schema.Options{}))
	if resp, _ := r.ask("POST /a\nContent-Length: 0"); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
}

func TestTimeouts(t *testing.T) {
	stop := make(chan struct{})
	slow := handler(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	})
	defer close(stop)
	r := newRig(t, nil, slow)
	r.route(path(schema.Options{Read: 200 * time.Millisecond}))
	begin := time.Now()
	if resp, _ := r.ask("GET /"); resp.StatusCode != 504 {
		t.Errorf("read: %s", resp.Status)
	}
	if d := time.Since(begin); d > 4*time.Second {
		t.Errorf("read: after %s", d)
	}
	// Nobody answers at an address of documentation.
	r.endpoints(netip.MustParseAddrPort("192.0.2.1:80"))
	r.p.Tries = 1
	r.route(path(schema.Options{Connect: 100 * time.Millisecond}))
	begin = time.Now()
	if resp, _ := r.ask("GET /"); resp.StatusCode != 504 && resp.StatusCode != 502 {
		t.Errorf("connect: %s", resp.Status)
	}
	if d := time.Since(begin); d > 1500*time.Millisecond {
		t.Errorf("connect: after %s", d)
	}
}

func TestBackendProtocolHTTPS(t *testing.T) {
	s := httptest.NewTLSServer(shows("X-Forwarded-Proto"))
	t.Cleanup(s.Close)
	r := newRig(t, nil, netip.MustParseAddrPort(s.Listener.Addr().String()))
	r.check(t, asks{name: "HTTPS", options: schema.Options{Protocol: schema.HTTPS}, request: "GET /a", status: 200,
		want: []string{`GET shop.example /a X-Forwarded-Proto=["http"]`}})
	r.check(t, asks{name: "HTTP to a server of HTTPS", options: schema.Options{}, request: "GET /a", status: 400})
}

// What most paths have costs no memory either: the redirection to https, limits, a cookie
// that is there already, sources, a rate, a hash.
func TestOptionsThatAllocateNothing(t *testing.T) {
	r := newRig(t, func(r *rig) { r.p.Observe = func(*Record) {} }, quietEndpoint(t))
	token := r.p.Upstreams.Lookup("b").All()[0].Token()
	r.addr = r.encrypted()
	for _, c := range []struct {
		name    string
		options schema.Options
	}{
		{"https, size, time-outs", schema.Options{RedirectTLS: 308, MaxBody: 1 << 20, Connect: time.Second,
			Read: time.Minute, Send: time.Minute}},
		{"round robin", schema.Options{Balance: "round_robin"}},
		{"affinity", schema.Options{Affinity: &schema.Affinity{Name: "route"}}},
		{"sources", schema.Options{Sources: prefixes("127.0.0.0/8")}},
		{"rate", schema.Options{RPS: 1e6, Burst: 1 << 20}},
		{"hash", schema.Options{HashBy: "$request_uri-$http_user_agent"}},
		{"canary", schema.Options{Canary: []schema.Canary{{Backend: "b", Header: "X-Canary", Cookie: "canary",
			Weight: 10}}}},
	} {
		r.route(path(c.options))
		k := r.dial()
		buf := make([]byte, 4096)
		request := []byte("GET /a/b?c=d HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: x\r\nCookie: a=b; route=" +
			token + "\r\n\r\n")
		one := func() {
			if _, err := k.Write(request); err != nil {
				t.Fatal(err)
			}
			n, err := k.Read(buf)
			if err != nil || n < 12 || string(buf[9:12]) != "200" {
				t.Fatalf("%s: %q %v", c.name, buf[:n], err)
			}
		}
		for range 100 {
			one()
		}
		if n := testing.AllocsPerRun(1000, one); n > allocationsAllowed {
			t.Errorf("%s: %v allocations for an exchange", c.name, n)
		}
	}
}
