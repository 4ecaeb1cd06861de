package ingress

import (
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"wayleave.dev/model"
)

// An Ingress that is being deleted, alone or with its namespace, keeps nothing that another one
// asks for: its Services and Secrets go first, and all requests would meet 503 until it is gone.
func TestAnIngressThatIsBeingDeletedGivesWay(t *testing.T) {
	dying := func(yaml string) string {
		return strings.ReplaceAll(yaml, "metadata: {", `metadata: {deletionTimestamp: "2026-01-09T00:00:00Z", `)
	}
	const terminating,
		marked = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}, status: {phase: Terminating}}\n",
		"---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, deletionTimestamp: \"2026-01-09T00:00:00Z\"}}\n"
	old, next := ing("a@1", nil, rules("a.example / P web:80 /x P none:80"), tlsOf("tls-a a.example")),
		ing("other/b@2", nil, rules("a.example / P web:80"))
	closed := []string{"auth-tls-secret: shop/ca"}
	for _, tc := range []struct {
		name, yaml string
		want       []string
	}{
		{"nothing is deleted", old + next, []string{"https://a.example/ = shop/web:80", "https://a.example/x = 503",
			"cert a.example = shop/tls-a"}},
		{"the Ingress", dying(old) + next, []string{"http://a.example/ = other/web:80",
			"http://a.example/x = other/web:80", "cert a.example = default"}},
		{"its namespace, by the phase", terminating + old + next, []string{"http://a.example/ = other/web:80",
			"http://a.example/x = other/web:80", "cert a.example = default"}},
		{"its namespace, by the time", marked + old + next, []string{"http://a.example/ = other/web:80"}},
		{"nobody else routes the host", terminating + old, []string{"https://a.example/ = shop/web:80",
			"cert a.example = shop/tls-a"}},
		{"another has another host", terminating + old + ing("other/b@2", nil, rules("b.example / P web:80")),
			[]string{"https://a.example/ = shop/web:80", "http://b.example/ = other/web:80"}},
		{"another names the host in spec.tls alone", terminating + old + ing("other/b@2", nil, fallback("web:80"),
			tlsOf("- a.example")), []string{"https://a.example/ = shop/web:80"}},
		{"another is a canary alone", dying(old) + ing("c@2", []string{"canary: true", "canary-weight: 100"},
			rules("a.example / P new:80")), []string{"https://a.example/ = shop/web:80"}},
		{"another has it as an alias", terminating + old + ing("other/b@2", []string{"server-alias: a.example"},
			rules("b.example / P web:80")), []string{"http://a.example/ = other/web:80"}},
		{"its alias", dying(ing("a@1", []string{"server-alias: c.example"}, rules("a.example / P web:80"))) +
			ing("other/b@2", nil, rules("c.example / P web:80")), []string{"http://c.example/ = other/web:80",
			"http://a.example/ = shop/web:80"}},
		{"its canary", ing("a@1", nil, rules("a.example / P web:80")) +
			dying(ing("c@2", []string{"canary: true", "canary-weight: 100"}, rules("a.example / P new:80"))),
			[]string{"opts http://a.example/ = null"}},
		{"its default backend", dying(ing("a@1", nil, fallback("web:80"))) + ing("other/b@2", nil, fallback("web:80")),
			[]string{"http://any.example/ = other/web:80"}},
		{"its wildcard host", terminating + ing("a@1", nil, rules("*.b.example / P web:80"),
			tlsOf("tls-wild *.b.example")) + ing("other/b@2", nil, rules("*.b.example / P web:80")),
			[]string{"http://x.b.example/ = other/web:80", "cert x.b.example = default"}},
		{"both", dying(old) + dying(next), []string{"https://a.example/ = shop/web:80"}},
		{"the guard of the next one holds", dying(old) + ing("other/b@2", closed, rules("a.example / P web:80")),
			[]string{"http://a.example/ = 503", "http://a.example/x = 503"}},
		{"a younger one", old + dying(next), []string{"https://a.example/ = shop/web:80"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newFixture(t, Settings{Default: true}, sampleYAML(t)+tc.yaml)
			w.expect(tc.want)
		})
	}
}

