package proxy

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
)

// speaker is an endpoint that answers with its name.
func speaker(t testing.TB, name string) netip.AddrPort {
	return handler(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })
}

// many sends n requests and counts the answers.
func (r *rig) many(n int, request string) map[string]int {
	r.t.Helper()
	got := map[string]int{}
	c := r.dial()
	for range n {
		c.send("%s", strings.ReplaceAll(request, "\n", "\r\n")+"\r\n\r\n")
		resp, body := c.response("GET")
		if resp.StatusCode != 200 {
			body = resp.Status
		}
		got[body]++
	}
	return got
}

func TestAffinity(t *testing.T) {
	x, y, z := speaker(t, "x"), speaker(t, "y"), speaker(t, "z")
	r := newRig(t, nil, x, y, z)
	r.route(path(schema.Options{Affinity: &schema.Affinity{Name: "route", MaxAge: time.Hour, SameSite: "Lax"}}))
	resp, first := r.ask("GET /")
	set := resp.Cookies()
	if len(set) != 1 || set[0].Name != "route" || set[0].MaxAge != 3600 || !set[0].HttpOnly ||
		set[0].SameSite != http.SameSiteLaxMode || set[0].Path != "/" || set[0].Secure ||
		time.Until(set[0].Expires) < 50*time.Minute {
		t.Fatalf("%v", resp.Header["Set-Cookie"])
	}
	for _, a := range []netip.AddrPort{x, y, z} {
		if strings.Contains(set[0].Value, fmt.Sprint(a.Port())) || strings.Contains(set[0].Value,
			fmt.Sprintf("%x", a.Port())) && strings.Contains(set[0].Value, "7f000001") {
			t.Errorf("the cookie tells the address %s: %s", a, set[0].Value)
		}
	}
	cookie := "GET / HTTP/1.1\nHost: a\nCookie: a=b; route=" + set[0].Value + "; c=d"
	if got := r.many(50, cookie); got[first] != 50 {
		t.Errorf("with the cookie of %s: %v", first, got)
	}
	if resp, _ := r.ask("GET /\nCookie: route=" + set[0].Value); len(resp.Cookies()) != 0 {
		t.Error("a cookie is set where the client has one")
	}
	// A proxy elsewhere makes the same of it.
	other := newRig(t, nil, z, y, x)
	other.route(path(schema.Options{Affinity: &schema.Affinity{Name: "route"}}))
	if got := other.many(20, cookie); got[first] != 20 {
		t.Errorf("another proxy: %v", got)
	}
	// With another secret it names nothing.
	other = newRig(t, func(r *rig) { r.settings.Secret = []byte("s") }, z, y, x)
	other.route(path(schema.Options{Affinity: &schema.Affinity{Name: "route"}}))
	if resp, _ := other.ask("GET /\nCookie: route=" + set[0].Value); len(resp.Cookies()) != 1 ||
		resp.Cookies()[0].Value == set[0].Value {
		t.Errorf("another secret: %v", resp.Cookies())
	}
	// More endpoints move no client.
	r.endpoints(x, y, z, speaker(t, "more"), speaker(t, "more"))
	if got := r.many(20, cookie); got[first] != 20 {
		t.Errorf("with more endpoints: %v", got)
	}
	// Its own has gone: another, and a cookie for it.
	all := map[string]netip.AddrPort{"x": x, "y": y, "z": z}
	delete(all, first)
	var rest []netip.AddrPort
	for _, a := range all {
		rest = append(rest, a)
	}
	r.endpoints(rest...)
	resp, second := r.ask("GET /\nCookie: route=" + set[0].Value)
	if again := resp.Cookies(); len(again) != 1 || again[0].Value == set[0].Value || second == first {
		t.Errorf("after it has gone: %s, %v", second, resp.Cookies())
	}
	for _, bad := range []string{"", "route=", "route", "route=\"\"", "route=zz", "=;=;=", strings.Repeat("x", 5000)} {
		if resp, _ := r.ask("GET /\nCookie: " + bad); resp.StatusCode != 200 || len(resp.Cookies()) != 1 {
			t.Errorf("%q: %s %v", bad, resp.Status, resp.Cookies())
		}
	}
}

func TestAffinityToOneThatDrainsOrFails(t *testing.T) {
	x, y := speaker(t, "x"), speaker(t, "y")
	r := newRig(t, nil, x, y)
	r.route(path(schema.Options{Affinity: &schema.Affinity{}}))
	resp, first := r.ask("GET /")
	cookie := "\nCookie: INGRESSCOOKIE=" + resp.Cookies()[0].Value
	b := &schema.Backend{Key: "b", Endpoints: []schema.Endpoint{{Addr: x, Draining: first == "x"},
		{Addr: y, Draining: first == "y"}}}
	r.p.Upstreams.Replace(map[string]*schema.Backend{"b": b})
	if resp, body := r.ask("GET /" + cookie); body == first || len(resp.Cookies()) != 1 {
		t.Errorf("one that drains gets a new request: %s, %v", body, resp.Cookies())
	}
	b = &schema.Backend{Key: "b", Endpoints: []schema.Endpoint{{Addr: x, Draining: true}, {Addr: y, Draining: true}}}
	r.p.Upstreams.Replace(map[string]*schema.Backend{"b": b})
	if resp, body := r.ask("GET /" + cookie); body != first || len(resp.Cookies()) != 0 {
		t.Errorf("all drain: %s, %v", body, resp.Cookies())
	}
	// One that fails is kept by the cookie, while another answers.
	r.endpoints(x, y)
	for _, e := range r.p.Upstreams.Lookup("b").All() {
		if (e.Addr == x) == (first == "x") {
			for range r.settings.Failures {
				e.Failed()
			}
		}
	}
	if resp, body := r.ask("GET /" + cookie); body == first || len(resp.Cookies()) != 0 {
		t.Errorf("while it fails: %s, %v", body, resp.Cookies())
	}
}

