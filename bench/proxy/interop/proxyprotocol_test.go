package interop

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
)

const nginxProxied = `
daemon off; master_process off; pid DIR/pid; error_log DIR/error.log;
events { worker_connections 64; }
http {
  access_log off; client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/f;
  scgi_temp_path DIR/s; uwsgi_temp_path DIR/u;
  server { listen 127.0.0.1:PORT proxy_protocol; listen 127.0.0.1:SSL ssl proxy_protocol;
    ssl_certificate DIR/crt; ssl_certificate_key DIR/key;
    return 200 "$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_addr:$proxy_protocol_server_port"; }
}
`

const haproxyProxied = `
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend in
  bind 127.0.0.1:PORT accept-proxy
  bind 127.0.0.1:SSL accept-proxy ssl crt DIR/pem
  http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port] %[dst]:%[dst_port]"
`

// nginx and HAProxy as endpoints parse the proxy's PROXY headers, with TLS and without, and see the client.
func TestPROXYProtocolByOthers(t *testing.T) {
	cert, _ := pair(t, "a.example.com")
	for _, c := range []struct{ program, conf, line string }{{"nginx", nginxProxied, "-c"},
		{"haproxy", haproxyProxied, "-db -f"}} {
		t.Run(c.program, func(t *testing.T) {
			path, err := exec.LookPath(c.program)
			if err != nil {
				t.Skipf("%s is not installed", c.program)
			}
			dir := t.TempDir()
			port := func() string {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				_, p, _ := net.SplitHostPort(l.Addr().String())
				return p
			}
			plain, encrypted := port(), port()
			for name, text := range map[string]string{"crt": string(cert.Chain), "key": string(cert.Priv),
				"pem":  string(cert.Chain) + string(cert.Priv),
				"conf": strings.NewReplacer("DIR", dir, "PORT", plain, "SSL", encrypted).Replace(c.conf)} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command(path, append(strings.Fields(c.line), filepath.Join(dir, "conf"))...)
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				if t.Failed() {
					t.Log(out.String())
				}
			})
			for _, way := range []struct {
				port     string
				protocol schema.Protocol
				version  uint8
			}{{plain, schema.HTTP, 1}, {plain, schema.HTTP, 2}, {encrypted, schema.HTTPS, 1},
				{encrypted, schema.HTTPS, 2}} {
				end := netip.MustParseAddrPort("127.0.0.1:" + way.port)
				waitFor(t, end)
				front, _ := serve(t, schema.Host{Name: "a.example.com",
					Paths: []schema.Path{{Kind: schema.Prefix, Path: "/", Backend: "b",
						Options: &schema.Options{Protocol: way.protocol, SendProxy: way.version}}}},
					schema.Backend{Key: "b", Endpoints: []schema.Endpoint{{Addr: end}}}, cert)
				for range 3 {
					var local string
					tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
						var d net.Dialer
						c, err := d.DialContext(ctx, "tcp", front.String())
						if err == nil {
							local = c.LocalAddr().String()
						}
						return c, err
					}}
					client := &http.Client{Transport: tr, Timeout: 10 * time.Second}
					for range 3 { // over one connection
						resp, err := client.Get("http://a.example.com/")
						if err != nil {
							t.Fatal(err)
						}
						body, err := io.ReadAll(resp.Body)
						resp.Body.Close()
						if want := fmt.Sprintf("%s %s", local, front); err != nil ||
							strings.TrimSpace(string(body)) != want {
							t.Errorf("%+v: %s %q, want %q: %v", way, resp.Status, body, want, err)
						}
					}
					tr.CloseIdleConnections()
				}
			}
		})
	}
}

// waitFor waits until a server listens.
func waitFor(t *testing.T, addr netip.AddrPort) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", addr.String())
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
