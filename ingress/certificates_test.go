package ingress

import (
	"crypto/rand"
	"crypto/rsa"
	"testing"
	"time"

	"wayleave.dev/model"
)

// A host has two certificates if their keys are of different kinds: of one Ingress, or of several in its namespace. A
// third, and one of another namespace, is named by an Event.
func TestTwoCertificatesOfAHost(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(300 * 24 * time.Hour)
	c, k := pairOf(t, key, until, "a.example")
	soon, soonKey := pairOf(t, key, time.Now().Add(time.Hour), "a.example")
	e, eKey := pair(t, until, "a.example")
	base := sampleYAML(t) + secretYAML("rsa", c, k) + secretYAML("rsa-2", c, k) + secretYAML("ec", e, eKey) +
		secretYAML("ec-2", e, eKey) + secretYAML("soon", soon, soonKey)
	path := rules("a.example / P web:80")
	for _, tc := range []struct {
		name, yaml, first, other, says string
	}{
		{"one Ingress", ing("a", nil, path, tlsOf("rsa a.example", "ec a.example")), "shop/rsa", "shop/ec", ""},
		{"the other order", ing("a", nil, path, tlsOf("ec a.example", "rsa a.example")), "shop/ec", "shop/rsa", ""},
		{"two Ingresses", ing("a@1", nil, path, tlsOf("ec a.example")) +
			ing("b@2", nil, rules("a.example /b P web:80"), tlsOf("rsa a.example")), "shop/ec", "shop/rsa", ""},
		{"the same twice", ing("a@1", nil, path, tlsOf("ec a.example", "rsa a.example")) +
			ing("b@2", nil, rules("a.example /b P web:80"), tlsOf("rsa a.example")), "shop/ec", "shop/rsa", ""},
		{"a third of RSA", ing("a", nil, path, tlsOf("ec a.example", "rsa a.example", "rsa-2 a.example")), "shop/ec",
			"shop/rsa", "already has the certificate of Secret shop/rsa,"},
		{"a third without RSA", ing("a", nil, path, tlsOf("ec a.example", "rsa a.example", "ec-2 a.example")),
			"shop/ec", "shop/rsa", "already has the certificate of Secret shop/ec,"},
		{"two of one kind", ing("a", nil, path, tlsOf("rsa a.example", "rsa-2 a.example")), "shop/rsa", "",
			"already has the certificate of Secret shop/rsa,"},
		{"another namespace", ing("a@1", nil, path, tlsOf("ec a.example")) +
			ing("other/b@2", nil, rules("a.example /b P web:80"), tlsOf("rsa a.example")), "shop/ec", "",
			"only its namespace can set the certificate"},
		{"the other one ends soon", ing("a", nil, path, tlsOf("ec a.example", "soon a.example")), "shop/ec",
			"shop/soon", "the certificate of Secret shop/soon expires"},
		{"the other one is missing", ing("a", nil, path, tlsOf("ec a.example", "none a.example")), "shop/ec", "",
			"Secret shop/none does not exist"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newFixture(t, Settings{Default: true}, base+tc.yaml)
			h := w.hosts()["a.example"]
			if h == nil || h.Certificate != tc.first || h.OtherCertificate != tc.other {
				t.Fatalf("the host is %+v, want %s and %s", h, tc.first, tc.other)
			}
			if tc.says == "" {
				w.noProblems()
			} else {
				w.says(tc.says)
			}
		})
	}
	w := newFixture(t, Settings{Default: true}, base+ing("a", nil, path, tlsOf("ec a.example", "rsa a.example")))
	w.remove(model.SecretKind, "shop/ec")
	if h := w.hosts()["a.example"]; h.Certificate != "shop/rsa" || h.OtherCertificate != "" {
		t.Errorf("without the first Secret the host is %+v", h)
	}
}
