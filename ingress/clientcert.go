package ingress

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"

	"wayleave.dev/model"
	"wayleave.dev/proxy/authority"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// clientCert holds the annotations about client certificates.
type clientCert struct {
	secret model.Name
	rule   schema.ClientCert
	depth  bool // whether the annotation is set
}

func clientCerts() []annotation {
	return []annotation{
		{name: "auth-tls-secret", guard: true, read: func(p *parser, v string) (err error) {
			p.client.secret, err = secretName(p.in, v)
			return err
		}, note: "for all paths of the hosts; in the Ingress's own namespace, with ca.crt and, if there is one, " +
			"ca.crl. Requests to another name than that of the handshake get 421, plain ones that are not " +
			"redirected 400"},
		{name: "auth-tls-verify-client", guard: true, read: oneOf(func(p *parser, v string) {
			if v != "on" {
				p.client.rule.Verify = schema.Verify(v)
			}
		}, "on", "off", "optional", "optional_no_ca")},
		{name: "auth-tls-verify-depth", guard: true, read: number(0, 16, func(p *parser, n int) {
			p.client.rule.Depth,
				p.client.depth = n, true
		}), note: "1 by default: authorities between, as OpenSSL counts"},
		{name: "auth-tls-match-cn", guard: true, read: func(p *parser, v string) error {
			if v == "" {
				return fmt.Errorf("is empty")
			}
			p.client.rule.Subject = v
			return table.CheckClientCert(&schema.ClientCert{Subject: v})
		}, note: "an expression of RE2 for the subject's name as nginx writes it; 403"},
		{name: "auth-tls-error-page", read: authURL(func(p *parser, v string) { p.client.rule.ErrorPage = v }),
			note: "a URL of http or https; 302"},
		{name: "auth-tls-pass-certificate-to-upstream",
			read: boolean(func(p *parser, v bool) { p.client.rule.Pass = v }),
			note: "the fields ssl-client-… are never taken from clients"},
		{name: "ssl-ciphers", read: func(p *parser, v string) (err error) {
			p.out.ciphers, err = ciphers(v)
			return err
		}, note: "names of OpenSSL that Go has, for TLS 1.2; those of TLS 1.3 are fixed"},
	}
}

// combineClientCert creates the rule for the hosts of the Ingress.
func (p *parser) combineClientCert() {
	c := p.client
	wrong := func(format string, args ...any) {
		p.close("auth-tls-secret")
		p.bad(nginxPrefix+"auth-tls-secret", format+"; all paths of this Ingress answer 503", args...)
	}
	if c.secret.Name == "" {
		if _, said := p.values["auth-tls-secret"]; !said && (p.values["auth-tls-match-cn"] != "" ||
			c.rule.Verify != schema.VerifyOff && p.values["auth-tls-verify-client"] != "") {
			wrong("is missing: certificates of clients need a Secret of authorities")
		}
		return
	}
	p.out.secrets = append(p.out.secrets, c.secret)
	if !c.depth {
		c.rule.Depth = 1
	}
	// The rule applies without its Secret, too: other Ingresses of the host rely on it.
	c.rule.Authority = c.secret.String()
	p.out.clientCert = &c.rule
	s, ok := secretOf(p.snap, c.secret)
	switch {
	case !ok:
		wrong("Secret %s does not exist", c.secret)
		return
	case len(s.CA) == 0:
		wrong("Secret %s has no data[ca.crt]", c.secret)
		return
	}
	if _, err := authority.Parse(s.CA, s.CRL); err != nil {
		wrong("Secret %s: %v", c.secret, err)
	}
}

// clientCert applies the rule of the Ingress to the whole host, as ingress-nginx does, and closes Ingresses with a
// different one.
func (m *merger) clientCert(i *model.Ingress) {
	o := m.p.options(m.snap, i)
	if len(o.ciphers) > 0 && len(m.rules(i)) > 0 {
		switch {
		case m.foreign(i):
			m.bad(i, annotationField("ssl-ciphers"),
				"%s is a host of Ingress %s; only its namespace can set its ciphers", m.hostText(), m.by.Name)
		case m.out.Ciphers == nil:
			m.out.Ciphers = o.ciphers
		case !slices.Equal(m.out.Ciphers, o.ciphers):
			m.bad(i, annotationField("ssl-ciphers"), "%s has the ciphers of an older Ingress", m.hostText())
		}
	}
	if o.clientCert == nil {
		return
	}
	why := ""
	switch {
	case m.foreign(i):
		why = fmt.Sprintf("%s is a host of Ingress %s; only its namespace can require client certificates",
			m.hostText(), m.by.Name)
	case m.out.ClientCert == nil:
		m.out.ClientCert = o.clientCert
		return
	case *m.out.ClientCert == *o.clientCert:
		return
	default:
		why = fmt.Sprintf("an older Ingress already sets other client certificate rules for %s", m.hostText())
	}
	m.shut[i] = true
	m.bad(i, annotationField("auth-tls-secret"), "%s; this Ingress's paths on that host answer 503", why)
}

// openssl maps OpenSSL's names of cipher suites that Go supports.
var openssl = map[string]uint16{
	"ECDHE-ECDSA-AES128-GCM-SHA256": tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-RSA-AES128-GCM-SHA256":   tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-ECDSA-AES256-GCM-SHA384": tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-RSA-AES256-GCM-SHA384":   tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-ECDSA-CHACHA20-POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-RSA-CHACHA20-POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-ECDSA-AES128-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
	"ECDHE-RSA-AES128-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
	"ECDHE-ECDSA-AES256-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
	"ECDHE-RSA-AES256-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
	"ECDHE-ECDSA-AES128-SHA256":     tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256,
	"ECDHE-RSA-AES128-SHA256":       tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256,
	"AES128-GCM-SHA256":             tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
	"AES256-GCM-SHA384":             tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
	"AES128-SHA256":                 tls.TLS_RSA_WITH_AES_128_CBC_SHA256,
	"AES128-SHA":                    tls.TLS_RSA_WITH_AES_128_CBC_SHA,
	"AES256-SHA":                    tls.TLS_RSA_WITH_AES_256_CBC_SHA,
}

// ciphers parses a list of OpenSSL names. Names that Go does not support are left out; an empty result is an error.
func ciphers(v string) (out []uint16, err error) {
	for _, name := range strings.FieldsFunc(v, func(r rune) bool { return r == ':' || r == ',' || r == ' ' }) {
		if id, known := openssl[name]; known && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%q has no cipher suite that Go supports; Go's defaults are used", v)
	}
	return out, nil
}
