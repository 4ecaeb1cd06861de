package ingress

import (
	"strings"
	"testing"
)

// reportCases are inputs of public reports about ingress-nginx, written anew; docs/field-reports.md lists them. The
// name is that of the report there.
func reportCases() []ingressCase {
	own, adopted := Settings{Default: true}, Settings{AdoptNginx: true, Default: true}
	return []ingressCase{
		{name: "ingress-nginx#8004: a canary's Service is also another Ingress's main one", settings: own,
			yaml: ing("a", nil, rules("a.example / P web:80")) + ing("b", nil, rules("b.example / P new:80")) +
				ing("c", []string{"canary: true", "canary-by-header: X-New"}, rules("a.example / P new:80")),
			want: []string{"http://a.example/ = shop/web:80", "http://b.example/ = shop/new:80"}},
		{name: "ingress-nginx#11085: a canary alone serves nothing", settings: own,
			yaml: ing("c", []string{"canary: true", "canary-by-header: region", "canary-by-header-value: x"},
				rules("www.host3.com /metrics P web:80")), want: []string{"http://www.host3.com/metrics = 404"},
			problems: []string{"is a canary of a path that no other Ingress has"}},
		{name: "ingress-nginx#4218: allow-http of another controller beside a canary", settings: own,
			yaml: ing("a", []string{"kubernetes.io/ingress.allow-http: false"}, rules("a.example / P web:80")) +
				ing("c", []string{"canary: true", "canary-by-header: x", "canary-by-header-value: lts"},
					rules("a.example / P new:80")), want: []string{"http://a.example/ = shop/web:80"}},
		{name: "ingress-nginx#8264: a port of any number in cors-allow-origin", settings: own,
			yaml: ing("a", []string{"enable-cors: true", "cors-allow-origin: http://localhost:*, https://a.example"},
				rules("a.example / P web:80")), want: []string{"http://a.example/ = shop/web:80"},
			problems: []string{"cors-allow-origin"}},
		{name: "ingress-nginx#6463: a path that ends in a slash", settings: own,
			yaml: ing("a", nil, rules("- /prefix/ I web:80")),
			want: []string{"http://h/prefix/foo/bar = shop/web:80", "http://h/prefixed = 404"}},
		{name: "ingress-nginx#1980: a rule without a path", settings: own,
			yaml: ing("a", []string{"affinity: cookie"}, "rules: [{host: a.example, http: {paths: [{pathType: "+
				"ImplementationSpecific, backend: "+backend("web:80")+"}]}}]"),
			want: []string{"http://a.example/ = shop/web:80", "http://a.example/x/y = shop/web:80"}},
		{name: "ingress-nginx#9405: an Exact / before the Prefix / of another Ingress", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P web:80")) + ing("b@2", nil, rules("a.example / E new:80")),
			want: []string{"http://a.example/ = shop/new:80", "http://a.example/x = shop/web:80"}},
		{name: "ingress-nginx#6437: a Prefix is not the beginning of a word, / serves that", settings: own,
			yaml: ing("a", nil, rules("a.example / P web:80 /foo P api:8080")),
			want: []string{"http://a.example/foobar = shop/web:80", "http://a.example/foo/bar = shop/api:8080"}},
		{name: "ingress-nginx#4189: a rewrite of a path with an alternative for its end", settings: own,
			yaml: ing("a", []string{"rewrite-target: /$2"}, rules("a.example /v1(/|$)(.*) I web:80")),
			want: []string{"http://a.example/v1 = shop/web:80", "http://a.example/v1/x = shop/web:80",
				"http://a.example/v10 = 404"}},
		{name: "ingress-nginx#11003: = and ? in rewrite-target", settings: own,
			yaml: ing("a", []string{"rewrite-target: /api/v2/query?org=x"}, rules("a.example /q P web:80")),
			want: []string{"http://a.example/q = shop/web:80"}},
		{name: "ingress-nginx#12917: groups of the path in proxy-redirect-to", settings: own,
			yaml: ing("a", []string{"use-regex: true", "rewrite-target: /$4", "proxy-redirect-from: /",
				"proxy-redirect-to: /$1/$2/$3/"}, rules("a.example /(prod)/([-a-z0-9]+)/(webrtc)/?(.*) I web:80")),
			want: []string{"http://a.example/prod/s1/webrtc/x = shop/web:80"}},
		{name: "ingress-nginx#13101: an expression in proxy-cookie-path", settings: own,
			yaml: ing("a", []string{`proxy-cookie-path: ~*^/.* /`}, rules("a.example / P web:80")),
			want: []string{"http://a.example/ = shop/web:80"}},
		{name: "ingress-nginx#7839: from-to-www-redirect of a wildcard host", settings: own,
			yaml: ing("a", []string{"from-to-www-redirect: true"}, rules("*.b.example / P web:80",
				"b.example / P api:8080")), want: []string{"http://x.b.example/ = shop/web:80",
				"http://b.example/ = shop/api:8080", "http://www.b.example/ = 308 $scheme://b.example$request_uri"}},
		{name: "ingress-nginx#5675: the certificate of the name that redirects", settings: own,
			yaml: ing("a", []string{"from-to-www-redirect: true"}, rules("a.example / P web:80"),
				tlsOf("tls-a a.example www.a.example")),
			want: []string{"cert www.a.example = shop/tls-a", "http://a.example/ = 308 https",
				"https://www.a.example/x = 308 $scheme://a.example$request_uri"}},
		{name: "ingress-nginx#6645: www of a name of three labels", settings: own,
			yaml: ing("a", []string{"from-to-www-redirect: true"}, rules("sub.foo.example / P web:80")),
			want: []string{"http://www.sub.foo.example/x = 308 $scheme://sub.foo.example$request_uri"}},
		{name: "ingress-nginx#6057: a host without certificate beside a wildcard that has one", settings: own,
			yaml: ing("a", nil, rules("m.b.example / P web:80")) + ing("b", nil, rules("*.b.example / P api:8080"),
				tlsOf("tls-wild *.b.example")), want: []string{"http://m.b.example/ = shop/web:80",
				"http://x.b.example/ = 308 https", "cert m.b.example = wildcard's shop/tls-wild"}},
		{name: "ingress-nginx#6605: a wildcard in tls for a host of the same Ingress", settings: own,
			yaml: ing("a", nil, rules("test.b.example / P web:80"), tlsOf("tls-wild *.b.example")),
			want: []string{"http://test.b.example/ = 308 https", "http://other.b.example/ = 404"}},
		{name: "ingress-nginx#10618: an Exact path on a host with expressions", settings: own,
			yaml: ing("a", []string{"use-regex: true"}, rules("a.example /v[0-9]+ I web:80 /admin/ E api:8080")),
			want: []string{"http://a.example/admin/x = shop/api:8080"}},
		{name: "ingress-nginx#1863: a guard below the old prefix", settings: adopted,
			yaml: ing("a", []string{"kubernetes.io/ingress.class: nginx",
				"ingress.kubernetes.io/whitelist-source-range: 127.0.0.1/32"}, rules("a.example / P web:80")),
			want: []string{"http://a.example/ = 503"}, problems: []string{"whitelist-source-range"}},
		{name: "targetPort: the number of the containers' port", settings: own,
			yaml: ing("a", nil, rules("a.example / P web:8080 /tls P web:8443 /none P web:81")),
			want: []string{"http://a.example/ = shop/web:80", "http://a.example/tls = shop/web:443",
				"http://a.example/none = 503"}, problems: []string{"Service shop/web has no TCP port 81"}},
		{name: "ingress-nginx#121: a port of the name comes before a targetPort", settings: own,
			yaml: "---\n{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: named}, spec: {clusterIP: " +
				"10.96.0.8, ports: [{name: http, port: 80, targetPort: http-web}, {name: http-web, port: 81}]}}\n" +
				ing("a", nil, rules("a.example / P named:http-web", "b.example / P named:80")),
			want: []string{"http://a.example/ = shop/named:81", "http://b.example/ = shop/named:80"}},
		{name: "ingress-nginx#121b: only the containers' port has the name", settings: own,
			yaml: "---\n{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: named}, spec: {clusterIP: " +
				"10.96.0.8, ports: [{name: http, port: 80, targetPort: http-web}]}}\n" +
				ing("a", nil, rules("a.example / P named:http-web")),
			want: []string{"http://a.example/ = shop/named:80"}},
		{name: "host alone: a rule without paths, with the default backend", settings: own,
			yaml: ing("a", nil, fallback("web:80"), "rules: [{host: a.example}]"),
			want: []string{"http://a.example/x = shop/web:80"}},
		{name: "ingress-nginx#5311: proxy-set-headers is for the controller's ConfigMap only", settings: own,
			yaml: ing("a", []string{"proxy-set-headers: shop/x"}, rules("a.example / P web:80")),
			want: []string{"http://a.example/ = shop/web:80"}, problems: []string{"proxy-set-headers"}},
		{name: "ingress-nginx#180: a field of the time of the request", settings: own,
			yaml: ing("a", []string{"ingress.wayleave.dev/request-headers: X-Request-Start: t=${msec}"},
				rules("a.example / P web:80")), want: []string{"http://a.example/ = shop/web:80"}},
		{name: "ingress-nginx#2993: what is no boolean in enable-access-log", settings: own,
			yaml: ing("a", []string{"enable-access-log: ture"}, rules("a.example / P web:80")),
			want: []string{"http://a.example/ = shop/web:80"}, problems: []string{"enable-access-log"}},
	}
}

func TestReportsOfIngressNginx(t *testing.T) {
	base := sampleYAML(t)
	for _, tc := range reportCases() {
		name, _, _ := strings.Cut(tc.name, ":")
		t.Run(name, func(t *testing.T) { tc.run(t, base) })
	}
}
