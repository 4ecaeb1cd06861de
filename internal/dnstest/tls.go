package dnstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Authority creates a self-signed certificate for a name and an address.
func Authority(t *testing.T) (tls.Certificate, string) {
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

// TLSServer serves only TLS, with a limited number of queries per connection.
type TLSServer struct {
	net.Listener
	Accepted atomic.Int64
	Asked    atomic.Int64
}

// Accept implements net.Listener.
func (s *TLSServer) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err == nil {
		s.Accepted.Add(1)
	}
	return c, err
}

// NewTLSServer starts a DNS over TLS server that ends with the test. It answers perConnection queries per connection;
// -1 for no limit.
func NewTLSServer(t *testing.T, cert tls.Certificate, perConnection int) (*TLSServer, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &TLSServer{Listener: l}
	srv := &dns.Server{Listener: tls.NewListener(s, &tls.Config{Certificates: []tls.Certificate{cert}}), Net: "tcp-tls",
		MaxTCPQueries: perConnection,
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			s.Asked.Add(1)
			Tells("192.0.2.1", 300)(w, q)
		})}
	started := make(chan struct{})
	srv.NotifyStartedFunc = func() { close(started) }
	go func() { _ = srv.ActivateAndServe() }()
	<-started
	t.Cleanup(func() { _ = srv.Shutdown() })
	return s, netip.MustParseAddrPort(l.Addr().String())
}
