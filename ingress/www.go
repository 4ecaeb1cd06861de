package ingress

import (
	"fmt"
	"strings"

	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
)

// otherName returns a host with www. in front, or without it if it has it; empty for none.
func otherName(host string) string {
	if plain, ok := strings.CutPrefix(host, "www."); ok {
		return plain
	}
	if host == "" || strings.HasPrefix(host, "*.") || len(host) > 249 {
		return ""
	}
	return "www." + host
}

// wantsRedirect reports whether the Ingress requests a redirect from the host to the other name.
func (m *merger) wantsRedirect(i *model.Ingress) bool {
	other := otherName(m.name)
	return other != "" && m.p.options(m.snap, i).www && m.p.hasRule(m.snap, i, other)
}

// redirects reports whether the Ingress redirects the host, which no rule names, to the other name: an Ingress of the
// namespace that owns that name.
func (m *merger) redirects(i *model.Ingress) bool {
	if !m.wantsRedirect(i) {
		return false
	}
	by := m.p.routes(m.snap, otherName(m.name))
	return by != nil && by.Name.Namespace == i.Name.Namespace
}

// isNamed reports whether an entry of spec.tls names the host.
func (m *merger) isNamed(i *model.Ingress) bool {
	return len(m.p.options(m.snap, i).hosts.tls[m.name]) > 0
}

// www creates the only path of a host that redirects to its other name.
func (m *merger) www() {
	if !m.isRedirected {
		return
	}
	i := m.list[0]
	if m.isRefused(i) {
		m.bad(i, annotationField("from-to-www-redirect"), "%s is a host of Ingress %s, and each host belongs to one "+
			"namespace (ingress.hostsOfOneNamespace); nothing redirects to %s", m.name, m.by.Name, otherName(m.name))
		return
	}
	o := m.p.options(m.snap, i)
	m.out.Paths = append(m.out.Paths, schema.Path{Kind: schema.Prefix, Path: "/", Closed: o.closed != "",
		Source:  fmt.Sprintf("Ingress %s from-to-www-redirect", i.Name),
		Options: &schema.Options{Redirect: "$scheme://" + otherName(m.name) + "$request_uri", RedirectCode: 308}})
}
