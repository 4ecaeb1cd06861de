package ingress

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/reconcile"
)

func keysText(keys map[Key]bool) string {
	var out []string
	for k := range keys {
		out = append(out, k.String())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// What is planned anew follows what changed, whatever else there is.
func TestWorkFollowsWhatChanged(t *testing.T) {
	var b strings.Builder
	b.WriteString(sampleYAML(t))
	for n := range 50 {
		b.WriteString(ing(fmt.Sprintf("other%d", n), nil, rules(fmt.Sprintf("h%d.example / P new:80", n))))
	}
	b.WriteString(ing("a", nil, rules("a.example / P web:80 /api P api:8080"), tlsOf("tls-a a.example")))
	b.WriteString(ing("b", nil, rules("a.example /b P web:http")))
	w := newFixture(t, Settings{Default: true}, b.String())
	if n := len(w.hosts()); n != 51 {
		t.Fatalf("%d hosts", n)
	}
	slice := "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {namespace: shop, " +
		"name: web-2, labels: {kubernetes.io/service-name: web}}, ports: [{name: http, port: 8080}], endpoints: " +
		"[{addresses: [10.244.9.9]}]}"
	w.read(slice)
	if got := keysText(w.last); got != "backend shop/web:80" {
		t.Errorf("an endpoint touches %s", got)
	}
	if n := len(w.plans[Key{BackendKey, "shop/web:80"}].Backend.Endpoints); n != 3 {
		t.Errorf("%d endpoints", n)
	}
	w.read("{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {clusterIP: 10.96.0.1, " +
		"ports: [{name: other, port: 80}]}}")
	if got := keysText(w.last); got != "Ingress shop/a, Ingress shop/b, backend shop/web:80, host a.example" {
		t.Errorf("a port touches %s", got)
	}
	if got := answer(w.hosts(), "https://a.example/b"); got != "503" {
		t.Errorf("a port of another name: %s", got)
	}
	c, k := pair(t, time.Now().Add(time.Hour), "a.example")
	w.read(secretYAML("tls-a", c, k))
	if got := keysText(w.last); got != "Ingress shop/a, Ingress shop/b, certificate shop/tls-a, host a.example" {
		t.Errorf("a certificate touches %s", got)
	}
	if got := w.plans[Key{CertificateKey, "shop/tls-a"}].Certificate; got == nil || string(got.Chain) != string(c) ||
		string(got.Priv) != string(k) {
		t.Error("the certificate is not the new one")
	}
	w.read("{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: unnamed}, spec: {clusterIP: " +
		"10.96.0.7, ports: [{port: 80}]}}")
	if got := keysText(w.last); got != "" {
		t.Errorf("a Service that nobody names touches %s", got)
	}
	w.remove(model.IngressKind, "shop/a")
	if got := keysText(w.last); got != "Ingress shop/a, Ingress shop/b, backend shop/api:8080, backend shop/web:80, "+
		"certificate shop/tls-a, host a.example" {
		t.Errorf("a deleted Ingress touches %s", got)
	}
	if got := answer(w.hosts(), "http://a.example/"); got != "404" {
		t.Errorf("a deleted Ingress still routes: %s", got)
	}
	if _, ok := w.plans[Key{CertificateKey, "shop/tls-a"}]; ok {
		t.Error("a certificate that nobody names is still there")
	}
}

// Endpoints that terminate are drained, those that are not ready left out.
func TestEndpointsOfABackend(t *testing.T) {
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+
		ing("a", nil, rules("- / P web:80 /d P db:pg /e P empty:80")))
	for key, want := range map[string]string{
		"shop/web:80":  "[{10.244.0.1:8080 false} {10.244.0.2:8080 true}]",
		"shop/db:5432": "[{10.244.0.6:5432 false}]", "shop/empty:80": "[]",
	} {
		if got := fmt.Sprint(w.plans[Key{BackendKey, key}].Backend.Endpoints); got != want {
			t.Errorf("%s has %s, want %s", key, got, want)
		}
	}
	if _, ok := w.plans[Key{BackendKey, "shop/web:443"}]; ok {
		t.Error("a port that nobody asks for has a plan")
	}
	// Two families are the same pods twice: the first of the Service counts.
	w.read("{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: empty}, spec: {clusterIPs: " +
		"['fd00::1', 10.96.0.4], ports: [{port: 80}]}}\n---\n" +
		"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv6, metadata: {namespace: shop, " +
		"name: e6, labels: {kubernetes.io/service-name: empty}}, ports: [{port: 80}], endpoints: [{addresses: " +
		"['fd00:1::1']}]}\n---\n" +
		"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {namespace: shop, " +
		"name: e4, labels: {kubernetes.io/service-name: empty}}, ports: [{port: 80}], endpoints: [{addresses: " +
		"[10.244.0.9]}]}")
	if got := fmt.Sprint(w.plans[Key{BackendKey,
		"shop/empty:80"}].Backend.Endpoints); got != "[{[fd00:1::1]:80 false}]" {
		t.Errorf("of two families: %s", got)
	}
}

// After any history the plans and problems are those of a planner that sees the end only.
func TestHistoryDoesNotMatter(t *testing.T) {
	base := sampleYAML(t)
	hosts := []string{"a.example", "b.example", "*.b.example", "x.b.example", "-"}
	services := []string{"web:80", "web:https", "api:8080", "new:80", "gone:80"}
	notes := [][]string{nil, nil, {"ssl-redirect: false"}, {"server-alias: a.example, z.example"},
		{"canary: true", "canary-weight: 5"}, {"auth-type: basic", "auth-secret: users"},
		{"rewrite-target: /$1"}, {"app-root: /x"}, {"whitelist-source-range: z"},
		{"kubernetes.io/ingress.class: other"}}
	tls := []string{"", tlsOf("tls-a a.example"), tlsOf("tls-wild *.b.example"), tlsOf("tls-bad a.example"),
		tlsOf("tls-many a.example z.example"), tlsOf("tls-many")}
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		pick := func(list []string) string { return list[r.IntN(len(list))] }
		random := func() string {
			name := fmt.Sprintf("%s/i%d@%d", pick([]string{"shop", "shop", "other"}), r.IntN(6), 1+r.IntN(3))
			spec := []string{"ingressClassName: wayleave"}
			if r.IntN(5) == 0 {
				spec = append(spec, fallback(pick(services)))
			}
			if r.IntN(6) > 0 {
				spec = append(spec, rules(pick(hosts)+" / P "+pick(services)+" /x P "+pick(services), pick(hosts)+
					" /x E "+pick(services)))
			}
			if s := pick(tls); s != "" {
				spec = append(spec, s)
			}
			return ing(name, notes[r.IntN(len(notes))], spec...)
		}
		w := newFixture(t, Settings{}, base)
		for range 40 {
			switch r.IntN(8) {
			case 0:
				w.remove(model.IngressKind, fmt.Sprintf("shop/i%d", r.IntN(6)))
			case 1:
				w.remove(model.ServiceKind, "shop/new")
			case 2:
				w.read("{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: new}, spec: {clusterIP: " +
					"10.96.0.3, ports: [{port: 80}]}}")
			case 3:
				w.remove(model.SecretKind, "shop/tls-a")
			case 4:
				w.read(fmt.Sprintf("{apiVersion: networking.k8s.io/v1, kind: IngressClass, metadata: {name: other}, "+
					"spec: {controller: %s}}", pick([]string{Controller, "x.example/y"})))
			default:
				w.read(random())
			}
		}
		fresh := &fixture{t: t, store: w.store, planner: NewPlanner(Settings{}), plans: map[Key]Plan{},
			problems: map[Key][]model.Problem{}}
		var err error
		if fresh.watch, err = w.store.Watch(Kinds); err != nil {
			t.Fatal(err)
		}
		fresh.round()
		fresh.watch.Close()
		maps.DeleteFunc(w.problems, func(k Key, list []model.Problem) bool {
			return len(list) == 0 ||
				strings.HasPrefix(k.Name, "source ")
		})
		maps.DeleteFunc(fresh.problems, func(_ Key, list []model.Problem) bool { return len(list) == 0 })
		if !reflect.DeepEqual(w.plans, fresh.plans) {
			t.Fatalf("seed %d: plans differ:\n%v\n%v", seed, slices.Sorted(maps.Keys(names(w.plans))),
				slices.Sorted(maps.Keys(names(fresh.plans))))
		}
		if !reflect.DeepEqual(w.problems, fresh.problems) {
			t.Fatalf("seed %d: problems differ:\n%v\n%v", seed, w.problems, fresh.problems)
		}
	}
}

