package ingress

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
)

// Kinds are the kinds that plans are made from.
const Kinds = model.IngressKind | model.IngressClassKind | NamedKinds | model.ServiceKind |
	model.EndpointSliceKind | model.NamespaceKind

// NamedKinds are the kinds of objects that Ingresses name and that are read by name.
const NamedKinds = model.SecretKind | model.ConfigMapKind

// Reference is a Secret or ConfigMap that an Ingress names.
type Reference struct {
	Kind model.Kind
	Name model.Name
}

// isRead reports whether the object was read, or is known to be missing.
func (n Reference) isRead(snap model.Snapshot) (ok bool) {
	if n.Kind == model.ConfigMapKind {
		_, ok = snap.ConfigMap(n.Name)
		return ok
	}
	_, ok = snap.Secret(n.Name)
	return ok
}

// Planner plans hosts, backends and certificates. It follows which Ingress touches what, so it works in rounds: see
// reconcile.Planner.
type Planner struct {
	settings Settings
	// Waits makes an Ingress wait for the Secrets and ConfigMaps that it names: until they have been read, or are known
	// to be missing, its previous version stays active. The paths of a new Ingress are closed: ownership does not
	// depend on when an object is read. Without Waits an object that is not in the model is missing. Set it before the
	// first Keys.
	Waits   bool
	waiting map[Reference]map[model.Name]bool // Ingresses by what they wait for
	// unread are active Ingresses that name an object that has not been read yet.
	unread map[model.Name]bool
	// ours are the active Ingresses.
	ours    map[model.Name]*model.Ingress
	touched map[model.Name]*touched
	// Users of objects: names of Ingresses by host, Service, and Secret or ConfigMap.
	hosts    map[string]map[model.Name]bool
	services map[model.Name]map[model.Name]bool
	named    map[Reference]map[model.Name]bool
	// below are the hosts in hosts directly below a name, by that name with a dot in front.
	below map[string]map[string]bool
	// shapes hold what paths depend on of the Services in use; endpoints are not part of it.
	shapes map[model.Name]string
	// ports are the requested backends, by Service.
	ports map[model.Name]map[portKey]bool
	// leaving are the namespaces that are being deleted.
	leaving map[string]bool

	now func() time.Time
	// due is when the state of each certificate changes next, nextDue the first of them or
	// when to look again.
	due     map[model.Name]time.Time
	nextDue time.Time
	slept   chan time.Time
	wake    chan struct{}

	// State of the current round.
	merges map[string]*merged
	parsed map[model.Name]*options
}

// touched lists what one Ingress uses.
type touched struct {
	hosts    []string
	services []model.Name
	named    []Reference
	// backends are the backends of each of services.
	backends map[model.Name][]model.IngressBackend
	// aliases are the aliases of the first host.
	first   string
	aliases []string
}

// NewPlanner returns an empty planner.
func NewPlanner(s Settings) *Planner {
	return &Planner{settings: s, waiting: map[Reference]map[model.Name]bool{}, unread: map[model.Name]bool{},
		ours: map[model.Name]*model.Ingress{}, touched: map[model.Name]*touched{},
		hosts:    map[string]map[model.Name]bool{},
		services: map[model.Name]map[model.Name]bool{}, named: map[Reference]map[model.Name]bool{},
		below:  map[string]map[string]bool{},
		shapes: map[model.Name]string{}, ports: map[model.Name]map[portKey]bool{}, leaving: map[string]bool{},
		now: time.Now, due: map[model.Name]time.Time{}, slept: make(chan time.Time, 1), wake: make(chan struct{}, 1)}
}

// round collects the keys of one round.
type round struct {
	p    *Planner
	snap model.Snapshot
	keys map[Key]bool
}

