package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
)

// small is a server with few connections, at a plain and at a TLS socket.
type small struct {
	*Server
	t          *testing.T
	plain, tls string
	hold       chan struct{} // /hold is answered when it is closed
	holding    atomic.Int64
	mu         sync.Mutex
	reasons    map[Refusal]int
}

func newSmall(t *testing.T, connections, perClient int) *small {
	t.Helper()
	certs, err := NewCertificates()
	if err != nil {
		t.Fatal(err)
	}
	m := &small{t: t, hold: make(chan struct{}), reasons: map[Refusal]int{}}
	m.Server = New(Options{Certificates: certs, HTTP1: h1.DefaultLimits(), Log: slog.New(slog.DiscardHandler),
		Handle: m.handle, Refused: func(r Refusal) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.reasons[r]++
		}})
	m.SetLimits(Limits{Connections: connections, PerClient: perClient})
	m.plain, m.tls = m.listen(false), m.listen(true)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		m.Drain(ctx, 0)
		// Whoever came and went was counted once each way, however both met.
		testnet.Eventually(t, 10*time.Second, func() error {
			if n := m.Waiting(); n != 0 {
				return fmt.Errorf("%d connections wait after all were closed", n)
			}
			return nil
		})
	})
	return m
}

// why counts the refusals so far.
func (m *small) why() map[Refusal]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.reasons)
}

func (m *small) listen(encrypted bool) string {
	m.t.Helper()
	f, err := feed.OpenSocket(schema.Socket{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		m.t.Fatal(err)
	}
	defer l.Close()
	k := schema.Socket{Addr: netip.MustParseAddrPort(l.Addr().String()), TLS: encrypted}
	if err := m.Listen(k, f); err != nil {
		m.t.Fatal(err)
	}
	return k.Addr.String()
}

func (m *small) handle(_ context.Context, d message.Downstream) {
	if string(d.Request().Target) == "/hold" {
		m.holding.Add(1)
		<-m.hold
	}
	if _, err := io.Copy(io.Discard, d); err != nil {
		return
	}
	if string(d.Request().Target) == "/large" {
		_ = d.Respond(&message.Response{Status: 200, Length: message.Unknown})
		for _, err := d.Write(make([]byte, 64<<10)); err == nil; {
			_, err = d.Write(make([]byte, 64<<10))
		}
		return
	}
	_ = d.Respond(&message.Response{Status: 204})
}

// from dials from an address of this host, with a small window: what hundreds of clients do not take is else a
// gigabyte of the kernel's, which then has them take more for as long as it is short of memory.
func (m *small) from(ip, to string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: 10 * time.Second, Control: smallWindow}
	c, err := d.DialContext(m.t.Context(), "tcp", to)
	if err != nil {
		return nil, err
	}
	m.t.Cleanup(func() { c.Close() })
	return c, c.SetDeadline(time.Now().Add(40 * time.Second))
}

func smallWindow(_, _ string, c syscall.RawConn) (err error) {
	e := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 16<<10)
	})
	if e != nil {
		return e
	}
	return err
}

// holders are the ways to hold a connection.
var holders = map[string]func(m *small, ip string) error{
	"silent": func(m *small, ip string) error {
		_, err := m.from(ip, m.plain)
		return err
	},
	"idle":                sends("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
	"a head in part":      sends("GET / HTTP/1.1\r\nHost: a\r\nX: y", false),
	"a preface in part":   sends("PRI * HTTP", false),
	"a body in part":      sends("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx", false),
	"chunks in part":      sends("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nx", false),
	"an answer not taken": sends("GET /large HTTP/1.1\r\nHost: a\r\n\r\n", false),
	"a TLS handshake in part": func(m *small, ip string) error {
		c, err := m.from(ip, m.tls)
		if err == nil {
			_, err = c.Write([]byte{22, 3, 1, 2, 0, 1, 0})
		}
		return err
	},
	"idle by TLS": func(m *small, ip string) error {
		c, err := m.from(ip, m.tls)
		if err == nil {
			err = tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake()
		}
		return err
	},
	"an HTTP/2 head in part": func(m *small, ip string) error {
		c, err := m.from(ip, m.plain)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
			return err
		}
		fr := http2.NewFramer(c, c)
		if err := fr.WriteSettings(); err != nil {
			return err
		}
		return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
	},
	"an HTTP/2 body in part":   sends2("POST", "/", false, 1),
	"HTTP/2 answers not taken": sends2("GET", "/large", true, 3),
	"idle by HTTP/2": func(m *small, ip string) error {
		c, err := m.from(ip, m.plain)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
			return err
		}
		return http2.NewFramer(c, c).WriteSettings()
	},
}

