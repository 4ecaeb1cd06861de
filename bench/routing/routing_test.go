package routing

import (
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"wayleave.dev/bench/internal/cpu"
	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer/bgp/speaker"
	"wayleave.dev/podnetwork/wireguard/frames"
	"wayleave.dev/podnetwork/wireguard/process"
)

// The test's binary is also the processes that agents start.
func TestMain(m *testing.M) {
	testnet.Main(m, map[string]func(*slog.Logger) error{
		"bgp":          func(*slog.Logger) error { return speaker.Main() },
		frames.Process: func(*slog.Logger) error { return process.Main() },
	})
}

const (
	rounds = 10
	each   = 300 * time.Millisecond
	vips   = 1000
	hold   = 9 * time.Second
)

// TestRouting makes all measurements and writes docs/bench-routing.md. In a VM (hack/test-vm) it writes to the console.
func TestRouting(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	page := result.New(result.Docs, "bench-routing", "Benchmark: routes between nodes")
	page.Text("`make bench` generates this page: %s.", result.Machine())
	traffic(t, page)
	if os.Getenv("WAYLEAVE_TEST_EMULATED") != "" {
		fmt.Println(page)
		return // it has no BIRD
	}
	sessions(t, page)
	if err := page.Write(); err != nil {
		t.Fatal(err)
	}
}

// traffic measures what packets between pods of two nodes cost. Only one CPU works.
func traffic(t *testing.T, page *result.Page) {
	if err := cpu.Pin(cpu.Pinned); err != nil {
		t.Fatal(err)
	}
	page.Text("## Packets between pods of two nodes")
	page.Text("Medians of %d interleaved rounds of %s. One CPU does all work: both pods, both nodes, and processes of "+
		"WireGuard in user space. What is counted is per second in which this CPU was not idle. `bgp` differs from "+
		"`direct` only in how a route was learned. Rows that this kernel lacks are left out.", rounds, each)
	worlds := map[string]*world{}
	var names []string
	for _, c := range contestants {
		if w := newWorld(t, c); w != nil {
			w.serve()
			worlds[c.name], names = w, append(names, c.name)
		}
	}
	got := map[string]map[string][]float64{}
	for round := range rounds {
		for i := range names {
			name := names[(i+round)%len(names)]
			for _, x := range works {
				n, err := worlds[name].per(x, each)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if got[name] == nil {
					got[name] = map[string][]float64{}
				}
				got[name][x.name] = append(got[name][x.name], n/x.scale)
			}
		}
	}
	rows := [][]string{{"routing", "GB per CPU-second", "to direct", "requests per CPU-second", "to direct"}}
	base := got[contestants[0].name]
	for _, name := range names {
		row := []string{name}
		for _, x := range works {
			m := result.Median(got[name][x.name])
			row = append(row, result.Number(m), result.Number(m/result.Median(base[x.name])))
		}
		rows = append(rows, row)
	}
	page.Table(rows)
}

// sessions measures the process bgp. All CPUs work.
func sessions(t *testing.T, page *result.Page) {
	if err := cpu.Pin(0, 1); err != nil {
		t.Fatal(err)
	}
	page.Text("## BGP")
	page.Text("The judge is BIRD on the same machine, and its kernel's routes.")
	told, gone := announce(t, vips, hold)
	page.Table([][]string{{"what", "time"},
		{fmt.Sprintf("%d addresses, from the plan to the router's kernel", vips),
			told.Round(time.Millisecond).String()},
		{fmt.Sprintf("a node dies, with a hold time of %s: until the router's kernel has none of its routes", hold),
			gone.Round(100 * time.Millisecond).String()}})
	page.Text("The hold time is that of the object BGPPeer, 90 s by default. Routers that see the link go down need " +
		"none.")
	rows := [][]string{{"the process bgp of a node with", "sessions", "prefixes", "resident memory",
		"until all are established and learned"}}
	for _, s := range []*scale{{name: "a full mesh of 200 nodes", peers: 199, each: 1},
		{name: "2 route reflectors and 1,000 nodes", peers: 2, each: 999},
		{name: "999 nodes of which it is the route reflector", peers: 999, each: 1, reflects: true}} {
		fmt.Fprintf(os.Stderr, "bench/routing: %s\n", s.name)
		t.Run(s.name, s.measure)
		prefixes := 2 * s.peers * s.each
		rows = append(rows, []string{s.name, fmt.Sprint(s.peers), fmt.Sprint(prefixes),
			fmt.Sprintf("%.0f MiB", s.memory), fmt.Sprintf("%.1f s", s.second)})
	}
	page.Table(rows)
	page.Text("The limit of the process is %d MiB. Its peers are one BIRD, which shares the machine.",
		speaker.Memory>>20)
}
