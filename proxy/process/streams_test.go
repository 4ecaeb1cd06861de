package process

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/schema"
)

// gRPC by hand: messages with a length in front, and a status in the trailers.

func grpcMessage(b string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

func readMessage(r io.Reader) (string, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[1:]))
	_, err := io.ReadFull(r, b)
	return string(b), err
}

// grpcServer echoes each message as it comes; /fails answers with trailers only, /waits not
// before its client has gone.
func grpcServer(left chan<- struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		switch {
		case q.ProtoMajor != 2 || q.Header.Get("Te") != "trailers":
			w.Header().Set("Grpc-Status", "13")
			w.Header().Set("Grpc-Message", q.Proto+" "+q.Header.Get("Te"))
			return
		case q.URL.Path == "/fails":
			w.Header().Set("Grpc-Status", "5")
			return
		case q.URL.Path == "/waits":
			w.(http.Flusher).Flush()
			<-q.Context().Done()
			left <- struct{}{}
			return
		}
		w.Header().Set("Trailer", "Grpc-Status")
		w.(http.Flusher).Flush()
		for {
			m, err := readMessage(q.Body)
			if err == io.EOF {
				break
			}
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			_, _ = w.Write(grpcMessage("echo " + m))
			w.(http.Flusher).Flush()
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "unannounced")
	}
}

// grpcRig serves gRPC at host g, with endpoints plain and encrypted.
func grpcRig(t *testing.T, left chan<- struct{}, change func(*schema.Options)) *rig {
	r := newRig(t)
	h := grpcServer(left)
	b := r.backend("plain", h)
	s := &http.Server{Handler: h}
	cert := r.ca.issue("endpoint", "whatever")
	pair, err := tls.X509KeyPair(cert.Chain, cert.Priv)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair},
		NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	enc := schema.Backend{Key: "encrypted",
		Endpoints: []schema.Endpoint{{Addr: netip.MustParseAddrPort(l.Addr().String())}}}
	host := func(name, backend string, p schema.Protocol) schema.Host {
		o := &schema.Options{Protocol: p}
		if change != nil {
			change(o)
		}
		h := route(name, backend, "c")
		h.Paths[0].Options = o
		return h
	}
	r.up(map[string]schema.Host{"g": host("g", "plain", schema.GRPC), "gs": host("gs", "encrypted", schema.GRPCS)},
		map[string]schema.Backend{"plain": b, "encrypted": enc},
		map[string]schema.Certificate{"c": r.ca.issue("c", "g", "gs")})
	return r
}

// Messages go both ways as they come, trailers reach the client, to endpoints with and
// without TLS.
func TestGRPCStreams(t *testing.T) {
	r := grpcRig(t, nil, nil)
	c := r.client(true)
	for _, url := range []string{"http://g/echo", "https://g/echo", "http://gs/echo", "https://gs/echo"} {
		body, w := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), "POST", url, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Te", "trailers")
		req.Header.Set("Content-Type", "application/grpc")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", url, err)
		}
		for i := range 50 {
			m := strings.Repeat("x", i*i)
			if _, err := w.Write(grpcMessage(m)); err != nil {
				t.Fatal(err)
			}
			if got, err := readMessage(resp.Body); err != nil || got != "echo "+m {
				t.Fatalf("%s: message %d: %q, %v", url, i, got, err)
			}
		}
		w.Close()
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
			t.Errorf("%s: %q, %v", url, rest, err)
		}
		resp.Body.Close()
		if resp.Trailer.Get("Grpc-Status") != "0" || resp.Trailer.Get("Grpc-Message") != "unannounced" ||
			resp.Header.Get("Content-Type") != "application/grpc" {
			t.Errorf("%s: header %v, trailer %v", url, resp.Header, resp.Trailer)
		}
		resp, err = c.Post(strings.Replace(url, "echo", "fails", 1), "application/grpc",
			bytes.NewReader(grpcMessage("x")))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Grpc-Status") + resp.Trailer.Get("Grpc-Status"); got != "5" {
			t.Errorf("%s: a status without messages: header %v, trailer %v", url, resp.Header, resp.Trailer)
		}
	}
}

