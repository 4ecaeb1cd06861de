package proxy

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/proxy/schema"
)

// seen are the fields that an endpoint gets, as "Name=value|value", those of our own words
// and of every client's left out.
func seen(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	for _, k := range slices.Sorted(maps.Keys(r.Header)) {
		if k != "Content-Length" && k != "User-Agent" && k != "Te" && k != "Accept-Encoding" {
			fmt.Fprintf(w, "%s=%s\n", k, strings.Join(r.Header[k], "|"))
		}
	}
}

// What is said of a client, in one to three lines, by a stranger and by a balancer that
// is trusted: the last line is the balancer's.
func TestWhoSaysWhatOfTheClient(t *testing.T) {
	ours := map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Host": "a.b:81",
		"X-Forwarded-Proto": "http", "X-Forwarded-Port": "81"}
	trusted := func(change map[string]string) map[string]string {
		m := maps.Clone(ours)
		maps.Copy(m, change)
		return m
	}
	values := []string{"1.1.1.1", "2.2.2.2", "3.3.3.3"}
	for _, tc := range []struct {
		name string
		// believed is what the endpoint gets by n lines of a trusted balancer, beside ours.
		believed func(n int) map[string]string
		// kept is what it gets of a stranger.
		kept bool
	}{
		{"X-Forwarded-For", func(n int) map[string]string {
			return map[string]string{"X-Forwarded-For": strings.Join(append(slices.Clone(values[:n]), "127.0.0.1"),
				", "), "X-Real-Ip": values[n-1]}
		}, false},
		{"X-Real-IP", nil, false},
		{"Forwarded", func(n int) map[string]string {
			return map[string]string{"Forwarded": strings.Join(append(slices.Clone(values[:n]), "for=127.0.0.1"), ", ")}
		}, false},
		{"X-Forwarded-Host", func(n int) map[string]string {
			return map[string]string{"X-Forwarded-Host": values[n-1]}
		}, false},
		{"X-Forwarded-Proto", func(n int) map[string]string {
			return map[string]string{"X-Forwarded-Proto": values[n-1]}
		}, false},
		{"X-Forwarded-Port", func(n int) map[string]string {
			return map[string]string{"X-Forwarded-Port": values[n-1]}
		}, false},
		{"X-Forwarded-Prefix", func(n int) map[string]string {
			return map[string]string{"X-Forwarded-Prefix": values[n-1]}
		}, false},
		{"X-Forwarded-Ssl", func(n int) map[string]string { return map[string]string{"X-Forwarded-Ssl": values[n-1]} },
			false},
		{"X-Original-Host", func(n int) map[string]string { return map[string]string{"X-Original-Host": values[n-1]} },
			false},
		{"X-Request-ID", func(n int) map[string]string { return map[string]string{"X-Request-Id": values[n-1]} }, true},
		{"X-Scheme", nil, false}, {"X-Original-URL", nil, false}, {"X-Original-URI", nil, false},
		{"X-Original-Method", nil, false}, {"X-Rewrite-URL", nil, false}, {"X-Forwarded-Uri", nil, false},
		{"X-Forwarded-Method", nil, false},
		{"X-Original-Forwarded-For", nil, false},
	} {
		for _, believes := range []bool{false, true} {
			r := newRig(t, func(r *rig) {
				if believes {
					r.p.Trusted = prefixes("127.0.0.1/32")
				}
			}, handler(t, seen))
			for n := 1; n <= len(values); n++ {
				for _, spelled := range []string{tc.name, strings.ToLower(tc.name), strings.ToUpper(tc.name),
					strings.ReplaceAll(tc.name, "-", "_"), strings.Replace(tc.name, "-", ".", 1)} {
					request := "GET /\nHost: a.b:81"
					for _, v := range values[:n] {
						request += "\n" + spelled + ": " + v
					}
					_, body := r.ask(request)
					want := maps.Clone(ours)
					if plain := strings.EqualFold(spelled, tc.name); plain && believes && tc.believed != nil {
						want = trusted(tc.believed(n))
					} else if plain && tc.kept {
						want[http.CanonicalHeaderKey(tc.name)] = values[n-1]
					}
					var text strings.Builder
					for _, k := range slices.Sorted(maps.Keys(want)) {
						fmt.Fprintf(&text, "%s=%s\n", k, want[k])
					}
					if body != text.String() {
						t.Errorf("%d × %s, trusted %v:\n%swant\n%s", n, spelled, believes, body, text.String())
					}
				}
			}
		}
	}
	// Of two lists the one that the balancer speaks counts.
	r := newRig(t, func(r *rig) { r.p.Trusted = prefixes("127.0.0.1/32") }, handler(t, seen))
	_, body := r.ask("GET /\nForwarded: for=6.6.6.6\nX-Real-IP: 6.6.6.6\nX-Forwarded-For: 6.6.6.6\n" +
		"X-Forwarded-For: 7.7.7.7")
	if !strings.Contains(body, "X-Forwarded-For=6.6.6.6, 7.7.7.7, 127.0.0.1\n") ||
		!strings.Contains(body, "X-Real-Ip=7.7.7.7\n") || strings.Contains("\n"+body, "\nForwarded") {
		t.Error(body)
	}
}

