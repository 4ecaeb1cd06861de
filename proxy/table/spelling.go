package table

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"

	"wayleave.dev/proxy/schema"
)

// Bounds of the readings of one path. A path with more readings is refused if the host has guards.
const (
	maxReadings     = 48
	maxReadingBytes = 128 << 10
	// maxReadingSteps bounds the work of patterns over all readings, see Match.Steps.
	maxReadingSteps = maxWork
)

// ErrAmbiguous means that some servers take the path for another one, which is guarded.
var ErrAmbiguous = errors.New("ambiguous path: some servers read it as a guarded path")

// Spelled checks the path of a request as it was sent, after m was found for the result of Clean. sent is what may be
// forwarded to an endpoint: the path itself, or the path without its dot segments (RFC 3986, 6.2.2.3). An endpoint may
// decode twice, end a segment at a semicolon, treat a backslash as a slash, and more, see readings: if one of these
// readings leads to a guard that m lacks, the error is ErrAmbiguous. Hosts without guards accept all spellings.
func (t *Table) Spelled(name, raw []byte, m *Match) (sent []byte, err error) {
	if !t.watched(name) || t.lower == nil && ordinary(raw) {
		return raw, nil
	}
	plain := undotted(string(raw))
	if disputed(plain) {
		return nil, ErrAmbiguous
	}
	if plain != string(raw) {
		sent = []byte(plain)
		was, ok1 := Clean(raw, nil)
		now, ok2 := Clean(sent, nil)
		if !ok1 || !ok2 || !bytes.Equal(was, now) {
			return nil, ErrAmbiguous // some servers count an empty segment, others do not
		}
	} else {
		sent = raw
	}
	all, ok := readings(plain)
	if !ok {
		return nil, ErrAmbiguous
	}
	steps := 0
	for _, r := range all {
		for _, r := range []string{r, strings.TrimRight(r, "/")} {
			if !t.covered(name, r, m, &steps) {
				return nil, ErrAmbiguous
			}
		}
	}
	return sent, nil
}

// covered reports whether a reading, as written and in lower case, leads to no guard that m lacks.
func (t *Table) covered(name []byte, path string, m *Match, steps *int) bool {
	if path == "" || path[0] != '/' {
		path = "/" + path
	}
	if !t.leads(name, path, m, steps) {
		return false
	}
	lower := t
	if t.lower != nil {
		lower = t.lower
	}
	folded := fold(path)
	return lower == t && folded == path || lower.leads(name, folded, m, steps)
}

// leads reports whether a path leads to no guard that m lacks. A guard protects the endpoints of its own namespace:
// paths of others neither refuse a reading nor hide a guard of this one.
func (t *Table) leads(name []byte, path string, m *Match, steps *int) bool {
	other := Match{only: m.Path.Namespace()}
	found := t.Route(name, []byte(path), &other)
	*steps += other.Steps
	return *steps <= maxReadingSteps && (!found || covers(m, &other))
}

// covers reports whether a has every guard of b.
func covers(a, b *Match) bool {
	if a.Path == b.Path {
		return true
	}
	if closed(a) {
		return true // it serves no client
	}
	if closed(b) {
		return false
	}
	if a.Host != b.Host && b.Host != nil && b.Host.ClientCert != nil &&
		(a.Host == nil || !reflect.DeepEqual(a.Host.ClientCert, b.Host.ClientCert)) {
		return false
	}
	if b.Host != nil && b.Host.ClientCert != nil && proves(a.Path) && !proves(b.Path) {
		return false // it is served without a certificate over plain HTTP
	}
	x, y := a.Path.Options, b.Path.Options
	if y == nil {
		return true
	}
	if x == nil {
		x = &schema.Options{}
	}
	return y.KeptBy(x) && (!y.Limits() || owner(a.Path) == owner(b.Path) && x.LimitsAs(y))
}

// proves reports whether a path is an ACME challenge; see isProof.
func proves(p *schema.Path) bool {
	return strings.HasPrefix(p.Path, schema.ChallengePrefix) && (p.Options == nil || p.Options.PathPattern == "")
}

func closed(m *Match) bool {
	p := m.Path
	return p.Closed || p.Backend == "" && (p.Options == nil || p.Options.Redirect == "") || m.Ready != nil &&
		m.Ready.Err != nil
}

// watches reports whether some path of the host is guarded or closed.
func watches(r *Routes) bool {
	if r.client != nil {
		return true
	}
	guarded := func(p *schema.Path) bool {
		o := p.Options
		return closed(&Match{Path: p, Ready: r.ready[p]}) || o != nil && (o.Guards() || o.Limits())
	}
	for i := range r.Host.Paths {
		if guarded(&r.Host.Paths[i]) {
			return true
		}
	}
	return r.Host.Default != nil && guarded(r.Host.Default)
}

// watched reports whether a request for the name may meet a guard.
func (t *Table) watched(name []byte) bool {
	for _, r := range []*Routes{t.Lookup(name), t.above(name), t.rest} {
		if r != nil && r.watched {
			return true
		}
	}
	return false
}

// folded returns the routes of a host with its paths in lower case, for case-insensitive servers; nil if they are in
// lower case already, or nothing is guarded. Of two paths that differ only in case, that of the host's namespace
// counts, then the guarded one.
func folded(r *Routes) *Routes {
	if !r.watched || !slices.ContainsFunc(r.Host.Paths, func(p schema.Path) bool { return fold(p.Path) != p.Path }) {
		return nil
	}
	h := *r.Host
	h.Paths = nil
	for _, foreign := range []bool{false, true} {
		for _, guarded := range []bool{true, false} {
			for _, p := range r.Host.Paths {
				if p.Foreign != foreign || guarded == covers(&Match{Path: &schema.Path{Backend: "open"}},
					&Match{Path: &p}) {
					continue
				}
				p.Path = fold(p.Path)
				h.Paths = append(h.Paths, p)
			}
		}
	}
	return compile(&h)
}

// lowered returns the table of folded routes; nil if no host has any.
func (t *Table) lowered() *Table {
	if t.rest != nil && t.rest.folded != nil {
		return t.everyLower()
	}
	for _, list := range []map[string]*Routes{t.exact, t.wild} {
		for _, r := range list {
			if r.folded != nil {
				return t.everyLower()
			}
		}
	}
	return nil
}

func (t *Table) everyLower() *Table {
	either := func(r *Routes) *Routes {
		if r != nil && r.folded != nil {
			return r.folded
		}
		return r
	}
	l := &Table{exact: make(map[string]*Routes, len(t.exact)), wild: make(map[string]*Routes, len(t.wild)),
		rest: either(t.rest)}
	for k, r := range t.exact {
		l.exact[k] = either(r)
	}
	for k, r := range t.wild {
		l.wild[k] = either(r)
	}
	return l
}

// ordinary reports whether all servers interpret a path alike: in lower case, without escapes, parameters, empty
// segments, and without an end that some servers remove.
func ordinary(path []byte) bool {
	last := byte(0)
	for _, c := range path {
		switch {
		case c == '/' && (last == '/' || last == '.'):
			return false
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '/' || c == '-' || c == '_' || c == '.':
		case strings.IndexByte("~!$&'()*+,=:@", c) < 0:
			return false
		}
		last = c
	}
	return len(path) == 1 || last != '/' && last != '.'
}
