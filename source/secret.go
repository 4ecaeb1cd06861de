package source

import (
	"encoding/pem"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"wayleave.dev/internal/keypair"
	"wayleave.dev/model"
)

// maxSecret bounds what is looked at of one key; the API's own limit is 1 MiB for all.
const maxSecret = 256 << 10

// Secret keeps of a Secret what an Ingress may name it for: a certificate with its key,
// authorities with their revocation lists, and password hashes. Nothing else of it stays in memory. What is wrong is
// told of the
// Ingress that names it, so there are no problems.
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

// blocks are the PEM blocks of one kind; nil for none. Of what is longer than a Secret may be nothing
// is kept; who uses them says what is wrong with them.
func blocks(text []byte, kind string) (out []byte) {
	for b, rest := pem.Decode(text); b != nil; b, rest = pem.Decode(rest) {
		if b.Type == kind {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b.Bytes})...)
		}
	}
	if len(out) == 0 && len(text) > 0 {
		return []byte("?") // it is there, and has nothing that can be read
	}
	return out
}

func bounded(b []byte) []byte { return b[:min(len(b), maxSecret)] }

// isHash says whether a value looks like a password hash of htpasswd: what else is in a
// Secret is not kept.
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

// certificate checks that chain and key fit each other, and keeps only their PEM blocks:
// a file may hold text beside.
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
	out.From, out.Until = leaf.NotBefore, leaf.NotAfter
	for _, der := range pair.Certificate {
		out.Chain = append(out.Chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	out.Key = keypair.EncodeKey(key)
	return nil
}
