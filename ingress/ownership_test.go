package ingress

import (
	"fmt"
	"strings"
	"testing"

	"wayleave.dev/model"
	"wayleave.dev/proxy/table"
)

// ownershipCases are ways by which one Ingress takes or opens what another one has.
func ownershipCases() []ingressCase {
	own, strict := Settings{Default: true}, Settings{Default: true, HostsOfOneNamespace: true}
	only := []string{"whitelist-source-range: 192.0.2.0/24"}
	everybody := []string{"whitelist-source-range: 0.0.0.0/0,::/0"} // a guard that keeps no client out
	closed := []string{"modsecurity-snippet: x"}
	regex := []string{"use-regex: true"}
	with := func(lists ...[]string) (out []string) {
		for _, l := range lists {
			out = append(out, l...)
		}
		return out
	}
	const shared = "Ingress other/b: spec.rules[0].host: a.example is a host of Ingress shop/a: paths are added"
	const notBuilt = "modsecurity-snippet]: is not built"
	return []ingressCase{
		// The order of paths.
		{name: "ownership: a catch-all and an exact path with sources", settings: own,
			yaml: ing("a@1", []string{"rewrite-target: /$1"}, rules("a.example /(.*) I web:80")) +
				ing("b@2", closed, rules("a.example /healthz E api:8080")),
			want:     []string{"http://a.example/healthz = 503", "http://a.example/x = shop/web:80"},
			problems: []string{notBuilt}},
		{name: "ownership: a catch-all and a guarded prefix", settings: own,
			yaml: ing("a@1", []string{"rewrite-target: /$1"}, rules("a.example /(.*) I web:80")) +
				ing("b@2", closed, rules("a.example /adm P api:8080")),
			want: []string{"http://a.example/adm/x = 503", "http://a.example/ADM = 503",
				"http://a.example/x = shop/web:80"}, problems: []string{notBuilt}},
		{name: "ownership: a challenge is not redirected", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P web:80"), tlsOf("tls-a a.example")) +
				ing("b@2", []string{"force-ssl-redirect: true"},
					rules("a.example /.well-known/acme-challenge/t I api:8080")),
			want: []string{"http://a.example/ = 308 https",
				"http://a.example/.well-known/acme-challenge/t = shop/api:8080"}},

		// Hosts of another namespace.
		{name: "ownership: another namespace's certificate", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P web:80")) + ing("other/b@2", nil, rules("a.example /b P web:80"),
				tlsOf("- a.example")),
			want: []string{"cert a.example = default", "http://a.example/ = shop/web:80",
				"http://a.example/b = other/web:80"},
			problems: []string{shared, "Ingress other/b: spec.tls[0].secretName: a.example is a host of Ingress " +
				"shop/a; only its namespace can set the certificate"}},
		{name: "ownership: another namespace's app-root", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P web:80")) + ing("other/b@2", []string{"app-root: /b"},
				rules("a.example /b P web:80")),
			want: []string{"http://a.example/ = shop/web:80"},
			problems: []string{shared, "Ingress other/b: " +
				"metadata.annotations[nginx.ingress.kubernetes.io/app-root]: a.example is a host of Ingress shop/a"}},
		{name: "ownership: another namespace's default backend", settings: own,
			yaml: ing("a@1", nil, rules("a.example /a P web:80")) + ing("other/b@2", nil, fallback("web:80"),
				rules("a.example /b P web:80")),
			want:     []string{"http://a.example/x = 404", "http://a.example/b = other/web:80"},
			problems: []string{shared, "Ingress other/b: spec.defaultBackend: a.example is a host of Ingress shop/a"}},
		{name: "ownership: another namespace's redirect is of its own path", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P web:80")) +
				ing("other/b@2", []string{"permanent-redirect: https://evil.example/"},
					rules("a.example / P web:80 /b P web:80")),
			want:     []string{"http://a.example/ = shop/web:80", "http://a.example/b = 301 https://evil.example/"},
			problems: []string{shared, "a.example/ belongs to Ingress shop/a, which is older"}},
		{name: "ownership: another namespace's pattern", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P web:80")) + ing("other/b@2", regex,
				rules("a.example /(.*) I web:80 /b(/|$)(.*) I web:80")),
			want:     []string{"http://a.example/x = shop/web:80", "http://a.example/b/x = other/web:80"},
			problems: []string{shared}},
		{name: "ownership: another namespace's challenge", settings: own,
			yaml: ing("a@1", nil, rules("a.example /a P web:80")) + ing("other/b@2", nil,
				rules("a.example /.well-known/acme-challenge/t E web:80 /.well-known P web:80")) + ing("other/c@2", nil,
				rules("- / P web:80")),
			want: []string{"http://a.example/.well-known/acme-challenge/t = 404",
				"http://a.example/.well-known/x = other/web:80",
				"http://b.example/.well-known/acme-challenge/t = other/web:80"},
			problems: []string{shared, "only its namespace can answer ACME challenges"}},
		{name: "ownership: an alias for a host of another namespace", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P web:80")) +
				ing("other/b@2", []string{"server-alias: a.example"}, rules("b.example / P web:80")),
			want:     []string{"http://a.example/ = shop/web:80"},
			problems: []string{"server-alias]: a.example is a host of Ingress shop/a, which keeps it"}},
		{name: "ownership: an alias of a host of another namespace", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P web:80")) +
				ing("other/b@2", []string{"server-alias: c.example"}, rules("a.example /b P web:80")),
			want: []string{"http://c.example/ = 404", "http://c.example/b = 404"},
			problems: []string{shared,
				"server-alias]: a.example is a host of Ingress shop/a; only its namespace can add aliases"}},
		{name: "ownership: a younger rule for an alias", settings: own,
			yaml: ing("a@1", []string{"server-alias: c.example"},
				rules("a.example / P web:80")) + ing("other/b@2", nil, rules("c.example / P web:80 /b P web:80")),
			want: []string{"http://c.example/ = shop/web:80", "http://c.example/b = other/web:80"},
			problems: []string{"c.example/ belongs to Ingress shop/a",
				"c.example is a host of Ingress shop/a: paths are added"}},
		{name: "ownership: an alias has the guards of its host", settings: own,
			yaml: ing("a@1", []string{"server-alias: c.example"}, rules("a.example / P web:80")) +
				ing("b@2", closed, rules("a.example /admin P api:8080")),
			want: []string{"http://a.example/admin = 503", "http://c.example/admin = 503",
				"http://c.example/x = shop/web:80"}, problems: []string{notBuilt}},
		{name: "ownership: a certificate cuts no name out of a wildcard host", settings: own,
			yaml: ing("a@2", nil, rules("*.b.example / P web:80")) + ing("other/b@1", nil, fallback("web:80"),
				tlsOf("- x.b.example")),
			want:     []string{"http://x.b.example/ = shop/web:80"},
			problems: []string{"Ingress other/b: spec.tls: x.b.example is a host of Ingress shop/a"}},
		{name: "ownership: hosts of one namespace", settings: strict,
			yaml: ing("a@1", nil, rules("a.example / P web:80")) +
				ing("other/b@2", nil, rules("a.example /b P web:80")) +
				ing("c@3", nil, rules("a.example /c P api:8080")),
			want: []string{"http://a.example/b = shop/web:80", "http://a.example/c = shop/api:8080"},
			problems: []string{"Ingress other/b: spec.rules[0].host: a.example is a host of Ingress shop/a, and " +
				"each host belongs to one namespace"}},
		{name: "ownership: names below a wildcard host of one namespace", settings: strict,
			yaml: ing("a@1", nil, rules("*.b.example / P web:80")) + ing("other/b@2", nil,
				rules("x.b.example / P web:80")) + ing("other/c@2", nil, rules("x.c.example / P web:80")) +
				ing("c@3", nil, rules("*.c.example / P web:80")),
			want: []string{"http://x.b.example/ = shop/web:80", "http://x.c.example/ = other/web:80",
				"http://y.c.example/ = shop/web:80"},
			problems: []string{"x.b.example is a host of Ingress shop/a, and each host belongs to one namespace"}},
		{name: "ownership: a guarded wildcard host answers no challenge of a host below it", settings: own,
			yaml: ing("a@1", nil, rules("x.b.example /a P web:80")) + ing("other/b@2", everybody,
				rules("*.b.example / P web:80")),
			want: []string{"http://x.b.example/.well-known/acme-challenge/t = 404",
				"http://x.b.example/a = shop/web:80",
				"http://y.b.example/.well-known/acme-challenge/t = other/web:80"}},
		{name: "ownership: a host of one namespace and hosts that are not named", settings: strict,
			yaml: ing("a@1", nil, rules("a.example /a P web:80")) + ing("other/b@2", nil, fallback("web:80"),
				rules("- /b P web:80")) + ing("c@3", nil, rules("- /c P api:8080")),
			want: []string{"http://a.example/a = shop/web:80", "http://a.example/b = 404", "http://a.example/x = 404",
				"http://a.example/c = shop/api:8080", "http://z.example/b = other/web:80",
				"http://z.example/x = other/web:80"}},
		{name: "ownership: a host of one namespace and a younger wildcard host", settings: strict,
			yaml: ing("a@1", nil, rules("x.b.example /a P web:80")) + ing("other/b@2", everybody,
				rules("*.b.example / P web:80")) + ing("c@3", everybody, rules("*.b.example /c P api:8080")),
			want: []string{"http://x.b.example/a = shop/web:80", "http://x.b.example/x = 404",
				"http://y.b.example/x = other/web:80"},
			problems: []string{"*.b.example is a host of Ingress other/b, and each host belongs to one namespace"}},
		{name: "ownership: a path stays with its owner while the Service is missing", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P none:80")) + ing("other/b@2", nil,
				rules("a.example / P web:80")),
			want:     []string{"http://a.example/ = 503"},
			problems: []string{shared, "a.example/ belongs to Ingress shop/a", "Service shop/none does not exist"}},

		// What is closed stays closed.
		{name: "ownership: the canary of a closed path", settings: own,
			yaml: ing("a@1", closed, rules("a.example / P web:80")) +
				ing("c@2", []string{"canary: true", "canary-weight: 100"}, rules("a.example / P new:80")),
			want: []string{"http://a.example/ = 503", "opts http://a.example/ = null"}, problems: []string{notBuilt,
				"is a canary of a closed path"}},
		{name: "ownership: a canary with a guard of its own", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P web:80")) +
				ing("c@2", with(only, []string{"canary: true", "canary-weight: 100"}), rules("a.example / P new:80")),
			want:     []string{"http://a.example/ = shop/web:80", "opts http://a.example/ = null"},
			problems: []string{"the canary gets no requests"}},
		{name: "ownership: a guarded pattern that is not RE2", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P web:80")) + ing("b@2", with(regex, only),
				rules("a.example /admin(?=/|$) I api:8080")),
			want: []string{"http://a.example/admin/x = 503", "http://a.example/ADMIN = 503",
				"http://a.example/x = shop/web:80"}, problems: []string{"so paths that begin with /admin answer 503"}},
		{name: "ownership: nothing literal is known of a guarded pattern", settings: own,
			yaml: ing("a@2", nil, rules("a.example / P web:80")) + ing("b@1", with(regex, only),
				rules("a.example /(?!public)(.*) I api:8080")),
			want:     []string{"http://a.example/admin = 503", "http://a.example/public = 503"},
			problems: []string{"so paths that begin with / answer 503"}},
		{name: "ownership: but not the whole host of another namespace", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P web:80")) + ing("other/b@2", with(regex, only),
				rules("a.example /(?!public)(.*) I web:80 /b(?=x) I web:80")),
			want: []string{"http://a.example/admin = shop/web:80", "http://a.example/bx = 503"},
			problems: []string{shared, "so paths that begin with / answer 503",
				"so paths that begin with /b answer 503"}},
		{name: "ownership: a guarded default backend", settings: own, yaml: ing("a@1", closed, fallback("web:80"),
			rules("a.example /x P web:80")) + ing("b@2", nil, rules("- / P api:8080")),
			want:     []string{"http://a.example/y = 503", "http://b.example/ = shop/api:8080"},
			problems: []string{notBuilt}},
		{name: "ownership: a wildcard host's guard and the hosts without a name", settings: own,
			yaml: ing("a@1", closed, rules("*.b.example / P web:80")) +
				ing("b@2", nil, rules("x.b.example /only P api:8080")) + ing("c@3", nil, rules("- / P api:8080")),
			want: []string{"http://x.b.example/only = shop/api:8080", "http://x.b.example/else = 503",
				"http://y.b.example/ = 503"}, problems: []string{notBuilt}},
		{name: "ownership: a redirect of a closed path", settings: own,
			yaml: ing("a", with(closed, []string{"permanent-redirect: /x"}), rules("a.example / P web:80")),
			want: []string{"http://a.example/y = 503"}, problems: []string{notBuilt}},
		{name: "ownership: a guard that lost its path is named", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P web:80")) +
				ing("b@2", only, rules("a.example / P api:8080")),
			want:     []string{"http://a.example/ = shop/web:80"},
			problems: []string{"which is older; the guard of this path has no effect there"}},
		{name: "ownership: a path is compared as requests are", settings: own,
			yaml: ing("a@1", nil, rules("a.example / P web:80")) +
				ing("b@2", closed, rules("a.example /caf%C3%A9 P api:8080")),
			want:     []string{"http://a.example/caf%C3%A9 = 503", "http://a.example/café = 503"},
			problems: []string{notBuilt}},
		{name: "ownership: a path that is too long for patterns", settings: own,
			yaml: ing("a", regex, rules("a.example / P web:80 /admin(.*) I api:8080")),
			want: []string{"http://a.example/admin" + strings.Repeat("x", 8<<10) + " = 414"}},
		{name: "ownership: one path of one pattern in two namespaces", settings: own,
			yaml: ing("a@1", with(regex, closed),
				rules("a.example /admin.* I web:80")) + ing("other/b@2", regex,
				rules("a.example /admin.* I web:80 /(.*)(.*)(.*)(.*) I web:80")),
			want:     []string{"http://a.example/admin = 503", "http://a.example/x = other/web:80"},
			problems: []string{shared, notBuilt, "a.example/admin.* belongs to Ingress shop/a"}},
	}
}

