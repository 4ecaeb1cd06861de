package proxy

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"wayleave.dev/bench/internal/kubeproxy"
	"wayleave.dev/bench/internal/result"
)

// load is what h2load requests.
type load struct {
	name, group string
	file        string
	size, conns int
	// host selects the certificate; plainHost for none. streams is the number of concurrent HTTP/2 streams per
	// connection, 0 for HTTP/1.1.
	host    string
	streams int
}

func loads() (list []load) {
	for _, g := range []struct {
		name, host string
		streams    int
	}{{"HTTP/1.1", plainHost, 0}, {"TLS, P-256", p256Host, 0}, {"TLS, RSA-2048", rsaHost, 0}, {"HTTP/2", p256Host, 8}} {
		for _, conns := range []int{32, 1000} {
			for _, f := range []struct {
				name, file string
				size       int
			}{{"1 KB", "1k", 1 << 10}, {"100 KB", "100k", 100 << 10}} {
				if g.streams > 0 && conns > 32 {
					continue
				}
				list = append(list, load{fmt.Sprintf("%s, %s, %d connections", g.name, f.name, conns), g.name, f.file,
					f.size, conns, g.host, g.streams})
			}
		}
	}
	return list
}

// measured is the result of one run.
type measured struct {
	load, program   string
	round           int
	cpu, user, rate float64 // µs per request or handshake: total, outside the kernel; requests per second
	p50, p99, p999  float64 // ms, at full speed
	bad             float64 // requests that failed
	memory          float64 // MiB, resident after the run
}

// endpoint is an nginx that serves files; the second one identifies itself at /v.
func (k *kit) endpoint() *kubeproxy.Process {
	k.t.Helper()
	file := configured(k.t, strings.ReplaceAll(nginxEndpoint, "OTHER", fmt.Sprint(otherPort)), endpointPort, 0)
	dir := filepath.Dir(file)
	if err := os.Mkdir(filepath.Join(dir, "other"), 0o755); err != nil {
		k.t.Fatal(err)
	}
	files := map[string][]byte{"v": []byte("a"), "other/v": []byte("b")}
	for _, l := range loads() {
		files[l.file] = bytes.Repeat([]byte{'x'}, l.size)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			k.t.Fatal(err)
		}
	}
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil { // nginx runs as another user
			k.t.Fatal(err)
		}
	}
	return run(k.t, k.ns, endpointPort, asker, "nginx -c "+file)
}

func (c *contestant) portFor(host string) int {
	return map[string]int{plainHost: c.plain, p256Host: c.p256, rsaHost: c.rsa}[host]
}

// Bounds of a measurement, which ends after enough requests or too much time: a busy machine may get few requests done.
const (
	leastTime, mostTime = 500 * time.Millisecond, 1500 * time.Millisecond
	warmTime, mostWarm  = 400 * time.Millisecond, 5 * time.Second
	enough              = 2500
)

// measure lets h2load send as fast as answers arrive. CPU is the CPU time between two moments without requests in
// flight, divided by the requests between them: all connections and handshakes were made before.
func (k *kit) measure(c *contestant, l load) measured {
	t := k.t
	t.Helper()
	port := c.portFor(l.host)
	scheme, how := "http", "--h1"
	if l.host != plainHost {
		scheme = "https"
	}
	if l.streams > 0 {
		how = fmt.Sprintf("-m%d", l.streams)
	}
	j := &journal{t: t, file: filepath.Join(t.TempDir(), "log")}
	args := strings.Fields(fmt.Sprintf(
		"%s h2load %s -t1 -c%d -D60s --warm-up-time=100ms --log-file=%s --connect-to=127.0.0.1:%d %s://%s:%d/%s",
		asker, how, l.conns, j.file, port, scheme, l.host, port, l.file))
	cmd := exec.Command(args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := k.ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill() // it writes its log line by line
		_ = cmd.Wait()
		os.Remove(j.file)
	}()
	start := time.Now()
	for j.read(); time.Since(start) < warmTime || j.ended < 3*l.conns && time.Since(start) < mostWarm; j.read() {
		time.Sleep(10 * time.Millisecond)
	}
	cpu, user, before := k.still(c, cmd.Process.Pid)
	j.read()
	j.took, j.bad = nil, 0
	from, seen := time.Now(), j.ended
	for time.Since(from) < leastTime || j.ended-seen < max(enough, 4*l.conns) && time.Since(from) < mostTime {
		time.Sleep(10 * time.Millisecond)
		j.read()
	}
	lasted := time.Since(from)
	cpuAfter, userAfter, after := k.still(c, cmd.Process.Pid)
	n := after - before
	if n <= 0 {
		t.Fatalf("%s: %s: h2load saw no answer: %s", c.name, l.name, out.String())
	}
	m := measured{load: l.name, program: c.name, cpu: (cpuAfter - cpu) / n, user: (userAfter - user) / n,
		rate: float64(j.ended-seen) / lasted.Seconds(), bad: float64(j.bad)}
	m.p50, m.p99, m.p999 = result.Percentile(j.took, 50), result.Percentile(j.took, 99), result.Percentile(j.took, 99.9)
	m.memory, _ = c.memory()
	return m
}

