package model

import (
	"time"
)

// Secret is one that an Ingress names, reduced to what it is named for. It is never
// written to a disk, and String tells nothing of it.
type Secret struct {
	Name Name
	// Chain and Key are a certificate and its private key in PEM, which fit each other;
	// nil when there is none or it is bad. Names are what the certificate is for, in lower
	// case; it is valid from From to Until.
	Chain, Key  []byte
	Names       []string
	From, Until time.Time
	// RSA says that the key is one of RSA.
	RSA bool
	// Users are password hashes by name, of a file of htpasswd in the key "auth"; UserMap
	// those of a Secret with a key for each user (auth-secret-type auth-map).
	Users, UserMap map[string]string
	// CA are authorities in PEM, and CRL their revocation lists: keys ca.crt and ca.crl.
	CA, CRL []byte
	// Wrong says why there is no certificate, where one seems to be meant.
	Wrong string
	// Missing says that it was asked for and is not there; one that has not been asked for
	// is not in the model.
	Missing bool
}

// String names the Secret, and keeps it.
func (s Secret) String() string { return "Secret " + s.Name.String() }

// GoString is String: %#v must not print a key either.
func (s Secret) GoString() string { return s.String() }

// Covers says whether a certificate for these names is one for the host, which may be a
// wildcard itself (RFC 6125: a star is one whole label, the leftmost).
func Covers(names []string, host string) bool {
	for _, n := range names {
		if n == host {
			return true
		}
		if len(n) > 2 && n[:2] == "*." && len(host) > 2 && host[:2] != "*." {
			for i := range len(host) {
				if host[i] == '.' {
					if host[i:] == n[1:] && i > 0 {
						return true
					}
					break
				}
			}
		}
	}
	return false
}

var secrets = describe(descriptor[*Secret]{kind: SecretKind, label: "Secret",
	name: func(s *Secret) Name { return s.Name }})

// PutSecret sets a Secret; the store owns it from now on.
func (w *Writer) PutSecret(o *Secret) { put(w, secrets, o) }

// Secret returns the Secret of that name, if an Ingress names it.
func (v Snapshot) Secret(n Name) (*Secret, bool) { return get(v, secrets, n) }
