package proxy

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// routes are host names, each with the port of its endpoint.
type routes map[string]int

func (r routes) names() []string { return slices.Sorted(maps.Keys(r)) }

// services is the number of Services of the routes.
const services = 1000

// Every contestant keeps its connections, and sends ingress-nginx's fields about the client to the endpoint.
const (
	nginxTemps = `client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/f; ` +
		`scgi_temp_path DIR/s; uwsgi_temp_path DIR/u;`

	nginxPass = `proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
      proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Forwarded-Port $server_port; proxy_set_header X-Forwarded-Proto $scheme;`

	nginxHead = `
daemon off; master_process off; worker_processes 1; pid DIR/pid; error_log DIR/error.log;
events { worker_connections 8192; }
`
	// nginxProxy is for malformed requests.
	nginxProxy = nginxHead + `
http {
  access_log off; keepalive_requests 1073741824; ` + nginxTemps + `
  upstream app { server ENDPOINT; keepalive 1024; keepalive_requests 1073741824; }
  server { listen 127.0.0.1:PORT backlog=4096; location / { proxy_pass http://app; ` + nginxPass + ` } }
}
`
	nginxEndpoint = nginxHead + `
http {
  access_log off; keepalive_requests 1073741824; keepalive_timeout 600s; tcp_nodelay on; sendfile on;
  open_file_cache max=10; open_file_cache_valid 600s; ` + nginxTemps + `
  server { listen 0.0.0.0:PORT backlog=4096; root DIR; }
  server { listen 0.0.0.0:OTHER backlog=4096; root DIR/other; location = /count { stub_status; } }
}
`
)

// startOther starts another program; false if it is not installed.
func (k *kit) startOther(c *contestant, r routes) bool {
	k.t.Helper()
	program := strings.ToLower(c.name)
	if _, err := exec.LookPath(program); err != nil {
		k.t.Logf("without %s: it is not installed (Debian: apt-get install nginx-light haproxy caddy)", c.name)
		return false
	}
	dir := k.t.TempDir()
	write := func(r routes) error { return k.configure(c, dir, r) }
	if err := write(r); err != nil {
		k.t.Fatal(err)
	}
	file := filepath.Join(dir, "conf")
	signal := func(s syscall.Signal) func(routes) error {
		return func(r routes) error {
			if err := write(r); err != nil {
				return err
			}
			return syscall.Kill(c.process.Pid(), s)
		}
	}
	switch c.name {
	case "nginx":
		c.version = version("nginx -v")
		c.process = run(k.t, k.ns, c.plain, first, "nginx -c "+file)
		c.apply = signal(syscall.SIGHUP)
	case "HAProxy":
		c.version = version("haproxy -v")
		mode := "-db"
		if len(r) > 0 {
			mode = "-W"
		}
		c.process = run(k.t, k.ns, c.plain, first, "haproxy "+mode+" -f "+file)
		c.apply = signal(syscall.SIGUSR2)
	case "Caddy":
		c.version = version("caddy version")
		c.process = run(k.t, k.ns, c.plain, first, "caddy run --config "+file)
		admin := filepath.Join(dir, "admin.sock")
		client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _,
			_ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", admin)
		}}}
		c.apply = func(r routes) error {
			if err := write(r); err != nil {
				return err
			}
			raw, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			resp, err := client.Post("http://caddy/load", "application/json", bytes.NewReader(raw))
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("caddy: %s: %s", resp.Status, text)
			}
			return nil
		}
	}
	return true
}

// configure writes the configuration atomically.
func (k *kit) configure(c *contestant, dir string, r routes) error {
	var text string
	switch c.name {
	case "nginx":
		text = k.nginx(c, r)
	case "HAProxy":
		text = k.haproxy(c, r)
		var table strings.Builder
		for _, n := range r.names() {
			fmt.Fprintf(&table, "%s %s\n", n, serviceOf(n, r[n]))
		}
		if err := replace(filepath.Join(dir, "map"), table.String()); err != nil {
			return err
		}
	case "Caddy":
		text = k.caddy(c, filepath.Join(dir, "admin.sock"), r)
	}
	return replace(filepath.Join(dir, "conf"), strings.ReplaceAll(text, "DIR", dir))
}

