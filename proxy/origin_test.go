package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/upstream"
)

// The bytes of headers, as haproxy's doc/proxy-protocol.txt has them.
func TestPROXYHeaders(t *testing.T) {
	ap := netip.MustParseAddrPort
	const sign = "0d0a0d0a000d0a515549540a"
	for _, c := range []struct {
		o    upstream.Origin
		want string // of version 2 in hex
	}{
		{upstream.Origin{Version: 1, Client: ap("192.0.2.1:56324"), Local: ap("198.51.100.2:443")},
			"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"},
		{upstream.Origin{Version: 1, Client: ap("[2001:db8::1]:1"), Local: ap("[2001:db8::2]:65535")},
			"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n"},
		{upstream.Origin{Version: 1, Client: ap("192.0.2.1:0"), Local: ap("[2001:db8::2]:80")},
			"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 0 80\r\n"},
		{upstream.Origin{Version: 1, Client: ap("[::ffff:192.0.2.1]:7"), Local: ap("192.0.2.2:80")},
			"PROXY TCP4 192.0.2.1 192.0.2.2 7 80\r\n"},
		{upstream.Origin{Version: 1, Client: ap("192.0.2.1:7")}, "PROXY TCP4 192.0.2.1 0.0.0.0 7 0\r\n"},
		{upstream.Origin{Version: 2, Client: ap("192.0.2.1:56324"), Local: ap("198.51.100.2:443")},
			sign + "2111000cc0000201c6336402dc0401bb"},
		{upstream.Origin{Version: 2, Client: ap("[2001:db8::1]:1"), Local: ap("[2001:db8::2]:65535")},
			sign + "21210024" + "20010db8000000000000000000000001" + "20010db8000000000000000000000002" + "0001ffff"},
		{upstream.Origin{Version: 2, Client: ap("[fe80::1%eth0]:1"), Local: ap("192.0.2.2:80")}, sign + "21210024" +
			"fe800000000000000000000000000001" + "00000000000000000000ffffc0000202" + "00010050"},
	} {
		got := string(c.o.AppendHeader(nil))
		if c.o.Version == 2 {
			got = hex.EncodeToString([]byte(got))
		}
		if got != c.want {
			t.Errorf("%+v: %q, want %q", c.o, got, c.want)
		}
	}
}

// proxiedConn is a connection whose header was read.
type proxiedConn struct {
	net.Conn
	br     *bufio.Reader
	header string
}

func (c *proxiedConn) Read(p []byte) (int, error) { return c.br.Read(p) }

// readHeader reads a header as "1 CLIENT LOCAL" or "2 …"; it shares no code with the writer
// them.
func readHeader(br *bufio.Reader) (string, error) {
	if first, err := br.Peek(1); err != nil {
		return "", err
	} else if first[0] == 'P' {
		line, err := br.ReadString('\n')
		f := strings.Fields(line)
		if err != nil || len(f) != 6 || f[0] != "PROXY" || f[1] != "TCP4" || !strings.HasSuffix(line, "\r\n") {
			return "", fmt.Errorf("header %q: %v", line, err)
		}
		return fmt.Sprintf("1 %s:%s %s:%s", f[2], f[4], f[3], f[5]), nil
	}
	var h [28]byte
	if _, err := io.ReadFull(br, h[:]); err != nil ||
		!bytes.HasPrefix(h[:], []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c")) {
		return "", fmt.Errorf("header %x: %v", h, err)
	}
	port := func(at int) uint16 { return binary.BigEndian.Uint16(h[at:]) }
	return fmt.Sprintf("2 %s:%d %s:%d", net.IP(h[16:20]), port(24), net.IP(h[20:24]), port(26)), nil
}

type proxiedListener struct {
	net.Listener
	t testing.TB
}

// Accept waits for a connection with its header. One without is closed, and an error.
func (l *proxiedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		p := &proxiedConn{Conn: c, br: bufio.NewReader(c)}
		if p.header, err = readHeader(p.br); err == nil {
			return p, nil
		}
		l.t.Error(err)
		_ = c.Close()
	}
}

type headerKey struct{}

// proxiedEndpoint wants a header on each connection, and answers with it and with the
// number of the connection.
func proxiedEndpoint(t testing.TB, encrypted bool) netip.AddrPort {
	t.Helper()
	l := listen(t)
	var n atomic.Int64
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: &p, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if t, ok := c.(*tls.Conn); ok {
				c = t.NetConn()
			}
			return context.WithValue(ctx, headerKey{}, fmt.Sprintf("%s #%d", c.(*proxiedConn).header, n.Add(1)))
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, r.Context().Value(headerKey{}))
		})}
	t.Cleanup(func() { s.Close() })
	if !encrypted {
		go func() { _ = s.Serve(&proxiedListener{l, t}) }()
		return addrOf(l)
	}
	s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}
	go func() { _ = s.ServeTLS(&proxiedListener{l, t}, "", "") }()
	return addrOf(l)
}

