package ingress

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"wayleave.dev/model"
	"wayleave.dev/proxy/table"
)

// merged is what all Ingresses say of one host, and what each must be told.
type merged struct {
	host     *table.Host // nil for nothing
	problems map[model.Name][]model.Problem
}

// place is where a path is: two Ingresses cannot have one.
type place struct {
	kind table.PathKind
	path string
	// pattern paths are told apart from others of the same text.
	pattern bool
}

// merger merges one host.
type merger struct {
	p    *Planner
	snap model.Snapshot
	name string
	// aliasOf is the host that the name is an alias of; empty for a host of its own.
	aliasOf string
	out     *table.Host
	// owner and at are who has a place, and its index in out.Paths.
	owner map[place]*model.Ingress
	at    map[place]int
	// byDefault is whose default backend serves the host.
	byDefault *model.Ingress
	tls       bool // some Ingress has a certificate for it
	problems  map[model.Name][]model.Problem
}

// older orders Ingresses by age, then by name.
func older(a, b *model.Ingress) int {
	return cmp.Or(a.Created.Compare(b.Created), a.Name.Compare(b.Name))
}

// merge plans a host.
func (p *Planner) merge(snap model.Snapshot, name string) *merged {
	if m, ok := p.merges[name]; ok {
		return m
	}
	m := &merger{p: p, snap: snap, name: name, out: &table.Host{Name: name}, owner: map[place]*model.Ingress{}, at: map[place]int{}, problems: map[model.Name][]model.Problem{}}
	list, canaries := m.parties()
	for _, i := range list {
		m.certificate(i)
	}
	for _, i := range list {
		m.paths(i)
		m.fallback(i)
	}
	for _, i := range canaries {
		m.canary(i)
	}
	m.check()
	r := &merged{problems: m.problems}
	if name == "" && m.out.Certificate == "" {
		m.out.Certificate = p.defaultCertificate(snap)
	}
	if len(m.out.Paths) > 0 || m.out.Default != nil || m.out.Certificate != "" {
		r.host = m.out
	}
	p.merges[name] = r
	return r
}

// check reads the options as the proxy will, which closes a path that has some that it
// cannot read.
func (m *merger) check() {
	for where, n := range m.at {
		if p := &m.out.Paths[n]; p.Options != nil {
			if err := table.Prepare(p).Err; err != nil {
				_, field, _ := strings.Cut(strings.TrimPrefix(p.Source, "Ingress "), " ")
				m.bad(m.owner[where], field, "the proxy cannot read what is asked for, and answers 500: %v", err)
			}
		}
	}
}

func (m *merger) bad(i *model.Ingress, field, format string, args ...any) {
	q := model.Problem{Kind: "Ingress", Object: i.Name, Field: field, Reason: fmt.Sprintf(format, args...)}
	if !slices.Contains(m.problems[i.Name], q) {
		m.problems[i.Name] = append(m.problems[i.Name], q)
	}
}

// parties are the Ingresses that have a say about the host, in order of age, and apart from
// them canaries. Who has the host only as an alias has none where a rule names it.
func (m *merger) parties() (list, canaries []*model.Ingress) {
	var rules, aliases, others []*model.Ingress
	for _, i := range m.all(m.name) {
		switch {
		case m.p.options(m.snap, i).canary != nil:
			canaries = append(canaries, i)
		case m.names(i):
			rules = append(rules, i)
		case m.isAlias(i):
			aliases = append(aliases, i)
		default:
			others = append(others, i)
		}
	}
	switch {
	case len(rules) > 0:
		list = rules
	case len(aliases) > 0:
		list, aliases = aliases[:1], aliases[1:]
		m.aliasOf = firstHost(list[0])
		for _, i := range m.all(m.aliasOf) {
			if m.p.options(m.snap, i).canary != nil {
				canaries = append(canaries, i)
			}
		}
	default:
		return others, canaries
	}
	for _, i := range aliases {
		m.bad(i, "metadata.annotations["+nginxPrefix+"server-alias]", "%s is a host of Ingress %s, which keeps it", m.name, list[0].Name)
	}
	for _, i := range others {
		m.bad(i, "spec.tls", "%s is a host of Ingress %s; a certificate for it has no effect here", m.name, list[0].Name)
	}
	return list, canaries
}

// all are the Ingresses that touch a host, in order of age.
func (m *merger) all(host string) (out []*model.Ingress) {
	for n := range m.p.hosts[host] {
		out = append(out, m.p.ours[n])
	}
	slices.SortFunc(out, older)
	return out
}

// names says whether the Ingress routes the host by its own name.
func (m *merger) names(i *model.Ingress) bool {
	if m.name == "" && len(i.Rules) == 0 {
		return true
	}
	return slices.ContainsFunc(i.Rules, func(r model.IngressRule) bool { return r.Host == m.name })
}

