package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"wayleave.dev/proxy/reach"
	"wayleave.dev/proxy/schema"
)

// An Ingress's author may not have this node, the API server or a metadata service asked,
// however the address is spelled, and whatever a name leads to when it is asked.
func TestQuestionsGoNowhereForbidden(t *testing.T) {
	var asked atomic.Int32
	l, err := net.Listen("tcp", ":0") // every address of this machine, both families
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) })}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	port := addrOf(l).Port()

	names := map[string][]string{"local.example": {"127.0.0.1"}, "two.example": {"169.254.169.254", "::1",
		"::ffff:127.0.0.1"}, "node.example": {"192.0.2.7"}, "nat64.example": {"64:ff9b::7f00:1"}}
	var dialed atomic.Pointer[string]
	r := newRig(t, func(r *rig) {
		r.p.Asking.Resolve = func(_ context.Context, name string) (out []netip.Addr, err error) {
			for _, a := range names[name] {
				out = append(out, netip.MustParseAddr(a))
			}
			return out, nil
		}
		r.p.Asking.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dialed.Store(&addr)
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
		r.p.SetReach(&reach.Policy{Refused: []netip.Addr{netip.MustParseAddr("192.0.2.7")}})
	}, handler(t, shows()))
	hosts := []string{
		"127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001",
		"127.000.000.001", "127.0.0.1.",
		"[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
		"0.0.0.0", "0", "[::]", "localhost",
		"169.254.169.254", "[fe80::1]", "[fe80::1%25lo]", "[fd00:ec2::254]", "[::ffff:a9fe:a9fe]", "192.0.2.7",
		"[::ffff:192.0.2.7]",
		"local.example", "two.example", "node.example", "nat64.example", "none.example",
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		if n, ok := a.(*net.IPNet); ok {
			hosts = append(hosts, strings.TrimSuffix(net.JoinHostPort(n.IP.String(), ""), ":"))
		}
	}
	for _, h := range hosts {
		o := schema.Options{AuthURL: &schema.AuthURL{URL: fmt.Sprintf("http://%s:%d/", h, port)}}
		r.check(t, asks{name: h, options: o, request: "GET /a", status: 500})
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("the server was asked %d times", n)
	}
	if d := dialed.Load(); d != nil {
		t.Errorf("a connection to %s was tried", *d)
	}
	// Endpoints of a Service are judged, too.
	r.backends(map[string][]netip.AddrPort{"b": {handler(t, shows())},
		"auth": {netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)}})
	r.check(t, asks{name: "a Service that leads here",
		options: schema.Options{AuthURL: &schema.AuthURL{URL: "http://auth.shop.svc/", Backend: "auth"}},
		request: "GET /a", status: 500})
	if asked.Load() > 0 {
		t.Error("the endpoint was asked")
	}
}

// A name is judged by what it leads to when a connection is opened; an address that is
// allowed, and a socket of the proxy itself, may be asked.
func TestQuestionsFollowTheName(t *testing.T) {
	var asked atomic.Int32
	server := raw(t, func(c net.Conn, br *bufio.Reader) { // each question has its own connection
		if _, err := readHead(br); err == nil {
			asked.Add(1)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
	})
	var leads atomic.Pointer[[]netip.Addr]
	lead := func(list ...string) {
		var out []netip.Addr
		for _, a := range list {
			out = append(out, netip.MustParseAddr(a))
		}
		leads.Store(&out)
	}
	var own atomic.Bool
	r := newRig(t, func(r *rig) {
		r.p.Asking.Resolve = func(context.Context, string) ([]netip.Addr, error) { return *leads.Load(), nil }
		r.p.Asking.Own = func(a netip.AddrPort) bool { return own.Load() && a == server }
		r.p.SetReach(&reach.Policy{Allowed: prefixes("127.0.0.1/32")})
	}, handler(t, shows()))
	o := schema.Options{AuthURL: &schema.AuthURL{URL: fmt.Sprintf("http://auth.example:%d/", server.Port())}}
	for i, c := range []struct {
		to     []string
		status int
	}{
		{[]string{"127.0.0.1"}, 200}, {[]string{"127.0.0.2"}, 500}, {[]string{"::1", "127.0.0.1"}, 200},
		{[]string{"169.254.169.254"}, 500}, {nil, 500}, {[]string{"127.0.0.1"}, 200},
	} {
		lead(c.to...)
		r.check(t, asks{name: fmt.Sprint(i, c.to), options: o, request: "GET /a", status: c.status})
	}
	r.p.SetReach(&reach.Policy{})
	r.check(t, asks{name: "no longer allowed", options: o, request: "GET /a", status: 500})
	own.Store(true)
	r.check(t, asks{name: "the proxy itself", options: o, request: "GET /a", status: 200})
	if n := asked.Load(); n != 4 {
		t.Errorf("asked %d times, want 4", n)
	}
}

// What a client says of its request in other words than the request's is not for the
// authentication server.
func TestQuestionsAreInOurWords(t *testing.T) {
	var asked atomic.Pointer[http.Request]
	server := handler(t, func(_ http.ResponseWriter, r *http.Request) { asked.Store(r) })
	r := newRig(t, nil, handler(t, shows()))
	r.route(path(schema.Options{AuthURL: &schema.AuthURL{URL: "http://" + server.String() + "/"}}))
	names := []string{"X-Forwarded-Uri", "X-Forwarded-URL", "X-Forwarded-Method", "X-Forwarded-Host", "X-Forwarded-For",
		"X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Server",
		"X-Original-URL", "X-Original-URI", "X-Original-Method", "X-Original-Host", "X-Original-Forwarded-For",
		"X-Rewrite-URL", "X-Real-IP", "X-Scheme", "Forwarded", "X-Auth-Request-Redirect"}
	for _, name := range names {
		for _, sep := range []string{"-", "_", "."} {
			spelled := strings.ReplaceAll(name, "-", sep)
			for _, spelled := range []string{spelled, strings.ToLower(spelled), strings.ToUpper(spelled)} {
				if resp, _ := r.ask("GET /real\n" + spelled + ": evil\n" + spelled + ": evil"); resp.StatusCode != 200 {
					t.Fatal(resp.Status)
				}
				for k, list := range asked.Load().Header {
					for _, v := range list {
						if v == "evil" {
							t.Errorf("%s: the server is told %s: %s", spelled, k, v)
						}
					}
				}
			}
		}
	}
	for name, want := range map[string]string{"X-Forwarded-Uri": "/real", "X-Original-Url": "http://shop.example/real",
		"X-Forwarded-Method": "GET"} {
		if got := asked.Load().Header[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
