package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/reach"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/upstream"
)

// An author may make the host of a URL from a client's words, and name another tenant's server by it:
// no connection to the author's own endpoints answers for that server, and none gets its questions.
func TestConnectionsServeOneBackendAlone(t *testing.T) {
	var stolen, copied atomic.Int64
	evil := handler(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/check" {
			stolen.Add(1)
		}
		copied.Add(1)
	})
	auth := handler(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) })
	r := newRig(t, nil)
	r.backends(map[string][]netip.AddrPort{"b": {handler(t, shows())}, "evil/x:80": {evil}, "victim/auth:80": {auth}})
	const url = "http://$arg_h.evil.svc/"
	r.hosts(
		&schema.Host{Name: "victim.example",
			Paths: []schema.Path{path(schema.Options{AuthURL: &schema.AuthURL{URL: "http://auth.victim.svc/check",
				Backend: "victim/auth:80"}})}},
		&schema.Host{Name: "asks.evil.example",
			Paths: []schema.Path{path(schema.Options{AuthURL: &schema.AuthURL{URL: url, Backend: "evil/x:80"}})}},
		&schema.Host{Name: "copies.evil.example",
			Paths: []schema.Path{path(schema.Options{Mirror: &schema.Mirror{URL: url, Backend: "evil/x:80"}})}})
	for _, host := range []string{"asks.evil.example", "copies.evil.example"} {
		for range 3 {
			before := copied.Load()
			r.ask("GET /?h=auth.victim.svc/x?\nHost: " + host)
			testnet.Eventually(t, 5*time.Second, func() error {
				if copied.Load() == before {
					return errors.New("the author's own server is not asked")
				}
				return nil
			})
			if resp, _ := r.ask("GET /\nHost: victim.example"); resp.StatusCode != 401 {
				t.Errorf("after %s: %s, want what the server of victim.example says", host, resp.Status)
			}
		}
	}
	if n := stolen.Load(); n > 0 {
		t.Errorf("%d questions went to another tenant's server", n)
	}
}

// An endpoint that is taken out of its Service is not asked by a connection that is still open.
func TestEndpointsThatLeftAreNotAsked(t *testing.T) {
	old := handler(t, func(http.ResponseWriter, *http.Request) {})
	now := handler(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) })
	end := handler(t, shows())
	r := newRig(t, nil)
	o := schema.Options{AuthURL: &schema.AuthURL{URL: "http://auth.shop.svc/", Backend: "shop/auth:80"}}
	r.backends(map[string][]netip.AddrPort{"b": {end}, "shop/auth:80": {old}})
	r.check(t, asks{name: "before", options: o, request: "GET /", status: 200})
	r.backends(map[string][]netip.AddrPort{"b": {end}, "shop/auth:80": {now}})
	r.check(t, asks{name: "after", options: o, request: "GET /", status: 403})
}

// A question names the server in its handshake, whatever it is connected by.
func TestQuestionsNameTheServer(t *testing.T) {
	var name atomic.Value
	s := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		name.Store(r.TLS.ServerName + " " + r.Host)
	}))
	t.Cleanup(s.Close)
	server := netip.MustParseAddrPort(s.Listener.Addr().String())
	r := newRig(t, nil)
	r.backends(map[string][]netip.AddrPort{"b": {handler(t, shows())}, "shop/auth:443": {server}})
	r.check(t, asks{name: "https", options: schema.Options{AuthURL: &schema.AuthURL{URL: "https://auth.shop.svc/",
		Backend: "shop/auth:443"}}, request: "GET /", status: 200})
	if got, _ := name.Load().(string); !strings.HasPrefix(got, "auth.shop.svc auth.shop.svc") {
		t.Errorf("the server was asked for %q", got)
	}
}