func names(m map[Key]Plan) map[string]bool {
	out := map[string]bool{}
	for k := range m {
		out[k.String()] = true
	}
	return out
}

// parts is a target of one kind that notes what it was given.
type parts[P any] struct {
	have  map[string]P
	calls *[]string
	name  string
	err   error
}

func (p *parts[P]) Sync(_ context.Context, plans map[string]P) error {
	*p.calls = append(*p.calls, p.name)
	p.have = maps.Clone(plans)
	return p.err
}

func (p *parts[P]) Apply(_ context.Context, set map[string]P, del []string) error {
	*p.calls = append(*p.calls, p.name)
	maps.Copy(p.have, set)
	for _, k := range del {
		delete(p.have, k)
	}
	return p.err
}

func TestATargetIsSplitByKind(t *testing.T) {
	var calls []string
	hosts := &parts[schema.Host]{calls: &calls, name: "hosts"}
	backends := &parts[schema.Backend]{calls: &calls, name: "backends"}
	certs := &parts[schema.Certificate]{calls: &calls, name: "certificates"}
	target := Target{hosts, backends, certs}
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a", nil, rules("a.example / P web:80"),
		tlsOf("tls-a a.example")))
	if err := target.Sync(t.Context(), w.plans); err != nil {
		t.Fatal(err)
	}
	if len(hosts.have) != 1 || len(backends.have) != 1 || len(certs.have) != 1 ||
		strings.Join(calls, " ") != "certificates backends hosts" {
		t.Errorf("%d hosts, %d backends, %d certificates by %v", len(hosts.have), len(backends.have),
			len(certs.have), calls)
	}
	calls = nil
	if err := target.Apply(t.Context(), nil, []Key{{BackendKey, "shop/web:80"}}); err != nil ||
		len(backends.have) != 0 || strings.Join(calls, " ") != "backends" {
		t.Errorf("%v: %d backends by %v", err, len(backends.have), calls)
	}
	backends.err = reconcile.KeyErrors[string]{"shop/web:80": errors.New("full")}
	var byKey reconcile.KeyErrors[Key]
	if err := target.Apply(t.Context(), w.plans, nil); !errors.As(err, &byKey) || len(byKey) != 1 ||
		byKey[Key{BackendKey, "shop/web:80"}] == nil {
		t.Errorf("the error of a key became %v", err)
	}
	hosts.err = errors.New("broken")
	if err := target.Apply(t.Context(), w.plans, nil); err == nil || errors.As(err, &byKey) {
		t.Errorf("an error of all became %v", err)
	}
}

