package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// loadTimeout is the most that one request may take.
const loadTimeout = 20 * time.Second

// loadKinds are how requests are sent.
const (
	plainHTTP1 = iota
	tlsHTTP1
	tlsHTTP2
	loadKinds
)

func kindName(kind int) string { return [...]string{"HTTP/1.1", "HTTP/1.1 with TLS", "HTTP/2"}[kind] }

// loadClients send requests, and count what fails. No request is sent twice.
type loadClients struct {
	rig   *loadRig
	hosts []loadHost
	// before are the proxy's counts from before the load.
	before map[string]float64
	// rounds is after how many requests a connection is left, and another one opened.
	rounds int

	opened, slow, messages atomic.Int64
	failed                 atomic.Int64

	mu       sync.Mutex
	examples map[string]int // what failed, and how often
}

// loadHost is a host under load.
type loadHost struct {
	name, service string
	// shown is the serial number of the certificate that was last seen, when nobody may
	// get an older one any more.
	shown *atomic.Int64
}

func (c *loadClients) fail(format string, args ...any) {
	c.failed.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.examples == nil {
		c.examples = map[string]int{}
	}
	if s := fmt.Sprintf(format, args...); len(c.examples) < 20 || c.examples[s] > 0 {
		c.examples[s]++
	}
}

// report fails the test for all that failed.
func (c *loadClients) report(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.failed.Load(); n > 0 {
		t.Errorf("%d failures", n)
	}
	for s, n := range c.examples {
		t.Errorf("%d times: %s", n, s)
	}
	if len(c.examples) > 0 {
		raw, err := os.ReadFile(filepath.Join(c.rig.dir, proxyErrors))
		lines := strings.SplitAfter(string(raw), "\n")
		for _, line := range lines[:min(len(lines), 100)] {
			if strings.Contains(line, `"host":"app`) {
				t.Logf("the proxy says: %s", line)
			}
		}
		if err != nil {
			t.Log(err)
		}
	}
}

// handshake opens a connection with TLS, and looks at the certificate.
func (c *loadClients) handshake(ctx context.Context, h *loadHost, protocol string) (*tls.Conn, int64, error) {
	oldest := h.shown.Load()
	conn, err := c.rig.dial(ctx, "tcp", loadHTTPS)
	if err != nil {
		return nil, 0, err
	}
	c.opened.Add(1)
	t := tls.Client(conn, &tls.Config{ServerName: h.name, RootCAs: c.rig.ca.pool, NextProtos: []string{protocol}})
	if err := t.HandshakeContext(ctx); err != nil { // another host's certificate is an error, too
		return nil, 0, errors.Join(err, conn.Close())
	}
	leaf := t.ConnectionState().PeerCertificates[0]
	if serial := leaf.SerialNumber.Int64(); serial < oldest {
		return nil, 0, errors.Join(fmt.Errorf("%s shows certificate %d, after %d was shown", h.name, serial,
			oldest), conn.Close())
	}
	if leaf.Subject.CommonName != h.name {
		return nil, 0, errors.Join(fmt.Errorf("%s shows the certificate of %s", h.name, leaf.Subject.CommonName),
			conn.Close())
	}
	return t, leaf.SerialNumber.Int64(), nil
}

// lane is a connection to one host after the other; some workers may share it.
type lane struct {
	c    *loadClients
	kind int
	host *loadHost

	mu  sync.Mutex
	now *laneConn
}

type laneConn struct {
	roundTripper
	left, users int
	retired     bool
}

// roundTripper is one connection, by which nothing is sent again that failed.
type roundTripper interface {
	RoundTrip(*http.Request) (*http.Response, error)
	Close() error
	Err() error
}

// http1 is one of HTTP/1.1. That of net/http does not say whether it was the server that
// closed it.
type http1 struct {
	net.Conn
	br *bufio.Reader
}

func (h *http1) Err() error { return nil }

func (h *http1) RoundTrip(q *http.Request) (*http.Response, error) {
	if d, ok := q.Context().Deadline(); ok {
		if err := h.SetDeadline(d); err != nil {
			return nil, err
		}
	}
	if err := q.Write(h.Conn); err != nil {
		return nil, err
	}
	return http.ReadResponse(h.br, q)
}

// take gives the connection for a request; a new one where the last was used enough.
func (l *lane) take(ctx context.Context) (*laneConn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.now; c != nil && (c.left == 0 || c.retired || c.Err() != nil) {
		l.retire(c)
	}
	if l.now == nil {
		conn, err := l.open(ctx)
		if err != nil {
			return nil, err
		}
		l.now = &laneConn{roundTripper: conn, left: l.c.rounds + rand.IntN(l.c.rounds)}
	}
	l.now.left--
	l.now.users++
	return l.now, nil
}

func (l *lane) retire(c *laneConn) {
	if c.retired = true; c.users == 0 {
		_ = c.Close()
	}
	if l.now == c {
		l.now = nil
	}
}

// give takes it back. A connection that failed is of no more use.
func (l *lane) give(c *laneConn, failed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.users--; failed || c.retired {
		l.retire(c)
	}
}