func replace(file, text string) error {
	if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// serviceOf returns the Service of a route: one of many at the first endpoint, or the one at the other.
func serviceOf(name string, port int) string {
	if port == otherPort {
		return "other"
	}
	n := 0
	for _, c := range name {
		if c >= '0' && c <= '9' {
			n = n*10 + int(c-'0')
		}
	}
	return fmt.Sprintf("s%d", n%services)
}

// serviceList returns the Services with their endpoints' ports.
func serviceList(r routes) map[string]int {
	list := map[string]int{"app": endpointPort}
	if len(r) > 0 {
		list["other"] = otherPort
	}
	for n := range r {
		list[serviceOf(n, endpointPort)] = endpointPort
	}
	return list
}

func (k *kit) nginx(c *contestant, r routes) string {
	var b strings.Builder
	master := "master_process off;"
	if len(r) > 0 {
		master = "master_process on;" // which reloads
	}
	fmt.Fprintf(&b, "daemon off; %s worker_processes 1; pid DIR/pid; error_log DIR/error.log;\nevents { "+
		"worker_connections 8192; }\nhttp {\n  access_log off; keepalive_requests 1073741824; "+
		"server_names_hash_max_size 65536; server_names_hash_bucket_size 128; ssl_protocols TLSv1.2 TLSv1.3; %s\n",
		master, nginxTemps)
	list := serviceList(r)
	for _, s := range slices.Sorted(maps.Keys(list)) {
		kept := 1024
		if s != "app" {
			kept = 16 // nginx has memory for as many at once
		}
		fmt.Fprintf(&b, "  upstream %s { server %s:%d; keepalive %d; keepalive_requests 1073741824; }\n", s,
			endpointAddr, list[s], kept)
	}
	fmt.Fprintf(&b,
		"  server { listen 127.0.0.1:%d backlog=4096 default_server; location / { proxy_pass http://app; %s } }\n",
		c.plain, nginxPass)
	for port, name := range map[int]string{c.p256: p256Host, c.rsa: rsaHost} {
		fmt.Fprintf(&b, "  server { listen 127.0.0.1:%d ssl http2 backlog=4096; ssl_certificate %s; "+
			"ssl_certificate_key %s; location / { proxy_pass http://app; %s } }\n", port, k.pairs[name],
			k.pairs[name], nginxPass)
	}
	for _, n := range r.names() {
		fmt.Fprintf(&b, "  server { listen 127.0.0.1:%d; server_name %s; location / { proxy_pass http://%s; %s } }\n",
			c.plain, n, serviceOf(n, r[n]), nginxPass)
	}
	return b.String() + "}\n"
}

func (k *kit) haproxy(c *contestant, r routes) string {
	var b strings.Builder
	fmt.Fprintf(&b, `
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 75s
  timeout server 60s
  http-reuse always
frontend in
  bind 127.0.0.1:%d backlog 4096
  bind 127.0.0.1:%d ssl crt %s alpn h2,http/1.1 backlog 4096
  bind 127.0.0.1:%d ssl crt %s alpn h2,http/1.1 backlog 4096
  option forwardfor
  http-request set-header X-Real-IP %%[src]
  http-request set-header X-Forwarded-Host %%[req.hdr(Host)]
  http-request set-header X-Forwarded-Port %%[dst_port]
  http-request set-header X-Forwarded-Proto http if !{ ssl_fc }
  http-request set-header X-Forwarded-Proto https if { ssl_fc }
`, c.plain, c.p256, k.pairs[p256Host], c.rsa, k.pairs[rsaHost])
	if len(r) > 0 {
		b.WriteString("  use_backend %[req.hdr(Host),field(1,:),lower,map(DIR/map,app)]\n")
	}
	b.WriteString("  default_backend app\n")
	list := serviceList(r)
	for _, s := range slices.Sorted(maps.Keys(list)) {
		fmt.Fprintf(&b, "backend %s\n  server one %s:%d\n", s, endpointAddr, list[s])
	}
	return b.String()
}

// object is one of JSON.
type object = map[string]any

func (k *kit) caddy(c *contestant, admin string, r routes) string {
	pass := func(port int) []object {
		return []object{{"handler": "reverse_proxy",
			"upstreams": []object{{"dial": fmt.Sprintf("%s:%d", endpointAddr, port)}},
			"transport": object{"protocol": "http", "compression": false,
				"keep_alive": object{"max_idle_conns_per_host": 1024}}}}
	}
	var list []object
	for _, n := range r.names() {
		list = append(list, object{"match": []object{{"host": []string{n}}}, "handle": pass(r[n])})
	}
	list = append(list, object{"handle": pass(endpointPort)})
	server := func(port int, name string) object {
		s := object{"listen": []string{fmt.Sprintf("127.0.0.1:%d", port)}, "protocols": []string{"h1", "h2"},
			"routes": list, "automatic_https": object{"disable": true}}
		if name != "" {
			s["routes"] = []object{{"handle": pass(endpointPort)}}
			s["tls_connection_policies"] = []object{{"certificate_selection": object{"any_tag": []string{name}}}}
		}
		return s
	}
	var pairs []object
	for name, file := range k.pairs {
		pairs = append(pairs, object{"certificate": file, "key": file, "tags": []string{name}})
	}
	raw, err := json.Marshal(object{
		"admin":   object{"listen": "unix/" + admin, "config": object{"persist": false}, "origins": []string{"caddy"}},
		"logging": object{"logs": object{"default": object{"level": "ERROR"}}},
		"apps": object{
			"http": object{"servers": object{"plain": server(c.plain, ""), "p256": server(c.p256, p256Host),
				"rsa": server(c.rsa, rsaHost)}},
			"tls": object{"certificates": object{"load_files": pairs}},
		}})
	if err != nil {
		k.t.Fatal(err)
	}
	return string(raw)
}

// pair creates a certificate for a name, and returns a file with it and its key.
func pair(t *testing.T, name string) string {
	t.Helper()
	var key crypto.Signer
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if name == rsaHost {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	priv, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), name+".pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: priv})...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