// A client that gives up is given up at the endpoint; an endpoint that says nothing for
// the time of the path gets 504.
func TestGRPCEnds(t *testing.T) {
	left := make(chan struct{}, 1)
	r := grpcRig(t, left, nil)
	c := r.client(true)
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", "http://g/waits", http.NoBody)
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-left:
	case <-time.After(10 * time.Second):
		t.Error("the endpoint does not learn that its client has gone")
	}
	resp.Body.Close()

	r = grpcRig(t, make(chan struct{}, 8), func(o *schema.Options) { o.Read = 300 * time.Millisecond })
	c = r.client(true)
	resp, err = c.Post("http://g/waits", "application/grpc", http.NoBody)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	var reset http2.StreamError
	if err == nil || !strings.Contains(err.Error(), "INTERNAL_ERROR") && !errors.As(err, &reset) {
		t.Errorf("a stream that is silent: %v, want a reset", err)
	}
	// An endpoint that cannot be reached costs no request while there is another.
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := netip.MustParseAddrPort(dead.Addr().String())
	dead.Close()
	b := r.backend("plain", grpcServer(nil))
	b.Endpoints = append(b.Endpoints, schema.Endpoint{Addr: gone})
	if err := r.feed.Backends().Apply(t.Context(), map[string]schema.Backend{"plain": b}, nil); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // both are right, before and after it is known
	for i := range 20 {
		resp, err := c.Post("http://g/echo", "application/grpc", bytes.NewReader(grpcMessage("x")))
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || resp.Trailer.Get("Grpc-Status") != "0" {
			t.Errorf("request %d: %s, %v, %v", i, resp.Status, resp.Trailer, err)
		}
	}
}

// http2Client sends the frames that a test chooses.
type http2Client struct {
	t *testing.T
	net.Conn
	*http2.Framer
	head bytes.Buffer
	enc  *hpack.Encoder
}

func (r *rig) frames() *http2Client {
	r.t.Helper()
	c, err := net.Dial("tcp", r.plain.String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	f := &http2Client{t: r.t, Conn: c, Framer: http2.NewFramer(c, c)}
	f.enc = hpack.NewEncoder(&f.head)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		r.t.Fatal(err)
	}
	if err := f.WriteSettings(); err != nil {
		r.t.Fatal(err)
	}
	return f
}

// request sends a head.
func (f *http2Client) request(id uint32, fields ...string) error {
	f.head.Reset()
	for i := 0; i < len(fields); i += 2 {
		if err := f.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			return err
		}
	}
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.head.Bytes(), EndStream: true,
		EndHeaders: true})
}

// answer waits for what becomes of a stream: a status, or an error's name.
func (f *http2Client) answer(id uint32) string {
	f.t.Helper()
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch fr := fr.(type) {
		case *http2.MetaHeadersFrame:
			if fr.StreamID == id {
				return fr.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if fr.StreamID == id {
				return fr.ErrCode.String()
			}
		case *http2.GoAwayFrame:
			if fr.ErrCode != http2.ErrCodeNo {
				return fr.ErrCode.String()
			}
		}
	}
}