func BenchmarkOneEndpoint(b *testing.B) {
	var text strings.Builder
	text.WriteString(sampleYAML(b))
	for n := range 1000 {
		text.WriteString(ing(fmt.Sprintf("i%d", n), nil, rules(fmt.Sprintf("h%d.example / P web:80", n))))
	}
	w := newFixture(b, Settings{Default: true}, text.String())
	one, _ := w.store.Snapshot().Service(parseName("shop/web"))
	for b.Loop() {
		if err := w.store.Write(func(tx *model.Writer) { c := *one; tx.PutService(&c) }); err != nil {
			b.Fatal(err)
		}
		w.round()
	}
}

// A canary of a host is one of the host's aliases too, whenever it comes or goes.
func TestACanaryTouchesAliases(t *testing.T) {
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a", []string{"server-alias: z.example"},
		rules("a.example / P web:80")))
	w.read(ing("c", []string{"canary: true", "canary-weight: 5"}, rules("a.example / P new:80")))
	if got := keysText(
		w.last); got != "Ingress shop/a, Ingress shop/c, backend shop/new:80, host a.example, host z.example" {
		t.Errorf("a canary touches %s", got)
	}
	for _, h := range []string{"a.example", "z.example"} {
		if got := optionsText(w.hosts(), "http://"+h+"/"); !strings.Contains(got, "shop/new:80") {
			t.Errorf("%s has the options %s", h, got)
		}
	}
	w.remove(model.IngressKind, "shop/c")
	if got := optionsText(w.hosts(), "http://z.example/"); got != "null" {
		t.Errorf("the canary is gone, and its alias has %s", got)
	}
}

