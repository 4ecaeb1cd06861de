package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// request is one as an endpoint has it: what of it cannot be changed on its way.
type request struct{ method, body string }

// asGo reads requests as Go's server does, up to the first that it refuses.
func asGo(text []byte) (list []request, err error) {
	br := bufio.NewReaderSize(bytes.NewReader(text), 64<<10)
	for {
		if b, _ := br.Peek(2); string(b) == "\r\n" {
			_, _ = br.Discard(2)
		}
		r, err := http.ReadRequest(br)
		if err != nil {
			return list, err
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return list, err
		}
		list = append(list, request{r.Method, string(body)})
	}
}

// split writes a text in two parts.
func split(c net.Conn, text []byte, at uint16) {
	n := int(at) % (len(text) + 1)
	for _, part := range [][]byte{text[:n], text[n:]} {
		if len(part) > 0 {
			if _, err := c.Write(part); err != nil {
				return
			}
		}
	}
}

// FuzzConnectionClient sends whole connections of clients through the proxy: each request that an endpoint reads to
// its end is one of those that Go reads from the client's bytes, in their order.
func FuzzConnectionClient(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n" +
			"Connection: x\r\nX: y\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n5\r\nhello\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 44\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
		"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /2 HTTP/1.0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n{}GET /2 " +
			"HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: Upgrade\r\nUpgrade: " +
			"tcp\r\n\r\n2\r\n{}\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		f.Add([]byte(s), uint16(30))
	}
	var mu sync.Mutex
	var seen []request
	r := newRig(f, nil, raw(f, func(c net.Conn, br *bufio.Reader) {
		for {
			q, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			body, err := io.ReadAll(q.Body)
			if err != nil {
				return
			}
			mu.Lock()
			seen = append(seen, request{q.Method, string(body)})
			mu.Unlock()
			if _, err := io.WriteString(c, okay); err != nil {
				return
			}
		}
	}))
	f.Fuzz(func(t *testing.T, text []byte, at uint16) {
		mu.Lock()
		seen = nil
		mu.Unlock()
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Skip(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		split(c, text, at)
		_ = c.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%q: the connection does not end", text)
		}
		for end := time.Now().Add(5 * time.Second); r.s.Conns() > 0 && time.Now().Before(end); {
			time.Sleep(50 * time.Microsecond)
		}
		mu.Lock()
		defer mu.Unlock()
		// A percent sign frames nothing, and Go refuses targets in which it is no escape.
		plain := func(s string) string { return strings.ReplaceAll(s, "%", "_") }
		want, _ := asGo([]byte(plain(string(text))))
		i := 0
		for _, q := range want {
			if i < len(seen) && plain(seen[i].method) == q.method && plain(seen[i].body) == q.body {
				i++
			}
		}
		if i < len(seen) {
			t.Fatalf("%q\nthe endpoint sees %q\nGo reads         %q", text, seen, want)
		}
	})
}

