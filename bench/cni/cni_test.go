// Package cni measures the pod network and compares it with common alternatives: the reference plugins bridge and
// host-local for ADD and DEL, plain routed veths and plain VXLAN for packets.
package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/lab/build"
	"wayleave.dev/lab/progress"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork"
	"wayleave.dev/podnetwork/routes"
	"wayleave.dev/reconcile"
)

const (
	pods   = 250 // of a node
	rounds = 3
	atOnce = 8
)

// plugin is a CNI plugin in a node's namespace.
type plugin struct {
	name, bin, conf string
	env             []string
	node            *testnet.NS
}

// call executes the plugin like a runtime; the runtime's own work is not measured.
func (p plugin) call(command, id string, pod *testnet.NS) (out []byte, took time.Duration, err error) {
	cmd := exec.Command(p.bin)
	cmd.Env = append([]string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + id, "CNI_IFNAME=eth0", "CNI_NETNS=" +
		pod.Path(), "CNI_PATH=" + filepath.Dir(p.bin),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + id, "PATH=" + os.Getenv("PATH")}, p.env...)
	cmd.Stdin = strings.NewReader(p.conf)
	var b, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &errs
	err = p.node.Do(func() error {
		start := time.Now()
		defer func() { took = time.Since(start) }()
		return cmd.Run()
	})
	if err != nil {
		err = fmt.Errorf("%s %s %s: %w: %s%s", p.name, command, id, err, b.String(), errs.String())
	}
	return b.Bytes(), took, err
}