func sends(text string, answered bool) func(m *small, ip string) error {
	return func(m *small, ip string) error {
		c, err := m.from(ip, m.plain)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(c, text); err != nil || !answered {
			return err
		}
		_, err = http.ReadResponse(bufio.NewReader(c), nil)
		return err
	}
}

// sends2 begins requests by HTTP/2 on one connection, and takes nothing of their answers.
func sends2(method, path string, whole bool, streams int) func(m *small, ip string) error {
	return func(m *small, ip string) error {
		c, err := m.from(ip, m.plain)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
			return err
		}
		fr := http2.NewFramer(c, c)
		if err := fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
			return err
		}
		for i := range streams {
			p := http2.HeadersFrameParam{StreamID: uint32(2*i + 1), EndStream: whole, EndHeaders: true}
			p.BlockFragment = headOf(method, path)
			if err := fr.WriteHeaders(p); err != nil {
				return err
			}
		}
		return nil
	}
}

// headOf is a request's header block, which needs no table.
func headOf(method, path string) []byte {
	var head writer
	enc := hpack.NewEncoder(&head)
	enc.SetMaxDynamicTableSize(0)
	for _, f := range [][2]string{{":method", method}, {":scheme", "http"}, {":authority", "a"}, {":path", path}} {
		_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return head
}

// phases are those of all connections, with their ages, and what was refused.
func (m *small) phases() string {
	m.Server.mu.Lock()
	list := map[string]int{}
	for k := range m.conns {
		phase, since := k.state.Look()
		list[fmt.Sprintf("phase %d for %d s", phase, time.Since(since)/time.Second)]++
	}
	n := m.Server.counts.total()
	m.Server.mu.Unlock()
	return fmt.Sprintf("%d: %v; %v", n, list, m.why())
}

// get is a well-behaved client's request, on a connection of its own.
func (m *small) get(ip, path string) error {
	c, err := m.from(ip, m.plain)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err == nil && resp.StatusCode != 204 {
		err = errors.New(resp.Status)
	}
	return err
}

// However few or many clients hold all connections, and by whatever they hold them, one that asks and
// goes is served.
func TestAFullServerServesAnotherClient(t *testing.T) {
	const most = 64
	for name, hold := range holders {
		for _, sources := range []int{1, 4, most} {
			t.Run(fmt.Sprintf("%s from %d", name, sources), func(t *testing.T) {
				t.Parallel()
				m := newSmall(t, most, 0)
				for i := range 2 * most {
					if err := hold(m, fmt.Sprintf("127.0.2.%d", 1+i%sources)); err != nil && i < most/waitingShare {
						t.Fatal(i, err)
					}
				}
				// One in the midst of a request is ended once it has been slow for owingGrace. Before that, a free
				// place serves a client, and the next one finds none.
				testnet.Eventually(t, 30*time.Second, func() error {
					for i := range 6 {
						if err := m.get("127.0.3.1", "/"); err != nil {
							return fmt.Errorf("%d: %w; %s", i, err, m.phases())
						}
					}
					return nil
				})
				if n := m.Conns(); n > mostHeld(most) {
					t.Errorf("%d connections", n)
				}
				testnet.Eventually(t, 10*time.Second, func() error { // those that were ended go
					if n := m.Conns(); n > most {
						return fmt.Errorf("%d connections", n)
					}
					return nil
				})
			})
		}
	}
}

// An idle connection is ended before one in the midst of a request, and of the client with most
// connections before another's.
func TestWhoIsEvicted(t *testing.T) {
	const most = 64
	m := newSmall(t, most, 0)
	results := make(chan error, 3)
	for range 3 { // of the client that has most
		go func() { results <- m.get("127.0.2.1", "/hold") }()
	}
	testnet.Eventually(t, 10*time.Second, func() error {
		if n := m.holding.Load(); n != 3 {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	ask := func(c net.Conn) error {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			return err
		}
		_, err := http.ReadResponse(bufio.NewReader(c), nil)
		return err
	}
	var modest []net.Conn
	for i := range 4 { // idle for longer than all others
		c, err := m.from(fmt.Sprintf("127.0.4.%d", 1+i), m.plain)
		if err == nil {
			err = ask(c)
		}
		if err != nil {
			t.Fatal(err)
		}
		modest = append(modest, c)
	}
	for range most {
		if err := holders["idle"](m, "127.0.2.1"); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 30 {
		if err := m.get(fmt.Sprintf("127.0.3.%d", 1+i), "/"); err != nil {
			t.Fatal(i, err)
		}
	}
	for _, c := range modest {
		if err := ask(c); err != nil {
			t.Errorf("a client with one connection: %v", err)
		}
	}
	close(m.hold)
	for range 3 {
		if err := <-results; err != nil {
			t.Errorf("in the midst of a request: %v", err)
		}
	}
	if why := m.why(); why[EvictedBusy] > 0 || why[EvictedIdle] == 0 {
		t.Error(why)
	}
}

// Heads and handshakes that do not come are bounded below all connections, and the oldest end.
func TestWaitingConnectionsAreBounded(t *testing.T) {
	const most = 64
	for _, name := range []string{"a head in part", "a preface in part", "a TLS handshake in part",
		"an HTTP/2 head in part"} {
		m := newSmall(t, most, 0)
		for i := range most {
			if err := holders[name](m, fmt.Sprintf("127.0.2.%d", 1+i%8)); err != nil {
				t.Fatal(err)
			}
		}
		testnet.Eventually(t, 10*time.Second, func() error {
			why := m.why() // not with the server asked under the lock: it counts refusals under its own
			if n := m.Waiting(); n > most/waitingShare || n < most/waitingShare-1 ||
				why[EvictedWaiting] < most-most/waitingShare {
				return fmt.Errorf("%s: %d wait; %v", name, n, why)
			}
			return nil
		})
	}
}

// A client may send 16 KiB for a handshake, not the 64 KiB that crypto/tls would collect.
func TestHandshakesAreBounded(t *testing.T) {
	m := newSmall(t, 64, 0)
	c, err := m.from("127.0.0.1", m.tls)
	if err != nil {
		t.Fatal(err)
	}
	// A ClientHello of 60,000 bytes in records of 1,000.
	hello := append([]byte{1, 0, 0xea, 0x60}, make([]byte, 60000)...)
	sent := 0
	for len(hello) > 0 && err == nil {
		n := min(len(hello), 1000)
		_, err = c.Write(append([]byte{22, 3, 1, byte(n >> 8), byte(n)}, hello[:n]...))
		hello, sent = hello[n:], sent+n
		time.Sleep(5 * time.Millisecond)
	}
	if err == nil {
		t.Errorf("%d bytes were taken", sent)
	}
	var d net.Dialer
	if s, err := tls.DialWithDialer(&d, "tcp", m.tls, &tls.Config{InsecureSkipVerify: true}); err != nil {
		t.Error(err)
	} else if _, err := io.WriteString(s, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"+
		strings.Repeat("x", 100000)); err != nil {
		t.Error(err)
	} else if resp, err := http.ReadResponse(bufio.NewReader(s), nil); err != nil || resp.StatusCode != 204 {
		t.Error(resp, err)
	}
}

// Where a header block is open does not depend on how its bytes come.
func TestHeaderBlocks(t *testing.T) {
	var w writer
	fr := http2.NewFramer(&w, nil)
	marks := map[int]bool{} // an open block behind so many bytes
	w = append(w, http2.ClientPreface...)
	add := func(err error, open bool) {
		if err != nil {
			t.Fatal(err)
		}
		marks[len(w)] = open
	}
	add(fr.WriteSettings(), false)
	add(fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("abc"), EndHeaders: true}), false)
	add(fr.WriteData(1, false, make([]byte, 1000)), false)
	add(fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: []byte("abc")}), true)
	add(fr.WriteContinuation(3, false, []byte("d")), true)
	add(fr.WriteContinuation(3, true, nil), false)
	add(fr.WritePing(false, [8]byte{}), false)
	for piece := 1; piece < 200; piece++ {
		f := headerBlocks{skip: len(preface)}
		for at := 0; at < len(w); at += piece {
			end := min(at+piece, len(w))
			open := f.took(w[at:end])
			if want, ok := marks[end]; ok && open != want {
				t.Errorf("by %d, behind byte %d: open %v", piece, end, open)
			}
		}
	}
}