// What HTTP/2 can carry and HTTP/1.1 cannot reaches no endpoint: sent on, it could become
// two requests.
func TestNoRequestIsSmuggledThroughHTTP2(t *testing.T) {
	r := newRig(t)
	seen := make(chan string, 100)
	r.up(map[string]schema.Host{"": route("", "b", "")},
		map[string]schema.Backend{"b": r.backend("b", func(_ http.ResponseWriter, q *http.Request) {
			seen <- q.Method +
				q.RequestURI
		})}, nil)
	good := []string{":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/good"}
	f := r.frames()
	if err := f.request(1, good...); err != nil {
		t.Fatal(err)
	}
	if got := f.answer(1); got != "200" || <-seen != "GET/good" {
		t.Fatalf("a good one: %s", got)
	}
	with := func(name, value string) []string {
		out := append([]string{}, good...)
		for i := 0; i < len(out); i += 2 {
			if out[i] == name {
				out[i+1] = value
				return out
			}
		}
		return append(out, name, value)
	}
	for _, x := range [][]string{
		with(":path", "/a HTTP/1.1"), with(":path", "/a\r\nX: y"), with(":path", "/a\tb"), with(":path", "a"),
		with(":path", "/a#b"), with(":path", "/a\x00"), with(":path", "*a"), with(":path", ""),
		with(":method", "GET / HTTP/1.1\r\nX:"), with(":method", "GET /"), with(":method", "G(T"), with(":method", ""),
		with(":method", "CONNECT"),
		with(":authority", "a b"), with(":authority", "a\r\nX: y"), with(":authority", "u@a"),
		with(":authority", "a/b"), with(":authority", "a,b"),
		with("connection", "close"), with("transfer-encoding", "chunked"), with("upgrade", "h2c"),
		with("keep-alive", "1"), with("te", "gzip"),
		with("x", "a\r\nb: c"), with("x", "a\nb"), with("x y", "a"), with("x:", "a"), with("X-Upper", "a"),
		with("content-length", "5"), with("content-length", "-1"),
		append(append([]string{}, good...), ":path", "/twice"), append(append([]string{}, good...), ":unknown", "x"),
		append([]string{"x", "y"}, good...),
	} {
		f := r.frames()
		if err := f.request(1, x...); err != nil {
			t.Errorf("%q: %v", x, err)
			continue
		}
		got := f.answer(1)
		if !strings.HasPrefix(got, "4") && got != "501" && got != "PROTOCOL_ERROR" && got != "closed" {
			t.Errorf("%q: %s", x, got)
		}
		f.Close()
	}
	select {
	case s := <-seen:
		t.Errorf("an endpoint saw %q", s)
	default:
	}
}

// workedOff asks for an answer behind all that was sent; that the connection was closed
// is one, too.
func (f *http2Client) workedOff() error {
	last := [8]byte{'l', 'a', 's', 't'}
	_ = f.SetDeadline(time.Now().Add(time.Minute))
	if err := f.WritePing(false, last); err != nil {
		return nil // closed, or so full that nothing more is taken: it is held off
	}
	for {
		frame, err := f.ReadFrame()
		if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
			return err
		}
		if err != nil {
			return nil
		}
		if p, ok := frame.(*http2.PingFrame); ok && p.IsAck() && p.Data == last {
			return nil
		}
	}
}

// Floods: a client that opens and resets streams, or sends control frames, or a head
// without end, is held off or closed; others are served meanwhile.
func TestHTTP2Floods(t *testing.T) {
	r := newRig(t)
	var begun = make(chan struct{}, 100000)
	r.up(map[string]schema.Host{"": route("", "b", "")},
		map[string]schema.Backend{"b": r.backend("b", func(http.ResponseWriter, *http.Request) {
			begun <- struct{}{}
			time.Sleep(time.Millisecond)
		})}, nil)
	good := []string{":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/"}
	for name, flood := range map[string]func(*http2Client, uint32) error{
		"reset": func(f *http2Client, i uint32) error {
			if err := f.request(2*i+1, good...); err != nil {
				return err
			}
			return f.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		},
		"ping":     func(f *http2Client, i uint32) error { return f.WritePing(false, [8]byte{byte(i)}) },
		"settings": func(f *http2Client, _ uint32) error { return f.WriteSettings() },
		"continuation": func(f *http2Client, i uint32) error {
			if i == 0 {
				f.head.Reset()
				for k := 0; k < 14; k += 2 {
					_ = f.enc.WriteField(hpack.HeaderField{Name: append(good, "x", "y")[k%8], Value: good[(k%8)+1]})
				}
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: f.head.Bytes()})
			}
			f.head.Reset()
			_ = f.enc.WriteField(hpack.HeaderField{Name: "x", Value: strconv.Itoa(int(i)) + strings.Repeat("v", 1000),
				Sensitive: true})
			return f.WriteContinuation(1, false, f.head.Bytes())
		},
		"heads": func(f *http2Client, i uint32) error {
			return f.request(2*i+1, append(good, "x", strings.Repeat("v", 14<<10))...)
		},
	} {
		f := r.frames()
		var sent uint32
		err := error(nil)
		most := uint32(100000)
		if name == "reset" {
			most = 5000 // all may have to be worked off, by two cores and under the race detector
		}
		for end := time.Now().Add(3 * time.Second); sent < most && err == nil && time.Now().Before(end); sent++ {
			// nothing is read: queues fill
			if err = f.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err == nil {
				err = flood(f, sent)
			}
		}
		t.Logf("%s: ended after %d: %v", name, sent, err)
		switch name {
		case "reset": // held off: closed, or worked off to the end
			if err := f.workedOff(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case "continuation":
			_ = f.SetReadDeadline(time.Now().Add(time.Minute))
			_, err = io.Copy(io.Discard, f.Conn)
			if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
				t.Errorf("%s: the connection stays open", name)
			}
		}
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		if mem.HeapInuse > 64<<20 {
			t.Errorf("%s: %d MiB of memory are in use", name, mem.HeapInuse>>20)
		}
		if status, _, err := fetch(r.client(false), "http://a/"); err != nil || status != 200 {
			t.Errorf("%s: others get %d, %v", name, status, err)
		}
		f.Close()
	}
}

