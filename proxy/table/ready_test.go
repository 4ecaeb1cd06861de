package table

import (
	"fmt"
	"strings"
	"testing"

	"wayleave.dev/proxy/regex"
	"wayleave.dev/proxy/schema"
)

func TestTemplates(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "[]"},
		{"text", "[{0 text 0}]"},
		{"/$1/$2$10", fmt.Sprintf("[{0 / 0} {%d  1} {0 / 0} {%d  2} {%d  1} {0 0 0}]", Group, Group, Group)},
		{"${host}name$request_uri", fmt.Sprintf("[{%d  0} {0 name 0} {%d  0}]", HostName, RequestURI)},
		{"$http_X_User_Id", fmt.Sprintf("[{%d x-user-id 0}]", HeaderField)},
		{"$cookie_Session_a", fmt.Sprintf("[{%d Session_a 0}]", CookieValue)},
		{"$arg_id.$query_string", fmt.Sprintf("[{%d id 0} {0 . 0} {%d  0}]", Argument, Args)},
	} {
		got, err := ParseTemplate(c.text)
		if s := fmt.Sprintf("%v", []Part(got)); err != nil || s != c.want {
			t.Errorf("%q: %s %v, want %s", c.text, s, err, c.want)
		}
	}
	for _, bad := range []string{"$", "a$", "$/", "${host", "${}", "$nothing", "$0", "$http_", "$cookie_",
		"$arg_", "$1$"} {
		if _, err := ParseTemplate(bad); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

func TestWhatCannotBeReadIsNamed(t *testing.T) {
	for _, c := range []struct {
		options schema.Options
		want    string
	}{
		{schema.Options{RewriteTarget: "/$x"}, `rewriteTarget "/$x": variable "$x" is not known`},
		{schema.Options{Redirect: "$"}, "redirect"},
		{schema.Options{HashBy: "${host"}, "hashBy"},
		{schema.Options{AuthURL: &schema.AuthURL{URL: "http://$y/"}}, "authURL.url"},
		{schema.Options{AuthURL: &schema.AuthURL{URL: "http://a/", SignIn: "$z"}}, "authURL.signIn"},
		{schema.Options{PathPattern: "("}, "pathPattern"},
		{schema.Options{PathPattern: "a)|(b"}, "pathPattern"},
		{schema.Options{PathPattern: "(?=a)"}, "pathPattern"},
		{schema.Options{PathPattern: strings.Repeat("a", regex.MaxLength+1)}, "allowed: 1024"},
		{schema.Options{PathPattern: "((a{40}){40}|b)"}, "pathPattern"},
		{schema.Options{PathPattern: "[a-z]{999}[0-9]{999}"}, "allowed: 1000"},
		{schema.Options{Canary: []schema.Canary{{}, {Pattern: "["}}}, "canary[1].pattern"},
	} {
		err := Prepare(&schema.Path{Options: &c.options}).Err
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.options, err, c.want)
		}
	}
	if err := Prepare(&schema.Path{Options: &schema.Options{PathPattern: `/a(/|$)(.*)`, RewriteTarget: "/$2",
		Canary: []schema.Canary{{Pattern: "^x"}}}}).Err; err != nil {
		t.Error(err)
	}
}

// Options are found with their path, also those of a default; a path that is too long for the
// patterns of its host is closed.
func TestReadyComesWithItsPath(t *testing.T) {
	h := &schema.Host{Paths: []schema.Path{
		{Kind: schema.Exact, Path: "/exact", Options: &schema.Options{RewriteTarget: "/e"}, Source: "Ingress a/b spec"},
		{Kind: schema.Prefix, Path: "/prefix", Options: &schema.Options{RewriteTarget: "/p"}},
		{Path: "/re.*", Options: &schema.Options{PathPattern: "/re(.*)", RewriteTarget: "/r"}},
		{Kind: schema.Prefix, Path: "/plain"},
	}, Default: &schema.Path{Options: &schema.Options{RewriteTarget: "/d"}}}
	routes := Make(nil, map[string]*schema.Host{"": h}).Rest()
	var m Match
	for _, c := range []struct{ path, want string }{
		{"/exact", "/e"}, {"/prefix/x", "/p"}, {"/RExyz", "/r"}, {"/plain", ""}, {"/else", "/d"}, {"/plain/", ""},
	} {
		if !routes.Find([]byte(c.path), &m) {
			t.Fatal(c.path)
		}
		got := ""
		if m.Ready != nil {
			got = m.Ready.Rewrite[0].Name
		}
		if got != c.want || (m.Groups != nil) != (c.want == "/r") {
			t.Errorf("%.20s: %q %q, want %q", c.path, got, m.Groups, c.want)
		}
	}
	if !routes.Find([]byte("/re"+strings.Repeat("x", maxMatched)), &m) || !m.TooLong || !m.Path.Closed {
		t.Errorf("a long path: %+v", m)
	}
	if !routes.Find([]byte("/plain"), &m) || m.TooLong {
		t.Errorf("the path behind it: %+v", m)
	}
	if got := Prepare(&h.Paths[0]).Limit; got != "Ingress a/b" {
		t.Error(got)
	}
}