func (l *lane) open(ctx context.Context) (roundTripper, error) {
	if l.kind == plainHTTP1 {
		l.c.opened.Add(1)
		conn, err := l.c.rig.dial(ctx, "tcp", loadPlain)
		if err != nil {
			return nil, err
		}
		return &http1{conn, bufio.NewReader(conn)}, nil
	}
	if l.kind == tlsHTTP1 {
		conn, _, err := l.c.handshake(ctx, l.host, "http/1.1")
		if err != nil {
			return nil, err
		}
		return &http1{conn, bufio.NewReader(conn)}, nil
	}
	var p http.Protocols
	p.SetHTTP2(true)
	tr := &http.Transport{Protocols: &p, DisableCompression: true, DialTLSContext: func(ctx context.Context, _,
		_ string) (net.Conn, error) {
		conn, _, err := l.c.handshake(ctx, l.host, "h2")
		if err != nil {
			return nil, err
		}
		return conn, nil
	}}
	return tr.NewClientConn(ctx, "https", net.JoinHostPort(l.host.name, "443"))
}

// send sends a request of some path, and checks all of the answer. What fails is noted.
func (l *lane) send(path, body, want string, services ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	what, start := kindName(l.kind)+" "+l.host.name+path, time.Now()
	c, err := l.take(ctx)
	if err != nil {
		l.c.fail("%s: connection: %v", what, err)
		return
	}
	failed := true
	defer func() { l.give(c, failed) }()
	method, scheme := http.MethodGet, "https"
	if l.kind == plainHTTP1 {
		scheme = "http"
	}
	var from io.Reader
	if body != "" {
		method, from = http.MethodPost, strings.NewReader(body)
	}
	q, err := http.NewRequestWithContext(ctx, method, scheme+"://"+l.host.name+path, from)
	if err != nil {
		l.c.fail("%s: %v", what, err)
		return
	}
	q.GetBody = nil // nothing is sent twice
	resp, err := c.RoundTrip(q)
	if err != nil {
		l.c.fail("%s %s: %v after %s", method, what, err, time.Since(start))
		return
	}
	got, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	switch {
	case resp.StatusCode != http.StatusOK:
		l.c.fail("%s %s: %s after %s", method, what, resp.Status, time.Since(start))
	case err != nil:
		l.c.fail("%s %s: the body: %v", method, what, err)
	case string(got) != want:
		l.c.fail("%s %s: %d bytes, want %d", method, what, len(got), len(want))
	case !slices.Contains(services, resp.Header.Get("X-Service")):
		l.c.fail("%s %s: answered by Service %q, want one of %q", method, what, resp.Header.Get("X-Service"), services)
	}
	failed = err != nil || resp.Close
}

// some sends the n-th request of the mix: three in four small, the others 96 KB, a POST,
// and one whose path moves to and fro between Services.
func (l *lane) some(n uint64) {
	switch n % 12 {
	case 3:
		l.send("/big", "", bigText, l.host.service)
	case 7:
		l.send("/post", smallText, "1000 bytes", l.host.service)
	case 5:
		l.send("/moves/x", "", smallText, "a", "b")
	case 9:
		l.send("/swaps/post", smallText, "1000 bytes", l.host.service)
	default:
		l.send("/", "", smallText, l.host.service)
	}
}

// workers has n workers for each kind call fn until it says false. Those of HTTP/2 share
// connections.
func (c *loadClients) workers(n int, fn func(l *lane, kind int) bool) (wait func()) {
	var wg sync.WaitGroup
	var lanes []*lane
	for kind := range loadKinds {
		first := len(lanes)
		for i := range n {
			l := &lane{c: c, kind: kind, host: &c.hosts[i%len(c.hosts)]}
			if kind == tlsHTTP2 && i >= len(c.hosts) {
				l = lanes[first+i%len(c.hosts)]
			}
			lanes = append(lanes, l)
			wg.Go(func() {
				for fn(l, kind) {
				}
			})
		}
	}
	return func() {
		wg.Wait()
		for _, l := range lanes {
			l.mu.Lock()
			if l.now != nil {
				l.retire(l.now)
			}
			l.mu.Unlock()
		}
	}
}

// most is how many requests a second are answered when each worker asks again as soon as
// it has its answer.
func (c *loadClients) most(within time.Duration) float64 {
	var n atomic.Uint64
	start := time.Now()
	c.workers(loadWorkers, func(l *lane, _ int) bool {
		l.some(n.Add(1))
		return time.Since(start) < within
	})()
	return float64(n.Load()) / time.Since(start).Seconds()
}

// loadWorkers are those of each kind.
const loadWorkers = 16

// openLoop is a load whose requests have their times beforehand.
type openLoop struct {
	rate  float64
	took  []time.Duration // from when they should have been sent to their end
	lasts time.Duration
	stop  chan struct{}
	done  chan struct{}
}

