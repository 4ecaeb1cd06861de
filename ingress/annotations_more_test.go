package ingress

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// Each of the annotations that came later, as TestAnnotations has the first ones.
func TestMoreAnnotations(t *testing.T) {
	many := func(n int, format string) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf(format, i/256, i%256))
		}
		return strings.Join(list, ",")
	}
	const auth, authJSON = "auth-url: http://a.example/|", `"url":"http://a.example/"`
	for _, tc := range []struct{ in, options, problem string }{
		{"satisfy: any", `{"anyOf":true}`, ""}, {"satisfy: all", `null`, ""}, {"satisfy: some", `null`, "answer 503"},
		{"limit-connections: 5", `{"exchanges":5}`, ""}, {"limit-connections: x", `null`, "answer 503"},
		{"limit-rps: 1|limit-whitelist: 10.0.0.0/8, 192.0.2.1",
			`{"rps":1,"burst":5,"unlimited":["10.0.0.0/8","192.0.2.1/32"]}`, ""},
		{"limit-rps: 1|limit-allowlist: 10.0.0.0/8", `{"rps":1,"burst":5,"unlimited":["10.0.0.0/8"]}`, ""},
		{"limit-rps: 1|limit-whitelist: x", `{"rps":1,"burst":5}`, "neither an address nor a CIDR"},
		{"limit-rate: 10|limit-rate-after: 2", `{"bandwidth":10240,"bandwidthAfter":2048}`, ""},
		{"limit-rate-after: 2", `null`, ""}, {"limit-rate: 1m", `null`, "is not a number"},
		{"whitelist-source-range: " + many(1025, "10.0.%d.%d"), `null`,
			"has 1025 addresses and CIDRs; allowed: 1024; it restricts access"},
		{"denylist-source-range: " + many(1025, "10.0.%d.%d"), `null`, "answer 503"},
		{"enable-cors: true|cors-allow-origin: " + many(257, "https://a%d-%d.example"), `null`,
			"has 257 origins; allowed: 256"},
		{auth + "auth-always-set-cookie: true|auth-signin-redirect-param: next|auth-request-redirect: https://$host/x",
			`{"authURL":{` + authJSON + `,"param":"next","target":"https://$host/x","alwaysCookie":true}}`, ""},
		{auth + "auth-cache-key: $http_authorization", `{"authURL":{` + authJSON +
			`,"cacheKey":"$http_authorization","cache":[{"statuses":[200,202,401],"for":300000000000}]}}`, ""},
		{auth + "auth-cache-key: $cookie_a|auth-cache-duration: 200 202 10m, any 1m30s", `{"authURL":{` + authJSON +
			`,"cacheKey":"$cookie_a","cache":[{"statuses":[200,202],"for":600000000000},{"for":90000000000}]}}`, ""},
		{auth + "auth-cache-key: $cookie_a|auth-cache-duration: soon", `{"authURL":{` + authJSON + `}}`,
			"does not end with a time"},
		{auth + "auth-cache-key: $cookie_a|auth-cache-duration: 200 2d", `{"authURL":{` + authJSON + `}}`, "24h"},
		{auth + "auth-cache-key: all", `{"authURL":{` + authJSON + `}}`, "has no variable"},
		{auth + "auth-cache-key: $ssl_x", `{"authURL":{` + authJSON + `}}`, "is not known"},
		{auth + "auth-signin-redirect-param: a b", `{"authURL":{` + authJSON + `}}`, "is not a name"},
		{auth +
			"auth-keepalive: 10|auth-keepalive-requests: 5|auth-keepalive-timeout: 60|auth-keepalive-share-vars: true",
			`{"authURL":{` + authJSON + `}}`, ""},
		{"x-forwarded-prefix: /app", `{"upstream":{"fields":[{"name":"X-Forwarded-Prefix","value":"/app"}]}}`, ""},
		{"x-forwarded-prefix: a\nb", `null`, "control character"},
		{"upstream-vhost: inner.example:80", `{"upstream":{"host":"inner.example:80"}}`, ""},
		{"upstream-vhost: a b", `null`, "is not a host"}, {"upstream-vhost: $nothing", `null`, "is not known"},
		{"connection-proxy-header: keep-alive", `null`, ""}, {"connection-proxy-header: close", `null`,
			`"close" is not built`},
		{"proxy-cookie-domain: localhost shop.example|proxy-cookie-path: ~^/a/ /",
			`{"response":{"domain":[{"from":"localhost","to":"shop.example"}],"cookiePath":[{"from":"~^/a/",` +
				`"to":"/"}]}}`, ""},
		{"proxy-cookie-domain: off", `null`, ""}, {"proxy-cookie-path: /a", `null`, "is neither off nor two words"},
		{"proxy-cookie-path: ~( /", `null`, "missing closing"},
		{"proxy-redirect-from: http://a/|proxy-redirect-to: https://b/",
			`{"response":{"location":[{"from":"http://a/","to":"https://b/"}]}}`, ""},
		{"proxy-redirect-from: off", `null`, ""}, {"proxy-redirect-from: default|proxy-redirect-to: x", `null`, ""},
		{"proxy-redirect-from: http://a/", `null`, "need each other"}, {"proxy-redirect-from: ~(|proxy-redirect-to: /",
			`null`, "stay as they are"},
		{"enable-access-log: false", `{"unlogged":true}`, ""}, {"enable-access-log: true", `null`, ""},
		{"preserve-trailing-slash: true|http2-push-preload: true|relative-redirects: " +
			"true|ssl-prefer-server-ciphers: true|enable-opentelemetry: false|use-port-in-redirects: false", `null`,
			""},
		{"enable-opentelemetry: true", `null`, "is not built"},
		{"proxy-next-upstream: error timeout http_502 non_idempotent",
			`{"retry":{"timeout":true,"statuses":[502],"unsafe":true}}`, ""}, {"proxy-next-upstream: off",
			`{"retry":{"never":true}}`, ""}, {"proxy-next-upstream: http_418", `null`, "is not known"},
		{"proxy-next-upstream-tries: 2|proxy-next-upstream-timeout: 10",
			`{"retry":{"timeout":true,"tries":2,"within":10000000000}}`, ""}, {"proxy-next-upstream-tries: 0",
			`{"retry":{"timeout":true,"tries":16}}`, ""},
		{"default-backend: api",
			`{"errors":{"backend":"shop/api:8080","namespace":"shop","ingress":"a","service":"web","port":"80"}}`, ""},
		{"default-backend: api|custom-http-errors: 404, 503|disable-proxy-intercept-errors: true",
			`{"errors":{"backend":"shop/api:8080","statuses":[404,503],"ownOnly":true,"namespace":"shop",` +
				`"ingress":"a","service":"web","port":"80"}}`, ""},
		{"custom-http-errors: 404", `null`, "has no effect without default-backend"}, {"default-backend: none", `null`,
			"does not exist"}, {"default-backend: api|custom-http-errors: 200",
			`{"errors":{"backend":"shop/api:8080","namespace":"shop","ingress":"a","service":"web","port":"80"}}`,
			"is not a status"},
		{"affinity: cookie|session-cookie-domain: shop.example|session-cookie-partitioned: " +
			"true|session-cookie-change-on-failure: true|session-cookie-conditional-samesite-none: true",
			`{"affinity":{"name":"INGRESSCOOKIE","path":"/p","domain":"shop.example","partitioned":true,` +
				`"conditional":true,"moves":true}}`, ""},
		{"affinity: cookie|session-cookie-domain: a;b", `{"affinity":{"name":"INGRESSCOOKIE","path":"/p"}}`,
			"is not a DNS name"},
		{"upstream-hash-by: $host|upstream-hash-by-subset: true", `{"hashBy":"$host","hashSubset":3}`, ""},
		{"upstream-hash-by: $host|upstream-hash-by-subset: true|upstream-hash-by-subset-size: 5",
			`{"hashBy":"$host","hashSubset":5}`, ""}, {"upstream-hash-by-subset: true", `null`, ""},
	} {
		t.Run(tc.in[:min(len(tc.in), 60)], func(t *testing.T) {
			w := oneIngress(t)
			values := map[string]string{}
			for a := range strings.SplitSeq(tc.in, "|") {
				k, v, _ := strings.Cut(a, ": ")
				values[k] = v
			}
			closed, all := annotated(t, w, values)
			if got := optionsText(w.hosts(), "http://h.example/p"); got != tc.options && !closed {
				t.Errorf("options are %s, want %s", got, tc.options)
			}
			if tc.problem == "" && all != "" || !strings.Contains(all, tc.problem) {
				t.Errorf("problems are %q, want %q", all, tc.problem)
			}
			if closed != strings.Contains(all, "answer 503") {
				t.Errorf("closed is %v with the problems %q", closed, all)
			}
		})
	}
}

