package process

import (
	"bytes"
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
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/internal/handoff"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/schema"
)

// rig is a node: agents with their feeds, and proxies that follow them.
type rig struct {
	t            *testing.T
	keeper       *handoff.Keeper[schema.Socket]
	feed         *feed.Feed
	plain, https netip.AddrPort
	ca           *authority
	settings     schema.Settings
	log          logged
}

// logged is an access log.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newRig makes a node with an agent that knows nothing yet but its two sockets.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, keeper: feed.NewKeeper("", slog.New(slog.DiscardHandler)), ca: newAuthority(t)}
	r.plain, r.https = r.bind(false), r.bind(true)
	r.feed = r.agent(r.keeper)
	return r
}

// bind opens a listening socket for the keeper to have.
func (r *rig) bind(encrypted bool) netip.AddrPort {
	r.t.Helper()
	f, err := feed.OpenSocket(schema.Socket{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		r.t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Close()
	addr := netip.MustParseAddrPort(l.Addr().String())
	if err := r.keeper.Adopt(schema.Socket{Addr: addr, TLS: encrypted}, f); err != nil {
		r.t.Fatal(err)
	}
	return addr
}

func (r *rig) sockets() []schema.Socket {
	return []schema.Socket{{Addr: r.plain}, {Addr: r.https, TLS: true}}
}

// agent makes a feed that says which sockets there are.
func (r *rig) agent(k *handoff.Keeper[schema.Socket]) *feed.Feed {
	f := feed.New(65533, k, slog.New(slog.DiscardHandler))
	f.Configure(r.settings)
	f.Listen(r.sockets())
	return f
}

// serveFeed has a feed take proxies, until stop is called.
func serveFeed(t *testing.T, f *feed.Feed, path string) (stop func()) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.Serve(ctx, l); !errors.Is(err, context.Canceled) {
			t.Errorf("feed: %v", err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// run starts a proxy that follows a feed's socket, and waits until it is ready. stop ends
// it, and returns when it has drained.
func (r *rig) run(dir string) (stop func()) {
	r.t.Helper()
	stop = r.start(dir)
	testnet.Eventually(r.t, 10*time.Second, func() error { return ready(filepath.Join(dir, "health.sock")) })
	return stop
}

func (r *rig) start(dir string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := Run(ctx, Config{Socket: filepath.Join(dir, "proxy.sock"), HealthSocket: filepath.Join(dir,
			"health.sock"), AccessLog: &r.log, Log: slog.New(slog.DiscardHandler)})
		if !errors.Is(err, context.Canceled) {
			r.t.Errorf("proxy: %v", err)
		}
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	r.t.Cleanup(stop)
	return stop
}

// up serves the feed to one proxy with the plans.
func (r *rig) up(hosts map[string]schema.Host, backends map[string]schema.Backend,
	certs map[string]schema.Certificate) {
	r.t.Helper()
	r.plan(r.feed, hosts, backends, certs)
	dir := r.t.TempDir()
	serveFeed(r.t, r.feed, filepath.Join(dir, "proxy.sock"))
	r.run(dir)
}

// plan is the first sync of a feed.
func (r *rig) plan(f *feed.Feed, hosts map[string]schema.Host, backends map[string]schema.Backend,
	certs map[string]schema.Certificate) {
	r.t.Helper()
	if err := errors.Join(f.Hosts().Sync(r.t.Context(), hosts), f.Backends().Sync(r.t.Context(), backends),
		f.Certificates().Sync(r.t.Context(), certs)); err != nil {
		r.t.Fatal(err)
	}
}

// get asks a probe's socket.
func get(socket, path string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}}}
	resp, err := client.Get("http://proxy" + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(raw)))
	}
	return string(raw), err
}

func ready(socket string) error {
	_, err := get(socket, "/readyz")
	return err
}

// route is a host whose every path leads to a backend.
func route(name, backend, certificate string) schema.Host {
	return schema.Host{Name: name, Certificate: certificate,
		Paths: []schema.Path{{Kind: schema.Prefix, Path: "/", Backend: backend, Source: "Ingress default/" + backend}}}
}

// backend is one endpoint, that a handler answers for.
func (r *rig) backend(key string, h http.HandlerFunc) schema.Backend {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: h, Protocols: &p, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = s.Serve(l) }()
	r.t.Cleanup(func() { s.Close() })
	return schema.Backend{Key: key, Endpoints: []schema.Endpoint{{Addr: netip.MustParseAddrPort(l.Addr().String())}}}
}

// says answers with a text.
func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

// authority makes certificates.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	mu   sync.Mutex
	n    int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{t: t, cert: cert, key: key, pool: pool, n: 1}
}

// issue makes a certificate for names, as a Secret has it.
func (a *authority) issue(key string, names ...string) schema.Certificate {
	a.t.Helper()
	a.mu.Lock()
	a.n++
	serial := a.n
	a.mu.Unlock()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: key}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &priv.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		a.t.Fatal(err)
	}
	return schema.Certificate{Key: key, Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Priv: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})}
}

// client is net/http's, that comes to the rig whatever the name is.
func (r *rig) client(http2 bool) *http.Client {
	var p http.Protocols
	p.SetHTTP1(!http2)
	p.SetHTTP2(http2)
	p.SetUnencryptedHTTP2(http2)
	tr := &http.Transport{Protocols: &p, TLSClientConfig: &tls.Config{RootCAs: r.ca.pool},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			to := r.plain
			if strings.HasSuffix(addr, ":443") {
				to = r.https
			}
			var d net.Dialer
			return d.DialContext(ctx, network, to.String())
		}}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// fetch gets a URL's body.
func fetch(c *http.Client, url string) (status int, body string, err error) {
	resp, err := c.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), err
}

// handshake says which certificate a name gets: its serial's common name.
func (r *rig) handshake(name string) (string, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	c, err := tls.DialWithDialer(&d, "tcp", r.https.String(), &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		return "", err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
}

func mustRemove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}