// FuzzConnectionEndpoint answers by any bytes: the client gets what Go reads from them, or sees an error; and the
// next client gets its own answer.
func FuzzConnectionEndpoint(f *testing.F) {
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" + evil,
		"HTTP/1.1 204 No Content\r\n\r\n" + evil, "HTTP/1.1 304 Not Modified\r\n\r\n" + evil,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n" + evil,
		"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" + evil,
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
		"HTTP/1.1 200 OK\r\n\r\nto the end",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello" + evil,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello" + evil,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5  \r\nhello\r\n0\t\r\n\r\n" + evil,
		"HTTP/1.1 200 OK\r\nX: \x01a\x7f\r\nContent-Length: 5\r\n\r\nhello" + evil,
	} {
		for _, head := range []bool{false, true} {
			f.Add([]byte(s), head, uint16(20))
		}
	}
	type answer struct {
		text []byte
		at   uint16
		ends bool
	}
	var mu sync.Mutex
	var now answer
	var answered time.Time // the last /second
	sent := make(chan struct{}, 16)
	r := newRig(f, func(r *rig) { r.p.Tries = 1 }, raw(f, func(c net.Conn, br *bufio.Reader) {
		for {
			head, err := readHead(br)
			if err != nil {
				return
			}
			if !strings.Contains(head, " /first ") {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
				mu.Lock()
				answered = time.Now()
				mu.Unlock()
				continue
			}
			mu.Lock()
			a := now
			mu.Unlock()
			split(c, a.text, a.at)
			sent <- struct{}{}
			if a.ends {
				return
			}
		}
	}))
	f.Fuzz(func(t *testing.T, text []byte, head bool, at uint16) {
		method := map[bool]string{false: "GET", true: "HEAD"}[head]
		want, wantErr, whole := answerAsGo(withoutControls(text), method)
		mu.Lock()
		now = answer{text, at, !whole}
		mu.Unlock()
		got, gotErr := askOnce(t, r.addr, method, "/first")
		got = string(withoutControls([]byte(got)))
		<-sent
		for len(sent) > 0 {
			<-sent
		}
		switch {
		// we are stricter, or it breaks off
		case gotErr != nil, strings.HasPrefix(got, "502"), strings.HasPrefix(got, "504"):
		case wantErr != nil && bytes.Contains(bytes.ToLower(text), []byte("identity")) &&
			strings.Contains(wantErr.Error(), "unsupported transfer encoding"):
			// which we take for none (RFC 7230, A.1.3), and Go does not know
		case wantErr != nil:
			t.Fatalf("%s, %q: the client takes %q for whole, Go says %v", method, text, got, wantErr)
		case got != want:
			t.Fatalf("%s, %q: the client gets %q, Go reads %q", method, text, got, want)
		}
		asked := time.Now()
		if got, err := askOnce(t, r.addr, "GET", "/second"); got != "200 good" {
			if strings.HasPrefix(got, "504") && answersLate(asked, r.p.Timeouts.Read, func() time.Time {
				mu.Lock()
				defer mu.Unlock()
				return answered
			}) {
				t.Skip("the machine is so busy that the endpoint of the test answered after the proxy's time-out")
			}
			t.Fatalf("%s, %q: the next client gets %q, %v", method, text, got, err)
		}
	})
}

// answersLate says whether the endpoint got what was asked, and answered only after a time-out. A 504 of the proxy is
// right then; it is a fault when the endpoint answered in time, or never got the request.
func answersLate(asked time.Time, timeout time.Duration, answered func() time.Time) bool {
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if at := answered(); at.After(asked) {
			return at.Sub(asked) >= timeout
		}
	}
	return false
}

// withoutControls has spaces in place of control characters, as we put them in values of fields, which Go refuses.
func withoutControls(text []byte) []byte {
	out := bytes.Clone(text)
	for i, c := range out {
		if c > 0 && c < ' ' && c != '\t' && c != '\r' && c != '\n' || c == 0x7f {
			out[i] = ' '
		}
	}
	return out
}

// answerAsGo reads a response as Go's client does. whole says that its end does not need the connection's.
func answerAsGo(text []byte, method string) (got string, err error, whole bool) {
	br := bufio.NewReaderSize(bytes.NewReader(text), 64<<10)
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			return "", err, false
		}
		if resp.StatusCode == 101 {
			return "", errors.New("101, which nobody asked for"), true
		}
		if resp.StatusCode < 200 {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return "", err, false
		}
		toEnd := resp.ContentLength < 0 && len(resp.TransferEncoding) == 0
		return fmt.Sprintf("%d %s", resp.StatusCode, body), nil, !toEnd
	}
}

// askOnce is a client's request on a connection of its own.
func askOnce(t *testing.T, addr, method, path string) (string, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Skip(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: a\r\n\r\n", method, path); err != nil {
		return "", err
	}
	br := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%s %s is not answered", method, path)
			}
			return "", err
		}
		if resp.StatusCode < 200 {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d %s", resp.StatusCode, body), err
	}
}