// Keys returns the plans that a change concerns.
func (p *Planner) Keys(snap model.Snapshot, c model.Changes) []Key {
	p.merges, p.parsed = map[string]*merged{}, map[model.Name]*options{}
	r := &round{p, snap, map[Key]bool{}}
	r.namespaces(c.Of(model.NamespaceKind))
	changed := c.Of(model.IngressKind)
	if c.Any(model.IngressClassKind) {
		changed = maps.Clone(changed)
		if changed == nil {
			changed = map[model.Name]struct{}{}
		}
		for i := range snap.Ingresses() {
			if _, was := p.touched[i.Name]; was != p.settings.Ours(snap, i) {
				changed[i.Name] = struct{}{}
			}
		}
	}
	for n := range changed {
		r.ingress(n)
	}
	for n := range c.Of(model.SecretKind) {
		r.secret(n)
	}
	for n := range c.Of(model.ConfigMapKind) {
		r.named(Reference{model.ConfigMapKind, n})
	}
	for n := range c.Of(model.ServiceKind) {
		r.service(n)
	}
	r.expire(c.Of(model.SecretKind))
	out := make([]Key, 0, len(r.keys))
	for k := range r.keys {
		out = append(out, k)
	}
	return out
}

// ingress records a changed Ingress, and touches what it had and has.
func (r *round) ingress(n model.Name) {
	var now *touched
	for s := range r.p.waiting { // few: Ingresses wait only for a moment
		unlink(r.p.waiting, s, n)
	}
	i, ok := r.snap.Ingress(n)
	ok = ok && r.p.settings.Ours(r.snap, i)
	waits := ok && !r.p.isLeaving(i) && r.waits(i)
	if _, was := r.p.ours[n]; waits && was && !r.p.unread[n] {
		return
	}
	delete(r.p.parsed, n)
	if delete(r.p.unread, n); waits {
		r.p.unread[n] = true
	}
	if delete(r.p.ours, n); ok {
		r.p.ours[n] = i
		now = r.p.look(r.snap, i)
	}
	old := r.p.touched[n]
	r.p.unlink(n, old)
	r.p.link(n, now)
	if now != nil {
		for _, s := range now.services {
			r.p.shapes[s] = shapeOf(r.snap, s)
		}
	}
	r.keys[Key{ObjectKey, n.String()}] = true
	for _, t := range []*touched{old, now} {
		if t == nil {
			continue
		}
		for _, h := range t.hosts {
			r.host(h)
		}
		for _, s := range t.services {
			r.backends(s)
		}
		for _, s := range t.named {
			if s.Kind == model.SecretKind {
				r.keys[Key{CertificateKey, s.Name.String()}] = true
			}
		}
	}
}

// waits reports whether an object that the Ingress names has not been read yet, and records which.
func (r *round) waits(i *model.Ingress) (yes bool) {
	if !r.p.Waits {
		return false
	}
	for _, s := range named(i) {
		if !s.isRead(r.snap) {
			link(r.p.waiting, s, i.Name)
			yes = true
		}
	}
	return yes
}

// secretOf returns an existing Secret.
func secretOf(snap model.Snapshot, n model.Name) (*model.Secret, bool) {
	s, ok := snap.Secret(n)
	return s, ok && !s.Missing
}

// host marks a host and all Ingresses with problems about it.
func (r *round) host(h string) {
	if k := (Key{HostKey, h}); !r.keys[k] {
		r.keys[k] = true
		for n := range r.p.hosts[h] {
			r.keys[Key{ObjectKey, n.String()}] = true
			if t := r.p.touched[n]; t.first == h { // canaries of the host are those of its aliases
				for _, a := range t.aliases {
					r.host(a)
				}
			}
		}
		if other := otherName(h); len(r.p.hosts[other]) > 0 { // it may redirect to this one
			r.host(other)
		}
		if parent, ok := strings.CutPrefix(h, "*"); ok { // its owner matters for hosts below it
			for below := range r.p.below[parent] {
				r.host(below)
			}
		}
	}
}

func (r *round) secret(n model.Name) {
	r.keys[Key{CertificateKey, n.String()}] = true
	if n == r.p.settings.DefaultCertificate {
		r.host("")
	}
	r.named(Reference{model.SecretKind, n})
}

// named marks what depends on an object that Ingresses name.
func (r *round) named(n Reference) {
	r.again(r.p.named[n])
	waiting := r.p.waiting[n]
	delete(r.p.waiting, n)
	for i := range waiting {
		r.ingress(i)
	}
}

