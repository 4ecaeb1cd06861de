// Package service compares the service proxy with kube-proxy, each with the same fake API server.
package service

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"wayleave.dev/bench/internal/kubeproxy"
	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/fakeapi"
	"wayleave.dev/internal/testnet"
)

const (
	perService = 10 // endpoints
	rounds     = 3
	changes    = 20
	rest       = 5 * time.Second
	churnFor   = 10 * time.Second
	churnRate  = 100 // changes a second
	connects   = 300
	deadline   = 5 * time.Minute
)

func sizes() []int { return []int{100, 1000, 10000} }

// measured is the result of one run of one program: a line of resultsFile.
type measured struct {
	Services int
	Program  string
	// Times of a full sync, of a change (the median) and of a connection (the median).
	Sync, Change, Connect time.Duration
	// CPU time in churnFor and in rest.
	Churn, Rest time.Duration
	Memory      int64
	// First is Connect through the first of the services, Rules the number of rules in the kernel, Round the run; only
	// for runs of the modes.
	First time.Duration `json:",omitempty"`
	Rules int           `json:",omitempty"`
	Round int           `json:",omitempty"`
	// Failed explains why there are no numbers.
	Failed string `json:",omitempty"`
}

// resultsFile stores the runs, from which the page is generated. With WAYLEAVE_BENCH_ADD set, existing ones are not
// repeated: running all takes an hour.
const resultsFile = "results.jsonl"

func read(t *testing.T) (list []measured) {
	t.Helper()
	raw, err := os.ReadFile(resultsFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var m measured
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%s: %v", resultsFile, err)
		}
		list = append(list, m)
	}
	return list
}

