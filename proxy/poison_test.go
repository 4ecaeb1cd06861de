package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
)

// The forms in which an endpoint takes connections.
var endpointForms = []string{"plain", "TLS", "PROXY", "TLS and PROXY"}

// endpointOf is raw in one of the forms, with the options that lead to it.
func endpointOf(t testing.TB, form string, f func(net.Conn, *bufio.Reader)) (netip.AddrPort, *schema.Options) {
	t.Helper()
	o := &schema.Options{}
	if strings.HasPrefix(form, "TLS") {
		o.Protocol = schema.HTTPS
	}
	if strings.HasSuffix(form, "PROXY") {
		o.SendProxy = 1
	}
	cert := selfSigned(t)
	return raw(t, func(c net.Conn, br *bufio.Reader) {
		if o.SendProxy != 0 {
			if _, err := br.ReadString('\n'); err != nil {
				return
			}
		}
		if o.Protocol != schema.HTTPS {
			f(c, br)
			return
		}
		s := tls.Server(&proxiedConn{Conn: c, br: br}, &tls.Config{Certificates: []tls.Certificate{cert}})
		if s.Handshake() == nil {
			f(s, bufio.NewReader(s))
			s.Close()
		}
	}), o
}

// What an endpoint sends behind the end of a message is no other client's response: its connection is
// not used again, whenever the bytes come, plain and by TLS, and with PROXY headers.
func TestBytesBehindAResponseReachNobody(t *testing.T) {
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Evil: yes\r\n\r\nevil"
	cases := []struct{ name, method, answer string }{
		{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 86\r\n\r\n"},
		{"HEAD in chunks", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n"},
		{"204 with a length", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 86\r\n\r\n"},
		{"304", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 86\r\n\r\n"},
		{"longer than its length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"},
		{"longer than a large length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" +
			strings.Repeat("x", 70000)},
		{"length 0", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"behind the last chunk", "GET",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"},
		{"behind trailers", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n"},
		{"behind 103", "GET", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"},
	}
	sends := map[string]func(c net.Conn, answer string){
		"at once": func(c net.Conn, answer string) { _, _ = io.WriteString(c, answer+evil) },
		"in two writes": func(c net.Conn, answer string) {
			_, _ = io.WriteString(c, answer)
			_, _ = io.WriteString(c, evil)
		},
		"in many writes": func(c net.Conn, answer string) {
			_, _ = io.WriteString(c, answer)
			for i := range evil {
				_, _ = io.WriteString(c, evil[i:i+1])
			}
		},
		"while it is idle": func(c net.Conn, answer string) {
			_, _ = io.WriteString(c, answer)
			time.Sleep(20 * time.Millisecond)
			_, _ = io.WriteString(c, evil)
		},
		"one byte": func(c net.Conn, answer string) {
			_, _ = io.WriteString(c, answer)
			_, _ = io.WriteString(c, "\n")
		},
	}
	for _, form := range endpointForms {
		t.Run(form, func(t *testing.T) {
			for _, x := range cases {
				for how, send := range sends {
					t.Run(x.name+" "+how, func(t *testing.T) {
						poison(t, form, x.method, x.answer,
							func(c net.Conn) { send(c, x.answer) })
					})
				}
			}
		})
	}
}

// poison asks an endpoint twice, by two clients: the first time it answers by send.
func poison(t *testing.T, form, method, answer string, send func(net.Conn)) {
	t.Parallel()
	sent := make(chan struct{}, 1)
	addr, o := endpointOf(t, form, func(c net.Conn, br *bufio.Reader) {
		for {
			head, err := readHead(br)
			if err != nil {
				return
			}
			if strings.Contains(head, " /first ") {
				send(c)
				sent <- struct{}{}
				continue
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
		}
	})
	r := newRig(t, nil, addr)
	r.route(schema.Path{Kind: schema.Prefix, Path: "/", Backend: "b", Options: o})
	c := r.dial()
	c.send("%s /first HTTP/1.1\r\nHost: a\r\n\r\n", method)
	for resp, _ := c.response(method); resp.StatusCode < 200; {
		resp, _ = c.response(method)
	}
	<-sent
	r.record(0)
	d := c // PROXY: connections are a client's own
	if o.SendProxy == 0 {
		d = r.dial()
	}
	d.send("GET /second HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(d.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	if string(body) != "good" || resp.Header.Get("X-Evil") != "" {
		t.Errorf("%s %q, the next client got %s %q; %s", method, answer, resp.Status, body, r.told())
	}
}

// A response whose chunk or trailers make a pause is passed on whole.
func TestPausesOfEndpoints(t *testing.T) {
	for _, at := range []string{"5\r\nhello\r\n5\r\n", "5\r\nhello\r\n0\r\n", "5\r\nhello\r\n0\r\nX: y\r\n", "5\r\nhel",
		"5\r\nhello\r"} {
		t.Run(fmt.Sprintf("%q", at), func(t *testing.T) {
			t.Parallel()
			rest := map[bool]string{true: "world\r\n0\r\n\r\n", false: ""}[strings.HasSuffix(at, "\n5\r\n")]
			if rest == "" {
				rest = strings.TrimPrefix("5\r\nhello\r\n0\r\nX: y\r\n\r\n", at)
			}
			r := newRig(t, nil, raw(t, func(c net.Conn, br *bufio.Reader) {
				_, _ = readHead(br)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+at)
				time.Sleep(1600 * time.Millisecond)
				_, _ = io.WriteString(c, rest)
			}))
			c := r.dial()
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp, body := c.response("GET"); !strings.HasPrefix(body, "hello") || resp.StatusCode != 200 {
				t.Errorf("%s %q", resp.Status, body)
			}
		})
	}
}
