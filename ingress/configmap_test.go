package ingress

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"wayleave.dev/model"
)

// configMapYAML is a ConfigMap; each field is "NAME: VALUE".
func configMapYAML(name string, fields ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: shop, name: %s}\ndata:\n", name)
	for _, f := range fields {
		k, v, _ := strings.Cut(f, ": ")
		fmt.Fprintf(&b, "  %q: %q\n", k, v)
	}
	return b.String()
}

// Fields of a ConfigMap are set in each response, by whatever answers, and follow the object. A dollar sign is text.
func TestCustomHeaders(t *testing.T) {
	n := newNode(t)
	n.serveBackend("shop/web:80", false, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Frame-Options", "SAMEORIGIN")
		if r.URL.Path == "/missing" {
			w.WriteHeader(http.StatusNotFound)
		}
	})
	w := newFixture(t, Settings{Default: true, ResponseHeaders: []string{"x-frame-options", "X-Cost", "X-Own"}},
		sampleYAML(t)+configMapYAML("fields", "X-Frame-Options: DENY", "X-Cost: $host costs 5$", "X-Own: map")+
			ing("a", []string{"custom-headers: shop/fields",
				"ingress.wayleave.dev/response-headers: X-Own: annotation"},
				rules("h.test / P web:80", "h.test /empty P empty:80")))
	w.noProblems()
	n.play(w.plans)
	for path, status := range map[string]int{"/": 200, "/missing": 404, "/empty": 503} {
		resp, _ := n.ask("127.0.0.1", "http://h.test"+path)
		got := fmt.Sprint(resp.Header.Values("X-Frame-Options"), resp.Header.Values("X-Cost"),
			resp.Header.Values("X-Own"))
		if want := "[DENY] [$host costs 5$] [annotation]"; resp.StatusCode != status || got != want {
			t.Errorf("%s: %d %s, want %d %s", path, resp.StatusCode, got, status, want)
		}
	}
	w.read(configMapYAML("fields", "X-Cost: nothing"))
	n.play(w.plans)
	if resp, _ := n.ask("127.0.0.1", "http://h.test/"); resp.Header.Get("X-Cost") != "nothing" ||
		resp.Header.Get("X-Frame-Options") != "SAMEORIGIN" {
		t.Errorf("after a change the response has %v", resp.Header)
	}
	w.remove(model.ConfigMapKind, "shop/fields")
	n.play(w.plans)
	if resp, _ := n.ask("127.0.0.1", "http://h.test/"); resp.StatusCode != 503 {
		t.Errorf("without the ConfigMap: %d", resp.StatusCode)
	}
}

// The server of auth-url gets the fields of a ConfigMap, with variables, in place of the client's.
func TestAuthProxySetHeaders(t *testing.T) {
	n := newNode(t)
	n.asking()
	asked := make(chan string, 10)
	n.serveBackend("shop/api:8080", false, func(_ http.ResponseWriter, r *http.Request) {
		asked <- fmt.Sprint(r.Header.Values("X-Tenant"), r.Header.Values("X-Method"), r.Header.Values("X-Gone"))
	})
	n.serveBackend("shop/web:80", false, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Get("X-Tenant"), r.Header.Get("X-Gone"))
	})
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+
		configMapYAML("ask", "X-Tenant: shop", "X-Method: $request_method", "X-Gone: ")+
		ing("a", []string{"auth-url: http://api.shop.svc.cluster.local:8080/auth", "auth-proxy-set-headers: ask"},
			rules("h.test / P web:80")))
	w.noProblems()
	n.play(w.plans)
	resp, got := n.ask("127.0.0.1", "http://h.test/", "X-Tenant:forged", "X-Gone:client")
	if resp.StatusCode != 200 || got != "forgedclient" {
		t.Errorf("the endpoint's answer is %d %q", resp.StatusCode, got)
	}
	if got, want := <-asked, "[shop] [GET] []"; got != want {
		t.Errorf("the authentication server got %s, want %s", got, want)
	}
}

