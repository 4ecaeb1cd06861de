package dns

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/fakeapi"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/lab/build"
)

const (
	changeRate = 1000 // endpoint changes a second
	// paceRate is the load for latencies, in queries per second: far below the capacity of both.
	paceRate = 1000
	// headlessOf is the share of headless Services: one of so many.
	headlessOf = 10
)

// effort is the duration and number of runs.
type effort struct {
	full, pace time.Duration // of one run at full speed and of one at paceRate
	rounds     int
}

// howMuch returns the effort: WAYLEAVE_BENCH_SHORT=1 gives a first impression in under 5 minutes.
func howMuch() effort {
	if os.Getenv("WAYLEAVE_BENCH_SHORT") != "" {
		return effort{full: 2 * time.Second, pace: 2 * time.Second, rounds: 1}
	}
	return effort{full: 4 * time.Second, pace: 4 * time.Second, rounds: 5}
}

func speedSizes() []int { return []int{10, 1000, 10000} }

// load is the queries, and whether the API changes meanwhile.
type load struct {
	name   string
	churn  bool
	lines  func(size int) []string
	remark string
}

func loads() []load {
	return []load{
		{name: "names of Services", lines: hits, remark: "A of Services; one of ten is headless, with 10 endpoints"},
		{name: "names that are not there", lines: misses,
			remark: "the first step of an ndots walk, `name.N.bench.svc.cluster.local`: NXDOMAIN"},
		{name: "names outside", lines: outsiders,
			remark: "A of 100 names, TTL 20 s, from an upstream server on the node"},
		{name: "names of Services, 1000 changes a second", churn: true, lines: hits,
			remark: "the same, while 1000 endpoints of headless Services change each second"},
	}
}

func hits(size int) (lines []string) {
	for range 5000 {
		lines = append(lines, fmt.Sprintf("svc-%d.bench.svc.cluster.local A", rand.IntN(size)))
	}
	return lines
}

func misses(int) (lines []string) {
	for i := range 5000 {
		lines = append(lines, fmt.Sprintf("www.example.%d.bench.svc.cluster.local A", i))
	}
	return lines
}

func outsiders(int) (lines []string) {
	for range 5000 {
		lines = append(lines, fmt.Sprintf("host-%d.example.org A", rand.IntN(100)))
	}
	return lines
}

// measured is the result of one run.
type measured struct {
	size          int
	load, program string
	cpu           float64 // µs per query, of all processes
	rate          float64 // answered queries per second
	lost          float64 // share of queries without an answer
	p50, p99      float64 // µs at paceRate
}

// TestSpeed measures both and writes docs/bench-dns.md.
func TestSpeed(t *testing.T) {
	p := buildPrograms(t)
	for _, need := range []string{"dnsperf", "taskset"} {
		if _, err := exec.LookPath(need); err != nil {
			t.Fatalf("%s is missing; hack/setup installs it", need)
		}
	}
	e := howMuch()
	var got []measured
	for _, size := range speedSizes() {
		t.Run(fmt.Sprint(size), func(t *testing.T) { got = append(got, measureSize(t, p, e, size)...) })
	}
	if !t.Failed() {
		writeSpeed(t, e, got)
	}
}

// side is a contestant with its API server.
type side struct {
	c   *contestant
	api *fakeapi.Server
}