// expect compares answers, "QUESTION = ANSWER" each.
func (w *fixture) expect(lines []string) {
	w.t.Helper()
	hosts := w.hosts()
	for _, line := range lines {
		q, want, _ := strings.Cut(line, " = ")
		var got string
		if name, ok := strings.CutPrefix(q, "cert "); ok {
			got = certificate(hosts, name)
		} else if url, ok := strings.CutPrefix(q, "opts "); ok {
			got = optionsText(hosts, url)
		} else {
			got = answer(hosts, q)
		}
		if got != want {
			w.t.Errorf("%s is %s, want %s", q, got, want)
		}
	}
}

// The namespace's deletion alone is enough, in the round that shows it, also while a Secret that
// was deleted with it has the Ingress wait.
func TestTheDeletionOfANamespaceIsSeenAtOnce(t *testing.T) {
	p := NewPlanner(Settings{Default: true})
	p.Waits = true
	w := newFixtureOf(t, p, sampleYAML(t)+"---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n"+
		ing("a@1", nil, rules("a.example / P web:80"), tlsOf("tls-a a.example"))+ing("other/b@2", nil,
		rules("a.example / P web:80")))
	w.expect([]string{"https://a.example/ = shop/web:80"})
	w.remove(model.SecretKind, "shop/tls-a")
	w.remove(model.ServiceKind, "shop/web")
	w.expect([]string{"https://a.example/ = 503"})
	w.read("---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}, status: {phase: Terminating}}\n")
	w.expect([]string{"http://a.example/ = other/web:80"})
	w.remove(model.IngressKind, "shop/a")
	w.remove(model.NamespaceKind, "shop")
	w.expect([]string{"http://a.example/ = other/web:80"})
	// A namespace of that name that is there anew is another one.
	w.read("---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n" +
		ing("a@1", nil, rules("a.example / P api:8080")))
	w.expect([]string{"http://a.example/ = shop/api:8080"})
}

// An Ingress that is deleted and stays for a finalizer gives way as well, though a Secret that it
// names has gone: it waits for none.
func TestAnIngressThatIsBeingDeletedWaitsForNoSecret(t *testing.T) {
	p := NewPlanner(Settings{Default: true})
	p.Waits = true
	w := newFixtureOf(t, p, sampleYAML(t)+ing("a@1", nil, rules("a.example / P web:80"), tlsOf("tls-a a.example"))+
		ing("other/b@2", nil, rules("a.example / P web:80")))
	w.remove(model.SecretKind, "shop/tls-a")
	i, _ := w.store.Snapshot().Ingress(model.Name{Namespace: "shop", Name: "a"})
	dying := *i
	dying.Leaving = true
	w.put(&dying)
	w.expect([]string{"http://a.example/ = other/web:80"})
}

// What is planned follows from the objects, not from when their deletion began.
func TestDeletionsInAnyOrderComeToOneEnd(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 15))
		z := newRandomSet(t, r)
		live := z.plan(r.Perm(len(z.list)))
		var gone []string
		for _, ns := range mazeNamespaces {
			if r.IntN(3) == 0 {
				gone = append(gone, ns)
			}
		}
		leave := func(w *fixture) {
			if err := w.store.Write(func(tx *model.Writer) {
				for _, ns := range gone {
					tx.PutNamespace(&model.Namespace{Name: ns, Leaving: true})
				}
			}); err != nil {
				t.Fatal(err)
			}
			w.round()
		}
		for n, i := range z.list {
			if r.IntN(4) == 0 {
				dying := *i
				dying.Leaving = true
				z.list[n] = &dying
				live.put(&dying)
			}
		}
		leave(live)
		fresh := newFixture(t, Settings{Default: true}, "")
		leave(fresh)
		for snap := range live.store.Snapshot().Services() {
			if err := fresh.store.Write(func(tx *model.Writer) { tx.PutService(snap) }); err != nil {
				t.Fatal(err)
			}
		}
		fresh.round()
		for _, n := range r.Perm(len(z.list)) {
			fresh.put(z.list[n])
		}
		if a, b := live.hosts(), fresh.hosts(); !reflect.DeepEqual(a, b) {
			t.Fatalf("seed %d, namespaces %v: %v and %v\n%s", seed, gone, a, b, z)
		}
	}
}

