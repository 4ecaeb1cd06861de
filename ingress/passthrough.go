package ingress

import (
	"slices"

	"wayleave.dev/proxy/schema"
)

// passthrough hands connections for the host unchanged to the Service of its path /, if that path's Ingress requests
// it. Guards could not be applied then, so a host with a guard is not passed through.
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
				"has no effect on %s: only the Ingress with the path / (Prefix) of a host can set it", m.hostText())
		case m.foreign(i):
			m.bad(i, annotationField("ssl-passthrough"),
				"%s is a host of Ingress %s; only its namespace can pass it through", m.hostText(), m.by.Name)
		case m.isGuarded():
			m.bad(i, annotationField("ssl-passthrough"),
				"has no effect on %s: a guard applies there, which could not be enforced", m.hostText())
		default:
			m.out.Passthrough = m.out.Paths[n].Backend
		}
	}
}

// isGuarded reports whether a path of the host has a guard. Paths of other namespaces, which get no request of a host
// that is passed through, do not count: otherwise their authors could have it decrypted.
func (m *merger) isGuarded() bool {
	return m.out.ClientCert != nil || slices.ContainsFunc(m.out.Paths, func(p schema.Path) bool {
		return !p.Foreign &&
			(p.Guarded() || p.Options.Limits())
	}) ||
		m.out.Default != nil && m.out.Default.Guarded()
}
