package table

import "bytes"

// CertificateOf finds the key of the certificate for a name that a client asks for in a
// handshake; name is in lower case. wild is that of the wildcard host for it, which also
// a host without a certificate of its own may use where it is valid for the name. rest
// says that no host has the name, and is what host "" has then. Empty keys are none.
func (t *Table) CertificateOf(name []byte) (own, wild, rest string, known bool) {
	if t == nil {
		return "", "", "", false
	}
	if r, ok := t.exact[string(name)]; ok {
		own, known = r.Host.Certificate, true
	}
	if i := bytes.IndexByte(name, '.'); i > 0 {
		if r, ok := t.wild[string(name[i:])]; ok {
			wild = r.Host.Certificate
			if !known {
				own, known = wild, true
			}
		}
	}
	if t.rest != nil {
		rest = t.rest.Host.Certificate
	}
	return own, wild, rest, known
}
