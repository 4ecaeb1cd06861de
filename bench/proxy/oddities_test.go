package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy"
	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

// oddity is a row of the proxy's table: an endpoint's response to a request.
type oddity struct {
	status, name, request, response string
	closes                          bool
}

func oddities(t *testing.T) (list []oddity) {
	t.Helper()
	text, err := os.ReadFile("../../proxy/testdata/oddities.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		parts := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if line[0] == '#' || len(parts) < 3 {
			continue
		}
		status, name, _ := strings.Cut(parts[0], " ")
		request, err1 := strconv.Unquote(parts[1])
		response, err2 := strconv.Unquote(parts[2])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(name, err)
		}
		list = append(list, oddity{status, name, request, response, len(parts) > 3})
	}
	return list
}

// reasonsIn has, for each row that nginx answers differently, what decides.
func reasonsIn(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, why, ok := strings.Cut(strings.TrimRight(line, "\n"), "\t"); ok {
			m[name] = why
		}
	}
	return m
}

// ownProxy is Wayleave's HTTP/1.1 in a namespace, with one endpoint for all requests.
func ownProxy(t *testing.T, ns *testnet.NS, port int, endpoint string, options *schema.Options, speaks upstream.TLS) {
	t.Helper()
	settings := upstream.Defaults()
	settings.Dial = func(_ context.Context, network, addr string) (net.Conn, error) {
		return ns.Dial(network, addr, 5*time.Second)
	}
	p := &proxy.Proxy{Upstreams: upstream.NewSet(settings), Tries: 1, Timeouts: proxy.Timeouts{Connect: 5 * time.Second,
		Send: time.Second, Read: time.Second}}
	p.Upstreams.SetTLS(speaks)
	b := &schema.Backend{Key: "b", Endpoints: []schema.Endpoint{{Addr: netip.MustParseAddrPort(endpoint)}}}
	p.Upstreams.Replace(map[string]*schema.Backend{"b": b})
	p.SetTable(table.Make(nil, map[string]*schema.Host{
		"": {Paths: []schema.Path{{Kind: schema.Prefix, Path: "/", Backend: "b", Options: options}}}}))
	s := &h1.Server{Limits: h1.DefaultLimits(), Handle: p.Handle}
	t.Cleanup(s.Close)
	ns.Serve("tcp", fmt.Sprintf("127.0.0.1:%d", port),
		func(c net.Conn) { s.Serve(context.Background(), c, nil, false) })
}

// oddEndpoint answers each request with the current oddity, and records the request.
type oddEndpoint struct {
	mu    sync.Mutex
	now   oddity
	asked []string
}

func (e *oddEndpoint) serve(c net.Conn) {
	defer c.Close()
	br := bufio.NewReader(c)
	for {
		q, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		body, err := io.ReadAll(q.Body)
		if err != nil {
			return
		}
		var fields []string
		for name, values := range q.Header {
			if l := strings.ToLower(name); strings.HasPrefix(l, "x") && !strings.HasPrefix(l, "x-forwarded") &&
				l != "x-real-ip" || l == "cookie" || l == "te" {
				fields = append(fields, fmt.Sprintf("%s×%d", name, len(values)))
			}
		}
		slices.Sort(fields)
		if len(fields) > 5 {
			fields = []string{fmt.Sprintf("%d fields", len(fields))}
		}
		e.mu.Lock()
		now := e.now
		e.asked = append(e.asked, fmt.Sprintf("%s, body %q, fields %v", q.Method, body, fields))
		e.mu.Unlock()
		if _, err := io.WriteString(c, now.response); err != nil || now.closes {
			return
		}
	}
}

// outcome is the result of an oddity.
type outcome struct{ statuses, body, fields, asked string }

// play sends the request of an oddity, and reads the answer.
func play(t *testing.T, ns *testnet.NS, port int, e *oddEndpoint, x oddity) (o outcome) {
	t.Helper()
	e.mu.Lock()
	e.now, e.asked = x, nil
	e.mu.Unlock()
	c, err := ns.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, x.request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(x.request, " ")
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	br := bufio.NewReader(c)
	var statuses, fields []string
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			var bad net.Error
			if len(statuses) == 0 && !(errors.As(err, &bad) && bad.Timeout()) {
				statuses = append(statuses, "no HTTP/1 answer")
			}
			break
		}
		if resp.StatusCode == 101 {
			resp.Body = io.NopCloser(br)
		}
		body, err := io.ReadAll(resp.Body)
		status := strconv.Itoa(resp.StatusCode)
		if err != nil && resp.StatusCode != 101 {
			status += " broken off"
		}
		statuses = append(statuses, status)
		o.body = fmt.Sprintf("%q", body)
		for name, v := range resp.Header {
			if strings.HasPrefix(name, "X") || slices.Contains([]string{"Location", "Link", "Set-Cookie",
				"Content-Disposition", "Content-Range", "Etag"}, name) {
				fields = append(fields, fmt.Sprintf("%s×%d", name, len(v)))
			}
		}
		if resp.StatusCode >= 400 && !strings.Contains(x.response, " "+status+" ") {
			o.body = "" // the refusing program's page
		}
		_ = c.SetDeadline(time.Now().Add(silence))
	}
	slices.Sort(fields)
	if len(fields) > 5 {
		fields = []string{fmt.Sprintf("%d", len(fields))}
	}
	o.statuses, o.fields = strings.Join(statuses, " "), strings.Join(fields, " ")
	if len(statuses) == 0 {
		o.statuses = "nothing"
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	o.asked = strings.Join(e.asked, "; ")
	return o
}

