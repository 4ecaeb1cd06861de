package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/keypair"
	"wayleave.dev/internal/keypair/keypairtest"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/server"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

// compared is a table of two answers, with the reason if they differ.
type compared struct {
	t                       *testing.T
	why                     map[string]string
	rows                    [][]string
	all, same, ours, others int
}

// row compares one case. good are answers that serve it; more are cells before the reason.
func (c *compared) row(name, own, nginx string, good func(string) bool, more ...string) {
	c.all++
	if own == nginx {
		c.same++
		if c.why[name] != "" {
			c.t.Errorf("%s: both answer %s; the reason for a difference is out of date", name, own)
		}
		return
	}
	if c.why[name] == "" {
		c.t.Errorf("%s\t(%s; nginx: %s) the reason is missing", name, own, nginx)
	}
	switch {
	case good(nginx) && !good(own):
		c.ours++
	case good(own) && !good(nginx):
		c.others++
	}
	c.rows = append(c.rows, append(append([]string{name, own}, more...), nginx, c.why[name]))
}

// TestTLS compares what nginx accepts in TLS with what Wayleave accepts, and writes docs/proxy-tls.md.
func TestTLS(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root (CAP_SYS_ADMIN)")
	}
	for _, name := range []string{"nginx", "openssl"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(name + " is not installed (Debian: apt-get install nginx-light openssl)")
		}
	}
	cases, err := keypairtest.Cases("../../internal/keypair/testdata")
	if err != nil {
		t.Fatal(err)
	}
	ns := testnet.New(t, "tls")
	why := reasonsIn(t, "testdata/tls.txt")
	secrets := &compared{t: t, why: why}
	own, other := ownPairs(t, ns, cases), nginxPairs(t, ns, cases)
	for _, x := range cases {
		secrets.row(x.Name, own[x.Name], other[x.Name], func(s string) bool { return s == "served" })
	}
	ends := endpointsOf(t, ns, cases)
	speak := &compared{t: t, why: why}
	plain, allowed, nginx := askEndpoints(t, ns, ends)
	for i, e := range ends {
		speak.row(e.name, plain[i], nginx[i], func(s string) bool { return s == "200" }, allowed[i])
	}
	if t.Failed() {
		return
	}
	page := result.New(result.Docs, "proxy-tls", "Comparison with nginx: TLS")
	page.Text("This page lists which certificates of Secrets are served, and which endpoints are reached by TLS. " +
		"[proxy-server.md](proxy-server.md#certificates) says which certificate a client gets.")
	page.Text("`cd bench && go test -run TestTLS ./proxy` generates this page: it tries %d pairs of certificate and "+
		"key, and %d endpoints, with Wayleave and with nginx %s (OpenSSL %s) with Debian's defaults. Only "+
		"differences are listed, each with the reason.",
		secrets.all, speak.all, version("nginx -v"), version("openssl version"))
	page.Text("## Certificates of Secrets")
	page.Text("%d of %d pairs have the same answer. nginx accepts %d that Wayleave refuses; Wayleave serves %d that "+
		"nginx refuses. If a pair is refused, the last valid one stays in use, and an Event gives the reason. "+
		"Bounds: %d certificates, %d KiB in total, RSA keys of %d to %d bits.",
		secrets.same, secrets.all, secrets.ours, secrets.others, keypair.MaxCertificates, keypair.MaxChain>>10,
		keypair.MinRSA, keypair.MaxRSA)
	page.Table(append([][]string{{"pair", "Wayleave", "nginx", "why"}}, secrets.rows...))
	page.Text("A host may have two certificates, one with a key of RSA and one without: a client gets the one " +
		"that it can use. ingress-nginx has one for each host; nginx has both, by two directives ssl_certificate.")
	page.Text("## Endpoints")
	page.Text("The certificate of an endpoint is not verified, as in ingress-nginx by default. %d of %d endpoints "+
		"have the same answer. nginx reaches %d by default that Wayleave does not; Wayleave reaches %d that nginx "+
		"does not. The third column is the answer with `ingress.endpointTLSMinVersion: \"1.0\"` and "+
		"`ingress.endpointTLSRSAKeyExchange: true`.",
		speak.same, speak.all, speak.ours, speak.others)
	page.Table(append([][]string{{"endpoint", "Wayleave", "with the settings", "nginx", "why"}}, speak.rows...))
	page.Text("## Clients")
	page.Text("Clients must use TLS 1.2 or 1.3 with forward secrecy, like ingress-nginx's defaults (`ssl-protocols`, " +
		"`ssl-ciphers`). nginx's own defaults also accept TLS 1.0 and 1.1, and the RSA key exchange; Wayleave " +
		"refuses them, without a setting (RFC 8996).")
	if err := page.Write(); err != nil {
		t.Fatal(err)
	}
}

