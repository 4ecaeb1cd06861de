package ingress

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"wayleave.dev/model"
	"wayleave.dev/proxy/regex"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// merged is the merged configuration of one host, with the problems of its Ingresses.
type merged struct {
	host     *schema.Host // nil for nothing
	problems map[model.Name][]model.Problem
}

// place identifies a path: two Ingresses cannot share one.
type place struct {
	kind schema.PathKind
	path string
}

// merger merges one host.
type merger struct {
	p    *Planner
	snap model.Snapshot
	name string
	// claim holds the owner of the host, and the other Ingresses that route it.
	claim
	out *schema.Host
	// owner and at hold the Ingress of a path, and its index in out.Paths.
	owner map[place]*model.Ingress
	at    map[place]int
	// vacant are the paths whose owner has no Service; see isVacant.
	vacant map[place]bool
	// byDefault is the Ingress whose default backend serves the host; vacantDefault is vacant for it.
	byDefault     *model.Ingress
	vacantDefault bool
	// shut are Ingresses whose paths answer 503 on this host.
	shut     map[*model.Ingress]bool
	tls      bool // an Ingress of the owner's namespace has a certificate for it
	rsa      bool // the key of out.Certificate is one of RSA
	problems map[model.Name][]model.Problem
	// seen are the problems in problems, byField their indices.
	seen    map[model.Problem]bool
	byField map[problemField][]int
	// byIndex are the Ingresses of out.Paths, see isUnread.
	byIndex map[int]*model.Ingress
}

