package proxy

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"wayleave.dev/bench/internal/result"
)

// rounds is how often each is measured: WAYLEAVE_BENCH_SHORT=1 is for a first look, in about 4 minutes.
func rounds() int {
	if os.Getenv("WAYLEAVE_BENCH_SHORT") != "" {
		return 1
	}
	if n, err := strconv.Atoi(os.Getenv("WAYLEAVE_BENCH_ROUNDS")); err == nil {
		return n
	}
	return 3
}

// shakeTime is how long handshakes are made.
const shakeTime = time.Second

// TestSpeed measures all, and writes docs/bench-proxy.md.
// WAYLEAVE_BENCH_ONLY=text measures only what has that in its name, and writes nothing.
func TestSpeed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root (CAP_SYS_ADMIN)")
	}
	for _, need := range []string{"h2load", "taskset", "nginx"} {
		if _, err := exec.LookPath(need); err != nil {
			t.Skipf("%s is not installed (Debian: apt-get install nghttp2-client util-linux nginx-light haproxy caddy)",
				need)
		}
	}
	only := os.Getenv("WAYLEAVE_BENCH_ONLY")
	k, e := newKit(t), rounds()
	k.endpoint()
	all := k.start(nil)
	var got results
	began := loadAverage()
	for round := range e {
		for _, l := range loads() {
			for i := range all { // whoever comes first has the machine as the one before left it
				if c := all[(i+round)%len(all)]; strings.Contains(l.name, only) {
					got.note(t, round, k.measure(c, l))
				}
			}
		}
		for _, s := range shakes() {
			for i := range all {
				if c := all[(i+round)%len(all)]; strings.Contains("handshakes "+s.name, only) {
					got.note(t, round, k.handshakes(c, shakeTime, s))
				}
			}
		}
	}
	if strings.Contains("profiles", only) {
		got.profiled = k.profiles(all[0])
		t.Logf("%v", got.profiled)
	}
	for _, c := range all {
		c.stop()
	}
	if strings.Contains("memory", only) {
		got.held = k.memories()
	}
	if strings.Contains("churn", only) {
		got.churned = k.churns(e)
	}
	if os.Getenv(beside) != "" {
		got.compare(t)
		return
	}
	if !t.Failed() && only == "" {
		got.write(t, e, all, began)
	}
}

// results are all that was measured.
type results struct {
	runs     []measured
	held     []held
	churned  []churned
	profiled []profiled
}

func (r *results) note(t *testing.T, round int, m measured) {
	m.round = round
	t.Logf("%+v", m)
	r.runs = append(r.runs, m)
}

// compare logs medians beside those of another version.
func (r *results) compare(t *testing.T) {
	cpu := func(m measured) float64 { return m.cpu }
	var kinds []string
	for _, l := range loads() {
		kinds = append(kinds, l.name)
	}
	for _, s := range shakes() {
		kinds = append(kinds, s.name)
	}
	for _, kind := range kinds {
		if now := r.pick(kind, "Wayleave", cpu); len(now) > 0 {
			t.Logf("%s: %s µs, before %s, nginx %s; by before %s, by nginx %s", kind, result.Number(result.Median(now)),
				result.Number(result.Median(r.pick(kind, versionBefore, cpu))),
				result.Number(result.Median(r.pick(kind, "nginx", cpu))),
				result.Number(result.Median(r.ratios(kind, "Wayleave", versionBefore, cpu))),
				result.Number(result.Median(r.ratios(kind, "Wayleave", "nginx", cpu))))
		}
	}
}

// loadAverage is the number of threads that wanted to run in the last 5 minutes.
func loadAverage() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(raw)); err == nil && len(f) > 1 {
		return f[1]
	}
	return "unknown"
}

// column is one number of a run.
type column struct {
	title, unit string
	of          func(measured) float64
	// ratios are shown, too.
	ratios bool
}

