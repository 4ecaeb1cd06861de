package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
)

func TestDeniedSources(t *testing.T) {
	r := newRig(t, func(r *rig) { r.p.Trusted = prefixes("127.0.0.0/8") }, handler(t, shows()))
	denied := schema.Options{Denied: prefixes("192.0.2.0/28", "2001:db8:bad::/48")}
	both := schema.Options{Denied: prefixes("192.0.2.0/28"), Sources: prefixes("192.0.2.0/24")}
	for _, c := range []asks{
		{name: "denied", options: denied, request: "GET /\nX-Forwarded-For: 192.0.2.1", status: 403},
		{name: "denied, of IPv6", options: denied, request: "GET /\nX-Forwarded-For: 2001:db8:bad::1", status: 403},
		{name: "mapped", options: denied, request: "GET /\nX-Forwarded-For: ::ffff:192.0.2.1", status: 403},
		{name: "another", options: denied, request: "GET /\nX-Forwarded-For: 192.0.2.16", status: 200},
		{name: "allowed and denied", options: both, request: "GET /\nX-Forwarded-For: 192.0.2.1", status: 403},
		{name: "allowed", options: both, request: "GET /\nX-Forwarded-For: 192.0.2.16", status: 200},
		{name: "neither", options: both, request: "GET /\nX-Forwarded-For: 198.51.100.1", status: 403},
	} {
		r.check(t, c)
	}
}

// Of several guards one is enough with satisfy: any, and all are needed without.
func TestAnyGuardIsEnough(t *testing.T) {
	server := handler(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Token") != "good" {
			w.WriteHeader(401)
			return
		}
		w.Header().Set("X-User", "server")
	})
	r := newRig(t, func(r *rig) { r.p.Trusted = prefixes("127.0.0.0/8") }, handler(t, shows("X-User", "Authorization")))
	ask := &schema.AuthURL{URL: "http://" + server.String() + "/", Headers: []string{"X-User"}}
	users := &schema.Auth{Realm: "x", Users: map[string]string{"ann": hashSHA}}
	in, out := "\nX-Forwarded-For: 192.0.2.1", "\nX-Forwarded-For: 198.51.100.1"
	sources := prefixes("192.0.2.0/24")
	ann := "\n" + basic("ann", "secret")
	for _, c := range []asks{
		{name: "sources alone, inside", options: schema.Options{AnyOf: true, Sources: sources}, request: "GET /" +
			in, status: 200},
		{name: "sources alone, outside", options: schema.Options{AnyOf: true, Sources: sources}, request: "GET /" +
			out, status: 403},
		{name: "inside, no password", options: schema.Options{AnyOf: true, Sources: sources, Auth: users},
			request: "GET /" + in, status: 200},
		{name: "outside, a password", options: schema.Options{AnyOf: true, Sources: sources, Auth: users},
			request: "GET /" + out + ann, status: 200, want: []string{"Authorization=[]"}},
		{name: "neither", options: schema.Options{AnyOf: true, Sources: sources, Auth: users}, request: "GET /" + out,
			status: 401, want: []string{"Www-Authenticate: Basic"}},
		{name: "both are needed", options: schema.Options{Sources: sources, Auth: users}, request: "GET /" +
			in, status: 401},
		{name: "inside, no question: the client does not say who it is", options: schema.Options{AnyOf: true,
			Sources: sources, AuthURL: ask}, request: "GET /" + in + "\nX-User: root", status: 200,
			want: []string{"X-User=[]"}},
		{name: "outside, the server lets in", options: schema.Options{AnyOf: true, Sources: sources, AuthURL: ask},
			request: "GET /" + out + "\nX-Token: good", status: 200, want: []string{`X-User=["server"]`}},
		{name: "outside, the server does not", options: schema.Options{AnyOf: true, Sources: sources, AuthURL: ask},
			request: "GET /" + out + "\nX-User: root", status: 401},
		{name: "a password in place of the server", options: schema.Options{AnyOf: true, Auth: users, AuthURL: ask},
			request: "GET /" + ann + "\nX-User: root", status: 200, want: []string{"X-User=[]"}},
		{name: "no password, the server", options: schema.Options{AnyOf: true, Auth: users, AuthURL: ask},
			request: "GET /\nX-Token: good", status: 200},
		{name: "all three fail", options: schema.Options{AnyOf: true, Sources: sources, Auth: users, AuthURL: ask},
			request: "GET /" + out, status: 401},
		{name: "denied ones alone let nobody in", options: schema.Options{AnyOf: true, Denied: sources, Auth: users},
			request: "GET /" + out, status: 401},
		{name: "denied, with a password", options: schema.Options{AnyOf: true, Denied: sources, Auth: users},
			request: "GET /" + in + ann, status: 200},
		{name: "denied ones and nothing else", options: schema.Options{AnyOf: true, Denied: sources}, request: "GET /" +
			in, status: 403},
		{name: "not denied, and nothing else", options: schema.Options{AnyOf: true, Denied: sources}, request: "GET /" +
			out, status: 200},
		{name: "no guard", options: schema.Options{AnyOf: true}, request: "GET /", status: 200},
	} {
		r.check(t, c)
	}
}