// problemField is a field of an Ingress with problems.
type problemField struct {
	of    model.Name
	field string
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
	m := &merger{p: p, snap: snap, name: name, out: &schema.Host{Name: name}, owner: map[place]*model.Ingress{},
		at: map[place]int{}, shut: map[*model.Ingress]bool{},
		vacant: map[place]bool{}, problems: map[model.Name][]model.Problem{}, seen: map[model.Problem]bool{},
		byField: map[problemField][]int{}}
	m.claim = m.claims()
	if m.by != nil {
		m.out.Namespace, m.out.Since = m.by.Name.Namespace, m.by.Created.Unix()
		m.out.OneNamespace = name != "" && p.settings.HostsOfOneNamespace
	}
	for _, i := range m.list {
		m.certificate(i)
		m.clientCert(i)
		m.out.Regex = m.out.Regex || !m.foreign(i) && m.asksForPatterns(i)
	}
	for _, i := range m.list {
		m.paths(i)
		m.fallback(i)
	}
	m.www()
	m.bound()
	for _, i := range m.canaries {
		m.canary(i)
	}
	m.passthrough()
	m.check()
	for n, list := range m.problems {
		m.problems[n] = slices.DeleteFunc(list, func(q model.Problem) bool { return q == model.Problem{} })
	}
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

// bound closes the patterns that exceed the bounds of the host or of their Ingress.
func (m *merger) bound() {
	over := table.CheckPatterns(m.out)
	for where, n := range m.at {
		if err, ok := over[n]; ok {
			p := &m.out.Paths[n]
			p.Closed, p.Backend = true, ""
			m.bad(m.owner[where], fieldOf(p)+".path", "%v; paths that begin with %s answer 503", err,
				regex.LiteralPrefix(p.Options.PathPattern))
		}
	}
}

// fieldOf returns the field of an Ingress that a path comes from.
func fieldOf(p *schema.Path) string {
	_, field, _ := strings.Cut(strings.TrimPrefix(p.Source, "Ingress "), " ")
	return field
}

// check parses the options as the proxy will, and closes a path with invalid ones.
func (m *merger) check() {
	for where, n := range m.at {
		if p := &m.out.Paths[n]; p.Options != nil && !p.Closed {
			if err := table.Prepare(p).Err; err != nil {
				m.bad(m.owner[where], fieldOf(p), "the proxy cannot parse this option and answers 503: %v", err)
			}
		}
	}
}

func (m *merger) bad(i *model.Ingress, field, format string, args ...any) {
	m.tell(i, model.Problem{Field: field, Reason: fmt.Sprintf(format, args...)})
}

func annotationField(name string) string { return "metadata.annotations[" + nginxPrefix + name + "]" }

func fmtRule(r model.IngressRule) string { return fmt.Sprintf("spec.rules[%d]", r.Index) }

func (m *merger) tell(i *model.Ingress, q model.Problem) {
	if m.p.unread[i.Name] {
		return // its Secrets are not known yet
	}
	q.Kind, q.Object = "Ingress", i.Name
	m.add(i, q)
}

// add adds a problem unless it is known.
func (m *merger) add(i *model.Ingress, q model.Problem) {
	if !m.seen[q] {
		m.seen[q] = true
		k := problemField{i.Name, q.Field}
		m.byField[k] = append(m.byField[k], len(m.problems[i.Name]))
		m.problems[i.Name] = append(m.problems[i.Name], q)
	}
}

// certificate applies the certificate of the Ingress to the host.
func (m *merger) certificate(i *model.Ingress) {
	if m.name == "" {
		return
	}
	for _, t := range m.tlsOf(i) {
		field := fmt.Sprintf("spec.tls[%d].secretName", t.Index)
		if m.foreign(i) {
			m.bad(i, field, "%s is a host of Ingress %s; only its namespace can set the certificate",
				m.name, m.by.Name)
			continue
		}
		m.tls = true
		if t.Secret == "" {
			continue // the default certificate is requested
		}
		key := model.Name{Namespace: i.Name.Namespace, Name: t.Secret}
		s, ok := secretOf(m.snap, key)
		switch {
		case !ok:
			m.bad(i, field, "Secret %s does not exist; the default certificate is used", key)
			continue
		case s.Chain == nil:
			m.bad(i, field, "Secret %s has no valid certificate; the default certificate is used: %s", key,
				cmp.Or(s.Wrong, "data[tls.crt] and data[tls.key] are missing"))
			continue
		case !model.Covers(s.Names, m.name):
			m.bad(i, field, "the certificate of Secret %s is for %s, not for %s, which gets the default "+
				"certificate", key,
				strings.Join(s.Names, ", "), m.name)
			continue
		}
		switch {
		case m.out.Certificate == "":
			m.out.Certificate, m.rsa = key.String(), s.RSA
		case key.String() == m.out.Certificate || key.String() == m.out.OtherCertificate:
		case m.out.OtherCertificate == "" && s.RSA != m.rsa:
			m.out.OtherCertificate = key.String()
		default:
			m.bad(i, field, "%s already has the certificate of Secret %s, which an older Ingress or entry names",
				m.name, m.sameKind(s.RSA))
			continue
		}
		if q := m.p.validity(s, i.Name, field); q != nil {
			m.add(i, *q)
		}
	}
}

// sameKind returns the key of the host's certificate with the same kind of key.
func (m *merger) sameKind(isRSA bool) string {
	if isRSA != m.rsa && m.out.OtherCertificate != "" {
		return m.out.OtherCertificate
	}
	return m.out.Certificate
}

// tlsOf returns the entries of the Ingress for the host: those that name it, otherwise those that name a wildcard
// above it, otherwise those without hosts whose certificate is for it.
func (m *merger) tlsOf(i *model.Ingress) []model.IngressTLS {
	x := m.p.options(m.snap, i).hosts
	at := x.tls[m.name]
	if _, parent, ok := strings.Cut(m.name, "."); ok && len(at) == 0 && !strings.HasPrefix(m.name, "*.") {
		at = x.tls["*."+parent]
	}
	if len(at) > 0 {
		return entries(i, at)
	}
	if at = x.open; m.isAlias(i) {
		at = nil
		for n := range i.TLS {
			at = append(at, n)
		}
	}
	var open []model.IngressTLS
	for _, t := range entries(i, at) {
		if s, ok := secretOf(m.snap, model.Name{Namespace: i.Name.Namespace, Name: t.Secret}); ok &&
			model.Covers(s.Names, m.name) {
			open = append(open, t)
		} else if len(t.Hosts) == 0 && (t.Secret == "" || !ok || s.Chain == nil) {
			open = append(open, t)
		}
	}
	return open
}

// entries returns those of spec.tls at the indices.
func entries(i *model.Ingress, at []int) (out []model.IngressTLS) {
	for _, n := range at {
		out = append(out, i.TLS[n])
	}
	return out
}

// paths adds the paths of the Ingress that no older one has.
func (m *merger) paths(i *model.Ingress) {
	o := m.p.options(m.snap, i)
	rules := m.rules(i)
	for _, r := range rules {
		if m.shared(i, r); m.isRefused(i) {
			continue
		}
		for _, in := range r.Paths {
			at := fmt.Sprintf("spec.rules[%d].http.paths[%d]", r.Index, in.Index)
			p, where, ok := m.path(i, o, in, at)
			if !ok {
				continue
			}
			vacant := m.isVacant(i, &p, in.Backend)
			if by, taken := m.owner[where]; taken {
				if !m.succeeds(i, where, &p) {
					m.contest(i, by, at, &p)
					continue
				}
				m.leave(by, i, where)
				m.out.Paths[m.at[where]] = p
			} else {
				m.at[where], m.out.Paths = len(m.out.Paths), append(m.out.Paths, p)
			}
			m.owner[where], m.vacant[where] = i, vacant
		}
	}
	if o.appRoot == "" || len(rules) == 0 {
		return
	}
	where := place{kind: schema.Exact, path: "/"}
	if m.foreign(i) {
		m.bad(i, annotationField("app-root"), "%s is a host of Ingress %s; only its namespace can redirect /",
			m.hostText(), m.by.Name)
	} else if _, taken := m.owner[where]; !taken {
		m.owner[where], m.at[where] = i, len(m.out.Paths)
		m.out.Paths = append(m.out.Paths, schema.Path{Kind: schema.Exact, Path: "/",
			Closed:  o.closed != "" || m.shut[i],
			Source:  fmt.Sprintf("Ingress %s app-root", i.Name),
			Options: &schema.Options{Redirect: o.appRoot, RedirectCode: 302, RedirectTLS: m.redirect(o, "/")}})
	}
}

// asksForPatterns reports whether the Ingress makes all paths of the host regular expressions, as in ingress-nginx:
// by use-regex, or by a rewrite-target that differs from the path.
func (m *merger) asksForPatterns(i *model.Ingress) bool {
	o := m.p.options(m.snap, i)
	for _, r := range m.rules(i) {
		for _, in := range r.Paths {
			if o.useRegex || o.rewrites(in) {
				return true
			}
		}
	}
	return false
}

// rewrites reports whether rewrite-target changes requests for a path: ingress-nginx does not rewrite a path to
// itself. It compares a Prefix with a slash at its end.
func (o *options) rewrites(in model.IngressPath) bool {
	return o.target != "" && (o.target != in.Path || in.Type != model.PathExact && in.Path != "/")
}

// contest reports to the Ingress that a path of it belongs to another one.
func (m *merger) contest(i, by *model.Ingress, at string, p *schema.Path) {
	if by == i {
		m.bad(i, at, "%s is a duplicate for %s; the first is served", p.Path, m.hostText())
		return
	}
	text := ""
	if p.Guarded() {
		text = "; the guard of this path has no effect there"
	}
	m.bad(i, at, "%s%s belongs to Ingress %s, which is older%s", m.hostText(), p.Path, by.Name, text)
}

func (m *merger) hostText() string {
	if m.name == "" {
		return "(any host)"
	}
	return m.name
}

// redirect returns the status for plain requests to a path, 0 for serving them. ACME challenges use plain HTTP, as
// with ingress-nginx's no-tls-redirect-locations.
func (m *merger) redirect(o *options, path string) int {
	if strings.HasPrefix(path, schema.ChallengePrefix) {
		return 0
	}
	if o.forceTLS || m.tls && !o.keepPlain {
		return 308
	}
	return 0
}

// path converts one path.
func (m *merger) path(i *model.Ingress, o *options, in model.IngressPath, at string) (schema.Path, place, bool) {
	p := schema.Path{Kind: schema.Prefix, Path: in.Path, Closed: o.closed != "" || m.shut[i], Foreign: m.foreign(i),
		Source: fmt.Sprintf("Ingress %s %s", i.Name, at)}
	if in.Type == model.PathExact {
		p.Kind = schema.Exact
	}
	opts := o.table
	p.Options = &opts
	if !o.rewrites(in) {
		opts.RewriteTarget = ""
		if opts.RedirectQuery {
			opts.Redirect, opts.RedirectCode, opts.RedirectQuery = "", 0, false
		}
	}
	if !m.setPath(&p, i, o, in, at+".path") {
		return p, place{}, false
	}
	opts.RedirectTLS = m.redirect(o, p.Path)
	if o.globalAuth && strings.HasPrefix(p.Path, schema.ChallengePrefix) && opts.PathPattern == "" {
		opts.AuthURL = nil // as with ingress-nginx's no-auth-locations
	}
	cookies := in.Path
	if opts.PathPattern != "" {
		cookies = "/"
	}
	complete(&opts, cookies, model.Name{Namespace: i.Name.Namespace, Name: in.Backend.Service})
	if opts.Errors != nil {
		e := *opts.Errors
		e.Service, e.Port = in.Backend.Service, cmp.Or(in.Backend.PortName, strconv.Itoa(int(in.Backend.Port)))
		opts.Errors = &e
	}
	if !p.Closed {
		p.Backend = m.backend(i, at+".backend.service", in.Backend, &opts)
	}
	if opts.IsZero() {
		p.Options = nil
	}
	return p, placeOf(&p), true
}

// setPath sets what requests are compared with. It returns false if the path is ignored.
func (m *merger) setPath(p *schema.Path, i *model.Ingress, o *options, in model.IngressPath, field string) bool {
	if m.isPattern(o, in) {
		p.Options.PathPattern = decodedPattern(in.Path)
		if err := checkPattern(p.Options.PathPattern); err != nil && !p.Guarded() {
			m.bad(i, field, "%v; the path is ignored", err)
			return false
		} else if err != nil {
			p.Closed = true
			m.bad(i, field, "%v; it has a guard, so paths that begin with %s answer 503", err,
				regex.LiteralPrefix(in.Path))
		}
	} else if clean, ok := table.Clean([]byte(in.Path), nil); ok {
		p.Path = string(clean) // normalized like the path of a request
	} else {
		m.bad(i, field, "%q has an invalid escape or leaves the root; no request has this path", in.Path)
	}
	if p.Foreign && strings.HasPrefix(p.Path, schema.ChallengePrefix) {
		m.bad(i, field,
			"%s is a host of Ingress %s; only its namespace can answer ACME challenges; the path is ignored",
			m.hostText(), m.by.Name)
		return false
	}
	return true
}

// complete sets options that depend on the path: the path of session cookies, and the name in endpoints'
// certificates.
func complete(opts *schema.Options, cookies string, service model.Name) {
	if opts.Affinity != nil && opts.Affinity.Path == "" {
		a := *opts.Affinity
		a.Path = cookies
		opts.Affinity = &a
	}
	if t := opts.TLS; t != nil && t.Name == "" {
		named := *t
		named.Name = service.Name + "." + service.Namespace + ".svc"
		opts.TLS = &named
	}
}

// isPattern reports whether a path is a regular expression. On a host with patterns, a path of type
// ImplementationSpecific is one if it contains special characters.
func (m *merger) isPattern(o *options, in model.IngressPath) bool {
	asked := o.regex || m.out.Regex && in.Type == model.PathImplementationSpecific
	return asked && in.Type != model.PathExact && hasPattern(in.Path, o.target)
}

func placeOf(p *schema.Path) place {
	where := place{p.Kind, p.Path}
	if p.Kind == schema.Prefix && !hasPattern(p.Path, "") {
		where.path = strings.TrimRight(p.Path, "/")
	}
	return where
}

// backend returns the key of a path's backend, empty if it answers 503.
func (m *merger) backend(i *model.Ingress, field string, b model.IngressBackend, o *schema.Options) string {
	key, why := resolve(m.snap, i.Name.Namespace, b)
	if why != "" && o.Redirect == "" {
		m.bad(i, field, "%s; the path answers 503", why)
	}
	if key != "" && m.p.options(m.snap, i).virtual {
		return m.virtual(i, key)
	}
	return key
}

// fallback applies the Ingress's default backend to requests that match no path.
func (m *merger) fallback(i *model.Ingress) {
	if i.Default == nil {
		return
	}
	if len(i.Rules) > 0 && len(m.rules(i)) == 0 || m.isRefused(i) {
		return // the host is another Ingress's, or this one has only its certificate
	}
	if m.name != "" && m.foreign(i) {
		m.bad(i, "spec.defaultBackend", "%s is a host of Ingress %s; only its namespace can set the default backend",
			m.name, m.by.Name)
		return
	}
	if by := m.byDefault; by != nil && m.succeedsDefault(i) {
		m.told(by, "spec.defaultBackend.service",
			"the Service does not exist; Ingress %s serves other paths of %s in its place",
			i.Name, m.hostText())
	} else if by != nil {
		m.bad(i, "spec.defaultBackend", "the default backend of %s is that of Ingress %s, which is older",
			m.hostText(), m.byDefault.Name)
		return
	}
	m.byDefault = i
	o := m.p.options(m.snap, i)
	opts := o.table
	opts.RedirectTLS = m.redirect(o, "/")
	complete(&opts, "/", model.Name{Namespace: i.Name.Namespace, Name: i.Default.Service})
	opts.RewriteTarget = "" // there is no path that it could replace
	d := &schema.Path{Kind: schema.Prefix, Path: "/", Closed: o.closed != "" || m.shut[i],
		Source: fmt.Sprintf("Ingress %s spec.defaultBackend", i.Name)}
	if !d.Closed {
		d.Backend = m.backend(i, "spec.defaultBackend.service", *i.Default, &opts)
	}
	if !opts.IsZero() {
		d.Options = &opts
	}
	m.out.Default, m.vacantDefault = d, m.isVacant(i, d, *i.Default)
}

// canary adds the backends of a canary Ingress to their main paths.
func (m *merger) canary(i *model.Ingress) {
	o := m.p.options(m.snap, i)
	for _, r := range m.rules(i) {
		for _, in := range r.Paths {
			at := fmt.Sprintf("spec.rules[%d].http.paths[%d]", r.Index, in.Index)
			n, ok := m.mainOf(i, o, in, at)
			if !ok {
				continue
			}
			switch main := &m.out.Paths[n]; {
			case main.Closed && m.isUnread(n):
				continue
			case main.Closed:
				m.bad(i, at, "is a canary of a closed path and gets no requests: %s%s", m.hostText(), in.Path)
				continue
			case o.closed != "" || !guardedAlike(&o.table, main.Options), o.clientCert != nil &&
				(m.out.ClientCert == nil || *m.out.ClientCert != *o.clientCert):
				m.bad(i, at, "has a guard that its main path lacks: %s%s; the "+
					"canary gets no requests", m.hostText(), in.Path)
				continue
			}
			key, why := resolve(m.snap, i.Name.Namespace, in.Backend)
			if key == "" {
				if why != "" {
					m.bad(i, at+".backend.service", "%s; the canary gets no requests", why)
				}
				continue
			}
			if main := m.out.Paths[n].Options; main != nil && len(main.Canary) >= table.MaxCanaries {
				m.bad(i, at, "exceeds %d canaries and gets no requests: %s%s", table.MaxCanaries,
					m.hostText(), in.Path)
				continue
			}
			c := *o.canary
			c.Backend, c.Source = key, fmt.Sprintf("Ingress %s %s", i.Name, at)
			var opts schema.Options
			if old := m.out.Paths[n].Options; old != nil {
				opts = *old
			}
			opts.Canary = append(slices.Clone(opts.Canary), c)
			m.out.Paths[n].Options = &opts
		}
	}
	if len(i.Rules) == 0 {
		m.bad(i, "spec.rules", "is empty: a canary needs paths")
	}
}

// isUnread reports whether a path, by its index in out.Paths, is closed only until Secrets are read.
func (m *merger) isUnread(n int) bool {
	if m.byIndex == nil { // paths are complete before canaries
		m.byIndex = make(map[int]*model.Ingress, len(m.at))
		for where, at := range m.at {
			m.byIndex[at] = m.owner[where]
		}
	}
	by := m.byIndex[n]
	return by != nil && m.p.unread[by.Name]
}

// mainOf finds the main path of a canary's path, by its index in out.Paths.
func (m *merger) mainOf(i *model.Ingress, o *options, in model.IngressPath, at string) (int, bool) {
	p := schema.Path{Kind: schema.Prefix, Path: in.Path}
	if in.Type == model.PathExact {
		p.Kind = schema.Exact
	}
	if clean, ok := table.Clean([]byte(in.Path), nil); ok && !m.isPattern(o, in) {
		p.Path = string(clean)
	}
	if n, found := m.at[placeOf(&p)]; found {
		if by := m.owner[placeOf(&p)]; by.Name.Namespace != i.Name.Namespace {
			m.bad(i, at, "is a canary of Ingress %s, which is in another namespace", by.Name)
			return 0, false
		}
		return n, true
	}
	m.bad(i, at, "is a canary of a path that no other Ingress has: %s%s", m.hostText(), in.Path)
	return 0, false
}

// guardedAlike reports whether the options of a canary deny no request that those of the main path allow: the main
// path's apply.
func guardedAlike(canary, main *schema.Options) bool {
	if !(&schema.Path{Options: canary}).Guarded() {
		return true
	}
	return main != nil && reflect.DeepEqual(canary.Sources, main.Sources) && reflect.DeepEqual(canary.Denied,
		main.Denied) && canary.AnyOf == main.AnyOf &&
		reflect.DeepEqual(canary.Auth, main.Auth) && reflect.DeepEqual(canary.AuthURL, main.AuthURL)
}
