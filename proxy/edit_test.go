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

func TestWhatEndpointsAreSent(t *testing.T) {
	r := newRig(t, nil, handler(t, shows("X-Forwarded-Prefix", "X-Forwarded-Host", "X-Tag", "X_Tag")))
	up := func(u schema.Upstream) schema.Options { return schema.Options{Upstream: &u} }
	prefix := schema.Field{Name: "X-Forwarded-Prefix", Value: "/app"}
	for _, c := range []asks{
		{name: "prefix", options: up(schema.Upstream{Fields: []schema.Field{prefix}}),
			request: "GET /a\nX-Forwarded-Prefix: /evil", status: 200, want: []string{`X-Forwarded-Prefix=["/app"]`}},
		{name: "host", options: up(schema.Upstream{Host: "inner.example:8080"}), request: "GET /a", status: 200,
			want: []string{"GET inner.example:8080 /a", `X-Forwarded-Host=["shop.example"]`}},
		{name: "host of a variable", options: up(schema.Upstream{Host: "$http_x_want"}),
			request: "GET /a\nX-Want: b.example", status: 200, want: []string{"GET b.example /a"}},
		{name: "a variable that is no host", options: up(schema.Upstream{Host: "$http_x_want"}),
			request: "GET /a\nX-Want: b/ c", status: 200, want: []string{"GET shop.example /a"}},
		{name: "an empty variable", options: up(schema.Upstream{Host: "$http_x_want"}), request: "GET /a", status: 200,
			want: []string{"GET shop.example /a"}},
		{name: "a field in place of the client's",
			options: up(schema.Upstream{Fields: []schema.Field{{Name: "X-Tag", Value: "m=$request_method"}}}),
			request: "GET /a\nX-Tag: mine\nX_Tag: mine", status: 200, want: []string{`X-Tag=["m=GET"] X_Tag=[]`}},
		{name: "a field that is taken out", options: up(schema.Upstream{Fields: []schema.Field{{Name: "X-Tag"}}}),
			request: "GET /a\nX-Tag: mine", status: 200, want: []string{"X-Tag=[]"}},
	} {
		r.check(t, c)
	}
}

func TestResponsesAreChanged(t *testing.T) {
	r := newRig(t, nil, handler(t, func(w http.ResponseWriter, r *http.Request) {
		for _, f := range []string{"Set-Cookie", "Location", "Refresh", "X-Powered-By"} {
			for _, v := range r.Header.Values("Want-" + f) {
				w.Header().Add(f, v)
			}
		}
		w.WriteHeader(201)
	}))
	resp := func(p schema.Response) schema.Options { return schema.Options{Response: &p} }
	one := func(from, to string) []schema.Replace { return []schema.Replace{{From: from, To: to}} }
	for _, c := range []asks{
		{name: "domain", options: resp(schema.Response{Domain: one("localhost", "shop.example")}),
			request: "GET /\nWant-Set-Cookie: a=b; Domain=.LocalHost; Path=/x\nWant-Set-Cookie: c=d; " +
				"domain=else.example\nWant-Set-Cookie: Domain=localhost", status: 201,
			want: []string{"Set-Cookie: a=b; Domain=shop.example; Path=/x\n", "Set-Cookie: c=d; domain=else.example\n",
				"Set-Cookie: Domain=localhost\n"}},
		{name: "domain by an expression", options: resp(schema.Response{Domain: one(`~^(.+)\.inner$`, "$1.example")}),
			request: "GET /\nWant-Set-Cookie: a=b; Domain=shop.inner", status: 201,
			want: []string{"Domain=shop.example\n"}},
		{name: "path", options: resp(schema.Response{CookiePath: one("/one/", "/")}),
			request: "GET /\nWant-Set-Cookie: a=b; Path=/one/two; HttpOnly\nWant-Set-Cookie: c=d; Path=/on",
			status:  201, want: []string{"Set-Cookie: a=b; Path=/two; HttpOnly\n", "c=d; Path=/on\n"}},
		{name: "path by an expression", options: resp(schema.Response{CookiePath: one(`~*^/APP/(.*)`, "/$1")}),
			request: "GET /\nWant-Set-Cookie: a=b; Path=/app/x", status: 201, want: []string{"Path=/x\n"}},
		{name: "location", options: resp(schema.Response{Location: one("http://inner:8080/", "https://$host/")}),
			request: "GET /\nWant-Location: http://inner:8080/a?b\nWant-Refresh: 5; url=http://inner:8080/c",
			status:  201, want: []string{"Location: https://shop.example/a?b\n",
				"Refresh: 5; url=https://shop.example/c\n"}},
		{name: "another location", options: resp(schema.Response{Location: one("http://inner:8080/", "/")}),
			request: "GET /\nWant-Location: http://inner/a", status: 201, want: []string{"Location: http://inner/a\n"}},
		{name: "location by an expression",
			options: resp(schema.Response{Location: one(`~^http://([a-z]+)\.inner(/.*)?$`, "https://$1.example$2")}),
			request: "GET /\nWant-Location: http://x.inner/a", status: 201,
			want: []string{"Location: https://x.example/a\n"}},
		{name: "fields", options: resp(schema.Response{Fields: []schema.Field{{Name: "X-Frame-Options", Value: "DENY"},
			{Name: "X-Powered-By"}}}), request: "GET /\nWant-X-Powered-By: y", status: 201,
			want: []string{"X-Frame-Options: DENY\n"}, not: []string{"X-Powered-By"}},
		{name: "fields of what the proxy answers", options: schema.Options{Sources: prefixes("192.0.2.0/24"),
			Response: &schema.Response{Fields: []schema.Field{{Name: "X-Frame-Options", Value: "DENY"}}}},
			request: "GET /", status: 403, want: []string{"X-Frame-Options: DENY\n"}},
		{name: "a value cannot end its line",
			options: resp(schema.Response{Fields: []schema.Field{{Name: "X-Uri", Value: "$uri"}}}),
			request: "GET /a%0d%0aSet-Cookie:x", status: 201, want: []string{"X-Uri: /a%0D%0ASet-Cookie:x\n"}},
	} {
		r.check(t, c)
	}
}