func (r *results) write(t *testing.T, e int, all []*contestant, began string) {
	t.Helper()
	page := result.New(result.Docs, "bench-proxy", "The HTTP proxy, measured")
	page.Text("`cd bench && go test -count=1 -timeout 2h -run TestSpeed ./proxy` made the tables of this page, and "+
		"`make bench` does (`WAYLEAVE_BENCH_SHORT=1`: one short round; `WAYLEAVE_BENCH_ONLY=HTTP/2`: only what has "+
		"that in its name): %s; %s. %d rounds, all in turn, the first one another each round; each proxy on one "+
		"core, one worker or thread; h2load and the endpoint, an nginx that serves files, on the other core.",
		result.Machine(), versions(all), e)
	page.Text("Wayleave is the product's own process (`proxy/process`), with its metrics, fed by the agent's own "+
		"source, model and loop from an API server of the benchmark's. Keep-alive on both sides, HTTP/1.1 to the "+
		"endpoint, no access log, all add the X-Forwarded fields that ingress-nginx adds. TLS is 1.3 with "+
		"AES-128-GCM and X25519 for all. HTTP/2 is by TLS with 8 streams a connection. h2load asks as fast as there "+
		"are answers. Once all connections and handshakes are made, CPU is that of the processes between two "+
		"moments, by the requests that the endpoint counted between them: %d, or as many as come in %s. At both "+
		"moments h2load is stopped until the proxy has done all that it was asked. A ratio is Wayleave's number by "+
		"the other's, the median of those of the rounds, with the least and the most in brackets.", enough, mostTime)
	page.Text("The machine's load was %s at the begin and %s at the end, others worked on its cores: the more that "+
		"is above 2, the less latencies and rates say. CPU for a request says most.", began, loadAverage())
	cpu := column{"CPU for a request, µs", "µs", func(m measured) float64 { return m.cpu }, true}
	r.summary(t, page, all)
	for _, c := range []column{
		cpu,
		{"CPU for a request, outside the kernel, µs", "µs", func(m measured) float64 { return m.user }, false},
		{"Requests a second, thousands", "thousands", func(m measured) float64 { return m.rate / 1000 }, false},
		{"Latency at full speed, median, ms", "ms", func(m measured) float64 { return m.p50 }, false},
		{"Latency at full speed, 99th percentile, ms", "ms", func(m measured) float64 { return m.p99 }, false},
		{"Latency at full speed, 99.9th percentile, ms", "ms", func(m measured) float64 { return m.p999 }, false},
		{"Requests that failed, the most of a round", "", func(m measured) float64 { return m.bad }, false},
		{"Memory after the run, resident, MiB", "MiB", func(m measured) float64 { return m.memory }, false},
	} {
		page.Text("## %s", c.title)
		r.table(page, "what is asked", names(loads(), func(l load) string { return l.name }), all, c)
		if c.ratios {
			r.plots(t, page, all, c)
		}
	}
	page.Text("## Handshakes")
	page.Text("A connection is opened, its handshake made, and closed; 8 at a time. The client is on the other core " +
		"and costs more than most servers, so handshakes a second are what a server's CPU allows: a second by " +
		"the CPU for one.")
	kinds := names(shakes(), func(s shake) string { return s.name })
	r.table(page, "CPU for a handshake, µs", kinds, all, cpu)
	r.table(page, "handshakes a second of one core", kinds, all,
		column{of: func(m measured) float64 { return 1e6 / m.cpu }})
	r.table(page, "handshakes a second, as seen", kinds, all, column{of: func(m measured) float64 { return m.rate }})
	if err := page.Bars("bench-proxy-handshakes", "CPU for a handshake", "µs", kinds,
		r.series(kinds, all, cpu)); err != nil {
		t.Fatal(err)
	}
	r.routes(t, page)
	writeProfiles(t, page, r.profiled)
	about, err := os.ReadFile("profile.md") // by hand, of the profile
	if err != nil {
		t.Fatal(err)
	}
	page.Text("%s", strings.TrimSpace(string(about)))
	if err := page.Write(); err != nil {
		t.Fatal(err)
	}
}

