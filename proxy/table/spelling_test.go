package table

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/proxy/schema"
)

// backends are what servers make of the path that they are sent: each written from the
// server's own rules, and not from what readings does.
var backends = map[string]func(string) string{
	"as it is": func(s string) string { return s },
	"nginx": func(s string) string { // decodes, merges slashes, resolves dots
		d := unescape(s)
		for strings.Contains(d, "//") {
			d = strings.ReplaceAll(d, "//", "/")
		}
		return resolve(d)
	},
	"Go": func(s string) string {
		u, err := url.PathUnescape(s)
		if err != nil {
			return s
		}
		return path.Clean("/" + u)
	},
	"Go, of the escaped path": func(s string) string { return path.Clean("/" + s) },
	"Servlet": func(s string) string { // parameters, then decodes, then resolves
		return path.Clean("/" + unescape(cutParameters(s)))
	},
	"Servlet, decoded first": func(s string) string { return path.Clean("/" + cutParameters(unescape(s))) },
	"IIS":                    func(s string) string { return strings.ToLower(windows(unescape(s))) },
	"behind another proxy":   func(s string) string { return path.Clean("/" + unescape(path.Clean("/"+unescape(s)))) },
	"IIS behind a proxy":     func(s string) string { return strings.ToLower(windows(unescape(unescape(s)))) },
	"Servlet behind a proxy": func(s string) string { return path.Clean("/" + cutParameters(unescape(unescape(s)))) },
	"Express":                func(s string) string { return strings.ToLower(strings.TrimRight(unescape(s), "/")) },
	"WSGI": func(s string) string {
		out := unescape(s)
		for out != "" && slices.Contains([]byte(" \t\r\n\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0"), out[len(out)-1]) {
			out = out[:len(out)-1]
		}
		return out
	},
	"CGI in C": func(s string) string {
		d, _, _ := strings.Cut(unescape(s), "\x00")
		return path.Clean("/" + d)
	},
	"a URL in a URL": func(s string) string {
		d := unescape(s)
		if i := strings.IndexAny(d, "?#"); i >= 0 {
			d = d[:i]
		}
		return path.Clean("/" + d)
	},
}

