package table

import (
	"bytes"

	"wayleave.dev/proxy/schema"
)

// Match is the route of a request.
type Match struct {
	Host *schema.Host
	Path *schema.Path
	// Groups are those of a pattern, for RewriteTarget.
	Groups [][]byte
	// Ready are the path's parsed Options; nil for none.
	Ready *Ready
	// Loose means that the path matches only because of Host.Regex, and no path matches otherwise.
	Loose bool
	// TooLong means that the path exceeds what is compared with the patterns of the host: Path is closed, and 414 is
	// the answer.
	TooLong bool
	// Steps is the work of patterns: their instructions times the bytes of the path.
	Steps int
	// loose is reused memory.
	loose []*candidate
	// only is the one namespace whose paths are considered; empty for all.
	only string
}

// Reset clears the result, and keeps its memory.
func (m *Match) Reset() {
	clear(m.loose[:cap(m.loose)])
	*m = Match{loose: m.loose[:0]}
}

// Lookup finds the host's routes: those of the name itself, otherwise of the wildcard host above it, otherwise of the
// empty host. name is in lower case, without port. nil if there are none.
func (t *Table) Lookup(name []byte) *Routes {
	if t == nil {
		return nil
	}
	if r, ok := t.exact[string(name)]; ok {
		return r
	}
	if len(t.wild) > 0 {
		if i := bytes.IndexByte(name, '.'); i > 0 {
			if r, ok := t.wild[string(name[i:])]; ok {
				return r
			}
		}
	}
	return t.rest
}

// Rest returns the routes of the empty host.
func (t *Table) Rest() *Routes {
	if t == nil {
		return nil
	}
	return t.rest
}

// Route finds the path for a request: one of the host, otherwise a guarded one of the wildcard host above it, otherwise
// one of the empty host. name is the result of Name, path that of Clean.
func (t *Table) Route(name, path []byte, m *Match) bool {
	own := t.Lookup(name)
	if own == nil {
		return false
	}
	if len(own.Host.Paths) == 0 && own.Host.Default == nil { // it has only a certificate
		if w := t.above(name); w != nil {
			own = w
		}
	}
	found := own.Find(path, m)
	if found && !m.Loose {
		return true
	}
	loose := *m
	if w := t.above(name); w != nil && w != own && own.findIn(w, path, m) && m.guarded() {
		return true // a guard of the wildcard host also applies below it
	}
	rest := t.Rest()
	if there := rest != nil && rest != own && own.findIn(rest, path, m); !found || there && m.guarded() {
		return there
	}
	loose.Steps, loose.loose = m.Steps, m.loose
	*m = loose
	return true
}

// findIn finds the path for a request of the host r, which has none, in the routes of another host: the wildcard host
// above it, or the empty host.
func (r *Routes) findIn(other *Routes, path []byte, m *Match) bool {
	if isProof(path) && other.Host.Namespace != r.Host.Namespace {
		return false
	}
	if r.Host.OneNamespace {
		defer func(last string) { m.only = last }(m.only)
		m.only = r.Host.Namespace
	}
	return other.Find(path, m)
}

// skips reports whether a path is not considered. proof is the result of isProof for the request.
func (m *Match) skips(p *schema.Path, proof bool) bool {
	if proof && p.Foreign {
		return true
	}
	if m.only == "" {
		return false
	}
	of := p.Namespace()
	return of != "" && of != m.only
}

// isProof reports whether a request is an ACME challenge: only paths of the namespace that owns the host may answer,
// because whoever answers gets a certificate for the host.
func isProof(path []byte) bool {
	return len(path) >= len(schema.ChallengePrefix) &&
		string(path[:len(schema.ChallengePrefix)]) == schema.ChallengePrefix
}

// above returns the routes of the wildcard host above a name.
func (t *Table) above(name []byte) *Routes {
	if i := bytes.IndexByte(name, '.'); i > 0 && len(t.wild) > 0 {
		return t.wild[string(name[i:])]
	}
	return nil
}

func (m *Match) guarded() bool {
	return m.Path.Guarded() || m.Host != nil && m.Host.ClientCert != nil || m.Ready != nil && m.Ready.Err != nil
}

