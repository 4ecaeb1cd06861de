package service

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"wayleave.dev/bench/internal/kubeproxy"
	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/testnet"
	kernelipvs "wayleave.dev/kernel/ipvs"
)

// modesFile stores the runs of the modes, from which docs/bench-modes.md is generated. Existing runs are not repeated;
// remove lines to repeat them.
const modesFile = "modes.jsonl"

// modeRun is a line of modesFile.
type modeRun struct {
	measured
	// Machine describes the machine; VM means the VM of hack/test-vm.
	Machine string
	VM      bool
	// Endpoints of each service.
	Endpoints int
}

// TestModes compares the modes and writes docs/bench-modes.md. It takes half an hour, so it needs WAYLEAVE_MODES: the
// modes, separated by commas, or "page" to generate the page from existing runs. IPVS is measured in the VM, together
// with nftables:
//
//	cd bench/service && go build -o testdata/proxy ./proxy
//	TEST_VM_ENV=WAYLEAVE_MODES=nftables,ipvs hack/test-vm ./bench/service TestModes
//
// WAYLEAVE_MODES_SIZES and WAYLEAVE_MODES_ENDPOINTS set the numbers of services and endpoints.
//
// It prints lines that begin with "result:"; the rest of the line belongs into modesFile.
func TestModes(t *testing.T) {
	want := os.Getenv("WAYLEAVE_MODES")
	if want == "" {
		t.Skip("WAYLEAVE_MODES is not set")
	}
	if want == "page" {
		writeModes(t, readRuns(t))
		return
	}
	names := strings.Split(want, ",")
	vm, list := inVM(), []int{100, 1000, 10000}
	if s := os.Getenv("WAYLEAVE_MODES_SIZES"); s != "" {
		list = nil
		for x := range strings.SplitSeq(s, ",") {
			var n int
			if _, err := fmt.Sscan(x, &n); err != nil {
				t.Fatal(err)
			}
			list = append(list, n)
		}
	}
	per := perService
	if s := os.Getenv("WAYLEAVE_MODES_ENDPOINTS"); s != "" {
		if _, err := fmt.Sscan(s, &per); err != nil {
			t.Fatal(err)
		}
	}
	bin := proxyProgram(t)
	for _, size := range list {
		times := rounds
		switch {
		case size >= 10000 || vm && size > 100:
			times = 1
		case vm:
			times = 2 // the first run finds cold caches
		}
		for round := range times {
			for i := range names {
				name := names[(i+round)%len(names)]
				if slices.ContainsFunc(readRuns(t), func(r modeRun) bool {
					return !vm && !r.VM && r.Services == size && r.Endpoints == per && r.Program == name &&
						r.Round == round
				}) {
					continue
				}
				t.Run(fmt.Sprintf("%s %d %d", name, size, round), func(t *testing.T) {
					c := contestant{name: name, rules: func(n *testnet.NS) int { return countRules(t, n, name) },
						start: func(t *testing.T, n *testnet.NS) *kubeproxy.Process {
							if name == "ipvs" {
								if _, err := kernelipvs.NewKernel(n.FD()); err != nil {
									t.Skip(err)
								}
								n.Sysctl("net/ipv4/vs/conntrack", "1")
							}
							p := kubeproxy.Run(t, n, exec.Command(bin, "-master", master, "-mode", name, "-lock",
								filepath.Join(t.TempDir(), "lock")))
							t.Cleanup(func() { p.Stop(); t.Log(p.Log.String()) })
							return p
						}}
					m := measure(t, c, size, per)
					m.Round = round
					keepRun(t, modeRun{m, result.Machine(), vm, per})
				})
			}
		}
	}
}

// inVM reports whether this is the VM of hack/test-vm.
func inVM() bool {
	raw, _ := os.ReadFile("/etc/hosts")
	_, err := os.Stat("/src/tests")
	return err == nil && len(raw) > 0
}

// proxyProgram builds the proxy, or uses a prebuilt one: the VM has no compiler.
func proxyProgram(t *testing.T) string {
	t.Helper()
	if inVM() {
		return "testdata/proxy"
	}
	bin := filepath.Join(t.TempDir(), "proxy")
	build := exec.Command("go", "build", "-trimpath", "-o", bin, "./proxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

// countRules returns how many rules the mode has in the kernel for IPv4 and IPv6; virtual servers and their backends
// count as rules.
func countRules(t *testing.T, n *testnet.NS, mode string) (total int) {
	t.Helper()
	switch mode {
	case "iptables-legacy":
		for _, f := range []string{"iptables", "ip6tables"} {
			total += strings.Count("\n"+n.Run(f+"-legacy-save"), "\n-A ")
		}
		return total
	case "ipvs":
		total = strings.Count(n.Run("ipvsadm", "-Ln"), "\n") - 3
	}
	// The program nft takes long to list them.
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: n.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rules, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE,
			Flags: netlink.Request | netlink.Dump},
		Data: []byte{unix.AF_UNSPEC, 0, 0, 0}})
	if err != nil {
		t.Fatal(err)
	}
	return total + len(rules)
}