// handshake connects OpenSSL's client.
func handshake(ns *testnet.NS, port int) string {
	out, _ := ns.Try("openssl", "s_client", "-connect", fmt.Sprintf("127.0.0.1:%d", port), "-servername",
		keypairtest.Name, "-cipher", "ALL:@SECLEVEL=0")
	if strings.Contains(out, "Cipher is ") && !strings.Contains(out, "Cipher is (NONE)") {
		return "served"
	}
	return "loaded, no handshake"
}

// ownPairs returns Wayleave's result for each pair.
func ownPairs(t *testing.T, ns *testnet.NS, cases []keypairtest.Case) map[string]string {
	t.Helper()
	certs, err := server.NewCertificates()
	if err != nil {
		t.Fatal(err)
	}
	certs.SetTable(table.Make(nil, map[string]*schema.Host{keypairtest.Name: {Name: keypairtest.Name,
		Certificate: "s"}}))
	s := server.New(server.Options{Certificates: certs, Handle: nil, HTTP1: h1.DefaultLimits(),
		Log: slog.New(slog.DiscardHandler)})
	const port = 9443
	l := ns.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Listen(schema.Socket{Addr: netip.MustParseAddrPort(l.Addr().String()), TLS: true}, f); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	t.Cleanup(func() { s.Keep(nil) })
	out := map[string]string{}
	for _, x := range cases {
		certs.Delete([]string{"s"})
		certs.Set(map[string]schema.Certificate{"s": {Key: "s", Chain: x.Chain, Priv: x.Key}})
		if out[x.Name] = "refused"; certs.Problems()["s"] == "" {
			out[x.Name] = handshake(ns, port)
		}
	}
	return out
}

// nginxPairs returns nginx's result for each pair.
func nginxPairs(t *testing.T, ns *testnet.NS, cases []keypairtest.Case) map[string]string {
	t.Helper()
	dir := t.TempDir()
	head := strings.ReplaceAll(nginxHead, "DIR", dir)
	out := map[string]string{}
	var servers strings.Builder
	ports := map[string]int{}
	for i, x := range cases {
		file := filepath.Join(dir, fmt.Sprint(i))
		for name, text := range map[string][]byte{file + ".crt": x.Chain, file + ".key": x.Key} {
			if err := os.WriteFile(name, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		one := fmt.Sprintf(
			"server { listen 127.0.0.1:%d ssl; ssl_certificate %s.crt; ssl_certificate_key %s.key; return 200; }\n",
			9500+i, file, file)
		if err := os.WriteFile(filepath.Join(dir, "one"), []byte(head+"http {\n"+one+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ns.Try("nginx", "-t", "-c", filepath.Join(dir, "one")); err != nil {
			out[x.Name] = "refused"
			continue
		}
		servers.WriteString(one)
		ports[x.Name] = 9500 + i
	}
	if err := os.WriteFile(filepath.Join(dir, "all"), []byte(head+"http {\n"+strings.ReplaceAll(nginxTemps, "DIR", dir)+
		"\nserver { listen 127.0.0.1:9499; }\n"+servers.String()+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, ns, 9499, "nice", "nginx -c "+filepath.Join(dir, "all"))
	for name, port := range ports {
		out[name] = handshake(ns, port)
	}
	return out
}

// endpoint is a server to which a proxy connects by TLS.
type endpoint struct {
	name string
	port int
}

// endpointsOf starts servers of each kind.
func endpointsOf(t *testing.T, ns *testnet.NS, cases []keypairtest.Case) (list []endpoint) {
	t.Helper()
	const text = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	answers := func(text string, ends bool) func(net.Conn) {
		return func(c net.Conn) {
			br := bufio.NewReader(c)
			for {
				if _, err := http.ReadRequest(br); err != nil {
					return
				}
				if _, err := io.WriteString(c, text); err != nil || ends {
					return
				}
			}
		}
	}
	add := func(name string, config *tls.Config, answer func(net.Conn)) {
		port := 9700 + len(list)
		ns.Serve("tcp", fmt.Sprintf("127.0.0.1:%d", port), func(c net.Conn) {
			defer c.Close()
			if config != nil {
				c = tls.Server(c, config)
			}
			answer(c)
		})
		list = append(list, endpoint{name, port})
	}
	var usual *tls.Certificate
	for _, x := range cases {
		pair, err := keypair.Parse(x.Chain, x.Key)
		if err != nil {
			continue
		}
		add("certificate: "+x.Name, &tls.Config{Certificates: []tls.Certificate{*pair}}, answers(text, false))
		if x.Name == "RSA 2048, PKCS #1" {
			usual = pair
		}
	}
	with := func(change func(*tls.Config)) *tls.Config {
		c := &tls.Config{Certificates: []tls.Certificate{*usual}, MinVersion: tls.VersionTLS10}
		change(c)
		return c
	}
	rsa := []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}
	for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		add(tls.VersionName(v), with(func(c *tls.Config) { c.MinVersion, c.MaxVersion = v, v }), answers(text, false))
	}
	add("RSA key exchange", with(func(c *tls.Config) { c.MaxVersion, c.CipherSuites = tls.VersionTLS12, rsa }),
		answers(text, false))
	add("RSA key exchange in TLS 1.0", with(func(c *tls.Config) {
		c.MaxVersion, c.CipherSuites = tls.VersionTLS10,
			rsa
	}), answers(text, false))
	add("3DES", with(func(c *tls.Config) {
		c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}
	}), answers(text, false))
	add("P-384 alone", with(func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP384} }),
		answers(text, false))
	add("a client certificate is asked for", with(func(c *tls.Config) { c.ClientAuth = tls.RequestClientCert }),
		answers(text, false))
	add("a client certificate is required", with(func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }),
		answers(text, false))
	add("HTTP without TLS", nil, answers(text, false))
	add("a body that ends with the connection, by close_notify", with(func(*tls.Config) {}), func(c net.Conn) {
		answers("HTTP/1.1 200 OK\r\n\r\nok", true)(c)
		_ = c.(*tls.Conn).CloseWrite()
	})
	add("a body that ends with the connection, without close_notify", with(func(*tls.Config) {}),
		answers("HTTP/1.1 200 OK\r\n\r\nok", true))
	add("a length, and no close_notify", with(func(*tls.Config) {}), answers(text, true))
	return append(list, sha1Server(t, ns, cases))
}