func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if u, err := url.PathUnescape(s[i : i+3]); err == nil {
				b.WriteString(u)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func cutParameters(s string) string {
	for {
		i := strings.IndexByte(s, ';')
		if i < 0 {
			return s
		}
		rest := s[i:]
		j := strings.IndexByte(rest, '/')
		if j < 0 {
			return s[:i]
		}
		s = s[:i] + rest[j:]
	}
}

func resolve(s string) string {
	slash := strings.HasSuffix(s, "/")
	if s = path.Clean("/" + s); slash && s != "/" {
		s += "/"
	}
	return s
}

func windows(s string) string {
	parts := strings.Split(path.Clean("/"+strings.ReplaceAll(s, `\`, "/")), "/")
	for i := range parts {
		parts[i] = strings.TrimRight(parts[i], ". ")
	}
	return path.Clean("/" + strings.Join(parts, "/"))
}

// spell writes a path in some way that a server may take for it.
func spell(r *rand.Rand, s string) string {
	detours := []string{"", "", "/.", "//", "/x/..", "/%2e", "/x/%2e%2e", "/x/.%2E", "/x/..;", "/x/..;v=1", "/;",
		"/x%2f..", "/x%2f%2e%2e", "/public/..", "/public/..%2f.", `/x\..`, "/x%5c..", "/.;/", "/x/..%3b",
		"/x/..%00", "/x//../.."}
	var b strings.Builder
	for _, seg := range strings.Split(strings.TrimPrefix(s, "/"), "/") {
		b.WriteString(detours[r.IntN(len(detours))])
		switch r.IntN(12) {
		case 0:
			b.WriteString(`\`)
		case 1:
			b.WriteString("%2f")
		case 2:
			b.WriteString("%5C")
		case 3:
			b.WriteString("%252f")
		default:
			b.WriteString("/")
		}
		for i := range len(seg) {
			c := seg[i : i+1]
			switch r.IntN(16) {
			case 0:
				c = strings.ToUpper(c)
			case 1:
				c = escapeOf(c, "%")
			case 2:
				c = escapeOf(c, "%25")
			}
			b.WriteString(c)
		}
		b.WriteString([]string{"", "", "", "", "", ";", ";x=1", ";x=/", ".", "%20", "%2e", "%3b", "%3Bx", "%00",
			"%2500", "%3f", "%253f", "%23", "%09", "%0a", "%c2%a0", "%a0", "%85", "/", "//", "/."}[r.IntN(26)])
	}
	return b.String()
}

func escapeOf(c, with string) string {
	const digits = "0123456789abcdef"
	return with + string(digits[c[0]>>4]) + string(digits[c[0]&15])
}

// guard is what the host's paths ask for, by path; the oracle of guardOf.
type guardedHost struct {
	paths  map[string]string // guard by path
	exact  map[string]bool
	routes *Table
}

func newGuarded(paths map[string]string, exact ...string) *guardedHost {
	g := &guardedHost{paths: paths, exact: map[string]bool{}}
	h := &schema.Host{Name: "h"}
	for _, e := range exact {
		g.exact[e] = true
	}
	for p, guard := range paths {
		one := schema.Path{Kind: schema.Prefix, Path: p, Backend: "b", Source: "Ingress shop/" + guard + " spec"}
		if g.exact[p] {
			one.Kind = schema.Exact
		}
		switch guard {
		case "closed":
			one.Backend = ""
		case "open":
		default:
			one.Options = &schema.Options{Sources: []netip.Prefix{netip.MustParsePrefix(guard)}}
		}
		h.Paths = append(h.Paths, one)
	}
	g.routes = made(h)
	return g
}

// of is the guard of a path as the server has it, with case or without.
func (g *guardedHost) of(at string, anyCase bool) string {
	if anyCase {
		at = strings.ToLower(at)
	}
	best, guard := -1, "open"
	for p, have := range g.paths {
		q := p
		if anyCase {
			q = strings.ToLower(p)
		}
		q = strings.TrimRight(q, "/")
		match := at == q || !g.exact[p] && strings.HasPrefix(at, q+"/")
		if match && len(q) > best {
			best, guard = len(q), have
		}
	}
	return guard
}

// serve is what the proxy does: the guard of the path, and what it sends on.
func (g *guardedHost) serve(raw string) (guard, sent string, served bool) {
	var m Match
	clean, ok := Clean([]byte(raw), nil)
	if !ok || !g.routes.Route([]byte("h"), clean, &m) {
		return "", "", false
	}
	to, err := g.routes.Spelled([]byte("h"), []byte(raw), &m)
	if err != nil || m.Path.Backend == "" {
		return "", "", false
	}
	return strings.Fields(m.Path.Source)[1][len("shop/"):], string(to), true
}

// around says how a path gets past a guard; empty when it does not. served says that an
// endpoint gets it.
func (g *guardedHost) around(raw string) (how string, served bool) {
	guard, sent, ok := g.serve(raw)
	if !ok {
		return "", false
	}
	for name, f := range backends {
		at := f(sent)
		anyCase := strings.HasPrefix(name, "IIS") || name == "Express"
		if need := g.of(at, anyCase); need != "open" && need != guard {
			return fmt.Sprintf(
				"%q is served by the guard %s as %q, and %s takes that for %q, of the guard %s (paths %v)", raw, guard,
				sent, name, at, need, g.paths), true
		}
	}
	return "", true
}

func guardedHosts() []*guardedHost {
	return []*guardedHost{
		newGuarded(map[string]string{"/": "open", "/admin": "10.0.0.0/8", "/public": "open"}),
		newGuarded(map[string]string{"/": "open", "/admin": "closed", "/public/admin/deep": "10.0.0.0/8"}),
		newGuarded(map[string]string{"/": "10.0.0.0/8", "/public": "open", "/admin": "192.0.2.0/24"}),
		newGuarded(map[string]string{"/": "open", "/Admin/Area": "10.0.0.0/8"}),
		newGuarded(map[string]string{"/public": "open", "/": "open", "/admin": "10.0.0.0/8"}, "/admin"),
	}
}

// No spelling of a guarded path is served by the guard of another: whatever a server makes
// of what it is sent, the guard of that has been passed.
func TestNoSpellingWalksAroundAGuard(t *testing.T) {
	hosts := guardedHosts()
	r := rand.New(rand.NewPCG(14, 4))
	served := 0
	for n := range 40000 {
		h := hosts[n%len(hosts)]
		all := slices.Sorted(maps.Keys(h.paths))
		base := all[r.IntN(len(all))]
		if r.IntN(2) == 0 {
			base = strings.TrimRight(base, "/") + "/x"
		}
		how, ok := h.around(spell(r, base))
		if how != "" {
			t.Fatal(how)
		}
		if ok {
			served++
		}
	}
	if served < 1000 {
		t.Errorf("only %d spellings were served", served)
	}
}

func FuzzSpelled(f *testing.F) {
	for _, s := range []string{"/admin;x=1", "/admin/..%2fpublic", "//admin", "/%2561dmin", `/public\..\admin`,
		"/public/..;/admin", "/admin%3f", "/a//../admin", "/%c1%a1dmin", "/ADMIN/area"} {
		f.Add(s)
	}
	hosts := guardedHosts()
	f.Fuzz(func(t *testing.T, raw string) {
		if len(raw) > 4096 || strings.ContainsAny(raw, "? #\x00\r\n\t\x7f") {
			return // not part of a request's path
		}
		for _, h := range hosts {
			if how, _ := h.around("/" + raw); how != "" {
				t.Error(how)
			}
		}
	})
}

// The cases that were found, one by one.
func TestSpellings(t *testing.T) {
	h := newGuarded(map[string]string{"/": "open", "/admin": "10.0.0.0/8", "/public": "open", "/group": "open"})
	for _, tc := range []struct{ raw, want string }{
		{"/admin", "guarded /admin"}, {"//admin", "guarded //admin"}, {"/./admin", "guarded /admin"},
		{"/%61dmin", "guarded /%61dmin"}, {"/public/../admin", "guarded /admin"},
		{"/public/%2e%2e/admin", "guarded /admin"},
		{"/admin/../public", "open /public"}, {"/admin/%2e%2e/public", "open /public"}, {"/admin/x/../../public/a%20b",
			"open /public/a%20b"},
		{"/admin;x=1", "no"}, {"/admin/..%2fpublic", "no"}, {"/admin%2f..%2fpublic", "no"}, {"/ADMIN", "no"},
		{"/admin%2f", "guarded /admin%2f"}, {"/admin%2fx", "guarded /admin%2fx"},
		{`/admin\x`, "no"}, {`/public\..\admin`, "no"}, {"/public%5c..%5cadmin", "no"}, {"/admin%00", "no"},
		{"/admin%2500", "no"}, {"/%2561dmin", "no"}, {"/public/..;/admin", "no"}, {"/public/..;x/admin", "no"},
		{"/%c1%a1dmin", "no"}, {"/public/%c0%ae%c0%ae/admin", "no"}, {"/%u0061dmin", "no"}, {"/%ef%bd%81dmin", "no"},
		{"/admin%3f", "no"}, {"/admin%23", "no"}, {"/admin%09", "no"}, {"/admin%20", "no"}, {"/admin.", "no"},
		{"/admin%85", "no"}, {"/admin\xa0", "no"},
		{"/;/admin", "no"}, {"/public;/../admin", "guarded /admin"}, {"/a//../admin", "no"},
		{"/group/a%2Fb", "open /group/a%2Fb"}, {"/group/a;jsessionid=1", "open /group/a;jsessionid=1"},
		{"/group/100%25", "open /group/100%25"}, {"/group/Ärger", "open /group/Ärger"},
		{"/Group/A.b", "open /Group/A.b"}, {"/public/", "open /public/"},
		{"/administrator", "open /administrator"}, {"/.well-known/x", "open /.well-known/x"},
		{"/group/http://x/", "open /group/http://x/"},
	} {
		guard, sent, ok := h.serve(tc.raw)
		got := "no"
		if ok {
			if got = "open " + sent; guard != "open" {
				got = "guarded " + sent
			}
		}
		if got != tc.want {
			t.Errorf("%q: %q, want %q", tc.raw, got, tc.want)
		}
	}
	// A host without guards takes all of them as they are.
	open := newGuarded(map[string]string{"/": "open", "/admin": "open"})
	for _, raw := range []string{"/admin;x=1", `/a\b`, "/ADMIN", "/x/../admin", "/%c0%ae", "/a%2f..%2fb"} {
		if _, sent, ok := open.serve(raw); !ok || sent != raw {
			t.Errorf("%q of an open host: %q, %v", raw, sent, ok)
		}
	}
	// As does one whose paths have one guard.
	same := newGuarded(map[string]string{"/": "10.0.0.0/8", "/admin": "10.0.0.0/8"})
	for _, raw := range []string{"/admin;x=1", "/ADMIN", "/admin/"} {
		if _, sent, ok := same.serve(raw); !ok || sent != raw {
			t.Errorf("%q of a host with one guard: %q, %v", raw, sent, ok)
		}
	}
}

// The work for one path is bounded.
func TestReadingsAreBounded(t *testing.T) {
	for _, s := range []string{strings.Repeat("/%252e%252e;%5c", 200), strings.Repeat("/a;b/../", 4000),
		"/" + strings.Repeat("%25", 3000) + "41", "/" + strings.Repeat("x%20", 10000)} {
		all, _ := readings(s)
		n := 0
		for _, r := range all {
			n += len(r)
		}
		if len(all) > maxReadings || n > maxReadingBytes+len(s) {
			t.Errorf("%d readings of %d bytes for a path of %d", len(all), n, len(s))
		}
	}
}

// A guard is for the endpoints of its own namespace. Paths of another namespace hide no guard from
// the readings of a path, and refuse none.
func TestReadingsAreOfOneNamespace(t *testing.T) {
	rest := ordering("/ guard foreign")
	rest.Name = ""
	for _, c := range []struct {
		paths, path string
		refused     bool
	}{
		{"/;/admin guard", "/admin;a/x", true},
		{"/;/admin guard;/admin/x foreign", "/admin;a/x", true},
		{"/;/admin guard;=/admin/x foreign", "/admin;a/x", true},
		{"/;/Admin guard;/ADMIN foreign guard", "/x/..%2fadmin", true},
		{"/api;/Api guard foreign", "/api", false},
		{"/api;=/API guard foreign", "/api/%41", false},
		{"/jenkins", "/jenkins/Job", false},
		{"/Jenkins", "/Jenkins/job", false}, // the folded path leads to hosts that are not named
		{"/x;/pub foreign;/secret foreign guard", "/pub/..%2fsecret", true},
		{"/x guard;/pub foreign", "/pub/X", false},
	} {
		tab := Make(nil, map[string]*schema.Host{"h": ordering(strings.Split(c.paths, ";")...), "": rest})
		clean, ok := Clean([]byte(c.path), nil)
		var m Match
		if !ok || !tab.Route([]byte("h"), clean, &m) {
			t.Fatalf("%s has no %s", c.paths, c.path)
		}
		if _, err := tab.Spelled([]byte("h"), []byte(c.path), &m); (err != nil) != c.refused && !m.guarded() {
			t.Errorf("%s of %s, served by %s: %v, want refused %v", c.path, c.paths, m.Path.Path, err, c.refused)
		}
	}
}
