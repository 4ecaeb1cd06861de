package proxy

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/http2"

	"net/http"

	"wayleave.dev/internal/keypair"
	"wayleave.dev/internal/keypair/keypairtest"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/upstream"
)

// secretive is an endpoint that speaks TLS as config says.
func secretive(t *testing.T, config *tls.Config, serve func(net.Conn)) netip.AddrPort {
	t.Helper()
	return serves(t, func(c net.Conn) { serve(tls.Server(c, config)) })
}

func answersOkay(c net.Conn) {
	br := bufio.NewReader(c)
	for {
		if _, err := readHead(br); err != nil {
			return
		}
		if _, err := io.WriteString(c, okay); err != nil {
			return
		}
	}
}

func pairs(t *testing.T) map[string]keypairtest.Case {
	t.Helper()
	list, err := keypairtest.Cases("../internal/keypair/testdata")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]keypairtest.Case{}
	for _, x := range list {
		m[x.Name] = x
	}
	return m
}

func (r *rig) status(t *testing.T) int {
	t.Helper()
	c := r.dial()
	defer c.Close()
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, _ := c.response("GET")
	return resp.StatusCode
}

// Endpoints with old versions of TLS, or with the RSA key exchange alone, are reached when the settings say so, and
// only then; those of today are reached in any case.
func TestWhatEndpointsSpeak(t *testing.T) {
	all := pairs(t)
	pair, err := keypair.Parse(all["RSA 2048, PKCS #1"].Chain, all["RSA 2048, PKCS #1"].Key)
	if err != nil {
		t.Fatal(err)
	}
	old, rsa := upstream.TLS{MinVersion: tls.VersionTLS10}, upstream.TLS{RSAKeyExchange: true}
	both := upstream.TLS{MinVersion: tls.VersionTLS10, RSAKeyExchange: true}
	rsaOnly := []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA}
	for _, x := range []struct {
		name     string
		max      uint16
		suites   []uint16
		settings upstream.TLS
		status   int
	}{
		{"TLS 1.3", tls.VersionTLS13, nil, upstream.TLS{}, 200},
		{"TLS 1.2", tls.VersionTLS12, nil, upstream.TLS{}, 200},
		{"TLS 1.2, but 1.3 is asked for", tls.VersionTLS12, nil, upstream.TLS{MinVersion: tls.VersionTLS13}, 502},
		{"TLS 1.1", tls.VersionTLS11, nil, upstream.TLS{}, 502},
		{"TLS 1.1, allowed", tls.VersionTLS11, nil, old, 200},
		{"TLS 1.0, allowed", tls.VersionTLS10, nil, old, 200},
		{"TLS 1.0, 1.1 allowed", tls.VersionTLS10, nil, upstream.TLS{MinVersion: tls.VersionTLS11}, 502},
		{"RSA", tls.VersionTLS12, rsaOnly, upstream.TLS{}, 502},
		{"RSA, old versions allowed", tls.VersionTLS12, rsaOnly, old, 502},
		{"RSA, allowed", tls.VersionTLS12, rsaOnly, rsa, 200},
		{"RSA with GCM, allowed", tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_256_GCM_SHA384}, rsa, 200},
		{"RSA in TLS 1.0, allowed", tls.VersionTLS10, rsaOnly, both, 200},
		{"RSA in TLS 1.0, RSA allowed", tls.VersionTLS10, rsaOnly, rsa, 502},
		{"3DES", tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}, both, 502},
		{"RC4", tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_RC4_128_SHA}, both, 502},
		{"TLS 1.3, all allowed", tls.VersionTLS13, nil, both, 200},
	} {
		end := secretive(t, &tls.Config{Certificates: []tls.Certificate{*pair}, MinVersion: tls.VersionTLS10,
			MaxVersion: x.max, CipherSuites: x.suites}, answersOkay)
		r := newRig(t, nil, end)
		r.p.Upstreams.SetTLS(x.settings)
		r.route(path(schema.Options{Protocol: schema.HTTPS}))
		if got := r.status(t); got != x.status {
			t.Errorf("%s: %d, want %d; %s", x.name, got, x.status, r.told())
		}
	}
}

// Nobody looks at an endpoint's certificate but Go's reader: whatever nginx serves with, it is reached.
func TestCertificatesOfEndpoints(t *testing.T) {
	for name, x := range pairs(t) {
		pair, err := keypair.Parse(x.Chain, x.Key)
		if err != nil {
			continue
		}
		want := 200
		if x.Unread {
			want = 502 // crypto/tls reads the certificate of a server in any case
		}
		r := newRig(t, nil, secretive(t, &tls.Config{Certificates: []tls.Certificate{*pair}}, answersOkay))
		r.route(path(schema.Options{Protocol: schema.HTTPS}))
		if got := r.status(t); got != want {
			t.Errorf("%s: %d, want %d; %s", name, got, want, r.told())
		}
	}
}

// An endpoint of gRPC that knows no ALPN is spoken to in HTTP/2, as by nginx.
func TestGRPCWithoutALPN(t *testing.T) {
	x := pairs(t)["RSA 2048, PKCS #1"]
	pair, err := keypair.Parse(x.Chain, x.Key)
	if err != nil {
		t.Fatal(err)
	}
	for _, protocols := range [][]string{nil, {"h2"}} {
		end := secretive(t, &tls.Config{Certificates: []tls.Certificate{*pair}, NextProtos: protocols},
			func(c net.Conn) {
				if err := c.(*tls.Conn).Handshake(); err != nil {
					return
				}
				(&http2.Server{}).ServeConn(c,
					&http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
						_, _ = io.WriteString(w, "ok")
					})})
			})
		r := newRig(t, nil, end)
		r.route(path(schema.Options{Protocol: schema.GRPCS}))
		if got := r.status(t); got != 200 {
			t.Errorf("protocols %v: %d; %s", protocols, got, r.told())
		}
	}
}