// Copies go to no address inside of the cluster, whatever name leads there, to no endpoint of an
// Ingress, and not back to the proxy, whose address guards may let in. Questions may.
func TestCopiesStayOutOfTheCluster(t *testing.T) {
	got := make(chan string, 10)
	server := handler(t, func(_ http.ResponseWriter, r *http.Request) { got <- r.Host })
	end, other := handler(t, shows()), handler(t, func(http.ResponseWriter, *http.Request) {})
	own := netip.MustParseAddrPort("203.0.113.7:80")
	r := newRig(t, func(r *rig) {
		r.p.Asking = Asking{
			Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "tcp", server.String())
			},
			Resolve: func(context.Context, string) ([]netip.Addr, error) {
				return []netip.Addr{netip.MustParseAddr("10.96.0.7")}, nil
			},
			Own: func(a netip.AddrPort) bool { return a == own },
		}
	})
	r.p.SetReach(&reach.Policy{Cluster: prefixes("10.96.0.0/16", "10.244.0.0/16")})
	r.backends(map[string][]netip.AddrPort{"b": {end},
		"victim/app:80": {other, netip.MustParseAddrPort("198.51.100.9:80")},
		"shop/copy:80":  {netip.MustParseAddrPort("10.244.0.3:80")}})
	for _, c := range []struct {
		name    string
		mirror  schema.Mirror
		arrives bool
	}{
		{"outside", schema.Mirror{URL: "http://198.51.100.1/"}, true},
		{"a virtual address", schema.Mirror{URL: "http://10.96.0.1/"}, false},
		{"the same in IPv6", schema.Mirror{URL: "http://[::ffff:10.96.0.1]/"}, false},
		{"the same behind NAT64", schema.Mirror{URL: "http://[64:ff9b::10.96.0.1]/"}, false},
		{"a pod", schema.Mirror{URL: "http://10.244.9.9:8080/"}, false},
		{"a name that leads there", schema.Mirror{URL: "http://copy.example/"}, false},
		{"a name of a client's", schema.Mirror{URL: "http://$arg_h/"}, false},
		{"an endpoint of another Ingress", schema.Mirror{URL: "http://198.51.100.9/"}, false},
		{"this proxy", schema.Mirror{URL: "http://203.0.113.7/", Host: "victim.example"}, false},
		{"an own Service", schema.Mirror{URL: "http://copy.shop.svc/", Backend: "shop/copy:80"}, true},
	} {
		r.check(t, asks{name: c.name, options: schema.Options{Mirror: &c.mirror},
			request: "GET /?h=10.244.0.1", status: 200})
		testnet.Eventually(t, 10*time.Second, func() error {
			if n := r.p.mirrors.open.Load(); n > 0 {
				return fmt.Errorf("%d copies are on their way", n)
			}
			return nil
		})
		arrived := ""
		select {
		case arrived = <-got:
		default:
		}
		if (arrived != "") != c.arrives {
			t.Errorf("%s: a copy arrived: %q, want %t", c.name, arrived, c.arrives)
		}
	}
	r.check(t, asks{name: "a question",
		options: schema.Options{AuthURL: &schema.AuthURL{URL: "http://10.244.9.9:8080/"}},
		request: "GET /", status: 200})
}

// Bodies that wait for their client's end take no more memory than copies on their way may.
func TestBodiesOfCopiesAreBounded(t *testing.T) {
	server := handler(t, func(http.ResponseWriter, *http.Request) {})
	r := newRig(t, nil, handler(t, echo))
	r.route(path(schema.Options{Mirror: &schema.Mirror{URL: "http://" + server.String(), Body: true}}))
	for range maxMirrors + 5 {
		r.dial().send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\nb", maxMirrorBody)
	}
	testnet.Eventually(t, 10*time.Second, func() error {
		if n := r.p.mirrors.open.Load(); n != maxMirrors {
			return fmt.Errorf("%d bodies are counted, want %d", n, maxMirrors)
		}
		return nil
	})
	if resp, _ := r.ask("GET /"); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
}