func TestAffinityCookieAttributes(t *testing.T) {
	r := newRig(t, nil, speaker(t, "x"))
	tls := r.encrypted()
	for _, c := range []struct {
		name string
		path schema.Path
		tls  bool
		want string
	}{
		{"defaults", schema.Path{Kind: schema.Prefix, Path: "/", Backend: "b",
			Options: &schema.Options{Affinity: &schema.Affinity{}}}, false, "; Path=/; HttpOnly"},
		{"the path of the route", schema.Path{Kind: schema.Prefix, Path: "/a", Backend: "b",
			Options: &schema.Options{Affinity: &schema.Affinity{}}}, false, "; Path=/a; HttpOnly"},
		{"not that of a pattern", schema.Path{Path: "/a.*", Backend: "b", Options: &schema.Options{PathPattern: "/a.*",
			Affinity: &schema.Affinity{}}}, false, "; Path=/; HttpOnly"},
		{"its own", schema.Path{Kind: schema.Prefix, Path: "/a", Backend: "b",
			Options: &schema.Options{Affinity: &schema.Affinity{Path: "/a/b"}}}, false, "; Path=/a/b; HttpOnly"},
		{"secure", schema.Path{Kind: schema.Prefix, Path: "/", Backend: "b",
			Options: &schema.Options{Affinity: &schema.Affinity{Secure: true, SameSite: "None"}}}, false,
			"; Path=/; Secure; HttpOnly; SameSite=None"},
		{"by TLS", schema.Path{Kind: schema.Prefix, Path: "/", Backend: "b",
			Options: &schema.Options{Affinity: &schema.Affinity{}}}, true, "; Path=/; Secure; HttpOnly"},
	} {
		r.route(c.path)
		plain := r.addr
		if c.tls {
			r.addr = tls
		}
		resp, _ := r.ask("GET /a")
		r.addr = plain
		set := resp.Header.Get("Set-Cookie")
		if _, attributes, _ := strings.Cut(set, ";"); ";"+attributes != c.want ||
			!strings.HasPrefix(set, "INGRESSCOOKIE=") {
			t.Errorf("%s: %q, want %q", c.name, set, c.want)
		}
	}
}

func TestUpstreamHashBy(t *testing.T) {
	r := newRig(t, nil, speaker(t, "a"), speaker(t, "b"), speaker(t, "c"), speaker(t, "d"), speaker(t, "e"))
	for _, c := range []struct {
		by string
		// request is one with a place for what is hashed, other for what is not.
		request, other string
	}{
		{"$request_uri", "GET /?%d HTTP/1.1\nHost: a", "\nX: %d"},
		{"$host", "GET / HTTP/1.1\nHost: h%d", "\nX: %d"},
		{"$http_x_user", "GET / HTTP/1.1\nHost: a\nX-User: %d", "\nX: %d"},
		{"$cookie_session", "GET / HTTP/1.1\nHost: a\nCookie: a=b; session=%d", "; x=%d"},
		{"$arg_id", "GET /?id=%d HTTP/1.1\nHost: a", "\nX: %d"},
		{"${arg_id}-$http_x_user-text", "GET /?id=%d HTTP/1.1\nHost: a", "\nX: %d"},
	} {
		r.route(path(schema.Options{HashBy: c.by}))
		seen := map[string]bool{}
		for key := range 30 {
			request := fmt.Sprintf(c.request, key)
			got := r.many(3, request)
			for name, n := range r.many(2, request+fmt.Sprintf(c.other, key+1)) {
				got[name] += n
			}
			if len(got) != 1 {
				t.Errorf("%s: key %d went to %v", c.by, key, got)
			}
			for name := range got {
				seen[name] = true
			}
		}
		if len(seen) < 4 {
			t.Errorf("%s: 30 keys went to %v", c.by, seen)
		}
	}
	r.route(path(schema.Options{HashBy: "$remote_addr"}))
	if got := r.many(20, "GET / HTTP/1.1\nHost: a"); len(got) != 1 {
		t.Errorf("one client went to %v", got)
	}
	// Who has no value is not sent to one endpoint with all others that have none.
	r.route(path(schema.Options{HashBy: "$http_x_user"}))
	if got := r.many(60, "GET / HTTP/1.1\nHost: a"); len(got) < 3 {
		t.Errorf("without a key: %v", got)
	}
	// The hash is of what the client sent, not of what it was rewritten to.
	r.route(path(schema.Options{HashBy: "$request_uri", RewriteTarget: "/same"}))
	seen := map[string]int{}
	for key := range 30 {
		for name := range r.many(1, fmt.Sprintf("GET /%d HTTP/1.1\nHost: a", key)) {
			seen[name]++
		}
	}
	if len(seen) < 3 {
		t.Errorf("rewritten: %v", seen)
	}
}

func TestRoundRobin(t *testing.T) {
	r := newRig(t, func(r *rig) { r.settings.SlowStart = 0 }, speaker(t, "a"), speaker(t, "b"), speaker(t, "c"))
	r.route(path(schema.Options{Balance: "round_robin"}))
	if got := r.many(30, "GET / HTTP/1.1\nHost: a"); got["a"] != 10 || got["b"] != 10 || got["c"] != 10 {
		t.Errorf("%v", got)
	}
}