// A ConfigMap that is missing, of another namespace, or has a field that may not be set closes the paths, and an Event
// says why.
func TestConfigMapsThatCloseTheirPaths(t *testing.T) {
	const auth = "auth-url: http://api.shop.svc.cluster.local:8080/auth"
	many := make([]string, model.MaxFields+1)
	for i := range many {
		many[i] = fmt.Sprintf("X-%d: v", i)
	}
	for _, tc := range []struct {
		name        string
		annotations []string
		fields      []string
		says        string
	}{
		{"not listed", []string{"custom-headers: m"}, []string{"X-Good: a", "X-Other: a"},
			`ingress.globalAllowedResponseHeaders does not list "X-Other"`},
		{"missing", []string{"custom-headers: shop/none"}, nil, "ConfigMap shop/none does not exist"},
		{"another namespace", []string{"custom-headers: other/m"}, nil, "is in another namespace"},
		{"no name", []string{"custom-headers: a_b"}, nil, "is not the name of a ConfigMap"},
		{"empty name", []string{"custom-headers: "}, nil, "is not the name of a ConfigMap"},
		{"a dot", []string{"custom-headers: m"}, []string{"a.b: v"}, "is not the name of a header field"},
		{"framing", []string{"custom-headers: m"}, []string{"Content-Length: 5"}, "only the proxy may set"},
		{"two lines", []string{"custom-headers: m"}, []string{"X-Good: a\r\nSet-Cookie: b"}, "has a character"},
		{"empty", []string{"custom-headers: m"}, []string{"X-Good: "}, "data[X-Good] is empty"},
		{"too many", []string{"custom-headers: m"}, many, "has 65 keys; allowed: 64"},
		{"too long", []string{"custom-headers: m"}, []string{"X-Good: " + strings.Repeat("a", 4097)},
			"has 4097 bytes; allowed: 4096"},
		{"ask missing", []string{auth, "auth-proxy-set-headers: none"}, nil, "ConfigMap shop/none does not exist"},
		{"ask another namespace", []string{auth, "auth-proxy-set-headers: other/m"}, nil, "is in another namespace"},
		{"ask unknown variable", []string{auth, "auth-proxy-set-headers: m"}, []string{"X-A: $upstream_addr"},
			`variable "$upstream_addr" is not known`},
		{"ask two lines", []string{auth, "auth-proxy-set-headers: m"}, []string{"X-A: a\nb"}, "control character"},
		{"ask framing", []string{auth, "auth-proxy-set-headers: m"}, []string{"Host: a"}, "only the proxy may set"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newFixture(t, Settings{Default: true, ResponseHeaders: []string{"X-Good"}}, sampleYAML(t)+
				configMapYAML("m", tc.fields...)+ing("a", tc.annotations, rules("h.test / P web:80")))
			w.expect([]string{"http://h.test/ = 503"})
			w.says(tc.says)
		})
	}
}

// Without auth-url the annotation asks nobody: it closes nothing.
func TestAuthProxySetHeadersWithoutAServer(t *testing.T) {
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+
		ing("a", []string{"auth-proxy-set-headers: none"}, rules("h.test / P web:80")))
	w.expect([]string{"http://h.test/ = shop/web:80"})
	w.says("has no effect without auth-url")
}

// As with Secrets, the previous version stays active until a new ConfigMap is read, and a new Ingress is closed until
// then.
func TestAnIngressWaitsForItsConfigMaps(t *testing.T) {
	p := NewPlanner(Settings{Default: true, ResponseHeaders: []string{"X-A"}})
	p.Waits = true
	w := newFixtureOf(t, p, sampleYAML(t)+ing("a", []string{"custom-headers: m"}, rules("h.test / P web:80")))
	w.expect([]string{"http://h.test/ = 503"})
	w.read(configMapYAML("m", "X-A: 1"))
	w.expect([]string{"http://h.test/ = shop/web:80"})
	w.read(ing("a", []string{"custom-headers: next"}, rules("h.test / P api:8080")))
	w.expect([]string{"http://h.test/ = shop/web:80"})
	w.read(configMapYAML("next", "X-A: 2"))
	w.expect([]string{"http://h.test/ = shop/api:8080"})
	if len(p.waiting) > 0 {
		t.Errorf("it waits for %v", p.waiting)
	}
}

// says requires that a problem contains the text.
func (w *fixture) says(text string) {
	w.t.Helper()
	if all := w.allProblems(); !strings.Contains(strings.Join(all, "\n"), text) {
		w.t.Errorf("no problem says %q: %q", text, all)
	}
}
