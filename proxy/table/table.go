// Package table finds the path of a request among the hosts that a proxy routes. Readers have a Table that never
// changes; a writer makes a new one, which shares unchanged parts.
package table

import "wayleave.dev/proxy/schema"

// Table routes. It must not be changed.
type Table struct {
	exact map[string]*Routes
	// wild are the hosts by what follows the star.
	wild map[string]*Routes
	rest *Routes
	// certified means that some host requests client certificates, or has its own ciphers.
	certified bool
	// passes means that some host is passed through.
	passes bool
	// asserted are fields that clients may not set, by Service.
	asserted map[string][]string
	// said are all of these names, without duplicates, in lower case.
	said []string
	// lower routes paths in lower case; nil if this table does.
	lower *Table
}

// Routes are the paths of one host, prepared for lookups.
type Routes struct {
	Host   *schema.Host
	exact  map[string]*schema.Path
	prefix map[string]*schema.Path
	// ordered is nil for a host without patterns.
	ordered *ordered
	// ready are the parsed options of the paths that have some.
	ready map[*schema.Path]*Ready
	// asserted is the host's part of Table.asserted.
	asserted map[string][]string
	// watched means that some path is guarded; folded are the routes in lower case; see Table.Spelled.
	watched bool
	folded  *Routes
	// client is the host's rule for client certificates; nil for none.
	client *ClientRule
}

// Make makes a table; unchanged hosts are shared with last.
func Make(last *Table, hosts map[string]*schema.Host) *Table {
	t := &Table{exact: make(map[string]*Routes, len(hosts)), wild: map[string]*Routes{}}
	for name, h := range hosts {
		var r *Routes
		if last != nil {
			if r = last.named(name); r != nil && r.Host != h {
				r = nil
			}
		}
		if r == nil {
			r = compile(h)
			r.watched = watches(r)
			r.folded = folded(r)
		}
		t.assert(r)
		t.passes = t.passes || h.Passthrough != ""
		t.certified = t.certified || r.client != nil || len(h.Ciphers) > 0
		switch {
		case name == "":
			t.rest = r
		case len(name) > 2 && name[:2] == "*.":
			t.wild[name[1:]] = r
		default:
			t.exact[name] = r
		}
	}
	t.said = t.allAsserted()
	t.lower = t.lowered()
	return t
}

func (t *Table) named(name string) *Routes {
	switch {
	case name == "":
		return t.rest
	case len(name) > 2 && name[:2] == "*.":
		return t.wild[name[1:]]
	}
	return t.exact[name]
}

func compile(h *schema.Host) *Routes {
	r := &Routes{Host: h, exact: map[string]*schema.Path{}, prefix: map[string]*schema.Path{},
		ready:    map[*schema.Path]*Ready{},
		asserted: assertions(h)}
	r.client = clientRule(h)
	if h.Default != nil && h.Default.Options != nil {
		r.ready[h.Default] = Prepare(h.Default)
	}
	patterns := compilePatterns(h)
	for i := range h.Paths {
		p := &h.Paths[i]
		prog, isPattern := patterns[i]
		if p.Options != nil {
			r.ready[p] = prepare(p, prog.err)
		}
		if isPattern {
			continue
		}
		into, key := r.exact, p.Path
		if p.Kind == schema.Prefix {
			into, key = r.prefix, trimSlash(p.Path)
		}
		if _, there := into[key]; !there { // the first of two is the older one
			into[key] = p
		}
	}
	r.ordered = r.order(patterns)
	return r
}

// trimSlash removes the trailing slash of a prefix, which has no meaning.
func trimSlash(s string) string {
	for len(s) > 0 && s[len(s)-1] == '/' {
		s = s[:len(s)-1]
	}
	return s
}