func readRuns(t *testing.T) (list []modeRun) {
	t.Helper()
	raw, err := os.ReadFile(modesFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range bytes.Lines(raw) {
		var r modeRun
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%s: %v", modesFile, err)
		}
		list = append(list, r)
	}
	return list
}

func keepRun(t *testing.T, r modeRun) {
	t.Helper()
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("result: %s\n", raw)
	if r.VM {
		return // its files end with it
	}
	f, err := os.OpenFile(modesFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err == nil {
		_, err = f.Write(append(raw, '\n'))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// shapes are the measured numbers of services and endpoints.
func shapes(got []modeRun) (out [][2]int) {
	for _, r := range got {
		if s := [2]int{r.Services, r.Endpoints}; !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b [2]int) int { return cmp.Or(a[0]-b[0], b[1]-a[1]) })
	return out
}

// writeModes generates the page.
func writeModes(t *testing.T, got []modeRun) {
	t.Helper()
	page := result.New(result.Docs, "bench-modes", "Benchmark: modes of the service proxy")
	machine := map[bool]string{}
	for _, r := range got {
		machine[r.VM] = r.Machine
	}
	page.Text("`TestModes` in bench/service generates this page and describes how: %s; ipvs and the nftables column "+
		"next to it in the VM of `make test-vm` (%s), which is emulated and many times slower: compare only within "+
		"a table. Medians of %d interleaved runs up to 1,000 services. At 10,000, and in the VM, there are one or "+
		"two runs, and those at 10,000 were not interleaved: some were repeated up to half an hour later, because "+
		"CPU at rest had included the end of the start. The machine was busy with other work (load 14 to 26 on 2 "+
		"cores), so a ratio there may be off by a factor of two or three: the start of iptables (nft) with 2 "+
		"endpoints took 9.8 times as long as that of nftables in the first, interleaved run, and 25.6 times in the "+
		"run that is shown. One fake API server. Times are measured by packets: from the start of the process, or "+
		"the event of the API server, until the right endpoint answers a connection. ipvs creates one virtual "+
		"server after the other, in no order, so its full sync takes longer than the one service shows that is "+
		"probed; the other modes program all services at once. CPU is that of the process and of the programs that "+
		"it ran; memory is its own. When to use which mode: [services.md](services.md#modes).",
		machine[false], machine[true], rounds)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	for _, row := range []struct {
		title, unit string
		of          func(measured) float64
	}{
		{"Full sync at the start", "ms", func(m measured) float64 { return ms(m.Sync) }},
		{"One endpoint changes", "ms", func(m measured) float64 { return ms(m.Change) }},
		{"CPU of 100 changes a second", "% of a core",
			func(m measured) float64 { return 100 * m.Churn.Seconds() / churnFor.Seconds() }},
		{"CPU at rest", "% of a core", func(m measured) float64 { return 100 * m.Rest.Seconds() / rest.Seconds() }},
		{"Memory (resident)", "MB", func(m measured) float64 { return float64(m.Memory) / 1e6 }},
		{"A new connection through the first service", "ms", func(m measured) float64 { return ms(m.First) }},
		{"A new connection through the last service", "ms", func(m measured) float64 { return ms(m.Connect) }},
		{"Rules in the kernel", "with virtual servers and backends",
			func(m measured) float64 { return float64(m.Rules) }},
	} {
		page.Text("## %s, %s", row.title, row.unit)
		rows := [][]string{{"services × endpoints", "nftables", "iptables (nft)", "ratio", "iptables (legacy)", "ratio",
			"VM: nftables", "VM: ipvs", "ratio"}}
		for _, shape := range shapes(got) {
			cell := func(vm bool, mode string) (float64, string) {
				var list []float64
				for _, r := range got {
					if r.VM == vm && [2]int{r.Services, r.Endpoints} == shape && r.Program == mode && r.Failed == "" {
						list = append(list, row.of(r.measured))
					}
				}
				if len(list) == 0 {
					return -1, "–"
				}
				v := result.Median(list)
				return v, result.Number(v)
			}
			line := []string{fmt.Sprintf("%d × %d", shape[0], shape[1])}
			for _, group := range [][]string{{"nftables", "iptables-nft", "iptables-legacy"}, {"nftables", "ipvs"}} {
				var base float64
				for i, mode := range group {
					v, text := cell(len(group) == 2, mode)
					line = append(line, text)
					switch {
					case i == 0:
						base = v
					case base > 0 && v >= 0:
						line = append(line, result.Number(v/base))
					default:
						line = append(line, "–")
					}
				}
			}
			rows = append(rows, line)
		}
		page.Table(rows)
	}
	seen := map[string]bool{}
	for _, r := range got {
		if text := fmt.Sprintf("Failed: %s with %d services of %d endpoints: %s.", r.Program, r.Services, r.Endpoints,
			r.Failed); r.Failed != "" && !seen[text] {
			seen[text] = true
			page.Text("%s", text)
		}
	}
	if err := page.Write(); err != nil {
		t.Fatal(err)
	}
}