// A client has so many exchanges at a time, tunnels among them, and gets each back at its end.
func TestExchangesAtATime(t *testing.T) {
	release := make(chan struct{})
	r := newRig(t, func(r *rig) { r.p.Trusted, r.p.Timeouts.Read = prefixes("127.0.0.0/8"), time.Minute },
		handler(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/wait" {
				select {
				case <-release:
				case <-r.Context().Done():
				}
			}
		}))
	r.route(path(schema.Options{Exchanges: 2, Unlimited: prefixes("203.0.113.0/24")}))
	open := func(from string) *conn {
		c := r.dial()
		c.send("GET /wait HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: %s\r\n\r\n", from)
		return c
	}
	status := func(from string) int {
		resp, _ := r.ask("GET /\nX-Forwarded-For: " + from)
		return resp.StatusCode
	}
	held := func(n int) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			sum := 0
			r.p.crowd.mu.Lock()
			for _, m := range r.p.crowd.open {
				sum += m
			}
			r.p.crowd.mu.Unlock()
			if sum == n {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%d exchanges are counted, want %d", sum, n)
			}
		}
	}
	a := open("192.0.2.1")
	held(1)
	if s := status("192.0.2.1"); s != 200 {
		t.Errorf("a second one: %d", s)
	}
	held(1) // its client may have the response before it is counted out
	b := open("192.0.2.1")
	held(2)
	if s := status("192.0.2.1"); s != 503 {
		t.Errorf("a third one: %d", s)
	}
	if s := status("192.0.2.2"); s != 200 {
		t.Errorf("another client: %d", s)
	}
	held(2)
	for range 3 {
		open("203.0.113.1")
	}
	if s := status("203.0.113.1"); s != 200 {
		t.Errorf("a client without limits: %d", s)
	}
	v6 := []*conn{open("2001:db8::1"), open("2001:db8::2")}
	held(4)
	if s := status("2001:db8::3"); s != 503 {
		t.Errorf("a third one of a /64: %d", s)
	}
	b.Close()
	v6[0].Close()
	close(release)
	if resp, _ := a.response("GET"); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	held(0)
	if s := status("192.0.2.1"); s != 200 {
		t.Errorf("after all have ended: %d", s)
	}
	held(0)
}

func TestLimitsOfSeveralKinds(t *testing.T) {
	r := newRig(t, func(r *rig) { r.p.Trusted = prefixes("127.0.0.0/8") }, handler(t, shows()))
	o := schema.Options{RPS: 1000, Burst: 1000, RPM: 6, BurstRPM: 2, Unlimited: prefixes("192.0.2.9/32")}
	r.route(path(o))
	passed := func(from string) (n int) {
		for range 8 {
			if resp, _ := r.ask("GET /\nX-Forwarded-For: " + from); resp.StatusCode == 200 {
				n++
			}
		}
		return n
	}
	if n := passed("192.0.2.1"); n < 3 || n > 5 { // one, two of the burst, and what comes in some seconds
		t.Errorf("%d of 8 pass", n)
	}
	if n := passed("192.0.2.9"); n != 8 {
		t.Errorf("%d of 8 pass of who has no limit", n)
	}
}

