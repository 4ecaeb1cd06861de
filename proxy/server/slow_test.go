package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
)

// serve starts a server with short times; it returns its address.
func serve(t *testing.T, handle func(context.Context, message.Downstream)) string {
	t.Helper()
	certs, err := NewCertificates()
	if err != nil {
		t.Fatal(err)
	}
	lim := h1.DefaultLimits()
	lim.Body, lim.Write, lim.HeadTime, lim.Idle = 300*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond,
		600*time.Millisecond
	s := New(Options{Certificates: certs, Handle: handle, HTTP1: lim, Log: slog.New(slog.DiscardHandler)})
	f, err := feed.OpenSocket(schema.Socket{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	k := schema.Socket{Addr: netip.MustParseAddrPort(l.Addr().String())}
	if err := s.Listen(k, f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.Drain(ctx, 0)
	})
	return k.Addr.String()
}

// open begins an HTTP/2 connection with a request whose body is still to come.
func open(t *testing.T, addr string, settings ...http2.Setting) *http2.Framer {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	fr := http2.NewFramer(c, c)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := fr.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	var head writer
	enc := hpack.NewEncoder(&head)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	return fr
}

type writer []byte

func (w *writer) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}

// reset waits until the stream is.
func reset(t *testing.T, fr *http2.Framer) {
	t.Helper()
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatalf("no reset: %v", err)
		}
		if _, ok := f.(*http2.RSTStreamFrame); ok {
			return
		}
	}
}

// A client of HTTP/2 that sends no more of a body, or takes no more of a response, loses
// its stream; what the proxy does waits no longer for it.
func TestSlowStreams(t *testing.T) {
	errs := make(chan error, 1)
	fr := open(t, serve(t, func(_ context.Context, d message.Downstream) {
		_, err := io.ReadAll(d)
		errs <- err
	}))
	if err := fr.WriteData(1, false, []byte("a part")); err != nil {
		t.Fatal(err)
	}
	if err := <-errs; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading a body that stops: %v, want a time-out", err)
	}
	reset(t, fr)

	fr = open(t, serve(t, func(_ context.Context, d message.Downstream) {
		err := d.Respond(&message.Response{Status: 200, Length: message.Unknown})
		for part := make([]byte, 16<<10); err == nil; {
			_, err = d.Write(part)
		}
		errs <- err
	}), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000})
	if err := <-errs; err == nil {
		t.Error("writing to a client that takes nothing ends without error")
	}
	reset(t, fr)
}

// A silent response is no slow client: it may be silent for longer than a write may take.
func TestSilentStreamsLive(t *testing.T) {
	fr := open(t, serve(t, func(_ context.Context, d message.Downstream) {
		_ = d.Respond(&message.Response{Status: 200, Length: message.Unknown})
		_, _ = d.Write([]byte("one"))
		_ = d.Flush()
		time.Sleep(800 * time.Millisecond) // longer than any bound
		_, _ = d.Write([]byte("two"))
		_ = d.Finish(nil)
	}))
	got := ""
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		if d, ok := f.(*http2.DataFrame); ok {
			got += string(d.Data())
			if d.StreamEnded() {
				break
			}
		}
		if r, ok := f.(*http2.RSTStreamFrame); ok && got != "onetwo" {
			t.Fatalf("after %q: reset with %s", got, r.ErrCode)
		}
	}
	if got != "onetwo" {
		t.Errorf("%q", got)
	}
}

// Streams are bounded over all connections of a client; others are answered.
func TestStreamsOfAClientAreBounded(t *testing.T) {
	hold := make(chan struct{})
	held := make(chan struct{}, 2*clientStreams)
	addr := serve(t, func(_ context.Context, d message.Downstream) {
		held <- struct{}{}
		<-hold
		_ = d.Respond(&message.Response{Status: 204})
	})
	t.Cleanup(func() { close(hold) })
	request := func(c *http.Client, out chan<- int) {
		resp, err := c.Get("http://" + addr + "/")
		if err != nil {
			return
		}
		resp.Body.Close()
		out <- resp.StatusCode
	}
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	statuses := make(chan int, 2*clientStreams)
	from := func(ip string, n int) {
		for n > 0 {
			tr := &http.Transport{Protocols: &p,
				DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).DialContext}
			t.Cleanup(tr.CloseIdleConnections)
			for range min(n, 100) {
				go request(&http.Client{Transport: tr}, statuses)
			}
			n -= 100
		}
	}
	from("127.0.0.2", clientStreams+50)
	for range 50 {
		if s := <-statuses; s != 503 {
			t.Errorf("above the bound: %d", s)
		}
	}
	for range clientStreams {
		<-held
	}
	from("127.0.0.3", 1)
	select {
	case <-held:
	case s := <-statuses:
		t.Errorf("another client gets %d", s)
	case <-time.After(30 * time.Second):
		t.Error("another client gets nothing")
	}
}

// Connections that begin nothing, or stop within a preface, are closed.
func TestSilentConnectionsEnd(t *testing.T) {
	addr := serve(t, func(context.Context, message.Downstream) {})
	for _, first := range []string{"", "PRI * HT"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.WriteString(c, first); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if b, err := io.ReadAll(c); err != nil {
			t.Errorf("%q: %q, %v after %s", first, b, err, time.Since(start))
		}
	}
}
