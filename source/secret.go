package source

import (
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"wayleave.dev/internal/keypair"
	"wayleave.dev/model"
)

// maxSecret bounds one key; the API's own limit is 1 MiB for all keys.
const maxSecret = 256 << 10

// Secret keeps the parts of a Secret that an Ingress may refer to: a certificate with its key, authorities with their
// revocation lists, and password hashes. Nothing else stays in memory. Problems are reported for the Ingress that
// names the Secret.
func Secret(in *corev1.Secret) (*model.Secret, []model.Problem) {
	out := &model.Secret{Name: nameOf(&in.ObjectMeta)}
	chain, key := in.Data[corev1.TLSCertKey], in.Data[corev1.TLSPrivateKeyKey]
	if len(chain) > 0 || len(key) > 0 || in.Type == corev1.SecretTypeTLS {
		if err := certificate(out, chain, key); err != nil {
			out.Wrong = err.Error()
		}
	}
	out.CA, out.CRL = blocks(in.Data["ca.crt"], "CERTIFICATE"), blocks(in.Data["ca.crl"], "X509 CRL")
	for _, line := range strings.Split(string(bounded(in.Data["auth"])), "\n") {
		if name, hash, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && !strings.HasPrefix(name, "#") {
			set(&out.Users, name, hash)
		}
	}
	for name, value := range in.Data {
		if hash := strings.TrimSpace(string(bounded(value))); isHash(hash) {
			set(&out.UserMap, name, hash)
		}
	}
	return out, nil
}

func set(m *map[string]string, k, v string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[k] = strings.Clone(v)
}

// blocks returns the PEM blocks of one kind; nil for none. A value above maxSecret is dropped completely; the object
// that uses it reports the error.
func blocks(text []byte, kind string) (out []byte) {
	for b, rest := pem.Decode(text); b != nil; b, rest = pem.Decode(rest) {
		if b.Type == kind {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b.Bytes})...)
		}
	}
	if len(out) == 0 && len(text) > 0 {
		return []byte("?") // present, but nothing in it can be parsed
	}
	return out
}

func bounded(b []byte) []byte { return b[:min(len(b), maxSecret)] }

// isHash reports whether a value looks like a password hash of htpasswd. Other values of a Secret are not kept.
func isHash(s string) bool {
	if len(s) > 200 || strings.ContainsAny(s, " \t\r\n:") {
		return false
	}
	for _, begin := range []string{"$apr1$", "$2a$", "$2b$", "$2y$", "$1$", "$5$", "$6$", "{SHA}",
		"{SSHA}", "{PLAIN}"} {
		if strings.HasPrefix(s, begin) {
			return true
		}
	}
	return false
}

// certificate checks that chain and key match, and keeps only their PEM blocks: a file may contain other text.
func certificate(out *model.Secret, chain, key []byte) error {
	switch {
	case len(chain) == 0:
		return fmt.Errorf("data[%s] is missing or empty", corev1.TLSCertKey)
	case len(key) == 0:
		return fmt.Errorf("data[%s] is missing or empty", corev1.TLSPrivateKeyKey)
	case len(chain) > maxSecret || len(key) > maxSecret:
		return fmt.Errorf("data[%s] or data[%s] is longer than %d bytes", corev1.TLSCertKey,
			corev1.TLSPrivateKeyKey, maxSecret)
	}
	pair, err := keypair.Parse(chain, key)
	if err != nil {
		return fmt.Errorf("data[%s] and data[%s]: %w", corev1.TLSCertKey, corev1.TLSPrivateKeyKey, err)
	}
	leaf := pair.Leaf
	for _, n := range leaf.DNSNames {
		out.Names = append(out.Names, strings.ToLower(n))
	}
	_, out.RSA = leaf.PublicKey.(*rsa.PublicKey)
	out.From, out.Until = leaf.NotBefore, leaf.NotAfter
	for _, der := range pair.Certificate {
		out.Chain = append(out.Chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	out.Key = keypair.EncodeKey(key)
	return nil
}
