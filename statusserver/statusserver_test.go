package statusserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// As the child, this program is the process that serves.
func TestMain(m *testing.M) {
	testnet.Main(m, map[string]func(*slog.Logger) error{
		"status-server": func(*slog.Logger) error { return Main() },
	})
}

// rig is a supervisor whose process listens at two addresses.
type rig struct {
	t        *testing.T
	health   string
	metrics  string
	rendered map[Page]*atomic.Int64
	hang     atomic.Bool
	said     chan string
}

func ports(list ...Port) func() []Port { return func() []Port { return list } }

func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func start(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, health: free(t), metrics: free(t), rendered: map[Page]*atomic.Int64{},
		said: make(chan string, 1000)}
	for _, p := range []Page{Healthz, Livez, Metrics, ProxyMode, Alive} {
		r.rendered[p] = &atomic.Int64{}
	}
	s := &Supervisor{Args: []string{"status-server"}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Ports: ports(Port{Name: r.health, Pages: map[string]Page{"/healthz": Healthz, "/livez": Livez}},
			Port{Name: r.metrics, Pages: map[string]Page{"/metrics": Metrics, "/proxyMode": ProxyMode,
				"/healthz": Alive}}),
		Render: func(p Page) Answer {
			r.wait()
			a := Text(fmt.Sprintf("%s %d", p, r.rendered[p].Add(1)))
			if p == Healthz {
				a.Status = http.StatusServiceUnavailable
			}
			return a
		},
		Say: func(port string, err error) {
			if err != nil {
				select {
				case r.said <- port:
				default:
				}
			}
		}}
	r.run(s, r.health, "/livez")
	return r
}

// run runs a supervisor until the test or end ends, and waits for a page.
func (r *rig) run(s *Supervisor, addr, path string) (end func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	end = func() { r.hang.Store(false); cancel(); <-done }
	r.t.Cleanup(end)
	testnet.Eventually(r.t, 20*time.Second, func() error {
		_, _, err := r.get(addr, path)
		return err
	})
	return end
}

// wait returns when the agent does not hang.
func (r *rig) wait() {
	for r.hang.Load() {
		time.Sleep(10 * time.Millisecond)
	}
}

func (r *rig) get(addr, path string) (int, string, error) {
	c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + addr + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// Each path gives the page of its port, and no other one; the status is the agent's.
func TestPagesAreServed(t *testing.T) {
	r := start(t)
	for _, tc := range []struct {
		addr, path string
		status     int
		body       string
	}{
		{r.health, "/healthz", 503, "healthz"}, {r.health, "/livez", 200, "livez"}, {r.health, "/metrics", 404, "404"},
		{r.health, "/", 404, "404"},
		{r.metrics, "/metrics", 200, "metrics"}, {r.metrics, "/proxyMode", 200, "proxyMode"},
		{r.metrics, "/healthz", 200, "alive"}, {r.metrics, "/livez", 404, "404"},
	} {
		status, body, err := r.get(tc.addr, tc.path)
		if err != nil || status != tc.status || !strings.HasPrefix(body, tc.body) {
			t.Errorf("%s: %d %q %v, want %d %q", tc.path, status, body, err, tc.status, tc.body)
		}
	}
	c, err := net.Dial("tcp", r.health)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if b, err := io.ReadAll(c); err != nil && len(b) == 0 || !bytes.HasPrefix(b, []byte("HTTP/1.1 405")) {
		t.Errorf("POST: %q, %v", b, err)
	}
}

// However many ask, the agent renders a page a few times a second.
func TestManyQuestionsAreOneForTheAgent(t *testing.T) {
	r := start(t)
	begin := time.Now()
	for range 300 {
		if status, _, err := r.get(r.metrics, "/metrics"); err != nil || status != 200 {
			t.Fatal(status, err)
		}
	}
	if n, most := r.rendered[Metrics].Load(), int64(time.Since(begin)/Metrics.freshFor())+2; n > most {
		t.Errorf("rendered %d times in %s, want %d at most", n, time.Since(begin), most)
	}
}

// An agent that hangs is not healthy, and the process says so.
func TestAnAgentThatHangsIsUnhealthy(t *testing.T) {
	r := start(t)
	r.hang.Store(true)
	testnet.Eventually(t, 20*time.Second, func() error {
		status, _, err := r.get(r.health, "/livez")
		if err != nil || status != http.StatusServiceUnavailable {
			return fmt.Errorf("%d, %w", status, err)
		}
		return nil
	})
	r.hang.Store(false)
	testnet.Eventually(t, 20*time.Second, func() error {
		if status, _, err := r.get(r.health, "/livez"); err != nil || status != http.StatusOK {
			return fmt.Errorf("%d, %w", status, err)
		}
		return nil
	})
}

// Clients that send nothing, slowly, or without end hold places for a bounded time, and are displaced by others.
func TestHostileClientsOfHealthAreBounded(t *testing.T) {
	r := start(t)
	from := func(i int) net.Dialer {
		return net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 3, byte(i>>8), byte(i))}, Timeout: 5 * time.Second}
	}
	var open []net.Conn
	for i := range 2 * MaxConnections {
		d := from(i % 700)
		c, err := d.Dial("tcp", r.health)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, []string{"", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nX: " +
			strings.Repeat("x", 3000)}[i%3])
		open = append(open, c)
	}
	if status, _, err := r.get(r.health, "/livez"); err != nil || status != http.StatusOK {
		t.Errorf("a good client meanwhile: %d, %v", status, err)
	}
	// A head without end is refused before it is large.
	c, err := net.Dial("tcp", r.health)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	sent := 0
	_, _ = io.WriteString(c, "GET /healthz HTTP/1.1\r\nX: ")
	for chunk := bytes.Repeat([]byte("x"), 1<<10); sent < 64<<20; sent += len(chunk) {
		if _, err := c.Write(chunk); err != nil {
			break
		}
	}
	if sent >= 64<<20 {
		t.Error("64 MiB of a head were taken")
	}
	// All others end within the time for a request.
	deadline := time.Now().Add(readTimeout + 20*time.Second)
	for i, c := range open {
		_ = c.SetReadDeadline(deadline)
		var timeout net.Error
		if _, err := io.Copy(io.Discard, c); errors.As(err, &timeout) && timeout.Timeout() {
			t.Fatalf("connection %d is open", i)
		}
	}
}

// A port that another program has is named, and taken when it is free; a process that was killed is started again.
func TestAPortThatIsTakenIsTriedAgain(t *testing.T) {
	r := &rig{t: t}
	addr := free(t)
	other, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan error, 100)
	s := &Supervisor{Args: []string{"status-server"}, Log: slog.New(slog.DiscardHandler),
		Ports:  ports(Port{Name: addr, Pages: map[string]Page{"/livez": Livez}}),
		Render: func(Page) Answer { return Text("ok") }, Say: func(_ string, err error) { said <- err }}
	first := make(chan error, 1)
	go func() {
		first <- <-said
		_ = other.Close()
	}()
	end := r.run(s, addr, "/livez")
	if err := <-first; err == nil {
		t.Error("nothing was said")
	}
	end()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("the port is open after the end: %v", err)
	}
	_ = l.Close()
}
