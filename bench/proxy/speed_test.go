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

// rounds is the number of measurements of each load: WAYLEAVE_BENCH_SHORT=1 gives a first impression in about 4
// minutes.
func rounds() int {
	if os.Getenv("WAYLEAVE_BENCH_SHORT") != "" {
		return 1
	}
	if n, err := strconv.Atoi(os.Getenv("WAYLEAVE_BENCH_ROUNDS")); err == nil {
		return n
	}
	return 3
}

// shakeTime is the duration of handshake measurements.
const shakeTime = time.Second

// TestSpeed makes all measurements, and writes docs/bench-proxy.md. WAYLEAVE_BENCH_ONLY=text measures only loads with
// that in their names, and writes nothing.
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
			for i := range all { // the first one finds the machine in the previous one's state
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

// results are all measurements.
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

// compare logs medians next to those of another version.
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

// loadAverage returns the average number of runnable threads in the last 5 minutes.
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
	// ratios means that ratios are shown, too.
	ratios bool
}

func (r *results) write(t *testing.T, e int, all []*contestant, began string) {
	t.Helper()
	page := result.New(result.Docs, "bench-proxy", "Benchmark: HTTP proxy")
	page.Text("`cd bench && go test -count=1 -timeout 2h -run TestSpeed ./proxy` generates the tables of this page, "+
		"and so does `make bench` (`WAYLEAVE_BENCH_SHORT=1`: one short round; `WAYLEAVE_BENCH_ONLY=HTTP/2`: only "+
		"loads with that in their names): %s; %s. %d rounds; each round measures all proxies in turn and starts "+
		"with a different one; each proxy has one core and one worker or thread; h2load and the endpoint, an nginx "+
		"that serves files, use the other core.",
		result.Machine(), versions(all), e)
	page.Text("Wayleave is the production process (`proxy/process`), with its metrics, fed by the agent's own "+
		"source, model and loop from the benchmark's API server. Keep-alive on both sides, HTTP/1.1 to the "+
		"endpoint, no access log; all add ingress-nginx's X-Forwarded fields. All use TLS 1.3 with AES-128-GCM and "+
		"X25519. HTTP/2 is over TLS with 8 streams per connection. h2load sends as fast as answers arrive. CPU is "+
		"measured after all connections and handshakes are made: the CPU time of the processes between two moments, "+
		"divided by the requests that the endpoint counted between them: %d, or as many as arrive in %s. At both "+
		"moments h2load is paused until the proxy has finished all requests. A ratio is Wayleave's value divided by "+
		"the other's, the median over the rounds, with the minimum and maximum in brackets.", enough, mostTime)
	page.Text("The machine's load was %s at the start and %s at the end, because other programs used its cores: the "+
		"further it is above 2, the less reliable are latencies and rates. CPU per request is the most reliable "+
		"number.", began, loadAverage())
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
	page.Text("Each connection is opened, makes its handshake, and is closed; 8 run concurrently. The client is on " +
		"the other core and costs more than most servers, so the handshakes per second of a core are computed: one " +
		"second divided by the CPU time of a handshake.")
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
	about, err := os.ReadFile("profile.md") // written by hand, about the profile
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

// summary is the most important table: ratios to nginx, by group.
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

// ratios returns those of the rounds.
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

// routes writes the cost of many routes and their changes.
func (r *results) routes(t *testing.T, page *result.Page) {
	t.Helper()
	page.Text("## Memory with 10,000 routes, MiB")
	page.Text("10,000 hosts with one path each, to 1,000 Services with one endpoint: for Wayleave one Ingress per " +
		"host, for nginx a `server` for each host and an `upstream` with 16 idle connections for each Service, for " +
		"HAProxy a map file and a backend for each Service, for Caddy a route for each host, for ReverseProxy a " +
		"map. A tenth of the hosts was requested once. If a program has several processes (nginx's master), they " +
		"are summed; proportional counts shared pages once.")
	rows := [][]string{{"program", "resident", "proportional"}}
	agent := 0.0
	for _, h := range r.held {
		rows = append(rows, []string{h.program, result.Number(h.resident), result.Number(h.proportional)})
		agent = max(agent, h.agent)
	}
	page.Table(rows)
	page.Text("In addition, the agent that feeds Wayleave's proxy holds %s MiB for source, model and plans of these "+
		"routes; the others need a controller for that, which is not in the table.", result.Number(agent))
	page.Text("## From a change to served, 1,000 routes")
	page.Text("All of 1,000 routes change, 200 per second; every tenth is requested over new connections, every 2 " +
		"ms, until the new endpoint answers. Wayleave receives each change as an Ingress from its API server, so " +
		"its time includes the watch, the model, the plan, the feed and the table. The others get an ideal " +
		"controller that costs nothing and never waits: it writes the complete configuration with all changes so " +
		"far, loads it (nginx: SIGHUP; HAProxy: SIGUSR2 to its master; Caddy: POST to /load), and starts again when " +
		"one of these changes is served. A real controller for nginx waits between reloads. HAProxy could change a " +
		"map through its runtime API without a reload, but in this version not add a backend or a certificate. CPU " +
		"is that of all processes divided by the number of changes, Wayleave's with its agent.")
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

// pick returns the values of one program, by round.
func (r *results) pick(load, program string, of func(measured) float64) (list []float64) {
	for _, m := range r.runs {
		if m.load == load && m.program == program {
			list = append(list, of(m))
		}
	}
	return list
}
