package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"

	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/schema"
)

// manyFields are n fields of a response, of about size bytes each.
func manyFields(n, size int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "X-%d: %s\r\n", i, strings.Repeat("v", size))
	}
	return b.String()
}

// Responses with many fields and large heads are passed on whole, up to the settings. Larger ones are a 502 with a
// reason, as larger trailers break the response off, and none of them counts against the endpoint.
func TestHeadsOfResponses(t *testing.T) {
	for _, x := range []struct {
		name         string
		limit        h1.HeadLimits
		fields, size int
		status       int
	}{
		{"few", h1.HeadLimits{}, 10, 10, 200},
		{"200 cookies", h1.HeadLimits{}, 200, 40, 200},
		{"1,000 fields", h1.HeadLimits{}, 1000, 10, 200},
		{"1,100 fields", h1.HeadLimits{}, 1100, 10, 502},
		{"one of 30,000 bytes", h1.HeadLimits{}, 1, 30000, 200},
		{"60,000 bytes", h1.HeadLimits{}, 20, 3000, 200},
		{"70,000 bytes", h1.HeadLimits{}, 7, 10000, 502},
		{"within a larger limit", h1.HeadLimits{Bytes: 1 << 20, Fields: 8000}, 6000, 100, 200},
		{"above a smaller limit of bytes", h1.HeadLimits{Bytes: 4 << 10}, 5, 1000, 502},
		{"above a smaller limit of fields", h1.HeadLimits{Fields: 32}, 40, 10, 502},
	} {
		t.Run(x.name, func(t *testing.T) {
			r := newRig(t, func(r *rig) { r.settings.Failures = 1 },
				answer(t, "HTTP/1.1 200 OK\r\n"+manyFields(x.fields, x.size)+"Content-Length: 2\r\n\r\nok"))
			r.p.Upstreams.SetHead(x.limit)
			c := r.dial()
			for i := range 3 {
				c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				resp, body := c.response("GET")
				if resp.StatusCode != x.status {
					t.Fatalf("%s; %s", resp.Status, r.told())
				}
				rec := r.record(i)
				if b := r.p.Upstreams.Lookup("b"); b.All()[0].Ejected() {
					t.Fatal("the endpoint is left out")
				}
				if x.status == 502 {
					if !errors.Is(rec.Err, errOversized) || r.p.Oversized() != int64(i+1) {
						t.Errorf("%v, %d counted", rec.Err, r.p.Oversized())
					}
					continue
				}
				n := 0
				for name, v := range resp.Header {
					if strings.HasPrefix(name, "X-") && len(v) == 1 && len(v[0]) == x.size {
						n++
					}
				}
				if n != x.fields || body != "ok" {
					t.Fatalf("%d of %d fields came, body %q", n, x.fields, body)
				}
			}
		})
	}
}

// Heads in parts, of HTTP/1.0, before and within other responses.
func TestLargeHeadsInParts(t *testing.T) {
	head := "HTTP/1.1 103 Early Hints\r\n" + manyFields(300, 20) + "\r\nHTTP/1.1 200 OK\r\n" + manyFields(900, 20) +
		"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n" + manyFields(140, 8) + "\r\n"
	r := newRig(t, nil, raw(t, func(c net.Conn, br *bufio.Reader) {
		for {
			if _, err := readHead(br); err != nil {
				return
			}
			for rest := head; len(rest) > 0; {
				n := min(len(rest), 997)
				if _, err := io.WriteString(c, rest[:n]); err != nil {
					return
				}
				rest = rest[n:]
			}
		}
	}))
	c := r.dial()
	for range 3 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		early, err := readHead(c.br)
		if err != nil || strings.Count(early, "\r\nX-") != 300 {
			t.Fatalf("%d fields, %v; %s", strings.Count(early, "\r\nX-"), err, r.told())
		}
		resp, body := c.response("GET")
		if len(resp.Header) < 900 || body != "ok" || len(resp.Trailer) != 140 {
			t.Fatalf("%d fields, %q, %d trailers", len(resp.Header), body, len(resp.Trailer))
		}
	}
	if b := r.p.Upstreams.Lookup("b"); b.All()[0].Ejected() {
		t.Error("the endpoint is left out")
	}
}