// again marks all hosts of Ingresses.
func (r *round) again(ingresses map[model.Name]bool) {
	for n := range ingresses {
		r.keys[Key{ObjectKey, n.String()}] = true
		for _, h := range r.p.touched[n].hosts {
			r.host(h)
		}
	}
}

// service marks the backends of a Service, and its paths if more than endpoints changed.
func (r *round) service(n model.Name) {
	users, used := r.p.services[n]
	if !used {
		return
	}
	if shape := shapeOf(r.snap, n); shape != r.p.shapes[n] {
		r.p.shapes[n] = shape
		r.again(users)
	}
	r.backends(n)
}

// backends marks the present and former backends of a Service.
func (r *round) backends(service model.Name) {
	for number := range r.p.ports[service] {
		r.keys[Key{BackendKey, number.of(service)}] = true
	}
	now := r.p.asked(r.snap, service)
	for number := range now {
		r.keys[Key{BackendKey, number.of(service)}] = true
	}
	if r.p.ports[service] = now; len(now) == 0 {
		delete(r.p.ports, service)
	}
}

// asked returns the ports of a Service that paths lead to.
func (p *Planner) asked(snap model.Snapshot, service model.Name) map[portKey]bool {
	out := map[portKey]bool{}
	svc, ok := snap.Service(service)
	if !ok || svc.Type == model.ExternalName {
		return out
	}
	for n := range p.services[service] {
		for _, b := range p.touched[n].backends[service] {
			if q, ok := port(svc, b); ok {
				out[portKey{q.Port, false}] = true
				if p.options(snap, p.ours[n]).virtual {
					out[portKey{q.Port, true}] = true
				}
			}
		}
	}
	return out
}

// shapeOf returns what paths depend on of a Service.
func shapeOf(snap model.Snapshot, n model.Name) string {
	svc, ok := snap.Service(n)
	if !ok {
		return ""
	}
	var b strings.Builder
	b.WriteString(svc.Type.String())
	for _, p := range svc.Ports {
		b.WriteString(" " + p.Protocol.String() + p.Name + ":" + strconv.Itoa(int(p.Port)) + ":" + p.Target)
	}
	return b.String()
}

// backendsOf yields all backends of an Ingress: those of its paths, and the Service of its auth-url.
func (s Settings) backendsOf(i *model.Ingress) iter.Seq2[model.Name, model.IngressBackend] {
	return func(yield func(model.Name, model.IngressBackend) bool) {
		own := func(b model.IngressBackend) bool {
			return b.Service == "" || yield(model.Name{Namespace: i.Name.Namespace, Name: b.Service}, b)
		}
		if i.Default != nil && !own(*i.Default) {
			return
		}
		for _, r := range i.Rules {
			for _, p := range r.Paths {
				if !own(p.Backend) {
					return
				}
			}
		}
		if name := strings.TrimSpace(i.Annotations[nginxPrefix+"default-backend"]); isHost(name) &&
			!own(model.IngressBackend{Service: name}) {
			return
		}
		if u := i.Annotations[nginxPrefix+"auth-url"]; u != "" {
			if n, b, ok := s.serviceOf(strings.TrimSpace(u)); ok && !yield(n, b) {
				return
			}
		} else if s.GlobalAuth != nil {
			if n, b, ok := s.serviceOf(s.GlobalAuth.URL); ok && !yield(n, b) {
				return
			}
		}
		if u := strings.TrimSpace(i.Annotations[nginxPrefix+"mirror-target"]); u != "" {
			if n, b, ok := s.serviceOf(u); ok {
				yield(n, b)
			}
		}
	}
}

