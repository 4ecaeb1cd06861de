package table

import (
	"bytes"
	"cmp"
	"math"
	"regexp"
	"slices"
	"strings"

	"wayleave.dev/proxy/regex"
	"wayleave.dev/proxy/schema"
)

// candidate is a path of a host that has patterns.
type candidate struct {
	path *schema.Path
	// re is nil for a path that is not a pattern, and for a pattern that is not compiled: the latter is closed and
	// stands for every path that begins with literal.
	re *regexp.Regexp
	// literal is the path or the literal prefix of the pattern, in lower case; rank is its length without trailing
	// slashes.
	literal string
	rank    int
	// steps are the instructions of re.
	steps int
	// guarded paths restrict access; closed is a pattern that is not compiled.
	guarded, closed bool
	// age is the index in Host.Paths: of paths with the same text the older one comes first.
	age int
}

// before orders paths as ingress-nginx orders the locations of a server: the longer text first, of equal length the
// greater.
func (c *candidate) before(d *candidate) bool { return c.compare(d) < 0 }

func (c *candidate) compare(d *candidate) int {
	a, b := c.path.Path, d.path.Path
	return cmp.Or(len(b)-len(a), strings.Compare(b, a), c.age-d.age)
}

// takesFrom reports whether c, which matches too, is served in place of d, which comes first by length. The length is
// that of the pattern's text, not of the paths that it matches: without this rule "/(.*)" opens a guarded "/api".
func (c *candidate) takesFrom(d *candidate) bool {
	longer := c.rank - d.rank
	switch {
	case longer < 0:
		return false
	case d.path.Foreign && !c.path.Foreign: // the owner of the host keeps the requests of its paths
		return true
	case d.path.Closed || d.closed: // no guard is stricter
		return false
	case c.guarded && c.path.Foreign && !d.path.Foreign:
		return longer > 0
	case c.guarded:
		return longer > 0 || !d.guarded
	}
	return isChallenge(c) && !isChallenge(d) && !d.guarded
}

func isChallenge(c *candidate) bool { return strings.HasPrefix(c.literal, schema.ChallengePrefix) }

// ordered are the paths of a host that has patterns.
type ordered struct {
	// patterns are compiled, in the order of candidate.before.
	patterns []*candidate
	// literals are the other paths, by their text.
	literals literals
	// strict are the candidates of paths that Routes.prefix has.
	strict map[*schema.Path]*candidate
	// longest is the length of the longest path that is compared.
	longest int
	// regex is Host.Regex; closed means that requests without a path are refused.
	regex, closed bool
}

// find finds the path for a request. strict is the longest Prefix that matches by elements; nil for none. A nil
// candidate leaves the request to strict.
func (o *ordered) find(path []byte, strict *schema.Path, m *Match) (found *candidate, groups [][]byte) {
	var plain *candidate
	if strict != nil {
		plain = o.strict[strict]
	}
	m.loose = o.literals.prefixes(path, m.loose[:0])
	text := subject{path: path, ascii: isASCII(path), proof: isProof(path), m: m}
	if text.proof || m.only != "" {
		m.loose = slices.DeleteFunc(m.loose, func(c *candidate) bool { return m.skips(c.path, text.proof) })
	}
	first, at := o.first(&text, plain)
	if first == nil {
		if o.regex {
			return o.alike(m, plain), nil
		}
		return nil, nil
	}
	if found = first; first.re != nil {
		groups = text.groups
	}
	take := func(c *candidate, g [][]byte) { found, groups = c, g }
	late := plain // plain is ranked among the patterns
	for _, c := range o.patterns[at:] {
		if late != nil && late.before(c) {
			if late.takesFrom(found) {
				take(late, nil)
			}
			late = nil
		}
		if c.takesFrom(found) && text.matches(c) {
			take(c, text.groups)
		}
	}
	if late != nil && late.takesFrom(found) {
		take(late, nil)
	}
	for _, c := range m.loose {
		if c.guarded && c != found && c.takesFrom(found) {
			take(c, nil)
		}
	}
	if found == first && !first.guarded {
		if c := o.alike(m, first); c != nil {
			return c, nil
		}
	}
	return found, groups
}

// first returns the first pattern that matches, and where the patterns after it begin. Patterns after plain are not
// tried.
func (o *ordered) first(text *subject, plain *candidate) (found *candidate, at int) {
	var closed *candidate
	for _, c := range text.m.loose {
		if c.closed && (closed == nil || c.before(closed)) {
			closed = c
		}
	}
	for ; at < len(o.patterns); at++ {
		c := o.patterns[at]
		if plain != nil && plain.before(c) || closed != nil && closed.before(c) {
			break
		}
		if text.matches(c) {
			return c, at + 1
		}
	}
	if closed != nil && (plain == nil || closed.before(plain)) {
		return closed, at
	}
	return nil, at
}

// alike returns the path that ingress-nginx would serve before found: if a host has patterns, it treats every path of
// the host as one, regardless of case and elements. found is a pattern or the longest Prefix by elements; nil for no
// path. Paths of another namespace than found's are matched as Kubernetes defines them, and no guarded path is opened.
func (o *ordered) alike(m *Match, found *candidate) (best *candidate) {
	guarded := found != nil && found.guarded || found == nil && o.closed
	for _, c := range m.loose {
		switch {
		case c.closed, c.path.Kind == schema.Exact && !o.regex, guarded && !c.guarded:
		case found != nil && (c == found || !c.before(found) || c.path.Foreign && !found.path.Foreign):
		case best == nil || c.before(best):
			best = c
		}
	}
	m.Loose = best != nil && found == nil
	return best
}

