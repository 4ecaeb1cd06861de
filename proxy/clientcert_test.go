package proxy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/server"
	"wayleave.dev/proxy/upstream"
)

// issuer is a certificate with its key, and what signed it behind it.
type issuer struct {
	*x509.Certificate
	key   crypto.Signer
	chain [][]byte
}

var serials atomic.Int64

// issue makes a certificate; by nil signs itself.
func issue(t testing.TB, by *issuer, name string, change func(*x509.Certificate)) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(serials.Add(1)), Subject: pkix.Name{CommonName: name,
		Organization: []string{"Test, Inc."}}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
	if change != nil {
		change(c)
	}
	parent, signer := c, crypto.Signer(key)
	if by != nil {
		parent, signer = by.Certificate, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	out := &issuer{made, key, [][]byte{der}}
	if by != nil && !bytes.Equal(by.RawIssuer, by.RawSubject) {
		out.chain = append(out.chain, by.chain...)
	}
	return out
}

func isCA(c *x509.Certificate) {
	c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
}

func forClients(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }

func (i *issuer) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Raw})
}

func (i *issuer) pair() tls.Certificate {
	return tls.Certificate{Certificate: i.chain, PrivateKey: i.key}
}

// files are the chain and the key in PEM.
func (i *issuer) files(t testing.TB) (chain, key []byte) {
	t.Helper()
	for _, der := range i.chain {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		t.Fatal(err)
	}
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// revokes is a revocation list of the issuer.
func (i *issuer) revokes(t testing.TB, until time.Time, list ...*issuer) []byte {
	t.Helper()
	r := &x509.RevocationList{Number: big.NewInt(serials.Add(1)), ThisUpdate: time.Now().Add(-time.Hour),
		NextUpdate: until}
	for _, c := range list {
		r.RevokedCertificateEntries = append(r.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, r, i.Certificate, i.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// front is a whole server before a rig's proxy, with sockets for TLS and without.
type front struct {
	*rig
	certs            *server.Certificates
	plain, encrypted string
}

func newFront(t *testing.T, endpoints ...netip.AddrPort) *front {
	t.Helper()
	f := &front{rig: newRig(t, nil, endpoints...)}
	var err error
	if f.certs, err = server.NewCertificates(); err != nil {
		t.Fatal(err)
	}
	f.p.Keys = f.certs
	s := server.New(server.Options{Certificates: f.certs, Handle: f.p.Handle, Pass: f.p.Pass, HTTP1: f.limits,
		Log: slog.New(slog.DiscardHandler)})
	s.SetLimits(server.Limits{Connections: 1 << 20})
	t.Cleanup(func() { s.Keep(nil) })
	for _, encrypted := range []bool{false, true} {
		l := listen(t).(*net.TCPListener)
		file, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if err := s.Listen(schema.Socket{Addr: addrOf(l), TLS: encrypted}, file); err != nil {
			t.Fatal(err)
		}
		if encrypted {
			f.encrypted = l.Addr().String()
		} else {
			f.plain = l.Addr().String()
		}
		_ = l.Close()
	}
	return f
}

func (f *front) serve(hosts ...*schema.Host) {
	f.hosts(hosts...)
	f.certs.SetTable(f.p.Table())
}

// visit asks https://HOST/PATH by a handshake for sni, HTTP/2 if it is offered, and says the status and
// the body.
func (f *front) visit(sni, host, path string, http2 bool, fields http.Header, show ...*issuer) (int, string) {
	f.t.Helper()
	config := &tls.Config{InsecureSkipVerify: true, ServerName: sni}
	if len(show) > 0 {
		pair := show[0].pair()
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: http2, DisableCompression: true}
	defer tr.CloseIdleConnections()
	return f.get(tr, "https://"+f.encrypted+path, host, fields)
}

func (f *front) get(tr *http.Transport, url, host string, fields http.Header) (int, string) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), "GET", url, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	req.Host = host
	for k, v := range fields {
		req.Header[k] = v
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		f.t.Fatalf("%s of %s: %v", url, host, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	if l := resp.Header.Get("Location"); l != "" {
		return resp.StatusCode, l
	}
	return resp.StatusCode, string(body)
}

func openPath() schema.Path {
	return schema.Path{Kind: schema.Prefix, Path: "/", Backend: "b",
		Source: "Ingress shop/main spec.rules[0].http.paths[0]"}
}

// Each kind of verification against each kind of certificate, by HTTP/1.1 and HTTP/2.
func TestClientCertificates(t *testing.T) {
	root, other := issue(t, nil, "root", isCA), issue(t, nil, "other root", isCA)
	one := issue(t, root, "between", isCA)
	two := issue(t, one, "between again", isCA)
	good, deep, deeper := issue(t, root, "ann", forClients), issue(t, one, "deep", forClients),
		issue(t, two, "deeper", forClients)
	stranger := issue(t, other, "ann", forClients)
	self := issue(t, nil, "ann", forClients)
	late := issue(t, root, "late", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	serving := issue(t, root, "serving", func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{
			x509.ExtKeyUsageServerAuth}
	})
	plain := issue(t, root, "of no use in particular", nil)
	revoked := issue(t, root, "revoked", forClients)
	unsigning := issue(t, root, "unsigning", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
	f := newFront(t, handler(t, shows("Ssl-Client-Verify", "Ssl-Client-Subject-Dn", "Ssl-Client-Issuer-Dn",
		"Ssl-Client-Cert")))
	hour := time.Now().Add(time.Hour)
	f.certs.Set(map[string]schema.Certificate{
		"shop/ca":      {Key: "shop/ca", CA: root.pem()},
		"shop/crl":     {Key: "shop/crl", CA: root.pem(), CRL: root.revokes(t, hour, revoked)},
		"shop/late":    {Key: "shop/late", CA: root.pem(), CRL: root.revokes(t, time.Now().Add(-time.Minute))},
		"shop/foreign": {Key: "shop/foreign", CA: root.pem(), CRL: other.revokes(t, hour)},
		"shop/both": {Key: "shop/both", CA: append(one.pem(), root.pem()...), CRL: append(root.revokes(t, hour),
			one.revokes(t, hour, deep)...)},
		"shop/bad": {Key: "shop/bad", CA: []byte("no PEM")},
	})
	const in = 200
	for _, c := range []struct {
		name   string
		rule   schema.ClientCert
		show   *issuer
		status int
		body   string
	}{
		{"none", schema.ClientCert{Authority: "shop/ca", Depth: 1}, nil, 400, ""},
		{"good", schema.ClientCert{Authority: "shop/ca", Depth: 1}, good, in, `Ssl-Client-Verify=["SUCCESS"] ` +
			`Ssl-Client-Subject-Dn=["CN=ann,O=Test\\, Inc."] Ssl-Client-Issuer-Dn=["CN=root,O=Test\\, Inc."] ` +
			`Ssl-Client-Cert=[]`},
		{"of a stranger", schema.ClientCert{Authority: "shop/ca", Depth: 1}, stranger, 400, ""},
		{"self-signed", schema.ClientCert{Authority: "shop/ca", Depth: 1}, self, 400, ""},
		{"expired", schema.ClientCert{Authority: "shop/ca", Depth: 1}, late, 400, ""},
		{"for servers", schema.ClientCert{Authority: "shop/ca", Depth: 1}, serving, 400, ""},
		{"for nothing in particular", schema.ClientCert{Authority: "shop/ca", Depth: 1}, plain, in, "SUCCESS"},
		{"one between", schema.ClientCert{Authority: "shop/ca", Depth: 1}, deep, in, "SUCCESS"},
		{"one between, none allowed", schema.ClientCert{Authority: "shop/ca"}, deep, 400, ""},
		{"none between, none allowed", schema.ClientCert{Authority: "shop/ca"}, good, in, "SUCCESS"},
		{"two between", schema.ClientCert{Authority: "shop/ca", Depth: 1}, deeper, 400, ""},
		{"two between, two allowed", schema.ClientCert{Authority: "shop/ca", Depth: 2}, deeper, in, "SUCCESS"},
		{"not revoked", schema.ClientCert{Authority: "shop/crl", Depth: 1}, good, in, "SUCCESS"},
		{"revoked", schema.ClientCert{Authority: "shop/crl", Depth: 1}, revoked, 400, ""},
		{"no list of the one between", schema.ClientCert{Authority: "shop/crl", Depth: 1}, deep, 400, ""},
		{"revoked by the one between", schema.ClientCert{Authority: "shop/both", Depth: 1}, deep, 400, ""},
		{"a list that has ended", schema.ClientCert{Authority: "shop/late", Depth: 1}, good, 400, ""},
		{"a list of another authority", schema.ClientCert{Authority: "shop/foreign", Depth: 1}, good, 400, ""},
		{"authorities that cannot be read", schema.ClientCert{Authority: "shop/bad", Depth: 1}, good, 400, ""},
		{"authorities that are not there", schema.ClientCert{Authority: "shop/none", Depth: 1}, good, 400, ""},
		{"optional, none", schema.ClientCert{Authority: "shop/ca", Depth: 1, Verify: schema.VerifyOptional}, nil, in,
			`Ssl-Client-Verify=["NONE"] Ssl-Client-Subject-Dn=[]`},
		{"optional, good", schema.ClientCert{Authority: "shop/ca", Depth: 1, Verify: schema.VerifyOptional}, good,
			in, "SUCCESS"},
		{"optional, of a stranger", schema.ClientCert{Authority: "shop/ca", Depth: 1, Verify: schema.VerifyOptional},
			stranger, 400, ""},
		{"no CA, none", schema.ClientCert{Authority: "shop/ca", Depth: 1, Verify: schema.VerifyNoCA}, nil, in, "NONE"},
		{"no CA, of a stranger", schema.ClientCert{Authority: "shop/ca", Depth: 1, Verify: schema.VerifyNoCA}, stranger,
			in, `Ssl-Client-Verify=["FAILED:unable to verify the first certificate"] Ssl-Client-Subject-Dn=["CN=ann,`},
		{"a key that may not sign", schema.ClientCert{Authority: "shop/ca", Depth: 1}, unsigning, 400, ""},
		{"no CA, too deep", schema.ClientCert{Authority: "shop/ca", Verify: schema.VerifyNoCA}, deep, in, "FAILED:"},
		{"no CA, for servers", schema.ClientCert{Authority: "shop/ca", Verify: schema.VerifyNoCA}, serving, 400, ""},
		{"no CA, revoked", schema.ClientCert{Authority: "shop/crl", Depth: 1, Verify: schema.VerifyNoCA},
			revoked, 400, ""},
		{"off", schema.ClientCert{Authority: "shop/ca", Verify: schema.VerifyOff}, good, in,
			`Ssl-Client-Verify=["NONE"] Ssl-Client-Subject-Dn=[]`},
		{"passed on", schema.ClientCert{Authority: "shop/ca", Pass: true}, good, in, "Ssl-Client-Cert=[" +
			fmt.Sprintf("%q", url.PathEscape(string(good.pem())))},
		{"a subject that fits", schema.ClientCert{Authority: "shop/ca", Subject: "CN=(ann|bob)"}, good, in, "SUCCESS"},
		{"another subject", schema.ClientCert{Authority: "shop/ca", Subject: "CN=bob"}, good, 403, ""},
		{"a subject in another case", schema.ClientCert{Authority: "shop/ca", Subject: "CN=Ann"}, good, 403, ""},
		{"no subject", schema.ClientCert{Authority: "shop/ca", Verify: schema.VerifyOptional, Subject: "CN="},
			nil, 403, ""},
		{"a page for who is refused", schema.ClientCert{Authority: "shop/ca", ErrorPage: "https://$host/help"}, nil,
			302,
			"https://a.example/help"},
		{"and for another subject", schema.ClientCert{Authority: "shop/ca", ErrorPage: "https://x.example/",
			Subject: "CN=bob"}, good, 302, "https://x.example/"},
		{"a subject that cannot be read", schema.ClientCert{Authority: "shop/ca", Subject: "("}, good, 503, ""},
	} {
		f.serve(&schema.Host{Name: "a.example", ClientCert: &c.rule, Paths: []schema.Path{openPath()}})
		for _, http2 := range []bool{false, true} {
			var show []*issuer
			if c.show != nil {
				show = []*issuer{c.show}
			}
			spoof := http.Header{"Ssl-Client-Verify": {"SUCCESS"}, "Ssl_client_verify": {"SUCCESS"},
				"Ssl-Client-Subject-Dn": {"CN=root"}, "Ssl-Client-Cert": {"x"}}
			status, body := f.visit("a.example", "a.example", "/", http2, spoof, show...)
			if status != c.status || !strings.Contains(body, c.body) || strings.Contains(body, `"CN=root"`) {
				t.Errorf("%s, HTTP/2 %v: %d %q, want %d %q", c.name, http2, status, body, c.status, c.body)
			}
		}
	}
}

// No request reaches a host that asks for certificates by another way than a handshake for it.
func TestNoWayRoundClientCertificates(t *testing.T) {
	root, other := issue(t, nil, "root", isCA), issue(t, nil, "other root", isCA)
	good, stranger := issue(t, root, "ann", forClients), issue(t, other, "eve", forClients)
	f := newFront(t, handler(t, shows("Ssl-Client-Subject-Dn")))
	f.certs.Set(map[string]schema.Certificate{"shop/ca": {Key: "shop/ca", CA: root.pem()},
		"shop/other": {Key: "shop/other", CA: other.pem()}})
	ca := &schema.ClientCert{Authority: "shop/ca", Depth: 1}
	redirected := openPath()
	redirected.Options = &schema.Options{RedirectTLS: 308}
	proof := openPath()
	proof.Path = "/.well-known/acme-challenge/x"
	mine := openPath()
	mine.Path = "/mine"
	f.serve(
		&schema.Host{Name: "guarded.example", ClientCert: ca, Paths: []schema.Path{openPath(), proof}},
		&schema.Host{Name: "moved.example", ClientCert: ca, Paths: []schema.Path{redirected}},
		&schema.Host{Name: "stranger.example", ClientCert: &schema.ClientCert{Authority: "shop/other", Depth: 1},
			Paths: []schema.Path{openPath()}},
		&schema.Host{Name: "open.example", Paths: []schema.Path{openPath()}},
		&schema.Host{Name: "*.wild.example", ClientCert: ca, Paths: []schema.Path{openPath()}},
		&schema.Host{Name: "own.wild.example", Paths: []schema.Path{mine}},
		&schema.Host{Name: "falls.example", ClientCert: ca, Paths: []schema.Path{mine}},
		&schema.Host{Name: "", Paths: []schema.Path{openPath()}},
	)
	for _, c := range []struct {
		sni, host, path string
		show            *issuer
		status          int
	}{
		{"open.example", "open.example", "/", nil, 200},
		{"open.example", "guarded.example", "/", nil, 421},
		{"open.example", "guarded.example", "/", good, 421},
		{"stranger.example", "guarded.example", "/", stranger, 421},
		{"guarded.example", "guarded.example", "/", stranger, 400},
		{"stranger.example", "stranger.example", "/", stranger, 200},
		{"guarded.example", "stranger.example", "/", stranger, 421},
		{"", "guarded.example", "/", good, 421},
		{"guarded.example", "GUARDED.example.:8443", "/", good, 200},
		{"guarded.example", "GUARDED.example.:8443", "/", nil, 400},
		{"guarded.example", "open.example", "/", nil, 200},
		{"a.wild.example", "a.wild.example", "/", good, 200},
		{"a.wild.example", "b.wild.example", "/", good, 421},
		{"a.wild.example", "a.wild.example", "/", nil, 400},
		{"own.wild.example", "own.wild.example", "/mine", nil, 200},
		{"own.wild.example", "own.wild.example", "/else", nil, 400}, // falls to the wildcard host
		{"own.wild.example", "own.wild.example", "/else", good, 200},
		{"falls.example", "falls.example", "/else", nil, 400}, // falls to hosts that are not named
		{"falls.example", "falls.example", "/else", good, 200},
	} {
		for _, http2 := range []bool{false, true} {
			var show []*issuer
			if c.show != nil {
				show = []*issuer{c.show}
			}
			if http2 && c.status == 200 && c.sni == "guarded.example" && c.host == "open.example" {
				continue // the server itself refuses another name than that of the certificate
			}
			if status, body := f.visit(c.sni, c.host, c.path, http2, nil, show...); status != c.status {
				t.Errorf("handshake for %q, request for %s%s, HTTP/2 %v: %d %q, want %d", c.sni, c.host, c.path, http2,
					status, body, c.status)
			}
		}
	}
	tr := &http.Transport{}
	for _, c := range []struct {
		host, path string
		fields     http.Header
		status     int
	}{
		{"open.example", "/", nil, 200},
		{"guarded.example", "/", nil, 400},
		{"guarded.example", "/.well-known/acme-challenge/x", nil, 200},
		{"guarded.example", "/.well-known/acme-challenge/y", nil, 400},
		{"guarded.example", "/", http.Header{"X-Forwarded-Proto": {"https"}, "Ssl-Client-Verify": {"SUCCESS"}}, 400},
		{"moved.example", "/", nil, 308},
	} {
		if status, body := f.get(tr, "http://"+f.plain+c.path, c.host, c.fields); status != c.status {
			t.Errorf("plain %s%s: %d %q, want %d", c.host, c.path, status, body, c.status)
		}
	}
	// A trusted balancer that ended TLS itself shows no certificate.
	f.p.Configure(Settings{Timeouts: f.p.Timeouts, Tries: 1, Trusted: prefixes("127.0.0.0/8")})
	if status, _ := f.get(tr, "http://"+f.plain+"/", "moved.example",
		http.Header{"X-Forwarded-Proto": {"https"}}); status != 400 {
		t.Errorf("behind a balancer: %d", status)
	}
}

// A connection that is open when the rule comes, or when an authority goes, does not stay good.
func TestClientCertificatesFollowChanges(t *testing.T) {
	root, other := issue(t, nil, "root", isCA), issue(t, nil, "other root", isCA)
	good := issue(t, root, "ann", forClients)
	f := newFront(t, handler(t, shows()))
	set := func(c schema.Certificate) {
		c.Key = "shop/ca"
		f.certs.Set(map[string]schema.Certificate{"shop/ca": c})
	}
	set(schema.Certificate{CA: root.pem()})
	host := func(c *schema.ClientCert) {
		f.serve(&schema.Host{Name: "a.example", ClientCert: c, Paths: []schema.Path{openPath()}})
	}
	pair := good.pair()
	for _, http2 := range []bool{false, true} {
		set(schema.Certificate{CA: root.pem()})
		host(nil)
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "a.example",
			Certificates: []tls.Certificate{pair}}, ForceAttemptHTTP2: http2, MaxConnsPerHost: 1}
		ask := func() int {
			status, _ := f.get(tr, "https://"+f.encrypted+"/", "a.example", nil)
			return status
		}
		if s := ask(); s != 200 {
			t.Fatal(s)
		}
		host(&schema.ClientCert{Authority: "shop/ca"})
		if s := ask(); s != 400 { // it was not asked for a certificate then
			t.Errorf("an older connection, HTTP/2 %v: %d", http2, s)
		}
		tr.CloseIdleConnections()
		if s := ask(); s != 200 {
			t.Errorf("a new connection: %d", s)
		}
		set(schema.Certificate{CA: other.pem()})
		if s := ask(); s != 400 {
			t.Errorf("another authority: %d", s)
		}
		set(schema.Certificate{CA: root.pem(), CRL: root.revokes(t, time.Now().Add(time.Hour), good)})
		if s := ask(); s != 400 {
			t.Errorf("revoked: %d", s)
		}
		set(schema.Certificate{CA: root.pem()})
		if s := ask(); s != 200 {
			t.Errorf("good again: %d", s)
		}
		f.certs.Delete([]string{"shop/ca"})
		if s := ask(); s != 400 {
			t.Errorf("no authorities: %d", s)
		}
		tr.CloseIdleConnections()
	}
}

// A session that is taken up again has the certificate of the first handshake, and is judged by it.
func TestResumedSessions(t *testing.T) {
	root := issue(t, nil, "root", isCA)
	good := issue(t, root, "ann", forClients)
	f := newFront(t, handler(t, shows("Ssl-Client-Subject-Dn")))
	f.certs.Set(map[string]schema.Certificate{"shop/ca": {Key: "shop/ca", CA: root.pem()}})
	f.serve(&schema.Host{Name: "a.example", ClientCert: &schema.ClientCert{Authority: "shop/ca"},
		Paths: []schema.Path{openPath()}}, &schema.Host{Name: "open.example", Paths: []schema.Path{openPath()}})
	cache := tls.NewLRUClientSessionCache(8)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for i := range 3 {
			tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "a.example",
				Certificates: []tls.Certificate{good.pair()}, ClientSessionCache: cache, MaxVersion: version}}
			if status, body := f.get(tr, "https://"+f.encrypted+"/", "a.example", nil); status != 200 ||
				!strings.Contains(body, "CN=ann") {
				t.Errorf("handshake %d of %x: %d %q", i, version, status, body)
			}
			tr.CloseIdleConnections()
		}
		// A session of the open host opens nothing here.
		for _, sni := range []string{"open.example", "a.example"} {
			tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: sni,
				ClientSessionCache: renamed{cache}, MaxVersion: version}}
			status, _ := f.get(tr, "https://"+f.encrypted+"/", sni, nil)
			if want := map[string]int{"open.example": 200, "a.example": 400}[sni]; status != want {
				t.Errorf("%s: %d, want %d", sni, status, want)
			}
			tr.CloseIdleConnections()
		}
	}
}

