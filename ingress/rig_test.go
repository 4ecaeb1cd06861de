package ingress

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
	"wayleave.dev/source/manifest"
)

// pair makes a certificate that ends then, in PEM.
func pair(t testing.TB, until time.Time, names ...string) (chain, key []byte) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return pairOf(t, priv, until, names...)
}

// pairOf is a self-signed certificate of a key.
func pairOf(t testing.TB, priv crypto.Signer, until time.Time, names ...string) (chain, key []byte) {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func secretYAML(name string, chain, key []byte) string {
	b := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Secret, type: kubernetes.io/tls, metadata: {namespace: shop, "+
		"name: %s}, data: {tls.crt: %q, tls.key: %q}}\n", name, b(chain), b(key))
}

// sampleYAML is what all cases have: Services with endpoints, and Secrets.
func sampleYAML(t testing.TB) string {
	var b strings.Builder
	svc := func(name, spec string) {
		fmt.Fprintf(&b, "---\n{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: %s}, spec: %s}\n", name,
			spec)
	}
	slice := func(name, ports, endpoints string) {
		fmt.Fprintf(&b, "---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: "+
			"{namespace: shop, name: %s-1, labels: {kubernetes.io/service-name: %[1]s}}, ports: [%s], "+
			"endpoints: [%s]}\n", name, ports, endpoints)
	}
	svc("web", "{clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: 8080}, {name: https, port: 443, "+
		"targetPort: 8443}]}")
	slice("web", "{name: http, port: 8080}, {name: https, port: 8443}", "{addresses: [10.244.0.1]}, {addresses: "+
		"[10.244.0.2], conditions: {ready: false, serving: true, terminating: true}}, {addresses: [10.244.0.3], "+
		"conditions: {ready: false}}")
	svc("api", "{clusterIP: 10.96.0.2, ports: [{port: 8080}]}")
	slice("api", "{port: 9090}", "{addresses: [10.244.0.4]}")
	svc("new", "{clusterIP: 10.96.0.3, ports: [{port: 80}]}")
	slice("new", "{port: 80}", "{addresses: [10.244.0.5]}")
	svc("db", "{clusterIP: None, ports: [{name: pg, port: 5432}]}")
	slice("db", "{name: pg, port: 5432}", "{addresses: [10.244.0.6]}")
	svc("empty", "{clusterIP: 10.96.0.4, ports: [{port: 80}]}")
	svc("names", "{clusterIP: 10.96.0.5, ports: [{name: dns, protocol: UDP, port: 53}]}")
	svc("away", "{type: ExternalName, externalName: example.com, ports: [{port: 80}]}")
	fmt.Fprint(&b, "---\n{apiVersion: v1, kind: Service, metadata: {namespace: other, name: web}, spec: {clusterIP: "+
		"10.96.0.9, ports: [{port: 80}]}}\n")
	fmt.Fprint(&b, "---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: "+
		"{namespace: other, name: web-1, labels: {kubernetes.io/service-name: web}}, ports: [{port: 80}], "+
		"endpoints: [{addresses: [10.244.0.7]}]}\n")
	year := time.Now().Add(365 * 24 * time.Hour)
	ca, ka := pair(t, year, "a.example", "www.a.example")
	cw, kw := pair(t, year, "*.b.example")
	cm, km := pair(t, year, "a.example", "c.example")
	b.WriteString(secretYAML("tls-a", ca, ka) + secretYAML("tls-wild", cw, kw) + secretYAML("tls-many", cm, km) +
		secretYAML("tls-bad", ca, kw))
	co, ko := pair(t, time.Now().Add(-24*time.Hour), "a.example")
	b.WriteString(secretYAML("tls-old", co, ko))
	b.WriteString("---\n{apiVersion: v1, kind: Secret, metadata: {namespace: shop, name: users}, stringData: {auth: " +
		"'ann:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M='}}\n" +
		"---\n{apiVersion: v1, kind: Secret, metadata: {namespace: shop, name: map}, stringData: {bob: " +
		"'{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M='}}\n")
	b.WriteString("---\n{apiVersion: v1, kind: Secret, metadata: {namespace: shop, name: mixed}, stringData: {auth: " +
		"\"ann:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=\\nold:plain\"}}\n")
	return b.String()
}

// ing writes an Ingress: "NAMESPACE/NAME@AGE", where the lower age is the older; its
// annotations of ingress-nginx, "name: value" each; and its spec.
func ing(name string, annotations []string, spec ...string) string {
	full, age, _ := strings.Cut(name, "@")
	if age == "" {
		age = "1"
	}
	ns, short, ok := strings.Cut(full, "/")
	if !ok {
		ns, short = "shop", full
	}
	var notes []string
	for _, a := range annotations {
		k, v, _ := strings.Cut(a, ": ")
		if !strings.Contains(k, "/") {
			k = nginxPrefix + k
		}
		notes = append(notes, fmt.Sprintf("%q: %q", k, v))
	}
	return fmt.Sprintf("---\n{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {namespace: %s, name: %s, "+
		"creationTimestamp: \"2026-01-0%sT00:00:00Z\", annotations: {%s}}, spec: {%s}}\n",
		ns, short, age, strings.Join(notes, ", "), strings.Join(spec, ", "))
}

// rules writes spec.rules; each is "HOST PATH TYPE SERVICE:PORT …", HOST may be "-".
func rules(list ...string) string {
	var out []string
	for _, r := range list {
		f := strings.Fields(r)
		host := ""
		if f[0] != "-" {
			host = fmt.Sprintf("host: %q, ", f[0])
		}
		var paths []string
		for i := 1; i+2 < len(f); i += 3 {
			kind := map[string]string{"E": "Exact", "P": "Prefix", "I": "ImplementationSpecific"}[f[i+1]]
			paths = append(paths, fmt.Sprintf("{path: %q, pathType: %s, backend: %s}", f[i], kind, backend(f[i+2])))
		}
		out = append(out, fmt.Sprintf("{%shttp: {paths: [%s]}}", host, strings.Join(paths, ", ")))
	}
	return "rules: [" + strings.Join(out, ", ") + "]"
}

func backend(s string) string {
	name, port, _ := strings.Cut(s, ":")
	key := "number"
	if strings.Trim(port, "0123456789") != "" {
		key = "name"
	}
	return fmt.Sprintf("{service: {name: %s, port: {%s: %s}}}", name, key, port)
}

func fallback(s string) string { return "defaultBackend: " + backend(s) }

// tlsOf writes spec.tls; each is "SECRET HOST …", SECRET may be "-".
func tlsOf(list ...string) string {
	var out []string
	for _, e := range list {
		f := strings.Fields(e)
		secret := ""
		if f[0] != "-" {
			secret = ", secretName: " + f[0]
		}
		for i := 1; i < len(f); i++ {
			f[i] = fmt.Sprintf("%q", f[i])
		}
		out = append(out, fmt.Sprintf("{hosts: [%s]%s}", strings.Join(f[1:], ", "), secret))
	}
	return "tls: [" + strings.Join(out, ", ") + "]"
}

// fixture is a model that a test changes, and the plans of it.
type fixture struct {
	t        testing.TB
	store    *model.Store
	watch    *model.Watcher
	planner  *Planner
	plans    map[Key]Plan
	problems map[Key][]model.Problem
	// last are the keys of the last round.
	last map[Key]bool
}

func newFixture(t testing.TB, s Settings, yaml string) *fixture {
	t.Helper()
	return newFixtureOf(t, NewPlanner(s), yaml)
}

func newFixtureOf(t testing.TB, p *Planner, yaml string) *fixture {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	w := &fixture{t: t, store: store, planner: p, plans: map[Key]Plan{}, problems: map[Key][]model.Problem{}}
	if w.watch, err = store.Watch(Kinds); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.watch.Close)
	w.read(yaml)
	return w
}

