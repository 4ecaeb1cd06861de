package forward

import (
	"fmt"
	"testing"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/model"
)

func TestDNSOverTLS(t *testing.T) {
	t.Parallel()
	cert, ca := dnstest.Authority(t)
	server, at := dnstest.NewTLSServer(t, cert, -1)
	for _, name := range []string{"dns.example", ""} { // its name, or its address
		before := server.Accepted.Load()
		f, _ := newForwarder(t, schema.Forwarding{CA: ca,
			Upstreams: []model.Nameserver{{Addr: at, TLS: true, ServerName: name}}})
		for i := range 5 {
			dnstest.ExpectText(t, resolve(t, f, fmt.Sprintf("n%d.example.", i)), dnstest.TellsOne)
		}
		if n := server.Accepted.Load() - before; n != 1 {
			t.Errorf("%d connections for 5 queries, want 1", n)
		}
	}
}

// TestDNSOverTLSChecksTheServer, and says nothing in plain text instead.
func TestDNSOverTLSChecksTheServer(t *testing.T) {
	t.Parallel()
	cert, ca := dnstest.Authority(t)
	server, at := dnstest.NewTLSServer(t, cert, -1)
	for what, s := range map[string]schema.Forwarding{
		"another name": {CA: ca,
			Upstreams: []model.Nameserver{{Addr: at, TLS: true, ServerName: "other.example"}}},
		"an authority that nobody vouches for": {Upstreams: []model.Nameserver{
			{Addr: at, TLS: true, ServerName: "dns.example"}}},
	} {
		f, _ := newForwarder(t, s)
		dnstest.ExpectText(t, resolve(t, f, "secret.example."), "TLS: tls: failed to verify certificate")
		if n := server.Asked.Load(); n != 0 {
			t.Errorf("%s: was told the name", what)
		}
	}
	plain := dnstest.NewServer(t, dnstest.Tells("192.0.2.66", 300))
	f, _ := newForwarder(t, schema.Forwarding{CA: ca, Upstreams: []model.Nameserver{{Addr: plain.Addr, TLS: true,
		ServerName: "dns.example"}}})
	dnstest.ExpectText(t, resolve(t, f, "secret.example."), "error: ")
	if n := plain.UDP.Load(); n != 0 {
		t.Errorf("%d queries in plain text", n)
	}
}

// TestAClosedTLSConnectionIsNoFailure: servers close them when they like.
func TestAClosedTLSConnectionIsNoFailure(t *testing.T) {
	t.Parallel()
	cert, ca := dnstest.Authority(t)
	server, at := dnstest.NewTLSServer(t, cert, 2)
	f, _ := newForwarder(t, schema.Forwarding{CA: ca, Upstreams: []model.Nameserver{{Addr: at, TLS: true}}})
	for i := range 6 {
		dnstest.ExpectText(t, resolve(t, f, fmt.Sprintf("n%d.example.", i)), dnstest.TellsOne)
	}
	if n := server.Accepted.Load(); n < 3 {
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
	cert, ca := dnstest.Authority(t)
	_, at := dnstest.NewTLSServer(t, cert, -1)
	s := schema.Forwarding{Upstreams: []model.Nameserver{{Addr: at, TLS: true}}}
	f, _ := newForwarder(t, s)
	dnstest.ExpectText(t, resolve(t, f, "a.example."), "failed to verify certificate")
	s.CA = ca
	f.Configure(s)
	dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
}
