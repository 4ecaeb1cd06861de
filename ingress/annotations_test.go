package ingress

import (
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/proxy/schema"
)

var update = flag.Bool("update", false, "write the table of docs/ingress-annotations.md anew")

// Each good value becomes options, and each bad one a problem that leaves them out.
func TestAnnotations(t *testing.T) {
	for _, tc := range []struct {
		in      string // annotations, with | between
		options string
		problem string
	}{
		{"proxy-body-size: 8m", `{"maxBody":8388608}`, ""},
		{"proxy-body-size: 512K", `{"maxBody":524288}`, ""},
		{"proxy-body-size: 100", `{"maxBody":100}`, ""},
		{"proxy-body-size: 0", `null`, ""},
		{"proxy-body-size: 8 MB", `null`, `"8 MB" is not a size`},
		{"proxy-connect-timeout: 5|proxy-send-timeout: 6|proxy-read-timeout: 7",
			`{"Connect":5000000000,"Send":6000000000,"Read":7000000000}`, ""},
		{"proxy-read-timeout: 5s", `null`, `"5s" is not a number from 1 to 2147483647`},
		{"backend-protocol: GRPC", `{"protocol":"GRPC"}`, ""},
		{"backend-protocol: HTTP", `null`, ""},
		{"backend-protocol: FCGI", `null`, `"FCGI" is not built; allowed: HTTP, HTTPS, GRPC, GRPCS`},
		{"ssl-redirect: yes", `null`, `"yes" is neither true nor false`},
		{"permanent-redirect: https://x.example/a|permanent-redirect-code: 308",
			`{"redirect":"https://x.example/a","redirectCode":308}`, ""},
		{"permanent-redirect: /a|temporal-redirect: /b", `{"redirect":"/b","redirectCode":302}`, ""},
		{"temporal-redirect: /b|temporal-redirect-code: 307", `{"redirect":"/b","redirectCode":307}`, ""},
		{"permanent-redirect: https://x.example$request_uri",
			`{"redirect":"https://x.example$request_uri","redirectCode":301}`, ""},
		{"permanent-redirect: $scheme://x.example/", `{"redirect":"$scheme://x.example/","redirectCode":301}`, ""},
		{"permanent-redirect: https://x.example/$geoip", `null`, `variable "$geoip" is not known`},
		{"permanent-redirect: ftp://x.example/", `null`, "is neither http://"},
		{"permanent-redirect: https:///x", `null`, "is neither http://"},
		{"permanent-redirect: /a\r\nSet-Cookie: x", `null`, "is not a URL"},
		{"permanent-redirect-code: 200", `null`, "is not a number from 300 to 308"},
		{"rewrite-target: /x", `{"rewriteTarget":"/x"}`, ""},
		{"rewrite-target: /$nothing", `null`, "is not known"},
		{"rewrite-target: ftp://x", `null`, "is neither a path nor a URL"},
		{"app-root: /", `null`, "is not a path below /"},
		{"affinity: cookie", `{"affinity":{"name":"INGRESSCOOKIE","path":"/p"}}`, ""},
		{"affinity: cookie|session-cookie-name: s|session-cookie-path: /|session-cookie-expires: " +
			"10|session-cookie-samesite: Lax|session-cookie-secure: true",
			`{"affinity":{"name":"s","path":"/","maxAge":10000000000,"sameSite":"Lax","secure":true}}`, ""},
		{"affinity: cookie|session-cookie-max-age: 5|session-cookie-expires: 10",
			`{"affinity":{"name":"INGRESSCOOKIE","path":"/p","maxAge":5000000000}}`, ""},
		{"affinity: ip", `null`, `"ip" is not built; allowed: cookie`},
		{"affinity: cookie|session-cookie-name: a b", `{"affinity":{"name":"INGRESSCOOKIE","path":"/p"}}`,
			`"a b" is not a name`},
		{"affinity: cookie|session-cookie-path: /;x", `{"affinity":{"name":"INGRESSCOOKIE","path":"/p"}}`,
			"is not a path"},
		{"session-cookie-name: s", `null`, ""},
		{"upstream-hash-by: $request_uri$host", `{"hashBy":"$request_uri$host"}`, ""},
		{"upstream-hash-by: ${http_x_user}-a", `{"hashBy":"${http_x_user}-a"}`, ""},
		{"upstream-hash-by: $ssl_client_s_dn", `null`, "is not known"},
		{"load-balance: round_robin", `{"balance":"round_robin"}`, ""},
		{"load-balance: ewma", `null`, ""},
		{"load-balance: ip_hash", `null`, `"ip_hash" is not built`},
		{"whitelist-source-range: 10.1.2.3/8, 192.0.2.1,2001:db8::/32",
			`{"sources":["10.0.0.0/8","192.0.2.1/32","2001:db8::/32"]}`, ""},
		{"allowlist-source-range: 10.0.0.0/8", `{"sources":["10.0.0.0/8"]}`, ""},
		{"auth-url: https://auth.example/check|auth-signin: https://$host/in?rd=$escaped_request_uri|auth-method: " +
			"POST|auth-response-headers: X-User, X-Mail",
			`{"authURL":{"url":"https://auth.example/check","method":"POST",` +
				`"signIn":"https://$host/in?rd=$escaped_request_uri","headers":["X-User","X-Mail"]}}`, ""},
		{"auth-url: $scheme://$host/check", `{"authURL":{"url":"$scheme://$host/check"}}`, ""},
		{"auth-url: /check", `null`, "is not a URL of http or https"},
		{"auth-url: http://x/$cookie_a", `{"authURL":{"url":"http://x/$cookie_a"}}`, ""},
		{"auth-url: http://x/$ssl_a", `null`, "is not known"},
		{"auth-url: http://api.shop.svc.cluster.local:8080/check",
			`{"authURL":{"url":"http://api.shop.svc.cluster.local:8080/check","backend":"shop/api:8080"}}`, ""},
		{"auth-url: http://web.other.svc/check?u=$request_uri",
			`{"authURL":{"url":"http://web.other.svc/check?u=$request_uri","backend":"other/web:80"}}`, ""},
		{"auth-url: https://web.shop.svc.cluster.local/check",
			`{"authURL":{"url":"https://web.shop.svc.cluster.local/check","backend":"shop/web:443"}}`, ""},
		{"auth-url: http://none.shop.svc/check", `null`, "Service shop/none does not exist"},
		{"auth-url: http://api.shop:8080/check", `{"authURL":{"url":"http://api.shop:8080/check"}}`,
			"does not know Service shop/api by this name; use api.shop.svc, which needs no DNS"},
		{"auth-url: http://web/check", `{"authURL":{"url":"http://web/check"}}`,
			"does not know Service shop/web by this name"},
		{"auth-url: http://api.shop.svc/check", `null`, "Service shop/api has no TCP port 80"},
		{"auth-type: basic|auth-secret: mixed",
			`{"auth":{"realm":"","users":{"ann":"{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M="}}}`,
			`user "old" of Secret shop/mixed cannot sign in`},
		{"auth-type: digest", `null`, `"digest" is not built; allowed: basic`},
		{"auth-type: basic", `null`, "is missing: auth-type basic needs a Secret"},
		{"auth-type: basic|auth-secret: ../x", `null`, "is in another namespace"},
		{"auth-type: basic|auth-secret: map|auth-secret-type: auth-map",
			`{"auth":{"realm":"","users":{"bob":"{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M="}}}`, ""},
		{"auth-type: basic|auth-secret: map", `null`, "has no users"},
		{"auth-type: basic|auth-secret: users|auth-realm: a\nb",
			`{"auth":{"realm":"","users":{"ann":"{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M="}}}`,
			"contains a control character"},
		{"enable-cors: true", `{"cors":{"origins":["*"],"methods":"GET, PUT, POST, DELETE, PATCH, ` +
			`OPTIONS","headers":"DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,` +
			`Content-Type,Range,Authorization","credentials":true,"maxAge":1728000000000000}}`, ""},
		{"enable-cors: true|cors-allow-origin: https://a.example, https://*.b.example:8443|cors-allow-methods: " +
			"GET|cors-allow-headers: X-A|cors-expose-headers: X-B, *|cors-allow-credentials: false|cors-max-age: 60",
			`{"cors":{"origins":["https://a.example","https://*.b.example:8443"],"methods":"GET","headers":"X-A",` +
				`"expose":"X-B, *","maxAge":60000000000}}`, ""},
		{"cors-allow-origin: a.example", `null`, "is not an origin"},
		{"cors-allow-methods: GET;POST", `null`, "is not a list of names"},
		{"limit-rps: 10", `{"rps":10,"burst":50}`, ""},
		{"limit-rps: 10|limit-burst-multiplier: 2", `{"rps":10,"burst":20}`, ""},
		{"limit-rpm: 30", `{"rpm":30,"burstRPM":150}`, ""},
		{"limit-rps: 10|limit-rpm: 30", `{"rps":10,"burst":50,"rpm":30,"burstRPM":150}`, ""},
		{"limit-rps: many", `null`, "is not a number"},
		{"canary-weight: 5", `null`, ""}, // without canary it has no meaning, as in ingress-nginx
		{"proxy-http-version: 1.0", `null`, `"1.0" is not built`},
		{"proxy-buffering: on|proxy-buffer-size: 16k|proxy-request-buffering: off", `null`, ""},
		{"denylist-source-range: 10.0.0.0/8", `{"denied":["10.0.0.0/8"]}`, ""},
		{"denylist-source-range: 10.0.0.0/8,x", `null`,
			"it restricts access, so all paths of this Ingress answer 503"},
		{"auth-tls-verify-client: off|enable-modsecurity: false", `null`, ""},
		{"enable-modsecurity: true", `null`, "answer 503"},
		{"ingress.wayleave.dev/proxy-protocol: v1", `{"sendProxy":1}`, ""},
		{"ingress.wayleave.dev/proxy-protocol: v2|backend-protocol: GRPC", `{"protocol":"GRPC","sendProxy":2}`, ""},
		{"ingress.wayleave.dev/proxy-protocol: v3", `null`,
			`[ingress.wayleave.dev/proxy-protocol]: "v3" is not built; allowed: v1, v2`},
		{"ingress.wayleave.dev/proxy-protocol: ", `null`, `"" is not built; allowed: v1, v2`},
		{"ingress.wayleave.dev/other: x", `null`, "Wayleave has no annotation of that name"},
		{"server-alias: a_b", `null`, "is neither a DNS name"},
	} {
		t.Run(tc.in, func(t *testing.T) {
			w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a", nil, rules("h.example /p P web:80")))
			i, _ := w.store.Snapshot().Ingress(parseName("shop/a"))
			in := *i
			in.Annotations = map[string]string{}
			for a := range strings.SplitSeq(tc.in, "|") {
				k, v, _ := strings.Cut(a, ": ")
				if !strings.Contains(k, "/") {
					k = nginxPrefix + k
				}
				in.Annotations[k] = v
			}
			w.put(&in)
			if got := optionsText(w.hosts(), "http://h.example/p"); got != tc.options {
				t.Errorf("options are %s, want %s", got, tc.options)
			}
			all := strings.Join(w.allProblems(), "\n")
			if tc.problem == "" && all != "" || !strings.Contains(all, tc.problem) {
				t.Errorf("problems are %q, want %q", all, tc.problem)
			}
			if closed := answer(w.hosts(), "http://h.example/p") == "503"; closed != strings.Contains(all,
				"answer 503") {
				t.Errorf("closed is %v with the problems %q", closed, all)
			}
		})
	}
}

