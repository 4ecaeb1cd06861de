package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
)

// closed is an address without a listener.
func closed(t *testing.T) netip.AddrPort {
	l := listen(t)
	defer l.Close()
	return addrOf(l)
}

func reset(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

const okay = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func TestEndpointsThatFail(t *testing.T) {
	var asked atomic.Int64
	count := func(f func(net.Conn)) netip.AddrPort {
		return raw(t, func(c net.Conn, br *bufio.Reader) {
			if head, err := readHead(br); err == nil {
				asked.Add(1)
				if strings.Contains(head, "Content-Length: 5") {
					_, _ = io.ReadFull(br, make([]byte, 5))
				}
				f(c)
			}
		})
	}
	text := func(s string) netip.AddrPort { return count(func(c net.Conn) { _, _ = io.WriteString(c, s) }) }
	get, post := "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
	empty := "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
	for _, x := range []struct {
		name, request string
		endpoint      netip.AddrPort
		status        int // 0: the answer breaks off
		asked         int64
	}{
		{"nobody listens", get, closed(t), 502, 0},
		{"nobody listens, POST", post, closed(t), 502, 0},
		{"closes, GET is asked again", get, count(func(c net.Conn) {}), 502, 3},
		{"closes, POST is not", post, count(func(c net.Conn) {}), 502, 1},
		{"closes, nor one without a body", empty, count(func(c net.Conn) {}), 502, 1},
		{"resets, GET is asked again", get, count(reset), 502, 3},
		{"resets, POST is not", post, count(reset), 502, 1},
		{"hangs", get, count(func(net.Conn) { time.Sleep(3 * time.Second) }), 504, 1},
		{"hangs in the head", get, count(func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			time.Sleep(3 * time.Second)
		}), 504, 1},
		{"hangs in the body", get, count(func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
			time.Sleep(3 * time.Second)
		}), 0, 1},
		{"garbage", get, text("garbage\r\n\r\n"), 502, 1},
		{"SSH", get, text("SSH-2.0-OpenSSH\r\n"), 502, 1},
		{"two lengths", get, text("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!"), 502, 1},
		{"folded field", get, text("HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 2\r\n\r\nok"), 502, 1},
		{"a head without an end", get, text("HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+
			"\r\n", 100)), 502, 1},
		{"many interim answers", get, text(strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 100) + okay), 502, 1},
		{"breaks off in the head", get, text("HTTP/1.1 200 OK\r\nContent-Le"), 502, 1},
		{"breaks off in the body", get, text("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), 0, 1},
		{"breaks off in a chunk", get, text("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc"), 0, 1},
		{"breaks off before the last chunk", get,
			text("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"), 0, 1},
		{"a bad chunk", get, text("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n"), 0, 1},
		{"more than its length", get, text(okay + "more"), 200, 1},
		{"well", get, text(okay), 200, 1},
	} {
		t.Run(x.name, func(t *testing.T) {
			asked.Store(0)
			r := newRig(t, func(r *rig) {
				r.p.Timeouts.Read, r.settings.Failures = 30*time.Second, 100
				if strings.HasPrefix(x.name, "hangs") {
					r.p.Timeouts.Read = 200 * time.Millisecond
				}
			}, x.endpoint)
			c := r.dial()
			c.send("%s", x.request)
			resp, err := http.ReadResponse(c.br, nil)
			if err == nil && x.status == 0 {
				_, err = io.ReadAll(resp.Body)
			}
			switch {
			case x.status == 0 && err == nil:
				t.Error("the answer ends as if it were whole")
			case x.status != 0 && err != nil:
				t.Fatal(err, r.told())
			case x.status != 0 && resp.StatusCode != x.status:
				t.Errorf("%s, want %d; %s", resp.Status, x.status, r.told())
			}
			if n := asked.Load(); n != x.asked {
				t.Errorf("asked %d times, want %d", n, x.asked)
			}
		})
	}
}

// An endpoint that closes its idle connections costs no request, whatever the method.
func TestIdleConnectionsThatEndpointsClose(t *testing.T) {
	var conns atomic.Int64
	var mu sync.Mutex
	var open []net.Conn
	r := newRig(t, nil, raw(t, func(c net.Conn, br *bufio.Reader) {
		conns.Add(1)
		mu.Lock()
		open = append(open, c)
		mu.Unlock()
		for {
			head, err := readHead(br)
			if err != nil {
				return
			}
			if strings.HasPrefix(head, "POST") {
				_, _ = io.ReadFull(br, make([]byte, 5))
			}
			_, _ = io.WriteString(c, okay)
		}
	}))
	c := r.dial()
	for i := range 30 {
		c.send("%s", []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
			"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n"}[i%3])
		if resp, _ := c.response("GET"); resp.StatusCode != 200 {
			t.Fatalf("%d: %s; %s", i, resp.Status, r.told())
		}
		if i%2 == 0 { // every second one
			r.record(i)
			mu.Lock()
			for _, c := range open {
				if i%4 == 0 {
					reset(c)
				} else {
					c.Close()
				}
			}
			open = nil
			mu.Unlock()
		}
	}
	if n := conns.Load(); n != 16 { // the first, and one after each time
		t.Errorf("%d connections for 30 requests, want 16", n)
	}
	for i := range 30 {
		if rec := r.record(i); rec.Tries != 1 || rec.Err != nil { // what ended well is no failure
			t.Errorf("%d: %+v", i, rec)
		}
	}
}