// What an authentication server says of the client no client says: by no spelling, path,
// protocol, canary or trailer.
func TestNobodyElseSaysWhatAServerSays(t *testing.T) {
	silent := handler(t, func(http.ResponseWriter, *http.Request) {})
	says := handler(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-User", "ann") })
	main, trial := handler(t, seen), handler(t, seen)
	r := newRig(t, nil)
	r.backends(map[string][]netip.AddrPort{"b": {main}, "c": {trial}})
	question := func(a netip.AddrPort) *schema.Options {
		return &schema.Options{AuthURL: &schema.AuthURL{URL: "http://" + a.String() + "/",
			Headers: []string{"X-User", "x-groups", "Authorization"}}}
	}
	canary := question(silent)
	canary.Canary = []schema.Canary{{Backend: "c", Header: "X-Try", Total: 100}}
	r.hosts(
		&schema.Host{Name: "a", Paths: []schema.Path{
			{Kind: schema.Prefix, Path: "/silent", Backend: "b", Options: question(silent)},
			{Kind: schema.Prefix, Path: "/says", Backend: "b", Options: question(says)},
			{Kind: schema.Prefix, Path: "/canary", Backend: "b", Options: canary},
			{Kind: schema.Prefix, Path: "/open", Backend: "b"},
			{Kind: schema.Prefix, Path: "/trial", Backend: "c", Options: &schema.Options{RPS: 1000, Burst: 1000}},
		}},
		&schema.Host{Name: "other", Paths: []schema.Path{{Kind: schema.Prefix, Path: "/", Backend: "b"}}},
	)
	for _, at := range []string{"a /silent", "a /says", "a /canary", "a /open", "a /trial", "other /"} {
		host, path, _ := strings.Cut(at, " ")
		for _, name := range []string{"X-User", "x_user", "X.USER", "X-Groups", "X_Groups"} {
			for _, try := range []string{"", "\nX-Try: always"} {
				_, body := r.ask("POST " + path + "\nHost: " + host + "\nContent-Length: 0\n" + name + ": evil\n" +
					name + ": evil" + try)
				if strings.Contains(body, "evil") {
					t.Errorf("%s%s: the endpoint gets %s of the client: %s", at, try, name, body)
				}
				if says := strings.Contains(body, "X-User=ann\n"); says != (path == "/says") {
					t.Errorf("%s: %s", at, body)
				}
			}
		}
	}
	// Credentials of the client's own go where no server is asked.
	if _, body := r.ask("GET /open\nHost: a\nAuthorization: Bearer mine"); !strings.Contains(body,
		"Authorization=Bearer mine") {
		t.Error(body)
	}
	if _, body := r.ask("GET /silent\nHost: a\nAuthorization: Bearer mine"); strings.Contains(body, "mine") {
		t.Error(body)
	}
}

// Trailers are fields to some endpoints.
func TestTrailersSayNothingOfTheClient(t *testing.T) {
	silent := handler(t, func(http.ResponseWriter, *http.Request) {})
	r := newRig(t, nil, handler(t, func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		for k, v := range q.Trailer {
			fmt.Fprintf(w, "%s=%s;", k, strings.Join(v, "|"))
		}
	}))
	r.route(path(schema.Options{AuthURL: &schema.AuthURL{URL: "http://" + silent.String() + "/",
		Headers: []string{"X-User"}}}))
	c := r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, " +
		"X-User\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\nX-User: evil\r\nx_user: evil\r\nX-Original-URL: " +
		"evil\r\nX_Real_IP: evil\r\n\r\n")
	if _, body := c.response("POST"); strings.Contains(body, "evil") || !strings.Contains(body, "X-Sum=7") {
		t.Error(body)
	}
}
