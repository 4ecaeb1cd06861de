package ingress

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"wayleave.dev/model"
)

// annotated is a fixture whose one Ingress, h.example/p, has these annotations; names without a
// prefix are ingress-nginx's.
func annotated(t *testing.T, w *fixture, annotations map[string]string) (closed bool, problems string) {
	t.Helper()
	i, _ := w.store.Snapshot().Ingress(parseName("shop/a"))
	in := *i
	in.Annotations = map[string]string{}
	for k, v := range annotations {
		if !strings.Contains(k, "/") {
			k = nginxPrefix + k
		}
		in.Annotations[k] = v
	}
	w.put(&in)
	return answer(w.hosts(), "http://h.example/p") == "503", strings.Join(w.allProblems(), "\n")
}

func oneIngress(t *testing.T) *fixture {
	t.Helper()
	return newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a", nil, rules("h.example /p P web:80")))
}

// What another controller would keep out is named and closed; what it would not is named.
func TestForeignAnnotations(t *testing.T) {
	w := oneIngress(t)
	for _, tc := range []struct {
		key, value string
		closed     bool
	}{
		{"traefik.ingress.kubernetes.io/router.middlewares", "bugs-basic-auth@kubernetescrd", true},
		{"traefik.ingress.kubernetes.io/router.tls.options", "mtls@file", true},
		{"traefik.ingress.kubernetes.io/router.entrypoints", "internal", true},
		{"traefik.ingress.kubernetes.io/router.entrypoints", "web, websecure", false},
		{"traefik.ingress.kubernetes.io/router.priority", "10", false},
		{"traefik.ingress.kubernetes.io/router.tls", "true", false},
		{"traefik.ingress.kubernetes.io/whitelist-source-range", "10.0.0.0/8", true},
		{"haproxy-ingress.github.io/auth-secret", "users", true},
		{"haproxy-ingress.github.io/allowlist-source-range", "10.0.0.0/8", true},
		{"haproxy-ingress.github.io/denylist-source-range", "10.0.0.0/8", true},
		{"haproxy-ingress.github.io/config-backend", "http-request deny", true},
		{"haproxy-ingress.github.io/waf", "modsecurity", true},
		{"haproxy-ingress.github.io/timeout-server", "5s", false},
		{"haproxy-ingress.github.io/balance-algorithm", "leastconn", false},
		{"haproxy.org/allow-list", "10.0.0.0/8", true}, {"haproxy.org/deny-list", "10.0.0.0/8", true},
		{"haproxy.org/whitelist", "10.0.0.0/8", true}, {"haproxy.org/blacklist", "10.0.0.0/8", true},
		{"haproxy.org/auth-type", "basic-auth", true}, {"haproxy.org/client-ca", "x/y", true},
		{"haproxy.org/backend-config-snippet", "acl x", true}, {"haproxy.org/rate-limit-requests", "5", true},
		{"haproxy.org/check", "true", false},
		{"nginx.org/basic-auth-secret", "users", true}, {"nginx.org/server-snippets", "deny all;", true},
		{"nginx.org/location-snippets", "deny all;", true}, {"nginx.org/policies", "p", true},
		{"nginx.org/limit-req-rate", "5r/s", true}, {"nginx.org/proxy-connect-timeout", "5s", false},
		{"nginx.org/rewrites", "x", false},
		{"nginx.com/jwt-key", "k", true}, {"nginx.com/policies", "p", true}, {"nginx.com/health-checks", "true", false},
		{"appprotect.f5.com/app-protect-enable", "True", true}, {"appprotect.f5.com/app-protect-enable", "False",
			false}, {"virtual-server.f5.com/whitelist-source-range", "10.0.0.0/8", true},
		{"virtual-server.f5.com/allow-source-range", "10.0.0.0/8", true},
		{"ingress.kubernetes.io/whitelist-source-range", "10.0.0.0/8", true}, {"ingress.kubernetes.io/auth-type",
			"basic", true}, {"ingress.kubernetes.io/auth-tls-secret", "ca", true},
		{"ingress.kubernetes.io/rewrite-target", "/", false},
		{"alb.ingress.kubernetes.io/inbound-cidrs", "10.0.0.0/8", true}, {"alb.ingress.kubernetes.io/scheme",
			"internal", true}, {"alb.ingress.kubernetes.io/scheme", "internet-facing", false},
		{"alb.ingress.kubernetes.io/security-groups", "sg-1", true},
		{"alb.ingress.kubernetes.io/auth-type", "oidc", true}, {"alb.ingress.kubernetes.io/auth-type", "none", false},
		{"alb.ingress.kubernetes.io/wafv2-acl-arn", "arn", true}, {"alb.ingress.kubernetes.io/mutual-authentication",
			"[]", true}, {"alb.ingress.kubernetes.io/ssl-policy", "x", false}, {"alb.ingress.kubernetes.io/target-type",
			"ip", false}, {"alb.ingress.kubernetes.io/conditions.web", "[]", true},
		{"alb.ingress.kubernetes.io/frontend-nlb-scheme", "internal", true},
		{"alb.ingress.kubernetes.io/frontend-nlb-security-groups", "sg-1", true},
		{"alb.ingress.kubernetes.io/jwt-validation", "{}", true},
		{"alb.ingress.kubernetes.io/transforms.web", "[]", false},
		{"ingress.citrix.com/insecure-termination", "disallow", true}, {"ingress.citrix.com/insecure-termination",
			"redirect", false}, {"ingress.kubernetes.io/limit-connections", "3", true},
		{"ingress.kubernetes.io/secure-verify-ca-secret", "ca", false},
		{"projectcontour.io/ingress.class", "contour", false}, {"higress.io/whitelist-source-range", "10.0.0.0/8",
			true}, {"haproxy-ingress.github.io/oauth", "oauth2_proxy", true}, {"haproxy-ingress.github.io/limit-rps",
			"3", true}, {"traefik.ingress.kubernetes.io/rate-limit", "x", true},
		{"konghq.com/plugins", "key-auth", true}, {"konghq.com/methods", "GET", true}, {"konghq.com/protocols", "https",
			true}, {"konghq.com/headers.x-a", "1", true}, {"konghq.com/strip-path", "true", false},
		{"projectcontour.io/websocket-routes", "/ws", false}, {"projectcontour.io/auth-disabled-by-nobody", "x", true},
		{"appgw.ingress.kubernetes.io/waf-policy-for-path", "x", true}, {"appgw.ingress.kubernetes.io/use-private-ip",
			"true", true}, {"appgw.ingress.kubernetes.io/use-private-ip", "false", false},
		{"appgw.ingress.kubernetes.io/cookie-based-affinity", "true", false},
		{"ingress.pomerium.io/policy", "x", true}, {"ingress.bluemix.net/appid-auth", "x", true},
		{"zalando.org/skipper-filter", "oauthTokeninfoAllScope()", true}, {"haproxy.router.openshift.io/ip_whitelist",
			"10.0.0.0/8", true}, {"k8s.apisix.apache.org/blocklist-source-range", "10.0.0.0/8", true},
		{"someone.ingress.kubernetes.io/auth-url", "x", true}, {"someone.ingress.kubernetes.io/timeout", "x", false},
		{"whitelist-source-ranges", "10.0.0.0/8", true}, {"auth-uri", "http://x/", true},
		{"lua-resty-waf", "active", true}, {"ingress.wayleave.dev/auth-url", "x", true},
		{"ingress.wayleave.dev/colour", "x", false},
		{"cert-manager.io/cluster-issuer", "le", false}, {"external-dns.alpha.kubernetes.io/hostname", "x", false},
		{"kubectl.kubernetes.io/last-applied-configuration", "{}", false}, {"meta.helm.sh/release-name", "x", false},
	} {
		closed, problems := annotated(t, w, map[string]string{tc.key: tc.value})
		if closed != tc.closed {
			t.Errorf("%s: %s: closed is %v, want %v: %s", tc.key, tc.value, closed, tc.closed, problems)
		}
		_, _, foreign := model.IngressDomain(tc.key)
		if named := strings.Contains(problems, tc.key); named != (foreign || !strings.Contains(tc.key, "/")) {
			t.Errorf("%s: named is %v: %s", tc.key, named, problems)
		}
		if closed != strings.Contains(problems, "answer 503") {
			t.Errorf("%s: closed is %v: %s", tc.key, closed, problems)
		}
	}
	annotated(t, w, map[string]string{"kubernetes.io/ingress.allow-http": "false"})
	if got := optionsText(w.hosts(), "http://h.example/p"); got != `{"redirectTLS":308}` {
		t.Errorf("GKE's switch of plain HTTP leaves %s", got)
	}
	for d := range foreignGuards {
		if _, _, ok := model.IngressDomain(d + "/x"); !ok || controllers[d] == "" {
			t.Errorf("annotations of %s are dropped before they are read, or it has no name", d)
		}
	}
}

