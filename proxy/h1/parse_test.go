package h1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"wayleave.dev/proxy/message"
)

// pipe is a connection that reads a text in pieces, and ends.
type pipe struct {
	net.Conn
	text  []byte
	piece int
}

func (p *pipe) Read(b []byte) (int, error) {
	if len(p.text) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), max(p.piece, 1))], p.text)
	p.text = p.text[n:]
	return n, nil
}

func (p *pipe) SetReadDeadline(time.Time) error { return nil }

// readAll reads a request and its body, pieces bytes at a time. rest is what is behind it.
func readAll(text []byte, piece int) (r message.Request, content []byte, trailers message.Fields,
	rest []byte, err error) {
	c := &pipe{text: text, piece: piece}
	rd := reader{c: c, from: newBlocks(), limit: 16 << 10}
	var fr framing
	if err = rd.head(func(b []byte) (int, error) { return parseRequest(b, &r, &fr) }); err != nil {
		return r, nil, nil, nil, err
	}
	var b body
	b.reset(&rd, r.Length, &fr)
	content, err = io.ReadAll(&b)
	return r, content, b.trailers, append(bytes.Clone(rd.buffered()), c.text...), err
}

func TestRequestHeads(t *testing.T) {
	for _, x := range []struct{ text, want string }{
		{"GET /a?b HTTP/1.1\r\nHost: X.y:80\r\nA:  b c \t\r\n\r\n", `GET "/a?b" "X.y:80" HTTP/1.1 0 [A=b c]`},
		{"GET http://u.v:8/p?q HTTP/1.1\r\nHost: w\r\n\r\n", `GET "/p?q" "u.v:8" HTTP/1.1 0 []`},
		{"GET HTTP://u.v?q HTTP/1.1\r\nHost: w\r\n\r\n", `GET "/?q" "u.v" HTTP/1.1 0 []`},
		{"GET http://u.v HTTP/1.1\r\nHost: w\r\n\r\n", `GET "/" "u.v" HTTP/1.1 0 []`},
		{"OPTIONS * HTTP/1.1\r\nHost: w\r\n\r\n", `OPTIONS "*" "w" HTTP/1.1 0 []`},
		{"POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\nabc",
			`POST "/" "w" HTTP/1.1 3 [] continue`},
		{"GET / HTTP/1.1\r\nHost: w\r\nExpect: 100-continue\r\n\r\n", `GET "/" "w" HTTP/1.1 0 []`},
		{"GET / HTTP/1.1\r\nHost: w\r\nConnection: keep-alive, X-Hop ,Upgrade\r\nUpgrade: websocket\r\nX-Hop: " +
			"1\r\nx-hop: 2\r\nX-End: 3\r\nKeep-Alive: 3\r\nProxy-Connection: x\r\nTE: trailers\r\n\r\n",
			`GET "/" "w" HTTP/1.1 0 [X-End=3] upgrade websocket trailers`},
		{"GET / HTTP/1.1\r\nHost: w\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: " +
			"AAMAAABk\r\n\r\n", `GET "/" "w" HTTP/1.1 0 []`},
		{"POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 0\r\nExpect:\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
			`POST "/" "w" HTTP/1.1 0 [] upgrade tcp`},
		{"GET / HTTP/1.1\r\nHost: w\r\nUpgrade: websocket\r\n\r\n", `GET "/" "w" HTTP/1.1 0 []`},
		{"GET / HTTP/1.0\r\n\r\n", `GET "/" "" HTTP/1.0 0 []`},
		{"\r\nGET / HTTP/1.1\r\nHost:\r\n\r\n", `GET "/" "" HTTP/1.1 0 []`},
	} {
		for _, piece := range []int{1, 3, 7, 4096} {
			r, _, _, rest, err := readAll([]byte(x.text), piece)
			if err != nil || len(rest) > 0 {
				t.Errorf("%q by %d: %v, rest %q", x.text, piece, err, rest)
				continue
			}
			if got := show(&r); got != x.want {
				t.Errorf("%q by %d:\n got %s\nwant %s", x.text, piece, got, x.want)
			}
		}
	}
}

func show(r *message.Request) string {
	var fields []string
	for _, f := range r.Fields {
		fields = append(fields, fmt.Sprintf("%s=%s", f.Name, f.Value))
	}
	s := fmt.Sprintf("%s %q %q %s %d %v", r.Method, r.Target, r.Host, r.Version, r.Length, fields)
	if r.Continue {
		s += " continue"
	}
	if r.Upgrade != nil {
		s += " upgrade " + string(r.Upgrade)
	}
	if r.Trailers {
		s += " trailers"
	}
	return s
}

// A host is one name or address: two that an intermediary has joined are refused, in each place of a host.
func TestTwoHostsAreRefused(t *testing.T) {
	for _, text := range []string{"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
		"GET http://a,b/ HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"} {
		_, _, _, _, err := readAll([]byte(text), len(text))
		var e *Error
		if !errors.As(err, &e) || e.Status != 400 {
			t.Errorf("%q: %v, want 400", text, err)
		}
	}
}

