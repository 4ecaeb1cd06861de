package table

import "wayleave.dev/proxy/schema"

// CertificateKeys are the keys of a host's certificates; empty ones mean none. Other has another kind of key.
type CertificateKeys struct{ First, Other string }

func keysOf(h *schema.Host) CertificateKeys {
	return CertificateKeys{h.Certificate, h.OtherCertificate}
}

// CertificateOf finds the keys of the certificates for a name in a handshake; name is in lower case. wild are those of
// the wildcard host above it, which a host without its own certificate may also use if they are valid for the name.
// rest are those of host "". known means that a host has the name.
func (t *Table) CertificateOf(name []byte) (own, wild, rest CertificateKeys, known bool) {
	if t == nil {
		return own, wild, rest, false
	}
	exact := t.exact[string(name)]
	if exact != nil {
		own, known = keysOf(exact.Host), true
	}
	if w := t.above(name); w != nil {
		if exact == nil {
			own, wild, known = keysOf(w.Host), keysOf(w.Host), true
		} else if w.Host.Certifies(exact.Host) {
			wild = keysOf(w.Host)
		}
	}
	if t.rest != nil {
		rest = keysOf(t.rest.Host)
	}
	return own, wild, rest, known
}
