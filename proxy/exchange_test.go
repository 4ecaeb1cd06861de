package proxy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
)

// answer is an endpoint that answers each request by a fixed text.
func answer(t *testing.T, text string) netip.AddrPort {
	return raw(t, func(c net.Conn, br *bufio.Reader) {
		for {
			if _, err := readHead(br); err != nil {
				return
			}
			if _, err := io.WriteString(c, text); err != nil {
				return
			}
		}
	})
}

func TestResponsesWithoutBody(t *testing.T) {
	for _, x := range []struct{ name, method, answer, head string }{
		{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"},
		{"HEAD of unknown length", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
			"HTTP/1.1 200 OK\r\n\r\n"},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"},
		{"204 with a length", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 204 No Content\r\n\r\n"},
		{"304", "GET", "HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 99\r\n\r\n",
			"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 99\r\n\r\n"},
		{"empty", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"early hints", "GET", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 " +
			"200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"},
	} {
		t.Run(x.name, func(t *testing.T) {
			r := newRig(t, nil, answer(t, x.answer))
			c := r.dial()
			for range 3 { // the connections are used on: nothing of one answer is left for the next
				c.send("%s / HTTP/1.1\r\nHost: a\r\n\r\n", x.method)
				if head := undated(t, c.br); head != x.head {
					t.Fatalf("%q, want %q", head, x.head)
				}
				if x.name == "early hints" {
					if head, _ := readHead(c.br); !strings.HasPrefix(head, "HTTP/1.1 200") {
						t.Fatalf("then %q", head)
					}
				}
			}
		})
	}
}

func TestOldClientsAndClosing(t *testing.T) {
	chunked := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"
	for _, x := range []struct {
		name, request, answer, want string
		ends                        bool
	}{
		{"1.0", "GET / HTTP/1.0\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
			"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", true},
		{"1.0 keep-alive", "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
			"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", false},
		{"1.0 of chunks", "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", chunked,
			"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", true},
		{"close", "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
			"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", true},
		{"chunks with trailers", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", chunked,
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n", false},
		{"the endpoint's close is its own", "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n" +
				"Keep-Alive: 5\r\n\r\nhello",
			"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false},
		{"chunks and a length", "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false},
	} {
		t.Run(x.name, func(t *testing.T) {
			r := newRig(t, nil, answer(t, x.answer))
			c := r.dial()
			for i := range 2 {
				c.send("%s", x.request)
				head := undated(t, c.br)
				got := make([]byte, max(0, len(x.want)-len(head)))
				if _, err := io.ReadFull(c.br, got); err != nil || head+string(got) != x.want {
					t.Fatalf("%d: %q %q, want %q: %v", i, head, got, x.want, err)
				}
				if x.ends {
					c.ended()
					return
				}
			}
		})
	}
}

// An answer without a length ends with the endpoint's connection; the client gets it in
// chunks.
func TestAnswersThatEndWithTheConnection(t *testing.T) {
	r := newRig(t, nil, raw(t, func(c net.Conn, br *bufio.Reader) {
		_, _ = readHead(br)
		_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\nhello, ")
		time.Sleep(20 * time.Millisecond)
		_, _ = io.WriteString(c, "world")
	}))
	c := r.dial()
	for range 3 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if _, body := c.response("GET"); body != "hello, world" {
			t.Fatal(body)
		}
	}
}

func TestPipelining(t *testing.T) {
	r := newRig(t, nil, handler(t, echo))
	c := r.dial()
	var b strings.Builder
	for i := range 50 {
		fmt.Fprintf(&b, "POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n%02d", i, i)
	}
	b.WriteString("garbage\r\n\r\n")
	c.send("%s", b.String())
	for i := range 50 {
		if _, body := c.response("POST"); body != fmt.Sprintf("POST a /%d|127.0.0.1|%02d", i, i) {
			t.Fatal(body)
		}
	}
	if resp, _ := c.response("GET"); resp.StatusCode != 400 || !resp.Close {
		t.Fatal(resp.Status)
	}
	c.ended()
}

func TestContinue(t *testing.T) {
	r := newRig(t, nil, handler(t, echo))
	c := r.dial()
	for range 2 {
		c.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
		if head, _ := readHead(c.br); head != "HTTP/1.1 100 Continue\r\n\r\n" {
			t.Fatalf("%q", head)
		}
		c.send("hello")
		if _, body := c.response("PUT"); !strings.HasSuffix(body, "|hello") {
			t.Fatal(body)
		}
	}
	// Who is refused is not asked for the body, and the connection ends: what the client
	// does next cannot be told.
	r.route()
	c.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	if resp, _ := c.response("PUT"); resp.StatusCode != 404 || !resp.Close {
		t.Fatal(resp.Status, resp.Close)
	}
	c.ended()
}

// Both directions at once, and each larger than all buffers between: neither waits for the
// other's end.
func TestLargeBodiesBothWays(t *testing.T) {
	r := newRig(t, nil, handler(t, func(w http.ResponseWriter, req *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum")
		h := sha256.New()
		buf := make([]byte, 10<<10)
		for {
			n, err := req.Body.Read(buf)
			h.Write(buf[:n])
			_, _ = w.Write(buf[:n])
			if err != nil {
				break
			}
		}
		w.Header().Set("X-Sum", fmt.Sprintf("%x", h.Sum(nil)))
	}))
	const size = 20 << 20
	for _, chunked := range []bool{false, true} {
		body := make([]byte, size)
		rnd := rand.NewChaCha8([32]byte{1})
		_, _ = rnd.Read(body)
		req, err := http.NewRequest("POST", "http://"+r.addr+"/", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if chunked {
			req.ContentLength = -1
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("%d bytes of %d: %v", len(got), size, err)
		}
		if want := fmt.Sprintf("%x", sha256.Sum256(body)); resp.Trailer.Get("X-Sum") != want {
			t.Errorf("trailer %q, want %q", resp.Trailer.Get("X-Sum"), want)
		}
	}
}

func TestTrailersOfRequests(t *testing.T) {
	r := newRig(t, nil, handler(t, func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		fmt.Fprint(w, req.Trailer.Get("X-Sum"), req.Trailer.Get("X-Forwarded-For"))
	}))
	c := r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: " +
		"X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\nContent-Length: 9\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
	if _, body := c.response("POST"); body != "7" {
		t.Fatalf("%q", body)
	}
}

// A refusal that comes before the body's end reaches the client, although it still sends.
func TestEarlyResponses(t *testing.T) {
	r := newRig(t, nil, raw(t, func(c net.Conn, br *bufio.Reader) {
		_, _ = readHead(br)
		_, _ = io.ReadFull(br, make([]byte, 1000))
		_, _ = io.WriteString(c,
			"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbig\n")
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, br)
	}))
	c := r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n%s", strings.Repeat("x", 5000))
	if resp, body := c.response("POST"); resp.StatusCode != 413 || body != "big\n" {
		t.Fatal(resp.Status, body)
	}
	c.send("%s", strings.Repeat("y", 100000)) // no reset meets it
	c.ended()
	if rec := r.record(0); rec.Status != 413 || rec.Tries != 1 {
		t.Errorf("%+v", rec)
	}
}

func TestBodiesThatAreTooLarge(t *testing.T) {
	var whole atomic.Int64
	r := newRig(t, nil, handler(t, func(w http.ResponseWriter, req *http.Request) {
		if _, err := io.Copy(io.Discard, req.Body); err == nil {
			whole.Add(1)
		}
	}))
	r.route(schema.Path{Kind: schema.Prefix, Path: "/", Backend: "b", Options: &schema.Options{MaxBody: 1000}})
	for _, x := range []string{
		"Content-Length: 1001\r\n\r\n" + strings.Repeat("x", 1001),
		"Content-Length: 100000000\r\n\r\n" + strings.Repeat("x", 100000),
		"Transfer-Encoding: chunked\r\n\r\n1F4\r\n" + strings.Repeat("x", 500) + "\r\n1F5\r\n" +
			strings.Repeat("x", 501) + "\r\n0\r\n\r\n",
	} {
		c := r.dial()
		c.send("POST / HTTP/1.1\r\nHost: a\r\n%s", x)
		if resp, _ := c.response("POST"); resp.StatusCode != 413 {
			t.Errorf("%.40q: %s", x, resp.Status)
		}
	}
	if whole.Load() != 0 {
		t.Errorf("the endpoint took %d for whole", whole.Load())
	}
	c := r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3E8\r\n%s\r\n0\r\n\r\n",
		strings.Repeat("x", 1000))
	if resp, _ := c.response("POST"); resp.StatusCode != 200 || whole.Load() != 1 {
		t.Error(resp.Status)
	}
}

// What an endpoint sends bit by bit reaches the client bit by bit.
func TestStreaming(t *testing.T) {
	next := make(chan struct{})
	for _, chunked := range []bool{false, true} {
		r := newRig(t, nil, handler(t, func(w http.ResponseWriter, _ *http.Request) {
			if !chunked {
				w.Header().Set("Content-Length", "50")
			}
			for range 10 {
				_, _ = io.WriteString(w, "tick\n")
				_ = http.NewResponseController(w).Flush()
				<-next
			}
		}))
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(c.br, nil)
		if err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(resp.Body)
		for range 10 {
			if line, err := br.ReadString('\n'); line != "tick\n" {
				t.Fatal(line, err)
			}
			next <- struct{}{}
		}
		if _, err := br.ReadByte(); err != io.EOF {
			t.Fatal(err)
		}
	}
}

// And so does what a client sends, to an endpoint that answers meanwhile.
func TestUploadsBitByBit(t *testing.T) {
	r := newRig(t, nil, handler(t, func(w http.ResponseWriter, req *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		w.WriteHeader(200)
		_ = rc.Flush()
		br := bufio.NewReader(req.Body)
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(w, strings.ToUpper(line))
			_ = rc.Flush()
		}
	}))
	c := r.dial()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(resp.Body)
	for range 10 {
		c.send("3\r\nab\n\r\n")
		if line, err := br.ReadString('\n'); line != "AB\n" {
			t.Fatal(line, err)
		}
	}
	c.send("0\r\n\r\n")
	if _, err := br.ReadByte(); err != io.EOF {
		t.Fatal(err)
	}
}

func TestWebSocketsAreTunnelled(t *testing.T) {
	ended := make(chan struct{}, 10)
	ws := raw(t, func(c net.Conn, br *bufio.Reader) {
		head, _ := readHead(br)
		if !strings.Contains(head, "Upgrade: websocket\r\n") || !strings.Contains(head, "Connection: Upgrade\r\n") ||
			!strings.Contains(head, "Sec-WebSocket-Key: k\r\n") {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+
			"WebSocket\r\nSec-WebSocket-Accept: s\r\n\r\nfirst")
		_, _ = io.Copy(c, br)
		ended <- struct{}{}
	})
	r := newRig(t, nil, ws)
	c := r.dial()
	c.send("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: " +
		"websocket\r\nSec-WebSocket-Key: k\r\n\r\nahead")
	head, err := readHead(c.br)
	if err != nil || !strings.HasPrefix(head, "HTTP/1.1 101 ") || !strings.Contains(head, "Upgrade: WebSocket\r\n") ||
		!strings.Contains(head, "Sec-WebSocket-Accept: s\r\n") {
		t.Fatal(head, err)
	}
	expect := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c.br, got); err != nil || string(got) != want {
			t.Fatalf("%q %v, want %q", got, err, want)
		}
	}
	expect("firstahead")
	for i := range 100 {
		c.send("frame %03d;", i)
		expect(fmt.Sprintf("frame %03d;", i))
	}
	if n := r.p.Tunnels(); n != 1 {
		t.Errorf("%d tunnels", n)
	}
	// The endpoint leaves the table: the tunnel stays.
	r.endpoints()
	c.send("still")
	expect("still")
	c.Close()
	<-ended
	if rec := r.record(0); rec.Status != 101 || rec.Sent != 5+5+100*10+5 {
		t.Errorf("%+v", rec)
	}
	if n := r.p.Tunnels(); n != 0 {
		t.Errorf("%d tunnels", n)
	}
}

