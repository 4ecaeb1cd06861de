package proxy

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
)

// Copies of requests go elsewhere, with their body where that is small; no request waits for them, and what
// is kept out is not copied.
func TestMirror(t *testing.T) {
	copies := make(chan string, 100)
	hold := make(chan struct{})
	mirror := handler(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		copies <- fmt.Sprintf("%s %s %s %s %q %d", r.Method, r.Host, r.RequestURI, r.Header.Get("X-Tag"),
			r.Header.Values("X-Real-Ip"), len(body))
		if r.URL.Path == "/hold" {
			<-hold
		}
	})
	end := handler(t, echo)
	r := newRig(t, nil, end)
	o := func(m schema.Mirror) schema.Options {
		if m.URL == "" {
			m.URL = "http://" + mirror.String() + "$request_uri"
		}
		return schema.Options{Mirror: &m}
	}
	next := func() string {
		select {
		case s := <-copies:
			return s
		case <-time.After(10 * time.Second):
			return "nothing"
		}
	}
	none := func(name string) {
		t.Helper()
		select {
		case s := <-copies:
			t.Errorf("%s: %s was copied", name, s)
		case <-time.After(100 * time.Millisecond):
		}
	}
	post := func(size int, o schema.Options) string {
		t.Helper()
		r.route(path(o))
		c := r.dial()
		defer c.Close()
		c.send("POST /x?y HTTP/1.1\r\nHost: a\r\nX-Tag: t\r\nX-Real-IP: 6.6.6.6\r\nContent-Length: %d\r\n\r\n%s", size,
			strings.Repeat("b", size))
		resp, body := c.response("POST")
		if resp.StatusCode != 200 || !strings.HasSuffix(body, "|"+strings.Repeat("b", size)) {
			t.Errorf("the endpoint got %s %d bytes", resp.Status, len(body))
		}
		return ""
	}
	r.check(t, asks{name: "GET", options: o(schema.Mirror{}), request: "GET /a?b\nX-Tag: t", status: 200})
	if got, want := next(), "GET "+mirror.String()+` /a?b t ["127.0.0.1"] 0`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	r.check(t, asks{name: "Host", options: o(schema.Mirror{Host: "$host.test"}), request: "GET /", status: 200})
	if got := next(); !strings.HasPrefix(got, "GET shop.example.test / ") {
		t.Error(got)
	}
	post(1000, o(schema.Mirror{Body: true}))
	if got := next(); !strings.HasSuffix(got, " 1000") {
		t.Error(got)
	}
	post(maxMirrorBody, o(schema.Mirror{Body: true}))
	if got := next(); !strings.HasSuffix(got, fmt.Sprint(" ", maxMirrorBody)) {
		t.Error(got)
	}
	post(maxMirrorBody+1, o(schema.Mirror{Body: true}))
	none("a large body")
	post(1000, o(schema.Mirror{}))
	if got := next(); !strings.HasSuffix(got, " 0") {
		t.Error(got)
	}
	guarded := o(schema.Mirror{})
	guarded.Sources = prefixes("192.0.2.0/24")
	r.check(t, asks{name: "kept out", options: guarded, request: "GET /", status: 403})
	none("what is kept out")
	r.check(t, asks{name: "where nothing may be asked", options: o(schema.Mirror{URL: "http://[::1]:9/"}),
		request: "GET /", status: 200})
	r.check(t, asks{name: "no backend", options: o(schema.Mirror{URL: "http://m/", Backend: "none"}),
		request: "GET /", status: 200})
	none("to nowhere")
	r.backends(map[string][]netip.AddrPort{"b": {end}, "m": {mirror}})
	r.check(t, asks{name: "a Service", options: o(schema.Mirror{URL: "http://m.shop.svc/z", Backend: "m"}),
		request: "GET /", status: 200})
	if got := next(); !strings.HasPrefix(got, "GET m.shop.svc /z ") {
		t.Error(got)
	}
	r.check(t, asks{name: "a copy is not copied", options: o(schema.Mirror{}),
		request: "GET /\nX-Sent-From: wayleave-ingress", status: 200})
	none("a copy")
	// What only a server may say to some backend is not said by a copy.
	said := path(o(schema.Mirror{}))
	trusts := schema.Path{Kind: schema.Prefix, Path: "/trusts", Backend: "t",
		Options: &schema.Options{AuthURL: &schema.AuthURL{URL: "http://a/", Headers: []string{"X-Tag"}}},
		Source:  "Ingress other/x spec.rules[0].http.paths[0]"}
	r.route(said, trusts)
	if resp, _ := r.ask("GET /q\nX-Tag: root\nX_Tag: root"); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	if got, want := next(), "GET "+mirror.String()+` /q  ["127.0.0.1"] 0`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	// So many at a time, and requests go on.
	r.route(path(o(schema.Mirror{})))
	for range maxMirrors + 20 {
		if resp, _ := r.ask("GET /hold"); resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
	}
	for range maxMirrors {
		next()
	}
	none("more than may be")
	close(hold)
	for end := time.Now().Add(10 * time.Second); r.p.mirrors.open.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("copies are counted for ever")
		}
	}
}