// What only the proxy may say to a Service no client says by another of its ports, by its virtual
// address, as one whose errors it answers, nor by a question that another Ingress has asked there.
func TestServicesAreToldByTheProxyAlone(t *testing.T) {
	end := handler(t, shows("X-User", "Ssl-Client-Verify"))
	var asked atomic.Value
	server := handler(t, func(_ http.ResponseWriter, r *http.Request) {
		asked.Store(fmt.Sprintf("%q %q", r.Header.Values("X-User"), r.Header.Values("Ssl-Client-Verify")))
	})
	r := newRig(t, nil)
	r.backends(map[string][]netip.AddrPort{"shop/app:80": {end}, "shop/app:8080": {end}, "shop/app:80/virtual": {end},
		"shop/errors:80": {end}, "shop/asked:80": {server}, "evil/b:80": {end}})
	at := func(path, backend string, o *schema.Options) schema.Path {
		return schema.Path{Kind: schema.Prefix, Path: path, Backend: backend, Options: o}
	}
	trusts := func(backend string) *schema.Host {
		return &schema.Host{Name: backend[5:8] + ".example", ClientCert: &schema.ClientCert{Authority: "shop/ca"},
			Paths: []schema.Path{
				at("/", backend, &schema.Options{AuthURL: &schema.AuthURL{URL: "http://a/",
					Headers: []string{"X-User"}},
					Errors: &schema.Errors{Backend: "shop/errors:80", Statuses: []int{404}}}),
			}}
	}
	r.hosts(trusts("shop/app:80/virtual"), trusts("shop/asked:80"), &schema.Host{Name: "open.example",
		Paths: []schema.Path{
			at("/80", "shop/app:80", nil), at("/8080", "shop/app:8080", nil),
			at("/virtual", "shop/app:80/virtual", nil),
			at("/errors", "shop/errors:80", nil),
			at("/asks", "evil/b:80", &schema.Options{AuthURL: &schema.AuthURL{URL: "http://asked.shop.svc/",
				Backend: "shop/asked:80"}}),
		}})
	for _, path := range []string{"/80", "/8080", "/virtual", "/errors"} {
		resp, body := r.ask("GET " + path + "\nHost: open.example\nX-User: root\nssl_client_verify: SUCCESS\n" +
			"Ssl-Client-Verify: SUCCESS")
		if resp.StatusCode != 200 || !strings.HasSuffix(body, "X-User=[] Ssl-Client-Verify=[]") {
			t.Errorf("%s: %s %q", path, resp.Status, body)
		}
	}
	if resp,
		_ := r.ask("GET /asks\nHost: open.example\nX-User: root\nSsl-Client-Verify: SUCCESS"); resp.StatusCode != 200 ||
		asked.Load() != "[] []" {
		t.Errorf("a question: %s, and it says %v", resp.Status, asked.Load())
	}
}

// The answer of one host, or to one of several fields, is not used for another.
func TestAnswersAreOfWhatTheServerSaw(t *testing.T) {
	server := handler(t, func(w http.ResponseWriter, r *http.Request) {
		list := r.Header.Values("Authorization")
		if len(list) == 0 || list[len(list)-1] != "good" || r.Header.Get("X-Forwarded-Host") != "a.shop.example" {
			w.WriteHeader(403)
		}
	})
	r := newRig(t, nil, handler(t, shows()))
	r.hosts(&schema.Host{Name: "*.shop.example",
		Paths: []schema.Path{path(schema.Options{AuthURL: &schema.AuthURL{URL: "http://" + server.String() + "/",
			CacheKey: "$http_authorization", Cache: []schema.CacheValid{{For: time.Minute}}}})}})
	for _, c := range []struct {
		request string
		status  int
	}{
		{"GET /\nHost: a.shop.example\nAuthorization: good", 200},
		{"GET /\nHost: b.shop.example\nAuthorization: good", 403},
		{"GET /\nHost: a.shop.example\nAuthorization: x\nAuthorization: good", 200},
		{"GET /\nHost: a.shop.example\nAuthorization: x", 403},
	} {
		if resp, _ := r.ask(c.request); resp.StatusCode != c.status {
			t.Errorf("%q: %s, want %d", c.request, resp.Status, c.status)
		}
	}
}

// A client's words in the value of an attribute of a cookie begin no other attribute.
func TestCookiesHaveNoAttributeOfAClient(t *testing.T) {
	r := newRig(t, nil, handler(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Set-Cookie",
			"s=1; Path=/; HttpOnly")
	}))
	o := schema.Options{Response: &schema.Response{CookiePath: []schema.Replace{{From: "/", To: "/$arg_at"}}}}
	r.check(t, asks{name: "a path", options: o, request: "GET /?at=x", status: 200,
		want: []string{"Set-Cookie: s=1; Path=/x; HttpOnly\n"}})
	r.check(t, asks{name: "an attribute", options: o, request: "GET /?at=x;Domain=example", status: 200,
		want: []string{"Set-Cookie: s=1; Path=/; HttpOnly\n"}})
}

// The path of an ACME challenge is open over plain HTTP, and no spelling of it is that of another path
// of a host that asks for certificates.
func TestNoSpellingOfAChallengeNeedsNoCertificate(t *testing.T) {
	f := newFront(t, handler(t, shows()))
	proof := openPath()
	proof.Path = schema.ChallengePrefix
	f.serve(&schema.Host{Name: "guarded.example", ClientCert: &schema.ClientCert{Authority: "shop/ca", Depth: 1},
		Paths: []schema.Path{openPath(), proof}})
	f.addr = f.plain
	for path, status := range map[string]int{
		"/token": 200, "/..%252f..%252fadmin": 400, "/..;/..;/admin": 400, "/..%5c..%5cadmin": 400,
		"/%2e%2e/%2e%2e/admin": 400, "/../../admin": 400, "/%252e%252e/%252e%252e/admin": 400,
	} {
		if resp, body := f.ask("GET " + schema.ChallengePrefix + path +
			"\nHost: guarded.example"); resp.StatusCode != status {
			t.Errorf("%s: %s %q, want %d", path, resp.Status, body, status)
		}
	}
}

