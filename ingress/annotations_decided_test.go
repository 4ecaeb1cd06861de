package ingress

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/proxy/schema"
)

// The other name of a host redirects to it, as long as no Ingress routes it.
func TestFromToWWW(t *testing.T) {
	base := sampleYAML(t)
	www := func(name, host string, more ...string) string {
		return ing(name, append(more, "from-to-www-redirect: true"), rules(host+" / P web:80"))
	}
	const to = `{"redirect":"$scheme://%s$request_uri","redirectCode":308}`
	for _, tc := range []struct {
		name, yaml string
		want       []string
	}{
		{"to the plain name", www("a", "a.example"), []string{"www.a.example " + fmt.Sprintf(to, "a.example"),
			"a.example null"}},
		{"from the plain name", www("a", "www.a.example"), []string{"a.example " + fmt.Sprintf(to, "www.a.example"),
			"www.a.example null"}},
		{"another Ingress routes it", www("a", "a.example") + ing("b@2", nil, rules("www.a.example / P api:8080")),
			[]string{"www.a.example null"}},
		{"an alias", www("a", "a.example", "server-alias: www.a.example"), []string{"www.a.example null"}},
		{"a wildcard host", www("a", "*.a.example"), []string{"b.a.example null", "www.x.a.example 404"}},
		{"whose name is another's", ing("other/b", nil, rules("a.example /x P web:80")) + www("a@2", "a.example"),
			[]string{"www.a.example 404"}},
		{"off", ing("a", []string{"from-to-www-redirect: false"}, rules("a.example / P web:80")),
			[]string{"www.a.example 404"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newFixture(t, Settings{Default: true}, base+tc.yaml)
			for _, line := range tc.want {
				host, want, _ := strings.Cut(line, " ")
				if got := optionsText(w.hosts(), "http://"+host+"/y"); got != want {
					t.Errorf("%s has %s, want %s", host, got, want)
				}
			}
		})
	}
	// It follows its host.
	w := newFixture(t, Settings{Default: true}, base+www("a@2", "a.example"))
	w.read(ing("other/b", nil, rules("a.example /x P web:80")))
	if got := optionsText(w.hosts(), "http://www.a.example/"); got != "404" {
		t.Errorf("when the host became another's: %s", got)
	}
	// Its certificate is that of the Ingress.
	w = newFixture(t, Settings{Default: true}, base+ing("a", []string{"from-to-www-redirect: true"},
		tlsOf("tls-a a.example www.a.example"), rules("a.example / P web:80")))
	if got := certificate(w.hosts(), "www.a.example"); got != "shop/tls-a" {
		t.Errorf("the certificate is %s", got)
	}
}

// service-upstream leads to the virtual address of the Service.
func TestServiceUpstream(t *testing.T) {
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a", []string{"service-upstream: true"},
		rules("a.example / P web:80 /db P db:5432 /empty P empty:80"))+ing("b", nil, rules("b.example / P web:80")))
	if got := answer(w.hosts(), "http://a.example/"); got != "shop/web:80/virtual" {
		t.Errorf("a path leads to %s", got)
	}
	if got := answer(w.hosts(), "http://b.example/"); got != "shop/web:80" {
		t.Errorf("another Ingress's path leads to %s", got)
	}
	b := w.plans[Key{BackendKey, "shop/web:80/virtual"}].Backend
	if b == nil || len(b.Endpoints) != 1 || b.Endpoints[0].Addr.String() != "10.96.0.1:80" {
		t.Errorf("the backend is %+v", b)
	}
	if b := w.plans[Key{BackendKey, "shop/web:80"}].Backend; b == nil || len(b.Endpoints) == 0 ||
		b.Endpoints[0].Addr.String() == "10.96.0.1:80" {
		t.Errorf("the other backend is %+v", b)
	}
	if b := w.plans[Key{BackendKey, "shop/empty:80/virtual"}].Backend; b == nil || len(b.Endpoints) != 0 {
		t.Errorf("a Service without endpoints has %+v", b)
	}
	if got := answer(w.hosts(), "http://a.example/db"); got != "shop/db:5432" {
		t.Errorf("a headless Service is %s", got)
	}
	if all := strings.Join(w.allProblems(), "\n"); !strings.Contains(all, "Service shop/db has no virtual address") {
		t.Error(all)
	}
}