// agent is Wayleave's pod network on a node.
func agent(t *testing.T, node *testnet.NS, name string, store *model.Store, mode routes.Mode, bin string) plugin {
	t.Helper()
	dir := t.TempDir()
	at := func(n string) string { return filepath.Join(dir, n) }
	kernel, err := link.NewKernel(node.FD(), at("addresses"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := nft.NewKernel(node.FD())
	if err != nil {
		t.Fatal(err)
	}
	track, err := conntrack.NewKernel(node.FD())
	if err != nil {
		t.Fatal(err)
	}
	net, err := podnetwork.New(podnetwork.Config{Track: track, Node: name, Store: store, NSFD: node.FD(),
		StateDir: at("state"), Socket: at("cni.sock"), Tombstones: at("del"),
		Sysctl: "/proc/sys/net", Plugin: bin, BinDir: at("bin"), ConfDir: at("conf"), Masquerade: true, Routing: mode,
		Kernel: kernel, Rules: podnetwork.NFTables(conn), Firewall: conn, Log: slog.New(slog.DiscardHandler)},
		reconcile.NewHealth(nil, nil),
		reconcile.NewHealth(nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- node.Do(func() error { return net.Run(ctx) }) }()
	t.Cleanup(func() { cancel(); <-done; _ = net.Close() })
	testnet.Eventually(t, 10*time.Second, func() error {
		_, err := os.Stat(filepath.Join(at("conf"), podnetwork.ConfName))
		if err == nil && (!net.Routes.State().Synced || !net.Translation.State().Synced) {
			err = fmt.Errorf("not synced")
		}
		return err
	})
	return plugin{name: "Wayleave", bin: filepath.Join(at("bin"), "wayleave-cni"), node: node,
		conf: `{"cniVersion":"1.1.0","name":"wayleave","type":"wayleave-cni"}`,
		env:  []string{"WAYLEAVE_CNI_SOCKET=" + at("cni.sock"), "WAYLEAVE_CNI_TOMBSTONES=" + at("del")}}
}

func wayleaveCNI(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "wayleave-cni")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "wayleave.dev/cmd/wayleave-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

func newStore(t *testing.T, nodes ...*model.Node) *model.Store {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if err := store.Write(func(w *model.Writer) {
		for _, n := range nodes {
			w.PutNode(n)
		}
	}); err != nil {
		t.Fatal(err)
	}
	store.MarkSynced(model.NodeKind)
	return store
}

func uplink(t *testing.T, name, addr string) *testnet.NS {
	t.Helper()
	node, fabric := testnet.New(t, name), testnet.New(t, "fabric")
	testnet.Veth(node, "eth0", fabric, "p0")
	node.Addr("eth0", addr)
	node.Run("ip", "route", "add", "default", "dev", "eth0")
	return node
}

// TestCNI makes all measurements and writes docs/bench-cni.md.
func TestCNI(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	page := result.New(result.Docs, "bench-cni", "Benchmark: pod network")
	page.Text(
		"`make bench` generates this page: %s. Medians of interleaved runs; a ratio is Wayleave's value divided by "+
			"the other's.",
		result.Machine())
	t.Run("ADD", func(t *testing.T) { calls(t, page) })
	t.Run("packets", func(t *testing.T) { packets(t, page) })
	if !t.Failed() {
		if err := page.Write(); err != nil {
			t.Fatal(err)
		}
	}
}

// samples are the milliseconds of one plugin.
type samples struct {
	add, del [][]float64 // by round
	rate     []float64   // ADDs a second, atOnce at a time
	start    []float64   // VERSION: the cost of the process alone
}

func calls(t *testing.T, page *result.Page) {
	cache := &build.Cache{Dir: filepath.Join(home(t), ".cache", "wayleave-lab"), Progress: progress.New(os.Stderr),
		Log: os.Stderr}
	foreign, err := cache.CNIPlugins(t.Context(), "main/bridge", "ipam/host-local", "meta/portmap")
	if err != nil {
		t.Fatal(err)
	}
	node := uplink(t, "wayleave", "172.30.0.1/24")
	ours := agent(t, node, "node1",
		newStore(t, &model.Node{Name: "node1", InternalIPs: []netip.Addr{netip.MustParseAddr("172.30.0.1")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/20")}}), routes.Auto, wayleaveCNI(t))
	theirs := plugin{name: "bridge + host-local", bin: filepath.Join(foreign.Dir, "bridge"),
		node: uplink(t, "bridge", "172.30.0.1/24"),
		conf: fmt.Sprintf(
			`{"cniVersion":"1.0.0","name":"bridge","type":"bridge","bridge":"cni0","isDefaultGateway":true,`+
				`"hairpinMode":true,"ipam":{"type":"host-local","subnet":"10.245.0.0/20","dataDir":%q}}`, t.TempDir())}
	plugins := []plugin{ours, theirs}
	got := make([]samples, len(plugins))
	for round := range rounds {
		fmt.Fprintf(os.Stderr, "bench/cni: ADD and DEL, round %d of %d\n", round+1, rounds)
		made := make([][]*testnet.NS, len(plugins))
		for i := range got {
			got[i].add, got[i].del = append(got[i].add, nil), append(got[i].del, nil)
		}
		for n := range pods {
			for i := range plugins {
				i = (i + n) % len(plugins)
				ns := testnet.New(t, "pod")
				made[i] = append(made[i], ns)
				_, took, err := plugins[i].call("ADD", fmt.Sprintf("r%dp%d", round, n), ns)
				if err != nil {
					t.Fatal(err)
				}
				got[i].add[round] = append(got[i].add[round], float64(took.Microseconds())/1000)
			}
		}
		for n := range pods {
			for i := range plugins {
				i = (i + n) % len(plugins)
				_, took, err := plugins[i].call("DEL", fmt.Sprintf("r%dp%d", round, n), made[i][n])
				if err != nil {
					t.Fatal(err)
				}
				got[i].del[round] = append(got[i].del[round], float64(took.Microseconds())/1000)
			}
		}
		for n := range pods {
			for i := range plugins {
				i = (i + n) % len(plugins)
				_, took, err := plugins[i].call("VERSION", "x", made[i][n])
				if err != nil {
					t.Fatal(err)
				}
				got[i].start = append(got[i].start, float64(took.Microseconds())/1000)
			}
		}
		for i := range plugins {
			i = (i + round) % len(plugins)
			got[i].rate = append(got[i].rate, burst(t, plugins[i], round, made[i]))
		}
	}
	table(t, page, plugins, got)
}

// burst starts all pods of a node at once.
func burst(t *testing.T, p plugin, round int, made []*testnet.NS) float64 {
	t.Helper()
	all := func(command string) time.Duration {
		start := time.Now()
		var wg sync.WaitGroup
		jobs := make(chan int)
		for range atOnce {
			wg.Go(func() {
				for n := range jobs {
					if _, _, err := p.call(command, fmt.Sprintf("b%dp%d", round, n), made[n]); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for n := range pods {
			jobs <- n
		}
		close(jobs)
		wg.Wait()
		return time.Since(start)
	}
	took := all("ADD")
	all("DEL")
	return float64(pods) / took.Seconds()
}

func table(t *testing.T, page *result.Page, plugins []plugin, got []samples) {
	t.Helper()
	part := func(rounds [][]float64, from, to int) (out []float64) {
		for _, r := range rounds {
			out = append(out, r[from:to]...)
		}
		return out
	}
	rows := [][]string{{"work", plugins[0].name, plugins[1].name, "ratio"}}
	labels := []string{}
	series := []result.Series{{Name: plugins[0].name}, {Name: plugins[1].name}}
	add := func(what, unit string, plot bool, fn func(s samples) float64) {
		a, b := fn(got[0]), fn(got[1])
		rows = append(rows, []string{what, result.Number(a) + unit, result.Number(b) + unit, result.Number(a / b)})
		if plot {
			labels = append(labels, what)
			series[0].Y, series[1].Y = append(series[0].Y, a), append(series[1].Y, b)
		}
	}
	add("ADD, median of 250 pods", " ms", false, func(s samples) float64 { return result.Median(part(s.add, 0, pods)) })
	for _, span := range [][2]int{{0, 50}, {100, 150}, {200, 250}} {
		add(fmt.Sprintf("ADD, pods %d to %d", span[0]+1, span[1]), " ms", true,
			func(s samples) float64 { return result.Median(part(s.add, span[0], span[1])) })
	}
	add("ADD, 99th percentile", " ms", true,
		func(s samples) float64 { return result.Percentile(part(s.add, 0, pods), 99) })
	add("VERSION, median: the process alone", " ms", false, func(s samples) float64 { return result.Median(s.start) })
	add("DEL, median", " ms", true, func(s samples) float64 { return result.Median(part(s.del, 0, pods)) })
	add(fmt.Sprintf("pods/s, %d at a time", atOnce), "", false,
		func(s samples) float64 { return result.Median(s.rate) })
	page.Text("## ADD and DEL\n\n%d rounds of %d pods on a node, one IPv4 address each; each call executes the "+
		"plugin. Wayleave's lease is synced to disk before ADD answers.", rounds, pods)
	page.Table(rows)
	page.Text("Target for ADD: 1/3. Most of DEL is the kernel's removal of a veth with routes: \"ip link del\" takes " +
		"as long; the agent's own part is 0.5 ms.")
	if err := page.Bars("bench-cni-add", "CNI calls", "milliseconds", labels, series); err != nil {
		t.Fatal(err)
	}
}

func home(t *testing.T) string {
	t.Helper()
	h, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// address returns the first address of an ADD's result.
func address(out []byte) (netip.Addr, error) {
	var r struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(out, &r); err != nil || len(r.IPs) == 0 {
		return netip.Addr{}, fmt.Errorf("no address in %s: %v", out, err)
	}
	return r.IPs[0].Address.Addr(), nil
}