// The rest of the affinity cookie.
func TestMoreCookieAttributes(t *testing.T) {
	r := newRig(t, nil, handler(t, shows()))
	none := schema.Affinity{Name: "s", Path: "/", SameSite: "None", Conditional: true}
	for _, c := range []struct {
		name, agent string
		a           schema.Affinity
		want, not   string
	}{
		{name: "domain", a: schema.Affinity{Name: "s", Path: "/", Domain: "shop.example"},
			want: "; Path=/; Domain=shop.example; HttpOnly"},
		{name: "partitioned", a: schema.Affinity{Name: "s", Path: "/", Partitioned: true},
			want: "; HttpOnly; Partitioned"},
		{name: "a new browser", a: none,
			agent: "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 " +
				"Safari/537.36", want: "; SameSite=None"},
		{name: "an old Chrome", a: none,
			agent: "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/55.0.2883.87 " +
				"Safari/537.36", not: "SameSite"},
		{name: "iOS 12", a: none, agent: "Mozilla/5.0 (iPhone; CPU iPhone OS 12_1 like Mac OS X) " +
			"AppleWebKit/605.1.15 (KHTML, like Gecko) Version/12.0 Mobile/15E148 Safari/604.1", not: "SameSite"},
		{name: "macOS 10.14", a: none, agent: "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_14_6) AppleWebKit/605.1.15 " +
			"(KHTML, like Gecko) Version/12.1.2 Safari/605.1.15", not: "SameSite"},
		{name: "Strict is for all", a: schema.Affinity{Name: "s", Path: "/", SameSite: "Strict", Conditional: true},
			agent: "Chrome/55.0", want: "; SameSite=Strict"},
	} {
		r.route(path(schema.Options{Affinity: &c.a}))
		resp, _ := r.ask("GET /\nUser-Agent: " + c.agent)
		if got := resp.Header.Get("Set-Cookie"); !strings.Contains(got, c.want) || c.not != "" &&
			strings.Contains(got, c.not) {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

// A client whose endpoint fails gets the next one for good where the path says so.
func TestAffinityMovesWhenAnEndpointFails(t *testing.T) {
	dead := listen(t)
	_ = dead.Close()
	good := handler(t, shows())
	for _, moves := range []bool{false, true} {
		r := newRig(t, nil, addrOf(dead), good)
		r.route(path(schema.Options{Affinity: &schema.Affinity{Name: "s", Path: "/", Moves: moves}}))
		token := ""
		for _, e := range r.p.Upstreams.Lookup("b").All() {
			if e.Addr == addrOf(dead) {
				token = string(e.Token())
			}
		}
		resp, _ := r.ask("GET /\nCookie: s=" + token)
		if resp.StatusCode != 200 || (resp.Header.Get("Set-Cookie") != "") != moves {
			t.Errorf("moves %v: %s, %q", moves, resp.Status, resp.Header.Get("Set-Cookie"))
		}
	}
}

// A key has the same few endpoints, and uses all of them.
func TestHashSubset(t *testing.T) {
	var list []netip.AddrPort
	for i := range 8 {
		list = append(list, handler(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, i) }))
	}
	r := newRig(t, nil, list...)
	for _, size := range []int{1, 3, 20} {
		r.route(path(schema.Options{HashBy: "$http_x_key", HashSubset: size}))
		seen := map[string]bool{}
		for range 200 {
			_, body := r.ask("GET /\nX-Key: k")
			seen[body] = true
		}
		if want := min(size, 8); len(seen) != want {
			t.Errorf("%d endpoints of a subset of %d", len(seen), size)
		}
	}
}

// Canaries of affinity: a client keeps its side, unless each request is to be drawn.
func TestCanaryEachTime(t *testing.T) {
	r := newRig(t, nil)
	r.backends(map[string][]netip.AddrPort{
		"b": {handler(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "main") })},
		"c": {handler(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "canary") })}})
	for _, each := range []bool{false, true} {
		r.route(path(schema.Options{Affinity: &schema.Affinity{Name: "s", Path: "/"},
			Canary: []schema.Canary{{Backend: "c", Weight: 100, EachTime: each}}}))
		token := r.p.Upstreams.Lookup("b").All()[0].Token()
		want := map[bool]string{false: "main", true: "canary"}[each]
		if _, body := r.ask("GET /\nCookie: s=" + string(token)); body != want {
			t.Errorf("each time %v: %s", each, body)
		}
	}
}

