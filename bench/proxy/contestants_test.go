// Package proxy puts other HTTP proxies beside Wayleave's: what a request costs, and what
// they answer to requests that are none.
package proxy

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave.dev/bench/internal/kubeproxy"
	"wayleave.dev/internal/testnet"
)

// contestant is one proxy, on a port of its own in the namespace of all.
type contestant struct {
	name, version string
	port          int
	process       *kubeproxy.Process
}

const (
	// first are the words before a proxy's command line, one core for each; asker those of the
	// load's and the endpoint's, which have the other core.
	first = "nice -n -10 taskset -c 0"
	asker = "nice -n -10 taskset -c 1"

	endpointPort = 9000
)

// Every contestant keeps its connections, and tells the endpoint of the client what ingress-nginx tells.
const nginxHead = `
daemon off; master_process off; worker_processes 1; pid DIR/pid; error_log DIR/error.log;
events { worker_connections 8192; }
`

const nginxProxy = nginxHead + `
http {
  access_log off; keepalive_requests 1073741824; client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/f; scgi_temp_path DIR/s; uwsgi_temp_path DIR/u;
  upstream app { server ENDPOINT; keepalive 1024; keepalive_requests 1073741824; }
  server {
    listen 127.0.0.1:PORT backlog=4096;
    location / {
      proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
      proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Forwarded-Port $server_port; proxy_set_header X-Forwarded-Proto $scheme;
    }
  }
}
`

const nginxEndpoint = nginxHead + `
http {
  access_log off; keepalive_requests 1073741824; keepalive_timeout 600s; tcp_nodelay on; sendfile on; open_file_cache max=10; open_file_cache_valid 600s; client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/f; scgi_temp_path DIR/s; uwsgi_temp_path DIR/u;
  server { listen 127.0.0.1:PORT backlog=4096; root DIR; }
}
`

const haproxyConf = `
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
  bind 127.0.0.1:PORT backlog 4096
  option forwardfor
  http-request set-header X-Real-IP %[src]
  http-request set-header X-Forwarded-Host %[req.hdr(Host)]
  http-request set-header X-Forwarded-Port %[dst_port]
  http-request set-header X-Forwarded-Proto http
  default_backend app
backend app
  server one ENDPOINT
`

const caddyConf = `
{
  admin off
  auto_https off
}
http://:PORT {
  reverse_proxy ENDPOINT {
    transport http {
      keepalive_idle_conns_per_host 1024
      compression off
    }
  }
}
`

// run starts a program in the namespace, pinned, and waits until its port is open.
func run(t *testing.T, ns *testnet.NS, port int, words, line string) *kubeproxy.Process {
	t.Helper()
	args := strings.Fields(words + " " + line)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "XDG_DATA_HOME="+t.TempDir(), "XDG_CONFIG_HOME="+t.TempDir())
	p := kubeproxy.Run(t, ns, cmd)
	testnet.Eventually(t, 30*time.Second, func() error {
		c, err := ns.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
	return p
}

// configured writes a program's configuration and returns its path.
func configured(t *testing.T, text string, port, endpoint int) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "conf")
	text = strings.NewReplacer("DIR", dir, "PORT", fmt.Sprint(port), "ENDPOINT", fmt.Sprintf("127.0.0.1:%d", endpoint)).Replace(text)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// ours builds the proxy of server/.
func ours(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "server")
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin, "./server")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

// start starts all proxies that are installed, before one endpoint.
func start(t *testing.T, ns *testnet.NS, bin string) (list []*contestant) {
	t.Helper()
	for i, c := range []struct{ name, program, conf, line, version string }{
		{"Wayleave", "", "", bin + " -listen 127.0.0.1:PORT -endpoints ENDPOINT", ""},
		{"nginx", "nginx", nginxProxy, "nginx -c CONF", "nginx -v"},
		{"HAProxy", "haproxy", haproxyConf, "haproxy -db -f CONF", "haproxy -v"},
		{"ReverseProxy", "", "", bin + " -reverseproxy -listen 127.0.0.1:PORT -endpoints ENDPOINT", ""},
		{"Caddy", "caddy", caddyConf, "caddy run --adapter caddyfile --config CONF", "caddy version"},
	} {
		port := 9001 + i
		x := &contestant{name: c.name, port: port}
		file := ""
		if c.program != "" {
			if _, err := exec.LookPath(c.program); err != nil {
				t.Logf("without %s: it is not installed (Debian: apt-get install nginx-light haproxy caddy)", c.name)
				continue
			}
			file = configured(t, c.conf, port, endpointPort)
			x.version = version(c.version)
		}
		line := strings.NewReplacer("PORT", fmt.Sprint(port), "ENDPOINT", fmt.Sprintf("127.0.0.1:%d", endpointPort), "CONF", file).Replace(c.line)
		x.process = run(t, ns, port, first, line)
		list = append(list, x)
	}
	return list
}

// version is the number in what a program says of itself.
func version(line string) string {
	args := strings.Fields(line)
	out, _ := exec.Command(args[0], args[1:]...).CombinedOutput()
	for _, w := range strings.FieldsFunc(string(out), func(r rune) bool { return r == ' ' || r == '/' || r == '\n' }) {
		if w[0] >= '0' && w[0] <= '9' {
			return w
		}
	}
	return "of an unknown version"
}