func TestUpgradesThatAreRefused(t *testing.T) {
	for name, x := range map[string]struct {
		request, answer string
		status          int
	}{
		"by the endpoint": {"Connection: Upgrade\r\nUpgrade: websocket\r\n",
			"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", 403},
		"unasked": {"", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
			502},
		"another": {"Connection: Upgrade\r\nUpgrade: websocket\r\n",
			"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", 502},
	} {
		r := newRig(t, nil, answer(t, x.answer))
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n%s\r\n", x.request)
		if resp, _ := c.response("GET"); resp.StatusCode != x.status {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
}

// The client leaves while the endpoint still thinks, and while it sends: the endpoint's
// connection ends, and nothing is left behind.
func TestClientsThatLeave(t *testing.T) {
	for _, begun := range []bool{false, true} {
		left := make(chan struct{})
		r := newRig(t, func(r *rig) { r.p.Timeouts.Read = 30 * time.Second },
			handler(t, func(w http.ResponseWriter, req *http.Request) {
				if begun {
					_, _ = io.WriteString(w, "a")
					_ = http.NewResponseController(w).Flush()
				}
				<-req.Context().Done()
				close(left)
			}))
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if begun {
			if _, err := readHead(c.br); err != nil {
				t.Fatal(err)
			}
		} else {
			time.Sleep(50 * time.Millisecond) // it may leave at any time
		}
		c.Close()
		select {
		case <-left:
		case <-time.After(10 * time.Second):
			t.Fatal("the endpoint is kept busy")
		}
		if rec := r.record(0); rec.Err == nil {
			t.Errorf("%+v", rec)
		}
	}
	// One that leaves in the middle of a long answer.
	r := newRig(t, nil, handler(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 64<<20))
	}))
	before := runtime.NumGoroutine()
	for range 20 {
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		_, _ = io.ReadFull(c.br, make([]byte, 100<<10))
		c.Close()
	}
	r.record(19)
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before+10 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before+10 {
		t.Errorf("%d goroutines before, %d after", before, n)
	}
}