func TestRetries(t *testing.T) {
	dead := listen(t)
	_ = dead.Close()
	slow := handler(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	bad := handler(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	good := handler(t, shows())
	for _, c := range []struct {
		name    string
		retry   *schema.Retry
		request string
		list    []netip.AddrPort
		status  int
	}{
		{"the proxy's rule", nil, "GET /", []netip.AddrPort{addrOf(dead), good}, 200},
		{"never", &schema.Retry{Never: true}, "GET /", []netip.AddrPort{addrOf(dead)}, 502},
		{"a status is passed on", nil, "GET /", []netip.AddrPort{bad}, 503},
		{"a status that is retried", &schema.Retry{Statuses: []int{503}}, "GET /", []netip.AddrPort{bad, good}, 200},
		{"all have it", &schema.Retry{Statuses: []int{503}}, "GET /", []netip.AddrPort{bad}, 503},
		{"POST is not sent again", &schema.Retry{Statuses: []int{503}}, "POST /\nContent-Length: 0",
			[]netip.AddrPort{bad}, 503},
		{"POST is, where it may be", &schema.Retry{Statuses: []int{503}, Unsafe: true}, "POST /\nContent-Length: 0",
			[]netip.AddrPort{bad, good}, 200},
		{"too slow", nil, "GET /", []netip.AddrPort{slow}, 504},
		{"too slow, and another asked", &schema.Retry{Timeout: true}, "GET /", []netip.AddrPort{slow, good}, 200},
		{"one try", &schema.Retry{Statuses: []int{503}, Tries: 1}, "GET /", []netip.AddrPort{bad, bad2(t)}, 503},
	} {
		r := newRig(t, nil, c.list...)
		r.route(path(schema.Options{Retry: c.retry, Read: 300 * time.Millisecond, Balance: "round_robin"}))
		for range 4 { // whichever is first
			if resp, _ := r.ask(c.request); resp.StatusCode != c.status {
				t.Errorf("%s: %s, want %d", c.name, resp.Status, c.status)
			}
		}
	}
	r := newRig(t, nil, slow, slow2(t), slow2(t))
	r.route(path(schema.Options{Retry: &schema.Retry{Timeout: true, Within: time.Millisecond},
		Read: 100 * time.Millisecond}))
	if r.ask("GET /"); r.record(0).Tries != 1 {
		t.Errorf("%d tries when the time for them was over", r.record(0).Tries)
	}
}

func bad2(t *testing.T) netip.AddrPort {
	return handler(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
}

func slow2(t *testing.T) netip.AddrPort {
	return handler(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
}

// Another backend answers for statuses, whoever made them, and for a backend without endpoints.
func TestErrorPages(t *testing.T) {
	end := handler(t, func(w http.ResponseWriter, r *http.Request) {
		n := 200
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &n)
		w.Header().Set("X-Of", "endpoint")
		w.WriteHeader(n)
		fmt.Fprint(w, "endpoint")
	})
	pages := handler(t, func(w http.ResponseWriter, r *http.Request) {
		n := 404
		_, _ = fmt.Sscan(r.Header.Get("X-Code"), &n)
		w.WriteHeader(n)
		fmt.Fprintf(w, "page %s %s", r.Method, r.RequestURI)
		for _, f := range []string{"X-Code", "X-Format", "X-Original-Uri", "X-Namespace", "X-Ingress-Name",
			"X-Service-Name", "X-Service-Port", "Authorization", "X-User", "Content-Type", "X-Forwarded-For"} {
			fmt.Fprintf(w, " %s=%q", f, r.Header.Values(f))
		}
	})
	r := newRig(t, nil)
	r.backends(map[string][]netip.AddrPort{"b": {end}, "pages": {pages}, "none": nil})
	errs := func(statuses ...int) *schema.Errors {
		return &schema.Errors{Backend: "pages", Statuses: statuses, Namespace: "shop", Ingress: "main",
			Service: "web", Port: "80"}
	}
	own := errs(404, 503)
	own.OwnOnly = true
	for _, c := range []asks{
		{name: "a status of an endpoint", options: schema.Options{Errors: errs(404, 503)},
			request: "GET /404?a=b\nAccept: text/html\nX-Code: 200\nX-Original-URI: /evil", status: 404,
			want: []string{`page GET / X-Code=["404"] X-Format=["text/html"] X-Original-Uri=["/404?a=b"] ` +
				`X-Namespace=["shop"] X-Ingress-Name=["main"] X-Service-Name=["web"] X-Service-Port=["80"]`,
				`X-Forwarded-For=["127.0.0.1"]`}, not: []string{"X-Of"}},
		{name: "another status", options: schema.Options{Errors: errs(404)}, request: "GET /500", status: 500,
			want: []string{"endpoint"}},
		{name: "HEAD", options: schema.Options{Errors: errs(404)}, request: "HEAD /404", status: 404},
		{name: "a body is not sent again", options: schema.Options{Errors: errs(404)},
			request: "POST /404\nContent-Type: text/x\nContent-Length: 0", status: 404, want: []string{"page GET /",
				"Content-Type=[]"}},
		{name: "left to endpoints", options: schema.Options{Errors: own}, request: "GET /404", status: 404,
			want: []string{"endpoint"}},
		{name: "of the proxy itself", options: schema.Options{Errors: errs(403), Sources: prefixes("192.0.2.0/24")},
			request: "GET /", status: 403, want: []string{`page GET / X-Code=["403"]`}},
		{name: "of the proxy itself, left to endpoints",
			options: schema.Options{Errors: func() *schema.Errors { e := errs(403); e.OwnOnly = true; return e }(),
				Sources: prefixes("192.0.2.0/24")}, request: "GET /", status: 403, want: []string{"page"}},
		{name: "a password is asked for all the same", options: schema.Options{Errors: errs(401),
			Auth: &schema.Auth{Realm: "x"}}, request: "GET /\n" + basic("ann", "x"), status: 401,
			want: []string{"page", "Www-Authenticate: Basic", "Authorization=[]"}},
		{name: "nobody says who it is", options: schema.Options{Errors: errs(404, 500),
			AuthURL: &schema.AuthURL{URL: "http://127.0.0.1:1/", Headers: []string{"X-User"}}},
			request: "GET /\nX-User: root", status: 500, want: []string{"page", "X-User=[]"}},
		{name: "the pages have no endpoint", options: schema.Options{Errors: &schema.Errors{Backend: "none",
			Statuses: []int{404}}}, request: "GET /404", status: 404, want: []string{"endpoint"}},
	} {
		r.check(t, c)
	}
	p := path(schema.Options{Errors: errs(500)})
	p.Backend = "none"
	r.route(p)
	if resp, body := r.ask("GET /x?y"); resp.StatusCode != 503 || !strings.HasPrefix(body,
		`page GET /x?y X-Code=["503"] X-Format=[] X-Original-Uri=["/x?y"] X-Namespace=["shop"] `+
			`X-Ingress-Name=["main"] X-Service-Name=["web"] X-Service-Port=["80"]`) {
		t.Errorf("a backend without endpoints: %s %q", resp.Status, body)
	}
	p.Options = &schema.Options{}
	r.route(p)
	if resp, _ := r.ask("GET /x"); resp.StatusCode != 503 {
		t.Errorf("without pages: %s", resp.Status)
	}
	// Pages that fail are not asked about their own failure.
	r.backends(map[string][]netip.AddrPort{"b": {end}, "pages": {netip.MustParseAddrPort("127.0.0.1:1")}})
	r.route(path(schema.Options{Errors: errs(404, 502)}))
	if resp, _ := r.ask("GET /404"); resp.StatusCode != 502 {
		t.Errorf("pages that are away: %s", resp.Status)
	}
}