// Where one guard of several is enough, $remote_user is empty without a valid password.
func TestNobodyIsAUserWithoutAPassword(t *testing.T) {
	server := handler(t, func(http.ResponseWriter, *http.Request) {})
	r := newRig(t, nil, handler(t, shows("X-User")))
	o := schema.Options{AnyOf: true, Auth: &schema.Auth{Realm: "x", Users: map[string]string{"ann": hashSHA}},
		Upstream: &schema.Upstream{Fields: []schema.Field{{Name: "X-User", Value: "$remote_user"}}}}
	bySource, byServer := o, o
	bySource.Sources = prefixes("127.0.0.0/8")
	byServer.AuthURL = &schema.AuthURL{URL: "http://" + server.String() + "/"}
	wrong := "GET /\nX-User: ann\n" + basic("ann", "wrong")
	r.check(t, asks{name: "by its address", options: bySource, request: wrong, status: 200,
		want: []string{"X-User=[]"}})
	r.check(t, asks{name: "by a server", options: byServer, request: wrong, status: 200, want: []string{"X-User=[]"}})
	r.check(t, asks{name: "by a password", options: byServer, request: "GET /\n" + basic("ann", "secret"), status: 200,
		want: []string{`X-User=["ann"]`}})
}

// A connection to an endpoint that was verified by other authorities, or opened with another
// certificate, is not used once these have changed.
func TestEndpointsAreVerifiedAnew(t *testing.T) {
	root, other := issue(t, nil, "root", isCA), issue(t, nil, "other root", isCA)
	web := issue(t, root, "web", func(c *x509.Certificate) { c.DNSNames = []string{"web.shop.svc"} })
	config := &tls.Config{Certificates: []tls.Certificate{web.pair()}, ClientAuth: tls.RequestClientCert,
		NextProtos: []string{"h2", "http/1.1"}}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "client=%s", r.TLS.PeerCertificates[0].Subject.CommonName)
	}), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), TLSConfig: config}
	l := listen(t)
	go func() { _ = s.Serve(tls.NewListener(l, config)) }()
	t.Cleanup(func() { s.Close() })
	f := newFront(t)
	secret := func(ca *issuer, name string) {
		chain, key := issue(t, root, name, forClients).files(t)
		f.certs.Set(map[string]schema.Certificate{"shop/tls": {Key: "shop/tls", Chain: chain, Priv: key, CA: ca.pem()}})
	}
	set := f.settings
	set.Keys = f.certs
	f.p.Upstreams = upstream.NewSet(set)
	f.backends(map[string][]netip.AddrPort{"b": {addrOf(l)}})
	for _, protocol := range []schema.Protocol{schema.HTTPS, schema.GRPCS} {
		f.route(path(schema.Options{Protocol: protocol, TLS: &schema.EndpointTLS{Authority: "shop/tls", Depth: 1,
			Name: "web.shop.svc", Certificate: "shop/tls"}}))
		for _, c := range []struct {
			ca     *issuer
			name   string
			status int
		}{{root, "one", 200}, {root, "two", 200}, {other, "two", 502}, {root, "three", 200}} {
			secret(c.ca, c.name)
			for range 2 {
				if resp, body := f.ask("GET /"); resp.StatusCode != c.status || c.status == 200 &&
					body != "client="+c.name {
					t.Errorf("%s, %s by %s: %s %q, want %d", protocol, c.name, c.ca.Subject, resp.Status,
						body, c.status)
				}
			}
		}
	}
}

// A body that is on its way to an endpoint which fails has no buffer that is another's by then. The
// race detector judges.
func TestBuffersOfUploadsAreTheirOwn(t *testing.T) {
	bad := raw(t, func(c net.Conn, br *bufio.Reader) {
		if _, err := readHead(br); err == nil {
			_, _ = io.WriteString(c, "no HTTP\r\n\r\n")
		}
	})
	r := newRig(t, nil, bad)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 25 {
				c, err := net.Dial("tcp", r.addr)
				if err != nil {
					t.Error(err)
					return
				}
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				_, _ = fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
				for range 20 {
					if _, err := c.Write(make([]byte, 4096)); err != nil {
						break
					}
				}
				_, _ = c.Read(make([]byte, 1))
				_ = c.Close()
			}
		})
	}
	wg.Wait()
}