// Global authentication is of every Ingress that asks no other server, and of no ACME challenge.
func TestGlobalAuth(t *testing.T) {
	global := Settings{Default: true, GlobalAuth: &schema.AuthURL{URL: "http://api.shop.svc:8080/",
		SignIn: "https://in.example/", Headers: []string{"X-User"}}}
	yaml := sampleYAML(t) + ing("a", nil, rules("a.example / P web:80 /.well-known/acme-challenge/x E api:8080")) +
		ing("b", []string{"enable-global-auth: false"}, rules("b.example / P web:80")) +
		ing("c", []string{"auth-url: http://own.example/"}, rules("c.example / P web:80")) +
		ing("d", []string{"enable-global-auth: x"}, rules("d.example / P web:80"))
	w := newFixture(t, global, yaml)
	const asked = `{"authURL":{"url":"http://api.shop.svc:8080/","backend":"shop/api:8080",` +
		`"signIn":"https://in.example/","headers":["X-User"]}}`
	for url, want := range map[string]string{"http://a.example/": asked,
		"http://a.example/.well-known/acme-challenge/x": "null", "http://b.example/": "null",
		"http://c.example/": `{"authURL":{"url":"http://own.example/"}}`, "http://d.example/": asked} {
		if got := optionsText(w.hosts(), url); got != want {
			t.Errorf("%s has %s, want %s", url, got, want)
		}
	}
	if w.plans[Key{BackendKey, "shop/api:8080"}].Backend == nil {
		t.Error("the server has no plan")
	}
	w = newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a", []string{"enable-global-auth: true"},
		rules("a.example / P web:80"))+ing("b", nil, rules("b.example / P web:80")))
	if answer(w.hosts(), "http://a.example/") != "503" || answer(w.hosts(), "http://b.example/") != "shop/web:80" {
		t.Error("an Ingress that counts on a server which is not there is open, or another is closed")
	}
}

// Own annotations of fields.
func TestFieldLines(t *testing.T) {
	for _, tc := range []struct{ name, value, options, problem string }{
		{"response-headers", "X-A: 1\nX-B:\n  Strict-Transport-Security: max-age=1; preload",
			`{"response":{"fields":[{"name":"X-A","value":"1"},{"name":"X-B","value":""},` +
				`{"name":"Strict-Transport-Security","value":"max-age=1; preload"}]}}`, ""},
		{"request-headers", "X-Id: $remote_addr$host",
			`{"upstream":{"fields":[{"name":"X-Id","value":"$remote_addr$host"}]}}`, ""},
		{"request-headers", "Host: x", `null`, "only the proxy may set"},
		{"response-headers", "Content-Length: 5", `null`,
			"only the proxy may set"}, {"response-headers", "X A: 5", `null`, "is not a line"},
		{"response-headers", "X-A: $nothing", `null`, "is not known"}, {"response-headers", "", `null`, "has 0 lines"},
		{"response-headers", strings.Repeat("X-A: 1\n", 65), `null`, "has 65 lines"},
	} {
		w := oneIngress(t)
		_, all := annotated(t, w, map[string]string{ownPrefix + tc.name: tc.value})
		if got := optionsText(w.hosts(), "http://h.example/p"); got != tc.options {
			t.Errorf("%s %q: %s, want %s", tc.name, tc.value, got, tc.options)
		}
		if tc.problem == "" && all != "" || !strings.Contains(all, tc.problem) {
			t.Errorf("%s %q: %q, want %q", tc.name, tc.value, all, tc.problem)
		}
	}
}

func TestMirrorAnnotations(t *testing.T) {
	for _, tc := range []struct{ in, options, problem string }{
		{"mirror-target: https://test.example$request_uri",
			`{"mirror":{"url":"https://test.example$request_uri","body":true}}`, ""},
		{"mirror-target: http://api.shop.svc:8080$request_uri|mirror-request-body: off|mirror-host: b.example",
			`{"mirror":{"url":"http://api.shop.svc:8080$request_uri","backend":"shop/api:8080","host":"b.example"}}`,
			""},
		{"mirror-target: http://127.0.0.1/", `null`, "only ingress.authURLNetworks"}, {"mirror-target: /x", `null`,
			"is not a URL"}, {"mirror-host: b.example", `null`, ""}, {"mirror-target: http://none.shop.svc/", `null`,
			"nothing is copied"}, {"mirror-target: http://web.other.svc/", `null`,
			"Service other/web is in another namespace"},
	} {
		w := oneIngress(t)
		values := map[string]string{}
		for a := range strings.SplitSeq(tc.in, "|") {
			k, v, _ := strings.Cut(a, ": ")
			values[k] = v
		}
		closed, all := annotated(t, w, values)
		if got := optionsText(w.hosts(), "http://h.example/p"); got != tc.options || closed {
			t.Errorf("%s: closed %v, %s, want %s", tc.in, closed, got, tc.options)
		}
		if tc.problem == "" && all != "" || !strings.Contains(all, tc.problem) {
			t.Errorf("%s: %q, want %q", tc.in, all, tc.problem)
		}
	}
}

