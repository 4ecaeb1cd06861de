package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// Clients that are slow with a head, a body or the answer are let go.
func TestSlowClients(t *testing.T) {
	quick := func(r *rig) {
		r.limits.HeadTime, r.limits.Body, r.limits.Idle, r.limits.Write = 200*time.Millisecond, 200*time.Millisecond,
			400*time.Millisecond, 300*time.Millisecond
	}
	var whole atomic.Int64
	h := func(w http.ResponseWriter, req *http.Request) {
		if _, err := io.Copy(io.Discard, req.Body); err == nil {
			whole.Add(1)
		}
		if req.URL.Path == "/large" {
			_, _ = w.Write(make([]byte, 64<<20))
		}
	}
	drip := func(c *conn, text string) { // a byte each 20 ms, until the proxy has enough
		for i := range len(text) {
			if _, err := c.Write([]byte{text[i]}); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	t.Run("head", func(t *testing.T) {
		r := newRig(t, quick, handler(t, h))
		c := r.dial()
		go drip(c, "GET / HTTP/1.1\r\nHost: a\r\nX: "+strings.Repeat("y", 100))
		if resp, _ := c.response("GET"); resp.StatusCode != 408 || !resp.Close {
			t.Error(resp.Status)
		}
		c.ended()
	})
	t.Run("body", func(t *testing.T) {
		r := newRig(t, quick, handler(t, h))
		c := r.dial()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhello")
		if resp, _ := c.response("GET"); resp.StatusCode != 408 {
			t.Error(resp.Status, r.told())
		}
		c.ended()
		if whole.Load() != 0 {
			t.Error("the endpoint takes it for whole")
		}
	})
	t.Run("rate of a body", func(t *testing.T) {
		r := newRig(t, func(r *rig) { quick(r); r.limits.BodyRate = 1000 }, handler(t, h))
		c := r.dial()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
		go drip(c, strings.Repeat("x", 1000)) // 50 bytes a second
		began := time.Now()
		if resp, _ := c.response("GET"); resp.StatusCode != 408 {
			t.Error(resp.Status, r.told())
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("after %v", took)
		}
		c.ended()
	})
	t.Run("idle", func(t *testing.T) {
		r := newRig(t, quick, handler(t, h))
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		c.response("GET")
		began := time.Now()
		c.ended()
		if took := time.Since(began); took > 3*time.Second {
			t.Error(took)
		}
	})
	t.Run("answer", func(t *testing.T) {
		r := newRig(t, quick, handler(t, h))
		c := r.dial()
		_ = c.Conn.(*net.TCPConn).SetReadBuffer(4096)
		c.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
		if rec := r.record(0); rec.Err == nil || rec.Sent >= 64<<20 {
			t.Errorf("%+v", rec)
		}
	})
}

// A flood of connections that send large heads without an end is held in bounds: each costs
// no more than its head's limit and a goroutine.
func TestMemoryUnderAFloodOfHeads(t *testing.T) {
	const flood = 1000
	r := newRig(t, func(r *rig) { r.limits.Head = 16 << 10 }, handler(t, echo))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	head := "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 12<<10)
	var conns []net.Conn
	for range flood {
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, head); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for end := time.Now().Add(5 * time.Second); r.s.Conns() < flood && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	c := r.dial()
	c.send("GET /well HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, _ := c.response("GET"); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc+after.StackInuse) - int64(before.HeapAlloc+before.StackInuse)) / flood
	t.Logf("%d bytes for each connection with 12 KB of a head", each)
	if each > 48<<10 {
		t.Errorf("%d bytes for each connection", each)
	}
	for _, c := range conns {
		c.Close()
	}
	for end := time.Now().Add(5 * time.Second); r.s.Conns() > 10 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := r.s.Conns(); n > 10 {
		t.Errorf("%d connections are left", n)
	}
}

// An idle connection costs little.
func TestMemoryOfIdleConnections(t *testing.T) {
	const idle = 1000
	r := newRig(t, nil, handler(t, echo))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range idle {
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for end := time.Now().Add(5 * time.Second); r.s.Conns() < idle && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc+after.StackInuse) - int64(before.HeapAlloc+before.StackInuse)) / idle
	t.Logf("%d bytes for each idle connection", each)
	if each > 12<<10 {
		t.Errorf("%d bytes for each idle connection", each)
	}
}

// A drained server ends what it has begun; an idle connection gets one more answer, which
// says that it ends.
func TestDrain(t *testing.T) {
	wait := make(chan struct{})
	r := newRig(t, nil, handler(t, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/slow" {
			<-wait
		}
		_, _ = io.WriteString(w, "done")
	}))
	idle, late, slow := r.dial(), r.dial(), r.dial()
	for _, c := range []*conn{idle, late} {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		c.response("GET")
	}
	slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	for r.active() == 0 {
		time.Sleep(time.Millisecond)
	}
	r.s.Drain(500 * time.Millisecond)
	late.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, body := late.response("GET"); body != "done" || !resp.Close {
		t.Errorf("%q, close %v", body, resp.Close)
	}
	late.ended()
	idle.ended()
	close(wait)
	if resp, body := slow.response("GET"); body != "done" || !resp.Close {
		t.Errorf("%q, close %v", body, resp.Close)
	}
	slow.ended()
	for end := time.Now().Add(5 * time.Second); r.s.Conns() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := r.s.Conns(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

// However many clients read slowly, the buffers for them are bounded.
func TestBuffersAreBounded(t *testing.T) {
	var b buffers
	var all []*[]byte
	total := 0
	for range 5000 {
		p := b.take()
		total += len(*p)
		all = append(all, p)
	}
	if most := mostLarge*largeBuffer + 5000*smallBuffer; total > most {
		t.Errorf("%d bytes for 5000, most %d", total, most)
	}
	for _, p := range all {
		b.give(p)
	}
	if n := b.used.Load(); n != 0 {
		t.Errorf("afterwards %d are in use", n)
	}
	if p := b.take(); len(*p) != largeBuffer {
		t.Errorf("afterwards %d bytes", len(*p))
	}
}

// Close ends what a drain could not: an exchange whose endpoint does not answer.
func TestClose(t *testing.T) {
	r := newRig(t, func(r *rig) { r.p.Timeouts.Read = time.Minute },
		raw(t, func(_ net.Conn, br *bufio.Reader) { _, _ = io.Copy(io.Discard, br) }))
	idle, busy := r.dial(), r.dial()
	busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	for r.active() == 0 || r.s.Conns() < 2 {
		time.Sleep(time.Millisecond)
	}
	r.s.Close()
	idle.ended()
	busy.ended()
}

func (r *rig) active() (n int64) {
	for _, e := range r.p.Upstreams.Lookup("b").All() {
		n += e.Active()
	}
	return n
}

func TestTunnelsAreCounted(t *testing.T) {
	ws := answer(t, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := newRig(t, nil, ws)
	open := func() *conn {
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		if _, err := readHead(c.br); err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := open(), open()
	for want, end := range []*conn{b, a} {
		testnet.Eventually(t, 10*time.Second, func() error {
			if n := r.p.Tunnels(); n != 2-want {
				return fmt.Errorf("%d tunnels are counted, want %d", n, 2-want)
			}
			return nil
		})
		end.Close()
	}
	testnet.Eventually(t, 10*time.Second, func() error {
		if n := r.p.Tunnels(); n != 0 {
			return fmt.Errorf("%d tunnels are counted, want 0", n)
		}
		return nil
	})
}

// In the steady state an exchange allocates nothing.
func TestExchangesAllocateNothing(t *testing.T) {
	r := newRig(t, func(r *rig) { r.p.Observe = func(*Record) {} }, quietEndpoint(t))
	r.p.SetTable(table.Make(nil, map[string]*schema.Host{
		"shop.example": {Name: "shop.example", Paths: []schema.Path{{Kind: schema.Prefix, Path: "/a", Backend: "b"}}},
	}))
	c := r.dial()
	buf := make([]byte, 4096)
	for _, x := range []struct{ name, request string }{
		{"GET", "GET /a/b?c=d HTTP/1.1\r\nHost: Shop.example\r\nUser-Agent: x\r\nAccept: */*\r\nX-Forwarded-For: " +
			"1.2.3.4\r\n\r\n"},
		{"POST", "POST /a/b HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\n\r\nhello"},
	} {
		request := []byte(x.request)
		one := func() {
			if _, err := c.Write(request); err != nil {
				t.Fatal(err)
			}
			n, err := c.Read(buf)
			if err != nil || n < 12 || string(buf[9:12]) != "200" {
				t.Fatalf("%q %v", buf[:n], err)
			}
		}
		for range 100 {
			one()
		}
		if n := testing.AllocsPerRun(2000, one); n > allocationsAllowed {
			t.Errorf("%s: %v allocations for an exchange", x.name, n)
		}
	}
}

// quietEndpoint answers and allocates nothing itself.
func quietEndpoint(t testing.TB) (addr netip.AddrPort) {
	l := listen(t)
	text := []byte(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: 1024\r\nContent-Type: text/plain\r\n\r\n%s",
		strings.Repeat("x", 1024)))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					if _, err := c.Write(text); err != nil {
						return
					}
				}
			}()
		}
	}()
	return addrOf(l)
}