// beside formats a cell: what differs from the other outcome.
func (o outcome) beside(other outcome) string {
	text := o.statuses
	if o.statuses == other.statuses && o.body != other.body {
		text += ", body " + o.body
	}
	if o.statuses == other.statuses && o.fields != other.fields {
		text += ", fields " + cmp0(o.fields)
	}
	if o.statuses == other.statuses && o.asked != other.asked {
		text += "; asked " + cmp0(o.asked)
	}
	return strings.NewReplacer("|", "¦", "\n", " ").Replace(text)
}

func cmp0(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// TestOddities compares nginx's answers with Wayleave's, and writes docs/proxy-http.md.
func TestOddities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root (CAP_SYS_ADMIN)")
	}
	if _, err := exec.LookPath("nginx"); err != nil {
		t.Skip("nginx is not installed (Debian: apt-get install nginx-light)")
	}
	ns := testnet.New(t, "oddities")
	var ends [2]oddEndpoint
	for i := range ends {
		ns.Serve("tcp", fmt.Sprintf("127.0.0.1:%d", endpointPort-i), ends[i].serve)
	}
	ownProxy(t, ns, 9001, fmt.Sprintf("127.0.0.1:%d", endpointPort), nil, upstream.TLS{})
	run(t, ns, 9002, "nice", "nginx -c "+configured(t, nginxOdd, 9002, endpointPort-1))
	why, same := reasonsIn(t, "testdata/oddities.txt"), 0
	rows := [][]string{{"case", "Wayleave", "nginx", "why"}}
	all := oddities(t)
	counts := map[string]int{}
	for _, x := range all {
		own, other := play(t, ns, 9001, &ends[0], x), play(t, ns, 9002, &ends[1], x)
		if own == other {
			same++
			if why[x.name] != "" {
				t.Errorf("%s: both answer %s; the reason for a difference is out of date", x.name, own.statuses)
			}
			continue
		}
		if why[x.name] == "" {
			t.Errorf("%s\t(%s; nginx: %s) the reason is missing", x.name, own.beside(other), other.beside(own))
		}
		switch refuses, others := refusal(own.statuses), refusal(other.statuses); {
		case refuses && !others:
			counts["ours"]++
		case others && !refuses:
			counts["nginx"]++
		default:
			counts["both"]++
		}
		rows = append(rows, []string{x.name, own.beside(other), other.beside(own), why[x.name]})
	}
	if t.Failed() {
		return
	}
	page := result.New(result.Docs, "proxy-http", "Comparison with nginx: HTTP in practice")
	page.Text("The proxy accepts what servers and clients send in practice, as far as every program finds the same " +
		"end of a message. [proxy.md](proxy.md) has the rules.")
	page.Text("`cd bench && go test -run TestOddities ./proxy` generates this page: it sends the %d exchanges of "+
		"proxy/testdata/oddities.txt through Wayleave and through nginx %s with Debian's defaults. `go test -run "+
		"TestOddities ./proxy` checks Wayleave's answers without nginx. %d exchanges are equal: statuses, body, "+
		"fields, and the endpoint's request. The other %d are below: Wayleave refuses %d that nginx forwards, nginx "+
		"refuses or loses %d that Wayleave forwards, and both answer %d differently.",
		len(all), version("nginx -v"), same, len(rows)-1, counts["ours"], counts["nginx"], counts["both"])
	page.Table(rows)
	if err := page.Write(); err != nil {
		t.Fatal(err)
	}
}

// refusal reports whether the last status is the proxy's own.
func refusal(statuses string) bool {
	last := statuses[strings.LastIndexByte(statuses, ' ')+1:]
	return slices.Contains([]string{"400", "405", "414", "417", "431", "502", "504", "off", "nothing",
		"answer", "103"}, last)
}

// nginxOdd forwards upgrades, like ingress-nginx.
const nginxOdd = nginxHead + `
http {
  access_log off; ` + nginxTemps + `
  map $http_upgrade $connection_upgrade { default upgrade; '' ''; }
  upstream app { server ENDPOINT; keepalive 16; }
  server { listen 127.0.0.1:PORT; location / {
    proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection $connection_upgrade;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Host $http_host; proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_next_upstream off; proxy_read_timeout 1s;
  } }
}
`