// measureSize starts both, and measures them in turn.
func measureSize(t *testing.T, p programs, e effort, size int) (list []measured) {
	var sides []side
	for i := range 2 {
		api := fakeapi.New()
		t.Cleanup(api.Close)
		populate(api, size)
		one := []string{"nice", "-n", "-10", "taskset", "-c", "0"} // a core for each server, the other for dnsperf
		if i == 0 {
			sides = append(sides, side{p.startOursBehind(t, api, one), api})
		} else {
			sides = append(sides, side{p.startCoreDNS(t, api, corefile, one...), api})
		}
	}
	for _, s := range sides {
		ready(t, s.c, "last.bench.svc."+domain)
	}
	for _, s := range sides {
		s.settle(t)
	}
	for round := range e.rounds {
		for _, l := range loads() {
			file := filepath.Join(t.TempDir(), "queries")
			if err := os.WriteFile(file, []byte(strings.Join(l.lines(size), "\n")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			for i := range sides {
				s := sides[(i+round)%2]
				m := measured{size: size, load: l.name, program: s.c.name}
				stop := func() {}
				if l.churn {
					stop = change(s.api, size)
				}
				s.full(t, e, file, &m)
				s.pace(t, e, file, &m)
				stop()
				if l.churn {
					s.settle(t)
				}
				t.Logf("%+v", m)
				list = append(list, m)
			}
		}
	}
	return list
}

// populate fills an API server.
func populate(api *fakeapi.Server, size int) {
	api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bench"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	for i := range size {
		api.Put(benchSlice(i, 0), benchService(fmt.Sprintf("svc-%d", i), i))
	}
	api.Put(benchService("last", 1))
}

func benchService(name string, i int) *corev1.Service {
	vip := fmt.Sprintf("10.96.%d.%d", 16+i/250, 1+i%250)
	if i%headlessOf == 0 {
		vip = corev1.ClusterIPNone
	}
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: name}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: vip, ClusterIPs: []string{vip},
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}}
}

// benchSlice has 10 endpoints; the last one's address depends on the round.
func benchSlice(i, turn int) *discoveryv1.EndpointSlice {
	name := fmt.Sprintf("svc-%d", i)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: name + "-1",
			Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](80),
			Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	for j := range 10 {
		last := 1 + j
		if j == 9 {
			last = 10 + turn%200
		}
		s.Endpoints = append(s.Endpoints, ep(fmt.Sprintf("10.%d.%d.%d", 100+i/250, i%250, last)))
	}
	return s
}

