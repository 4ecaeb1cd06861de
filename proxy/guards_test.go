package proxy

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestSources(t *testing.T) {
	stranger := newRig(t, nil, handler(t, shows()))
	trusting := newRig(t, func(r *rig) { r.p.Trusted = prefixes("127.0.0.0/8", "10.0.0.0/8", "fd00::/8") },
		handler(t, shows()))
	ten := schema.Options{Sources: prefixes("192.0.2.0/24", "2001:db8::/32")}
	for _, c := range []asks{
		{name: "the peer is one", options: schema.Options{Sources: prefixes("192.0.2.0/24", "127.0.0.1/32")},
			request: "GET /", status: 200},
		{name: "the peer is none", options: ten, request: "GET /", status: 403},
		{name: "who is not trusted is not believed", options: ten,
			request: "GET /\nX-Forwarded-For: 192.0.2.1", status: 403},
		{name: "nor by X-Real-IP", options: ten, request: "GET /\nX-Real-IP: 192.0.2.1", status: 403},
	} {
		stranger.check(t, c)
	}
	for _, c := range []asks{
		{name: "a trusted peer's client", options: ten, request: "GET /\nX-Forwarded-For: 192.0.2.1", status: 200},
		{name: "of IPv6", options: ten, request: "GET /\nX-Forwarded-For: 2001:db8::1", status: 200},
		{name: "with a port", options: ten, request: "GET /\nX-Forwarded-For: [2001:db8::1]:443", status: 200},
		{name: "an IPv4 one with a port", options: ten, request: "GET /\nX-Forwarded-For: 192.0.2.1:4711", status: 200},
		{name: "in brackets", options: ten, request: "GET /\nX-Forwarded-For: [2001:db8::1]", status: 200},
		{name: "mapped", options: ten, request: "GET /\nX-Forwarded-For: ::ffff:192.0.2.1", status: 200},
		{name: "another", options: ten, request: "GET /\nX-Forwarded-For: 198.51.100.1", status: 403},
		{name: "what the client put in front is not believed", options: ten,
			request: "GET /\nX-Forwarded-For: 192.0.2.1, 198.51.100.1", status: 403},
		{name: "through trusted ones", options: ten,
			request: "GET /\nX-Forwarded-For: 198.51.100.1, 192.0.2.1, 10.1.1.1, fd00::1", status: 200},
		{name: "in several fields", options: ten,
			request: "GET /\nX-Forwarded-For: 192.0.2.1\nX-Forwarded-For: 198.51.100.1", status: 403},
		{name: "in several fields, the last", options: ten,
			request: "GET /\nX-Forwarded-For: 198.51.100.1\nX-Forwarded-For: 192.0.2.1", status: 200},
		{name: "no address", options: ten, request: "GET /\nX-Forwarded-For: unknown", status: 403},
		{name: "no address before a trusted one", options: ten,
			request: "GET /\nX-Forwarded-For: 192.0.2.1, x, 10.1.1.1", status: 403},
		{name: "all are trusted: the first of them", options: schema.Options{Sources: prefixes("10.9.0.0/16")},
			request: "GET /\nX-Forwarded-For: 10.9.1.1, 10.1.1.1", status: 200},
		{name: "empty", options: ten, request: "GET /\nX-Forwarded-For: ,,", status: 403},
	} {
		trusting.check(t, c)
	}
}

func basic(name, password string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
}

const (
	hashBcrypt = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a" // secret
	hashAPR1   = "$apr1$saltsalt$LrttParrLPdxvgutaSXWJ0"                        // secret
	hashSHA    = "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ="                            // secret
)