// Thousands of patterns of another namespace leave the owner's host as it is, and are named.
func TestPatternsOverTheBoundAreNamed(t *testing.T) {
	var many []string
	for i := range 600 {
		many = append(many, fmt.Sprintf("/t%d(/|$)(a|b)*(.*) I web:80", i))
	}
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a@2", []string{"use-regex: true"},
		rules("a.example / P web:80 /mine(/|$)(.*) I api:8080"))+
		ing("other/b@3", []string{"use-regex: true"}, rules("a.example "+strings.Join(many, " "))))
	hosts, named := w.hosts(), 0
	for _, p := range w.allProblems() {
		if strings.Contains(p, "the patterns of this Ingress for the host have more than 4096 instructions") {
			named++
		}
	}
	if named < 300 || named > 599 {
		t.Errorf("%d patterns are named", named)
	}
	for url, want := range map[string]string{"http://a.example/mine/x": "shop/api:8080",
		"http://a.example/t0/a": "other/web:80", "http://a.example/t599/a": "503",
		"http://a.example/x": "shop/web:80"} {
		if got := answer(hosts, url); got != want {
			t.Errorf("%s is %s, want %s", url, got, want)
		}
	}
}

// A path has canaries up to a bound, the older ones; the others are named.
func TestCanariesOfAPathAreBounded(t *testing.T) {
	var b strings.Builder
	for i := range 12 {
		b.WriteString(ing(fmt.Sprintf("c%02d@2", i), []string{"canary: true", "canary-by-header: X-New",
			"canary-by-header-pattern: ^(a|b)*c$"}, rules("a.example / P new:80")))
	}
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a@1", nil, rules("a.example / P web:80"))+b.String())
	if got := w.hosts()["a.example"].Paths[0].Options.Canary; len(got) != table.MaxCanaries ||
		!strings.Contains(got[7].Source, "shop/c07") {
		t.Errorf("%d canaries: %+v", len(got), got)
	}
	if all := w.allProblems(); len(all) != 4 ||
		!strings.Contains(all[0], "Ingress shop/c08: spec.rules[0].http.paths[0]: exceeds 8") {
		t.Error(all)
	}
}

