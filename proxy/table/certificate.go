package table

// CertificateOf finds the key of the certificate for a name in a handshake; name is in lower case. wild is that of the
// wildcard host above it, which a host without its own certificate may also use if it is valid for the name. rest means
// that no host has the name, and is the certificate of host "" then. Empty keys mean none.
func (t *Table) CertificateOf(name []byte) (own, wild, rest string, known bool) {
	if t == nil {
		return "", "", "", false
	}
	exact := t.exact[string(name)]
	if exact != nil {
		own, known = exact.Host.Certificate, true
	}
	if w := t.above(name); w != nil {
		if exact == nil {
			own, wild, known = w.Host.Certificate, w.Host.Certificate, true
		} else if w.Host.Certifies(exact.Host) {
			wild = w.Host.Certificate
		}
	}
	if t.rest != nil {
		rest = t.rest.Host.Certificate
	}
	return own, wild, rest, known
}