// look lists what an Ingress uses.
func (p *Planner) look(snap model.Snapshot, i *model.Ingress) *touched {
	t := &touched{named: named(i), backends: map[model.Name][]model.IngressBackend{}}
	seen := map[string]bool{}
	add := func(h string) {
		if !seen[h] {
			seen[h], t.hosts = true, append(t.hosts, h)
		}
	}
	if len(i.Rules) == 0 {
		add("")
	}
	for _, r := range i.Rules {
		add(r.Host)
	}
	for _, e := range i.TLS {
		for _, h := range e.Hosts {
			add(h)
		}
	}
	t.first, t.aliases = firstHost(i), p.options(snap, i).aliases
	for _, a := range t.aliases {
		add(a)
	}
	if p.options(snap, i).www {
		for _, r := range i.Rules {
			if other := otherName(r.Host); other != "" {
				add(other)
			}
		}
	}
	type use struct {
		service model.Name
		backend model.IngressBackend
	}
	used := map[use]bool{}
	for n, b := range p.settings.backendsOf(i) {
		if len(t.backends[n]) == 0 {
			t.services = append(t.services, n)
		}
		if u := (use{n, b}); !used[u] {
			used[u], t.backends[n] = true, append(t.backends[n], b)
		}
	}
	return t
}

// named returns the objects that an Ingress names.
func named(i *model.Ingress) (out []Reference) {
	for _, n := range SecretsOf(i) {
		out = append(out, Reference{model.SecretKind, n})
	}
	for _, n := range ConfigMapsOf(i) {
		out = append(out, Reference{model.ConfigMapKind, n})
	}
	return out
}

// maxSecrets is how many Secrets of one Ingress are read: each costs every node that serves Ingress a watch.
const maxSecrets = 256

// SecretsOf returns the Secrets that an Ingress names, at most maxSecrets. No others are read.
func SecretsOf(i *model.Ingress) []model.Name {
	out, _ := secretsOf(i)
	return out
}

// secretsOf also returns whether the Ingress names more. Secrets of guards come first.
func secretsOf(i *model.Ingress) (out []model.Name, more bool) {
	add := func(name string) {
		n := model.Name{Namespace: i.Name.Namespace, Name: name}
		switch {
		case name == "" || slices.Contains(out, n):
		case len(out) == maxSecrets:
			more = true
		default:
			out = append(out, n)
		}
	}
	for _, key := range []string{"auth-tls-secret", "proxy-ssl-secret"} {
		if n, err := secretName(i, strings.TrimSpace(i.Annotations[nginxPrefix+key])); err == nil {
			add(n.Name)
		}
	}
	if strings.TrimSpace(i.Annotations[nginxPrefix+"auth-type"]) == "basic" {
		p := &parser{in: i}
		if err := authSecret(p, strings.TrimSpace(i.Annotations[nginxPrefix+"auth-secret"])); err == nil {
			add(p.auth.secret.Name)
		}
	}
	for _, t := range i.TLS {
		add(t.Secret)
	}
	return out, more
}

func (p *Planner) link(n model.Name, t *touched) {
	if t == nil {
		return
	}
	p.touched[n] = t
	for _, h := range t.hosts {
		link(p.hosts, h, n)
		if i := strings.IndexByte(h, '.'); i > 0 {
			if p.below[h[i:]] == nil {
				p.below[h[i:]] = map[string]bool{}
			}
			p.below[h[i:]][h] = true
		}
	}
	for _, s := range t.services {
		link(p.services, s, n)
	}
	for _, s := range t.named {
		link(p.named, s, n)
	}
}

func (p *Planner) unlink(n model.Name, t *touched) {
	if t == nil {
		return
	}
	delete(p.touched, n)
	for _, h := range t.hosts {
		unlink(p.hosts, h, n)
		if i := strings.IndexByte(h, '.'); i > 0 && len(p.hosts[h]) == 0 {
			if delete(p.below[h[i:]], h); len(p.below[h[i:]]) == 0 {
				delete(p.below, h[i:])
			}
		}
	}
	for _, s := range t.services {
		if unlink(p.services, s, n); len(p.services[s]) == 0 {
			delete(p.shapes, s)
		}
	}
	for _, s := range t.named {
		unlink(p.named, s, n)
	}
}

func link[K comparable](m map[K]map[model.Name]bool, k K, n model.Name) {
	if m[k] == nil {
		m[k] = map[model.Name]bool{}
	}
	m[k][n] = true
}

