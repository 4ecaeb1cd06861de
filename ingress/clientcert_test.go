package ingress

import (
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
	"reflect"
	"strings"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
)

// authorityPEM is a self-signed authority, and a revocation list of it.
func authorityPEM(t testing.TB, name string) (ca, crl []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1),
		ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, c, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})
}

func dataYAML(name string, data map[string][]byte) string {
	var list []string
	for k, v := range data {
		list = append(list, fmt.Sprintf("%q: %q", k, base64.StdEncoding.EncodeToString(v)))
	}
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Secret, metadata: {namespace: shop, name: %s}, data: {%s}}\n", name,
		strings.Join(list, ", "))
}

// What annotations say of certificates of clients is a rule of the whole host, by the oldest Ingress
// of its owner's namespace; what asks for another one is closed, and so is what cannot be had.
func TestClientCertificatesOfHosts(t *testing.T) {
	ca, crl := authorityPEM(t, "root")
	secrets := dataYAML("ca", map[string][]byte{"ca.crt": ca, "ca.crl": crl}) +
		dataYAML("ca2", map[string][]byte{"ca.crt": ca}) + dataYAML("junk", map[string][]byte{"ca.crt": []byte("x")}) +
		dataYAML("badcrl", map[string][]byte{"ca.crt": ca, "ca.crl": []byte("x")}) +
		dataYAML("empty", map[string][]byte{"other": []byte("x")})
	base := sampleYAML(t) + secrets
	plain := ing("b@2", nil, rules("a.example /b P api:8080"))
	for _, tc := range []struct {
		name, yaml, rule string
		want             []string
		problem          string
	}{
		{"a rule", ing("a", []string{"auth-tls-secret: shop/ca"}, rules("a.example / P web:80")) + plain,
			`{"authority":"shop/ca","depth":1}`, []string{"http://a.example/ = shop/web:80",
				"http://a.example/b = shop/api:8080"}, ""},
		{"all of it", ing("a", []string{"auth-tls-secret: ca", "auth-tls-verify-client: optional_no_ca",
			"auth-tls-verify-depth: 3", "auth-tls-error-page: https://x.example/",
			"auth-tls-pass-certificate-to-upstream: true", "auth-tls-match-cn: CN=ann"}, rules("a.example / P web:80")),
			`{"authority":"shop/ca","depth":3,"verify":"optional_no_ca","errorPage":"https://x.example/",` +
				`"pass":true,"subject":"CN=ann"}`, nil, ""},
		{"the younger one counts, too", ing("a", nil, rules("a.example / P web:80")) +
			ing("b@2", []string{"auth-tls-secret: ca"}, rules("a.example /b P api:8080")),
			`{"authority":"shop/ca","depth":1}`, []string{"http://a.example/ = shop/web:80",
				"http://a.example/b = shop/api:8080"}, ""},
		{"two of the same", ing("a", []string{"auth-tls-secret: ca"}, rules("a.example / P web:80")) +
			ing("b@2", []string{"auth-tls-secret: shop/ca"}, rules("a.example /b P api:8080")),
			`{"authority":"shop/ca","depth":1}`, []string{"http://a.example/b = shop/api:8080"}, ""},
		{"two that differ", ing("a", []string{"auth-tls-secret: ca"}, rules("a.example / P web:80")) +
			ing("b@2", []string{"auth-tls-secret: ca2"}, rules("a.example /b P api:8080")),
			`{"authority":"shop/ca","depth":1}`, []string{"http://a.example/ = shop/web:80",
				"http://a.example/b = 503"}, "an older Ingress already sets other client certificate rules"},
		{"another namespace", ing("a", nil, rules("a.example / P web:80")) +
			ing("other/b@2", []string{"auth-tls-secret: ca"}, rules("a.example /b P web:80")), `null`,
			[]string{"http://a.example/ = shop/web:80", "http://a.example/b = 503"}, "Secret other/ca does not exist"},
		{"a Secret that is not there", ing("a", []string{"auth-tls-secret: none"}, rules("a.example / P web:80")) +
			plain, `{"authority":"shop/none","depth":1}`, []string{"http://a.example/ = 503",
			"http://a.example/b = shop/api:8080"}, "Secret shop/none does not exist"},
		{"without authorities", ing("a", []string{"auth-tls-secret: empty"}, rules("a.example / P web:80")),
			`{"authority":"shop/empty","depth":1}`, []string{"http://a.example/ = 503"}, "has no data[ca.crt]"},
		{"authorities that cannot be read", ing("a", []string{"auth-tls-secret: junk"}, rules("a.example / P web:80")),
			`{"authority":"shop/junk","depth":1}`, []string{"http://a.example/ = 503"}, "ca.crt: has no certificate"},
		{"a list that cannot be read", ing("a", []string{"auth-tls-secret: badcrl"}, rules("a.example / P web:80")),
			`{"authority":"shop/badcrl","depth":1}`, []string{"http://a.example/ = 503"}, "ca.crl: has no list"},
		{"another's Secret", ing("a", []string{"auth-tls-secret: other/ca"}, rules("a.example / P web:80")), `null`,
			[]string{"http://a.example/ = 503"}, "is in another namespace"},
		{"no Secret", ing("a", []string{"auth-tls-verify-client: on"}, rules("a.example / P web:80")), `null`,
			[]string{"http://a.example/ = 503"}, "is missing: certificates of clients need a Secret"},
		{"a subject that cannot be read", ing("a", []string{"auth-tls-secret: ca", "auth-tls-match-cn: ("},
			rules("a.example / P web:80")), `{"authority":"shop/ca","depth":1,"subject":"("}`,
			[]string{"http://a.example/ = 503"}, "it restricts access"},
		{"off", ing("a", []string{"auth-tls-secret: ca", "auth-tls-verify-client: off"}, rules("a.example / P web:80")),
			`{"authority":"shop/ca","depth":1,"verify":"off"}`, []string{"http://a.example/ = shop/web:80"}, ""},
		{"an alias", ing("a", []string{"auth-tls-secret: ca", "server-alias: a.example"},
			rules("first.example / P web:80")), `{"authority":"shop/ca","depth":1}`,
			[]string{"http://a.example/ = shop/web:80"}, ""},
		{"app-root and a default backend", ing("a", []string{"auth-tls-secret: ca"}, rules("a.example /x P web:80")) +
			ing("b@2", []string{"auth-tls-secret: ca2", "app-root: /y"}, rules("a.example /b P api:8080"),
				fallback("new:80")), `{"authority":"shop/ca","depth":1}`, []string{"http://a.example/ = 503",
			"http://a.example/z = 503"}, "already sets other"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newFixture(t, Settings{Default: true}, base+tc.yaml)
			hosts := w.hosts()
			raw, err := json.Marshal(hosts["a.example"].ClientCert)
			if err != nil || string(raw) != tc.rule {
				t.Errorf("the rule is %s %v, want %s", raw, err, tc.rule)
			}
			for _, line := range tc.want {
				q, want, _ := strings.Cut(line, " = ")
				if got := answer(hosts, q); got != want {
					t.Errorf("%s is %s, want %s", q, got, want)
				}
			}
			all := strings.Join(w.allProblems(), "\n")
			if tc.problem == "" && strings.Contains(all, "auth-tls") || !strings.Contains(all, tc.problem) {
				t.Errorf("problems are %q, want %q", all, tc.problem)
			}
			for k, p := range w.plans { // what a rule names is planned
				if p.Host == nil || p.Host.ClientCert == nil || k.Name != "a.example" || tc.problem != "" {
					continue
				}
				if c := w.plans[Key{CertificateKey, p.Host.ClientCert.Authority}].Certificate; c == nil ||
					len(c.CA) == 0 {
					t.Errorf("there is no plan of %s", p.Host.ClientCert.Authority)
				}
			}
		})
	}
}