// What an Ingress says is in force once its Secrets are read: between a new Secret's name
// and its certificate nobody gets the default one, and nobody is told that it is missing.
func TestAnIngressWaitsForItsSecrets(t *testing.T) {
	p := NewPlanner(Settings{Default: true})
	p.Waits = true
	w := newFixtureOf(t, p, sampleYAML(t)+ing("a", nil, rules("a.example / P web:80"), tlsOf("tls-a a.example")))
	shows := func(when, backend, cert string, problems int) {
		t.Helper()
		hosts := w.hosts()
		got := ""
		if h := hosts["a.example"]; h != nil {
			got = h.Certificate
		}
		if is := answer(hosts, "https://a.example/"); is != backend || got != cert || len(w.allProblems()) != problems {
			t.Errorf("%s: %s, certificate %q, %q; want %s, %q, %d", when, is, got, w.allProblems(), backend,
				cert, problems)
		}
	}
	shows("at first", "shop/web:80", "shop/tls-a", 0)
	w.read(ing("a", nil, rules("a.example / P new:80"), tlsOf("tls-new a.example")))
	shows("a new Secret is named", "shop/web:80", "shop/tls-a", 0)
	w.read("{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {clusterIP: 10.96.0.1, " +
		"ports: [{name: http, port: 80}]}}")
	shows("something else changes", "shop/web:80", "shop/tls-a", 0)
	c, k := pair(t, time.Now().Add(300*24*time.Hour), "a.example")
	w.read(secretYAML("tls-new", c, k))
	shows("it is read", "shop/new:80", "shop/tls-new", 0)
	w.read(ing("a", nil, rules("a.example / P web:80"), tlsOf("gone a.example")))
	shows("one that is not there is named", "shop/new:80", "shop/tls-new", 0)
	if err := w.store.Write(func(tx *model.Writer) {
		tx.PutSecret(&model.Secret{Name: parseName("shop/gone"),
			Missing: true})
	}); err != nil {
		t.Fatal(err)
	}
	w.round()
	shows("it is known not to be there", "shop/web:80", "", 1)
	// A change that names it no more waits for nothing.
	w.read(ing("a", nil, rules("a.example / P new:80"), tlsOf("slow a.example")))
	w.read(ing("a", nil, rules("a.example / P api:8080"), tlsOf("tls-a a.example")))
	shows("it waits no more", "shop/api:8080", "shop/tls-a", 0)
	w.read(ing("a", nil, rules("a.example / P new:80"), tlsOf("slow a.example")))
	w.remove(model.IngressKind, "shop/a")
	shows("it is deleted while it waits", "404", "", 0)
	w.read(ing("b", nil, rules("a.example / P web:80"), tlsOf("slow a.example")))
	shows("a new one", "503", "", 0)
	w.read(secretYAML("slow", c, k))
	shows("a new one with its Secret", "shop/web:80", "shop/slow", 0)
	if len(p.waiting) > 0 {
		t.Errorf("it waits for %v", p.waiting)
	}
}