// A wildcard host that comes or goes changes the owner of the hosts below it.
func TestOwnersFollowWildcardHosts(t *testing.T) {
	w := newFixture(t, Settings{Default: true, HostsOfOneNamespace: true}, sampleYAML(t)+ing("other/b@2", nil,
		rules("x.b.example / P web:80")))
	expect := func(want string) {
		t.Helper()
		if got := answer(w.hosts(), "http://x.b.example/"); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	expect("other/web:80")
	w.read(ing("a@1", nil, rules("*.b.example / P web:80")))
	expect("shop/web:80")
	if all := w.allProblems(); len(all) != 1 || !strings.Contains(all[0], "Ingress other/b: spec.rules[0].host") {
		t.Error(all)
	}
	w.remove(model.IngressKind, "shop/a")
	expect("other/web:80")
}

// A guard whose Secret is not read yet is in force as a closed path: at a start, all Ingresses are
// new, and those without Secrets come first.
func TestAnIngressWhoseSecretIsNotReadIsClosed(t *testing.T) {
	p := NewPlanner(Settings{Default: true})
	p.Waits = true
	guard := []string{"auth-type: basic", "auth-secret: unread"}
	w := newFixtureOf(t, p, sampleYAML(t)+ing("a@2", nil, rules("a.example / P web:80"))+
		ing("b@2", guard, rules("a.example /admin P api:8080"))+
		ing("c@2", []string{"canary: true", "canary-weight: 100"}, rules("a.example /admin P new:80"))+
		ing("d@1", nil, rules("d.example /d P web:80"), tlsOf("unread d.example"))+ing("other/e@2", nil,
		rules("d.example /d P web:80 /.well-known P web:80")))
	for url, want := range map[string]string{"a.example/": "shop/web:80", "a.example/admin/x": "503",
		"d.example/d": "503", "d.example/.well-known/acme-challenge/x": "404"} {
		if got := answer(w.hosts(), "https://"+url); got != want {
			t.Errorf("%s before the Secret is read is %s, want %s", url, got, want)
		}
	}
	for _, q := range w.allProblems() {
		if !strings.Contains(q, "Ingress other/e") {
			t.Errorf("told while the Secret is not read: %s", q)
		}
	}
	if err := w.store.Write(func(tx *model.Writer) {
		tx.PutSecret(&model.Secret{Name: parseName("shop/unread"),
			Users: map[string]string{"u": "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="}})
	}); err != nil {
		t.Fatal(err)
	}
	w.round()
	m, _, ok := find(w.hosts(), "https://a.example/admin/x")
	if !ok || m.Path.Closed || m.Path.Options == nil || m.Path.Options.Auth == nil {
		t.Errorf("with its Secret the path is %+v", m.Path)
	}
}

// What most clusters have from ingress-nginx is served without an Event.
func TestCommonManifestsAreServedWithoutEvents(t *testing.T) {
	oauth := []string{"auth-url: https://$host/oauth2/auth",
		"auth-signin: https://$host/oauth2/start?rd=$escaped_request_uri",
		"auth-response-headers: X-Auth-Request-User, X-Auth-Request-Email"}
	inside := []string{"auth-url: http://web.shop.svc.cluster.local/oauth2/auth",
		"auth-signin: https://auth.example/oauth2/start?rd=$scheme://$host$escaped_request_uri"}
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+
		ing("white", []string{"whitelist-source-range: 10.0.0.0/8,192.0.2.0/24"}, rules("white.example / P web:80"))+
		ing("basic", []string{"auth-type: basic", "auth-secret: users", "auth-realm: Authentication Required"},
			rules("basic.example / P web:80"))+
		ing("main", nil, rules("canary.example / P web:80"))+
		ing("canary", []string{"canary: true", "canary-weight: 10"}, rules("canary.example / P new:80"))+
		ing("rewrite", []string{"rewrite-target: /$2", "use-regex: true"}, rules("a.example /app(/|$)(.*) I web:80"),
			tlsOf("tls-a a.example"))+
		ing("cm-acme-http-solver-x@2", []string{"whitelist-source-range: 0.0.0.0/0,::/0"},
			rules("a.example /.well-known/acme-challenge/TOKEN E api:8080"))+
		ing("app", oauth, rules("oauth.example / P web:80"))+ing("oauth2-proxy@2", nil,
		rules("oauth.example /oauth2 P api:8080"))+
		ing("inside", inside, rules("inside.example / P web:80")))
	if got := w.allProblems(); len(got) > 0 {
		t.Errorf("told: %q", got)
	}
	for url, want := range map[string]string{
		"https://white.example/x": "shop/web:80", "https://basic.example/": "shop/web:80",
		"https://canary.example/": "shop/web:80", "https://a.example/app/x": "shop/web:80",
		"http://a.example/app":                              "308 https",
		"http://a.example/.well-known/acme-challenge/TOKEN": "shop/api:8080",
		"https://oauth.example/Any%20Thing;x=1/":            "shop/web:80",
		"https://oauth.example/oauth2/auth":                 "shop/api:8080", "https://inside.example/": "shop/web:80",
	} {
		if got := answer(w.hosts(), url); got != want {
			t.Errorf("%s is %s, want %s", url, got, want)
		}
	}
}