// A directive that may keep requests out closes the paths wherever it stands, and one that
// does not closes nothing.
func TestSnippets(t *testing.T) {
	w := oneIngress(t)
	for _, tc := range []struct {
		text   string
		closed bool
	}{
		{"location = /x { deny all; }", true}, {"location /x{deny all;}", true},
		{"more_set_headers \"X: y\"; deny all;", true}, {"# nothing\ndeny all;", true}, {"# deny all;", false},
		{"more_set_headers \"deny all;\";", false},
		{"more_set_headers 'X: }';", false}, {"add_header X \"a\\\"; deny all; \\\"b\" always;", false},
		{"DENY all;", true}, {"\"deny\" all;", true}, {"'deny' all;", true}, {"de\\ny all;", true},
		{"if ($http_x = y) { return 403; }", true}, {"return 403;", true}, {"auth_basic x; auth_basic_user_file y;",
			true}, {"auth_request /x;", true}, {"auth_jwt x;", true}, {"allow 10.0.0.0/8;deny all;", true},
		{"satisfy any;", true},
		{"access_by_lua_block { ngx.exit(403) }", true}, {"access_by_lua 'ngx.exit(403)';", true},
		{"access_by_lua_file x;", true}, {"rewrite_by_lua_block { ngx.exit(403) }", true}, {"modsecurity on;", true},
		{"ModSecurityEnabled on;", true},
		{"limit_req zone=x;", true}, {"limit_conn x 1;", true}, {"limit_except GET { deny all; }", true},
		{"internal;", true}, {"secure_link $arg_x;", true}, {"valid_referers none;", true},
		{"ssl_verify_client on;", true}, {"js_access x;", true}, {"include /x;", true},
		{"proxy_set_header A ${host}; add_header B b;", false},
		{"proxy_set_header A \"$b\";\n\n\tproxy_read_timeout 5s;", false}, {"gzip on; gzip_types text/css;", false},
		{"location /x { add_header A b; }", false}, {"set $a b;", false},
		{"add_header A b; } location /y { add_header A b;", true}, {"add_header A 'b", true},
		{"location /x { add_header A b;", true}, {"add_header A b", true}, {"{ deny all; }", true}, {"", false},
		{"proxy_pass http://elsewhere;", true}, {"something_new on;", true},
	} {
		for _, name := range []string{"configuration-snippet", "server-snippet", "auth-snippet"} {
			if closed, problems := annotated(t, w, map[string]string{name: tc.text}); closed != tc.closed ||
				problems == "" {
				t.Errorf("%s %q: closed is %v, want %v: %s", name, tc.text, closed, tc.closed, problems)
			}
		}
	}
	for text, want := range map[string]bool{"server { listen 8000; proxy_pass x; }": false,
		"server { listen 8000; deny 10.0.0.0/8; proxy_pass x; }": true, "server { listen 1; allow all; }": true} {
		if closed, problems := annotated(t, w, map[string]string{"stream-snippet": text}); closed != want ||
			problems == "" {
			t.Errorf("stream-snippet %q: closed is %v: %s", text, closed, problems)
		}
	}
}

