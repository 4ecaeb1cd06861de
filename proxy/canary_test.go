package proxy

import (
	"net/netip"
	"testing"

	"wayleave.dev/proxy/schema"
)

func TestCanary(t *testing.T) {
	main, canary, second := speaker(t, "main"), speaker(t, "canary"), speaker(t, "second")
	r := newRig(t, nil, main)
	r.backends(map[string][]netip.AddrPort{"b": {main}, "c": {canary}, "d": {second}, "none": nil})
	all, nothing := 100, 0
	for _, c := range []struct {
		name    string
		canary  schema.Canary
		fields  string
		want    string
		affine  bool
		further []schema.Canary
	}{
		{name: "no rule", want: "main"},
		{name: "weight of all", canary: schema.Canary{Weight: all}, want: "canary"},
		{name: "weight of nothing", canary: schema.Canary{Weight: nothing}, want: "main"},
		{name: "weight of another total", canary: schema.Canary{Weight: 1000, Total: 1000}, want: "canary"},
		{name: "header always", canary: schema.Canary{Header: "X-Canary"}, fields: "\nx-canary: always",
			want: "canary"},
		{name: "header never, before weight", canary: schema.Canary{Header: "X-Canary", Weight: all},
			fields: "\nX-Canary: never", want: "main"},
		{name: "header of something else is left to the next", canary: schema.Canary{Header: "X-Canary", Weight: all},
			fields: "\nX-Canary: maybe", want: "canary"},
		{name: "header of something else, no next", canary: schema.Canary{Header: "X-Canary"},
			fields: "\nX-Canary: maybe", want: "main"},
		{name: "no header", canary: schema.Canary{Header: "X-Canary"}, want: "main"},
		{name: "value", canary: schema.Canary{Header: "X-Canary", Value: "eu"}, fields: "\nX-Canary: eu",
			want: "canary"},
		{name: "always is no value", canary: schema.Canary{Header: "X-Canary", Value: "eu"},
			fields: "\nX-Canary: always", want: "main"},
		{name: "never is no value", canary: schema.Canary{Header: "X-Canary", Value: "eu", Weight: all},
			fields: "\nX-Canary: never", want: "canary"},
		{name: "pattern", canary: schema.Canary{Header: "X-Canary", Pattern: "^(eu|us)-"},
			fields: "\nX-Canary: us-west",
			want:   "canary"},
		{name: "not the pattern", canary: schema.Canary{Header: "X-Canary", Pattern: "^(eu|us)-"},
			fields: "\nX-Canary: asia", want: "main"},
		{name: "cookie always", canary: schema.Canary{Cookie: "canary"}, fields: "\nCookie: a=b; canary=always",
			want: "canary"},
		{name: "cookie never, before weight", canary: schema.Canary{Cookie: "canary", Weight: all},
			fields: "\nCookie: canary=never", want: "main"},
		{name: "cookie of something else", canary: schema.Canary{Cookie: "canary", Weight: all},
			fields: "\nCookie: canary=x", want: "canary"},
		{name: "header before cookie", canary: schema.Canary{Header: "X-Canary", Cookie: "canary"},
			fields: "\nX-Canary: always\nCookie: canary=never", want: "canary"},
		{name: "header never before cookie", canary: schema.Canary{Header: "X-Canary", Cookie: "canary"},
			fields: "\nX-Canary: never\nCookie: canary=always", want: "main"},
		{name: "a canary without endpoints takes nothing", canary: schema.Canary{Backend: "none", Weight: all},
			want: "main"},
		{name: "one that is not there", canary: schema.Canary{Backend: "gone", Weight: all}, want: "main"},
		{name: "the second where the first takes nothing", canary: schema.Canary{Header: "X-Canary"},
			further: []schema.Canary{{Backend: "d", Weight: all}}, want: "second"},
		{name: "the first of two", canary: schema.Canary{Weight: all},
			further: []schema.Canary{{Backend: "d", Weight: all}}, want: "canary"},
	} {
		if c.canary.Backend == "" {
			c.canary.Backend = "c"
		}
		r.route(path(schema.Options{Canary: append([]schema.Canary{c.canary}, c.further...)}))
		if got := r.many(5, "GET / HTTP/1.1\nHost: a"+c.fields); got[c.want] != 5 {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
	}
	r.route(path(schema.Options{Canary: []schema.Canary{{Backend: "c", Weight: 30}}}))
	if got := r.many(1000, "GET / HTTP/1.1\nHost: a"); got["canary"] < 220 || got["canary"] > 380 {
		t.Errorf("30 of 100: %v", got) // 5 sigma is 72
	}
}

// Who has an endpoint stays with its backend; a wish by header is still one.
func TestCanaryAndAffinity(t *testing.T) {
	main, canary := speaker(t, "main"), speaker(t, "canary")
	r := newRig(t, nil, main)
	r.backends(map[string][]netip.AddrPort{"b": {main}, "c": {canary}})
	cookieOf := map[string]string{}
	r.route(path(schema.Options{Affinity: &schema.Affinity{},
		Canary: []schema.Canary{{Backend: "c", Weight: 50, Header: "X-Canary"}}}))
	for range 100 {
		resp, body := r.ask("GET /")
		cookieOf[body] = resp.Cookies()[0].Value
	}
	if len(cookieOf) != 2 {
		t.Fatalf("%v", cookieOf)
	}
	for name, c := range cookieOf {
		if got := r.many(40, "GET / HTTP/1.1\nHost: a\nCookie: INGRESSCOOKIE="+c); got[name] != 40 {
			t.Errorf("who has an endpoint of %s went to %v", name, got)
		}
	}
	resp, body := r.ask("GET /\nX-Canary: always\nCookie: INGRESSCOOKIE=" + cookieOf["main"])
	if body != "canary" || len(resp.Cookies()) != 1 || resp.Cookies()[0].Value != cookieOf["canary"] {
		t.Errorf("a wish: %s, %v", body, resp.Cookies())
	}
	// The canary ends: its clients go back.
	r.route(path(schema.Options{Affinity: &schema.Affinity{}}))
	if resp, body := r.ask("GET /\nCookie: INGRESSCOOKIE=" + cookieOf["canary"]); body != "main" ||
		len(resp.Cookies()) != 1 {
		t.Errorf("after the canary: %s, %v", body, resp.Cookies())
	}
}