// Lists of one annotation are bounded: 60,000 aliases of a host with thousands of paths were as many
// hosts, and 100,000 fields took every table minutes to make.
func TestListsOfAnAnnotationAreBounded(t *testing.T) {
	var names, fields, paths []string
	for i := range 10000 {
		names, fields = append(names, fmt.Sprintf("n%d.example", i)), append(fields, fmt.Sprintf("X-F%d", i))
	}
	for i := range 2000 {
		paths = append(paths, fmt.Sprintf("/p%d P web:80", i))
	}
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+
		ing("a", []string{"server-alias: " + strings.Join(names, ",")},
			rules("a.example / P web:80"))+
		ing("b", []string{"server-alias: " + strings.ReplaceAll(strings.Join(names, ","), "n", "m")},
			rules("b.example "+strings.Join(paths, " ")))+
		ing("c", []string{"auth-url: https://auth.example/", "auth-response-headers: " + strings.Join(fields, ",")},
			rules("c.example / P web:80")))
	hosts := w.hosts()
	if n := len(hosts); n > 3+2*maxAliases || answer(hosts, "http://n31.example/") != "shop/web:80" ||
		answer(hosts, "http://n32.example/") != "404" || answer(hosts, "http://m8.example/p1") != "404" {
		t.Errorf("there are %d hosts", n)
	}
	if got := answer(hosts, "http://c.example/"); got != "503" {
		t.Errorf("a path whose fields are over the bound answers %s", got)
	}
	told := strings.Join(w.allProblems(), "\n")
	for _, want := range []string{
		"Ingress shop/a: metadata.annotations[nginx.ingress.kubernetes.io/server-alias]: has more than 32 names",
		"Ingress shop/b: metadata.annotations[nginx.ingress.kubernetes.io/server-alias]: has more than 8 names",
		"has 10000 fields; allowed: 64"} {
		if !strings.Contains(told, want) {
			t.Errorf("nobody is told %q, but %q", want, told)
		}
	}
}