// Common directives of snippets become annotations that are read without a problem.
func TestSnippetsAreTranslated(t *testing.T) {
	const conf, server, auth = nginxPrefix + "configuration-snippet", nginxPrefix + "server-snippet", nginxPrefix +
		"auth-snippet"
	n := func(name string) string { return nginxPrefix + name }
	for _, tc := range []struct {
		key, text string
		want      []string
		left      []string
	}{
		{conf, `more_set_headers "X-Frame-Options: DENY" 'X-A: $host';` + "\nadd_header X-B 5 always;",
			[]string{ownPrefix + "response-headers: X-Frame-Options: DENY\nX-A: $host\nX-B: 5"}, nil},
		{conf, `more_clear_headers Server; proxy_hide_header X-Powered-By;`,
			[]string{ownPrefix + "response-headers: Server:\nX-Powered-By:"}, nil},
		{conf, `proxy_set_header X-Tenant a; more_set_input_headers "X-B: c"; proxy_set_header Upgrade ` +
			`$http_upgrade; proxy_set_header Connection "upgrade";`,
			[]string{ownPrefix + "request-headers: X-Tenant: a\nX-B: c"}, nil},
		{conf, `proxy_set_header Host inner.example; proxy_set_header X-Forwarded-Prefix /app;`,
			[]string{n("upstream-vhost: inner.example"), n("x-forwarded-prefix: /app")}, nil},
		{conf, `allow 10.0.0.0/8; allow 192.0.2.1; deny all;`,
			[]string{n("allowlist-source-range: 10.0.0.0/8,192.0.2.1")}, nil},
		{conf, `deny 192.0.2.1; deny 10.0.0.0/8; allow all;`,
			[]string{n("denylist-source-range: 192.0.2.1,10.0.0.0/8")}, nil},
		{conf, `deny 10.1.0.0/16; allow 10.0.0.0/8; deny all;`, []string{n("allowlist-source-range: 10.0.0.0/8"),
			n("denylist-source-range: 10.1.0.0/16")}, nil},
		{conf, `allow 10.0.0.0/8; deny 10.1.0.0/16; deny all;`, nil, []string{"allow and deny in this order"}},
		{conf, `deny all;`, nil, []string{"allow and deny in this order"}},
		{conf, `allow 10.0.0.0/8;`, nil, []string{"allow and deny in this order"}},
		{server, `return 301 https://b.example$request_uri;`,
			[]string{n("permanent-redirect: https://b.example$request_uri")}, nil},
		{server, `return 307 https://b.example/;`, []string{n("temporal-redirect: https://b.example/"),
			n("temporal-redirect-code: 307")}, nil},
		{server, `return 403;`, nil, []string{"return 403"}},
		{conf, `rewrite ^/(.*)$ https://b.example/$1 permanent;`,
			[]string{n("permanent-redirect: https://b.example$request_uri")}, nil},
		{conf, `rewrite ^(.*)$ https://b.example$1 redirect;`,
			[]string{n("temporal-redirect: https://b.example$request_uri")}, nil},
		{conf, `rewrite ^/a/(.*)$ /b/$1 break;`, nil, []string{"rewrite ^/a/(.*)$ /b/$1 break"}},
		{conf, `proxy_read_timeout 2m; client_max_body_size 8m; proxy_buffering off; satisfy any;`,
			[]string{n("proxy-body-size: 8m"), n("proxy-buffering: off"), n("proxy-read-timeout: 120"),
				n("satisfy: any")}, nil},
		{conf, `proxy_cookie_path / "/; Secure"; gzip on;`, nil, []string{"proxy_cookie_path / /; Secure", "gzip on"}},
		{server, `location /admin { deny all; } add_header X-A 1;`, []string{ownPrefix + "response-headers: X-A: 1"},
			[]string{"location /admin { … }"}},
		{server, `if ($http_user_agent ~* "x") { return 403; }`, nil, []string{"if ($http_user_agent ~* x ) { … }"}},
		{auth, `proxy_set_header X-Key abc;`, []string{ownPrefix + "auth-request-headers: X-Key: abc"}, nil},
		{auth, `proxy_read_timeout 5s;`, nil, []string{"proxy_read_timeout 5s"}},
		{conf, `add_header X "`, nil, []string{"the complete text, which cannot be parsed"}},
		{conf, `more_set_headers -s 404 "X: y";`, nil, []string{"more_set_headers -s 404 X: y"}},
		{conf, `add_header Transfer-Encoding x;`, nil, []string{"add_header Transfer-Encoding x"}},
	} {
		got := Translate(tc.key, tc.text)
		var list []string
		values := map[string]string{}
		for _, a := range got.Annotations {
			list = append(list, a.String())
			values[a.Key] = a.Value
		}
		if !slices.Equal(list, tc.want) || !slices.Equal(got.Left, tc.left) {
			t.Errorf("%s %q: %q, left %q; want %q, left %q", tc.key, tc.text, list, got.Left, tc.want, tc.left)
		}
		if len(values) == 0 {
			continue
		}
		if closed, problems := annotated(t, oneIngress(t), values); closed || problems != "" {
			t.Errorf("%v: closed %v, %s", values, closed, problems)
		}
	}
}