func TestHeadsThatAreTooLong(t *testing.T) {
	long := strings.Repeat("x", 17<<10)
	for _, x := range []struct {
		name, text string
		status     int
	}{
		{"request line", "GET /" + long, 414},
		{"whole request line", "GET /" + long + " HTTP/1.1\r\nHost: a\r\n\r\n", 414},
		{"one field", "GET / HTTP/1.1\r\nHost: a\r\nX: " + long, 431},
		{"one whole field", "GET / HTTP/1.1\r\nHost: a\r\nX: " + long + "\r\n\r\n", 431},
		{"many fields", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 200) + "\r\n", 431},
		{"method", strings.Repeat("M", 100) + " / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"host", "GET / HTTP/1.1\r\nHost: " + strings.Repeat("h", 300) + "\r\n\r\n", 400},
		{"trailers", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + long, 431},
		{"chunk extension", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;" + long, 400},
	} {
		for _, piece := range []int{1, 1000, 1 << 20} {
			_, _, _, _, err := readAll([]byte(x.text), piece)
			var e *Error
			if !errors.As(err, &e) || e.Status != x.status && e.Status != 431 {
				t.Errorf("%s by %d: %v, want %d", x.name, piece, err, x.status)
			}
		}
	}
	// What is just short enough passes, however it comes.
	text := "GET /" + strings.Repeat("x", 15<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, piece := range []int{1, 1000, 1 << 20} {
		if r, _, _, _, err := readAll([]byte(text), piece); err != nil || len(r.Target) != 15<<10+1 {
			t.Errorf("by %d: %v", piece, err)
		}
	}
}

func TestChunkedBodies(t *testing.T) {
	head := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	long := strings.Repeat("0123456789", 1000)
	for _, x := range []struct{ name, text, content, trailers, rest string }{
		{"empty", "0\r\n\r\n", "", "", ""},
		{"one", "5\r\nhello\r\n0\r\n\r\n", "hello", "", ""},
		{"two and the next request", "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\nGET /", "hello!", "", "GET /"},
		{"long", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(long), long), long, "", ""},
		{"trailers", "1\r\na\r\n0\r\nX: y\r\nConnection: close\r\nContent-Length: 7\r\nZ:  1 \r\n\r\nrest", "a",
			"X=y Z=1", "rest"},
		{"extension", "1;a=b;c\r\na\r\n0;d\r\n\r\n", "a", "", ""},
	} {
		for _, piece := range []int{1, 2, 5, 100, 1 << 20} {
			_, content, trailers, rest, err := readAll([]byte(head+x.text), piece)
			var fields []string
			for _, f := range trailers {
				fields = append(fields, fmt.Sprintf("%s=%s", f.Name, f.Value))
			}
			if err != nil || string(content) != x.content || strings.Join(fields, " ") != x.trailers ||
				string(rest) != x.rest {
				t.Errorf("%s by %d: %q %q rest %q: %v", x.name, piece, content, fields, rest, err)
			}
		}
	}
	for _, cut := range []string{"", "5", "5\r\n", "5\r\nhel", "5\r\nhello", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n",
		"5\r\nhello\r\n0\r\nX: y\r\n"} {
		if _, _, _, _, err := readAll([]byte(head+cut), 100); err != io.ErrUnexpectedEOF {
			t.Errorf("cut at %q: %v", cut, err)
		}
	}
}

func TestResponseHeads(t *testing.T) {
	for _, x := range []struct {
		method, text, want string
	}{
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "200 OK 5 keep"},
		{"GET", "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", "200  5 keep"},
		{"GET", "HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\n", "200  5 keep"},
		{"GET", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", "200 OK 5"},
		{"GET", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n", "200 OK 5 keep"},
		{"GET", "HTTP/1.1 200 OK\r\n\r\n", "200 OK -1"},
		{"GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n", "200 OK 5"},
		{"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "200 OK -1 keep chunked"},
		{"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "200 OK -1 chunked"},
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "200 OK 5 keep"},
		{"HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "200 OK -1 keep"},
		{"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "304 Not Modified 5 keep"},
		{"GET", "HTTP/1.1 204 No Content\r\n\r\n", "204 No Content -1 keep"},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "200 OK 5 keep"},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 05\r\n\r\n", "200 OK 5 keep"},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "error"},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", "error"},
		{"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\n", "200 OK 5"},
		{"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n", "200 OK -1"},
		{"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n", "error"},
		{"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "error"},
		{"GET", "HTTP/1.1 200 OK\r\nX: a\x01\x7fb\r\nContent-Length: 5\r\n\r\n", "200 OK 5 keep"},
		{"GET", "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 5\r\n\r\n", "error"},
		{"GET", "HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\n", "200 OK 5 keep"},
		{"GET", "HTTP/1.1 200 OK\nContent-Length: 5\n\n", "200 OK 5 keep"},
		{"GET", "HTTP/1.1 200 OK\r\nX: y\rz\r\n\r\n", "error"},
		{"GET", "HTTP/1.1 200 OK\nX: y\rz\n\n", "error"},
		{"GET", "HTTP/1.1 20x OK\r\n\r\n", "error"},
		{"GET", "HTTP/1.1 099 OK\r\n\r\n", "error"},
		{"GET", "HTTP/2 200 OK\r\n\r\n", "error"},
		{"GET", "HTTP/1.A 200 OK\r\n\r\n", "error"},
		{"GET", "HTTP/1.1  200 OK\r\n\r\n", "error"},
		{"GET", "ICY 200 OK\r\n\r\n", "error"},
		{"GET", "HTTP/1.1 200 OK\r\nX : y\r\n\r\n", "error"},
		{"GET", "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", "error"},
		{"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "error"},
		{"GET", "hello\r\n\r\n", "error"},
	} {
		var r message.Response
		var fr framing
		n, keep, err := parseResponse([]byte(x.text), &r, &fr, []byte(x.method))
		got := "error"
		if err == nil {
			got = fmt.Sprintf("%d %s %d", r.Status, r.Reason, r.Length)
			if keep {
				got += " keep"
			}
			if fr.chunked {
				got += " chunked"
			}
			if n != len(x.text) {
				got += fmt.Sprintf(" after %d bytes", n)
			}
		}
		if got != x.want {
			t.Errorf("%s %q: %s (%v), want %s", x.method, x.text, got, err, x.want)
		}
	}
}

// FuzzRequest compares with Go's own reader: what we take, it takes, and with the same
// content; the strict one may refuse more, never read something else. However the bytes
// come, the outcome is the same.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nX: y\r\n\r\nrest",
		"GET http://a/b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\n X: y\r\n\r\n",
	} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, text []byte, piece int) {
		r, content, trailers, rest, err := readAll(text, len(text)+1)
		r2, content2, _, rest2, err2 := readAll(text, piece%64)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("at once: %v; in pieces: %v", err, err2)
		}
		if err != nil {
			return
		}
		if show(&r) != show(&r2) || !bytes.Equal(content, content2) || !bytes.Equal(rest, rest2) {
			t.Fatalf("at once %s %q %q\nin pieces %s %q %q", show(&r), content, rest, show(&r2), content2, rest2)
		}
		if len(trailers) > maxFields || len(r.Fields) > maxFields {
			t.Fatal("too many fields")
		}
		judge(t, text, &r, content, rest)
	})
}