// read adds objects, and plans what that touches.
func (w *fixture) read(yaml string) {
	w.t.Helper()
	problems, err := manifest.Read(w.store, "x", strings.NewReader(yaml))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range problems {
		k := Key{ObjectKey, "source " + p.Object.String()}
		w.problems[k] = append(w.problems[k], p)
	}
	w.round()
}

func (w *fixture) remove(kind model.Kind, name string) {
	w.t.Helper()
	if err := w.store.Write(func(tx *model.Writer) { tx.Delete(kind, parseName(name)) }); err != nil {
		w.t.Fatal(err)
	}
	w.round()
}

func (w *fixture) round() {
	snap, changes, _ := w.watch.Poll()
	w.last = map[Key]bool{}
	for _, k := range w.planner.Keys(snap, changes) {
		w.last[k] = true
		p, ok, problems := w.planner.Plan(snap, k)
		if w.problems[k] = problems; ok {
			w.plans[k] = p
		} else {
			delete(w.plans, k)
		}
	}
}

func (w *fixture) hosts() map[string]*schema.Host {
	out := map[string]*schema.Host{}
	for k, p := range w.plans {
		if k.Kind == HostKey {
			out[k.Name] = p.Host
		}
	}
	return out
}

func (w *fixture) allProblems() []string {
	var out []string
	for _, list := range w.problems {
		for _, p := range list {
			out = append(out, p.Error())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// find looks a URL up as the proxy does.
func find(hosts map[string]*schema.Host, url string) (m table.Match, encrypted, ok bool) {
	encrypted = strings.HasPrefix(url, "https://")
	rest := url[strings.Index(url, "://")+3:]
	host, path, _ := strings.Cut(rest, "/")
	tab := table.Make(nil, hosts)
	clean, good := table.Clean([]byte("/"+path), nil)
	if !good {
		return m, encrypted, false
	}
	ok = tab.Route(table.Name([]byte(host), nil), clean, &m)
	return m, encrypted, ok
}

// answer says what a request gets: a backend, a status, or a redirection.
func answer(hosts map[string]*schema.Host, url string) string {
	m, encrypted, ok := find(hosts, url)
	if !ok {
		return "404"
	}
	o := m.Path.Options
	switch {
	case m.TooLong:
		return "414"
	case m.Path.Closed:
		return "503"
	case o != nil && o.RedirectTLS != 0 && !encrypted:
		return fmt.Sprintf("%d https", o.RedirectTLS)
	case o != nil && o.Redirect != "":
		return fmt.Sprintf("%d %s", o.RedirectCode, o.Redirect)
	case m.Path.Backend == "":
		return "503"
	}
	return m.Path.Backend
}

// certificate says which one a name gets.
func certificate(hosts map[string]*schema.Host, name string) string {
	own, wild, rest, known := table.Make(nil, hosts).CertificateOf([]byte(name))
	switch {
	case own.First != "":
		return own.First
	case wild.First != "":
		return "wildcard's " + wild.First
	case known:
		return "default"
	case rest.First != "":
		return rest.First
	}
	return "default"
}

func optionsText(hosts map[string]*schema.Host, url string) string {
	m, _, ok := find(hosts, url)
	if !ok {
		return "404"
	}
	raw, err := json.Marshal(m.Path.Options)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// put sets an Ingress, and plans what that touches.
func (w *fixture) put(i *model.Ingress) {
	w.t.Helper()
	if err := w.store.Write(func(tx *model.Writer) { tx.PutIngress(i) }); err != nil {
		w.t.Fatal(err)
	}
	w.round()
}