// Find finds the path: Exact, then patterns and Prefixes by their length, Prefixes by elements. See docs/ingress.md,
// "Which path is served". path is the result of Clean. It returns false if no path matches.
func (r *Routes) Find(path []byte, m *Match) bool {
	if !r.find(path, m) {
		return false
	}
	m.Ready = nil
	if m.Path.Options != nil {
		m.Ready = r.ready[m.Path]
	}
	return true
}

// tooLong is the path for requests whose path is not compared with patterns.
var tooLong = &schema.Path{Kind: schema.Prefix, Path: "/", Closed: true,
	Source: "a path that is too long to compare with patterns"}

func (r *Routes) find(path []byte, m *Match) bool {
	m.Host, m.Groups, m.TooLong, m.Loose = r.Host, nil, false, false
	proof := isProof(path)
	if p, ok := r.exact[string(path)]; ok && !m.skips(p, proof) {
		m.Path = p
		return true
	}
	p := r.longestPrefix(path, proof, m)
	if r.ordered != nil {
		if len(path) > r.ordered.longest {
			m.Path, m.TooLong = tooLong, true
			return true
		}
		if c, groups := r.ordered.find(path, p, m); c != nil {
			p, m.Groups = c.path, groups
		}
	}
	if d := r.Host.Default; p == nil && d != nil && !m.skips(d, proof) {
		p = d
	}
	m.Path = p
	return p != nil
}

// longestPrefix returns the longest Prefix by elements that m does not skip; nil for none.
func (r *Routes) longestPrefix(path []byte, proof bool, m *Match) *schema.Path {
	if len(r.prefix) == 0 {
		return nil
	}
	for end := len(path); ; {
		for end > 0 && path[end-1] == '/' {
			end--
		}
		if p, ok := r.prefix[string(path[:end])]; ok && !m.skips(p, proof) {
			return p
		}
		if end == 0 {
			return nil
		}
		end = bytes.LastIndexByte(path[:end], '/') + 1
	}
}

// Name removes the port of an authority and converts it to lower case: in place if it needs no change, otherwise in to.
// IPv6 addresses keep their brackets.
func Name(host, to []byte) []byte {
	for i := len(host) - 1; i >= 0; i-- {
		if host[i] == ']' {
			break
		}
		if host[i] == ':' {
			host = host[:i]
			break
		}
	}
	if n := len(host); n > 0 && host[n-1] == '.' {
		host = host[:n-1]
	}
	for i, c := range host {
		if 'A' <= c && c <= 'Z' {
			to = append(to[:0], host...)
			for j := i; j < len(to); j++ {
				if c := to[j]; 'A' <= c && c <= 'Z' {
					to[j] = c | 0x20
				}
			}
			return to
		}
	}
	return host
}

// Clean returns the path that is compared: percent-decoded, without double slashes and dot segments, as endpoints read
// it; otherwise /public/../admin would be routed as public. It returns the path itself if it contains none of these. ok
// is false for a path that leaves the root, has an invalid escape or a zero byte.
func Clean(path, to []byte) (clean []byte, ok bool) {
	if plain(path) {
		return path, true
	}
	to = to[:0]
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' {
			if i+2 >= len(path) {
				return nil, false
			}
			hi, lo := hex(path[i+1]), hex(path[i+2])
			if hi < 0 || lo < 0 || hi == 0 && lo == 0 {
				return nil, false
			}
			c = byte(hi<<4 | lo)
			i += 2
		}
		to = append(to, c)
	}
	// Segments are moved down over removed ones.
	out := to[:0]
	for i := 0; i < len(to); {
		end := bytes.IndexByte(to[i:], '/')
		last := end < 0
		if last {
			end = len(to) - i
		}
		seg := to[i : i+end]
		i += end + 1
		switch {
		case len(seg) == 0 && !last || string(seg) == "." && !last:
		case string(seg) == "..":
			if len(out) == 0 {
				return nil, false
			}
			out = out[:bytes.LastIndexByte(out, '/')]
			if last {
				out = append(out, '/')
			}
		case string(seg) == ".":
			out = append(out, '/')
		default:
			out = append(append(out, '/'), seg...)
		}
	}
	if len(out) == 0 {
		out = append(out, '/')
	}
	return out, true
}

func plain(path []byte) bool {
	if len(path) == 0 || path[0] != '/' {
		return false
	}
	slash := false
	for _, c := range path {
		if c == '%' || slash && (c == '/' || c == '.') {
			return false
		}
		slash = c == '/'
	}
	return true
}

func hex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}