func names[T any](list []T, of func(T) string) (out []string) {
	for _, x := range list {
		out = append(out, of(x))
	}
	return out
}

// summary is the one table that says what matters: ratios to nginx, by group.
func (r *results) summary(t *testing.T, page *result.Page, all []*contestant) {
	t.Helper()
	page.Text("## In short")
	rows := [][]string{{"CPU, Wayleave's by nginx's", "ratio", "reach 1.2"}}
	line := func(name string, ratios []float64) {
		if len(ratios) == 0 {
			return
		}
		m := result.Median(ratios)
		reached := "yes"
		if m > 1.2 {
			reached = "no"
		}
		rows = append(rows, []string{name, fmt.Sprintf("**%s**", result.Number(m)), reached})
	}
	cpu := func(m measured) float64 { return m.cpu }
	for _, l := range loads() {
		line(l.name, r.ratios(l.name, all[0].name, "nginx", cpu))
	}
	for _, s := range shakes() {
		line("handshake, "+s.name, r.ratios(s.name, all[0].name, "nginx", cpu))
	}
	page.Table(rows)
}

// ratios are those of the rounds.
func (r *results) ratios(what, one, other string, of func(measured) float64) (list []float64) {
	us, them := r.pick(what, one, of), r.pick(what, other, of)
	for i := range min(len(us), len(them)) {
		list = append(list, us[i]/them[i])
	}
	return list
}

// table has a row for each load.
func (r *results) table(page *result.Page, what string, kinds []string, all []*contestant, c column) {
	head := []string{what}
	for _, x := range all {
		head = append(head, x.name)
	}
	for _, x := range all[1:] {
		if c.ratios {
			head = append(head, "to "+x.name)
		}
	}
	rows := [][]string{head}
	for _, kind := range kinds {
		line := []string{kind}
		for _, x := range all {
			v := r.pick(kind, x.name, c.of)
			m := result.Median(v)
			if strings.Contains(c.title, "the most") {
				m = result.Percentile(v, 100)
			}
			line = append(line, result.Number(m))
		}
		for _, x := range all[1:] {
			if c.ratios {
				list := r.ratios(kind, all[0].name, x.name, c.of)
				line = append(line, fmt.Sprintf("**%s** (%s – %s)", result.Number(result.Median(list)),
					result.Number(result.Percentile(list, 1)), result.Number(result.Percentile(list, 100))))
			}
		}
		rows = append(rows, line)
	}
	page.Table(rows)
}

func (r *results) series(kinds []string, all []*contestant, c column) []result.Series {
	series := make([]result.Series, len(all))
	for i, x := range all {
		series[i].Name = x.name
		for _, kind := range kinds {
			series[i].Y = append(series[i].Y, result.Median(r.pick(kind, x.name, c.of)))
		}
	}
	return series
}

// plots has a plot for each group of loads.
func (r *results) plots(t *testing.T, page *result.Page, all []*contestant, c column) {
	t.Helper()
	files := map[string]string{"HTTP/1.1": "bench-proxy-cpu", "TLS, P-256": "bench-proxy-cpu-p256",
		"TLS, RSA-2048": "bench-proxy-cpu-rsa", "HTTP/2": "bench-proxy-cpu-http2"}
	groups := map[string][]string{}
	var order []string
	for _, l := range loads() {
		if groups[l.group] == nil {
			order = append(order, l.group)
		}
		groups[l.group] = append(groups[l.group], l.name)
	}
	for _, g := range order {
		var labels []string
		for _, n := range groups[g] {
			labels = append(labels, strings.TrimPrefix(n, g+", "))
		}
		if err := page.Bars(files[g], "CPU for a request, "+g, "µs", labels, r.series(groups[g], all, c)); err != nil {
			t.Fatal(err)
		}
	}
}