// change moves endpoints of headless Services until stopped.
func change(api *fakeapi.Server, size int) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for turn := 1; ; {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			for range changeRate / 100 {
				turn++
				api.Put(benchSlice(headlessOf*rand.IntN(max(1, size/headlessOf)), turn))
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// cpu returns the CPU time of all processes of a contestant.
func (c *contestant) cpu(t *testing.T) (sum time.Duration) {
	t.Helper()
	for _, p := range c.all {
		used, err := p.CPU()
		if err != nil {
			t.Fatal(err)
		}
		sum += used
	}
	return sum
}

// settle waits until a contestant is idle.
func (s side) settle(t *testing.T) {
	t.Helper()
	testnet.Eventually(t, 2*time.Minute, func() error {
		before := s.c.cpu(t)
		time.Sleep(300 * time.Millisecond)
		if used := s.c.cpu(t) - before; used > 10*time.Millisecond {
			return fmt.Errorf("%s is still busy: %s of CPU in 300 ms", s.c.name, used)
		}
		return nil
	})
}

// dnsperf runs the program in the contestant's namespace.
func (c *contestant) dnsperf(t *testing.T, file string, args ...string) string {
	t.Helper()
	line := append([]string{"-n", "-10", "taskset", "-c", "1", "dnsperf", "-s", "10.96.0.10", "-d", file, "-T", "1",
		"-t", "2"}, args...)
	cmd := exec.Command("nice", line...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := c.ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("dnsperf: %v: %s", err, errs.String())
	}
	return out.String()
}

var (
	completed = regexp.MustCompile(`Queries completed:\s+(\d+)`)
	sent      = regexp.MustCompile(`Queries sent:\s+(\d+)`)
	perSecond = regexp.MustCompile(`Queries per second:\s+([\d.]+)`)
	one       = regexp.MustCompile(`(?m)^> \S+ \S+ \S+ ([\d.]+)$`)
)

func number(t *testing.T, re *regexp.Regexp, text string) float64 {
	t.Helper()
	f := re.FindStringSubmatch(text)
	if f == nil {
		t.Fatalf("no %s in the output of dnsperf: %s", re, text)
	}
	v, err := strconv.ParseFloat(f[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// full sends as fast as answers arrive.
func (s side) full(t *testing.T, e effort, file string, m *measured) {
	t.Helper()
	before := s.c.cpu(t)
	text := s.c.dnsperf(t, file, "-c", "16", "-q", "100", "-l", fmt.Sprint(int(e.full.Seconds())))
	used := s.c.cpu(t) - before
	n := number(t, completed, text)
	m.cpu, m.rate = float64(used.Microseconds())/n, number(t, perSecond, text)
	m.lost = 1 - n/number(t, sent, text)
}

// pace sends at a steady rate, and returns the time of each answer.
func (s side) pace(t *testing.T, e effort, file string, m *measured) {
	t.Helper()
	text := s.c.dnsperf(t, file, "-c", "16", "-v", "-Q", fmt.Sprint(paceRate), "-l", fmt.Sprint(int(e.pace.Seconds())))
	var times []float64
	for _, f := range one.FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		times = append(times, v*1e6)
	}
	if len(times) == 0 {
		t.Fatalf("no times in the output of dnsperf: %.2000s", text)
	}
	m.p50, m.p99 = result.Percentile(times, 50), result.Percentile(times, 99)
}

// loadAverage returns the average number of runnable threads in the last 5 minutes.
func loadAverage() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(raw)); err == nil && len(f) > 1 {
		return f[1]
	}
	return "unknown"
}

func writeSpeed(t *testing.T, e effort, got []measured) {
	t.Helper()
	page := result.New(result.Docs, "bench-dns", "Benchmark: cluster DNS")
	page.Text("`cd bench && go test -count=1 -timeout 2h -run TestSpeed ./dns` generates this page "+
		"(`WAYLEAVE_BENCH_SHORT=1`: one round of short runs): %s; CoreDNS %s with kubeadm's Corefile. %d round(s), "+
		"alternating, each server on one core with all of its processes, dnsperf on the other core, a fake API "+
		"server for each. At full speed dnsperf keeps 100 queries in flight for %s; latencies are measured at %d "+
		"queries per second for %s. A ratio is CoreDNS's value divided by Wayleave's, the median over the rounds. "+
		"The machine's load was %s (all measured programs run at nice −10): the further it is above 2, the less "+
		"reliable are latencies and rates; CPU per query is the most reliable number.",
		result.Machine(), build.CoreDNSVersion, e.rounds, e.full, paceRate, e.pace, loadAverage())
	for _, l := range loads() {
		page.Text("- **%s**: %s", l.name, l.remark)
	}
	for _, row := range []struct {
		title, unit, plot string
		of                func(measured) float64
	}{
		{"CPU for a query at full speed", "µs", "bench-dns-cpu", func(m measured) float64 { return m.cpu }},
		{"Answers on one core", "thousands a second", "bench-dns-rate",
			func(m measured) float64 { return m.rate / 1000 }},
		{"Latency, median", "µs", "", func(m measured) float64 { return m.p50 }},
		{"Latency, 99th percentile", "µs", "", func(m measured) float64 { return m.p99 }},
		{"Queries without an answer at full speed", "%", "", func(m measured) float64 { return 100 * m.lost }},
	} {
		page.Text("## %s, %s", row.title, row.unit)
		rows := [][]string{{"what is asked", "services", "Wayleave", "CoreDNS", "ratio"}}
		var labels []string
		series := []result.Series{{Name: "Wayleave"}, {Name: "CoreDNS"}}
		for _, l := range loads() {
			for _, size := range speedSizes() {
				ours, theirs := pick(got, size, l.name, "Wayleave", row.of), pick(got, size, l.name, "CoreDNS", row.of)
				var ratios []float64
				for i := range min(len(ours), len(theirs)) {
					if ours[i] > 0 {
						ratios = append(ratios, theirs[i]/ours[i])
					}
				}
				ratio := "–"
				if len(ratios) > 0 && row.unit != "%" {
					ratio = result.Number(result.Median(ratios))
				}
				a, b := result.Median(ours), result.Median(theirs)
				rows = append(rows, []string{l.name, fmt.Sprint(size), result.Number(a), result.Number(b), ratio})
				if size == 1000 {
					labels = append(labels, l.name)
					series[0].Y, series[1].Y = append(series[0].Y, a), append(series[1].Y, b)
				}
			}
		}
		page.Table(rows)
		if row.plot != "" {
			if err := page.Bars(row.plot, row.title, row.unit+", at 1000 services", labels, series); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := page.Write(); err != nil {
		t.Fatal(err)
	}
}

// pick returns the values of one program, by round.
func pick(got []measured, size int, load, program string, of func(measured) float64) (list []float64) {
	for _, m := range got {
		if m.size == size && m.load == load && m.program == program {
			list = append(list, of(m))
		}
	}
	return slices.Clip(list)
}
