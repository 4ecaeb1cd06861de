package table

import (
	"bytes"
	"net/url"
	"path"
	"strings"
	"testing"

	"wayleave.dev/proxy/schema"
)

// host makes a host of paths such as "=/exact", "/prefix".
func host(name string, paths ...string) *schema.Host {
	h := &schema.Host{Name: name}
	for _, p := range paths {
		kind := schema.Prefix
		if p[0] == '=' {
			kind, p = schema.Exact, p[1:]
		}
		h.Paths = append(h.Paths, schema.Path{Kind: kind, Path: p, Backend: name + " " + p})
	}
	return h
}

func made(list ...*schema.Host) *Table {
	m := map[string]*schema.Host{}
	for _, h := range list {
		m[h.Name] = h
	}
	return Make(nil, m)
}

// ask is what the proxy does to find a way.
func ask(t *Table, authority, target string) string {
	var m Match
	clean, ok := Clean([]byte(target), nil)
	if !ok {
		return "bad"
	}
	if r := t.Lookup(Name([]byte(authority), make([]byte, 0, 64))); r != nil && r.Find(clean, &m) {
		return m.Path.Backend
	}
	return "none"
}

// The examples of Kubernetes' page on Ingress, "Path types".
func TestPathsAsKubernetesHasThem(t *testing.T) {
	for _, x := range []struct {
		paths, target, want string
	}{
		{"/", "/any/thing", "/"},
		{"=/foo", "/foo", "=/foo"},
		{"=/foo", "/bar", ""},
		{"=/foo", "/foo/", ""},
		{"=/foo/", "/foo", ""},
		{"/foo", "/foo", "/foo"},
		{"/foo", "/foo/", "/foo"},
		{"/foo/", "/foo", "/foo/"},
		{"/foo/", "/foo/", "/foo/"},
		{"/aaa/bb", "/aaa/bbb", ""},
		{"/aaa/bbb", "/aaa/bbb", "/aaa/bbb"},
		{"/aaa/bbb/", "/aaa/bbb", "/aaa/bbb/"},
		{"/aaa/bbb", "/aaa/bbb/", "/aaa/bbb"},
		{"/aaa/bbb", "/aaa/bbb/ccc", "/aaa/bbb"},
		{"/aaa/bbb", "/aaa/bbbxyz", ""},
		{"/ /aaa", "/aaa/ccc", "/aaa"},
		{"/ /aaa /aaa/bbb", "/aaa/bbb", "/aaa/bbb"},
		{"/ /aaa /aaa/bbb", "/ccc", "/"},
		{"/aaa", "/ccc", ""},
		{"/foo =/foo", "/foo", "=/foo"},
		{"/foo =/foo", "/foo/", "/foo"},
		{"/foo", "/FOO", ""},
		// What a server behind reads as another path is routed as that.
		{"/public /admin", "/public/../admin", "/admin"},
		{"/public /admin", "/public/%2e%2E/admin", "/admin"},
		{"/public /admin", "//admin", "/admin"},
		{"/public /admin", "/./admin/.", "/admin"},
		{"/public /admin", "/%61dmin", "/admin"},
		{"/public /admin", "/public%2f..%2fadmin", "/admin"},
		{"/a b", "/a%20b", "/a b"},
	} {
		paths := strings.Split(x.paths, " ")
		if x.paths == "/a b" {
			paths = []string{x.paths}
		}
		want := "none"
		if x.want != "" {
			want = "h " + strings.TrimPrefix(x.want, "=")
		}
		h := host("h", paths...)
		tab := made(h)
		if got := ask(tab, "h", x.target); got != want {
			t.Errorf("%s asked for %s: %s, want %s", x.paths, x.target, got, want)
		}
		if x.want != "" && x.want[0] == '=' { // the exact one, not a prefix of the same path
			var m Match
			clean, _ := Clean([]byte(x.target), nil)
			if !tab.Lookup([]byte("h")).Find(clean, &m) || m.Path.Kind != schema.Exact {
				t.Errorf("%s asked for %s: not the exact one", x.paths, x.target)
			}
		}
	}
}