// rules are those of the Ingress for the host. For an alias they are those of the host that
// it is one of.
func (m *merger) rules(i *model.Ingress) (out []model.IngressRule) {
	host := m.name
	if m.aliasOf != "" {
		host = m.aliasOf
	}
	for _, r := range i.Rules {
		if r.Host == host {
			out = append(out, r)
		}
	}
	return out
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

// certificate takes that of the Ingress for the host.
func (m *merger) certificate(i *model.Ingress) {
	if m.name == "" {
		return
	}
	for _, t := range m.tlsOf(i) {
		field := fmt.Sprintf("spec.tls[%d].secretName", t.Index)
		m.tls = true
		if t.Secret == "" {
			continue // the default certificate is meant
		}
		key := model.Name{Namespace: i.Name.Namespace, Name: t.Secret}
		s, ok := secretOf(m.snap, key)
		switch {
		case !ok:
			m.bad(i, field, "Secret %s does not exist; the default certificate is used", key)
			continue
		case s.Chain == nil:
			m.bad(i, field, "Secret %s has no certificate; the default one is used: %s", key, cmp.Or(s.Wrong, "data[tls.crt] and data[tls.key] are missing"))
			continue
		case !model.Covers(s.Names, m.name):
			m.bad(i, field, "the certificate of Secret %s is for %s, not for %s, which gets the default one", key, strings.Join(s.Names, ", "), m.name)
			continue
		}
		if m.out.Certificate != "" && m.out.Certificate != key.String() {
			m.bad(i, field, "%s has the certificate of Secret %s already, which an older Ingress names", m.name, m.out.Certificate)
			continue
		}
		m.out.Certificate = key.String()
		if q := m.p.validity(s, i.Name, field); q != nil && !slices.Contains(m.problems[i.Name], *q) {
			m.problems[i.Name] = append(m.problems[i.Name], *q)
		}
	}
}

// tlsOf are the entries of the Ingress for the host: those that name it, else those that
// name a wildcard above it, else those that name no host and whose certificate is for it.
func (m *merger) tlsOf(i *model.Ingress) []model.IngressTLS {
	var exact, wild, open []model.IngressTLS
	for _, t := range i.TLS {
		switch {
		case slices.Contains(t.Hosts, m.name):
			exact = append(exact, t)
		case model.Covers(t.Hosts, m.name):
			wild = append(wild, t)
		case len(t.Hosts) == 0 || m.isAlias(i):
			if s, ok := secretOf(m.snap, model.Name{Namespace: i.Name.Namespace, Name: t.Secret}); ok && model.Covers(s.Names, m.name) {
				open = append(open, t)
			} else if len(t.Hosts) == 0 && (t.Secret == "" || !ok || s.Chain == nil) {
				open = append(open, t)
			}
		}
	}
	switch {
	case len(exact) > 0:
		return exact
	case len(wild) > 0:
		return wild
	}
	return open
}

// paths adds those of the Ingress that nobody has yet.
func (m *merger) paths(i *model.Ingress) {
	o := m.p.options(m.snap, i)
	rules := m.rules(i)
	for _, r := range rules {
		for _, in := range r.Paths {
			at := fmt.Sprintf("spec.rules[%d].http.paths[%d]", r.Index, in.Index)
			p, where, ok := m.path(i, o, in, at)
			if !ok {
				continue
			}
			if by, taken := m.owner[where]; taken {
				if by == i {
					m.bad(i, at, "%s is there twice for %s; the first is served", in.Path, m.hostText())
				} else {
					m.bad(i, at, "%s%s belongs to Ingress %s, which is older", m.hostText(), in.Path, by.Name)
				}
				continue
			}
			m.owner[where], m.at[where] = i, len(m.out.Paths)
			m.out.Paths = append(m.out.Paths, p)
		}
	}
	where := place{kind: table.Exact, path: "/"}
	if _, taken := m.owner[where]; o.appRoot != "" && len(rules) > 0 && !taken {
		m.owner[where], m.at[where] = i, len(m.out.Paths)
		m.out.Paths = append(m.out.Paths, table.Path{Kind: table.Exact, Path: "/", Source: fmt.Sprintf("Ingress %s app-root", i.Name),
			Options: &table.Options{Redirect: o.appRoot, RedirectCode: 302, RedirectTLS: m.redirect(o)}})
	}
}

func (m *merger) hostText() string {
	if m.name == "" {
		return "(any host)"
	}
	return m.name
}

// redirect is the status for plain requests, 0 for serving them.
func (m *merger) redirect(o *options) int {
	if o.forceTLS || m.tls && !o.keepPlain {
		return 308
	}
	return 0
}

// path makes one path.
func (m *merger) path(i *model.Ingress, o *options, in model.IngressPath, at string) (table.Path, place, bool) {
	p := table.Path{Kind: table.Prefix, Path: in.Path, Source: fmt.Sprintf("Ingress %s %s", i.Name, at)}
	if in.Type == model.PathExact {
		p.Kind = table.Exact
	}
	opts := o.table
	if o.regex && in.Type != model.PathExact && hasPattern(in.Path, opts.RewriteTarget) {
		if err := checkPattern(in.Path); err != nil {
			m.bad(i, at+".path", "%v", err)
			return p, place{}, false
		}
		opts.PathPattern = in.Path
	}
	opts.RedirectTLS = m.redirect(o)
	if opts.Affinity != nil && opts.Affinity.Path == "" {
		a := *opts.Affinity
		if a.Path = in.Path; opts.PathPattern != "" {
			a.Path = "/"
		}
		opts.Affinity = &a
	}
	p.Backend = m.backend(i, at+".backend.service", in.Backend, o)
	if !opts.IsZero() {
		p.Options = &opts
	}
	where := place{p.Kind, p.Path, opts.PathPattern != ""}
	if p.Kind == table.Prefix && !where.pattern {
		where.path = strings.TrimRight(p.Path, "/")
	}
	return p, where, true
}

// backend is the key of a path's, empty when it answers 503.
func (m *merger) backend(i *model.Ingress, field string, b model.IngressBackend, o *options) string {
	if o.closed != "" {
		return ""
	}
	key, why := resolve(m.snap, i.Name.Namespace, b)
	if why != "" && o.table.Redirect == "" {
		m.bad(i, field, "%s; the path answers 503", why)
	}
	return key
}

// fallback takes the Ingress's default backend for what no path has.
func (m *merger) fallback(i *model.Ingress) {
	if i.Default == nil {
		return
	}
	if len(i.Rules) > 0 && len(m.rules(i)) == 0 {
		return // the host is another's, or only a certificate's
	}
	if m.byDefault != nil {
		m.bad(i, "spec.defaultBackend", "what no path of %s has goes to that of Ingress %s, which is older", m.hostText(), m.byDefault.Name)
		return
	}
	m.byDefault = i
	o := m.p.options(m.snap, i)
	opts := o.table
	opts.RedirectTLS = m.redirect(o)
	if opts.Affinity != nil && opts.Affinity.Path == "" {
		a := *opts.Affinity
		a.Path = "/"
		opts.Affinity = &a
	}
	opts.RewriteTarget = "" // there is no path that it could take the place of
	d := &table.Path{Kind: table.Prefix, Path: "/", Backend: m.backend(i, "spec.defaultBackend.service", *i.Default, o), Source: fmt.Sprintf("Ingress %s spec.defaultBackend", i.Name)}
	if !opts.IsZero() {
		d.Options = &opts
	}
	m.out.Default = d
}

// canary adds the backends of a canary Ingress to the paths that it is a part of.
func (m *merger) canary(i *model.Ingress) {
	o := m.p.options(m.snap, i)
	for _, r := range m.rules(i) {
		for _, in := range r.Paths {
			at := fmt.Sprintf("spec.rules[%d].http.paths[%d]", r.Index, in.Index)
			_, where, ok := m.path(i, &options{table: o.table, regex: o.regex, closed: "canary"}, in, at)
			if !ok {
				continue
			}
			n, found := m.at[where]
			if !found { // the main path may be a pattern where the canary's is none
				where.pattern = !where.pattern
				where.path = in.Path
				n, found = m.at[where]
			}
			switch {
			case !found:
				m.bad(i, at, "is a canary of a path that no other Ingress has: %s%s", m.hostText(), in.Path)
				continue
			case m.owner[where].Name.Namespace != i.Name.Namespace:
				m.bad(i, at, "is a canary of Ingress %s, which is in another namespace", m.owner[where].Name)
				continue
			}
			key, why := resolve(m.snap, i.Name.Namespace, in.Backend)
			if key == "" {
				if why != "" {
					m.bad(i, at+".backend.service", "%s; the canary takes nothing", why)
				}
				continue
			}
			c := *o.canary
			c.Backend, c.Source = key, fmt.Sprintf("Ingress %s %s", i.Name, at)
			var opts table.Options
			if old := m.out.Paths[n].Options; old != nil {
				opts = *old
			}
			opts.Canary = append(slices.Clone(opts.Canary), c)
			m.out.Paths[n].Options = &opts
		}
	}
	if len(i.Rules) == 0 {
		m.bad(i, "spec.rules", "is empty: a canary is of paths")
	}
}