// subject is a request's path that patterns are compared with.
type subject struct {
	path  []byte
	ascii bool
	// proof excludes patterns of other namespaces than the host's; see isProof.
	proof  bool
	m      *Match
	groups [][]byte // of the last match
}

// matches compares the path with a pattern. The literal prefix is compared first, because that is cheap. Characters
// beyond ASCII can have several case variants, some of different lengths.
func (s *subject) matches(c *candidate) bool {
	if s.m.skips(c.path, s.proof) || s.ascii && !hasPrefixFold(s.path, c.literal) {
		return false
	}
	s.m.Steps += c.steps * len(s.path)
	s.groups = c.re.FindSubmatch(s.path)
	return s.groups != nil
}

func isASCII(b []byte) bool { return bytes.IndexFunc(b, func(r rune) bool { return r >= 0x80 }) < 0 }

// literals are paths and literal prefixes by their text, so that the prefixes of a path are found without comparing the
// others.
type literals struct {
	list []*candidate
	// parent is the index of the next shorter prefix of list[i].literal; -1 for none.
	parent []int
}

func makeLiterals(list []*candidate) literals {
	slices.SortStableFunc(list, func(a, b *candidate) int { return strings.Compare(a.literal, b.literal) })
	l := literals{list: list, parent: make([]int, len(list))}
	for i := range list {
		up := i - 1
		for up >= 0 && !strings.HasPrefix(list[i].literal, list[up].literal) {
			up = l.parent[up]
		}
		l.parent[i] = up
	}
	return l
}

// prefixes appends the prefixes of the path, case-insensitively, the longest first.
func (l *literals) prefixes(path []byte, to []*candidate) []*candidate {
	n, _ := slices.BinarySearchFunc(l.list, path, func(c *candidate, path []byte) int {
		if compareFold(path, c.literal) >= 0 {
			return -1
		}
		return 1
	})
	i := n - 1
	for i >= 0 && !hasPrefixFold(path, l.list[i].literal) {
		i = l.parent[i]
	}
	for ; i >= 0; i = l.parent[i] {
		to = append(to, l.list[i])
	}
	return to
}

// hasPrefixFold reports whether b begins with lower, ignoring the case of ASCII letters.
func hasPrefixFold(b []byte, lower string) bool {
	return len(b) >= len(lower) && compareFold(b[:len(lower)], lower) == 0
}

// compareFold compares b in lower case with lower.
func compareFold(b []byte, lower string) int {
	for i, c := range b {
		if i == len(lower) {
			return 1
		}
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return cmp.Compare(c, lower[i])
		}
	}
	return cmp.Compare(len(b), len(lower))
}

// lower converts ASCII letters to lower case, and leaves every other byte.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return string(b)
}

// order returns the candidates of a host that has patterns or Regex; nil for another.
func (r *Routes) order(patterns map[int]compiled) *ordered {
	if len(patterns) == 0 && !r.Host.Regex {
		return nil
	}
	o := &ordered{strict: map[*schema.Path]*candidate{}, longest: maxMatched, regex: r.Host.Regex}
	if len(patterns) == 0 {
		o.longest = math.MaxInt
	}
	if d := r.Host.Default; d != nil {
		o.closed = d.Guarded() || r.ready[d] != nil && r.ready[d].Err != nil
	}
	var list []*candidate
	closed, total := map[place]*candidate{}, 0
	for i := range r.Host.Paths {
		p := &r.Host.Paths[i]
		prog, isPattern := patterns[i]
		c := &candidate{path: p, age: i, literal: lower(p.Path), guarded: p.Guarded() || r.ready[p] != nil &&
			r.ready[p].Err != nil}
		if isPattern {
			c.literal = lower(regex.LiteralPrefix(p.Options.PathPattern))
		}
		c.rank = len(trimSlash(c.literal))
		switch {
		case isPattern && prog.err == nil:
			c.re, c.steps = prog.Regexp, prog.Steps
			o.patterns, total = append(o.patterns, c), total+c.steps
		case isPattern:
			c.guarded, c.closed = true, true
			at := place{c.literal, p.Foreign}
			if old := closed[at]; old == nil || c.before(old) { // one closed pattern is enough
				closed[at] = c
			}
		case p.Kind == schema.Exact:
			if (c.guarded || o.regex && p.Path != "/") && r.exact[p.Path] == p { // the root matches everything there
				list = append(list, c)
			}
		case r.prefix[trimSlash(p.Path)] == p:
			if c.guarded || !o.regex {
				c.literal = cmp.Or(lower(trimSlash(p.Path)), "/")
			}
			o.strict[p] = c
			list = append(list, c)
		}
	}
	for _, c := range closed {
		list = append(list, c)
	}
	slices.SortFunc(list, (*candidate).compare)
	slices.SortStableFunc(o.patterns, (*candidate).compare)
	o.literals = makeLiterals(list)
	if total > 0 {
		o.longest = min(maxMatched, maxWork/total)
	}
	return o
}

// place identifies a closed pattern.
type place struct {
	literal string
	foreign bool
}
