package statusserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/internal/scrape"
	"wayleave.dev/internal/testnet"
)

// node is a supervisor whose process serves the metrics of an agent and two sources.
type node struct {
	*rig
	addr    string
	sockets map[string]string
}

func startNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{rig: &rig{t: t}, addr: free(t), sockets: map[string]string{}}
	s := &Supervisor{Args: []string{"status-server"}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Version: "v1.2.3", Ports: ports(Port{Name: n.addr, Pages: map[string]Page{"/metrics": AllMetrics},
			Allowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/16")}}),
		ListenSource: func(path string) (*net.UnixListener, error) {
			return net.ListenUnix("unix", &net.UnixAddr{Name: path})
		},
		Render: func(Page) Answer {
			n.wait()
			return Text("# TYPE wayleave_apply_total counter\nwayleave_apply_total{feature=\"dns\"} 7\n" +
				"# TYPE wayleave_process_up gauge\nwayleave_process_up{process=\"l2\"} 1\n" +
				"# TYPE go_goroutines gauge\ngo_goroutines 5\n")
		},
		Say: func(string, error) {}}
	for _, name := range []string{"dns", "proxy"} {
		n.sockets[name] = filepath.Join(dir, name)
		s.Sources = append(s.Sources, Source{Name: name, Prefixes: []string{"wayleave_" + name + "_"},
			Socket: n.sockets[name]})
	}
	n.run(s, n.addr, "/metrics")
	return n
}

// serve is a source with a metric of its own.
func (n *node) serve(name string) (stop func()) {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "wayleave_" + name + "_queries_total", Help: "Queries."})
	c.Add(3)
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "go_goroutines", Help: "Goroutines."})
	reg.MustRegister(c, g)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); scrape.Serve(ctx, n.sockets[name], reg) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	n.t.Cleanup(stop)
	return stop
}

// has waits for lines in the metrics, and for the absence of others.
func (n *node) has(want []string, not ...string) {
	n.t.Helper()
	testnet.Eventually(n.t, 30*time.Second, func() error {
		status, body, err := n.get(n.addr, "/metrics")
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("%d, %w", status, err)
		}
		for _, line := range want {
			if !strings.Contains(body, line+"\n") {
				return fmt.Errorf("no line %q in\n%s", line, body)
			}
		}
		for _, text := range not {
			if strings.Contains(body, text) {
				return fmt.Errorf("%q is in\n%s", text, body)
			}
		}
		return nil
	})
}

// One request gets the metrics of all processes. One that is dead costs only its own.
func TestAScrapeHasAllProcesses(t *testing.T) {
	n := startNode(t)
	stop := n.serve("dns")
	n.serve("proxy")
	all := []string{`wayleave_apply_total{feature="dns",process="agent"} 7`, `go_goroutines{process="agent"} 5`,
		`wayleave_dns_queries_total{process="dns"} 3`, `go_goroutines{process="dns"} 0`,
		`wayleave_proxy_queries_total{process="proxy"} 3`, `wayleave_process_up{process="agent"} 1`,
		`wayleave_process_up{process="dns"} 1`, `wayleave_process_up{process="proxy"} 1`,
		`wayleave_process_up{process="l2"} 1`}
	n.has(all)
	stop()
	n.has([]string{`wayleave_process_up{process="dns"} 0`, `wayleave_process_up{process="proxy"} 1`,
		`wayleave_apply_total{feature="dns",process="agent"} 7`}, "wayleave_dns_queries_total")
	n.hang.Store(true)
	n.has([]string{`wayleave_process_up{process="agent"} 0`, `wayleave_process_up{process="proxy"} 1`,
		`wayleave_proxy_queries_total{process="proxy"} 3`}, "wayleave_apply_total")
	n.hang.Store(false)
	n.serve("dns")
	n.has(all)
}

// Metrics of the process itself are there, with the version.
func TestAScrapeNamesTheVersion(t *testing.T) {
	n := startNode(t)
	n.has(nil, `version="dev"`)
	_, body, err := n.get(n.addr, "/metrics")
	if err != nil || !strings.Contains(body, `version="v1.2.3"`) ||
		!strings.Contains(body, `process_resident_memory_bytes{process="status-server"}`) {
		t.Errorf("%v: %s", err, body)
	}
}

// answers is a captured source that sends the same bytes for every question.
func (n *node) answers(name string, body []byte) {
	n.t.Helper()
	var c net.Conn
	testnet.Eventually(n.t, 20*time.Second, func() (err error) {
		c, err = net.Dial("unix", n.sockets[name])
		return err
	})
	n.t.Cleanup(func() { _ = c.Close() })
	go func() {
		one := make([]byte, 1)
		for {
			if _, err := io.ReadFull(c, one); err != nil {
				return
			}
			if _, err := c.Write(body); err != nil {
				return
			}
		}
	}()
}

func framed(text string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
}

// A captured process harms no metrics but its own, whatever it sends.
func TestACapturedProcessPublishesOnlyItsOwn(t *testing.T) {
	for name, body := range map[string][]byte{
		"names of others": framed("wayleave_process_up{process=\"agent\"} 0\nwayleave_apply_total 99\n" +
			"wayleave_proxy_queries_total 99\ngo_goroutines{process=\"agent\"} 99\n"),
		"another type": framed("# TYPE go_goroutines histogram\ngo_goroutines_bucket{le=\"+Inf\"} 99\n" +
			"go_goroutines_sum 99\ngo_goroutines_count 99\n"),
		"no text":      framed("\x00\xff{{{\n"),
		"not UTF-8":    framed("wayleave_dns_x{a=\"\xff99\"} 99\n"),
		"a long line":  framed("wayleave_dns_x{a=\"" + strings.Repeat("99", 5000) + "\"} 1\n"),
		"many lines":   framed(strings.Repeat("wayleave_dns_x 99\n", 60_000)),
		"many labels":  framed("wayleave_dns_x{" + strings.Repeat("a=\"99\",", 100) + "} 1\n"),
		"a huge frame": {0xff, 0xff, 0xff, 0xff, 99},
		"nothing":      {0, 0, 0, 0},
		"half":         framed("wayleave_dns_x 99\n")[:10],
	} {
		t.Run(name, func(t *testing.T) {
			n := startNode(t)
			n.serve("proxy")
			n.answers("dns", body)
			time.Sleep(AllMetrics.freshFor())
			n.has([]string{`wayleave_process_up{process="proxy"} 1`, `wayleave_process_up{process="agent"} 1`,
				`wayleave_apply_total{feature="dns",process="agent"} 7`, `go_goroutines{process="agent"} 5`,
				`wayleave_proxy_queries_total{process="proxy"} 3`}, `} 99`, ` 99`+"\n"+`wayleave_apply`)
		})
	}
}

// Only networks of the setting connect; others are reset.
func TestOnlyAllowedNetworksScrape(t *testing.T) {
	n := startNode(t)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, 0, 1)}, Timeout: 5 * time.Second}
	c, err := d.Dial("tcp", n.addr)
	if errors.Is(err, syscall.ECONNRESET) {
		return // before the dialler had the connection
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c)
	var timeout net.Error
	if len(b) > 0 || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("%q, %v", b, err)
	}
	n.has([]string{`wayleave_process_up{process="agent"} 1`})
}