// Canaries that say more than a weight.
func TestCanaryAnnotations(t *testing.T) {
	for _, tc := range []struct{ in, want, problem string }{
		{"canary-weight: 5|canary-weight-total: 500", `"weight":5,"total":500`, ""},
		{"canary-weight: 5|canary-weight-total: 50", `"weight":5,"total":100`,
			"50 is less than 100, and counts as 100"},
		{"canary-weight: 500", `"weight":100,"total":100`, "500 is more than canary-weight-total, 100"},
		{"canary-by-header: X-New|canary-by-header-value: a|canary-by-header-pattern: b",
			`"header":"X-New","value":"a","total":100`, ""},
		{"canary-by-header: X-New|canary-by-header-pattern: ^b", `"header":"X-New","pattern":"^b","total":100`, ""},
		{"canary-by-header-value: a|canary-weight: 1", `"weight":1,"total":100`,
			"has no effect without canary-by-header"},
		{"canary-by-header: X-New|canary-by-header-pattern: (|canary-weight: 3", `"weight":3,"total":100`,
			"is not a valid RE2 expression"},
		{"canary-by-header: X-New|canary-by-header-pattern: (a{1,30}){1,30}|canary-weight: 3", `"weight":3,"total":100`,
			"is not a valid RE2 expression within the bounds"},
		{"canary-by-cookie: c", `"cookie":"c","total":100`, ""},
		{"canary-weight: x", `"total":100`, "is not a number"},
		{"ssl-redirect: true", `"total":100`, "takes no request without"},
	} {
		t.Run(tc.in, func(t *testing.T) {
			w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a", nil, rules("h.example /p P web:80"))+
				ing("c", append(strings.Split(tc.in, "|"), "canary: true"), rules("h.example /p P new:80")))
			want := `{"canary":[{"backend":"shop/new:80",` + tc.want +
				`,"source":"Ingress shop/c spec.rules[0].http.paths[0]"}]}`
			if got := optionsText(w.hosts(), "http://h.example/p"); got != want {
				t.Errorf("options are %s, want %s", got, want)
			}
			if all := strings.Join(w.allProblems(), "\n"); tc.problem == "" && all != "" ||
				!strings.Contains(all, tc.problem) {
				t.Errorf("problems are %q, want %q", all, tc.problem)
			}
		})
	}
}

