package ingress

import (
	"slices"
	"strings"

	"wayleave.dev/model"
)

// Ownership follows from the existing objects, not from their history:
//
//   - A host belongs to the oldest Ingress that routes it by a rule. An Ingress that has it as server-alias precedes
//     younger rules of other namespaces, and follows all rules of its own namespace. One that names it only in
//     spec.tls comes last. "Older" is by creationTimestamp, then by namespace and name.
//   - Properties of a whole host come only from Ingresses of its owner's namespace: its certificate, the redirect to
//     https that follows from it, aliases, app-root, the default backend, and responses to ACME challenges.
//   - A path of a host (its type and text) belongs to the oldest Ingress that has it. While its Service does not
//     exist, the next Ingress of its namespace or of the host's serves the path, unless the path has a guard. An
//     Ingress of another namespace gains nothing.
//   - An Ingress that is being deleted, or whose namespace is, claims nothing of a host that another Ingress routes.
//   - Ingresses of other namespaces may add paths unless Settings.HostsOfOneNamespace is set; their
//     patterns take no request from the owner's paths (schema.Path.Foreign).
//   - The certificate is that of the oldest Ingress of the owner's namespace that names a valid one.
//   - An exact host below a wildcard host has its own owners unless
//     Settings.HostsOfOneNamespace is set. A wildcard host provides its certificate only if it is of the
//     same namespace or older (schema.Host).

// ReasonShared is the reason of the Event of an Ingress that adds paths to a host of another namespace.
const ReasonShared = "HostShared"

// claim lists the Ingresses that claim a host.
type claim struct {
	// by owns the host; nil for none.
	by *model.Ingress
	// list holds the Ingresses that route the host or name its certificate, in order of age.
	list, canaries []*model.Ingress
	// from holds the hosts whose rules route it: itself, and the one that it is an alias of.
	from []string
	// isRedirected says that the host has no paths but redirects to its other name.
	isRedirected bool
}

// foreign reports whether the Ingress is of another namespace than the host.
func (c *claim) foreign(i *model.Ingress) bool {
	return c.by != nil && c.by.Name.Namespace != i.Name.Namespace
}

// claims finds the Ingresses that claim the host, and reports to those that lose.
func (m *merger) claims() claim {
	c := claim{from: []string{m.name}}
	var rules, aliases, www, others []*model.Ingress
	for _, i := range m.all(m.name) {
		switch {
		case m.p.options(m.snap, i).canary != nil:
			c.canaries = append(c.canaries, i)
		case m.p.hasRule(m.snap, i, m.name):
			rules = append(rules, i)
		case m.isAlias(i):
			aliases = append(aliases, i)
		case m.redirects(i):
			www = append(www, i)
		case m.wantsRedirect(i) && !m.isNamed(i):
			m.bad(i, annotationField("from-to-www-redirect"),
				"%s belongs to another namespace; only that namespace can redirect to it", otherName(m.name))
		default:
			others = append(others, i)
		}
	}
	aliases = m.ownAliases(aliases)
	switch {
	case len(aliases) > 0 && precedes(aliases[0], rules):
		c.by, aliases = aliases[0], aliases[1:]
		c.alias(m, firstHost(c.by), rules)
	case len(rules) > 0:
		c.by, c.list = rules[0], rules
	case len(www) > 0: // those of one namespace
		c.by, c.list, c.isRedirected = www[0], www, true
	default:
		c.list = m.withoutRules(others)
		if len(c.list) > 0 {
			c.by = c.list[0]
		}
		others = nil
	}
	if w := m.above(); w != nil && c.by != nil && m.p.settings.HostsOfOneNamespace && older(w, c.by) < 0 {
		c.by = w
	}
	for _, i := range aliases {
		m.bad(i, annotationField("server-alias"), "%s is a host of Ingress %s, which keeps it", m.name, c.by.Name)
	}
	for _, i := range others {
		m.bad(i, "spec.tls", "%s is a host of Ingress %s; a certificate for it has no effect here", m.name, c.by.Name)
	}
	return c
}

// precedes reports whether an alias comes before the Ingresses with rules for the host.
func precedes(alias *model.Ingress, rules []*model.Ingress) bool {
	return !slices.ContainsFunc(rules, func(i *model.Ingress) bool {
		return i.Name.Namespace == alias.Name.Namespace || older(i, alias) < 0
	})
}