func TestBasicAuth(t *testing.T) {
	r := newRig(t, nil, handler(t, shows("Authorization")))
	o := schema.Options{Auth: &schema.Auth{Realm: `say "please" \ now` + "\r\nX: y",
		Users: map[string]string{"bea": hashBcrypt, "ann": hashAPR1, "sha": hashSHA, "bad": "secret", "": hashSHA}}}
	challenge := `Www-Authenticate: Basic realm="say \"please\" \\ nowX: y"` + "\n"
	for _, c := range []asks{
		{name: "nothing", request: "GET /", status: 401, want: []string{challenge}},
		{name: "bcrypt", request: "GET /\n" + basic("bea", "secret"), status: 200, want: []string{"Authorization=[]"}},
		{name: "apr1", request: "GET /\n" + basic("ann", "secret"), status: 200},
		{name: "SHA", request: "GET /\n" + basic("sha", "secret"), status: 200},
		{name: "the scheme's case", request: "GET /\nauthorization: bAsIc " +
			base64.StdEncoding.EncodeToString([]byte("sha:secret")), status: 200},
		{name: "wrong", request: "GET /\n" + basic("bea", "Secret"), status: 401, want: []string{challenge}},
		{name: "wrong again, from memory", request: "GET /\n" + basic("bea", "Secret"), status: 401},
		{name: "right again, from memory", request: "GET /\n" + basic("bea", "secret"), status: 200},
		{name: "empty password", request: "GET /\n" + basic("bea", ""), status: 401},
		{name: "another's name", request: "GET /\n" + basic("nobody", "secret"), status: 401},
		{name: "a hash of no kind", request: "GET /\n" + basic("bad", "secret"), status: 401},
		{name: "the hash is no password", request: "GET /\n" + basic("bea", hashBcrypt), status: 401},
		{name: "a long password", request: "GET /\n" + basic("bea", strings.Repeat("x", 1000)), status: 401},
		{name: "a longer one", request: "GET /\n" + basic("bea", strings.Repeat("x", 8000)), status: 401},
		{name: "another scheme", request: "GET /\nAuthorization: Bearer c2hhOnNlY3JldA==", status: 401},
		{name: "no base64", request: "GET /\nAuthorization: Basic %%%", status: 401},
		{name: "base64 without colon", request: "GET /\nAuthorization: Basic c2hh", status: 401},
		{name: "no value", request: "GET /\nAuthorization: Basic", status: 401},
		{name: "POST", request: "POST /\nContent-Length: 0\n" + basic("bea", "secret"), status: 200},
	} {
		c.options = o
		r.check(t, c)
	}
	r.check(t, asks{name: "no users", options: schema.Options{Auth: &schema.Auth{Realm: "x"}}, request: "GET /\n" +
		basic("bea", "secret"), status: 401})
	// What is known of a password is known of its hash only.
	r.check(t, asks{name: "a new hash",
		options: schema.Options{Auth: &schema.Auth{Realm: "x",
			Users: map[string]string{"bea": "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0b"}}},
		request: "GET /\n" + basic("bea", "secret"), status: 401})
}

// A slow hash is made once; a flood of wrong passwords neither drives that out nor stops
// requests of others.
func TestBasicAuthRemembers(t *testing.T) {
	r := newRig(t, nil, handler(t, shows()))
	// Of cost 12: a comparison takes 0.2 s and more.
	hash := "$2b$12$abcdefghijklmnopqrstuuzQtCeYlcyvoZxbf4WwceqHBZM4c6Y6S"
	r.route(path(schema.Options{Auth: &schema.Auth{Realm: "x", Users: map[string]string{"ann": hash}}}))
	request := "GET / HTTP/1.1\nHost: a\n" + basic("ann", "abc123xyz")
	begin := time.Now()
	if got := r.many(1, request); got["GET a /"] != 1 {
		t.Fatalf("%v", got)
	}
	once := time.Since(begin)
	begin = time.Now()
	if got := r.many(100, request); got["GET a /"] != 100 {
		t.Fatalf("%v", got)
	}
	if d := time.Since(begin); d > 20*once {
		t.Errorf("100 requests took %s, the first %s", d, once)
	}
	var p passwords
	p.once.Do(p.start)
	k := [32]byte{1}
	p.keep(k, true)
	for i := range 3 * maxRemembered {
		p.keep([32]byte{2, byte(i), byte(i >> 8)}, false)
	}
	if right, known := p.recall(k); !right || !known || len(p.wrong) > maxRemembered {
		t.Errorf("%v %v, %d wrong ones are kept", right, known, len(p.wrong))
	}
}