// Options go to the proxies as JSON: none may be lost on the way.
func TestOptionsSurviveTheFeed(t *testing.T) {
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a", []string{"enable-cors: true", "affinity: cookie",
		"limit-rps: 3", "auth-url: http://x/", "auth-type: basic", "auth-secret: users",
		"whitelist-source-range: 10.0.0.0/8", "rewrite-target: /$1", "proxy-body-size: 1m", "proxy-read-timeout: 3",
		"upstream-hash-by: $host", ownPrefix + "proxy-protocol: v2"}, rules("h.example /p(.*) I web:80")))
	h := w.hosts()["h.example"]
	raw, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var back schema.Host
	if err := json.Unmarshal(raw, &back); err != nil || !reflect.DeepEqual(*h, back) {
		t.Errorf("%v: %+v became %+v", err, h, back)
	}
}

func TestTheTableOfAnnotationsIsFresh(t *testing.T) {
	const file, begin, end = "../docs/ingress-annotations.md", "<!-- annotations -->\n", "<!-- end -->\n"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(raw), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", file)
	}
	if *update {
		if err := os.WriteFile(file, []byte(head+begin+Document(listed(t))+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if old != Document(listed(t)) {
		t.Errorf("the table of %s is not fresh: go test ./ingress -run Fresh -update", file)
	}
}

func TestAnnotationsAreKnownOnce(t *testing.T) {
	var names []string
	for _, a := range annotations() {
		if slices.Contains(names, a.name) {
			t.Errorf("%s is there twice", a.name)
		}
		names = append(names, a.name)
	}
	if b, known := Built(nginxPrefix + "rewrite-target"); !b || !known {
		t.Error("rewrite-target is not built")
	}
	if b, known := Built(nginxPrefix + "server-snippet"); b || !known {
		t.Error("server-snippet is built")
	}
	if b, known := Built(ownPrefix + "proxy-protocol"); !b || !known {
		t.Error("proxy-protocol is not built")
	}
	if _, known := Built(ownPrefix + "x"); known {
		t.Error("ingress.wayleave.dev/x is known")
	}
	if _, known := Built("nginx.org/x"); known {
		t.Error("nginx.org is known")
	}
}