// A response goes out no faster than the path has it, behind a part without limit, and whole.
func TestBandwidth(t *testing.T) {
	const size = 40 << 10
	body := strings.Repeat("0123456789abcdef", size/16)
	r := newRig(t, nil, handler(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, body) }))
	took := func(o schema.Options) time.Duration {
		r.route(path(o))
		begin := time.Now()
		_, got := r.ask("GET /")
		if got != body {
			t.Fatalf("%d bytes of %d came", len(got), size)
		}
		return time.Since(begin)
	}
	if d := took(schema.Options{Bandwidth: 40 << 10}); d < 800*time.Millisecond {
		t.Errorf("40 KiB by 40 KiB a second took %s", d)
	}
	if d := took(schema.Options{Bandwidth: 8 << 10, BandwidthAfter: 36 << 10}); d < 400*time.Millisecond {
		t.Errorf("4 KiB behind 36 KiB, by 8 KiB a second, took %s", d)
	}
	// The part without limit is there at once, though the rest takes a minute.
	r.route(path(schema.Options{Bandwidth: 1, BandwidthAfter: 32 << 10}))
	c := r.dial()
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(resp.Body, make([]byte, 32<<10)); err != nil {
		t.Error(err)
	}
}

// An answer of an authentication server is used again for the same key, as long as it may be, and
// never for another key, path, host or server.
func TestAuthCache(t *testing.T) {
	var asked atomic.Int64
	server := handler(t, func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		switch r.URL.Path {
		case "/no-store":
			w.Header().Set("Cache-Control", "max-age=60, no-store")
		case "/short":
			w.Header().Set("Cache-Control", "max-age=0")
		case "/cookie":
			w.Header().Set("Set-Cookie", "a=b")
		case "/vary":
			w.Header().Set("Vary", "X-Role")
		case "/500":
			w.WriteHeader(500)
			return
		}
		w.Header().Set("X-User", fmt.Sprint(r.Header.Get("Authorization"), " ", n))
		if !strings.HasPrefix(r.Header.Get("Authorization"), "good") {
			w.WriteHeader(401)
		}
	})
	r := newRig(t, nil, handler(t, shows("X-User")))
	at := func(path string, valid ...schema.CacheValid) schema.Options {
		if valid == nil {
			valid = []schema.CacheValid{{Statuses: []int{200, 401}, For: time.Minute}}
		}
		return schema.Options{AuthURL: &schema.AuthURL{URL: "http://" + server.String() + path,
			Headers: []string{"X-User"}, CacheKey: "k$http_authorization", Cache: valid}}
	}
	// questions is how many are asked for two requests.
	questions := func(name string, o schema.Options, first, second string, want int64) {
		t.Helper()
		r.route(path(o))
		before := asked.Load()
		a, bodyA := r.ask(first)
		b, bodyB := r.ask(second)
		if n := asked.Load() - before; n != want {
			t.Errorf("%s: %d questions, want %d", name, n, want)
		}
		if want == 1 && (a.StatusCode != b.StatusCode || bodyA != bodyB) {
			t.Errorf("%s: %s %q, then %s %q", name, a.Status, bodyA, b.Status, bodyB)
		}
	}
	good := func(n int) string { return fmt.Sprintf("GET /\nAuthorization: good%d", n) }
	questions("the same", at("/"), good(1), good(1), 1)
	questions("another key", at("/"), good(2), good(3), 2)
	questions("refused", at("/"), "GET /\nAuthorization: bad", "GET /\nAuthorization: bad", 1)
	questions("nothing to tell clients by", at("/"), "GET /", "GET /", 2)
	questions("the server forbids it", at("/no-store"), good(4), good(4), 2)
	questions("for no time", at("/short"), good(5), good(5), 2)
	questions("a cookie", at("/cookie"), good(6), good(6), 2)
	questions("vary", at("/vary"), good(7), good(7), 2)
	questions("an error", at("/500"), good(8), good(8), 2)
	questions("a status that is not named", at("/", schema.CacheValid{Statuses: []int{401}, For: time.Minute}),
		good(9), good(9), 2)
	questions("any status", at("/", schema.CacheValid{For: time.Minute}), good(10), good(10), 1)
	questions("a client's field of the name", at("/"), good(11)+"\nX-User: root", good(11), 1)

	// Another path and another host have answers of their own.
	before := asked.Load()
	one := path(at("/"))
	other := one
	other.Source, other.Path = "Ingress shop/main spec.rules[0].http.paths[1]", "/other"
	r.hosts(&schema.Host{Name: "shop.example", Paths: []schema.Path{one, other}},
		&schema.Host{Name: "", Paths: []schema.Path{one}})
	for _, q := range []string{"GET /", "GET /other", "GET /\nHost: else.example", "GET /other/x", "GET /x"} {
		r.ask(q + "\nAuthorization: good12")
	}
	if n := asked.Load() - before; n != 3 {
		t.Errorf("%d questions for three places", n)
	}
	// It ends.
	r.route(path(at("/", schema.CacheValid{For: 50 * time.Millisecond})))
	before = asked.Load()
	r.ask(good(13))
	time.Sleep(100 * time.Millisecond)
	r.ask(good(13))
	if n := asked.Load() - before; n != 2 {
		t.Errorf("%d questions when the time of an answer was over", n)
	}
	// It is bounded.
	for i := range maxAnswers + 100 {
		r.p.answers.put(answerKey{byte(i), byte(i >> 8)}, serverAnswer{}, time.Now().Add(time.Hour))
	}
	if n := len(r.p.answers.have); n > maxAnswers {
		t.Errorf("%d answers are remembered", n)
	}
}

