package table

import (
	"bytes"
	"regexp"
)

// Pattern is a path that is a regular expression.
type Pattern struct {
	path *Path
	re   *regexp.Regexp // nil: cannot be read, and matches nothing
}

func newPattern(p *Path) *Pattern {
	re, err := compilePattern(p.Options.PathPattern)
	if err != nil {
		return &Pattern{path: p}
	}
	return &Pattern{path: p, re: re}
}

// Match is where a request leads.
type Match struct {
	Host *Host
	Path *Path
	// Groups are those of a pattern, for RewriteTarget.
	Groups [][]byte
	// Ready are the path's Options as they were read; nil for none.
	Ready *Ready
}

// Lookup finds the host's routes: the name itself, else the wildcard of its parent, else
// what no other host has. name is in lower case, without port. nil when there is none.
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

// Rest are the routes of hosts that are not named.
func (t *Table) Rest() *Routes {
	if t == nil {
		return nil
	}
	return t.rest
}

// Find finds the path: patterns by length, then Exact, then the longest Prefix by
// elements. path is as Clean makes it. nil when none has it.
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

func (r *Routes) find(path []byte, m *Match) bool {
	m.Host, m.Groups = r.Host, nil
	for _, p := range r.patterns {
		if p.re == nil || len(path) > maxMatched {
			continue
		}
		if g := p.re.FindSubmatch(path); g != nil {
			m.Path, m.Groups = p.path, g
			return true
		}
	}
	if p, ok := r.exact[string(path)]; ok {
		m.Path = p
		return true
	}
	if len(r.prefix) > 0 {
		for end := len(path); ; {
			for end > 0 && path[end-1] == '/' {
				end--
			}
			if p, ok := r.prefix[string(path[:end])]; ok {
				m.Path = p
				return true
			}
			if end == 0 {
				break
			}
			end = bytes.LastIndexByte(path[:end], '/') + 1
		}
	}
	if r.Host.Default != nil {
		m.Path = r.Host.Default
		return true
	}
	return false
}

// Name takes the port off an authority and puts it into lower case, in place where that
// needs no change, else in to. IPv6 addresses keep their brackets.
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

// Clean is the path that is compared: percent-decoded, without double slashes and dot
// segments, as servers behind read it; else /public/../admin would be routed as public.
// It is the path itself where nothing of that is in it. ok is false for a path that
// leaves the root, has a bad escape or a zero byte.
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
	// Segments are moved down over what they leave out.
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