// A client that waits long for its answer, and stays, gets it; its connection is used on.
func TestSlowEndpointsAreWaitedFor(t *testing.T) {
	r := newRig(t, nil, handler(t, func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(1500 * time.Millisecond)
		_, _ = io.WriteString(w, "a")
		_ = http.NewResponseController(w).Flush()
		time.Sleep(1500 * time.Millisecond)
		_, _ = io.WriteString(w, "b")
	}))
	c := r.dial()
	for range 2 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, body := c.response("GET"); body != "ab" {
			t.Fatal(resp.Status, body)
		}
	}
}

func TestForwardedFields(t *testing.T) {
	show := handler(t, func(w http.ResponseWriter, r *http.Request) {
		for _, n := range []string{"X-Forwarded-For", "X-Real-Ip", "X-Forwarded-Host", "X-Forwarded-Proto",
			"X-Forwarded-Port", "Forwarded", "X_forwarded_for"} {
			fmt.Fprintf(w, "%s;", strings.Join(r.Header[n], ","))
		}
	})
	r := newRig(t, nil, show)
	c := r.dial()
	c.send("GET / HTTP/1.1\r\nHost: a.b:8080\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: " +
		"for=6.6.6.6\r\nX-Forwarded-Proto: https\r\nX_Forwarded_For: 6.6.6.6\r\n\r\n")
	if _, body := c.response("GET"); body != "127.0.0.1;127.0.0.1;a.b:8080;http;8080;;;" {
		t.Error(body)
	}
	r = newRig(t, func(r *rig) { r.p.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }, show)
	c = r.dial()
	c.send("GET / HTTP/1.1\r\nHost: a.b:8080\r\nX-Forwarded-For: 6.6.6.6, 7.7.7.7\r\nX-Forwarded-Proto: https\r\n\r\n")
	if _, body := c.response("GET"); body != "6.6.6.6, 7.7.7.7, 127.0.0.1;7.7.7.7;a.b:8080;https;8080;;;" {
		t.Error(body)
	}
}