// open sends requests at a rate until they are stopped. What cannot be sent in time waits
// for a worker, and that counts.
func (c *loadClients) open(rate float64) *openLoop {
	o := &openLoop{rate: rate, stop: make(chan struct{}), done: make(chan struct{})}
	type due struct {
		n  uint64
		at time.Time
	}
	var queues [loadKinds]chan due
	for i := range queues {
		queues[i] = make(chan due, 1<<18)
	}
	var mu sync.Mutex
	wait := c.workers(loadWorkers, func(l *lane, kind int) bool {
		d, ok := <-queues[kind]
		if ok {
			l.some(d.n)
			took := time.Since(d.at)
			mu.Lock()
			o.took = append(o.took, took)
			mu.Unlock()
		}
		return ok
	})
	go func() {
		defer close(o.done)
		start := time.Now()
		for n := uint64(0); ; n++ {
			at := start.Add(time.Duration(float64(n) / rate * float64(time.Second)))
			if d := time.Until(at); d > 0 {
				time.Sleep(d)
			}
			select {
			case <-o.stop:
				o.lasts = time.Since(start)
				for _, q := range queues {
					close(q)
				}
				wait()
				return
			default:
			}
			queues[n%loadKinds] <- due{n / loadKinds, at}
		}
	}()
	return o
}

// end stops it, and waits for the answers.
func (o *openLoop) end() {
	close(o.stop)
	<-o.done
	slices.Sort(o.took)
}

// quantile is of sorted times.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// slowly asks for answers that take up to two seconds, one after the other by n
// connections of each kind, until stop is closed.
func (c *loadClients) slowly(n int, stop <-chan struct{}) (wait func()) {
	return c.workers(n, func(l *lane, _ int) bool {
		select {
		case <-stop:
			return false
		default:
		}
		body := ""
		if rand.IntN(2) == 0 {
			body = smallText
		}
		l.send(fmt.Sprintf("/slow?ms=%d", rand.IntN(2000)), body, slowText, l.host.service)
		c.slow.Add(1)
		return true
	})
}

// socket opens a WebSocket, and says which pod has it.
func (c *loadClients) socket(h *loadHost, encrypted bool) (*websocket.Conn, string, error) {
	var conn net.Conn
	var err error
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	scheme := "ws"
	if encrypted {
		scheme = "wss"
		var t *tls.Conn
		if t, _, err = c.handshake(ctx, h, "http/1.1"); err == nil {
			conn = t
		}
	} else {
		conn, err = c.rig.dial(ctx, "tcp", loadPlain)
	}
	if err != nil {
		return nil, "", err
	}
	_ = conn.SetDeadline(time.Now().Add(loadTimeout))
	conf, err := websocket.NewConfig(scheme+"://"+h.name+"/ws", "http://"+h.name+"/")
	if err != nil {
		return nil, "", errors.Join(err, conn.Close())
	}
	ws, err := websocket.NewClient(conf, conn)
	if err != nil {
		return nil, "", errors.Join(err, conn.Close())
	}
	var pod string
	if err := websocket.Message.Receive(ws, &pod); err != nil {
		return nil, "", errors.Join(err, ws.Close())
	}
	return ws, pod, nil
}

// sockets opens n WebSockets to a pod that stays, and exchanges messages by all of them
// until stop is closed: each that is sent comes back, in order.
func (c *loadClients) sockets(t *testing.T, n int, pod string, stop <-chan struct{}) (wait func()) {
	t.Helper()
	var wg sync.WaitGroup
	var others []*websocket.Conn // open until then: pods with few get the next one
	defer func() {
		for _, ws := range others {
			_ = ws.Close()
		}
	}()
	for i, tries := 0, 0; i < n; tries++ {
		h := &c.hosts[0]
		ws, has, err := c.socket(h, i%2 == 0)
		if err != nil {
			t.Fatalf("WebSocket: %v", err)
		}
		if has != pod {
			if tries > 100*n {
				t.Fatalf("%d WebSockets were opened, %d of them to %s", tries, i, pod)
			}
			others = append(others, ws)
			continue
		}
		name := fmt.Sprintf("WebSocket %d", i)
		i++
		sent := make(chan string, 1<<16)
		wg.Go(func() {
			defer close(sent)
			for k := 0; ; k++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(10+rand.IntN(40)) * time.Millisecond):
				}
				m := fmt.Sprintf("%s, message %d", name, k)
				if k%50 == 49 {
					m += bigText
				}
				_ = ws.SetWriteDeadline(time.Now().Add(loadTimeout))
				if err := websocket.Message.Send(ws, []byte(m)); err != nil {
					c.fail("%s: message %d is not sent: %v", name, k, err)
					return
				}
				sent <- m
			}
		})
		wg.Go(func() {
			defer ws.Close()
			for m := range sent {
				_ = ws.SetReadDeadline(time.Now().Add(loadTimeout))
				var got []byte
				if err := websocket.Message.Receive(ws, &got); err != nil {
					c.fail("%s: a message is lost: %v", name, err)
					return
				}
				if string(got) != m {
					c.fail("%s: got %.40q, want %.40q", name, got, m)
					return
				}
				c.messages.Add(1)
			}
		})
	}
	return wg.Wait
}
