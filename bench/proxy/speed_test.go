package proxy

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/testnet"
)

// effort is how long one run is, and how often each is repeated.
type effort struct {
	run    time.Duration
	rounds int
}

// howMuch is the effort: WAYLEAVE_BENCH_SHORT=1 is for a first look, in about 3 minutes.
func howMuch() effort {
	if os.Getenv("WAYLEAVE_BENCH_SHORT") != "" {
		return effort{run: 2 * time.Second, rounds: 3}
	}
	return effort{run: 3 * time.Second, rounds: 5}
}

// load is what is asked.
type load struct {
	name  string
	file  string
	size  int
	conns int
}

func loads() []load {
	return []load{
		{"1 KB, 32 connections", "1k", 1 << 10, 32},
		{"100 KB, 32 connections", "100k", 100 << 10, 32},
		{"1 KB, 1000 connections", "1k", 1 << 10, 1000},
		{"100 KB, 1000 connections", "100k", 100 << 10, 1000},
	}
}

// measured is what one run showed.
type measured struct {
	load, program   string
	round           int
	cpu, user, rate float64 // µs for a request, of all; of the program itself; requests a second
	p50, p99, p999  float64 // ms, at full speed
	bad             float64 // requests that failed
	memory          float64 // MiB, resident after the run
}

// TestSpeed measures all, and writes docs/bench-proxy.md.
func TestSpeed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root (CAP_SYS_ADMIN)")
	}
	for _, need := range []string{"wrk", "taskset", "nginx"} {
		if _, err := exec.LookPath(need); err != nil {
			t.Skipf("%s is not installed (Debian: apt-get install wrk util-linux nginx-light haproxy caddy)", need)
		}
	}
	ns := testnet.New(t, "bench")
	endpoint(t, ns)
	all := start(t, ns, ours(t))
	e := howMuch()
	var got []measured
	for round := range e.rounds {
		for _, l := range loads() {
			for i := range all { // whoever comes first has the machine as the one before left it
				c := all[(i+round)%len(all)]
				m := c.measure(t, ns, e, l)
				m.round = round
				t.Logf("%+v", m)
				got = append(got, m)
			}
		}
	}
	if !t.Failed() {
		write(t, e, all, got)
	}
}

// endpoint is an nginx that has files.
func endpoint(t *testing.T, ns *testnet.NS) {
	t.Helper()
	file := configured(t, nginxEndpoint, endpointPort, 0)
	for _, l := range loads() {
		if err := os.WriteFile(filepath.Join(filepath.Dir(file), l.file), bytes.Repeat([]byte{'x'}, l.size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for dir := filepath.Dir(file); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil { // nginx serves as another user
			t.Fatal(err)
		}
	}
	run(t, ns, endpointPort, asker, "nginx -c "+file)
}

// measure has wrk ask as fast as there are answers.
func (c *contestant) measure(t *testing.T, ns *testnet.NS, e effort, l load) measured {
	t.Helper()
	url := fmt.Sprintf("http://127.0.0.1:%d/%s", c.port, l.file)
	c.wrk(t, ns, l.conns, time.Second/2, url) // connections, buffers, heap
	before, user := c.used(t)
	text := c.wrk(t, ns, l.conns, e.run, url)
	after, userAfter := c.used(t)
	n := number(t, `(\d+) requests in`, text)
	m := measured{load: l.name, program: c.name, cpu: (after - before) / n, user: (userAfter - user) / n, rate: number(t, `Requests/sec:\s+([\d.]+)`, text)}
	m.p50, m.p99, m.p999 = milliseconds(t, "50", text), milliseconds(t, "99", text), milliseconds(t, "99.9", text)
	if f := regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`).FindStringSubmatch(text); f != nil {
		m.bad += number(t, `Non-2xx or 3xx responses: (\d+)`, text)
	}
	if f := regexp.MustCompile(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`).FindStringSubmatch(text); f != nil {
		for _, s := range f[1:] {
			v, _ := strconv.ParseFloat(s, 64)
			m.bad += v
		}
	}
	if b, err := c.process.Memory(); err == nil {
		m.memory = float64(b) / (1 << 20)
	}
	return m
}

// used is the CPU of the process in µs, and that outside the kernel.
func (c *contestant) used(t *testing.T) (all, user float64) {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.process.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	u, err1 := strconv.ParseFloat(f[11], 64)
	s, err2 := strconv.ParseFloat(f[12], 64)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return (u + s) * 10000, u * 10000
}

const script = `done = function(s, l, r)
  for _, p in pairs({50, 99, 99.9}) do io.write(string.format("percentile %g: %f ms\n", p, l:percentile(p) / 1000)) end
end
`

// wrk runs it in the namespace.
func (c *contestant) wrk(t *testing.T, ns *testnet.NS, conns int, d time.Duration, url string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "wrk.lua")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	seconds := max(1, int(d.Seconds()))
	args := strings.Fields(fmt.Sprintf("%s wrk -t1 -c%d -d%ds --timeout 10s -s %s %s", asker, conns, seconds, file, url))
	cmd := exec.Command(args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("wrk: %v: %s", err, out.String())
	}
	return out.String()
}