func keep(t *testing.T, m measured) {
	t.Helper()
	f, err := os.OpenFile(resultsFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(m)
	if err == nil {
		_, err = f.Write(append(raw, '\n'))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

type contestant struct {
	name  string
	start func(t *testing.T, node *testnet.NS) *kubeproxy.Process
	rules func(node *testnet.NS) int // nil: they are not counted
}

const master = "http://127.0.0.1:6443"

// TestService makes all measurements and writes docs/bench-service.md.
func TestService(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	bin, version := kubeproxy.Program(t)
	proxy := filepath.Join(t.TempDir(), "proxy")
	build := exec.Command("go", "build", "-trimpath", "-o", proxy, "./proxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	all := []contestant{
		{name: "Wayleave", start: func(t *testing.T, n *testnet.NS) *kubeproxy.Process {
			return kubeproxy.Run(t, n, exec.Command(proxy, "-master", master))
		}},
		{name: "kube-proxy nftables", start: func(t *testing.T, n *testnet.NS) *kubeproxy.Process {
			return kubeproxy.Start(t, bin, n, "node1", "nftables", master, "10.244.0.0/16")
		}},
		{name: "kube-proxy iptables", start: func(t *testing.T, n *testnet.NS) *kubeproxy.Process {
			return kubeproxy.Start(t, bin, n, "node1", "iptables", master, "10.244.0.0/16")
		}},
	}
	page := result.New(result.Docs, "bench-service", "Benchmark: Services")
	page.Text("`make bench` generates this page: %s; kube-proxy %s with minSyncPeriod 1 ms (0 is its default, 1 s). "+
		"Medians of %d interleaved runs (at 10,000 services one run of each), each in its own namespaces, with one "+
		"fake API server; %d endpoints per service; a ratio is the other's value divided by Wayleave's. Times are "+
		"measured by packets: from the start of the process, or the event of the API server, until the right "+
		"endpoint answers a connection.",
		result.Machine(), version, rounds, perService)
	if os.Getenv("WAYLEAVE_BENCH_ADD") == "" {
		if err := os.Remove(resultsFile); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	for _, size := range sizes() {
		for round := range roundsOf(size) {
			for i := range all {
				c := all[(i+round)%len(all)]
				done := 0
				for _, m := range read(t) {
					if m.Services == size && m.Program == c.name {
						done++
					}
				}
				if done > round {
					continue
				}
				fmt.Fprintf(os.Stderr, "bench/service: %d services, round %d of %d, %s\n", size, round+1,
					roundsOf(size), c.name)
				t.Run(fmt.Sprintf("%d %s %d", size, c.name, round),
					func(t *testing.T) { keep(t, measure(t, c, size, perService)) })
			}
		}
	}
	if t.Failed() {
		return
	}
	write(t, page, all, read(t))
}

// roundsOf is how often each program runs; at 10,000 services kube-proxy takes a quarter of an hour each time.
func roundsOf(size int) int {
	if size >= 10000 {
		return 1
	}
	return rounds
}

func write(t *testing.T, page *result.Page, all []contestant, got []measured) {
	t.Helper()
	failed := map[string]bool{}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	for _, row := range []struct {
		title, unit, plot string
		of                func(measured) float64
	}{
		{"Full sync at the start", "ms", "bench-service-sync", func(m measured) float64 { return ms(m.Sync) }},
		{"One endpoint changes", "ms", "bench-service-change", func(m measured) float64 { return ms(m.Change) }},
		{"CPU of 100 changes a second", "% of a core", "",
			func(m measured) float64 { return 100 * m.Churn.Seconds() / churnFor.Seconds() }},
		{"CPU at rest", "% of a core", "", func(m measured) float64 { return 100 * m.Rest.Seconds() / rest.Seconds() }},
		{"Memory (resident)", "MB", "bench-service-memory",
			func(m measured) float64 { return float64(m.Memory) / 1e6 }},
		{"A new connection through a VIP", "ms", "", func(m measured) float64 { return ms(m.Connect) }},
	} {
		page.Text("## %s, %s", row.title, row.unit)
		rows := [][]string{{"services", all[0].name, all[1].name, "ratio", all[2].name, "ratio"}}
		var labels []string
		series := make([]result.Series, len(all))
		for _, size := range sizes() {
			var v [3]float64
			for i := range all {
				var list []float64
				for _, m := range got {
					if m.Services != size || m.Program != all[i].name {
						continue
					}
					if m.Failed != "" {
						failed[fmt.Sprintf("%s with %d services: %s", m.Program, size, m.Failed)] = true
						continue
					}
					list = append(list, row.of(m))
				}
				v[i] = result.Median(list)
				series[i].Name = all[i].name
				series[i].Y = append(series[i].Y, v[i])
			}
			ratio := func(x float64) string {
				if v[0] == 0 || x == 0 {
					return "–"
				}
				return result.Number(x / v[0])
			}
			number := func(x float64) string {
				if x == 0 && row.title != "CPU at rest" {
					return "failed"
				}
				return result.Number(x)
			}
			rows = append(rows, []string{fmt.Sprint(size), number(v[0]), number(v[1]), ratio(v[1]),
				number(v[2]), ratio(v[2])})
			labels = append(labels, fmt.Sprint(size))
		}
		page.Table(rows)
		if row.plot != "" {
			if err := page.Bars(row.plot, row.title, row.unit+", by number of services", labels, series); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, f := range slices.Sorted(maps.Keys(failed)) {
		page.Text("Failed: %s.", f)
	}
	if err := page.Write(); err != nil {
		t.Fatal(err)
	}
}

// measure runs one program on a node with the given numbers of services and endpoints.
func measure(t *testing.T, c contestant, size, per int) (m measured) {
	m.Services, m.Program = size, c.name
	node, client, server := testnet.New(t, "node"), testnet.New(t, "client"), testnet.New(t, "server")
	node.Router()
	for i, pod := range []*testnet.NS{client, server} {
		link := fmt.Sprintf("pod%d", i)
		testnet.Veth(pod, "eth0", node, link)
		node.Addr(link, fmt.Sprintf("10.244.%d.1/24", i))
		pod.Addr("eth0", fmt.Sprintf("10.244.%d.2/24", i))
		pod.Route("0.0.0.0/0", fmt.Sprintf("10.244.%d.1", i))
	}
	fabric := testnet.New(t, "fabric")
	testnet.Veth(node, "eth0", fabric, "p0")
	node.Addr("eth0", "172.30.0.1/24")
	node.Run("ip", "route", "add", "default", "dev", "eth0")
	server.Addr("eth0", "10.244.1.3/24")
	for _, name := range []string{"10.244.1.2", "10.244.1.3"} {
		greet(server, name)
	}
	api := fakeapi.New()
	defer api.Close()
	l := node.Listen("tcp", "127.0.0.1:6443")
	defer l.Close()
	go func() { _ = api.Serve(l) }()
	fill(api, size, per)
	start := time.Now()
	p := c.start(t, node)
	defer p.Stop()
	if err := until(client, "10.244.1.2"); err != nil {
		m.Failed = err.Error()
		return m
	}
	m.Sync = time.Since(start)
	node.ForgetFlows() // of early attempts: a reused port would not be translated
	settle(t, p)
	var err error
	if m.Memory, err = p.Memory(); err != nil {
		t.Fatal(err)
	}
	m.Rest = cpuOf(t, p, func() { time.Sleep(rest) })
	m.Connect = dial(t, client, probeVIP)
	if c.rules != nil {
		m.First, m.Rules = dial(t, client, firstVIP), c.rules(node)
	}
	var took []time.Duration
	for i := range changes {
		to := []string{"10.244.1.3", "10.244.1.2"}[i%2]
		began := time.Now()
		api.Put(slice("zz", "probe", []string{to}))
		if err := until(client, to); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	m.Change = result.Median(took)
	m.Churn = cpuOf(t, p, func() { churn(api, size, per) })
	return m
}

// settle waits until the program is idle for a second, or its load is steady.
func settle(t *testing.T, p *kubeproxy.Process) {
	t.Helper()
	last, now := time.Duration(0), time.Duration(0)
	for end := time.Now().Add(deadline); time.Now().Before(end); last, now = now, 0 {
		for range 5 {
			used := cpuOf(t, p, func() { time.Sleep(time.Second) })
			if used < 30*time.Millisecond && !p.Runs() { // CPU of a child process counts when that ends
				return
			}
			now += used
		}
		if last > 0 && now > last*8/10 {
			return
		}
	}
	t.Fatal("never idle")
}

func cpuOf(t *testing.T, p *kubeproxy.Process, fn func()) time.Duration {
	t.Helper()
	before, err := p.CPU()
	if err != nil {
		t.Fatal(err)
	}
	fn()
	after, err := p.CPU()
	if err != nil {
		t.Fatal(err)
	}
	return after - before
}

// greet sends its address to each client.
func greet(ns *testnet.NS, addr string) {
	ns.Serve("tcp", addr+":8080", func(c net.Conn) { fmt.Fprintln(c, addr) })
}

// VIPs of services with an endpoint that answers: the last by name, whose endpoint changes, and the first.
const probeVIP, firstVIP = "10.96.255.250", "10.96.255.249"

// until connects to the probe until the right endpoint answers.
func until(client *testnet.NS, want string) error {
	got := ""
	for end := time.Now().Add(deadline); time.Now().Before(end); {
		c, err := client.Dial("tcp", probeVIP+":80", 20*time.Millisecond)
		if err != nil {
			got = err.Error()
			continue
		}
		_ = c.SetDeadline(time.Now().Add(time.Second))
		got, _ = bufio.NewReader(c).ReadString('\n')
		c.Close()
		if strings.TrimSpace(got) == want {
			return nil
		}
	}
	return fmt.Errorf("no answer of %s within %s, but %q", want, deadline, got)
}

// dial returns the time of a connection's handshake.
func dial(t *testing.T, client *testnet.NS, vip string) time.Duration {
	t.Helper()
	var took []time.Duration
	err := client.Do(func() error { // on one thread, so that entering the namespace is not measured
		for range connects {
			start := time.Now()
			c, err := net.DialTimeout("tcp", vip+":80", 10*time.Second)
			if err != nil {
				return err
			}
			took = append(took, time.Since(start))
			c.Close()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return result.Median(took)
}

// fill writes the cluster: one node, the given number of services, and the probe.
func fill(api *fakeapi.Server, size, per int) {
	api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"},
			Spec: corev1.NodeSpec{PodCIDR: "10.244.0.0/16", PodCIDRs: []string{"10.244.0.0/16"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP,
				Address: "172.30.0.1"}}}})
	for i := range size {
		api.Put(svc("default", fmt.Sprintf("s%05d", i),
			netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()), endpoints(i, per, 0))
	}
	api.Put(svc("aa", "first", firstVIP), slice("aa", "first", []string{"10.244.1.2"}))
	api.Put(svc("zz", "probe", probeVIP), slice("zz", "probe", []string{"10.244.1.2"}))
}

func svc(ns, name, ip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, SessionAffinity: corev1.ServiceAffinityNone,
			InternalTrafficPolicy: ptr.To(corev1.ServiceInternalTrafficPolicyCluster),
			Ports:                 []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}}}}
}

// endpoints returns those of a service; another version has another last one.
func endpoints(i, per, version int) *discoveryv1.EndpointSlice {
	var list []string
	for k := range per {
		n := i*per + k
		b := 0
		if k == per-1 {
			b = version % 50
		}
		list = append(list, netip.AddrFrom4([4]byte{10, byte(128 + b), byte(n >> 8), byte(n)}).Next().String())
	}
	return slice("default", fmt.Sprintf("s%05d", i), list)
}

func slice(ns, name string, addrs []string) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name + "-1",
		Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: ptr.To(""), Protocol: ptr.To(corev1.ProtocolTCP),
			Port: ptr.To(int32(8080))}}}
	for _, a := range addrs {
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{Addresses: []string{a},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true),
				Terminating: ptr.To(false)}, NodeName: ptr.To("node2")})
	}
	return out
}

func churn(api *fakeapi.Server, size, per int) {
	tick := time.NewTicker(time.Second / churnRate)
	defer tick.Stop()
	for n := range int(churnFor.Seconds()) * churnRate {
		<-tick.C
		api.Put(endpoints(rand.IntN(size), per, n+1))
	}
}
