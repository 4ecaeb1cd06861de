package proxy

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
)

func TestAuthURL(t *testing.T) {
	var asked atomic.Pointer[http.Request]
	server := handler(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r)
		switch r.URL.Path {
		case "/ok":
			w.Header().Add("X-User", "ann")
			w.Header().Add("X-Groups", "a")
			w.Header().Add("X-Groups", "b")
			w.Header().Add("Set-Cookie", "session=1; Path=/")
			w.Header().Add("Set-Cookie", "more=2")
			w.Header().Set("Content-Length", "3")
			w.WriteHeader(202)
			fmt.Fprint(w, "yes")
		case "/bare":
		case "/401":
			w.Header().Set("WWW-Authenticate", `Bearer realm="x"`)
			w.WriteHeader(401)
			fmt.Fprint(w, "the server's text")
		case "/403":
			w.WriteHeader(403)
		case "/302":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/slow":
			<-r.Context().Done()
		case "/cookie":
			if c, err := r.Cookie("session"); err != nil || c.Value != "good" {
				w.WriteHeader(401)
			}
		case "/header":
			if r.Header.Get("Authorization") != "Bearer good" {
				w.WriteHeader(403)
			}
		default:
			w.WriteHeader(500)
		}
	})
	r := newRig(t, nil, handler(t, shows("X-User", "X_User", "X-Groups", "Cookie", "Authorization", "X-Original-Url",
		"X-Sent-From", "Content-Length")))
	at := func(path string, more ...string) schema.Options {
		a := &schema.AuthURL{URL: "http://" + server.String() + path, Headers: []string{"X-User", "x-groups",
			"Content-Length", "Transfer-Encoding", "Connection"}}
		if len(more) > 0 {
			a.SignIn = more[0]
		}
		return schema.Options{AuthURL: a, Read: 300 * time.Millisecond}
	}
	cases := []asks{
		{name: "let in", options: at("/ok"), request: "GET /a", status: 200,
			want: []string{`X-User=["ann"] X_User=[] X-Groups=["a" "b"]`, "Set-Cookie: session=1; Path=/\n",
				"Set-Cookie: more=2\n", "X-Sent-From=[]"}},
		{name: "the client's own words are taken out", options: at("/bare"),
			request: "GET /a\nX-User: root\nx_user: root\nX-GROUPS: wheel", status: 200,
			want: []string{"X-User=[] X_User=[] X-Groups=[]"}},
		{name: "other fields stay", options: at("/bare"), request: "GET /a\nAuthorization: Bearer x\nCookie: a=b",
			status: 200, want: []string{`Cookie=["a=b"] Authorization=["Bearer x"]`}},
		{name: "401", options: at("/401"), request: "GET /a", status: 401,
			want: []string{`Www-Authenticate: Bearer realm="x"` + "\n"}, not: []string{"GET", "text\n"}},
		{name: "403", options: at("/403"), request: "GET /a", status: 403, not: []string{"GET"}},
		{name: "a redirection is no answer", options: at("/302"), request: "GET /a", status: 500},
		{name: "an error", options: at("/500"), request: "GET /a", status: 500},
		{name: "too slow", options: at("/slow"), request: "GET /a", status: 500},
		{name: "nobody there", options: schema.Options{AuthURL: &schema.AuthURL{URL: "http://127.0.0.1:1/"}},
			request: "GET /a", status: 500},
		{name: "no URL", options: schema.Options{AuthURL: &schema.AuthURL{URL: "ftp://127.0.0.1/"}},
			request: "GET /a", status: 500},
		{name: "a URL that cannot be read", options: schema.Options{AuthURL: &schema.AuthURL{URL: "http://$nothing/"}},
			request: "GET /a", status: 500},
		{name: "a host that any client may choose",
			options: schema.Options{AuthURL: &schema.AuthURL{URL: "http://$http_host/ok"}}, request: "GET /a\nHost: " +
				server.String(), status: 500},
		{name: "asking itself", options: at("/ok"), request: "GET /a\nX-Sent-From: wayleave-ingress", status: 500},
		{name: "by cookie", options: at("/cookie"), request: "GET /a\nCookie: session=good", status: 200},
		{name: "by another cookie", options: at("/cookie"), request: "GET /a\nCookie: session=bad", status: 401},
		{name: "by Authorization", options: at("/header"), request: "GET /a\nAuthorization: Bearer good", status: 200},
		{name: "by another Authorization", options: at("/header"),
			request: "GET /a\nAuthorization: Bearer bad", status: 403},
		{name: "sign in", options: at("/401", "https://login.example/start"),
			request: "GET /a?b=c&d\nHost: shop.example:8080", status: 302,
			want: []string{
				"Location: https://login.example/start?rd=http%3A%2F%2Fshop.example%3A8080%2Fa%3Fb%3Dc%26d\n"}},
		{name: "sign in, with a query", options: at("/401", "https://login.example/?x=y"), request: "GET /a",
			status: 302, want: []string{"Location: https://login.example/?x=y&rd=http%3A%2F%2Fshop.example%2Fa\n"}},
		{name: "sign in, with an rd of its own", options: at("/401", "https://$host/start?rd=$escaped_request_uri"),
			request: "GET /a?b", status: 302, want: []string{"Location: https://shop.example/start?rd=%2Fa%3Fb\n"}},
		{name: "forbidden is not signed in", options: at("/403", "https://login.example/"),
			request: "GET /a", status: 403},
	}
	for _, c := range cases {
		r.check(t, c)
	}

	// A server that is a host of this proxy, behind the same path: no loop. An exchange is recorded after its client
	// has the answer.
	before := len(cases)
	r.record(before - 1)
	r.check(t, asks{name: "a question to the proxy itself",
		options: schema.Options{AuthURL: &schema.AuthURL{URL: "http://" + r.addr + "/check"}},
		request: "GET /a", status: 500})
	r.record(before + 1)
	r.mu.Lock()
	if n := len(r.records) - before; n != 2 {
		t.Errorf("a question to the proxy itself made %d exchanges, want the request and the question", n)
	}
	r.mu.Unlock()

	// What the server is asked, and what it is not.
	r.route(path(at("/ok")))
	if resp, _ := r.ask("PUT /a%20b?c=d\nHost: Shop.example:81\nContent-Length: 0\nX-Forwarded-For: " +
		"6.6.6.6\nForwarded: for=6.6.6.6\nX_Forwarded_For: 6.6.6.6\nX-Original-URL: x\nX-Original-Method: " +
		"GET\nUser-Agent: me\nConnection: close, x-hop\nX-Hop: 1"); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	q := asked.Load()
	if q.Method != "GET" || q.Host != server.String() || q.ContentLength != 0 || q.RequestURI != "/ok" {
		t.Errorf("asked by %s %s %s", q.Method, q.Host, q.RequestURI)
	}
	for name, want := range map[string]string{"X-Original-Url": "http://Shop.example:81/a%20b?c=d",
		"X-Original-Method": "PUT", "X-Original-Uri": "/a%20b?c=d", "X-Forwarded-For": "127.0.0.1",
		"X-Real-Ip": "127.0.0.1", "User-Agent": "me", "X-Sent-From": "wayleave-ingress",
		"X-Auth-Request-Redirect": "/a%20b?c=d"} {
		if got := q.Header[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if q.Header.Get("X-Hop") != "" || q.Header["Forwarded"] != nil || q.Header["X_forwarded_for"] != nil ||
		q.Header.Get("Accept-Encoding") != "" {
		t.Errorf("%v", q.Header)
	}
	o := at("/ok")
	o.AuthURL.Method = "HEAD"
	r.route(path(o))
	if _, body := r.ask("POST /x\nContent-Length: 0"); !strings.HasPrefix(body, "POST shop.example /x") ||
		asked.Load().Method != "HEAD" {
		t.Errorf("%q, asked by %s", body, asked.Load().Method)
	}
	// The body is for the endpoint.
	c := r.dial()
	r.endpoints(handler(t, echo))
	c.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
	if _, body := c.response("POST"); !strings.HasSuffix(body, "|hello") {
		t.Error(body)
	}
}

// A name that only the cluster knows is asked at the endpoints of its Service.
func TestAuthURLOfAService(t *testing.T) {
	server := handler(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "auth.shop.svc.cluster.local:4180" || r.URL.Path != "/check" {
			w.WriteHeader(401)
		}
	})
	end := handler(t, shows())
	r := newRig(t, nil)
	r.backends(map[string][]netip.AddrPort{"b": {end}, "shop/auth:4180": {server}})
	o := schema.Options{AuthURL: &schema.AuthURL{URL: "http://auth.shop.svc.cluster.local:4180/check",
		Backend: "shop/auth:4180"}}
	r.check(t, asks{name: "a Service", options: o, request: "GET /a", status: 200})
	r.backends(map[string][]netip.AddrPort{"b": {end}, "shop/auth:4180": nil})
	r.check(t, asks{name: "without endpoints", options: o, request: "GET /a", status: 500})
	r.backends(map[string][]netip.AddrPort{"b": {end}})
	r.check(t, asks{name: "that is not there", options: o, request: "GET /a", status: 500})
}

// The host of the URL may be the request's where the routes say which hosts there are.
func TestAuthURLOfTheHost(t *testing.T) {
	server := handler(t, func(http.ResponseWriter, *http.Request) {})
	end := handler(t, shows())
	r := newRig(t, nil)
	r.backends(map[string][]netip.AddrPort{"b": {end}, "auth": {server}})
	p := path(schema.Options{AuthURL: &schema.AuthURL{URL: "http://$host/oauth2/auth", Backend: "auth"}})
	r.hosts(&schema.Host{Name: "shop.example", Paths: []schema.Path{p}},
		&schema.Host{Name: "", Paths: []schema.Path{p}})
	if resp, _ := r.ask("GET /a"); resp.StatusCode != 200 {
		t.Errorf("a host with a name: %s", resp.Status)
	}
	if resp, _ := r.ask("GET /a\nHost: evil.example"); resp.StatusCode != 500 {
		t.Errorf("any host: %s", resp.Status)
	}
}