func TestCORS(t *testing.T) {
	r := newRig(t, nil, handler(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "https://endpoint.example")
		w.Header().Set("Vary", "Accept")
		fmt.Fprint(w, "the endpoint: "+r.Method)
	}))
	any := schema.Options{CORS: &schema.CORS{}}
	some := schema.Options{CORS: &schema.CORS{Origins: []string{"https://shop.example", "https://*.shop.example:8443",
		"http://*.dev.example"}, Credentials: true, Methods: "GET, PUT", Headers: "X-A", Expose: "X-B",
		MaxAge: time.Minute}}
	allow := "Access-Control-Allow-Origin: "
	for _, c := range []asks{
		{name: "any, preflight", options: any,
			request: "OPTIONS /a\nOrigin: https://x.example\nAccess-Control-Request-Method: PUT", status: 204,
			want: []string{allow + "*\n", "Access-Control-Allow-Methods: GET, PUT, POST, DELETE, PATCH, OPTIONS\n",
				"Access-Control-Allow-Headers: DNT,Keep-Alive,", "Access-Control-Max-Age: 1728000\n"},
			not: []string{"Content-Length", "Content-Type: ", "endpoint", "Credentials", "Vary"}},
		{name: "any, GET", options: any, request: "GET /a\nOrigin: https://x.example", status: 200,
			want: []string{allow + "*\n", "Vary: Accept\n", "the endpoint: GET"},
			not:  []string{"https://endpoint.example"}},
		{name: "any, no origin", options: any, request: "GET /a", status: 200,
			want: []string{allow + "https://endpoint.example\n"}},
		{name: "one, preflight", options: some,
			request: "OPTIONS /a\nOrigin: https://shop.example\nAccess-Control-Request-Method: PUT", status: 204,
			want: []string{allow + "https://shop.example\n", "Access-Control-Allow-Credentials: true\n",
				"Access-Control-Allow-Methods: GET, PUT\n", "Access-Control-Allow-Headers: X-A\n",
				"Access-Control-Max-Age: 60\n", "Vary: Origin\n"}},
		{name: "one, PUT", options: some, request: "PUT /a\nContent-Length: 0\nOrigin: https://shop.example",
			status: 200, want: []string{allow + "https://shop.example\n", "Access-Control-Expose-Headers: X-B\n",
				"Vary: Origin\n", "the endpoint: PUT"}, not: []string{"https://endpoint.example"}},
		{name: "a label", options: some, request: "GET /\nOrigin: https://a.shop.example:8443", status: 200,
			want: []string{allow + "https://a.shop.example:8443\n"}},
		{name: "case", options: some, request: "GET /\nOrigin: HTTPS://Shop.Example", status: 200,
			want: []string{allow + "HTTPS://Shop.Example\n"}},
		{name: "another port", options: some, request: "GET /\nOrigin: https://a.shop.example", status: 200,
			not: []string{"shop.example\n"}},
		{name: "two labels", options: some, request: "GET /\nOrigin: http://a.b.dev.example", status: 200,
			not: []string{"dev.example"}},
		{name: "no label", options: some, request: "GET /\nOrigin: http://.dev.example", status: 200,
			not: []string{"dev.example"}},
		{name: "a name that ends so", options: some, request: "GET /\nOrigin: http://evil.example/.dev.example",
			status: 200, not: []string{"evil.example"}},
		{name: "another scheme", options: some, request: "GET /\nOrigin: https://a.dev.example", status: 200,
			not: []string{"dev.example"}},
		{name: "null", options: some, request: "GET /\nOrigin: null", status: 200, not: []string{allow + "null"}},
		{name: "one that is not allowed asks the endpoint", options: some,
			request: "OPTIONS /\nOrigin: https://evil.example\nAccess-Control-Request-Method: PUT", status: 200,
			want: []string{"the endpoint: OPTIONS", "Vary: Origin\n", allow + "https://endpoint.example\n"}},
		{name: "a refusal can be read by the page", options: schema.Options{CORS: &schema.CORS{},
			Auth: &schema.Auth{Realm: "x"}}, request: "GET /\nOrigin: https://x.example", status: 401,
			want: []string{allow + "*\n"}},
		{name: "the question beforehand needs no password", options: schema.Options{CORS: &schema.CORS{},
			Auth: &schema.Auth{Realm: "x"}},
			request: "OPTIONS /\nOrigin: https://x.example\nAccess-Control-Request-Method: PUT", status: 204},
	} {
		r.check(t, c)
	}
	// The connection is of use behind a preflight.
	r.route(path(any))
	c := r.dial()
	for range 3 {
		c.send("OPTIONS / HTTP/1.1\r\nHost: a\r\nOrigin: https://x\r\n\r\n")
		if resp, _ := c.response("OPTIONS"); resp.StatusCode != 204 {
			t.Fatal(resp.Status)
		}
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, body := c.response("GET"); resp.StatusCode != 200 || body != "the endpoint: GET" ||
			resp.Header.Get("Access-Control-Allow-Origin") != "https://endpoint.example" {
			t.Fatal(resp.Status, body, resp.Header)
		}
	}
}

