package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/reach"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

// rig is a proxy at a real socket, with endpoints of the test.
type rig struct {
	t        testing.TB
	p        *Proxy
	s        *h1.Server
	addr     string
	settings upstream.Settings
	limits   h1.Limits
	// http2 has ask speak HTTP/2, plain or at the address tls by TLS.
	http2 bool
	tls   string
	// sni is the name that a handshake of HTTP/2 requests.
	sni string

	mu      sync.Mutex
	records []Record
	refused []h1.Error
}

// told is what the proxy said of its last exchange, for failures.
func (r *rig) told() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.records); n > 0 {
		return fmt.Sprintf("%d records, the last %+v; refused %v", n, r.records[n-1], r.refused)
	}
	return fmt.Sprintf("no record; refused %v", r.refused)
}

// newRig starts a proxy whose host "" leads to backend "b" with the endpoints.
func newRig(t testing.TB, change func(*rig), endpoints ...netip.AddrPort) *rig {
	t.Helper()
	r := &rig{t: t, settings: upstream.Defaults(), limits: h1.DefaultLimits()}
	r.p = &Proxy{Timeouts: Timeouts{Connect: 2 * time.Second, Send: 5 * time.Second, Read: 5 * time.Second}, Tries: 3,
		Log: slog.New(slog.DiscardHandler)}
	r.p.Observe = func(rec *Record) {
		r.mu.Lock()
		defer r.mu.Unlock()
		keep := *rec
		keep.Request = nil
		r.records = append(r.records, keep)
	}
	if change != nil {
		change(r)
	}
	if r.p.reach.at.Load() == nil {
		r.p.SetReach(&reach.Policy{Allowed: prefixes("127.0.0.0/8")})
	}
	r.p.Upstreams = upstream.NewSet(r.settings)
	r.endpoints(endpoints...)
	r.route(schema.Path{Kind: schema.Prefix, Path: "/", Backend: "b"})
	r.s = &h1.Server{Limits: r.limits, Handle: r.p.Handle, Refused: func(_ netip.AddrPort, e *h1.Error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.refused = append(r.refused, *e)
	}}
	l := listen(t)
	r.addr = l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.s.Serve(context.Background(), c, nil, false)
		}
	}()
	r.serve2()
	return r
}

// endpoints are those of backend "b" from now on.
func (r *rig) endpoints(list ...netip.AddrPort) {
	b := &schema.Backend{Key: "b"}
	for _, a := range list {
		b.Endpoints = append(b.Endpoints, schema.Endpoint{Addr: a})
	}
	r.p.Upstreams.Replace(map[string]*schema.Backend{"b": b})
}

// route makes these the paths of every host.
func (r *rig) route(paths ...schema.Path) {
	r.p.SetTable(table.Make(r.p.Table(), map[string]*schema.Host{"": {Paths: paths}}))
}

// last waits for the nth record and returns it; -1 is any.
func (r *rig) record(n int) Record {
	r.t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		r.mu.Lock()
		if len(r.records) > n {
			rec := r.records[n]
			r.mu.Unlock()
			return rec
		}
		r.mu.Unlock()
	}
	r.t.Fatalf("no record %d", n)
	return Record{}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func addrOf(l net.Listener) netip.AddrPort { return netip.MustParseAddrPort(l.Addr().String()) }

// raw is an endpoint that does with a connection what f does.
func raw(t testing.TB, f func(net.Conn, *bufio.Reader)) netip.AddrPort {
	t.Helper()
	return serves(t, func(c net.Conn) { f(c, bufio.NewReader(c)) })
}

// serves is an endpoint that does with each connection what f does, and closes it.
func serves(t testing.TB, f func(net.Conn)) netip.AddrPort {
	t.Helper()
	l := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return addrOf(l)
}

// handler is an endpoint that Go's server answers for: a reader of HTTP that others wrote.
func handler(t testing.TB, h http.HandlerFunc) netip.AddrPort {
	t.Helper()
	l := listen(t)
	s := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return addrOf(l)
}

// readHead reads a request's head as text.
func readHead(br *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := br.ReadString('\n')
		if b.WriteString(line); err != nil {
			return b.String(), err
		}
		if line == "\r\n" {
			return b.String(), nil
		}
	}
}

// undated reads a head and takes its date out, which final ones must have.
func undated(t testing.TB, br *bufio.Reader) string {
	t.Helper()
	head, err := readHead(br)
	if err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	before, rest, ok := strings.Cut(head, "Date: ")
	if !ok && !strings.HasPrefix(head, "HTTP/1.1 1") {
		t.Fatalf("no date: %q", head)
	}
	if !ok {
		return head
	}
	when, rest, _ := strings.Cut(rest, "\r\n")
	if d, err := http.ParseTime(when); err != nil || time.Since(d).Abs() > time.Minute {
		t.Fatalf("date %q: %v", when, err)
	}
	return before + rest
}

// conn is a client's connection.
type conn struct {
	t testing.TB
	net.Conn
	br *bufio.Reader
	r  *rig
}

func (r *rig) dial() *conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if r.http2 && r.addr == r.tls {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	}
	return &conn{r.t, c, bufio.NewReader(c), r}
}

func (c *conn) send(format string, args ...any) {
	c.t.Helper()
	if _, err := io.WriteString(c, fmt.Sprintf(format, args...)); err != nil {
		c.t.Fatal(err)
	}
}

// response reads a response, as Go's client reads it.
func (c *conn) response(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("no response: %v; %s", err, c.r.told())
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("body of %s: %v", resp.Status, err)
	}
	return resp, string(body)
}

// ended says that the server closed the connection.
func (c *conn) ended() {
	c.t.Helper()
	if b, err := c.br.ReadByte(); err == nil {
		c.t.Fatalf("the connection goes on, with %q", b)
	} else if t, ok := err.(net.Error); ok && t.Timeout() {
		c.t.Fatal("the connection stays open")
	}
}
