package ingress

import (
	"fmt"
	"strings"
	"testing"
)

// A host below a wildcard host of another namespace is not redirected by from-to-www-redirect where
// hosts are of one namespace.
func TestARedirectTakesNoHostOfAnotherNamespace(t *testing.T) {
	w := newFixture(t, Settings{Default: true, HostsOfOneNamespace: true}, sampleYAML(t)+
		ing("a", nil, rules("*.b.example / P web:80"))+
		ing("other/b@2", []string{"from-to-www-redirect: true"}, rules("b.example / P web:80")))
	if got := answer(w.hosts(), "http://www.b.example/"); got != "shop/web:80" {
		t.Errorf("www.b.example is %s", got)
	}
	if all := strings.Join(w.allProblems(), "\n"); !strings.Contains(all, "www.b.example is a host of Ingress shop/a") {
		t.Errorf("problems are %q", all)
	}
	w = newFixture(t, Settings{Default: true, HostsOfOneNamespace: true}, sampleYAML(t)+
		ing("a", nil, rules("*.b.example / P web:80"))+
		ing("b@2", []string{"from-to-www-redirect: true"}, rules("b.example / P web:80")))
	if got := answer(w.hosts(), "http://www.b.example/"); !strings.HasPrefix(got, "308") {
		t.Errorf("of the same namespace www.b.example is %s", got)
	}
}

// A canary that asks for certificates of clients takes nothing on a host that asks for none, or for
// others.
func TestACanaryWithoutItsCertificatesTakesNothing(t *testing.T) {
	ca, _ := authorityPEM(t, "root")
	base := sampleYAML(t) + dataYAML("ca", map[string][]byte{"ca.crt": ca}) +
		dataYAML("ca2", map[string][]byte{"ca.crt": ca})
	canary := ing("c@3", []string{"canary: true", "canary-weight: 100", "auth-tls-secret: ca"},
		rules("a.example / P new:80"))
	for _, c := range []struct {
		name, main string
		takes      bool
	}{
		{"none", ing("a", nil, rules("a.example / P web:80")), false},
		{"others", ing("a", []string{"auth-tls-secret: ca2"}, rules("a.example / P web:80")), false},
		{"the same", ing("a", []string{"auth-tls-secret: ca"}, rules("a.example / P web:80")), true},
	} {
		w := newFixture(t, Settings{Default: true}, base+c.main+canary)
		o := w.hosts()["a.example"].Paths[0].Options
		if takes := o != nil && len(o.Canary) > 0; takes != c.takes {
			t.Errorf("%s: the canary takes requests: %t, want %t", c.name, takes, c.takes)
		}
	}
}

// service-upstream leads to no endpoint that is left out otherwise: behind the virtual address the
// kernel would choose it.
func TestVirtualAddressesHideNoEndpoint(t *testing.T) {
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+`
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: odd},
  spec: {clusterIP: 10.96.0.77, ports: [{name: http, port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
  metadata: {namespace: shop, name: odd-1, labels: {kubernetes.io/service-name: odd}}, ports: [{name: http, port: 80}],
  endpoints: [{addresses: [100.100.100.200]}, {addresses: [10.244.1.5]}]}
`+ing("a", []string{"service-upstream: true"}, rules("h.example / P odd:80")))
	p, ok := w.plans[Key{BackendKey, "shop/odd:80/virtual"}]
	if !ok || fmt.Sprint(p.Backend.Endpoints) != "[{10.244.1.5:80 false}]" {
		t.Errorf("endpoints are %+v", p.Backend)
	}
}

// A path of another namespace that keeps requests out does not have the proxy decrypt a host that its
// owner passes through.
func TestPassthroughIsTheOwners(t *testing.T) {
	owner := ing("a", []string{"ssl-passthrough: true"}, rules("a.example / P web:80"))
	for name, annotation := range map[string]string{"a guard": "whitelist-source-range: 10.0.0.0/8",
		"a limit": "limit-rps: 1", "a guard that cannot be read": "auth-tls-secret: none"} {
		w := newFixture(t, Settings{Default: true}, sampleYAML(t)+owner+ing("other/b@2", []string{annotation},
			rules("a.example /b P web:80")))
		if got := w.hosts()["a.example"].Passthrough; got != "shop/web:80" {
			t.Errorf("%s: passed to %q", name, got)
		}
	}
}