// A path whose Service does not exist is served by the next Ingress that has it, of the owner's
// namespace or of the host's: an owner's guard stays, and no other namespace gains by waiting.
func TestAPathWithoutItsServiceFallsToTheNext(t *testing.T) {
	closed := []string{"auth-tls-secret: shop/ca"}
	only := []string{"whitelist-source-range: 192.0.2.0/24"}
	none, web := rules("a.example / P none:80"), rules("a.example / P web:80")
	const next, falls = "a.example/ belongs to Ingress", "the Service does not exist; Ingress "
	for _, tc := range []struct {
		name, yaml      string
		want, tell, not []string
	}{
		{"the next", ing("a@1", nil, none) + ing("b@2", nil, web), []string{"http://a.example/ = shop/web:80"},
			[]string{falls + "shop/b serves a.example/"}, []string{next}},
		{"the one after the next", ing("a@1", nil, none) + ing("b@2", nil, none) + ing("c@3", nil, web),
			[]string{"http://a.example/ = shop/web:80"}, []string{falls + "shop/c"}, nil},
		{"none has one", ing("a@1", nil, none) + ing("b@2", nil, none), []string{"http://a.example/ = 503"},
			[]string{"Service shop/none does not exist; the path answers 503", next}, nil},
		{"the next has another port", ing("a@1", nil, none) + ing("b@2", nil, rules("a.example / P web:81")) +
			ing("c@3", nil, web), []string{"http://a.example/ = shop/web:80"},
			[]string{falls + "shop/c", "Ingress shop/b: spec.rules[0].http.paths[0]: " + next}, nil},
		{"the owner has one", ing("a@1", nil, web) + ing("b@2", nil, rules("a.example / P api:8080")),
			[]string{"http://a.example/ = shop/web:80"}, []string{next}, nil},
		{"the owner has no endpoints", ing("a@1", nil, rules("a.example / P empty:80")) + ing("b@2", nil, web),
			[]string{"http://a.example/ = shop/empty:80"}, []string{next}, nil},
		{"the owner has another port", ing("a@1", nil, rules("a.example / P web:81")) + ing("b@2", nil, web),
			[]string{"http://a.example/ = 503"}, []string{next}, nil},
		{"the owner's guard", ing("a@1", only, none) + ing("b@2", nil, web), []string{"http://a.example/ = 503"},
			[]string{next}, []string{falls}},
		{"the owner is closed", ing("a@1", closed, none) + ing("b@2", nil, web), []string{"http://a.example/ = 503"},
			[]string{next}, []string{falls}},
		{"the guard of the next one without a Service", ing("a@1", nil, none) + ing("b@2", only, none) +
			ing("c@3", nil, web), []string{"http://a.example/ = 503"}, []string{falls + "shop/b"}, nil},
		{"the guard of the next one", ing("a@1", nil, none) + ing("b@2", only, web),
			[]string{`opts http://a.example/ = {"sources":["192.0.2.0/24"]}`}, []string{falls + "shop/b"}, nil},
		{"the next closes", ing("a@1", nil, none) + ing("b@2", closed, web), []string{"http://a.example/ = 503"},
			[]string{falls + "shop/b"}, nil},
		{"another namespace", ing("a@1", nil, none) + ing("other/b@2", nil, web), []string{"http://a.example/ = 503"},
			[]string{next}, []string{falls}},
		{"the namespace of the host", ing("a@1", nil, rules("a.example /y P web:80")) + ing("other/b@2", nil,
			rules("a.example /x P none:80")) + ing("c@3", nil, rules("a.example /x P api:8080")),
			[]string{"http://a.example/x = shop/api:8080"},
			[]string{"Ingress other/b: spec.rules[0].http.paths[0].backend.service: " + falls + "shop/c"}, nil},
		{"past another namespace", ing("a@1", nil, none) + ing("other/b@2", nil, web) +
			ing("c@3", nil, rules("a.example / P api:8080")), []string{"http://a.example/ = shop/api:8080"},
			[]string{falls + "shop/c", "Ingress other/b: spec.rules[0].http.paths[0]: " + next}, nil},
		{"a redirect needs no Service", ing("a@1", []string{"permanent-redirect: https://new.example/"}, none) +
			ing("b@2", nil, web), []string{"http://a.example/ = 301 https://new.example/"}, []string{next}, nil},
		{"a default backend", ing("a@1", nil, fallback("none:80")) + ing("b@2", nil, fallback("web:80")),
			[]string{"http://any/ = shop/web:80"}, []string{"Ingress shop/a: spec.defaultBackend.service: " + falls +
				"shop/b"}, []string{"answers 503"}},
		{"a default backend of a host", ing("a@1", nil, fallback("none:80"), rules("a.example /x P web:80")) +
			ing("b@2", nil, fallback("api:8080"), rules("a.example /y P web:80")),
			[]string{"http://a.example/z = shop/api:8080", "http://a.example/x = shop/web:80"},
			[]string{falls + "shop/b"}, nil},
		{"no default backend has one", ing("a@1", nil, fallback("none:80")) + ing("b@2", nil, fallback("gone:80")),
			[]string{"http://any/ = 503"}, []string{"Service shop/none does not exist",
				"is that of Ingress shop/a"}, []string{falls}},
		{"the guard of the next default backend without a Service", ing("a@1", nil, fallback("none:80")) +
			ing("b@2", only, fallback("gone:80")) + ing("c@3", nil, fallback("web:80")), []string{"http://any/ = 503"},
			[]string{falls + "shop/b"}, nil},
		{"the guard of a default backend", ing("a@1", only, fallback("none:80")) + ing("b@2", nil, fallback("web:80")),
			[]string{"http://any/ = 503"}, []string{"is that of Ingress shop/a"}, []string{falls}},
		{"a default backend of another namespace", ing("a@1", nil, fallback("none:80")) + ing("other/b@2", nil,
			fallback("web:80")), []string{"http://any/ = 503"}, []string{"is that of Ingress shop/a"},
			[]string{falls}},
		{"one Ingress twice", ing("a@1", nil, rules("a.example / P none:80 / P web:80")),
			[]string{"http://a.example/ = 503"}, []string{"is a duplicate"}, nil},
		{"a pattern", ing("a@1", []string{"use-regex: true"}, rules("a.example /v[0-9]+ I none:80")) +
			ing("b@2", []string{"use-regex: true"}, rules("a.example /v[0-9]+ I web:80")),
			[]string{"http://a.example/v1 = shop/web:80"}, []string{falls}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newFixture(t, Settings{Default: true}, sampleYAML(t)+tc.yaml)
			w.expect(tc.want)
			all := strings.Join(w.allProblems(), "\n")
			for _, want := range tc.tell {
				if !strings.Contains(all, want) {
					t.Errorf("problems are\n%s\nwant %s", all, want)
				}
			}
			for _, not := range tc.not {
				if strings.Contains(all, not) {
					t.Errorf("problems are\n%s\nnone is due of %s", all, not)
				}
			}
		})
	}
	// The owner's Service comes, and goes.
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a@1", nil, none)+ing("b@2", nil, web))
	w.read("---\n{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: none}, spec: {clusterIP: " +
		"10.96.0.77, ports: [{port: 80}]}}\n")
	w.expect([]string{"http://a.example/ = shop/none:80"})
	w.remove(model.ServiceKind, "shop/none")
	w.expect([]string{"http://a.example/ = shop/web:80"})
}
