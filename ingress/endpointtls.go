package ingress

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"

	"wayleave.dev/model"
	"wayleave.dev/proxy/authority"
	"wayleave.dev/proxy/schema"
)

// endpointOf holds the annotations about TLS to endpoints.
type endpointOf struct {
	secret model.Name
	rule   schema.EndpointTLS
	verify bool
	said   bool
	depth  bool
}

func endpointTLS() []annotation {
	said := func(read func(*parser, string) error) func(*parser, string) error {
		return func(p *parser, v string) error {
			p.endpoint.said = true
			return read(p, v)
		}
	}
	onOff := func(to func(p *parser, v bool)) func(*parser, string) error {
		return said(oneOf(func(p *parser, v string) { to(p, v == "on") }, "on", "off"))
	}
	return []annotation{
		{name: "proxy-ssl-secret", guard: true, read: said(func(p *parser, v string) (err error) {
			p.endpoint.secret, err = secretName(p.in, v)
			return err
		}), note: "in the Ingress's own namespace: tls.crt and tls.key are shown to endpoints, ca.crt (and ca.crl) " +
			"is for proxy-ssl-verify"},
		{name: "proxy-ssl-verify", guard: true, read: onOff(func(p *parser, v bool) { p.endpoint.verify = v }),
			note: "off by default; needs ca.crt"},
		{name: "proxy-ssl-verify-depth", guard: true,
			read: said(number(0, 16, func(p *parser, n int) { p.endpoint.rule.Depth, p.endpoint.depth = n, true })),
			note: "1 by default"},
		{name: "proxy-ssl-name", guard: true, read: said(func(p *parser, v string) error {
			if !isHost(strings.ToLower(v)) {
				return fmt.Errorf("%q is not a DNS name", v)
			}
			p.endpoint.rule.Name = v
			return nil
		}), note: "SERVICE.NAMESPACE.svc by default"},
		{name: "proxy-ssl-server-name", read: onOff(func(p *parser, v bool) { p.endpoint.rule.SendName = v }),
			note: "off by default"},
		{name: "proxy-ssl-protocols", read: said(protocols),
			note: "the range from the lowest to the highest listed version"},
		{name: "proxy-ssl-ciphers", read: said(func(p *parser, v string) (err error) {
			p.endpoint.rule.Ciphers, err = ciphers(v)
			return err
		}), note: "as ssl-ciphers"},
	}
}

func protocols(p *parser, v string) error {
	versions := map[string]uint16{"TLSv1": tls.VersionTLS10, "TLSv1.1": tls.VersionTLS11, "TLSv1.2": tls.VersionTLS12,
		"TLSv1.3": tls.VersionTLS13}
	var list []uint16
	for _, w := range strings.Fields(v) {
		n, known := versions[w]
		switch {
		case known:
			list = append(list, n)
		case w != "SSLv2" && w != "SSLv3":
			return fmt.Errorf("%q is not known; allowed: TLSv1, TLSv1.1, TLSv1.2, TLSv1.3", w)
		}
	}
	if len(list) == 0 {
		return fmt.Errorf("%q has no protocol; allowed: TLSv1, TLSv1.1, TLSv1.2, TLSv1.3", v)
	}
	p.endpoint.rule.Least, p.endpoint.rule.Most = slices.Min(list), slices.Max(list)
	return nil
}

// combineEndpointTLS combines related annotations. If verification is requested and impossible, the paths are closed.
func (p *parser) combineEndpointTLS() {
	e := p.endpoint
	if !e.said {
		return
	}
	wrong := func(format string, args ...any) {
		p.close("proxy-ssl-secret")
		p.bad(nginxPrefix+"proxy-ssl-secret", format+"; all paths of this Ingress answer 503", args...)
	}
	if o := p.out.table.Protocol; o != schema.HTTPS && o != schema.GRPCS {
		p.bad(nginxPrefix+"backend-protocol",
			"is neither HTTPS nor GRPCS, so the annotations proxy-ssl-… have no effect")
	}
	if e.secret.Name == "" {
		if e.verify {
			wrong("is missing: proxy-ssl-verify needs a Secret of authorities")
		}
	} else {
		p.out.secrets = append(p.out.secrets, e.secret)
		s, ok := secretOf(p.snap, e.secret)
		switch {
		case !ok:
			wrong("Secret %s does not exist", e.secret)
			return
		case s.Chain == nil && s.Wrong != "":
			wrong("Secret %s: %s", e.secret, s.Wrong)
			return
		case s.Chain == nil && len(s.CA) == 0:
			wrong("Secret %s has neither a certificate nor authorities", e.secret)
			return
		case e.verify && len(s.CA) == 0:
			wrong("Secret %s has no data[ca.crt], which proxy-ssl-verify needs", e.secret)
			return
		}
		if e.verify {
			if _, err := authority.Parse(s.CA, s.CRL); err != nil {
				wrong("Secret %s: %v", e.secret, err)
				return
			}
			e.rule.Authority = e.secret.String()
		}
		if s.Chain != nil {
			e.rule.Certificate = e.secret.String()
		}
	}
	if !e.depth {
		e.rule.Depth = 1
	}
	p.out.table.TLS = &e.rule
}