// The bounds of HTTP/2 are told to clients, and a head above its bound is refused.
func TestHTTP2Limits(t *testing.T) {
	r := newRig(t)
	r.up(map[string]schema.Host{"": route("", "b", "")}, map[string]schema.Backend{"b": r.backend("b", says("b"))}, nil)
	f := r.frames()
	for told := false; !told; {
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		s, ok := fr.(*http2.SettingsFrame)
		if !ok || s.IsAck() {
			continue
		}
		told = true
		if n, ok := s.Value(http2.SettingMaxConcurrentStreams); !ok || n > 128 {
			t.Errorf("%d streams are allowed", n)
		}
		if n, ok := s.Value(http2.SettingMaxHeaderListSize); !ok || n > 64<<10 {
			t.Errorf("a head of %d bytes is allowed", n)
		}
	}
	c := r.client(true)
	for size, want := range map[int]int{20 << 10: 200, 200 << 10: 431} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://a/", nil)
		for i := range size >> 10 {
			req.Header.Set(fmt.Sprintf("X-%d", i), strings.Repeat("v", 1000))
		}
		resp, err := c.Do(req)
		if err != nil { // its client knows the bound, and does not send what is above
			if want == 200 {
				t.Errorf("a head of %d bytes: %v", size, err)
			}
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("a head of %d bytes: %d, want %d", size, resp.StatusCode, want)
		}
	}
}

// Who speaks HTTP to the port of HTTPS is told so.
func TestPlainToTLS(t *testing.T) {
	r := newRig(t)
	r.up(map[string]schema.Host{"": route("", "b", "")}, map[string]schema.Backend{"b": r.backend("b", says("b"))}, nil)
	c, err := net.Dial("tcp", r.https.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); resp.StatusCode != 400 || err != nil ||
		!strings.Contains(string(body), "HTTPS") {
		t.Errorf("%s %q, %v", resp.Status, body, err)
	}
}

// webSocket is a client's handshake, by hand.
func (r *rig) webSocket(host string, encrypted bool) (net.Conn, *bufio.Reader, error) {
	to := r.plain
	if encrypted {
		to = r.https
	}
	c, err := net.Dial("tcp", to.String())
	if err != nil {
		return nil, nil, err
	}
	if encrypted {
		c = tls.Client(c, &tls.Config{RootCAs: r.ca.pool, ServerName: host, NextProtos: []string{"http/1.1"}})
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(c, "GET /chat HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: "+
		"Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
		host); err != nil {
		return nil, nil, err
	}
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" ||
		resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		return nil, nil, fmt.Errorf("%s %v", resp.Status, resp.Header)
	}
	return c, br, nil
}

