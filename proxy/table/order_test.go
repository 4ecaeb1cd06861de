package table

import (
	"fmt"
	"strings"
	"testing"

	"wayleave.dev/proxy/schema"
)

// paths reads "[=]PATH[ guard][ foreign][ closed]"; "~" begins a pattern.
func ordering(list ...string) *schema.Host {
	h := &schema.Host{Name: "h"}
	for _, s := range list {
		f := strings.Fields(s)
		p := schema.Path{Kind: schema.Prefix, Path: strings.TrimLeft(f[0], "=~"), Backend: f[0], Source: "Ingress a/b"}
		switch f[0][0] {
		case '=':
			p.Kind = schema.Exact
		case '~':
			p.Options = &schema.Options{PathPattern: p.Path}
		}
		for _, flag := range f[1:] {
			switch flag {
			case "guard":
				if p.Options == nil {
					p.Options = &schema.Options{}
				}
				p.Options.Auth = &schema.Auth{}
			case "foreign":
				p.Foreign, p.Source = true, "Ingress c/d"
			case "closed":
				p.Closed = true
			}
		}
		h.Paths = append(h.Paths, p)
	}
	return h
}

// A host with Regex reads every path as ingress-nginx does, and opens no guard by that.
func TestRegexHosts(t *testing.T) {
	for _, c := range []struct {
		paths string
		want  map[string]string
	}{
		{"/Foo;/", map[string]string{"/foo": "/Foo", "/FOOBAR/x": "/Foo", "/fo": "/", "/": "/"}},
		{"/Foo", map[string]string{"/foo": "/Foo", "/x": ""}},
		{"/foo/", map[string]string{"/foo/x": "/foo/", "/FOO/x": "/foo/", "/foobar": "", "/foo": "/foo/"}},
		{"=/foo;/", map[string]string{"/foo": "=/foo", "/foo/x": "=/foo", "/FOO": "=/foo", "/fo": "/"}},
		{"/foo;=/foo", map[string]string{"/foo": "=/foo", "/foo/x": "/foo"}},
		{"=/foo;/foo", map[string]string{"/foo": "=/foo", "/foo/x": "=/foo"}}, // of one text the older
		{"=/;/x", map[string]string{"/": "=/", "/y": "", "/x": "/x"}},
		{"=/foo;~/foo", map[string]string{"/foo": "=/foo", "/FOO/x": "=/foo"}},
		{"/foo;/foo/bar;~/foo/bar/(.+)", map[string]string{"/foo/bar/1": "~/foo/bar/(.+)", "/foo/bar": "/foo/bar",
			"/foo/barn": "/foo/bar", "/foo": "/foo", "/food": "/foo"}},
		{"/foo/bar/bar;~/foo/bar/[A-Z0-9]{3}", map[string]string{"/foo/bar/bar": "~/foo/bar/[A-Z0-9]{3}",
			"/foo/bar/bars": "~/foo/bar/[A-Z0-9]{3}", "/foo/bar/ba-": ""}},
		{"/ guard;/pub", map[string]string{"/pub/x": "/pub", "/public": "/ guard", "/PUB": "/ guard"}},
		{"/;/adm guard", map[string]string{"/ADM": "/adm guard", "/admin": "/adm guard", "/x": "/"}},
		{"/ guard;/adm guard", map[string]string{"/ADM": "/adm guard"}},
		{"/;/blog foreign", map[string]string{"/blog/x": "/blog foreign", "/BLOG": "/", "/blogs": "/"}},
		{"/b;/blog foreign", map[string]string{"/blog/x": "/blog foreign", "/BLOG": "/blog foreign", "/by": "/b"}},
	} {
		h := ordering(strings.Split(c.paths, ";")...)
		for i, s := range strings.Split(c.paths, ";") {
			h.Paths[i].Backend = s
		}
		h.Regex = true
		tab := Make(nil, map[string]*schema.Host{"h": h})
		for path, want := range c.want {
			var m Match
			got := ""
			if tab.Route([]byte("h"), []byte(path), &m) {
				got = m.Path.Backend
			}
			if got != want {
				t.Errorf("%s: %s is served by %q, want %q", c.paths, path, got, want)
			}
		}
	}
}