// Wherever a guard stands among harmless directives, comments and blocks, it is found.
func TestAGuardInASnippetIsFound(t *testing.T) {
	r := rand.New(rand.NewPCG(14, 3))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	w := oneIngress(t)
	for range 400 {
		space := func() string { return pick(" ", "\n", "\t", "\r\n", " # deny; }\n", "") }
		plain := func() string {
			return pick("add_header A b;", "more_set_headers 'X: {;#}';", `proxy_set_header X "a;\"}";`,
				"set $x ${host};", "gzip on;", "# allow all;\n", "location /n { gzip on; }")
		}
		guard := pick("deny all;", "return 403;", "auth_basic 'x';", "satisfy all;", "limit_req zone=z;",
			"if ($x) { gzip on; }", "access_by_lua_block { x }", "internal;", "'deny' all;")
		text := plain() + space() + plain() + space()
		for range r.IntN(3) {
			guard = "location " + pick("/", "= /x", "~ ^/a{2}", "~ \"^/a{2}\"") + " {" + space() + guard + space() + "}"
		}
		text += guard + space() + plain()
		if closed, _ := annotated(t, w, map[string]string{"configuration-snippet": text}); !closed {
			t.Fatalf("open: %q", text)
		}
	}
}

// A guard whose value cannot be read closes, or does what keeps more out.
func TestGuardsFailClosed(t *testing.T) {
	w := oneIngress(t)
	for name, values := range map[string][]string{
		"whitelist-source-range": {"", ",", "x", "10.0.0.0/33", "010.0.0.0/8", "10.0.0.0/8;192.0.2.1",
			"10.0.0.0-10.0.0.9", "fe80::1%eth0", "10.0.0.0/8 192.0.2.0/24"},
		"allowlist-source-range": {"", "x"}, "denylist-source-range": {"10.0.0.0/8,x", "x", ""},
		"satisfy":   {"", "both"},
		"auth-type": {"", "Basic", "digest", "x"}, "auth-secret": {"users", "none", "../x", "other/users", ""},
		"auth-secret-type": {"x"},
		"auth-url": {"", "x", "/x", "ftp://x/", "http://", "http://127.0.0.1/", "http://127.1/",
			"http://2130706433/", "http://0x7f.1/", "http://[::1]/", "http://[::ffff:127.0.0.1]/",
			"http://169.254.169.254/latest", "http://[fd00:ec2::254]/", "http://user@x/", "http://none.shop.svc/"},
		"auth-method":           {"", "G T", "x\ny"},
		"auth-response-headers": {"X A", ",", "X-A;X-B"},
		"auth-tls-secret":       {"ca", "", "x"}, "auth-tls-verify-client": {"on", "optional", "optional_no_ca", ""},
		"auth-tls-match-cn": {"x"}, "auth-tls-verify-depth": {"x", "99"}, "proxy-ssl-secret": {"none", "other/x", ""},
		"proxy-ssl-verify": {"on", "yes"}, "proxy-ssl-name": {"a b"}, "proxy-ssl-verify-depth": {"x"},
		"limit-rps": {"x", "-1", "1.5", ""}, "limit-rpm": {"x", "-1"}, "limit-connections": {"-1", "x"},
		"enable-modsecurity": {"true", "True", "1", "x"}, "enable-owasp-core-rules": {"true", "x"},
		"modsecurity-snippet":   {"x"},
		"configuration-snippet": {"'", "deny all"}, "server-snippet": {"{"}, "auth-snippet": {"}"},
	} {
		for _, v := range values {
			set := map[string]string{name: v}
			if name == "auth-secret" && v == "" || name == "auth-secret-type" {
				set["auth-type"] = "basic"
			}
			if closed, problems := annotated(t, w, set); !closed || !strings.Contains(problems, "answer 503") {
				t.Errorf("%s: %q: it is open: %s", name, v, problems)
			}
		}
	}
	for _, tc := range []struct {
		set     map[string]string
		options string
	}{
		{map[string]string{"force-ssl-redirect": "yes"}, `{"redirectTLS":308}`},
		{map[string]string{"enable-cors": "true", "cors-allow-origin": "nowhere"}, "null"},
		{map[string]string{"enable-cors": "true", "cors-allow-origin": ""}, "null"},
		{map[string]string{"enable-cors": "true", "cors-allow-methods": "GET;POST"}, "null"},
		{map[string]string{"enable-cors": "true", "cors-allow-credentials": "no"}, "null"},
		{map[string]string{"limit-rps": "0"}, "null"},
		{map[string]string{"whitelist-source-range": "10.0.0.0/8,"}, `{"sources":["10.0.0.0/8"]}`},
		{map[string]string{"whitelist-source-range": "::ffff:10.0.0.0/104"}, `{"sources":["10.0.0.0/8"]}`},
		{map[string]string{"whitelist-source-range": "0.0.0.0/0", "allowlist-source-range": "10.0.0.0/8"},
			`{"sources":["10.0.0.0/8"]}`},
		{map[string]string{"enable-modsecurity": "False"}, "null"},
		{map[string]string{"auth-url": "http://x/", "auth-response-headers": "X-User, X-Groups,"},
			`{"authURL":{"url":"http://x/","headers":["X-User","X-Groups"]}}`},
		{map[string]string{"auth-url": "http://x/", "auth-response-headers": ", X-User,,"},
			`{"authURL":{"url":"http://x/","headers":["X-User"]}}`},
		{map[string]string{"backend-protocol": "https"}, `{"protocol":"HTTPS"}`},
		{map[string]string{"backend-protocol": "Grpc"}, `{"protocol":"GRPC"}`},
	} {
		if closed, problems := annotated(t, w, tc.set); closed ||
			optionsText(w.hosts(), "http://h.example/p") != tc.options {
			t.Errorf("%v: closed is %v, options are %s, want %s: %s", tc.set, closed,
				optionsText(w.hosts(), "http://h.example/p"), tc.options, problems)
		}
	}
}