// echoSocket is an endpoint's side.
func echoSocket(w http.ResponseWriter, q *http.Request) {
	if q.Header.Get("Upgrade") != "websocket" {
		http.Error(w, "no WebSocket", http.StatusBadRequest)
		return
	}
	w.Header().Set("Upgrade", "websocket")
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
	w.WriteHeader(http.StatusSwitchingProtocols)
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.Copy(c, rw.Reader)
}

func echo(c net.Conn, br *bufio.Reader, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(br, got); err != nil || string(got) != text {
		return fmt.Errorf("%q, %w", got, err)
	}
	return nil
}

// WebSockets work plain and encrypted, stay while routes, their backend and certificates
// change, and while the proxy drains, until its time is over.
func TestWebSockets(t *testing.T) {
	r := newRig(t)
	r.settings.Drain = 1500 * time.Millisecond
	r.feed.Configure(r.settings)
	b := r.backend("b", echoSocket)
	r.plan(r.feed, map[string]schema.Host{"a": route("a", "b", "c")}, map[string]schema.Backend{"b": b},
		map[string]schema.Certificate{"c": r.ca.issue("c", "a")})
	dir := t.TempDir()
	serveFeed(t, r.feed, dir+"/proxy.sock")
	stop := r.run(dir)
	type socket struct {
		c  net.Conn
		br *bufio.Reader
	}
	var open []socket
	for _, encrypted := range []bool{false, true} {
		c, br, err := r.webSocket("a", encrypted)
		if err != nil {
			t.Fatalf("encrypted %v: %v", encrypted, err)
		}
		defer c.Close()
		open = append(open, socket{c, br})
	}
	all := func(when string) {
		t.Helper()
		for i, s := range open {
			if err := echo(s.c, s.br, "hello "+when); err != nil {
				t.Errorf("%s: socket %d: %v", when, i, err)
			}
		}
	}
	all("at first")
	b.Endpoints = append(r.backend("b", echoSocket).Endpoints, b.Endpoints...)
	ctx := t.Context()
	if err := errors.Join(r.feed.Hosts().Apply(ctx, map[string]schema.Host{"a": route("a", "b", ""),
		"x": route("x", "b", "")}, nil),
		r.feed.Backends().Apply(ctx, map[string]schema.Backend{"b": b}, nil), r.feed.Certificates().Apply(ctx,
			map[string]schema.Certificate{"c": r.ca.issue("c", "a")}, nil)); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		if status, _, err := fetch(r.client(false), "http://x/"); err != nil || status != 400 {
			return fmt.Errorf("%d, %v", status, err)
		}
		return nil
	})
	all("after changes")
	ended := make(chan time.Duration, 1)
	go func() {
		start := time.Now()
		stop()
		ended <- time.Since(start)
	}()
	time.Sleep(500 * time.Millisecond) // within its time to drain
	all("while it drains")
	if took := <-ended; took < r.settings.Drain || took > r.settings.Drain+2*time.Second {
		t.Errorf("it ended after %s, its time is %s", took, r.settings.Drain)
	}
	for i, s := range open {
		if err := echo(s.c, s.br, "after"); err == nil {
			t.Errorf("socket %d lives on", i)
		}
	}
}