// Cookies of the server reach the client with good responses, and with all where the path says so.
func TestAuthCookies(t *testing.T) {
	server := handler(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Set-Cookie", "session=1") })
	r := newRig(t, nil, handler(t, func(w http.ResponseWriter, r *http.Request) {
		n := 0
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &n)
		w.WriteHeader(n)
	}))
	const cookie = "Set-Cookie: session=1"
	for status, sent := range map[int]bool{200: true, 201: true, 204: true, 301: true, 304: true, 404: false,
		500: false, 202: false} {
		o := schema.Options{AuthURL: &schema.AuthURL{URL: "http://" + server.String() + "/"}}
		c := asks{name: fmt.Sprint(status), options: o, request: fmt.Sprintf("GET /%d", status), status: status}
		if sent {
			c.want = []string{cookie}
		} else {
			c.not = []string{cookie}
		}
		r.check(t, c)
		always := *o.AuthURL // the proxy may still read the other
		always.AlwaysCookie = true
		o.AuthURL = &always
		r.check(t, asks{name: fmt.Sprint(status, " always"), options: o, request: c.request, status: status,
			want: []string{cookie}})
	}
}

// What a server is told can be changed, and where it learns where the client wanted to go.
func TestWhatTheServerIsTold(t *testing.T) {
	server := handler(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Seen", fmt.Sprint(r.Header.Get("X-Auth-Request-Redirect"), " ", r.Header.Values("X-Extra")))
		if r.URL.Path == "/401" {
			w.WriteHeader(401)
		}
	})
	r := newRig(t, nil, handler(t, shows("X-Seen")))
	a := schema.AuthURL{URL: "http://" + server.String() + "/", Headers: []string{"X-Seen"},
		Target: "https://$host/back?to=$escaped_request_uri",
		Fields: []schema.Field{{Name: "X-Extra", Value: "v-$request_method"}}}
	r.check(t, asks{name: "told", options: schema.Options{AuthURL: &a},
		request: "GET /a?b\nX-Extra: mine\nX-Auth-Request-Redirect: evil", status: 200,
		want: []string{`X-Seen=["https://shop.example/back?to=%2Fa%3Fb [v-GET]"]`}})
	told := a
	told.URL += "401"
	for _, c := range []struct{ signIn, param, want string }{
		{"https://in.example/", "", "Location: https://in.example/?rd=http%3A%2F%2Fshop.example%2Fa%3Fb\n"},
		{"https://in.example/", "next", "Location: https://in.example/?next=http%3A%2F%2Fshop.example%2Fa%3Fb\n"},
		{"https://in.example/?next=x", "next", "Location: https://in.example/?next=x\n"},
		{"https://in.example/?rd=x", "next",
			"Location: https://in.example/?rd=x&next=http%3A%2F%2Fshop.example%2Fa%3Fb\n"},
	} {
		a := told // the proxy may still read that of the case before
		a.SignIn, a.Param = c.signIn, c.param
		r.check(t, asks{name: c.want, options: schema.Options{AuthURL: &a}, request: "GET /a?b", status: 302,
			want: []string{c.want}})
	}
}

// A request that is counted is given back when its client leaves in the middle of a slow response.
func TestWhoLeavesIsNotCounted(t *testing.T) {
	r := newRig(t, nil, raw(t, func(c net.Conn, br *bufio.Reader) {
		if _, err := readHead(br); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"+strings.Repeat("x", 100000))
			_, _ = br.ReadByte()
		}
	}))
	r.route(path(schema.Options{Exchanges: 1, Bandwidth: 10 << 10}))
	c := r.dial()
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if _, err := c.br.ReadByte(); err != nil {
		t.Fatal(err)
	}
	c.Close()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r.p.crowd.mu.Lock()
		n := len(r.p.crowd.open)
		r.p.crowd.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it is counted for ever")
		}
	}
}