// What matches only by Regex takes nothing from a guard that another host, or the default, has.
func TestRegexHostsLeaveGuardsOfOthers(t *testing.T) {
	own := ordering("/pub")
	own.Name, own.Regex = "x.h", true
	wild, rest, def := ordering("/ guard"), ordering("/ guard"), ordering("/pub")
	for name, hosts := range map[string]map[string]*schema.Host{
		"wildcard": {"x.h": own, "*.h": wild}, "rest": {"x.h": own, "": rest},
		"default": {"x.h": {Name: "x.h", Regex: true, Paths: def.Paths, Default: &wild.Paths[0]}},
	} {
		tab := Make(nil, hosts)
		for path, want := range map[string]string{"/pub/x": "/pub", "/public": "/"} {
			var m Match
			if !tab.Route([]byte("x.h"), []byte(path), &m) || m.Path.Path != want {
				t.Errorf("%s: %s is served by %+v", name, path, m.Path)
			}
		}
	}
	var m Match
	if tab := Make(nil, map[string]*schema.Host{"x.h": own, "": ordering("/")}); !tab.Route([]byte("x.h"),
		[]byte("/public"),
		&m) || m.Path.Path != "/pub" {
		t.Errorf("/public is served by %+v", m.Path)
	}
}

// The order of ingress-nginx: a server's locations by the length of their text, then the greater
// one first (internal/ingress/controller/controller.go), and what that must not open.
func TestOrderOfPatterns(t *testing.T) {
	for _, c := range []struct {
		paths string
		want  map[string]string
	}{
		{"~/(.*);=/healthz guard;/api/v2/orders", map[string]string{"/healthz": "=/healthz",
			"/api/v2/orders/7": "/api/v2/orders", "/x": "~/(.*)", "/api": "~/(.*)"}},
		{"~/()(.*);=/.well-known/acme-challenge/t",
			map[string]string{"/.well-known/acme-challenge/t": "=/.well-known/acme-challenge/t"}},
		{"~/(?:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa|)(.*);/.well-known/acme-challenge/t",
			map[string]string{"/.well-known/acme-challenge/t": "/.well-known/acme-challenge/t"}},
		{"~/a(.*);~/a/b(.*);~/a/(.*)", map[string]string{"/a/b": "~/a/b(.*)", "/a/c": "~/a/(.*)", "/ac": "~/a(.*)"}},
		// one length: the greater
		{"~/(.*);/abcd;/ABC", map[string]string{"/abcd": "/abcd"}},
		// as ingress-nginx has it
		{"~/(.*);/ab", map[string]string{"/ab": "~/(.*)"}},
		// but nothing opens a guard
		{"~/(.*);/ab guard", map[string]string{"/ab": "/ab", "/AB/c": "/ab", "/x": "~/(.*)"}},
		{"~/(.*)(x|y|z)*;~/ab/(.*) guard", map[string]string{"/ab/c": "~/ab/(.*)", "/x": "~/(.*)(x|y|z)*"}},
		{"~/(.*);/ guard", map[string]string{"/x": "/", "/": "/"}},
		{"~/(.*) guard;/ guard", map[string]string{"/x": "~/(.*)"}},
		{"~/(.*) guard;/ab", map[string]string{"/ab": "~/(.*)"}},
		{"~/(.*) guard;/abcde", map[string]string{"/abcde": "/abcde", "/ABCDE": "~/(.*)", "/abcdef": "~/(.*)"}},
		// as a location of its regular expression
		{"~/(.*);/abcde", map[string]string{"/abcde": "/abcde", "/ABCDE": "/abcde", "/abcdef": "/abcde"}},
		{"~/(.*);/abcde foreign", map[string]string{"/abcde": "/abcde", "/ABCDE": "~/(.*)", "/abcdef": "~/(.*)"}},
		{"~/(.*);=/abcde", map[string]string{"/abcde": "=/abcde", "/ABCDE": "~/(.*)", "/abcde/": "~/(.*)"}},
		{"~/(.*);=/admin guard", map[string]string{"/admin": "=/admin", "/ADMIN": "=/admin", "/admin/": "=/admin"}},
		// Another namespace's pattern.
		{"~/(.*) foreign;/", map[string]string{"/x": "/"}},
		{"~/(.*)(.*)(.*) foreign;~/(.*)", map[string]string{"/x": "~/(.*)"}},
		{"~/blog(/|$)(.*) foreign;~/(.*)", map[string]string{"/blog/1": "~/blog(/|$)(.*)", "/x": "~/(.*)"}},
		{"~/(?=x) foreign closed;/;~/y(.*)", map[string]string{"/x": "/", "/yy": "~/y(.*)"}},
		{"~/(?=x) foreign closed;/x guard foreign", map[string]string{"/x": "~/(?=x)"}},
		// Patterns that are not RE2 close what they could match.
		{"~/admin(?=/) closed;/", map[string]string{"/admin/x": "~/admin(?=/)", "/ADMIN": "~/admin(?=/)", "/x": "/"}},
		{"~/(?!public)(.*) closed;/", map[string]string{"/x": "~/(?!public)(.*)", "/public": "~/(?!public)(.*)"}},
		{"~/admins?(?=/) closed;/", map[string]string{"/admin": "~/admins?(?=/)", "/x": "/"}},
		{"~/a(?=/)|/b closed;/", map[string]string{"/b": "~/a(?=/)|/b"}},
		{"~/admin(?=/) closed;~/(.*)(very|long|pattern)?", map[string]string{"/admin/x": "~/admin(?=/)",
			"/x": "~/(.*)(very|long|pattern)?"}},
		{"~/admin(?=/) closed;~/ad closed", map[string]string{"/admin": "~/admin(?=/)", "/add": "~/ad"}},
	} {
		for _, turned := range []bool{false, true} {
			list := strings.Split(c.paths, ";")
			if turned { // which path was there first does not matter
				for i, j := 0, len(list)-1; i < j; i, j = i+1, j-1 {
					list[i], list[j] = list[j], list[i]
				}
			}
			tab := made(ordering(list...))
			for target, want := range c.want {
				if got := ask(tab, "h", target); got != want {
					t.Errorf("%s (%v): %s leads to %s, want %s", c.paths, turned, target, got, want)
				}
			}
		}
	}
}