func number(t *testing.T, re, text string) float64 {
	t.Helper()
	f := regexp.MustCompile(re).FindStringSubmatch(text)
	if f == nil {
		t.Fatalf("wrk says no %s: %s", re, text)
	}
	v, err := strconv.ParseFloat(f[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func milliseconds(t *testing.T, p, text string) float64 {
	t.Helper()
	return number(t, `percentile `+regexp.QuoteMeta(p)+`: ([\d.]+) ms`, text)
}

// loadAverage is the number of threads that wanted to run in the last 5 minutes.
func loadAverage() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(raw)); err == nil && len(f) > 1 {
		return f[1]
	}
	return "unknown"
}

func write(t *testing.T, e effort, all []*contestant, got []measured) {
	t.Helper()
	page := result.New(result.Docs, "bench-proxy", "The HTTP proxy, measured")
	page.Text("`cd bench && go test -count=1 -timeout 2h -run TestSpeed ./proxy` made the tables of this page (`WAYLEAVE_BENCH_SHORT=1`: three rounds of short runs): %s; %s. %d rounds, all in turn, the first one another each round; each proxy on one core, one worker or thread; wrk and the endpoint, an nginx that serves files, on the other core. Keep-alive on both sides, plain HTTP/1.1, no access log, all add the X-Forwarded fields that ingress-nginx adds. wrk asks as fast as there are answers, for %s in a run. A ratio is Wayleave's number by the other's, the median of those of the rounds, with the least and the most in brackets. The machine's load was %s: the more that is above 2, the less latencies and rates say; CPU for a request says most.",
		result.Machine(), versions(all), e.rounds, e.run, loadAverage())
	for _, row := range []struct {
		title, unit, plot string
		of                func(measured) float64
	}{
		{"CPU for a request", "µs", "bench-proxy-cpu", func(m measured) float64 { return m.cpu }},
		{"CPU for a request, outside the kernel", "µs", "", func(m measured) float64 { return m.user }},
		{"Requests a second", "thousands", "", func(m measured) float64 { return m.rate / 1000 }},
		{"Latency at full speed, median", "ms", "", func(m measured) float64 { return m.p50 }},
		{"Latency at full speed, 99th percentile", "ms", "", func(m measured) float64 { return m.p99 }},
		{"Latency at full speed, 99.9th percentile", "ms", "", func(m measured) float64 { return m.p999 }},
		{"Requests that failed", "of all rounds", "", func(m measured) float64 { return m.bad }},
		{"Memory after the run, resident", "MiB", "", func(m measured) float64 { return m.memory }},
	} {
		page.Text("## %s, %s", row.title, row.unit)
		head := []string{"what is asked"}
		for _, c := range all {
			head = append(head, c.name)
		}
		for _, c := range all[1:] {
			if row.plot != "" {
				head = append(head, "to "+c.name)
			}
		}
		rows := [][]string{head}
		var labels []string
		series := make([]result.Series, len(all))
		for _, l := range loads() {
			line := []string{l.name}
			us := pick(got, l.name, all[0].name, row.of)
			labels = append(labels, l.name)
			for i, c := range all {
				v := pick(got, l.name, c.name, row.of)
				m := result.Median(v)
				if row.unit == "of all rounds" {
					m = 0
					for _, x := range v {
						m += x
					}
				}
				line = append(line, result.Number(m))
				series[i].Name, series[i].Y = c.name, append(series[i].Y, m)
			}
			for _, c := range all[1:] {
				if row.plot == "" {
					break
				}
				var ratios []float64
				for i, v := range pick(got, l.name, c.name, row.of) {
					ratios = append(ratios, us[i]/v)
				}
				line = append(line, fmt.Sprintf("**%s** (%s – %s)", result.Number(result.Median(ratios)), result.Number(result.Percentile(ratios, 1)), result.Number(result.Percentile(ratios, 100))))
			}
			rows = append(rows, line)
		}
		page.Table(rows)
		if row.plot != "" {
			if err := page.Bars(row.plot, row.title, row.unit, labels, series); err != nil {
				t.Fatal(err)
			}
		}
	}
	about, err := os.ReadFile("profile.md") // by hand, of the profile
	if err != nil {
		t.Fatal(err)
	}
	page.Text("%s", strings.TrimSpace(string(about)))
	if err := page.Write(); err != nil {
		t.Fatal(err)
	}
}

func versions(all []*contestant) string {
	var list []string
	for _, c := range all {
		if c.version != "" {
			list = append(list, c.name+" "+c.version)
		}
	}
	return strings.Join(list, ", ") + "; ReverseProxy is Go's httputil.ReverseProxy"
}

// pick are the values of one program, by round.
func pick(got []measured, load, program string, of func(measured) float64) (list []float64) {
	for _, m := range got {
		if m.load == load && m.program == program {
			list = append(list, of(m))
		}
	}
	return list
}