// renamed has one session for all names.
type renamed struct{ tls.ClientSessionCache }

func (r renamed) Get(string) (*tls.ClientSessionState, bool) {
	return r.ClientSessionCache.Get("all")
}

func (r renamed) Put(_ string, s *tls.ClientSessionState) { r.ClientSessionCache.Put("all", s) }

// Ciphers of a host are those of its handshakes alone.
func TestCiphersOfAHost(t *testing.T) {
	f := newFront(t, handler(t, shows()))
	f.serve(&schema.Host{Name: "a.example", Ciphers: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384},
		Paths: []schema.Path{openPath()}},
		&schema.Host{Name: "old.example", Ciphers: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA},
			Paths: []schema.Path{openPath()}}, &schema.Host{Name: "b.example", Paths: []schema.Path{openPath()}})
	for _, c := range []struct {
		sni   string
		suite uint16
		works bool
		proto string
	}{
		{"a.example", tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, true, "h2"},
		{"a.example", tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, false, ""},
		{"b.example", tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, true, "h2"},
		{"old.example", tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, true, "http/1.1"},
	} {
		conn, err := tls.Dial("tcp", f.encrypted, &tls.Config{InsecureSkipVerify: true, ServerName: c.sni,
			MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{c.suite}, NextProtos: []string{"h2", "http/1.1"}})
		if (err == nil) != c.works {
			t.Errorf("%s with %s: %v", c.sni, tls.CipherSuiteName(c.suite), err)
		}
		if err == nil {
			if p := conn.ConnectionState().NegotiatedProtocol; p != c.proto {
				t.Errorf("%s speaks %s", c.sni, p)
			}
			conn.Close()
		}
	}
}

