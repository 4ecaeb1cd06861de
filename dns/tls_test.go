package dns

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/model"
)

// testAuthority signs itself, for a name and an address.
func testAuthority(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"dns.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// tlsServer answers by TLS only; queries per connection as given.
type tlsServer struct {
	net.Listener
	accepted atomic.Int64
	asked    atomic.Int64
}

func (s *tlsServer) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err == nil {
		s.accepted.Add(1)
	}
	return c, err
}

func newTLSServer(t *testing.T, cert tls.Certificate, perConnection int) (*tlsServer, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &tlsServer{Listener: l}
	srv := &dns.Server{Listener: tls.NewListener(s, &tls.Config{Certificates: []tls.Certificate{cert}}), Net: "tcp-tls",
		MaxTCPQueries: perConnection,
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			s.asked.Add(1)
			tells("192.0.2.1", 300)(w, q)
		})}
	started := make(chan struct{})
	srv.NotifyStartedFunc = func() { close(started) }
	go func() { _ = srv.ActivateAndServe() }()
	<-started
	t.Cleanup(func() { _ = srv.Shutdown() })
	return s, netip.MustParseAddrPort(l.Addr().String())
}

func TestDNSOverTLS(t *testing.T) {
	t.Parallel()
	cert, ca := testAuthority(t)
	server, at := newTLSServer(t, cert, -1)
	for _, name := range []string{"dns.example", ""} { // its name, or its address
		before := server.accepted.Load()
		f, _ := newForwarder(t, Forwarding{CA: ca,
			Upstreams: []model.Nameserver{{Addr: at, TLS: true, ServerName: name}}})
		for i := range 5 {
			expectText(t, resolve(t, f, fmt.Sprintf("n%d.example.", i)), tellsOne)
		}
		if n := server.accepted.Load() - before; n != 1 {
			t.Errorf("%d connections for 5 queries, want 1", n)
		}
	}
}

// TestDNSOverTLSChecksTheServer, and says nothing in plain text instead.
func TestDNSOverTLSChecksTheServer(t *testing.T) {
	t.Parallel()
	cert, ca := testAuthority(t)
	server, at := newTLSServer(t, cert, -1)
	for what, s := range map[string]Forwarding{
		"another name": {CA: ca,
			Upstreams: []model.Nameserver{{Addr: at, TLS: true, ServerName: "other.example"}}},
		"an authority that nobody vouches for": {Upstreams: []model.Nameserver{
			{Addr: at, TLS: true, ServerName: "dns.example"}}},
	} {
		f, _ := newForwarder(t, s)
		expectText(t, resolve(t, f, "secret.example."), "TLS: tls: failed to verify certificate")
		if n := server.asked.Load(); n != 0 {
			t.Errorf("%s: was told the name", what)
		}
	}
	plain := newFakeServer(t, tells("192.0.2.66", 300))
	f, _ := newForwarder(t, Forwarding{CA: ca, Upstreams: []model.Nameserver{{Addr: plain.addr, TLS: true,
		ServerName: "dns.example"}}})
	expectText(t, resolve(t, f, "secret.example."), "error: ")
	if n := plain.udp.Load(); n != 0 {
		t.Errorf("%d queries in plain text", n)
	}
}

// TestAClosedTLSConnectionIsNoFailure: servers close them when they like.
func TestAClosedTLSConnectionIsNoFailure(t *testing.T) {
	t.Parallel()
	cert, ca := testAuthority(t)
	server, at := newTLSServer(t, cert, 2)
	f, _ := newForwarder(t, Forwarding{CA: ca, Upstreams: []model.Nameserver{{Addr: at, TLS: true}}})
	for i := range 6 {
		expectText(t, resolve(t, f, fmt.Sprintf("n%d.example.", i)), tellsOne)
	}
	if n := server.accepted.Load(); n < 3 {
		t.Errorf("%d connections for 6 queries of 2 each", n)
	}
	if u := f.routes.Load().upstream[0]; u.failed.Load() != 0 {
		t.Errorf("%d failures", u.failed.Load())
	}
}

// TestAnAuthorityOfTheirOwnIsAddedAtOnce: a change of the authorities makes new
// connections.
func TestAnAuthorityOfTheirOwnIsAddedAtOnce(t *testing.T) {
	t.Parallel()
	cert, ca := testAuthority(t)
	_, at := newTLSServer(t, cert, -1)
	s := Forwarding{Upstreams: []model.Nameserver{{Addr: at, TLS: true}}}
	f, _ := newForwarder(t, s)
	expectText(t, resolve(t, f, "a.example."), "failed to verify certificate")
	s.CA = ca
	f.Configure(s)
	expectText(t, resolve(t, f, "a.example."), tellsOne)
}