// A proxy that drains answers what it has taken: exchanges that run, requests on idle
// connections, and those whose connection was just opened; clients learn that it ends.
func TestDrain(t *testing.T) {
	r := newRig(t)
	r.settings.Drain = 10 * time.Second
	r.feed.Configure(r.settings)
	slow := make(chan struct{})
	began := make(chan struct{}, 2)
	r.plan(r.feed, map[string]schema.Host{"a": route("a", "b", "")},
		map[string]schema.Backend{"b": r.backend("b", func(w http.ResponseWriter, q *http.Request) {
			if q.URL.Path == "/slow" {
				began <- struct{}{}
				<-slow
			}
			_, _ = io.WriteString(w, "done")
		})}, nil)
	dir := t.TempDir()
	serveFeed(t, r.feed, dir+"/proxy.sock")
	stop := r.run(dir)
	one, two := r.client(false), r.client(true)
	answers := make(chan error, 2)
	for _, c := range []*http.Client{one, two} {
		go func() {
			_, body, err := fetch(c, "http://a/slow")
			if body != "done" {
				err = fmt.Errorf("%q, %w", body, err)
			}
			answers <- err
		}()
		<-began
	}
	dial := func() (net.Conn, *bufio.Reader) {
		c, err := net.Dial("tcp", r.plain.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(15 * time.Second))
		return c, bufio.NewReader(c)
	}
	ask := func(c net.Conn, br *bufio.Reader) *http.Response {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(resp.Body)
		return resp
	}
	idle, idleReader := dial()
	if ask(idle, idleReader).Close {
		t.Error("a connection ends after its first request")
	}
	fresh, freshReader := dial()
	f := r.frames()
	if err := f.request(1, ":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/"); err != nil ||
		f.answer(1) != "200" {
		t.Fatalf("HTTP/2: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		stop()
	}()
	var away bool
	for !away { // the client of HTTP/2 is told
		fr, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("no GOAWAY: %v", err)
		}
		g, ok := fr.(*http2.GoAwayFrame)
		away = ok && g.ErrCode == http2.ErrCodeNo
	}
	if resp := ask(idle, idleReader); !resp.Close || resp.StatusCode != 200 {
		t.Errorf("an idle connection's last request: %s, close %v", resp.Status, resp.Close)
	}
	if resp := ask(fresh, freshReader); !resp.Close || resp.StatusCode != 200 {
		t.Errorf("a fresh connection's request: %s, close %v", resp.Status, resp.Close)
	}
	select {
	case <-ended:
		t.Error("it ended with exchanges that run")
	case <-time.After(100 * time.Millisecond):
	}
	close(slow)
	for range 2 {
		if err := <-answers; err != nil {
			t.Errorf("an exchange that ran: %v", err)
		}
	}
	select {
	case <-ended:
	case <-time.After(8 * time.Second):
		t.Error("it does not end though nothing is left")
	}
}