// Thousands of patterns of one Ingress cost a request no more than the bound; what is over the
// bound is closed, and the patterns of the host's owner come first.
func TestPatternsOfAHostAreBounded(t *testing.T) {
	var list []string
	for i := range 2000 {
		list = append(list, fmt.Sprintf("~/t%d/(a|b|c)*(x|y)+(.*)z foreign", i),
			fmt.Sprintf("~/(.*)/u%d/[a-z]{1,40} foreign", i))
	}
	list = append(list, "~/mine(/|$)(.*)", "/")
	h := ordering(list...)
	over := CheckPatterns(h)
	if len(over) < 3000 || over[len(list)-2] != nil {
		t.Errorf("%d patterns are over the bound, %v", len(over), over[len(list)-2])
	}
	routes := made(h).Lookup([]byte("h"))
	var m Match
	worst := 0
	for _, path := range []string{"/mine/x", "/t0/abxz", "/t1999/abxz", "/x/u1999/" + strings.Repeat("a", 900),
		"/" + strings.Repeat("\u00e9", 500), "/" + strings.Repeat("a", maxMatched-1)} {
		m.Steps = 0
		if !routes.Find([]byte(path), &m) {
			t.Errorf("%.20s is not found", path)
		}
		worst = max(worst, m.Steps)
	}
	if worst > maxWork || worst == 0 {
		t.Errorf("a request took %d steps, %d are allowed", worst, maxWork)
	}
	for target, want := range map[string]string{"/mine/x": "~/mine(/|$)(.*)", "/t0/abxz": list[0],
		"/t1999/abxz": list[3998]} {
		if !routes.Find([]byte(target), &m) || m.Path.Backend != strings.Fields(want)[0] {
			t.Errorf("%s leads to %s, want %s", target, m.Path.Backend, want)
		}
	}
	if routes.Find([]byte("/t1999/abxz"), &m); m.Ready.Err == nil {
		t.Error("a pattern over the bound is served")
	}
	one := ordering("~/a(.*)")
	if routes = made(one).Lookup([]byte("h")); !routes.Find([]byte("/a"+strings.Repeat("x", maxMatched-2)),
		&m) || m.TooLong {
		t.Error("one pattern makes 8 KiB too long")
	}
}

// What a wildcard host keeps out does not reach the hosts without a name by way of an exact host
// below it that has no path for it.
func TestAGuardedWildcardHostIsAsked(t *testing.T) {
	wild := ordering("/ guard", "/open")
	wild.Name = "*.h"
	exact, rest := ordering("/only"), ordering("/")
	exact.Name, rest.Name = "x.h", ""
	rest.Paths[0].Backend = "rest"
	tab := made(wild, exact, rest)
	var m Match
	for path, want := range map[string]string{"/only": "/only", "/else": "/", "/open": "rest"} {
		if !tab.Route([]byte("x.h"), []byte(path), &m) || m.Path.Backend != want {
			t.Errorf("%s leads to %s, want %s", path, m.Path.Backend, want)
		}
	}
}

func TestAYoungerWildcardHostLendsNoCertificate(t *testing.T) {
	for _, c := range []struct {
		namespace string
		since     int64
		want      string
	}{{"a", 2, "wild"}, {"b", 2, ""}, {"b", 0, "wild"}, {"b", 1, ""}} {
		tab := made(&schema.Host{Name: "x.h", Namespace: "a", Since: 1},
			&schema.Host{Name: "*.h", Namespace: c.namespace,
				Since: c.since, Certificate: "wild"})
		if own, wild, _, known := tab.CertificateOf([]byte("x.h")); own.First != "" || wild.First != c.want || !known {
			t.Errorf("%+v: %q %q", c, own, wild)
		}
		if own, _, _, _ := tab.CertificateOf([]byte("y.h")); own.First != "wild" {
			t.Errorf("%+v: the wildcard host's own names have %q", c, own)
		}
	}
}
