package ingress

import (
	"slices"

	"wayleave.dev/proxy/schema"
)

// passthrough hands connections for the host to the Service of its path / as they are, where that
// path's Ingress asks for it. Nothing that keeps requests out could be looked at then, so a host that has
// such a thing is not passed.
func (m *merger) passthrough() {
	where := place{kind: schema.Prefix}
	for _, i := range m.list {
		if !m.p.options(m.snap, i).passthrough || len(m.rules(i)) == 0 {
			continue
		}
		n, has := m.at[where]
		switch {
		case m.name == "" || !has || m.owner[where] != i:
			m.bad(i, annotationField("ssl-passthrough"),
				"has no effect on %s: it is of the Ingress with the path / (Prefix) of a host", m.hostText())
		case m.foreign(i):
			m.bad(i, annotationField("ssl-passthrough"),
				"%s is a host of Ingress %s, whose namespace alone passes it through", m.hostText(), m.by.Name)
		case m.isGuarded():
			m.bad(i, annotationField("ssl-passthrough"),
				"has no effect on %s: something keeps requests out there, and could not be looked at", m.hostText())
		default:
			m.out.Passthrough = m.out.Paths[n].Backend
		}
	}
}

// isGuarded says whether some path of the host keeps requests out. Paths of other namespaces, which
// get no request of a host that is passed, do not count: else their authors could have it decrypted.
func (m *merger) isGuarded() bool {
	return m.out.ClientCert != nil || slices.ContainsFunc(m.out.Paths, func(p schema.Path) bool {
		return !p.Foreign &&
			(p.Guarded() || p.Options.Limits())
	}) ||
		m.out.Default != nil && m.out.Default.Guarded()
}