// A dead endpoint among others costs no client an answer, and is soon ejected.
func TestDeadEndpointsAreEjected(t *testing.T) {
	bad, good := closed(t), answer(t, okay)
	r := newRig(t, func(r *rig) {
		r.settings.Eject, r.settings.SlowStart = time.Hour,
			0
		r.settings.EjectMost = time.Hour
	}, bad, good)
	c := r.dial()
	for i := range 200 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, _ := c.response("GET"); resp.StatusCode != 200 {
			t.Fatalf("%d: %s", i, resp.Status)
		}
	}
	twice := 0
	for i := range 200 {
		if rec := r.record(i); rec.Tries > 1 {
			twice++
		}
	}
	if twice != r.settings.Failures {
		t.Errorf("%d requests met the dead endpoint, want %d", twice, r.settings.Failures)
	}
	// When the only other one dies, too, it is asked again: an endpoint is always asked.
	r.endpoints(bad)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, _ := c.response("GET"); resp.StatusCode != 502 {
		t.Error(resp.Status)
	}
	r.endpoints()
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, _ := c.response("GET"); resp.StatusCode != 503 {
		t.Error(resp.Status)
	}
}

// Endpoints that answer 500 work: their answer is passed on, and they are not ejected.
func TestErrorsOfEndpointsAreAnswers(t *testing.T) {
	r := newRig(t, nil, answer(t, "HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno"))
	c := r.dial()
	for i := range 20 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, body := c.response("GET"); resp.Status != "500 Oops" || body != "no" {
			t.Fatal(resp.Status)
		}
		if rec := r.record(i); rec.Tries != 1 {
			t.Fatal(rec.Tries)
		}
	}
}

// A draining endpoint ends what it has begun, and gets nothing new.
func TestDrainingEndpoints(t *testing.T) {
	name := func(s string, wait chan struct{}) netip.AddrPort {
		return handler(t, func(w http.ResponseWriter, req *http.Request) {
			_, _ = io.WriteString(w, s)
			_ = http.NewResponseController(w).Flush()
			if req.URL.Path == "/slow" {
				<-wait
			}
			_, _ = io.WriteString(w, " done")
		})
	}
	wait := make(chan struct{})
	old, fresh := name("old", wait), name("new", wait)
	r := newRig(t, nil, old)
	slow := r.dial()
	slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(slow.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	set := func(list ...schema.Endpoint) {
		r.p.Upstreams.Change(map[string]*schema.Backend{"b": {Key: "b", Endpoints: list}})
	}
	set(schema.Endpoint{Addr: old, Draining: true}, schema.Endpoint{Addr: fresh})
	c := r.dial()
	for range 50 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if _, body := c.response("GET"); body != "new done" {
			t.Fatal(body)
		}
	}
	set(schema.Endpoint{Addr: old, Draining: true})
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n") // better than no endpoint
	if _, body := c.response("GET"); body != "old done" {
		t.Fatal(body)
	}
	set(schema.Endpoint{Addr: fresh})
	close(wait)
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "old done" {
		t.Fatalf("%q %v", body, err)
	}
}

// Routes and endpoints change under requests: none is lost.
func TestChangesLoseNothing(t *testing.T) {
	a, b := answer(t, okay), answer(t, okay)
	r := newRig(t, nil, a)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var total atomic.Int64
	for range 4 {
		c := r.dial()
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"); err != nil {
					t.Error(err)
					return
				}
				resp, err := http.ReadResponse(c.br, nil)
				if err != nil || resp.StatusCode != 200 {
					t.Error(resp, err, r.told())
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				total.Add(1)
			}
		})
	}
	for i := range 500 {
		r.endpoints([]netip.AddrPort{a, b}[i%2])
		if i%3 == 0 {
			r.endpoints(a, b)
		}
		r.route(schema.Path{Kind: schema.Prefix, Path: "/", Backend: "b", Source: fmt.Sprint(i)})
		time.Sleep(500 * time.Microsecond)
	}
	close(stop)
	wg.Wait()
	if total.Load() < 100 {
		t.Errorf("%d requests only", total.Load())
	}
}

// An endpoint that has ended its side of an idle connection, and still takes what is sent
// to it, is found out.
func TestEndpointsThatEndTheirSide(t *testing.T) {
	ended := make(chan struct{}, 10)
	r := newRig(t, nil, raw(t, func(c net.Conn, br *bufio.Reader) {
		_, _ = readHead(br)
		_, _ = io.WriteString(c, okay)
		_ = c.(*net.TCPConn).CloseWrite()
		ended <- struct{}{}
		_, _ = io.Copy(io.Discard, br)
	}))
	c := r.dial()
	for range 2 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, _ := c.response("GET"); resp.StatusCode != 200 {
			t.Fatal(resp.Status, r.told())
		}
		<-ended
	}
}

// A client of HTTP/1.0 takes the connection's end for the answer's: one that breaks off
// must be a reset.
func TestBrokenAnswersToOldClients(t *testing.T) {
	r := newRig(t, nil, raw(t, func(c net.Conn, br *bufio.Reader) {
		_, _ = readHead(br)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
		time.Sleep(50 * time.Millisecond) // the first part passes by itself
	}))
	c := r.dial()
	c.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n")
	if got, err := io.ReadAll(c.br); err == nil {
		t.Errorf("%q ends as if it were whole", got)
	}
}