// routes writes what many routes and their changes cost.
func (r *results) routes(t *testing.T, page *result.Page) {
	t.Helper()
	page.Text("## Memory with 10,000 routes, MiB")
	page.Text("10,000 hosts of one path each, to 1,000 Services of one endpoint: for Wayleave as many Ingresses, " +
		"for nginx a `server` for each host and an `upstream` for each Service that keeps 16 connections, for " +
		"HAProxy a map file and a backend for each Service, for Caddy a route for each host, for ReverseProxy a " +
		"map. A tenth of them was asked for once. Where a program has several processes (nginx's master), they are " +
		"summed; proportional counts shared pages once.")
	rows := [][]string{{"program", "resident", "proportional"}}
	agent := 0.0
	for _, h := range r.held {
		rows = append(rows, []string{h.program, result.Number(h.resident), result.Number(h.proportional)})
		agent = max(agent, h.agent)
	}
	page.Table(rows)
	page.Text("Beside that, the agent that feeds Wayleave's proxy holds %s MiB for source, model and plans of these "+
		"routes; others have a controller for that, which is not in the table.", result.Number(agent))
	page.Text("## From a change to served, 1,000 routes")
	page.Text("All of 1,000 routes change, 200 of them in a second; each tenth is asked for by new connections, " +
		"every 2 ms, until the new endpoint answers. Wayleave is told each change as an Ingress by its API server, " +
		"so its number has the watch, the model, the plan, the feed and the table in it. The others are given a " +
		"controller that costs nothing and never waits: it writes the whole configuration with all changes that are " +
		"there, has it loaded (nginx: SIGHUP; HAProxy: SIGUSR2 to its master; Caddy: POST to /load), and begins " +
		"again when a change of that is served. A real controller for nginx waits between reloads. HAProxy could " +
		"change a map by its runtime API without a reload; a new backend or certificate cannot be had so in this " +
		"version. CPU is that of all processes by the number of changes, Wayleave's with its agent.")
	rows = [][]string{{"program", "p50, ms", "p99, ms", "most, ms", "CPU for a change, ms", "times loaded",
		"looks without a 200"}}
	var labels []string
	by := map[string][]churned{}
	for _, c := range r.churned {
		if by[c.program] == nil {
			labels = append(labels, c.program)
		}
		by[c.program] = append(by[c.program], c)
	}
	p50, p99 := result.Series{Name: "p50"}, result.Series{Name: "p99"}
	for _, name := range labels {
		median := func(of func(churned) float64) float64 { return result.Median(values(by[name], of)) }
		a, b := median(func(c churned) float64 { return c.p50 }), median(func(c churned) float64 { return c.p99 })
		p50.Y, p99.Y = append(p50.Y, a), append(p99.Y, b)
		loaded := result.Number(median(func(c churned) float64 { return float64(c.reloads) }))
		if name == "Wayleave" {
			loaded = "never"
		}
		rows = append(rows, []string{name, result.Number(a), result.Number(b),
			result.Number(result.Percentile(values(by[name], func(c churned) float64 { return c.max }), 100)),
			result.Number(median(func(c churned) float64 { return c.cpu })), loaded,
			result.Number(result.Percentile(values(by[name], func(c churned) float64 { return float64(c.lost) }),
				100))})
	}
	page.Table(rows)
	if len(labels) > 0 {
		if err := page.Bars("bench-proxy-change", "From a change to served", "ms", labels,
			[]result.Series{p50, p99}); err != nil {
			t.Fatal(err)
		}
	}
}

func values(list []churned, of func(churned) float64) (out []float64) {
	for _, c := range list {
		out = append(out, of(c))
	}
	return out
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
func (r *results) pick(load, program string, of func(measured) float64) (list []float64) {
	for _, m := range r.runs {
		if m.load == load && m.program == program {
			list = append(list, of(m))
		}
	}
	return list
}