// still pauses the load until the proxy has finished all requests, and counts: requests in flight would count for one
// side only, and there are many on a busy machine. The load continues afterwards.
func (k *kit) still(c *contestant, load int) (cpu, user, requests float64) {
	k.t.Helper()
	if err := syscall.Kill(load, syscall.SIGSTOP); err != nil {
		k.t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(load, syscall.SIGCONT) }()
	quiet := 0
	for last, end := -1.0, time.Now().Add(3*time.Second); quiet < 4 &&
		time.Now().Before(end); time.Sleep(15 * time.Millisecond) {
		cpu, user = c.used()
		n := k.asked()
		if quiet++; n != last || c.runs() {
			quiet = 0
		}
		last, requests = n, n
	}
	return cpu, user, requests
}

// runs reports whether a thread of the proxy is runnable.
func (c *contestant) runs() bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", c.process.Pid()))
	for _, f := range threads {
		raw, err := os.ReadFile(f)
		if err == nil && bytes.Contains(raw, []byte(") R ")) {
			return true
		}
	}
	return false
}

// asked returns how many requests the endpoint got from proxies, by its own count.
func (k *kit) asked() float64 {
	k.t.Helper()
	conn, err := k.ns.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", otherPort), 5*time.Second)
	if err != nil {
		k.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(conn, "GET /count HTTP/1.0\r\n\r\n")
	raw, err := io.ReadAll(conn)
	if err != nil {
		k.t.Fatal(err)
	}
	f := regexp.MustCompile(`(?m)^ \d+ \d+ (\d+) $`).FindSubmatch(raw)
	if f == nil {
		k.t.Fatalf("no count in the endpoint's answer: %s", raw)
	}
	n, _ := strconv.ParseFloat(string(f[1]), 64)
	k.looks++ // counted by the endpoint, too
	return n - k.looks
}

// journal is h2load's log: a line for each finished request, with its start, status and time.
type journal struct {
	t     *testing.T
	file  string
	off   int64
	ended int
	bad   int       // requests without status 200
	took  []float64 // ms
}

// read reads new lines.
func (j *journal) read() {
	j.t.Helper()
	f, err := os.Open(j.file)
	if err != nil {
		return // does not exist yet
	}
	defer f.Close()
	raw, err := io.ReadAll(io.NewSectionReader(f, j.off, 1<<40))
	if err != nil {
		j.t.Fatal(err)
	}
	raw = raw[:bytes.LastIndexByte(raw, '\n')+1]
	j.off += int64(len(raw))
	for line := range bytes.Lines(raw) {
		f := bytes.Fields(line)
		if len(f) < 3 {
			continue
		}
		us, _ := strconv.ParseInt(string(f[2]), 10, 64)
		j.took = append(j.took, float64(us)/1000)
		j.ended++
		if string(f[1]) != "200" {
			j.bad++
		}
	}
}

func number(t *testing.T, re, text string) float64 {
	t.Helper()
	f := regexp.MustCompile(re).FindStringSubmatch(text)
	if f == nil {
		t.Fatalf("no %s in: %s", re, text)
	}
	v, err := strconv.ParseFloat(f[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// shake is a kind of handshake.
type shake struct {
	name, host string
	resume     bool
}

func shakes() []shake {
	return []shake{{"P-256", p256Host, false}, {"P-256, resumed", p256Host, true}, {"RSA-2048", rsaHost, false},
		{"RSA-2048, resumed", rsaHost, true}}
}

// handshakes makes connections without requests.
func (k *kit) handshakes(c *contestant, d time.Duration, s shake) measured {
	k.t.Helper()
	run := func(d time.Duration) string {
		args := strings.Fields(fmt.Sprintf("%s %s/handshakes -addr 127.0.0.1:%d -name %s -time %s -resume=%v", asker,
			k.bins, c.portFor(s.host), s.host, d, s.resume))
		cmd := exec.Command(args[0], args[1:]...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := k.ns.Do(cmd.Start); err != nil {
			k.t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			k.t.Fatalf("%s: %s: %v: %s", c.name, s.name, err, out.String())
		}
		return out.String()
	}
	run(100 * time.Millisecond)
	before, user := c.used()
	text := run(d)
	after, userAfter := c.used()
	n := number(k.t, `handshakes (\d+)`, text)
	if n == 0 {
		k.t.Fatalf("%s: %s: no handshake: %s", c.name, s.name, text)
	}
	return measured{load: s.name, program: c.name, cpu: (after - before) / n, user: (userAfter - user) / n,
		rate: n / number(k.t, `seconds ([\d.]+)`, text), bad: number(k.t, `failed (\d+)`, text)}
}

// probe requests a host over a new connection, and returns the mark of the endpoint that answered.
func (k *kit) probe(c *contestant, host string) (string, error) {
	conn, err := k.ns.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.plain), time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(conn, "GET /v HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host); err != nil {
		return "", err
	}
	raw, err := io.ReadAll(conn)
	if err != nil {
		return "", err
	}
	head, body, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) {
		status, _, _ := bytes.Cut(head, []byte("\r\n"))
		return "", fmt.Errorf("%s answered %q", c.name, status)
	}
	return string(body), nil
}
