package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/message"
)

// connect2 begins a connection of HTTP/2.
func connect2(t *testing.T, ip, addr string, settings ...http2.Setting) (net.Conn, *http2.Framer) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: 10 * time.Second}
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	fr := http2.NewFramer(c, c)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := fr.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	return c, fr
}

// heap is the memory in use after a collection.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse)
}

// Frames that cost a client next to nothing end its connection, however they are mixed, and hold no memory.
// Those that the server of x/net bounds itself may go on.
func TestFloodsOfFramesAreBounded(t *testing.T) {
	const most = 200000
	head := http2.HeadersFrameParam{StreamID: 1, BlockFragment: headOf("POST", "/"), EndHeaders: true}
	part := http2.HeadersFrameParam{StreamID: 1, BlockFragment: headOf("POST", "/")}
	for _, c := range []struct {
		name  string
		begin http2.HeadersFrameParam
		frame func(fr *http2.Framer, i uint32) error
		ends  bool
	}{
		{"empty DATA", head, func(fr *http2.Framer, _ uint32) error { return fr.WriteData(1, false, nil) }, true},
		{"empty CONTINUATION", part, func(fr *http2.Framer, _ uint32) error {
			return fr.WriteContinuation(1, false, nil)
		}, true},
		{"SETTINGS", head, func(fr *http2.Framer, _ uint32) error { return fr.WriteSettings() }, true},
		{"PRIORITY", head, func(fr *http2.Framer, i uint32) error {
			return fr.WritePriority(2*i+3, http2.PriorityParam{Weight: 9})
		}, true},
		{"unknown", head, func(fr *http2.Framer, i uint32) error { return fr.WriteRawFrame(200, 0, 1, nil) }, true},
		{"mixed", head, func(fr *http2.Framer, i uint32) error {
			if i%2 == 0 {
				return fr.WritePing(false, [8]byte{})
			}
			return fr.WriteData(1, false, nil)
		}, true},
		{"PING", head, func(fr *http2.Framer, _ uint32) error { return fr.WritePing(false, [8]byte{}) }, false},
		{"WINDOW_UPDATE", head, func(fr *http2.Framer, _ uint32) error { return fr.WriteWindowUpdate(1, 1) }, false},
		{"resets", head, func(fr *http2.Framer, i uint32) error {
			p := head
			p.StreamID = 2*i + 3
			if err := fr.WriteHeaders(p); err != nil {
				return err
			}
			return fr.WriteRSTStream(p.StreamID, http2.ErrCodeCancel)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newSmall(t, 64, 0)
			before := heap()
			conn, fr := connect2(t, "127.0.2.1", m.plain)
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			err := fr.WriteHeaders(c.begin)
			sent := 0
			for end := time.Now().Add(5 * time.Second); err == nil && sent < most && time.Now().Before(end); sent++ {
				err = c.frame(fr, uint32(sent))
			}
			t.Logf("%d frames: %v", sent, err)
			if c.ends {
				testnet.Eventually(t, 20*time.Second, func() error {
					m.mu.Lock()
					defer m.mu.Unlock()
					if m.reasons[Flood] != 1 {
						return fmt.Errorf("not ended: %v", m.reasons)
					}
					return nil
				})
			}
			if grown := heap() - before; grown > 16<<20 {
				t.Errorf("%d MiB more", grown>>20)
			}
			if n := m.h2.streams.total(); n > maxStreams {
				t.Errorf("%d streams", n)
			}
			if err := m.get("127.0.3.1", "/"); err != nil {
				t.Error(err)
			}
		})
	}
}

// Streams that send and take as usual are no flood.
func TestManyFramesAreNoFlood(t *testing.T) {
	m := newSmall(t, 64, 0)
	_, fr := connect2(t, "127.0.2.1", m.plain)
	for i := range uint32(30) {
		p := http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: headOf("POST", "/"), EndHeaders: true}
		err := fr.WriteHeaders(p)
		for range 100 {
			err = errors.Join(err, fr.WriteData(p.StreamID, false, []byte("x")), fr.WriteData(p.StreamID, false, nil),
				fr.WritePing(false, [8]byte{}))
		}
		if err = errors.Join(err, fr.WriteData(p.StreamID, true, nil)); err != nil {
			t.Fatal(i, err)
		}
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatal(i, err)
			}
			if f.Header().StreamID == p.StreamID && f.Header().Type == http2.FrameHeaders {
				break
			}
		}
	}
}

// Clients that stall all streams that they may have leave some for others, whether they are one or many, and
// what they hold is bounded.
func TestStalledStreamsLeaveRoom(t *testing.T) {
	for _, sources := range []int{1, 8, 64} {
		t.Run(fmt.Sprint(sources), func(t *testing.T) {
			part := make([]byte, 64<<10)
			m := newSmall(t, 4096, 0)
			m.h2.s.handle = func(_ context.Context, d message.Downstream) {
				err := d.Respond(&message.Response{Status: 200, Length: message.Unknown})
				for n := 0; err == nil && (n < 16 || string(d.Request().Target) == "/large"); n++ {
					_, err = d.Write(part)
				}
				if err == nil {
					_ = d.Finish(nil)
				}
			}
			before := heap()
			conns := 2 * allStreams / maxStreams
			for i := range conns {
				conn, fr := connect2(t, fmt.Sprintf("127.0.2.%d", 1+i%sources), m.plain,
					http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
				go func() { _, _ = io.Copy(io.Discard, conn) }()
				for k := range uint32(maxStreams) {
					p := http2.HeadersFrameParam{StreamID: 2*k + 1, EndStream: true, EndHeaders: true}
					p.BlockFragment = headOf("GET", "/large")
					if err := fr.WriteHeaders(p); err != nil {
						t.Fatal(i, err)
					}
				}
			}
			least := min(clientStreams, allStreams/2)
			testnet.Eventually(t, 30*time.Second, func() error {
				if n := m.h2.streams.total(); n < least {
					return fmt.Errorf("%d streams", n)
				}
				return nil
			})
			var p http.Protocols
			p.SetUnencryptedHTTP2(true)
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.3.1")}}
			tr := &http.Transport{Protocols: &p, DialContext: d.DialContext}
			t.Cleanup(tr.CloseIdleConnections)
			client := &http.Client{Transport: tr, Timeout: 30 * time.Second}
			var wg sync.WaitGroup
			for range 20 { // at once, as a browser's
				wg.Go(func() {
					resp, err := client.Get("http://" + m.plain + "/")
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					if n, err := io.Copy(io.Discard, resp.Body); resp.StatusCode != 200 || n != 1<<20 || err != nil {
						t.Error(resp.Status, n, err)
					}
				})
			}
			wg.Wait()
			if n := m.h2.streams.total(); n > allStreams+allStreams/leavingShare {
				t.Errorf("%d streams", n)
			}
			if grown := heap() - before; grown > 128<<20 {
				t.Errorf("%d MiB more", grown>>20)
			}
		})
	}
}
