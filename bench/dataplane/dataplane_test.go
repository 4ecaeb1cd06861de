package dataplane

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"wayleave.dev/bench/internal/cpu"
	"wayleave.dev/bench/internal/result"
	"wayleave.dev/kernel/bpf/fastpath"
)

const (
	rounds = 12
	each   = 300 * time.Millisecond
)

// targets are ratios of mode ebpf to mode nftables: on one node, between nodes; by VXLAN there is one for bytes.
var targets = map[string][3]float64{"bytes": {1.15, 1.25, 1.15}, "requests": {1.15, 1.20, 0},
	"new connections": {1.20, 1.30, 0}, "small packets": {1.40, 1.40, 0}}

// TestDataPlane makes all measurements and writes docs/bench-dataplane.md.
func TestDataPlane(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if err := new(fastpath.Kernel).Possible(); errors.Is(err, fastpath.ErrUnsupported) {
		t.Skip(err)
	}
	if err := cpu.Pin(cpu.Pinned); err != nil {
		t.Fatal(err)
	}
	page := result.New(result.Docs, "bench-dataplane", "Benchmark: packets between pods")
	page.Text("`make bench` generates this page: %s. Medians of %d interleaved rounds of %s; a ratio is the "+
		"median of the ratios of the rounds. One CPU does all work: client, server and the path. What is counted "+
		"is per second in which this CPU was not idle.", result.Machine(), rounds, each)
	page.Text("Both modes have the rules of %d Services, and of policies that isolate both pods in both directions. "+
		"Plain veths are routed, without nftables and connection tracking.", serviceCount)
	var labels []string
	series := []result.Series{{Name: "against " + nftables}, {Name: "against " + plain}}
	for i, path := range []string{local, direct, vxlan} {
		rows := [][]string{{"work", "unit per CPU-second", ebpf, nftables, plain, "ebpf / nftables", "target",
			"ebpf / plain"}}
		worlds := map[string]*world{}
		for _, c := range []string{plain, nftables, ebpf} {
			worlds[c] = newWorld(t, c, path)
			worlds[c].serve()
		}
		for _, x := range works() {
			fmt.Fprintf(os.Stderr, "bench/dataplane: %s, %s\n", path, x.name)
			got, err := compare(worlds, x)
			if err != nil {
				t.Fatal(err)
			}
			target := "none"
			if want := targets[x.name][i]; want > 0 {
				target = result.Number(want)
			}
			over, against := ratios(got, nftables), ratios(got, plain)
			rows = append(rows, []string{x.name, x.unit, result.Number(result.Median(got[ebpf]) / x.scale),
				result.Number(result.Median(got[nftables]) / x.scale),
				result.Number(result.Median(got[plain]) / x.scale),
				result.Number(over), target, result.Number(against)})
			if path != vxlan {
				labels = append(labels, x.name+map[string]string{local: "", direct: ", 2 nodes"}[path])
				series[0].Y, series[1].Y = append(series[0].Y, over), append(series[1].Y, against)
			}
		}
		for i, k := range worlds[ebpf].kernels {
			if n, err := k.Redirected(); err != nil || n.Local+n.Remote < 1000 && (i == 0 || path != local) {
				t.Errorf("%s: node %d has redirected %+v, %v", path, i+1, n, err)
			}
		}
		page.Text("## Pods %s", path)
		page.Table(rows)
	}
	if err := page.Bars("bench-dataplane", "mode ebpf, work per CPU-second", "ratio", labels, series); err != nil {
		t.Fatal(err)
	}
	page.Text("In mode ebpf, the third packet of a connection takes the stack, and the first one does twice a " +
		"second for each pair of addresses ([record 57](decisions/0057-new-connections-repeat-a-verdict.md)).")
	if err := page.Write(); err != nil {
		t.Fatal(err)
	}
}

// compare measures all contestants in each round.
func compare(worlds map[string]*world, x work) (map[string][]float64, error) {
	got := map[string][]float64{}
	order := []string{plain, nftables, ebpf}
	for round := range rounds {
		for i := range order {
			c := order[(i+round)%len(order)]
			n, err := worlds[c].per(x, each)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c, err)
			}
			got[c] = append(got[c], n)
		}
	}
	return got, nil
}

// ratios returns the median of mode ebpf's advantage over another contestant.
func ratios(got map[string][]float64, over string) float64 {
	var list []float64
	for i, n := range got[ebpf] {
		list = append(list, n/got[over][i])
	}
	return result.Median(list)
}