// Connections are bounded in all and for each client; a closed one makes room.
func TestConnectionLimits(t *testing.T) {
	r := newRig(t)
	r.settings = schema.Settings{Connections: 30, ConnectionsPerClient: 10}
	r.feed.Configure(r.settings)
	r.up(map[string]schema.Host{"a": route("a", "b", "")}, map[string]schema.Backend{"b": r.backend("b", says("b"))},
		nil)
	dial := func(from string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
		c, err := d.Dial("tcp", r.plain.String())
		if errors.Is(err, syscall.ECONNRESET) {
			return nil // before the handshake was seen to end
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		return c
	}
	serves := func(c net.Conn) bool {
		if c == nil {
			return false
		}
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			return false
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		return err == nil && resp.StatusCode == 200
	}
	flood := func(from string, n int) (open []net.Conn) {
		for range n {
			if c := dial(from); serves(c) {
				open = append(open, c)
			}
		}
		return open
	}
	first := flood("127.0.0.2", 40)
	if len(first) != 10 {
		t.Errorf("one client has %d connections, 10 are allowed", len(first))
	}
	second, third := flood("127.0.0.3", 10), flood("127.0.0.4", 10)
	if len(second) != 10 || len(third) != 10 {
		t.Errorf("others have %d and %d", len(second), len(third))
	}
	if n := len(flood("127.0.0.5", 5)); n != 5 { // idle ones of the others end for them
		t.Errorf("another client gets %d of 5", n)
	}
	for _, c := range append(first, second...) {
		c.Close()
	}
	testnet.Eventually(t, 5*time.Second, func() error {
		if !serves(dial("127.0.0.2")) {
			return errors.New("no room is made")
		}
		return nil
	})
}

// Only peers that must speak the PROXY protocol may speak it.
func TestPROXYProtocol(t *testing.T) {
	r := newRig(t)
	r.settings = schema.Settings{ProxyProtocol: []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")}}
	r.feed.Configure(r.settings)
	r.up(map[string]schema.Host{"a": route("a", "b", "c")},
		map[string]schema.Backend{"b": r.backend("b", func(w http.ResponseWriter, q *http.Request) {
			_, _ = io.WriteString(w, q.Header.Get("X-Real-Ip"))
		})}, map[string]schema.Certificate{"c": r.ca.issue("c", "a")})
	ask := func(from, header string, encrypted bool) string {
		to := r.plain
		if encrypted {
			to = r.https
		}
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
		c, err := d.Dial("tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(c, header)
		if encrypted {
			c = tls.Client(c, &tls.Config{ServerName: "a", RootCAs: r.ca.pool})
		}
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return "closed"
		}
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 200 {
			return strconv.Itoa(resp.StatusCode)
		}
		return string(body)
	}
	v2 := func(command, family byte, addrs []byte, tlv string) string {
		b := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x20|command, family)
		b = binary.BigEndian.AppendUint16(b, uint16(len(addrs)+len(tlv)))
		return string(append(append(b, addrs...), tlv...))
	}
	four := []byte{192, 0, 2, 1, 192, 0, 2, 2, 0x30, 0x39, 0, 80}
	six := append(append(netip.MustParseAddr("2001:db8::1").AsSlice(), netip.MustParseAddr("2001:db8::2").AsSlice()...),
		0x30, 0x39, 0, 80)
	const lb, other = "127.0.0.9", "127.0.0.8"
	for _, x := range []struct{ from, header, want string }{
		{lb, "PROXY TCP4 192.0.2.1 192.0.2.2 12345 80\r\n", "192.0.2.1"},
		{lb, "PROXY TCP6 2001:db8::1 2001:db8::2 12345 80\r\n", "2001:db8::1"},
		{lb, "PROXY UNKNOWN\r\n", lb}, {lb, "PROXY UNKNOWN whatever it is\r\n", lb},
		{lb, v2(1, 0x11, four, ""), "192.0.2.1"}, {lb, v2(1, 0x11, four, "\x04\x00\x03abc"), "192.0.2.1"},
		{lb, v2(1, 0x21, six, ""), "2001:db8::1"},
		{lb, v2(0, 0, nil, ""), lb}, {lb, v2(0, 0x11, four, ""), lb}, {lb, v2(1, 0, nil, ""), lb},
		// None where one must be, and bad ones.
		{lb, "", "closed"}, {lb, "PROXY TCP4 192.0.2.1 192.0.2.2 12345\r\n", "closed"},
		{lb, "PROXY TCP4 2001:db8::1 192.0.2.2 1 2\r\n", "closed"},
		{lb, "PROXY TCP4 192.0.2.1 192.0.2.2 123456 80\r\n", "closed"}, {lb, "PROXY TCP4 a b c d\r\n", "closed"},
		{lb, "PROXY TCP4 " + strings.Repeat("1", 200) + "\r\n", "closed"},
		{lb, "PROXY UDP4 192.0.2.1 192.0.2.2 12345 80\r\n", "closed"}, {lb, v2(1, 0x12, four, ""), "closed"},
		{lb, v2(1, 0x11, four[:8], ""), "closed"}, {lb, v2(2, 0x11, four, ""), "closed"},
		{lb, v2(1, 0x11, four, strings.Repeat("x", 5000)), "closed"},
		{lb, strings.Replace(v2(1, 0x11, four, ""), "\x21\x11", "\x11\x11", 1), "closed"},
		// From a peer that is not trusted it is no request.
		{other, "PROXY TCP4 192.0.2.1 192.0.2.2 12345 80\r\n", "400"}, {other, v2(1, 0x11, four, ""), "400"},
		{other, "", other},
	} {
		if got := ask(x.from, x.header, false); got != x.want {
			t.Errorf("%s, %q: %s, want %s", x.from, x.header, got, x.want)
		}
		want := x.want
		if want == "400" {
			want = "closed" // no handshake
		}
		if got := ask(x.from, x.header, true); got != want {
			t.Errorf("TLS, %s, %q: %s, want %s", x.from, x.header, got, want)
		}
	}
}