// judge has net/http read the same.
func judge(t *testing.T, text []byte, r *message.Request, content, rest []byte) {
	all := bytes.NewReader(bytes.TrimPrefix(text, []byte("\r\n")))
	br := newBufio(all)
	g, err := http.ReadRequest(br)
	if err != nil {
		// Go reads URLs, and we pass them on; and it is stricter with hosts and fields of old versions.
		return
	}
	theirs, err := io.ReadAll(g.Body)
	if err != nil {
		return
	}
	if g.Method != string(r.Method) || !bytes.Equal(theirs, content) {
		t.Fatalf("%q: Go reads %s %q, we read %s %q", text, g.Method, theirs, r.Method, content)
	}
	left, _ := io.ReadAll(br)
	if !bytes.Equal(left, rest) {
		t.Fatalf("%q: Go leaves %q, we leave %q", text, left, rest)
	}
}

func FuzzChunked(f *testing.F) {
	for _, s := range []string{"0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
		"fffffffffffffff\r\n", "1\r\na\r\n1\r\nb\r\n00\r\n\r\nrest"} {
		f.Add([]byte(s), 2)
	}
	head := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	f.Fuzz(func(t *testing.T, text []byte, piece int) {
		text = append([]byte(head), text...)
		_, content, _, rest, err := readAll(text, len(text)+1)
		_, content2, _, rest2, err2 := readAll(text, piece%64)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("at once: %v; in pieces: %v", err, err2)
		}
		if err != nil {
			return
		}
		if !bytes.Equal(content, content2) || !bytes.Equal(rest, rest2) {
			t.Fatalf("at once %q %q, in pieces %q %q", content, rest, content2, rest2)
		}
		judge(t, text, &message.Request{Method: []byte("POST")}, content, rest)
	})
}

func FuzzResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var r message.Response
		var fr framing
		if n, _, err := parseResponse(text, &r, &fr, []byte("GET")); err == nil && (n > len(text) || r.Status < 100 ||
			r.Status > 999 || r.Length < message.Unknown) {
			t.Fatalf("%q: %d bytes, %+v", text, n, r)
		}
	})
}

func newBufio(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, 64<<10) }