func TestLimitRPS(t *testing.T) {
	r := newRig(t, func(r *rig) { r.p.Trusted = prefixes("127.0.0.0/8") }, handler(t, shows()))
	limit := func(source string) schema.Path {
		return schema.Path{Kind: schema.Prefix, Path: "/" + source, Backend: "b", Options: &schema.Options{RPS: 0.01,
			Burst: 4}, Source: "Ingress shop/" + source + " spec.rules[0]"}
	}
	a2 := limit("a")
	a2.Path, a2.Source = "/other", "Ingress shop/a spec.rules[1]"
	r.route(limit("a"), limit("b"), a2, schema.Path{Kind: schema.Prefix, Path: "/free", Backend: "b"})
	count := func(target, client string) (passed int) {
		got := r.many(10, "GET "+target+" HTTP/1.1\nHost: a\nX-Forwarded-For: "+client)
		for answer, n := range got {
			if strings.HasPrefix(answer, "GET") {
				passed += n
			} else if answer != "503 Service Unavailable" {
				t.Errorf("%s by %s: %q", target, client, answer)
			}
		}
		return passed
	}
	for _, c := range []struct {
		target, client string
		want           int
	}{
		{"/a", "192.0.2.1", 5},       // one, and a burst of four
		{"/a", "192.0.2.2", 5},       // another client
		{"/other", "192.0.2.1", 0},   // another path of the Ingress
		{"/b", "192.0.2.1", 5},       // another Ingress
		{"/free", "192.0.2.1", 10},   // no limit
		{"/a", "2001:db8::1", 5},     // IPv6
		{"/a", "2001:db8::2", 0},     // the same network
		{"/a", "2001:db8:0:1::1", 5}, // another
	} {
		if n := count(c.target, c.client); n != c.want {
			t.Errorf("%s by %s: %d passed, want %d", c.target, c.client, n, c.want)
		}
	}
	// A change of routes forgets nothing.
	r.route(limit("a"), limit("b"))
	if n := count("/a", "192.0.2.1"); n != 0 {
		t.Errorf("after a change of routes: %d passed", n)
	}
}

func TestLimits(t *testing.T) {
	var l limits
	l.once.Do(l.start)
	now := l.epoch.Add(time.Second)
	who := netip.MustParseAddr("192.0.2.1")
	passed := func(d time.Duration) (n int) {
		for range 50 {
			if l.take("x", who, 10, 5, now.Add(d)) {
				n++
			}
		}
		return n
	}
	for _, c := range []struct {
		at   time.Duration
		want int
	}{{0, 6}, {50 * time.Millisecond, 0}, {100 * time.Millisecond, 1}, {450 * time.Millisecond, 3},
		{10 * time.Second, 6}, {9 * time.Second, 0}} {
		if n := passed(c.at); n != c.want {
			t.Errorf("at %s: %d, want %d", c.at, n, c.want)
		}
	}
	// A flood of addresses takes no memory and stops no client below the rate.
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50_000 {
				a := netip.AddrFrom4([4]byte{byte(10 + g), byte(i >> 16), byte(i >> 8), byte(i)})
				if !l.take("x", a, 1, 0, now.Add(20*time.Second)) {
					t.Errorf("%s is refused its first request", a)
					return
				}
			}
		})
	}
	wg.Wait()
	// It evicts no client above the rate while there are others.
	busy := netip.MustParseAddr("192.0.2.9")
	at := now.Add(time.Minute)
	for l.take("x", busy, 0.001, 3, at) {
	}
	for i := range 200_000 {
		l.take("x", netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1e6, 0,
			at.Add(time.Duration(i)*10*time.Microsecond))
	}
	if l.take("x", busy, 0.001, 3, at.Add(time.Second)) {
		t.Error("a flood of others gave a client a new burst")
	}
	if len(l.sets) != limitSets {
		t.Error("it grew")
	}
	if !l.take("x", who, 1e9, 0, now.Add(time.Hour)) || !l.take("x", netip.Addr{}, 1, 0, now) {
		t.Error("refused")
	}
}
