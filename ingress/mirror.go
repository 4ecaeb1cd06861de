package ingress

import (
	"fmt"
	"strings"
)

// others are independent annotations.
func others() []annotation {
	return []annotation{
		{name: "from-to-www-redirect", read: boolean(func(p *parser, v bool) { p.out.www = v }),
			note: "308 from www.HOST to HOST, or the reverse, if no Ingress routes the other name"},
		{name: "service-upstream", read: boolean(func(p *parser, v bool) { p.out.virtual = v }),
			note: "the Service's virtual address instead of its endpoints: affinity, upstream-hash-by and retries " +
				"have one endpoint then"},
		{name: "ssl-passthrough", read: boolean(func(p *parser, v bool) { p.out.passthrough = v }),
			note: "to the Service of the host's path / (Prefix); no effect on a host with guards, since they " +
				"could not be enforced. Port 80 is served as without it"},
		{name: "mirror-target", read: mirrorTarget, note: "refuses the addresses that auth-url refuses, and in the " +
			"cluster all but named Services of the same namespace; at most 64 copies at a time, others are not sent"},
		{name: "mirror-host", read: func(p *parser, v string) error {
			if plain := filled(v); plain == "" || strings.Trim(strings.ToLower(plain),
				"abcdefghijklmnopqrstuvwxyz0123456789-._:[]") != "" {
				return fmt.Errorf("%q is not a host", v)
			}
			return fieldTemplate(func(p *parser, v string) { p.mirror.Host = v })(p, v)
		}},
		{name: "mirror-request-body", read: oneOf(func(p *parser, v string) { p.headOnly = v == "off" }, "on", "off"),
			note: "on by default: requests whose body is above 64 KiB or of unknown length are not copied"},
		{name: "enable-global-auth", read: globalAuth,
			note: "false exempts the Ingress from ingress.globalAuthURL; true without that setting closes the paths"},
	}
}

func globalAuth(p *parser, v string) error {
	return booleanOr(true, func(p *parser, v bool) { p.noGlobal = !v })(p, v)
}

func mirrorTarget(p *parser, v string) error {
	was := p.authURL.URL
	err := askedURL(p, v)
	p.authURL.URL = was
	if err != nil {
		return err
	}
	p.mirror.URL = v
	return nil
}

// combineMirror finds the Service of the target.
func (p *parser) combineMirror() {
	if p.mirror.URL == "" {
		return
	}
	m := p.mirror
	m.Body = !p.headOnly
	if s, b, ok := p.settings.serviceOf(m.URL); ok {
		key, why := resolve(p.snap, s.Namespace, b)
		if s.Namespace != p.in.Name.Namespace {
			why = fmt.Sprintf("Service %s is in another namespace, and its endpoints may trust the proxy", s)
		}
		if why != "" {
			p.bad(nginxPrefix+"mirror-target", "%s; nothing is copied", why)
			return
		}
		m.Backend = key
	}
	p.out.table.Mirror = &m
}

// combineGlobalAuth applies the settings' authentication server to an Ingress without its own.
func (p *parser) combineGlobalAuth() {
	g := p.settings.GlobalAuth
	switch {
	case g == nil:
		if p.isTrue("enable-global-auth") {
			p.close("enable-global-auth")
			p.bad(nginxPrefix+"enable-global-auth", "requires a server for all Ingresses, but "+
				"ingress.globalAuthURL is empty; all paths of this Ingress answer 503")
		}
	case p.noGlobal || p.values["auth-url"] != "" || p.isTrue("canary"):
	default:
		u := *g
		if s, b, ok := p.settings.serviceOf(u.URL); ok {
			key, why := resolve(p.snap, s.Namespace, b)
			if why != "" {
				p.close("ingress.globalAuthURL")
				p.bad(nginxPrefix+"enable-global-auth",
					"ingress.globalAuthURL: %s; all paths of this Ingress answer 503", why)
				return
			}
			u.Backend = key
		}
		p.out.table.AuthURL, p.out.globalAuth = &u, true
	}
}
