package table

import (
	"fmt"
	"regexp"
	"slices"

	"wayleave.dev/proxy/regex"
	"wayleave.dev/proxy/schema"
)

// CertificateFields are the fields that describe a client's certificate to endpoints. No client may set them.
var certificateFields = []string{"ssl-client-cert", "ssl-client-verify", "ssl-client-subject-dn",
	"ssl-client-issuer-dn"}

// ClientRule is a parsed ClientCert.
type ClientRule struct {
	*schema.ClientCert
	Match *regexp.Regexp
	Page  Template
	// Err is a parse error: no client is admitted then.
	Err error
}

func clientRule(h *schema.Host) *ClientRule {
	if h.ClientCert == nil {
		return nil
	}
	r := &ClientRule{ClientCert: h.ClientCert}
	var err error
	if r.Page, err = ParseTemplate(h.ClientCert.ErrorPage); err != nil {
		r.Err = fmt.Errorf("clientCert.errorPage: %w", err)
	}
	if s := h.ClientCert.Subject; s != "" {
		prog, err := regex.Compile(s, "")
		if err != nil {
			r.Err = fmt.Errorf("clientCert.subject: %w", err)
		} else {
			r.Match = prog.Regexp
		}
	}
	return r
}

// CheckClientCert parses one as the proxy will.
func CheckClientCert(c *schema.ClientCert) error { return clientRule(&schema.Host{ClientCert: c}).Err }

// ClientRules returns the rules that a request must satisfy: of the host that it names, and, if that has no path for
// it, of the host whose path it uses; nil for none. other is nil if it is the same.
func (t *Table) ClientRules(name []byte, m *Match) (own, other *ClientRule) {
	if t == nil || !t.certified {
		return nil, nil
	}
	r := t.Lookup(name)
	if r == nil {
		return nil, nil
	}
	if own = r.client; r.Host == m.Host {
		return own, nil
	}
	for _, o := range []*Routes{t.above(name), t.rest} {
		if o != nil && o.Host == m.Host {
			other = o.client
		}
	}
	if own == nil {
		return other, nil
	}
	return own, other
}

// Passes reports whether some host is passed through.
func (t *Table) Passes() bool { return t != nil && t.passes }

// Passthrough returns the backend to which connections for a name are passed; empty for none.
func (t *Table) Passthrough(name []byte) string {
	if r := t.Lookup(name); r != nil {
		return r.Host.Passthrough
	}
	return ""
}

// IsRest reports whether no host has the name.
func (t *Table) IsRest(name []byte) bool { r := t.Lookup(name); return r != nil && r == t.rest }

// takesAll reports whether the host has a path for every request.
func (r *Routes) takesAll() bool {
	_, all := r.prefix[""]
	return all || r.Host.Default != nil
}

// Handshake returns what a client that requests a name is asked for, and offered. The keys of the authorities are empty
// if it need not present a certificate.
func (t *Table) Handshake(name []byte) (authorities []string, ciphers []uint16) {
	if t == nil || !t.certified {
		return nil, nil
	}
	own := t.Lookup(name)
	for i, r := range []*Routes{own, t.above(name), t.rest} {
		if r == nil {
			continue
		}
		if i > 0 && own != nil && own.takesAll() {
			break // no request falls through to the others
		}
		if c := r.client; c != nil && c.Verify != schema.VerifyOff && !slices.Contains(authorities, c.Authority) {
			authorities = append(authorities, c.Authority)
		}
		if i == 0 {
			ciphers = r.Host.Ciphers
		}
	}
	return authorities, ciphers
}