// Booleans are those of strconv.ParseBool, as in ingress-nginx.
func TestBooleans(t *testing.T) {
	w := oneIngress(t)
	for _, v := range []string{"true", "True", "TRUE", "t", "T", "1"} {
		_, problems := annotated(t, w, map[string]string{"enable-cors": v, "cors-allow-credentials": v,
			"force-ssl-redirect": v})
		if got := optionsText(w.hosts(), "http://h.example/p"); !strings.Contains(got, `"redirectTLS":308`) ||
			!strings.Contains(got, `"credentials":true`) || problems != "" {
			t.Errorf("%s: %s %s", v, got, problems)
		}
	}
	for _, v := range []string{"false", "False", "FALSE", "f", "F", "0"} {
		_, problems := annotated(t, w, map[string]string{"enable-cors": "1", "cors-allow-credentials": v,
			"force-ssl-redirect": v, "canary": v})
		if got := optionsText(w.hosts(), "http://h.example/p"); strings.Contains(got, `"redirectTLS"`) ||
			strings.Contains(got, `"credentials"`) || !strings.Contains(got, `"cors"`) || problems != "" {
			t.Errorf("%s: %s %s", v, got, problems)
		}
	}
}

// The endpoints of a backend are no metadata service, whoever wrote them.
func TestEndpointsAreNoMetadataService(t *testing.T) {
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+`
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: odd},
  spec: {clusterIP: 10.96.0.77, ports: [{name: http, port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
  metadata: {namespace: shop, name: odd-1, labels: {kubernetes.io/service-name: odd}}, ports: [{name: http, port: 80}],
  endpoints: [{addresses: [169.254.169.254]}, {addresses: [127.0.0.1]}, {addresses: [100.100.100.200]},
  {addresses: [168.63.129.16]}, {addresses: [10.244.1.5]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv6,
  metadata: {namespace: shop, name: odd-2, labels: {kubernetes.io/service-name: odd}}, ports: [{name: http, port: 80}],
  endpoints: [{addresses: ["fd00:ec2::254"]}, {addresses: ["64:ff9b::a9fe:a9fe"]}]}
`+ing("a", nil, rules("h.example /p P odd:80")))
	if got := fmt.Sprint(Endpoints(w.store.Snapshot(), "shop/odd:80")); got != "[10.244.1.5:80]" {
		t.Errorf("endpoints are %s", got)
	}
}

// The input of the field that showed the fault.
func TestForeignGuardsOfTheField(t *testing.T) {
	raw, err := os.ReadFile("testdata/foreign-guards.yaml")
	if err != nil {
		t.Fatal(err)
	}
	w := newFixture(t, Settings{Default: true}, "---\n"+string(raw))
	if got := answer(w.hosts(), "http://seventeen.bugs.test/"); got != "503" {
		t.Errorf("it answers %s", got)
	}
	all := strings.Join(w.allProblems(), "\n")
	for _, key := range []string{"traefik.ingress.kubernetes.io/router.middlewares",
		"haproxy-ingress.github.io/auth-secret", "nginx.org/basic-auth-secret",
		"ingress.kubernetes.io/whitelist-source-range", "alb.ingress.kubernetes.io/inbound-cidrs"} {
		if !strings.Contains(all, "metadata.annotations["+key+"]: is for ") {
			t.Errorf("%s is not named: %s", key, all)
		}
	}
}