// A canary is drawn anew for each request where it says so.
func TestCanaryOfLegacyAffinity(t *testing.T) {
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a", nil, rules("h.example /p P web:80"))+
		ing("c", []string{"canary: true", "canary-weight: 5", "affinity-canary-behavior: legacy"},
			rules("h.example /p P new:80")))
	if got := optionsText(w.hosts(), "http://h.example/p"); !strings.Contains(got, `"eachTime":true`) {
		t.Error(got)
	}
	if all := w.allProblems(); len(all) > 0 {
		t.Error(all)
	}
}

// goodValues are values of annotations that are read without a problem, whatever else is there.
var goodValues = map[string][]string{
	"satisfy": {"any", "all"}, "denylist-source-range": {"10.0.0.0/8", "192.0.2.1,2001:db8::/32"},
	"whitelist-source-range": {"0.0.0.0/0"}, "limit-connections": {"0", "7"},
	"limit-rps": {"3"}, "limit-rpm": {"100"}, "limit-whitelist": {"10.0.0.0/8"}, "limit-rate": {"100"},
	"limit-rate-after": {"5"}, "limit-burst-multiplier": {"2"},
	"auth-url": {"http://a.example/$host", "http://api.shop.svc:8080/"}, "auth-cache-key": {"$http_authorization",
		"x${cookie_a}y"}, "auth-cache-duration": {"200 202 401 5m", "10s"}, "auth-always-set-cookie": {"true"},
	"auth-response-headers": {"X-User, X-Mail"}, "auth-signin": {"https://$host/in"},
	"auth-signin-redirect-param": {"next"}, "auth-request-redirect": {"$request_uri"}, "auth-method": {"POST"},
	"x-forwarded-prefix": {"/a"}, "upstream-vhost": {"a.example"}, "proxy-cookie-domain": {"a b.example", "off"},
	"proxy-cookie-path": {"~*^/x /"}, "enable-access-log": {"false", "true"},
	"proxy-next-upstream": {"error timeout http_503", "off"}, "proxy-next-upstream-tries": {"0", "3"},
	"proxy-next-upstream-timeout": {"4"}, "default-backend": {"api"}, "disable-proxy-intercept-errors": {"true"},
	"affinity": {"cookie"}, "session-cookie-domain": {"a.example"}, "session-cookie-partitioned": {"true"},
	"session-cookie-change-on-failure": {"true"}, "session-cookie-samesite": {"None"},
	"session-cookie-conditional-samesite-none": {"true"},
	"upstream-hash-by":                         {"$host$request_uri"}, "upstream-hash-by-subset": {"true"},
	"upstream-hash-by-subset-size": {"4"}, "load-balance": {"ewma", "round_robin"}, "rewrite-target": {"/x"},
	"enable-cors": {"true"}, "cors-allow-origin": {"https://*.a.example"},
	"permanent-redirect": {"https://b.example/$uri"}, "proxy-body-size": {"8m"}, "proxy-read-timeout": {"5"},
	"backend-protocol": {"HTTPS", "GRPC"},
}

// Whatever annotations are there together, what the agent makes of them is what the proxy reads: the
// same after the way through the feed, and nothing that it cannot read.
func TestOptionsAreTheSameAtBothEnds(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 3))
	names := make([]string, 0, len(goodValues))
	for n := range goodValues {
		names = append(names, n)
	}
	slices.Sort(names)
	w := oneIngress(t)
	for range 300 {
		values := map[string]string{}
		for range 1 + r.IntN(12) {
			n := names[r.IntN(len(names))]
			values[n] = goodValues[n][r.IntN(len(goodValues[n]))]
		}
		if closed, problems := annotated(t, w, values); closed || problems != "" {
			t.Fatalf("%v: closed %v, %s", values, closed, problems)
		}
		h := w.hosts()["h.example"]
		raw, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		var back schema.Host
		if err := json.Unmarshal(raw, &back); err != nil || !reflect.DeepEqual(*h, back) {
			t.Fatalf("%v: %v: %s", values, err, raw)
		}
		for i := range back.Paths {
			if o := back.Paths[i].Options; o != nil {
				if err := table.Prepare(&back.Paths[i]).Err; err != nil {
					t.Fatalf("%v: %v", values, err)
				}
			}
		}
	}
}