// Client certificates follow their Secret, and are asked for from the first moment.
func TestClientCertificatesWaitForTheirSecret(t *testing.T) {
	ca, _ := authorityPEM(t, "root")
	p := NewPlanner(Settings{Default: true})
	p.Waits = true
	w := newFixtureOf(t, p, sampleYAML(t)+ing("a", []string{"auth-tls-secret: ca"}, rules("a.example / P web:80")))
	if got := answer(w.hosts(), "http://a.example/"); got != "503" {
		t.Errorf("before the Secret is read: %s", got)
	}
	w.read(dataYAML("ca", map[string][]byte{"ca.crt": ca}))
	if got := answer(w.hosts(), "http://a.example/"); got != "shop/web:80" || w.hosts()["a.example"].ClientCert == nil {
		t.Errorf("after it is read: %s", got)
	}
	next, _ := authorityPEM(t, "next")
	w.read(dataYAML("ca", map[string][]byte{"ca.crt": next}))
	if c := w.plans[Key{CertificateKey, "shop/ca"}].Certificate; c == nil || string(c.CA) != string(next) {
		t.Error("a new authority is not planned")
	}
}

// TLS to endpoints: what cannot be verified closes.
func TestEndpointTLSAnnotations(t *testing.T) {
	ca, _ := authorityPEM(t, "root")
	chain, key := pair(t, time.Now().Add(time.Hour), "proxy")
	base := sampleYAML(t) + dataYAML("ca", map[string][]byte{"ca.crt": ca}) +
		dataYAML("both", map[string][]byte{"ca.crt": ca,
			"tls.crt": chain, "tls.key": key}) + dataYAML("junk", map[string][]byte{"ca.crt": []byte("x")}) +
		secretYAML("pair", chain, key)
	for _, tc := range []struct{ in, options, problem string }{
		{"proxy-ssl-secret: both",
			`{"protocol":"HTTPS","tls":{"certificate":"shop/both","depth":1,"name":"web.shop.svc"}}`, ""},
		{"proxy-ssl-secret: shop/both|proxy-ssl-verify: on|proxy-ssl-verify-depth: 2|proxy-ssl-name: " +
			"Web.Example|proxy-ssl-server-name: on|proxy-ssl-protocols: TLSv1.2 TLSv1.3|proxy-ssl-ciphers: " +
			"ECDHE-RSA-AES128-GCM-SHA256:HIGH:!aNULL",
			`{"protocol":"HTTPS","tls":{"certificate":"shop/both","authority":"shop/both","depth":2,` +
				`"name":"Web.Example","sendName":true,"least":771,"most":772,"ciphers":[49199]}}`, ""},
		{"proxy-ssl-secret: ca|proxy-ssl-verify: on",
			`{"protocol":"HTTPS","tls":{"authority":"shop/ca","depth":1,"name":"web.shop.svc"}}`, ""},
		{"proxy-ssl-secret: ca|proxy-ssl-verify: off", `{"protocol":"HTTPS","tls":{"depth":1,"name":"web.shop.svc"}}`,
			""},
		{"proxy-ssl-verify: on", "", "needs a Secret of authorities"}, {"proxy-ssl-secret: pair|proxy-ssl-verify: on",
			"", "has no data[ca.crt]"},
		{"proxy-ssl-secret: junk|proxy-ssl-verify: on", "", "ca.crt: has no certificate"},
		{"proxy-ssl-secret: none", "", "does not exist"}, {"proxy-ssl-secret: other/both", "",
			"is in another namespace"},
		{"proxy-ssl-verify: yes", "", "is not built; allowed: on, off"},
		{"proxy-ssl-name: a b", "", "is not a DNS name"},
		{"proxy-ssl-protocols: TLSv9", `{"protocol":"HTTPS","tls":{"depth":1,"name":"web.shop.svc"}}`, "is not known"},
		{"proxy-ssl-ciphers: HIGH", `{"protocol":"HTTPS","tls":{"depth":1,"name":"web.shop.svc"}}`,
			"has no cipher suite"},
	} {
		t.Run(tc.in, func(t *testing.T) {
			w := newFixture(t, Settings{Default: true},
				base+ing("a", append(strings.Split(tc.in, "|"), "backend-protocol: HTTPS"),
					rules("h.example /p P web:80")))
			closed := answer(w.hosts(), "http://h.example/p") == "503"
			if got := optionsText(w.hosts(), "http://h.example/p"); closed != (tc.options == "") || !closed &&
				got != tc.options {
				t.Errorf("closed %v, options are %s, want %s", closed, got, tc.options)
			}
			if all := strings.Join(w.allProblems(), "\n"); tc.problem == "" && all != "" ||
				!strings.Contains(all, tc.problem) {
				t.Errorf("problems are %q, want %q", all, tc.problem)
			}
			raw, err := json.Marshal(w.hosts()["h.example"])
			var back schema.Host
			if err != nil || json.Unmarshal(raw, &back) != nil || !reflect.DeepEqual(*w.hosts()["h.example"], back) {
				t.Errorf("%v: %s", err, raw)
			}
		})
	}
	w := newFixture(t, Settings{Default: true}, base+ing("a", []string{"proxy-ssl-secret: both"},
		rules("h.example /p P web:80")))
	if all := strings.Join(w.allProblems(), "\n"); !strings.Contains(all, "is neither HTTPS nor GRPCS") {
		t.Error(all)
	}
}

// Ciphers are those of the host.
func TestCiphersOfHosts(t *testing.T) {
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+
		ing("a", []string{"ssl-ciphers: ECDHE-RSA-AES256-GCM-SHA384:HIGH:AES128-SHA"}, rules("a.example / P web:80"))+
		ing("b@2", []string{"ssl-ciphers: AES128-SHA"}, rules("a.example /b P web:80"))+
		ing("other/c@3", []string{"ssl-ciphers: AES128-SHA"}, rules("a.example /c P web:80")))
	if got := fmt.Sprint(w.hosts()["a.example"].Ciphers); got != "[49200 47]" {
		t.Error(got)
	}
	all := strings.Join(w.allProblems(), "\n")
	for _, want := range []string{"has the ciphers of an older Ingress",
		"only its namespace can set its ciphers"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is missing in %s", want, all)
		}
	}
}