// alias merges the host with another one: it gets that one's rules, too.
func (c *claim) alias(m *merger, of string, rules []*model.Ingress) {
	c.from = append(c.from, of)
	c.list = slices.Clone(rules)
	for _, i := range m.all(of) {
		switch {
		case m.p.options(m.snap, i).canary != nil:
			if !slices.Contains(c.canaries, i) {
				c.canaries = append(c.canaries, i)
			}
		case m.p.hasRule(m.snap, i, of) && !slices.Contains(c.list, i):
			c.list = append(c.list, i)
		}
	}
	slices.SortFunc(c.list, older)
	slices.SortFunc(c.canaries, older)
}

// ownAliases returns the Ingresses whose namespace owns the host that the alias is of.
func (m *merger) ownAliases(aliases []*model.Ingress) (out []*model.Ingress) {
	for _, i := range aliases {
		of := firstHost(i)
		if by := m.p.routes(m.snap, of); by != nil && by.Name.Namespace != i.Name.Namespace {
			m.bad(i, annotationField("server-alias"),
				"%s is a host of Ingress %s; only its namespace can add aliases", of, by.Name)
			continue
		}
		out = append(out, i)
	}
	return out
}

// withoutRules returns the Ingresses that name the host only in spec.tls and may have it: those of one namespace,
// unless a wildcard host of another namespace routes the name.
func (m *merger) withoutRules(others []*model.Ingress) (out []*model.Ingress) {
	for _, i := range others {
		by := m.above()
		if by == nil && len(out) > 0 {
			by = out[0]
		}
		if by != nil && by.Name.Namespace != i.Name.Namespace {
			m.bad(i, "spec.tls", "%s is a host of Ingress %s; a certificate for it has no effect here", m.name, by.Name)
			continue
		}
		out = append(out, i)
	}
	return out
}

// above returns the Ingress that owns the wildcard host above the host; nil for none.
func (m *merger) above() *model.Ingress {
	_, parent, ok := strings.Cut(m.name, ".")
	if !ok || strings.HasPrefix(m.name, "*.") {
		return nil
	}
	return m.p.routes(m.snap, "*."+parent)
}

// routes returns the oldest Ingress with a rule for the host; nil for none.
func (p *Planner) routes(snap model.Snapshot, host string) (by *model.Ingress) {
	for _, i := range p.claimants(snap, host) {
		if p.hasRule(snap, i, host) && p.options(snap, i).canary == nil && (by == nil || older(i, by) < 0) {
			by = i
		}
	}
	return by
}

// all returns the Ingresses that use a host, in order of age.
func (m *merger) all(host string) []*model.Ingress {
	out := m.p.claimants(m.snap, host)
	slices.SortFunc(out, older)
	return out
}

// rules returns the rules of the Ingress that route the host.
func (m *merger) rules(i *model.Ingress) (out []model.IngressRule) {
	x := m.p.options(m.snap, i).hosts.rules
	var at []int
	for _, host := range m.from {
		at = append(at, x[host]...)
	}
	slices.Sort(at)
	for _, n := range slices.Compact(at) {
		out = append(out, i.Rules[n])
	}
	return out
}

// shared reports to an Ingress that a host belongs to another namespace.
func (m *merger) shared(i *model.Ingress, r model.IngressRule) {
	if m.name == "" || !m.foreign(i) {
		return
	}
	field := fmtRule(r) + ".host"
	if m.isRefused(i) {
		m.bad(i, field, "%s is a host of Ingress %s, and each host belongs to one namespace "+
			"(ingress.hostsOfOneNamespace); the rule has no effect", m.name, m.by.Name)
		return
	}
	m.tell(i, model.Problem{Field: field, Event: ReasonShared, Reason: m.name + " is a host of Ingress " +
		m.by.Name.String() +
		": paths are added, and the certificate, redirections and the default backend of the host come from " +
		"that namespace"})
}

// isRefused reports whether the Ingress must not route the host.
func (m *merger) isRefused(i *model.Ingress) bool {
	return m.name != "" && m.foreign(i) && m.p.settings.HostsOfOneNamespace
}

func (m *merger) isAlias(i *model.Ingress) bool {
	return slices.Contains(m.p.options(m.snap, i).aliases, m.name)
}

func firstHost(i *model.Ingress) string {
	for _, r := range i.Rules {
		if r.Host != "" {
			return r.Host
		}
	}
	return ""
}