// Trailers above the limit break the response off, as nothing else can say it then, and the endpoint serves on.
func TestTrailersAboveTheLimit(t *testing.T) {
	r := newRig(t, func(r *rig) { r.settings.Failures = 1 },
		answer(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n"+manyFields(2000, 3)+"\r\n"))
	for range 2 {
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(c.br, nil)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
		}
		if err == nil || r.p.Upstreams.Lookup("b").All()[0].Ejected() {
			t.Errorf("%v, the endpoint is left out", err)
		}
	}
}

// Heads of endpoints that speak HTTP/2 have the same limits.
func TestHeadsOfResponsesOverHTTP2(t *testing.T) {
	count, size := 0, 0
	end := handler(t, h2c.NewHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := range count {
			w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("v", size))
		}
	}), &http2.Server{}).ServeHTTP)
	r := newRig(t, func(r *rig) { r.settings.Failures = 1 }, end)
	r.route(path(schema.Options{Protocol: schema.GRPC}))
	for _, x := range []struct {
		limit       h1.HeadLimits
		count, size int
		status      int
	}{
		{h1.HeadLimits{}, 500, 20, 200},
		{h1.HeadLimits{}, 70, 1000, 502},
		{h1.HeadLimits{Bytes: 256 << 10}, 70, 1000, 200},
		{h1.HeadLimits{Fields: 40}, 50, 10, 502},
		{h1.HeadLimits{}, 50, 10, 200},
	} {
		s := r.p.current()
		s.ResponseHead = x.limit
		r.p.Configure(s)
		count, size = x.count, x.size
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, _ := c.response("GET"); resp.StatusCode != x.status || x.status == 200 && len(resp.Header) < x.count {
			t.Errorf("%+v: %s, %d fields; %s", x, resp.Status, len(resp.Header), r.told())
		}
		if r.p.Upstreams.Lookup("b").All()[0].Ejected() {
			t.Fatal("the endpoint is left out")
		}
	}
}

// The limits of requests' heads follow the settings, for connections that come.
func TestHeadsOfRequestsFollowTheSettings(t *testing.T) {
	r := newRig(t, nil, answer(t, okay))
	for _, x := range []struct {
		limit        h1.HeadLimits
		fields, size int
		status       int
	}{
		{h1.HeadLimits{}, 120, 10, 200},
		{h1.HeadLimits{}, 130, 10, 431},
		{h1.HeadLimits{Fields: 1024}, 1000, 10, 200},
		{h1.HeadLimits{Fields: 1024}, 1100, 10, 431},
		{h1.HeadLimits{Fields: 32}, 40, 10, 431},
		{h1.HeadLimits{}, 3, 10000, 200},
		{h1.HeadLimits{}, 4, 10000, 431},
		{h1.HeadLimits{Bytes: 128 << 10}, 12, 10000, 200},
		{h1.HeadLimits{Bytes: 4 << 10}, 5, 1000, 431},
	} {
		r.s.SetHead(x.limit)
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n%s\r\n", manyFields(x.fields, x.size))
		if resp, _ := c.response("GET"); resp.StatusCode != x.status {
			t.Errorf("%+v: %s", x, resp.Status)
		}
	}
}

// The field Server is what endpoints say, what the settings say, or none: in answers of endpoints, of the proxy,
// after an upgrade, and to what is no request.
func TestTheFieldServer(t *testing.T) {
	end := raw(t, func(c net.Conn, br *bufio.Reader) {
		for {
			q, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			switch {
			case q.Header.Get("Upgrade") != "":
				_, _ = io.WriteString(c,
					"HTTP/1.1 101 Switching Protocols\r\nServer: own\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
				return
			case q.URL.Path == "/none":
				_, _ = io.WriteString(c, okay)
			default:
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nserver: own\r\nServer: other\r\nContent-Length: 0\r\n\r\n")
			}
		}
	})
	r := newRig(t, nil, end)
	r.route(schema.Path{Kind: schema.Prefix, Path: "/", Backend: "b"}, schema.Path{Kind: schema.Prefix, Path: "/away",
		Backend: "b", Options: &schema.Options{Redirect: "http://x/"}},
		schema.Path{Kind: schema.Prefix, Path: "/nobody", Backend: "missing"})
	for _, x := range []struct {
		server string
		hide   bool
		// what the answers have: of the endpoint's own, of one without, of the proxy, of a 101.
		own, none, proxy, upgrade string
	}{
		{"", false, "own, other", "", "", "own"},
		{"wayleave", false, "wayleave", "wayleave", "wayleave", "wayleave"},
		{"", true, "", "", "", ""},
	} {
		s := r.p.current()
		s.Server, s.HideServer = []byte(x.server), x.hide
		r.p.Configure(s)
		r.s.SetName([]byte(x.server))
		for request, want := range map[string]string{
			"GET / HTTP/1.1\r\nHost: a\r\n\r\n":                                      x.own,
			"GET /none HTTP/1.1\r\nHost: a\r\n\r\n":                                  x.none,
			"GET /away HTTP/1.1\r\nHost: a\r\n\r\n":                                  x.proxy,
			"GET /nobody HTTP/1.1\r\nHost: a\r\n\r\n":                                x.proxy,
			"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n":                                   x.proxy,
			"GET / HTTP/1.1\r\n\r\n":                                                 x.proxy,
			"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n": x.upgrade,
		} {
			c := r.dial()
			c.send("%s", request)
			resp, err := http.ReadResponse(c.br, nil)
			if err != nil {
				t.Fatalf("%q: %v", request, err)
			}
			if got := strings.Join(resp.Header["Server"], ", "); got != want {
				t.Errorf("%+v: %q: Server %q, want %q", x, request, got, want)
			}
			c.Close()
		}
	}
}
