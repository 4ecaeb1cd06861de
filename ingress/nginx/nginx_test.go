package nginx

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"wayleave.dev/model"
)

// made is an Ingress of "HOST PATH TYPE SERVICE …" and annotations, "name: value".
func made(name string, age int, rules string, annotations ...string) *model.Ingress {
	i := &model.Ingress{Name: model.Name{Namespace: "n", Name: name}, Created: time.Unix(int64(age), 0),
		Annotations: map[string]string{}}
	for _, a := range annotations {
		k, v, _ := strings.Cut(a, ": ")
		i.Annotations[prefix+k] = v
	}
	f := strings.Fields(rules)
	r := model.IngressRule{Host: f[0]}
	for k := 1; k+2 < len(f); k += 3 {
		types := map[string]model.PathType{"E": model.PathExact, "P": model.PathPrefix,
			"I": model.PathImplementationSpecific}
		r.Paths = append(r.Paths, model.IngressPath{Path: f[k], Type: types[f[k+1]],
			Backend: model.IngressBackend{Service: f[k+2], Port: 80}})
	}
	i.Rules = []model.IngressRule{r}
	return i
}

func key(namespace string, b model.IngressBackend) string {
	return fmt.Sprintf("%s/%s:%d", namespace, b.Service, b.Port)
}

// text is an answer in words.
func text(a Answer) string {
	if a.Status != 0 {
		return strings.TrimSpace(fmt.Sprintf("%d %s", a.Status, a.Location))
	}
	return strings.Join(a.Backends, " or ") + " as " + a.Target
}

// What ingress-nginx's documentation says of paths, and what nginx does with the locations that follow
// (bench/proxy.TestRouting asks a real one).
func TestAnswers(t *testing.T) {
	for _, tc := range []struct {
		name string
		list []*model.Ingress
		want map[string]string
	}{
		{"the example of ingress-path-matching.md", []*model.Ingress{made("a", 1, "h /foo/bar P s1 /foo/bar/ P s2"),
			made("b", 2, "h /foo/bar/(.+) I s3", "rewrite-target: /$1")},
			map[string]string{"/foo/bar/1": "n/s3:80 as /1", "/foo/bar/": "n/s2:80 as /foo/bar/",
				"/foo/bar": "n/s1:80 as /foo/bar", "/FOO/BARN": "n/s1:80 as /FOO/BARN"}},
		{"its warning", []*model.Ingress{made("a", 1, "h /foo/bar/bar P s1 /foo/bar/[A-Z0-9]{3} I s2",
			"use-regex: true")}, map[string]string{"/foo/bar/bar": "n/s2:80 as /foo/bar/bar"}},
		{"plain paths", []*model.Ingress{made("a", 1, "h /foo P s1 /foo E s2 / I s3 /dir/ P s4")},
			map[string]string{"/foo": "n/s2:80 as /foo", "/foo/x": "n/s1:80 as /foo/x", "/foobar": "n/s3:80 as /foobar",
				"/FOO": "n/s3:80 as /FOO", "/dir": "301 http://h/dir/", "/%66oo": "n/s2:80 as /%66oo"}},
		{"a path that is its own target", []*model.Ingress{made("a", 1, "h / P s1", "rewrite-target: /")},
			map[string]string{"/x": "n/s1:80 as /x"}},
		{"a rewrite of a prefix", []*model.Ingress{made("a", 1, "h /app P s1", "rewrite-target: /")},
			map[string]string{"/apple?q": "n/s1:80 as /?q", "/x": "404"}},
		{"a rewrite to a URL", []*model.Ingress{made("a", 1, "h /old/(.*) I s1", "rewrite-target: https://new/$1")},
			map[string]string{"/OLD/a%20b?q": "302 https://new/a%20b?q"}},
		{"a redirect, also of what no path has",
			[]*model.Ingress{made("a", 1, "h /old P s1", "permanent-redirect: https://new/",
				"permanent-redirect-code: 308")}, map[string]string{"/old": "308 https://new/",
				"/x": "308 https://new/"}},
		{"app-root", []*model.Ingress{made("a", 1, "h / P s1", "app-root: /app")},
			map[string]string{"/": "302 http://h/app", "/x": "n/s1:80 as /x"}},
		{"a canary", []*model.Ingress{made("a", 2, "h / P s1"), made("b", 1, "h / P s2", "canary: True",
			"canary-weight: 10")}, map[string]string{"/": "n/s1:80 or n/s2:80 as /"}},
		{"the older Ingress", []*model.Ingress{made("b", 1, "h /x P s2"), made("a", 1, "h /x P s1"),
			made("c", 0, "h /y P s3")}, map[string]string{"/x": "n/s2:80 as /x", "/y": "n/s3:80 as /y"}},
		{"an Ingress that is ignored", []*model.Ingress{made("a", 1, "h / P s1", "temporal-redirect: https://$x")},
			map[string]string{"/": "404"}},
		{"https", []*model.Ingress{made("a", 1, "h / P s1 /.well-known/acme-challenge/t E s2",
			"force-ssl-redirect: T")}, map[string]string{"/x/": "308 https://h/x",
			"/.well-known/acme-challenge/t": "n/s2:80 as /.well-known/acme-challenge/t"}},
		{"what is none", []*model.Ingress{made("a", 1, "h / P s1")}, map[string]string{"/../x": "400", "/%zz": "400"}},
	} {
		c := New(tc.list, key)
		for target, want := range tc.want {
			if got := text(c.Answer(Request{Method: "GET", Host: "h", Target: target,
				Header: http.Header{}})); got != want {
				t.Errorf("%s: %s is %s, want %s", tc.name, target, got, want)
			}
		}
	}
}

// Hosts are found as nginx finds servers.
func TestLookup(t *testing.T) {
	c := New([]*model.Ingress{made("a", 1, "a.x / P s", "server-alias: b.x,*.y"), made("b", 2, "*.x / P s")}, key)
	for name, want := range map[string]string{"a.x": "a.x", "b.x": "a.x", "c.x": "*.x", "d.c.x": "", "q.y": "a.x",
		"r.q.y": "a.x", "z": ""} {
		if got := c.Lookup(name).Host; got != want {
			t.Errorf("%s is served by %q, want %q", name, got, want)
		}
	}
}