// TLS to endpoints: who they are, who we are, by HTTP/1.1 and HTTP/2; connections by one rule serve no
// other.
func TestEndpointTLS(t *testing.T) {
	root, other := issue(t, nil, "root", isCA), issue(t, nil, "other root", isCA)
	one := issue(t, root, "between", isCA)
	forServers := func(names ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.DNSNames = names }
	}
	serverOf := func(i *issuer, versions ...uint16) (netip.AddrPort, *atomic.Pointer[tls.ConnectionState]) {
		var said atomic.Pointer[tls.ConnectionState]
		config := &tls.Config{Certificates: []tls.Certificate{i.pair()}, ClientAuth: tls.RequestClientCert,
			NextProtos: []string{"h2", "http/1.1"}}
		if len(versions) > 0 {
			config.MaxVersion = versions[0]
		}
		l := tls.NewListener(listen(t), config)
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			said.Store(r.TLS)
			cn := ""
			if len(r.TLS.PeerCertificates) > 0 {
				cn = r.TLS.PeerCertificates[0].Subject.CommonName
			}
			fmt.Fprintf(w, "sni=%s client=%s %x", r.TLS.ServerName, cn, r.TLS.Version)
		}), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), TLSConfig: config}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(func() { s.Close() })
		return netip.MustParseAddrPort(l.Addr().String()), &said
	}
	good := issue(t, one, "web", forServers("web.shop.svc"))
	a, _ := serverOf(good)
	wrong, _ := serverOf(issue(t, other, "web", forServers("web.shop.svc")))
	client := issue(t, root, "proxy", forClients)
	chain, key := client.files(t)
	f := newFront(t)
	f.certs.Set(map[string]schema.Certificate{"shop/tls": {Key: "shop/tls", Chain: chain, Priv: key, CA: root.pem()},
		"shop/crl": {Key: "shop/crl", CA: root.pem(), CRL: append(root.revokes(t, time.Now().Add(time.Hour), one),
			one.revokes(t, time.Now().Add(time.Hour))...)}})
	set := f.settings
	set.Keys = f.certs
	f.p.Upstreams = upstream.NewSet(set)
	f.backends(map[string][]netip.AddrPort{"b": {a}, "wrong": {wrong}})
	for _, c := range []struct {
		name, backend string
		by            *schema.EndpointTLS
		status        int
		want          string
	}{
		{"nothing is checked", "wrong", nil, 200, "sni= client= "},
		{"signed", "b", &schema.EndpointTLS{Authority: "shop/tls", Depth: 1, Name: "web.shop.svc"}, 200,
			"sni= client= "},
		{"not signed by ours", "wrong", &schema.EndpointTLS{Authority: "shop/tls", Depth: 1, Name: "web.shop.svc"}, 502,
			""},
		{"too deep", "b", &schema.EndpointTLS{Authority: "shop/tls", Name: "web.shop.svc"}, 502, ""},
		{"another name", "b", &schema.EndpointTLS{Authority: "shop/tls", Depth: 1, Name: "api.shop.svc"}, 502, ""},
		{"revoked", "b", &schema.EndpointTLS{Authority: "shop/crl", Depth: 1, Name: "web.shop.svc"}, 502, ""},
		{"authorities that are not there", "b", &schema.EndpointTLS{Authority: "shop/none", Depth: 1,
			Name: "web.shop.svc"}, 502, ""},
		{"a name in the handshake", "b", &schema.EndpointTLS{Name: "web.shop.svc", SendName: true}, 200,
			"sni=web.shop.svc client= "},
		{"a certificate of ours", "b", &schema.EndpointTLS{Certificate: "shop/tls"}, 200, "client=proxy "},
		{"one that is not there", "b", &schema.EndpointTLS{Certificate: "shop/none"}, 502, ""},
		{"a version", "b", &schema.EndpointTLS{Least: tls.VersionTLS12, Most: tls.VersionTLS12}, 200, " 303"},
		{"nothing again: no connection of the others is used", "b", nil, 200, "sni= client= 304"},
	} {
		for _, protocol := range []schema.Protocol{schema.HTTPS, schema.GRPCS} {
			p := path(schema.Options{Protocol: protocol, TLS: c.by})
			p.Backend = c.backend
			f.route(p)
			for range 2 {
				if resp, body := f.ask("GET /"); resp.StatusCode != c.status || !strings.Contains(body, c.want) {
					t.Errorf("%s, %s: %s %q, want %d %q", c.name, protocol, resp.Status, body, c.status, c.want)
				}
			}
		}
	}
}