func TestHosts(t *testing.T) {
	tab := made(host("a.example.com", "/"), host("*.example.com", "/"), host("*.b.example.com", "/"), host("", "/"))
	for authority, want := range map[string]string{
		"a.example.com":      "a.example.com /",
		"A.EXAMPLE.com:8080": "a.example.com /",
		"a.example.com.":     "a.example.com /",
		"b.example.com":      "*.example.com /",
		"x.b.example.com":    "*.b.example.com /",
		"x.a.example.com":    " /", // a star is one label
		"example.com":        " /",
		".example.com":       " /",
		"other":              " /",
		"":                   " /",
		"[::1]:80":           " /",
		"192.0.2.1":          " /",
	} {
		if got := ask(tab, authority, "/"); got != want {
			t.Errorf("%s: %q, want %q", authority, got, want)
		}
	}
	if got := ask(made(host("a", "/")), "b", "/"); got != "none" {
		t.Errorf("a host of another is answered: %s", got)
	}
	var none *Table
	if none.Lookup([]byte("a")) != nil || none.Rest() != nil {
		t.Error("no table has routes")
	}
}

func TestDefaultBackends(t *testing.T) {
	h := host("a", "/x")
	h.Default = &schema.Path{Backend: "default"}
	if got := ask(made(h), "a", "/y"); got != "default" {
		t.Error(got)
	}
}

func TestPatterns(t *testing.T) {
	h := host("a", "/", "/api")
	h.Paths = append(h.Paths,
		schema.Path{Path: "/api/v1(/|$)(.*)", Backend: "pattern",
			Options: &schema.Options{PathPattern: `/api/v1(/|$)(.*)`}},
		schema.Path{Path: "/bad(", Backend: "bad", Options: &schema.Options{PathPattern: `/bad(`}})
	tab := made(h)
	// A pattern that cannot be read takes what it could match; its options answer 500.
	for target, want := range map[string]string{"/api/v1/users": "pattern", "/API/V1": "pattern", "/api/v2": "a /api",
		"/": "a /", "/badly": "bad"} {
		if got := ask(tab, "a", target); got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
	var m Match
	if !tab.Lookup([]byte("a")).Find([]byte("/api/v1/users/7"), &m) || string(m.Groups[2]) != "users/7" {
		t.Errorf("groups %q", m.Groups)
	}
}

func TestMakeSharesWhatDidNotChange(t *testing.T) {
	a, b := host("a", "/"), host("b", "/")
	first := Make(nil, map[string]*schema.Host{"a": a, "b": b})
	second := Make(first, map[string]*schema.Host{"a": a, "b": host("b", "/new")})
	if first.exact["a"] != second.exact["a"] || first.exact["b"] == second.exact["b"] {
		t.Error("the wrong ones are shared")
	}
	if ask(first, "b", "/new") != "b /" || ask(second, "b", "/new") != "b /new" {
		t.Error("a change is seen in the table before it")
	}
}

func TestLookupsAllocateNothing(t *testing.T) {
	tab := made(host("shop.example.com", "/", "/a", "/a/b", "=/c"), host("*.example.com", "/"))
	name, target, to := []byte("SHOP.example.com:8080"), []byte("/a/b/c/d"), make([]byte, 0, 64)
	var m Match
	if n := testing.AllocsPerRun(1000, func() {
		clean, _ := Clean(target, nil)
		if !tab.Lookup(Name(name, to)).Find(clean, &m) {
			t.Fatal("not found")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzClean: a clean path is what Go's path.Clean makes of the decoded one, but for a
// slash at the end; cleaning it again changes nothing but escapes.
func FuzzClean(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/%2e%2e/a", "//a//b/", "/a/./b/.", "/a/..", "/..", "/%", "/%00",
		"/a%2fb", "/...", "/a/...//"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) == 0 || p[0] != '/' {
			return
		}
		got, ok := Clean(p, nil)
		if !ok {
			return
		}
		plain, err := url.PathUnescape(string(p))
		if err != nil {
			t.Fatalf("%q: Go does not unescape it: %v", p, err)
		}
		want := path.Clean(plain)
		if have := string(got); have != want && have != want+"/" || bytes.Contains(got, []byte("//")) &&
			!strings.Contains(want, "//") {
			t.Fatalf("%q: %q, want %q", p, have, want)
		}
	})
}
