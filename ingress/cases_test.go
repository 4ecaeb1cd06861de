package ingress

import (
	"strings"
	"testing"

	"wayleave.dev/model"
)

// ingressCase is YAML, and what becomes of it. Each line of want is "URL = ANSWER",
// "cert NAME = SECRET" or "opts URL = JSON"; problems are parts of all that are told, one
// of each.
type ingressCase struct {
	name     string
	settings Settings
	yaml     string
	want     []string
	problems []string
	// sometimes is the backend that a part of the requests goes to by weight.
	sometimes string
}

func ingressCases() []ingressCase {
	own := Settings{Default: true}
	const class = "---\n{apiVersion: networking.k8s.io/v1, kind: IngressClass, metadata: {name: %, annotations: " +
		"{ingressclass.kubernetes.io/is-default-class: \"DEFAULT\"}, creationTimestamp: " +
		"\"2026-01-0AGET00:00:00Z\"}, spec: {controller: CONTROLLER}}\n"
	classOf := func(name, controller, isDefault, age string) string {
		return strings.NewReplacer("%", name, "CONTROLLER", controller, "DEFAULT", isDefault, "AGE", age).Replace(class)
	}
	all := rules("- / P web:80")
	nginx := "k8s.io/ingress-nginx"
	return append(ownershipCases(), []ingressCase{
		// Classes.
		{name: "no class and no default class yet", settings: own, yaml: ing("a", nil, all),
			want: []string{"http://x/ = shop/web:80"}},
		{name: "no class and default is off", yaml: ing("a", nil, all), want: []string{"http://x/ = 404"}},
		{name: "no class, ours is the default", yaml: classOf("wayleave", Controller, "true", "1") + ing("a", nil, all),
			want: []string{"http://x/ = shop/web:80"}},
		{name: "no class, ours is not the default", settings: own, yaml: classOf("wayleave", Controller, "false", "1") +
			ing("a", nil, all), want: []string{"http://x/ = 404"}},
		{name: "no class, another is the default", settings: own, yaml: classOf("other", "example.com/x", "true", "1") +
			ing("a", nil, all), want: []string{"http://x/ = 404"}},
		{name: "two defaults, the younger is ours", yaml: classOf("other", "example.com/x", "true", "1") +
			classOf("mine", Controller, "true", "2") + ing("a", nil, all), want: []string{"http://x/ = shop/web:80"}},
		{name: "class by name", yaml: ing("a", nil, "ingressClassName: wayleave", all),
			want: []string{"http://x/ = shop/web:80"}},
		{name: "class by another name with our controller", yaml: classOf("mine", Controller, "false", "1") +
			ing("a", nil, "ingressClassName: mine", all), want: []string{"http://x/ = shop/web:80"}},
		{name: "class of our name with another controller", yaml: classOf("wayleave", "example.com/x", "false", "1") +
			ing("a", nil, "ingressClassName: wayleave", all), want: []string{"http://x/ = 404"}},
		{name: "class of somebody else", settings: own, yaml: ing("a", nil, "ingressClassName: nginx", all),
			want: []string{"http://x/ = 404"}},
		{name: "class by annotation", yaml: ing("a", []string{"kubernetes.io/ingress.class: wayleave"}, all),
			want: []string{"http://x/ = shop/web:80"}},
		{name: "nginx by annotation, adopted", settings: Settings{AdoptNginx: true},
			yaml: ing("a", []string{"kubernetes.io/ingress.class: nginx"}, all),
			want: []string{"http://x/ = shop/web:80"}},
		{name: "nginx by name, adopted", settings: Settings{AdoptNginx: true}, yaml: classOf("nginx", nginx, "false",
			"1") + ing("a", nil, "ingressClassName: nginx", all), want: []string{"http://x/ = shop/web:80"}},
		{name: "nginx by name, not adopted", settings: own, yaml: classOf("nginx", nginx, "true", "1") +
			ing("a", nil, "ingressClassName: nginx", all), want: []string{"http://x/ = 404"}},
		{name: "another controller's class nginx is not adopted", settings: Settings{AdoptNginx: true},
			yaml: classOf("nginx", "nginx.org/ingress-controller", "false", "1") +
				ing("a", nil, "ingressClassName: nginx", all), want: []string{"http://x/ = 404"}},

		// Hosts.
		{name: "exact host", settings: own, yaml: ing("a", nil, rules("a.example / P web:80")),
			want: []string{"http://a.example/ = shop/web:80", "http://A.Example:8080/ = shop/web:80",
				"http://b.example/ = 404", "http://x.a.example/ = 404"}},
		{name: "wildcard host is one label", settings: own, yaml: ing("a", nil, rules("*.a.example / P web:80")),
			want: []string{"http://x.a.example/ = shop/web:80", "http://y.x.a.example/ = 404",
				"http://a.example/ = 404"}},
		{name: "exact before wildcard", settings: own,
			yaml: ing("a", nil, rules("*.a.example / P web:80", "x.a.example /only P api:8080")),
			want: []string{"http://y.a.example/ = shop/web:80", "http://x.a.example/only = shop/api:8080",
				"http://x.a.example/ = 404"}},
		{name: "a rule without host serves every host", settings: own,
			yaml: ing("a", nil, rules("- /any P web:80", "a.example / P api:8080")),
			want: []string{"http://b.example/any = shop/web:80", "http://a.example/any = shop/api:8080",
				"http://b.example/ = 404"}},
		{name: "a named host falls to rules without host", settings: own,
			yaml: ing("a", nil, rules("- /any P web:80", "a.example /own P api:8080")),
			want: []string{"http://a.example/any = shop/web:80", "http://a.example/own = shop/api:8080"}},
		{name: "upper case host", settings: own, yaml: ing("a", nil, rules("A.example / P web:80")),
			want: []string{"http://a.example/ = shop/web:80"}},
		{name: "the mission's main-ingress", settings: own, yaml: ing("main-ingress", nil,
			rules("app1.example.com / P web:80", "app2.example.com /api P api:8080 / P new:80")), want: []string{
			"http://app1.example.com/anything = shop/web:80", "http://app2.example.com/api/users = shop/api:8080",
			"http://app2.example.com/home = shop/new:80", "http://app2.example.com/apiary = shop/new:80"}},

		// Paths.
		{name: "exact path", settings: own, yaml: ing("a", nil, rules("- /x E web:80")),
			want: []string{"http://h/x = shop/web:80", "http://h/x/ = 404", "http://h/X = 404", "http://h/x/y = 404"}},
		{name: "prefix by element", settings: own, yaml: ing("a", nil, rules("- /x P web:80")),
			want: []string{"http://h/x = shop/web:80", "http://h/x/ = shop/web:80", "http://h/x/y = shop/web:80",
				"http://h/xy = 404"}},
		{name: "prefix with a slash at its end", settings: own, yaml: ing("a", nil, rules("- /x/ P web:80")),
			want: []string{"http://h/x = shop/web:80", "http://h/x/y = shop/web:80", "http://h/xy = 404"}},
		{name: "the longest prefix", settings: own,
			yaml: ing("a", nil, rules("- / P web:80 /a P api:8080 /a/b P new:80")),
			want: []string{"http://h/a/b/c = shop/new:80", "http://h/a/c = shop/api:8080", "http://h/c = shop/web:80"}},
		{name: "exact before prefix", settings: own, yaml: ing("a", nil, rules("- /x P web:80 /x E api:8080")),
			want: []string{"http://h/x = shop/api:8080", "http://h/x/ = shop/web:80"}},
		{name: "ImplementationSpecific is prefix", settings: own, yaml: ing("a", nil, rules("- /x I web:80")),
			want: []string{"http://h/x/y = shop/web:80", "http://h/xy = 404"}},
		{name: "dots do not get around a path", settings: own,
			yaml: ing("a", nil, rules("- /public P web:80 /admin P api:8080")),
			want: []string{"http://h/public/../admin = shop/api:8080", "http://h//admin = shop/api:8080",
				"http://h/%61dmin = shop/api:8080"}},
		{name: "one path twice", settings: own, yaml: ing("a", nil, rules("- /x P web:80 /x P api:8080")),
			want: []string{"http://h/x = shop/web:80"}, problems: []string{"paths[1]: /x is a duplicate"}},
		{name: "prefix with and without slash are one", settings: own,
			yaml: ing("a", nil, rules("- /x P web:80 /x/ P api:8080")), want: []string{"http://h/x/ = shop/web:80"},
			problems: []string{"is a duplicate"}},
		{name: "a bad path harms no other", settings: own, yaml: ing("a", nil, rules("- /a//b P web:80 /x P api:8080")),
			want: []string{"http://h/x = shop/api:8080"}, problems: []string{"paths[0].path"}},

		// Conflicts.
		{name: "the older keeps a path", settings: own,
			yaml: ing("young@2", nil, rules("a.example / P api:8080 /y P api:8080")) +
				ing("old@1", nil, rules("a.example / P web:80")), want: []string{"http://a.example/ = shop/web:80",
				"http://a.example/y = shop/api:8080"}, problems: []string{"Ingress shop/young: " +
				"spec.rules[0].http.paths[0]: a.example/ belongs to Ingress shop/old, which is older"}},
		{name: "of one age the first by name", settings: own, yaml: ing("b", nil, rules("a.example / P api:8080")) +
			ing("a", nil, rules("a.example / P web:80")), want: []string{"http://a.example/ = shop/web:80"},
			problems: []string{"Ingress shop/b: spec.rules[0].http.paths[0]"}},
		{name: "two namespaces share a host", settings: own, yaml: ing("a", nil, rules("a.example / P api:8080")) +
			ing("other/b", nil, rules("a.example /o P web:80")), want: []string{"http://a.example/ = shop/api:8080",
			"http://a.example/o = other/web:80"},
			problems: []string{
				"Ingress shop/a: spec.rules[0].host: a.example is a host of Ingress other/b: paths are added"}},
		{name: "exact and prefix are no conflict", settings: own,
			yaml: ing("a@1", nil, rules("a.example /x P web:80")) + ing("b@2", nil, rules("a.example /x E api:8080")),
			want: []string{"http://a.example/x = shop/api:8080"}},

		// Default backends.
		{name: "only a default backend", settings: own, yaml: ing("a", nil, fallback("web:80")),
			want: []string{"http://any/thing = shop/web:80"}},
		{name: "default backend of a host", settings: own, yaml: ing("a", nil, fallback("web:80"),
			rules("a.example /x P api:8080")), want: []string{"http://a.example/x = shop/api:8080",
			"http://a.example/y = shop/web:80", "http://b.example/ = 404"}},
		{name: "default backend for all that named hosts lack", settings: own, yaml: ing("a", nil, fallback("web:80")) +
			ing("b", nil, rules("a.example /x P api:8080")), want: []string{"http://a.example/y = shop/web:80"}},
		{name: "two default backends", settings: own, yaml: ing("b@2", nil, fallback("api:8080")) +
			ing("a@1", nil, fallback("web:80")), want: []string{"http://any/ = shop/web:80"},
			problems: []string{
				"Ingress shop/b: spec.defaultBackend: the default backend of (any host) is that of Ingress shop/a"}},
		{name: "a default backend that is missing", settings: own, yaml: ing("a", nil, fallback("none:80")),
			want:     []string{"http://any/ = 503"},
			problems: []string{"spec.defaultBackend.service: Service shop/none does not exist"}},

		// Backends.
		{name: "port by name", settings: own, yaml: ing("a", nil, rules("- / P web:https")),
			want: []string{"http://h/ = shop/web:443"}},
		{name: "port of a headless Service", settings: own, yaml: ing("a", nil, rules("- / P db:pg")),
			want: []string{"http://h/ = shop/db:5432"}},
		{name: "missing Service", settings: own, yaml: ing("a", nil, rules("- / P none:80 /x P web:80")),
			want: []string{"http://h/ = 503", "http://h/x = shop/web:80"},
			problems: []string{
				"spec.rules[0].http.paths[0].backend.service: Service shop/none does not exist; the path answers 503"}},
		{name: "missing port", settings: own, yaml: ing("a", nil, rules("- / P web:81")),
			want: []string{"http://h/ = 503"}, problems: []string{"Service shop/web has no TCP port 81"}},
		{name: "missing port by name", settings: own, yaml: ing("a", nil, rules("- / P web:grpc")),
			want: []string{"http://h/ = 503"}, problems: []string{`Service shop/web has no TCP port "grpc"`}},
		{name: "port of UDP", settings: own, yaml: ing("a", nil, rules("- / P names:dns")),
			want: []string{"http://h/ = 503"}, problems: []string{`has no TCP port "dns"`}},
		{name: "ExternalName", settings: own, yaml: ing("a", nil, rules("- / P away:80")),
			want:     []string{"http://h/ = 503"},
			problems: []string{"Service shop/away is of type ExternalName, which is refused"}},
		{name: "a Service of another namespace is not reached", settings: own,
			yaml: ing("other/a", nil, rules("- / P api:8080")), want: []string{"http://h/ = 503"},
			problems: []string{"Service other/api does not exist"}},

		// TLS.
		{name: "certificate by host", settings: own, yaml: ing("a", nil, rules("a.example / P web:80"),
			tlsOf("tls-a a.example")), want: []string{"cert a.example = shop/tls-a", "cert b.example = default",
			"http://a.example/ = 308 https", "https://a.example/ = shop/web:80"}},
		{name: "several hosts, one certificate", settings: own,
			yaml: ing("a", nil, rules("a.example / P web:80", "c.example / P web:80"),
				tlsOf("tls-many a.example c.example")), want: []string{"cert a.example = shop/tls-many",
				"cert c.example = shop/tls-many"}},
		{name: "several certificates", settings: own,
			yaml: ing("a", nil, rules("a.example / P web:80", "*.b.example / P web:80"),
				tlsOf("tls-a a.example", "tls-wild *.b.example")), want: []string{"cert a.example = shop/tls-a",
				"cert x.b.example = shop/tls-wild"}},
		{name: "a wildcard certificate for an exact host", settings: own,
			yaml: ing("a", nil, rules("x.b.example / P web:80"), tlsOf("tls-wild *.b.example")),
			want: []string{"cert x.b.example = shop/tls-wild", "http://x.b.example/ = 308 https"}},
		{name: "missing Secret", settings: own, yaml: ing("a", nil, rules("a.example / P web:80"),
			tlsOf("none a.example")), want: []string{"cert a.example = default", "http://a.example/ = 308 https"},
			problems: []string{
				"spec.tls[0].secretName: Secret shop/none does not exist; the default certificate is used"}},
		{name: "a bad certificate", settings: own, yaml: ing("a", nil, rules("a.example / P web:80"),
			tlsOf("tls-bad a.example")), want: []string{"cert a.example = default"},
			problems: []string{"private key does not match"}},
		{name: "a Secret without certificate", settings: own, yaml: ing("a", nil, rules("a.example / P web:80"),
			tlsOf("users a.example")), want: []string{"cert a.example = default"},
			problems: []string{"Secret shop/users has no valid certificate"}},
		{name: "a certificate for another host", settings: own, yaml: ing("a", nil, rules("c.example / P web:80"),
			tlsOf("tls-a c.example")), want: []string{"cert c.example = default"},
			problems: []string{
				"the certificate of Secret shop/tls-a is for a.example, www.a.example, not for c.example"}},
		{name: "an ended certificate is used", settings: own, yaml: ing("a", nil, rules("a.example / P web:80"),
			tlsOf("tls-old a.example")), want: []string{"cert a.example = shop/tls-old"},
			problems: []string{
				"Ingress shop/a: spec.tls[0].secretName: the certificate of Secret shop/tls-old expired on "}},
		{name: "no hosts in tls: those that the certificate is for", settings: own,
			yaml: ing("a", nil, rules("a.example / P web:80", "d.example / P web:80"), tlsOf("tls-a")),
			want: []string{"cert a.example = shop/tls-a", "cert d.example = default",
				"http://d.example/ = shop/web:80"}},
		{name: "no Secret: the default certificate is meant", settings: Settings{Default: true,
			DefaultCertificate: model.Name{Namespace: "shop", Name: "tls-many"}},
			yaml: ing("a", nil, rules("a.example / P web:80"), tlsOf("- a.example")),
			want: []string{"cert nobody.example = shop/tls-many", "http://a.example/ = 308 https"}},
		{name: "the older Ingress's certificate", settings: own, yaml: ing("b@2", nil, rules("a.example /b P web:80"),
			tlsOf("tls-many a.example")) + ing("a@1", nil, rules("a.example / P web:80"), tlsOf("tls-a a.example")),
			want: []string{"cert a.example = shop/tls-a"},
			problems: []string{
				"Ingress shop/b: spec.tls[0].secretName: a.example already has the certificate of Secret shop/tls-a"}},
		{name: "the younger's, where the older's is bad", settings: own,
			yaml: ing("b@2", nil, rules("a.example /b P web:80"), tlsOf("tls-many a.example")) +
				ing("a@1", nil, rules("a.example / P web:80"), tlsOf("none a.example")),
			want: []string{"cert a.example = shop/tls-many"}, problems: []string{"Secret shop/none does not exist"}},
		{name: "nobody's rule, only a certificate", settings: own, yaml: ing("a", nil, fallback("web:80"),
			tlsOf("tls-a a.example")), want: []string{"cert a.example = shop/tls-a", "http://a.example/ = 308 https",
			"https://a.example/ = shop/web:80", "http://b.example/ = shop/web:80"}},
		{name: "a certificate for a host that another routes", settings: own,
			yaml: ing("a@2", nil, rules("a.example / P web:80")) + ing("thief@1", nil, rules("c.example / P web:80"),
				tlsOf("tls-many a.example c.example")), want: []string{"cert a.example = default",
				"cert c.example = shop/tls-many", "http://a.example/ = shop/web:80"},
			problems: []string{"Ingress shop/thief: spec.tls: a.example is a host of Ingress shop/a; a certificate " +
				"for it has no effect here"}},
		{name: "ssl-redirect is off", settings: own, yaml: ing("a", []string{"ssl-redirect: false"},
			rules("a.example / P web:80"), tlsOf("tls-a a.example")), want: []string{"http://a.example/ = shop/web:80",
			"https://a.example/ = shop/web:80"}},
		{name: "force-ssl-redirect without a certificate", settings: own,
			yaml: ing("a", []string{"force-ssl-redirect: true"}, rules("a.example / P web:80")),
			want: []string{"http://a.example/ = 308 https"}},
		{name: "another Ingress's path of a host with a certificate", settings: own,
			yaml: ing("a", nil, rules("a.example / P web:80"), tlsOf("tls-a a.example")) +
				ing("b", nil, rules("a.example /b P web:80")), want: []string{"http://a.example/b = 308 https"}},

		// Annotations that change routes; the options are in TestAnnotations.
		{name: "rewrite with groups", settings: own, yaml: ing("a", []string{"rewrite-target: /$2"},
			rules("a.example /app(/|$)(.*) I web:80 / P api:8080")),
			want: []string{`opts http://a.example/app/x = {"rewriteTarget":"/$2","pathPattern":"/app(/|$)(.*)"}`,
				"http://a.example/APP/x = shop/web:80", "http://a.example/apple = shop/api:8080"}},
		{name: "rewrite of a prefix", settings: own, yaml: ing("a", []string{"rewrite-target: /"},
			rules("a.example /app P web:80")), want: []string{`opts http://a.example/app/x = {"rewriteTarget":"/"}`,
			"http://a.example/apple = shop/web:80", "http://a.example/APP = shop/web:80", "http://a.example/ap = 404"}},
		{name: "a path that is its own target is not rewritten", settings: own,
			yaml: ing("a", []string{"rewrite-target: /"}, rules("a.example / P web:80 /x P api:8080")),
			want: []string{"opts http://a.example/y = null", `opts http://a.example/x/y = {"rewriteTarget":"/"}`}},
		{name: "a rewrite alone of / reads no path as an expression", settings: own,
			yaml: ing("a", []string{"rewrite-target: /"}, rules("a.example / P web:80")) +
				ing("b", nil, rules("a.example /x P api:8080")), want: []string{"http://a.example/xy = shop/web:80",
				"http://a.example/X = shop/web:80"}},
		{name: "use-regex reads all paths of the host as prefixes", settings: own,
			yaml: ing("a", []string{"use-regex: true"}, rules("a.example /v[0-9]+ I web:80")) +
				ing("b", nil, rules("a.example /Shop P api:8080 /exact E new:80")),
			want: []string{"http://a.example/shop = shop/api:8080", "http://a.example/SHOPPING/x = shop/api:8080",
				"http://a.example/exact = shop/new:80", "http://a.example/EXACTLY = shop/new:80",
				"http://a.example/v1x = shop/web:80", "http://a.example/v = 404"}},
		{name: "use-regex of another namespace leaves the owner's paths as they are", settings: own,
			yaml: ing("a@1", nil, rules("a.example /shop P web:80")) + ing("other/b@2", []string{"use-regex: true"},
				rules("a.example /blog P web:80")),
			want: []string{"http://a.example/SHOP = 404", "http://a.example/shop = shop/web:80",
				"http://a.example/blog = other/web:80"},
			problems: []string{"a.example is a host of Ingress shop/a: paths are added"}},
		{name: "escapes in expressions", settings: own, yaml: ing("a", []string{"use-regex: true"},
			rules("a.example /caf%C3%A9/(.*) I web:80 /a%2Bb I api:8080")),
			want: []string{"http://a.example/caf%C3%A9/x = shop/web:80", "http://a.example/a+b = shop/api:8080",
				"http://a.example/aab = 404"}},
		{name: "escapes in plain paths", settings: own,
			yaml: ing("a", nil, rules("a.example /a%20b P web:80 /caf%c3%a9 E api:8080")),
			want: []string{"http://a.example/a%20b/x = shop/web:80", "http://a.example/caf%C3%A9 = shop/api:8080"}},
		{name: "a bad escape matches nothing, and is named", settings: own,
			yaml: ing("a", nil, rules("a.example /a%zz P web:80")), want: []string{"http://a.example/a = 404"},
			problems: []string{"has an invalid escape or leaves the root; no request has this path"}},
		{name: "regular expressions", settings: own, yaml: ing("a", []string{"use-regex: true"},
			rules("a.example /v[0-9]+/x I web:80 /v I api:8080")),
			want: []string{"http://a.example/v12/x/y = shop/web:80", "http://a.example/v/12 = shop/api:8080"}},
		{name: "an expression that is none", settings: own, yaml: ing("a", []string{"use-regex: true"},
			rules("a.example /(?=x) I web:80")), want: []string{"http://a.example/x = 404"},
			problems: []string{"is not a valid RE2 expression"}},
		{name: "a canary whose pattern is too large", settings: own,
			yaml: ing("a", nil, rules("a.example / P web:80")) +
				ing("c", []string{"canary: true", "canary-by-header: X-New",
					"canary-by-header-pattern: (a{1,30}){1,30}"}, rules("a.example / P new:80")),
			want: []string{"http://a.example/ = shop/web:80"},
			problems: []string{
				"Ingress shop/c: metadata.annotations[nginx.ingress.kubernetes.io/canary-by-header-pattern]",
				"Ingress shop/c: metadata.annotations[nginx.ingress.kubernetes.io/canary]: takes no request"}},
		{name: "app-root", settings: own, yaml: ing("a", []string{"app-root: /app"}, rules("a.example / P web:80")),
			want: []string{"http://a.example/ = 302 /app", "http://a.example/app = shop/web:80"}},
		{name: "permanent-redirect needs no Service", settings: own,
			yaml: ing("a", []string{"permanent-redirect: https://new.example/"}, rules("a.example / P none:80")),
			want: []string{"http://a.example/x = 301 https://new.example/"}},
		{name: "alias", settings: own, yaml: ing("a", []string{"server-alias: b.example, *.c.example"},
			rules("a.example / P web:80")), want: []string{"http://a.example/ = shop/web:80",
			"http://b.example/ = shop/web:80", "http://x.c.example/ = shop/web:80"}},
		{name: "alias that is another's host", settings: own, yaml: ing("a@1", []string{"server-alias: b.example"},
			rules("a.example / P web:80")) + ing("b@2", nil, rules("b.example /b P api:8080")),
			want: []string{"http://b.example/ = 404", "http://b.example/b = shop/api:8080"},
			problems: []string{"Ingress shop/a: metadata.annotations[nginx.ingress.kubernetes.io/server-alias]: " +
				"b.example is a host of Ingress shop/b, which keeps it"}},
		{name: "canary", sometimes: "shop/new:80", settings: own, yaml: ing("a", nil, rules("a.example / P web:80")) +
			ing("c", []string{"canary: true", "canary-weight: 10"}, rules("a.example / P new:80")),
			want: []string{"http://a.example/ = shop/web:80", `opts http://a.example/ = ` +
				`{"canary":[{"backend":"shop/new:80","weight":10,"total":100,"source":"Ingress shop/c ` +
				`spec.rules[0].http.paths[0]"}]}`}},
		{name: "canary of an alias", settings: own, yaml: ing("a", []string{"server-alias: b.example"},
			rules("a.example / P web:80")) + ing("c", []string{"canary: true", "canary-by-header: X-New"},
			rules("a.example / P new:80")), want: []string{`opts http://b.example/ = ` +
			`{"canary":[{"backend":"shop/new:80","header":"X-New","total":100,"source":"Ingress shop/c ` +
			`spec.rules[0].http.paths[0]"}]}`}},
		{name: "canary without a main path", settings: own,
			yaml:     ing("c", []string{"canary: true", "canary-weight: 10"}, rules("a.example / P new:80")),
			want:     []string{"http://a.example/ = 404"},
			problems: []string{"is a canary of a path that no other Ingress has: a.example/"}},
		{name: "canary of another namespace", settings: own, yaml: ing("a", nil, rules("a.example / P web:80")) +
			ing("other/c", []string{"canary: true", "canary-weight: 100"}, rules("a.example / P web:80")),
			want: []string{"opts http://a.example/ = null"},
			problems: []string{"Ingress other/c: spec.rules[0].http.paths[0]: is a canary of Ingress shop/a, which " +
				"is in another namespace"}},
		{name: "canary to a missing Service", settings: own, yaml: ing("a", nil, rules("a.example / P web:80")) +
			ing("c", []string{"canary: true", "canary-weight: 10"}, rules("a.example / P none:80")),
			want: []string{"http://a.example/ = shop/web:80"}, problems: []string{"the canary gets no requests"}},
		{name: "basic auth", settings: own, yaml: ing("a", []string{"auth-type: basic", "auth-secret: users",
			"auth-realm: shop"}, rules("a.example / P web:80")),
			want: []string{
				`opts http://a.example/ = ` +
					`{"auth":{"realm":"shop","users":{"ann":"{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M="}}}`}},
		{name: "basic auth without its Secret is closed", settings: own,
			yaml:     ing("a", []string{"auth-type: basic", "auth-secret: none"}, rules("a.example / P web:80")),
			want:     []string{"http://a.example/ = 503"},
			problems: []string{"Secret shop/none does not exist; all paths of this Ingress answer 503"}},
		{name: "basic auth by another namespace's Secret is closed", settings: own,
			yaml: ing("other/a", []string{"auth-type: basic", "auth-secret: shop/users"},
				rules("a.example / P web:80")), want: []string{"http://a.example/ = 503"},
			problems: []string{"is in another namespace"}},
		{name: "a list of sources that cannot be read is closed", settings: own,
			yaml:     ing("a", []string{"whitelist-source-range: 10.0.0.0/8,x"}, rules("a.example / P web:80")),
			want:     []string{"http://a.example/ = 503"},
			problems: []string{`"x" is neither an address nor a CIDR; it restricts access`}},
		{name: "client certificates are closed", settings: own, yaml: ing("a", []string{"auth-tls-secret: shop/ca"},
			rules("a.example / P web:80")), want: []string{"http://a.example/ = 503"},
			problems: []string{
				"auth-tls-secret]: Secret shop/ca does not exist; all paths of this Ingress answer 503"}},
		{name: "what is not built is named", settings: own,
			yaml: ing("a", []string{"opentelemetry-operation-name: x", "configuration-snippet: more_set_headers x;",
				"wrong-name: y", "ingress.wayleave.dev/z: 1"}, rules("a.example / P web:80")),
			want: []string{"http://a.example/ = shop/web:80"},
			problems: []string{"opentelemetry-operation-name]: is not built",
				"configuration-snippet]: is not built", "wrong-name]: is not known",
				"ingress.wayleave.dev/z]: Wayleave has no annotation of that name"}},
		{name: "a snippet that denies is closed", settings: own,
			yaml: ing("a", []string{"configuration-snippet: deny all;"}, rules("a.example / P web:80")),
			want: []string{"http://a.example/ = 503"}, problems: []string{"seems to restrict access"}},
	}...)
}

func TestIngressCases(t *testing.T) {
	cases, base := ingressCases(), sampleYAML(t)
	if len(cases) < 60 {
		t.Errorf("only %d cases", len(cases))
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, base) })
	}
}

// run plans the case beside base, and compares answers and problems.
func (tc ingressCase) run(t *testing.T, base string) {
	t.Helper()
	w := newFixture(t, tc.settings, base+tc.yaml)
	w.expect(tc.want)
	all := w.allProblems()
	for _, want := range tc.problems {
		n := 0
		for _, p := range all {
			if strings.Contains(p, want) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d problems have %q: %s", n, want, strings.Join(all, "\n"))
		}
	}
	if len(all) != len(tc.problems) {
		t.Errorf("problems are\n%s", strings.Join(all, "\n"))
	}
}
