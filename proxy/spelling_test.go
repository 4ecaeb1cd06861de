package proxy

import (
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"

	"wayleave.dev/proxy/schema"
)

// The spellings that were found, sent as bytes: none reaches the endpoint but by the guard,
// and what goes on has no dot segments.
func TestSpellingsOverSockets(t *testing.T) {
	var reached atomic.Pointer[string]
	end := handler(t, func(w http.ResponseWriter, r *http.Request) {
		at := r.RequestURI
		reached.Store(&at)
	})
	r := newRig(t, nil)
	r.backends(map[string][]netip.AddrPort{"b": {end}})
	r.route(schema.Path{Kind: schema.Prefix, Path: "/", Backend: "b"}, schema.Path{Kind: schema.Prefix, Path: "/public",
		Backend: "b"},
		schema.Path{Kind: schema.Prefix, Path: "/admin", Backend: "b",
			Options: &schema.Options{Sources: prefixes("192.0.2.0/24")}})
	for _, tc := range []struct {
		target string
		status int
		sent   string
	}{
		{"/admin", 403, ""}, {"//admin", 403, ""}, {"/./admin", 403, ""}, {"/%61dmin", 403, ""}, {"/admin%2f", 403, ""},
		{"/public/../admin", 403, ""}, {"http://shop.example/admin", 403, ""},
		{"http://shop.example//admin?x", 403, ""},
		{"/admin;x=1", 400, ""}, {"/admin/..%2fpublic", 400, ""}, {"/ADMIN", 400, ""}, {`/admin\`, 400, ""},
		{"/public/..;/admin", 400, ""}, {"/admin%00", 400, ""}, {"/%c1%a1dmin", 400, ""}, {"/%2561dmin", 400, ""},
		{"/admin%3f/", 400, ""}, {"http://shop.example/admin;x", 400, ""},
		{"/public?/../admin", 200, "/public?/../admin"}, {"/public/./x?a=b", 200, "/public/x?a=b"},
		{"/admin/../public/x", 200, "/public/x"}, {"/public/a%20b", 200, "/public/a%20b"}, {"http://shop.example", 200,
			"/"}, {"http://shop.example?x=/admin", 200, "/?x=/admin"},
	} {
		reached.Store(nil)
		c := r.dial()
		c.send("GET %s HTTP/1.1\r\nHost: shop.example\r\n\r\n", tc.target)
		resp, _ := c.response("GET")
		sent := ""
		if at := reached.Load(); at != nil {
			sent = *at
		}
		if resp.StatusCode != tc.status || sent != tc.sent {
			t.Errorf("%s: %d, the endpoint sees %q; want %d, %q", tc.target, resp.StatusCode, sent, tc.status, tc.sent)
		}
	}
}
