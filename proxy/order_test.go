package proxy

import (
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"wayleave.dev/proxy/schema"
)

// Each step of docs/ingress-options.md, "Order", comes before the next: of two that would
// answer, the earlier does.
func TestOrderOfOptions(t *testing.T) {
	var questions atomic.Int32
	server := handler(t, func(w http.ResponseWriter, _ *http.Request) {
		questions.Add(1)
		w.WriteHeader(403)
	})
	r := newRig(t, nil, handler(t, shows()))
	steps := []struct {
		name   string
		set    func(*schema.Options)
		status int
	}{
		{"preflight", func(o *schema.Options) { o.CORS = &schema.CORS{} }, 204},
		{"body size", func(o *schema.Options) { o.MaxBody = 1 }, 413},
		{"redirect", func(o *schema.Options) { o.Redirect = "https://new.example/" }, 302},
		{"https", func(o *schema.Options) { o.RedirectTLS = 308 }, 308},
		{"rate", func(o *schema.Options) { o.RPS = 1e-6 }, 503},
		{"sources", func(o *schema.Options) { o.Sources = prefixes("192.0.2.0/24") }, 403},
		{"password", func(o *schema.Options) { o.Auth = &schema.Auth{Realm: "x"} }, 401},
		{"question", func(o *schema.Options) { o.AuthURL = &schema.AuthURL{URL: "http://" + server.String() + "/"} },
			403},
		{"rewrite", func(o *schema.Options) { o.RewriteTarget = "https://rewritten.example/" }, 302},
	}
	const request = "OPTIONS /\nOrigin: https://x\nContent-Length: 2"
	for i := range steps {
		var o schema.Options
		for _, s := range steps[i:] {
			s.set(&o)
		}
		p := path(o)
		p.Source = "Ingress shop/" + strings.ReplaceAll(steps[i].name, " ", "")
		r.route(p)
		before := questions.Load()
		if steps[i].name == "rate" {
			r.ask(request) // the one that is free
			before = questions.Load()
		}
		if resp, _ := r.ask(request); resp.StatusCode != steps[i].status {
			t.Errorf("%s: %s, want %d", steps[i].name, resp.Status, steps[i].status)
		}
		if n := questions.Load() - before; n != 0 && steps[i].name != "question" {
			t.Errorf("%s: the authentication server was asked", steps[i].name)
		}
	}
}

// What one request was asked for is nothing that the next on its connection gets.
func TestOptionsLeaveNothingBehind(t *testing.T) {
	end := handler(t, shows("X-User", "Authorization"))
	auth := handler(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-User", "ann")
		w.Header().Set("Set-Cookie", "a=b")
	})
	r := newRig(t, nil)
	r.backends(map[string][]netip.AddrPort{"b": {end}, "c": {speaker(t, "canary")}})
	with := schema.Path{Kind: schema.Prefix, Path: "/with", Backend: "b", Options: &schema.Options{
		PathPattern: "/with/(.*)", RewriteTarget: "/$1", CORS: &schema.CORS{Origins: []string{"https://x"}},
		Affinity: &schema.Affinity{},
		AuthURL:  &schema.AuthURL{URL: "http://" + auth.String(), Headers: []string{"X-User"}},
		Canary:   []schema.Canary{{Backend: "c", Header: "X-Canary"}},
	}}
	r.route(with, schema.Path{Kind: schema.Prefix, Path: "/", Backend: "b"}, schema.Path{Kind: schema.Prefix,
		Path: "/empty", Backend: "b", Options: &schema.Options{}})
	c := r.dial()
	for range 10 {
		for _, q := range []struct{ request, want string }{
			{"GET /with/a HTTP/1.1\r\nHost: a\r\nOrigin: https://x\r\n\r\n", `GET a /a X-User=["ann"]`},
			{"GET /with/a HTTP/1.1\r\nHost: a\r\nOrigin: https://x\r\nX-Canary: always\r\n\r\n", `canary`},
		} {
			c.send("%s", q.request)
			resp, body := c.response("GET")
			if !strings.HasPrefix(body, q.want) || len(resp.Cookies()) != 2 ||
				len(resp.Header["Access-Control-Allow-Origin"]) != 1 {
				t.Fatal(resp.Status, body, resp.Header)
			}
		}
		for _, target := range []string{"/without", "/empty"} {
			c.send("GET %s HTTP/1.1\r\nHost: a\r\nOrigin: https://x\r\n\r\n", target)
			resp, body := c.response("GET")
			if !strings.HasPrefix(body, "GET a "+target+" X-User=[]") || resp.Header["Set-Cookie"] != nil ||
				resp.Header["Access-Control-Allow-Origin"] != nil || resp.Header["Vary"] != nil {
				t.Fatal(resp.Status, body, resp.Header)
			}
		}
		c.send("GET /with/%%zz HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, _ := c.response("GET"); resp.StatusCode != http.StatusBadRequest {
			t.Fatal(resp.Status)
		}
	}
}

// A WebSocket's handshake goes through the options, too.
func TestOptionsAndUpgrades(t *testing.T) {
	ws := answer(t, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := newRig(t, nil, ws)
	shake := func(fields string) *http.Response {
		c := r.dial()
		c.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n%s\r\n", fields)
		resp, err := http.ReadResponse(c.br, nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	r.route(path(schema.Options{Affinity: &schema.Affinity{}, Auth: &schema.Auth{Realm: "x",
		Users: map[string]string{"sha": hashSHA}}}))
	if resp := shake(""); resp.StatusCode != 401 {
		t.Error(resp.Status)
	}
	if resp := shake(basic("sha", "secret") + "\r\n"); resp.StatusCode != 101 || len(resp.Cookies()) != 1 {
		t.Error(resp.Status, resp.Cookies())
	}
}