// sha1Server signs its handshakes only with SHA-1.
func sha1Server(t *testing.T, ns *testnet.NS, cases []keypairtest.Case) endpoint {
	t.Helper()
	dir := t.TempDir()
	for _, x := range cases {
		if x.Name != "RSA 2048, PKCS #1" {
			continue
		}
		for name, text := range map[string][]byte{"crt": x.Chain, "key": x.Key} {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	const port = 9699
	run(t, ns, port, "nice", fmt.Sprintf("openssl s_server -accept 127.0.0.1:%d -cert %s/crt -key %s/key -www "+
		"-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256:@SECLEVEL=0 -sigalgs RSA+SHA1", port, dir, dir))
	return endpoint{"handshakes signed by SHA-1 alone", port}
}

// askEndpoints requests each endpoint through Wayleave, by default and with all settings, and through nginx.
func askEndpoints(t *testing.T, ns *testnet.NS, list []endpoint) (plain, allowed, nginx []string) {
	t.Helper()
	dir := t.TempDir()
	var servers strings.Builder
	for i, e := range list {
		fmt.Fprintf(&servers, "server { listen 127.0.0.1:%d; location / { proxy_pass https://127.0.0.1:%d; "+
			"proxy_http_version 1.1; proxy_set_header Connection ''; } }\n", 10300+i, e.port)
	}
	file := filepath.Join(dir, "conf")
	text := strings.ReplaceAll(nginxHead+"http {\naccess_log off; "+nginxTemps+"\n"+servers.String()+"}\n", "DIR", dir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, ns, 10300, "nice", "nginx -c "+file)
	options := &schema.Options{Protocol: schema.HTTPS}
	for i, e := range list {
		at := fmt.Sprintf("127.0.0.1:%d", e.port)
		ownProxy(t, ns, 10100+i, at, options, upstream.TLS{})
		ownProxy(t, ns, 10200+i, at, options, upstream.TLS{MinVersion: tls.VersionTLS10, RSAKeyExchange: true})
		for port, to := range map[int]*[]string{10100 + i: &plain, 10200 + i: &allowed, 10300 + i: &nginx} {
			*to = append(*to, statusOf(t, ns, port))
		}
	}
	return plain, allowed, nginx
}

// statusOf requests "/"; a truncated body does not count as 200.
func statusOf(t *testing.T, ns *testnet.NS, port int) string {
	t.Helper()
	c, err := ns.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "no answer"
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return fmt.Sprintf("%d, broken off", resp.StatusCode)
	}
	return fmt.Sprint(resp.StatusCode)
}