// selfSigned makes a certificate that no authority signed.
func selfSigned(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// from is a client's connection from an address of this host.
func (r *rig) from(addr string) *conn {
	r.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	c, err := d.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return &conn{r.t, c, bufio.NewReader(c), r}
}

// Endpoints are told each client by a header of version 1 or 2, over HTTP/1.1 and HTTP/2,
// plain and encrypted; a connection is used again by its client alone.
func TestPROXYProtocolToEndpoints(t *testing.T) {
	for _, c := range []struct {
		name     string
		protocol schema.Protocol
		version  uint8
	}{
		{"HTTP, version 1", schema.HTTP, 1}, {"HTTP, version 2", schema.HTTP, 2}, {"HTTPS", schema.HTTPS, 2},
		{"GRPC", schema.GRPC, 1}, {"GRPCS", schema.GRPCS, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil, proxiedEndpoint(t, c.protocol == schema.HTTPS || c.protocol == schema.GRPCS))
			r.route(path(schema.Options{SendProxy: c.version, Protocol: c.protocol}))
			number := map[string]string{} // of the connection, by client
			clients := []*conn{r.from("127.0.0.1"), r.from("127.0.0.2"), r.from("127.0.0.2")}
			for _, method := range []string{"GET", "POST", "GET", "POST"} {
				for _, k := range clients {
					k.send("%s / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\nContent-Length: 1\r\n\r\nx",
						method)
					resp, body := k.response(method)
					if resp.StatusCode != 200 {
						t.Fatalf("%s: %s; %s", resp.Status, body, r.told())
					}
					header, n, _ := strings.Cut(body, " #")
					if want := fmt.Sprintf("%d %s %s", c.version, k.LocalAddr(), k.RemoteAddr()); header != want {
						t.Errorf("header %q, want %q", header, want)
					}
					if was := number[header]; was != "" && was != n {
						t.Errorf("%s has the connections %s and %s", header, was, n)
					}
					number[header] = n
				}
			}
			if len(number) != 3 {
				t.Errorf("three clients had %v", number)
			}
		})
	}
}

// The client is the one that a trusted proxy names; its port is not known. All connections
// of that proxy share those of the client.
func TestPROXYProtocolBehindATrustedProxy(t *testing.T) {
	r := newRig(t, func(r *rig) { r.p.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")} },
		proxiedEndpoint(t, false))
	r.route(path(schema.Options{SendProxy: 1}))
	for _, c := range []struct{ from, list, want string }{
		{"127.0.0.2", "192.0.2.7, 203.0.113.9", "203.0.113.9:0"}, {"127.0.0.2", "203.0.113.9", "203.0.113.9:0"},
		{"127.0.0.2", "203.0.113.8", "203.0.113.8:0"}, {"127.0.0.1", "203.0.113.9", ""},
	} {
		k := r.from(c.from)
		k.send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: %s\r\n\r\n", c.list)
		want := c.want
		if want == "" {
			want = k.LocalAddr().String()
		}
		if _, body := k.response("GET"); !strings.HasPrefix(body, "1 "+want+" "+r.addr+" #") {
			t.Errorf("%+v: %q", c, body)
		}
	}
}

// Under load from many clients, with connections that endpoints close meanwhile, no request
// goes out under another's name.
func TestPROXYProtocolMixesNobody(t *testing.T) {
	for _, protocol := range []schema.Protocol{schema.HTTP, schema.GRPC} {
		r := newRig(t, func(r *rig) { r.settings.IdlePerEndpoint = 4 }, proxiedEndpoint(t, false),
			proxiedEndpoint(t, false))
		r.route(path(schema.Options{SendProxy: 2, Protocol: protocol}))
		var wg sync.WaitGroup
		for i := range 12 {
			k := r.from(fmt.Sprintf("127.0.0.%d", 2+i%4))
			wg.Go(func() {
				for range 40 {
					if _, err := io.WriteString(k, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
						t.Error(err)
						return
					}
					resp, err := http.ReadResponse(k.br, nil)
					if err != nil {
						t.Error(err)
						return
					}
					body, err := io.ReadAll(resp.Body)
					if want := fmt.Sprintf("2 %s %s #", k.LocalAddr(), k.RemoteAddr()); err != nil ||
						!strings.HasPrefix(string(body), want) {
						t.Errorf("%s %q, want %q: %v", resp.Status, body, want, err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

// An upgraded connection begins with the header, too.
func TestPROXYProtocolAndUpgrades(t *testing.T) {
	end := raw(t, func(c net.Conn, br *bufio.Reader) {
		header, err := readHeader(br)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := readHead(br); err != nil {
			t.Error(err)
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n%s\n",
			header)
		_, _ = io.Copy(c, br)
	})
	r := newRig(t, nil, end)
	r.route(path(schema.Options{SendProxy: 1}))
	k := r.from("127.0.0.3")
	k.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if head, err := readHead(k.br); err != nil || !strings.HasPrefix(head, "HTTP/1.1 101 ") {
		t.Fatalf("%q: %v", head, err)
	}
	k.send("echo\n")
	for _, want := range []string{fmt.Sprintf("1 %s %s\n", k.LocalAddr(), k.RemoteAddr()), "echo\n"} {
		if got, err := k.br.ReadString('\n'); err != nil || got != want {
			t.Errorf("%q, want %q: %v", got, want, err)
		}
	}
}