// A client that ends its side with its last request gets the answer, and the end.
func TestClientsThatEndTheirSide(t *testing.T) {
	r := newRig(t, nil, handler(t, echo))
	for i := range 50 {
		c := r.dial()
		began := time.Now()
		c.send("GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i)
		_ = c.Conn.(*net.TCPConn).CloseWrite()
		if _, body := c.response("GET"); body != fmt.Sprintf("GET a /%d|127.0.0.1|", i) {
			t.Fatal(body)
		}
		c.ended()
		if took := time.Since(began); took > 5*time.Second {
			t.Fatalf("%d: ended after %v", i, took)
		}
	}
}

// A WebSocket that is silent costs its two connections and goroutines, and no buffers.
func TestMemoryOfSilentTunnels(t *testing.T) {
	const silent = 300
	ws := answer(t, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := newRig(t, nil, ws)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range silent {
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c,
			"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(5 * time.Second); r.p.Tunnels() < silent && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := r.p.Tunnels(); n != silent {
		t.Fatalf("%d tunnels", n)
	}
	runtime.GC()
	runtime.GC() // pools live through one
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc+after.StackInuse) - int64(before.HeapAlloc+before.StackInuse)) / silent
	t.Logf("%d bytes for each tunnel, with its endpoint's side in this process", each)
	if each > tunnelBytes {
		t.Errorf("%d bytes for each tunnel", each)
	}
}