func unlink[K comparable](m map[K]map[model.Name]bool, k K, n model.Name) {
	delete(m[k], n)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

// options returns the options of an Ingress, parsed once per round.
func (p *Planner) options(snap model.Snapshot, i *model.Ingress) *options {
	if o, ok := p.parsed[i.Name]; ok {
		return o
	}
	o := parse(snap, p.settings, i)
	o.hosts = indexHosts(i)
	if _, more := secretsOf(i); more {
		o.problems = append(o.problems, model.Problem{Kind: "Ingress", Object: i.Name, Field: "spec.tls",
			Reason: fmt.Sprintf("names more than %d Secrets, which is the limit; the others are not read, and their "+
				"hosts get the default certificate", maxSecrets)})
	}
	if p.unread[i.Name] {
		o.closed, o.problems = "its Secrets or ConfigMaps have not been read yet", nil
	}
	p.parsed[i.Name] = &o
	return &o
}

// defaultCertificate returns the key of the settings' default certificate, if it is valid.
func (p *Planner) defaultCertificate(snap model.Snapshot) string {
	n := p.settings.DefaultCertificate
	if s, ok := secretOf(snap, n); ok && s.Chain != nil {
		return n.String()
	}
	return ""
}

// Plan returns the plan of a key.
func (p *Planner) Plan(snap model.Snapshot, k Key) (Plan, bool, []model.Problem) {
	switch k.Kind {
	case HostKey:
		h := p.merge(snap, k.Name).host
		return Plan{Host: h}, h != nil, nil
	case BackendKey:
		service, number, ok := parseBackend(k.Name)
		if !ok || !p.ports[service][number] {
			return Plan{}, false, nil
		}
		b, ok := makeBackend(snap, service, number.port)
		if number.virtual {
			b, ok = virtualBackend(snap, service, number.port)
		}
		return Plan{Backend: b}, ok, nil
	case CertificateKey:
		n := parseName(k.Name)
		s, ok := secretOf(snap, n)
		if _, named := p.named[Reference{model.SecretKind, n}]; !ok || s.Chain == nil && s.CA == nil || !named &&
			n != p.settings.DefaultCertificate {
			return Plan{}, false, nil
		}
		return Plan{Certificate: &schema.Certificate{Key: k.Name, Chain: s.Chain, Priv: s.Key, CA: s.CA, CRL: s.CRL}},
			true, nil
	}
	return Plan{}, false, p.problems(snap, parseName(k.Name))
}

// problems returns all problems of one Ingress.
func (p *Planner) problems(snap model.Snapshot, n model.Name) (out []model.Problem) {
	t, i := p.touched[n], p.ours[n]
	if t == nil || p.unread[n] {
		return nil
	}
	out = append(out, i.Problems...)
	out = append(out, p.options(snap, i).problems...)
	seen := make(map[model.Problem]bool, len(out))
	for _, q := range out {
		seen[q] = true
	}
	for _, h := range t.hosts {
		for _, q := range p.merge(snap, h).problems[n] {
			if !seen[q] {
				seen[q], out = true, append(out, q)
			}
		}
	}
	return out
}

func parseName(s string) model.Name {
	ns, name, _ := strings.Cut(s, "/")
	return model.Name{Namespace: ns, Name: name}
}

// portKey is a port of a Service, reached at its endpoints or at the Service's virtual address.
type portKey struct {
	port    uint16
	virtual bool
}

const virtualSuffix = "/virtual"

// of returns the key of the backend.
func (p portKey) of(service model.Name) string {
	if key := backendKey(service, p.port); !p.virtual {
		return key
	}
	return backendKey(service, p.port) + virtualSuffix
}

func parseBackend(s string) (model.Name, portKey, bool) {
	name, text, _ := strings.Cut(s, ":")
	text, virtual := strings.CutSuffix(text, virtualSuffix)
	n, err := strconv.ParseUint(text, 10, 16)
	return parseName(name), portKey{uint16(n), virtual}, err == nil
}
