package process

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
)

// cutBodies are responses that break off, by the framing of their body. The connection ends with a
// reset where end says so, by TLS without close_notify where tls is set.
var cutBodies = []struct {
	name, answer string
	reset, tls   bool
}{
	{"length", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart", false, false},
	{"length, reset", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart", true, false},
	{"length, nothing of it", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", false, false},
	{"in a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\npart", false, false},
	{"between chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n", false, false},
	{"in the last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n0\r\n", false, false},
	{"in trailers", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n0\r\nX: y\r\n", false, false},
	{"a chunk that is none", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\nzz\r\n", false, false},
	{"to the end, reset", "HTTP/1.1 200 OK\r\n\r\npart", true, false},
	{"HTTP/1.0 to the end, reset", "HTTP/1.0 200 OK\r\n\r\npart", true, false},
	{"to the end, TLS without its end", "HTTP/1.1 200 OK\r\n\r\npart", false, true},
	{"length, TLS", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart", false, true},
	{"between chunks, TLS", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n", false, true},
}

// cutEndpoint answers by one of them.
func (r *rig) cutEndpoint(answer string, reset, encrypted bool) netip.AddrPort {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	pair := r.ca.issue("x", "x")
	cert, err := tls.X509KeyPair(pair.Chain, pair.Priv)
	if err != nil {
		r.t.Fatal(err)
	}
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer raw.Close() // below TLS: it is not told
				c := raw
				if encrypted {
					c = tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{cert}})
				}
				if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
					return
				}
				_, _ = io.WriteString(c, answer)
				time.Sleep(20 * time.Millisecond) // the part passes by itself
				if reset {
					_ = raw.(*net.TCPConn).SetLinger(0)
				}
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// fronts are the forms in which a client comes.
var fronts = []struct {
	name               string
	encrypted, proxied bool
	version            string // of curl
}{
	{"HTTP/1.1", false, false, "--http1.1"},
	{"HTTP/1.0", false, false, "--http1.0"},
	{"HTTP/1.1, PROXY", false, true, "--http1.1"},
	{"HTTP/1.0, PROXY", false, true, "--http1.0"},
	{"HTTP/1.1, TLS", true, false, "--http1.1"},
	{"HTTP/1.0, TLS", true, false, "--http1.0"},
	{"HTTP/1.1, TLS, PROXY", true, true, "--http1.1"},
	{"HTTP/1.0, TLS, PROXY", true, true, "--http1.0"},
	{"HTTP/2", false, false, "--http2-prior-knowledge"},
	{"HTTP/2, PROXY", false, true, "--http2-prior-knowledge"},
	{"HTTP/2, TLS", true, false, "--http2"},
	{"HTTP/2, TLS, PROXY", true, true, "--http2"},
}

// balancer is the address that speaks the PROXY protocol.
const balancer = "127.0.0.9"

// TestAnswersThatBreakOff: whatever frames a response that breaks off, and however the client came, Go's
// client, curl and a plain reader see an error, and none takes a part for the whole. A whole response
// is taken for whole by each.
func TestAnswersThatBreakOff(t *testing.T) {
	r := newRig(t)
	r.settings = schema.Settings{ProxyProtocol: []netip.Prefix{netip.MustParsePrefix(balancer + "/32")}}
	r.feed.Configure(r.settings)
	hosts, backends := map[string]schema.Host{}, map[string]schema.Backend{}
	add := func(host string, o *schema.Options, addr netip.AddrPort) {
		hosts[host] = schema.Host{Name: host, Certificate: "c",
			Paths: []schema.Path{{Kind: schema.Prefix, Path: "/", Backend: host, Options: o}}}
		backends[host] = schema.Backend{Key: host, Endpoints: []schema.Endpoint{{Addr: addr}}}
	}
	names := []string{"whole.a"}
	add("whole.a", nil, r.backend("whole.a", says("part")).Endpoints[0].Addr)
	for i, x := range cutBodies {
		o := &schema.Options{}
		if x.tls {
			o.Protocol = schema.HTTPS
		}
		names = append(names, fmt.Sprintf("cut%d.a", i))
		add(names[i+1], o, r.cutEndpoint(x.answer, x.reset, x.tls))
	}
	r.up(hosts, backends, map[string]schema.Certificate{"c": r.ca.issue("c", names...)})
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Fatal(err)
	}
	for fi, f := range fronts {
		t.Run(f.name, func(t *testing.T) {
			var wg sync.WaitGroup
			limit := make(chan struct{}, 8)
			for i, host := range names {
				wg.Go(func() {
					limit <- struct{}{}
					defer func() { <-limit }()
					for who, ask := range map[string]func() error{
						"Go":   func() error { return r.goClient(host, fi) },
						"curl": func() error { return r.curlClient(curl, host, fi) },
						"raw":  func() error { return r.rawClient(host, fi) },
					} {
						err := ask()
						switch {
						case i == 0 && err != nil:
							t.Errorf("%s: a whole response: %v", who, err)
						case i > 0 && err == nil:
							t.Errorf("%s takes %q for whole", who, cutBodies[i-1].name)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// open is a client's connection in a form.
func (r *rig) open(ctx context.Context, host string, front int, protocols ...string) (net.Conn, error) {
	f, to := fronts[front], r.plain
	d := net.Dialer{Timeout: 10 * time.Second}
	if f.encrypted {
		to = r.https
	}
	if f.proxied {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(balancer)}
	}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if f.proxied {
		if _, err := io.WriteString(c, "PROXY TCP4 192.0.2.1 192.0.2.2 12345 80\r\n"); err != nil {
			return nil, err
		}
	}
	if f.encrypted {
		return tls.Client(c, &tls.Config{ServerName: host, RootCAs: r.ca.pool, NextProtos: protocols}), nil
	}
	return c, nil
}

// read is the error of reading a response, or nil of one that looks whole.
func read(resp *http.Response, err error) error {
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != 200 || string(body) != "part") {
		err = fmt.Errorf("%s %q", resp.Status, body)
	}
	return err
}

func (r *rig) goClient(host string, front int) error {
	f := fronts[front]
	if strings.HasPrefix(f.name, "HTTP/1.0") {
		c, err := r.open(r.t.Context(), host, front)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := fmt.Fprintf(c, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", host); err != nil {
			return err
		}
		return read(http.ReadResponse(bufio.NewReader(c), nil))
	}
	two := strings.HasPrefix(f.name, "HTTP/2")
	var p http.Protocols
	p.SetHTTP1(!two)
	p.SetHTTP2(two && f.encrypted)
	p.SetUnencryptedHTTP2(two && !f.encrypted)
	tr := &http.Transport{Protocols: &p, TLSClientConfig: &tls.Config{ServerName: host, RootCAs: r.ca.pool},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := r.open(ctx, host, front)
			if t, ok := c.(*tls.Conn); ok { // the transport does it itself
				c = t.NetConn()
			}
			return c, err
		}}
	defer tr.CloseIdleConnections()
	scheme := map[bool]string{true: "https", false: "http"}[f.encrypted]
	return read((&http.Client{Transport: tr, Timeout: 20 * time.Second}).Get(scheme + "://" + host + "/"))
}

func (r *rig) curlClient(curl, host string, front int) error {
	f, to := fronts[front], r.plain
	scheme := "http"
	if f.encrypted {
		to, scheme = r.https, "https"
	}
	args := []string{"-sS", "-k", f.version, "--max-time", "20", "--resolve", fmt.Sprintf("%s:%d:127.0.0.1",
		host, to.Port())}
	if f.version == "--http1.0" {
		args = append(args, "--no-alpn") // "http/1.0" is no protocol of TLS that we offer
	}
	if f.proxied {
		args = append(args, "--haproxy-protocol", "--interface", balancer)
	}
	out, err := exec.CommandContext(r.t.Context(), curl,
		append(args, fmt.Sprintf("%s://%s:%d/", scheme, host, to.Port()))...).CombinedOutput()
	if err == nil && string(out) != "part" {
		err = fmt.Errorf("%q", out)
	}
	if err != nil {
		err = fmt.Errorf("%w: %q", err, out)
	}
	return err
}

// rawClient reads to the end of the connection, which alone says that a response is complete.
// By HTTP/1.1 and HTTP/2 Go's client is all that a reader of the frames could be.
func (r *rig) rawClient(host string, front int) error {
	if !strings.HasPrefix(fronts[front].name, "HTTP/1.") {
		return r.goClient(host, front)
	}
	c, err := r.open(r.t.Context(), host, front)
	if err != nil {
		return err
	}
	defer c.Close()
	version := strings.TrimPrefix(fronts[front].name[:len("HTTP/1.x")], "HTTP/")
	if _, err := fmt.Fprintf(c, "GET / HTTP/%s\r\nHost: %s\r\nConnection: close\r\n\r\n", version, host); err != nil {
		return err
	}
	_, err = io.ReadAll(c)
	return err
}
