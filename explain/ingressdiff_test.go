package explain

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave.dev/ingress"
	"wayleave.dev/ingress/nginx"
	"wayleave.dev/model"
	"wayleave.dev/source/manifest"
)

const diffTown = `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {namespace: shop, name: site, creationTimestamp: "2026-01-01T00:00:00Z",
  annotations: {nginx.ingress.kubernetes.io/rewrite-target: "/$1"}}
spec: {ingressClassName: nginx, rules: [{host: a.example, http: {paths: [{path: "/(.*)",
  pathType: ImplementationSpecific, backend: {service: {name: web, port: {number: 80}}}},
  {path: "/api/(?!v1)(.*)", pathType: ImplementationSpecific, backend: {service: {name: web, port: {number: 80}}}}]}}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {namespace: shop, name: plain, creationTimestamp: "2026-01-02T00:00:00Z"}
spec: {ingressClassName: nginx, tls: [{hosts: [b.example]}], rules: [{host: b.example,
  http: {paths: [{path: /x, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {namespace: shop, name: loose, creationTimestamp: "2026-01-03T00:00:00Z",
  annotations: {nginx.ingress.kubernetes.io/whitelist-source-range: "10.0.0.0/8"}}
spec: {ingressClassName: nginx, rules: [{host: c.example, http: {paths: [{path: /x, pathType: ImplementationSpecific,
  backend: {service: {name: web, port: {number: 80}}}}]}}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: shop, name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.1]}]
`

// What both serve alike is no difference; what they do not is one, with the server of it there and here.
func TestIngressCheckComparesRouting(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if _, err := manifest.Read(store, "x", strings.NewReader(diffTown)); err != nil {
		t.Fatal(err)
	}
	r := IngressCheck{Snapshot: store.Snapshot(), Settings: ingress.Settings{AdoptNginx: true},
		Now: time.Now()}.Routing()
	for _, tc := range []struct{ request, want string }{
		{"GET http://a.example/x?y", ""},
		{"GET https://a.example/x%20y/z", ""},
		{"GET http://b.example/x/y", ""},
		{"GET https://b.example/x/y", ""},
		{"GET https://b.example/xy", ""},
		{"GET https://b.example/X", ""},
		{"GET https://none.example/x", ""},
		{"GET https://c.example/x", ""},
		{"GET http://a.example/../x", ""},
		{"GET http://a.example/api/v2", "ingress-nginx: shop/web:80 as /v2 by /api/(?!v1)(.*) of Ingress shop/site; " +
			"Wayleave: shop/web:80 as /api/v2 by /(.*) of Ingress shop/site spec.rules[0].http.paths[0]"},
	} {
		list, err := ReadRequests(strings.NewReader(tc.request))
		if err != nil {
			t.Fatal(err)
		}
		d := r.Compare(list[0])
		switch {
		case d == nil && tc.want != "":
			t.Errorf("%s: there is no difference", tc.request)
		case d != nil && (tc.want == "" || !strings.HasSuffix(d.String(), tc.want)):
			t.Errorf("%s: %s", tc.request, d)
		}
	}
	text, carries := IngressCheck{Snapshot: store.Snapshot(), Settings: ingress.Settings{AdoptNginx: true},
		Now: time.Now()}.Text()
	if carries || !strings.Contains(text, "  diff GET https://a.example/api/") ||
		!strings.Contains(text, "  part spec.rules[0].http.paths[0]: a.example/(.*)") ||
		!strings.Contains(text, "  ok   spec.rules[0].http.paths[0]: c.example/x") {
		t.Errorf("carries is %v:\n%s", carries, text)
	}
}

// A list of requests has one a line.
func TestRequestsAreRead(t *testing.T) {
	list, err := ReadRequests(strings.NewReader("# a comment\n\nGET http://a.example\nPOST " +
		"https://b.example:8443/x?y=http://z\tX-A: b c\tHost: c.example\nGET http://d.example?x\n"))
	if err != nil || len(list) != 3 {
		t.Fatalf("%v: %+v", err, list)
	}
	for i, want := range []nginx.Request{
		{Method: "GET", Host: "a.example", Target: "/"},
		{Method: "POST", Host: "c.example", Target: "/x?y=http://z", TLS: true, Header: http.Header{"X-A": {"b c"}}},
		{Method: "GET", Host: "d.example", Target: "/?x"},
	} {
		got := list[i]
		if got.Method != want.Method || got.Host != want.Host || got.Target != want.Target || got.TLS != want.TLS ||
			got.Header.Get("X-A") != want.Header.Get("X-A") {
			t.Errorf("request %d is %+v, want %+v", i, got, want)
		}
	}
	for text, want := range map[string]string{
		"GET": "line 1: \"GET\" is not METHOD URL", "\nGET a.example/": "line 2:", "GET ftp://x/": "is not a URL",
		"GET http:///x": "has no host", "GET http://x/\tabc": "is not a field",
		"GET http://x/ " + strings.Repeat("x", maxRequestLine): "token too long", strings.Repeat("GET http://x/\n",
			maxRequests+1): "more than 100000 requests",
	} {
		if _, err := ReadRequests(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
}

// Manifests of the field are served as ingress-nginx serves them.
func TestManifestsOfTheFieldDoNotDiffer(t *testing.T) {
	files, err := filepath.Glob("../ingress/testdata/field/*.yaml")
	if err != nil || len(files) < 8 {
		t.Fatalf("%v: %v", err, files)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := checkText(t, string(raw), nil)
		if strings.Contains(text, "  diff ") || !strings.Contains(text, "  ok   spec.rules[0].http.paths[0]") {
			t.Errorf("%s:\n%s", f, text)
		}
	}
}