// listed are the names that ingress-nginx's documentation has.
func listed(t testing.TB) []string {
	t.Helper()
	raw, err := os.ReadFile("testdata/ingress-nginx-annotations.txt")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out
}

// Every annotation that ingress-nginx documents is built, or refused by name with the reason; few are
// not built, and of those that keep requests out only a firewall.
func TestEveryListedAnnotationIsDecided(t *testing.T) {
	names := listed(t)
	if len(names) != 130 {
		t.Errorf("%d names are listed", len(names))
	}
	all, not := annotations(), 0
	for _, n := range names {
		i := slices.IndexFunc(all, func(a annotation) bool { return a.name == n })
		if i < 0 {
			t.Errorf("%s is not known", n)
			continue
		}
		a := all[i]
		if a.built() {
			continue
		}
		if not++; a.note == "" {
			t.Errorf("%s is not built, and nothing says why", n)
		}
		if a.guard && !strings.Contains(n, "modsecurity") && !strings.Contains(n, "owasp") {
			t.Errorf("%s keeps requests out, and is not built", n)
		}
	}
	if not > 15 {
		t.Errorf("%d annotations are not built; allowed: 15", not)
	}
	for _, n := range []string{"global-rate-limit", "enable-influxdb", "influxdb-host",
		"opentracing-trust-incoming-span", "limit-allowlist", "session-cookie-partitioned"} {
		if !slices.ContainsFunc(all, func(a annotation) bool { return a.name == n }) {
			t.Errorf("%s of another version is not known", n)
		}
	}
}

// ssl-passthrough is of a host's path /, by the namespace that owns it, and of no host that keeps
// requests out.
func TestPassthroughOfHosts(t *testing.T) {
	const pass = "ssl-passthrough: true"
	for _, tc := range []struct{ name, yaml, want, problem string }{
		{"a host", ing("a", []string{pass}, rules("a.example / P web:80")), "shop/web:80", ""},
		{"beside another path", ing("a", []string{pass}, rules("a.example / P web:80")) +
			ing("b@2", nil, rules("a.example /b P api:8080")), "shop/web:80", ""},
		{"off", ing("a", []string{"ssl-passthrough: false"}, rules("a.example / P web:80")), "", ""},
		{"another path", ing("a", []string{pass}, rules("a.example /b P web:80")), "", "has no effect on a.example"},
		{"no host", ing("a", []string{pass}, rules("- / P web:80")) + ing("b", nil, rules("a.example / P web:80")), "",
			"has no effect on (any host)"},
		{"another's host", ing("a", nil, rules("a.example /b P web:80")) + ing("other/b@2", []string{pass},
			rules("a.example / P web:80")), "", "only its namespace can pass it through"},
		{"beside a guard", ing("a", []string{pass}, rules("a.example / P web:80")) +
			ing("b@2", []string{"whitelist-source-range: 10.0.0.0/8"}, rules("a.example /b P api:8080")), "",
			"a guard applies there"},
		{"with a limit", ing("a", []string{pass, "limit-rps: 1"}, rules("a.example / P web:80")), "",
			"a guard applies there"},
		{"no Service", ing("a", []string{pass}, rules("a.example / P none:80")), "",
			"Service shop/none does not exist"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newFixture(t, Settings{Default: true}, sampleYAML(t)+tc.yaml)
			if got := w.hosts()["a.example"].Passthrough; got != tc.want {
				t.Errorf("passed to %q, want %q", got, tc.want)
			}
			if all := strings.Join(w.allProblems(), "\n"); tc.problem == "" && all != "" ||
				!strings.Contains(all, tc.problem) {
				t.Errorf("problems are %q, want %q", all, tc.problem)
			}
		})
	}
}
