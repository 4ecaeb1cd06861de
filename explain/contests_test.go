package explain

import (
	"strings"
	"testing"
)

// Each contest names the object and field that lost, and the owner.
func TestIngressCheckNamesContests(t *testing.T) {
	const one = `---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {namespace: shop, name: site, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  ingressClassName: wayleave
  rules: [{host: shop.test, http: {paths: [{path: /, pathType: Prefix,
    backend: {service: {name: web, port: {number: 80}}}}]}}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {namespace: guest, name: late, creationTimestamp: "2026-01-02T00:00:00Z",
  annotations: {nginx.ingress.kubernetes.io/app-root: /guest}}
spec:
  ingressClassName: wayleave
  tls: [{hosts: [shop.test], secretName: mine}]
  rules:
  - host: shop.test
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}
      - {path: /guest, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}
`
	text, carries := checkText(t, one, nil)
	if carries {
		t.Error("all carries over")
	}
	for _, want := range []string{
		"NO   spec.rules[0].http.paths[0]: shop.test/ belongs to Ingress shop/site, which is older",
		"NO   spec.tls[0].secretName: shop.test is a host of Ingress shop/site",
		"NO   metadata.annotations[nginx.ingress.kubernetes.io/app-root]: shop.test is a host of Ingress shop/site",
		"note spec.rules[0].host: shop.test is a host of Ingress shop/site",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
}
