// Package interop tests the HTTP proxy with clients and servers of other projects.
package interop

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"

	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/process"
	"wayleave.dev/proxy/schema"
)

// pair creates a certificate for a name.
func pair(t *testing.T, name string) (schema.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return schema.Certificate{Key: name, Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Priv: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})}, pool
}

// serve starts a proxy with a host; it returns its sockets, plain and encrypted.
func serve(t *testing.T, host schema.Host, backend schema.Backend, cert schema.Certificate) (plain,
	encrypted netip.AddrPort) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	free := func() netip.AddrPort {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return netip.MustParseAddrPort(l.Addr().String())
	}
	plain, encrypted = free(), free()
	f := feed.New(65533, feed.NewKeeper("", log), log)
	f.Configure(schema.Settings{Drain: time.Second})
	f.Listen([]schema.Socket{{Addr: plain}, {Addr: encrypted, TLS: true}})
	ctx, cancel := context.WithCancel(context.Background())
	if err := errors.Join(f.Hosts().Sync(ctx, map[string]schema.Host{host.Name: host}),
		f.Backends().Sync(ctx, map[string]schema.Backend{backend.Key: backend}),
		f.Certificates().Sync(ctx, map[string]schema.Certificate{cert.Key: cert})); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "proxy.sock")})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = f.Serve(ctx, l) }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := process.Run(ctx, process.Config{Socket: filepath.Join(dir, "proxy.sock"),
			HealthSocket: filepath.Join(dir, "health.sock"), AccessLog: io.Discard, Log: log}); !errors.Is(err,
			context.Canceled) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", plain.String())
		if err == nil {
			c.Close()
			return plain, encrypted
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// The cases of gRPC's interoperability suite, whose client exits if one fails, pass through the proxy, plain and
// encrypted on both sides.
func TestGRPCInterop(t *testing.T) {
	const name = "grpc.example.com"
	cert, pool := pair(t, name)
	keyPair, err := tls.X509KeyPair(cert.Chain, cert.Priv)
	if err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []schema.Protocol{schema.GRPC, schema.GRPCS} {
		var options []grpc.ServerOption
		if protocol == schema.GRPCS {
			options = append(options, grpc.Creds(credentials.NewServerTLSFromCert(&keyPair)))
		}
		s := grpc.NewServer(options...)
		testgrpc.RegisterTestServiceServer(s, interop.NewTestServer())
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(s.Stop)
		plain, encrypted := serve(t, schema.Host{Name: name, Certificate: name,
			Paths: []schema.Path{{Kind: schema.Prefix, Path: "/", Backend: "b",
				Options: &schema.Options{Protocol: protocol}}}},
			schema.Backend{Key: "b", Endpoints: []schema.Endpoint{{Addr: netip.MustParseAddrPort(l.Addr().String())}}},
			cert)
		for _, c := range []struct {
			name  string
			addr  netip.AddrPort
			creds credentials.TransportCredentials
		}{{"plain", plain, insecure.NewCredentials()},
			{"TLS", encrypted, credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: name})}} {
			t.Run(string(protocol)+" "+c.name, func(t *testing.T) {
				cc, err := grpc.NewClient("passthrough:///"+c.addr.String(), grpc.WithTransportCredentials(c.creds),
					grpc.WithAuthority(name))
				if err != nil {
					t.Fatal(err)
				}
				defer cc.Close()
				suite(t, cc)
			})
		}
	}
}

func suite(t *testing.T, cc *grpc.ClientConn) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tc := testgrpc.NewTestServiceClient(cc)
	for _, c := range []struct {
		name string
		do   func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption)
	}{
		{"empty_unary", interop.DoEmptyUnaryCall}, {"large_unary", interop.DoLargeUnaryCall},
		{"client_streaming", interop.DoClientStreaming},
		{"server_streaming", interop.DoServerStreaming}, {"ping_pong", interop.DoPingPong},
		{"empty_stream", interop.DoEmptyStream},
		{"timeout_on_sleeping_server", interop.DoTimeoutOnSleepingServer},
		{"cancel_after_begin", interop.DoCancelAfterBegin},
		{"cancel_after_first_response", interop.DoCancelAfterFirstResponse},
		{"custom_metadata", interop.DoCustomMetadata},
		{"status_code_and_message", interop.DoStatusCodeAndMessage},
		{"special_status_message", interop.DoSpecialStatusMessage},
	} {
		c.do(ctx, tc)
		t.Log(c.name)
	}
	interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(cc))
	interop.DoUnimplementedMethod(ctx, cc)
}