// A host that is passed through has the endpoint's own certificate, and asks for the client's; other
// hosts are served by the proxy.
func TestPassthrough(t *testing.T) {
	root := issue(t, nil, "root", isCA)
	own, client := issue(t, root, "endpoint", func(c *x509.Certificate) { c.DNSNames = []string{"pass.example"} }),
		issue(t, root, "ann", forClients)
	pool := x509.NewCertPool()
	pool.AddCert(root.Certificate)
	config := &tls.Config{Certificates: []tls.Certificate{own.pair()}, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"h2", "http/1.1"}}
	l := tls.NewListener(listen(t), config)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Proto, " ", r.TLS.PeerCertificates[0].Subject.CommonName)
	}), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), TLSConfig: config}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	f := newFront(t)
	f.backends(map[string][]netip.AddrPort{"b": {handler(t, shows())},
		"tls":  {netip.MustParseAddrPort(l.Addr().String())},
		"gone": {netip.MustParseAddrPort("127.0.0.1:1")}, "none": nil})
	f.serve(&schema.Host{Name: "pass.example", Passthrough: "tls", Paths: []schema.Path{openPath()}},
		&schema.Host{Name: "*.wild.example", Passthrough: "tls", Paths: []schema.Path{openPath()}},
		&schema.Host{Name: "own.wild.example", Paths: []schema.Path{openPath()}},
		&schema.Host{Name: "gone.example", Passthrough: "gone"}, &schema.Host{Name: "none.example",
			Passthrough: "none"},
		&schema.Host{Name: "open.example", Paths: []schema.Path{openPath()}})
	for _, c := range []struct {
		sni   string
		http2 bool
		body  string
	}{
		{"pass.example", true, "HTTP/2.0 ann"}, {"pass.example", false, "HTTP/1.1 ann"},
		{"PASS.example", false, "HTTP/1.1 ann"}, {"x.wild.example", true, "HTTP/2.0 ann"},
		{"own.wild.example", true, "GET own.wild.example /"}, {"open.example", true, "GET open.example /"},
		{"open.example", false, "GET open.example /"},
	} {
		if status, body := f.visit(c.sni, c.sni, "/", c.http2, nil, client); status != 200 ||
			!strings.HasPrefix(body, c.body) && !strings.HasPrefix(strings.ToLower(body), strings.ToLower(c.body)) {
			t.Errorf("%s, HTTP/2 %v: %d %q, want %q", c.sni, c.http2, status, body, c.body)
		}
	}
	// The certificate is the endpoint's, which refuses clients without one.
	conn, err := tls.Dial("tcp", f.encrypted, &tls.Config{RootCAs: pool, ServerName: "pass.example",
		Certificates: []tls.Certificate{client.pair()}})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	for _, sni := range []string{"gone.example", "none.example"} {
		if conn, err := tls.Dial("tcp", f.encrypted, &tls.Config{InsecureSkipVerify: true,
			ServerName: sni}); err == nil {
			conn.Close()
			t.Errorf("%s without an endpoint answers", sni)
		}
	}
	// A ClientHello that comes byte by byte.
	slow, err := net.Dial("tcp", f.encrypted)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	over := tls.Client(&dribble{Conn: slow}, &tls.Config{RootCAs: pool, ServerName: "pass.example",
		Certificates: []tls.Certificate{client.pair()}})
	_ = slow.SetDeadline(time.Now().Add(20 * time.Second))
	if err := over.HandshakeContext(t.Context()); err != nil {
		t.Errorf("a slow handshake: %v", err)
	}
	// What is no handshake is answered as before.
	plain, err := net.Dial("tcp", f.encrypted)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_ = plain.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(plain, "GET / HTTP/1.1\r\nHost: pass.example\r\n\r\n")
	if b, _ := io.ReadAll(plain); !strings.HasPrefix(string(b), "HTTP/1.1 400 ") {
		t.Errorf("plain HTTP is answered %q", b)
	}
	// that of slow is open
	for end := time.Now().Add(10 * time.Second); f.p.Tunnels() > 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d tunnels are left", f.p.Tunnels())
		}
	}
}

// dribble writes in small parts.
type dribble struct{ net.Conn }

// Write writes in small parts, and waits between them.
func (d *dribble) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		m := 0
		m, err = d.Conn.Write(p[:min(len(p), 40)])
		n, p = n+m, p[m:]
		time.Sleep(2 * time.Millisecond)
	}
	return n, err
}
