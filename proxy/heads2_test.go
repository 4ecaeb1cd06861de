package proxy

import (
	"strings"
	"testing"
)

// What HTTP/1.1 refuses or leaves out of a request's head, HTTP/2 does: endpoints get the requests of both alike.
func TestHeadsOfHTTP2AreThoseOfHTTP1(t *testing.T) {
	for _, c := range []struct {
		name, request string
		status        int
		want, not     string
	}{
		{"TLS scheme http", "GET /\nHost: a.b\n:scheme: http", 200, "X-Forwarded-Proto=https\n", "=http\n"},
		// The certificate is not valid for this host.
		{"TLS for another host", "GET /\nHost: a.b", 421, "", ""},
		{"TLS for another host, scheme http", "GET /\nHost: a.b\n:scheme: http", 421, "", ""},
		{"plain scheme https", "GET /\nHost: a.b\n:scheme: https", 200, "X-Forwarded-Proto=http\n", "=https\n"},
		{"plain Proxy", "GET /\nHost: a.b\nProxy: http://192.0.2.66", 200, "X-Forwarded-Host=a.b\n", "192.0.2.66"},
		{"plain two ports", "GET /\nHost: a.b:80:81", 400, "", ""},
		{"plain port of letters", "GET /\nHost: a.b:evil.example", 400, "", ""},
		{"plain bracket", "GET /\nHost: a[b", 400, "", ""},
		{"plain name behind an address", "GET /\nHost: [::1]a.b", 400, "", ""},
		{"plain address", "GET /\nHost: [::1]:80", 200, "X-Forwarded-Host=[::1]:80\n", "@"},
		{"HTTP1 Proxy", "GET /\nHost: a.b\npRoxy: http://192.0.2.66", 200, "X-Forwarded-Host=a.b\n", "192.0.2.66"},
		{"HTTP1 two ports", "GET /\nHost: a.b:80:81", 400, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil, handler(t, seen))
			switch {
			case strings.HasPrefix(c.name, "HTTP1"):
				r.http2 = false
			case strings.Contains(c.name, "another host"):
				r.sni = "c.d"
			}
			resp, body := r.ask(c.request)
			if resp.StatusCode != c.status || !strings.Contains(body, c.want) || c.not != "" &&
				strings.Contains(body, c.not) {
				t.Errorf("%d %s, want %d with %q, without %q", resp.StatusCode, body, c.status, c.want, c.not)
			}
		})
	}
}
