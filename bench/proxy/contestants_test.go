// Package proxy compares other HTTP proxies with Wayleave's: the cost of requests, and the answers to malformed ones.
package proxy

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"wayleave.dev/bench/internal/kubeproxy"
	"wayleave.dev/internal/testnet"
)

const (
	// first is the start of a proxy's command line, which gives each one core; asker is that of the load and the
	// endpoint, which use the other core.
	first = "nice -n -15 taskset -c 0"
	asker = "nice -n -15 taskset -c 1"

	endpointPort = 9000
	// endpointAddr is an address that Kubernetes permits for endpoints; otherPort is that of a second endpoint there.
	endpointAddr = "10.9.0.1"
	otherPort    = 9010

	// The requested names, each with its certificate.
	plainHost, p256Host, rsaHost = "plain.bench", "p256.bench", "rsa.bench"
)

// contestant is one proxy, with its own ports in the common namespace: plain, and encrypted with either certificate,
// which may be one port.
type contestant struct {
	name, version    string
	plain, p256, rsa int
	process          *kubeproxy.Process
	// agent feeds Wayleave; nil for others.
	agent *agent
	// apply applies routes without a restart; nil if that is impossible.
	apply func(routes) error
}

// stop ends its processes.
func (c *contestant) stop() {
	c.process.Stop()
	if c.agent != nil {
		c.agent.process.Stop()
	}
}

// kit is the common environment of all contestants of a test.
type kit struct {
	t     *testing.T
	ns    *testnet.NS
	bins  string // folder of our programs
	pairs map[string]string
	ports int
	looks float64 // at the endpoint's count
}

func newKit(t *testing.T) *kit {
	t.Helper()
	k := &kit{t: t, ns: testnet.New(t, "bench"), bins: t.TempDir(), pairs: map[string]string{}, ports: 10000}
	k.ns.Addr("lo", endpointAddr+"/32")
	for _, p := range []string{"server", "agent", "handshakes"} {
		build(t, filepath.Join(k.bins, p), "./"+p)
	}
	for _, name := range []string{p256Host, rsaHost} {
		k.pairs[name] = pair(t, name)
	}
	return k
}

func (k *kit) port() int {
	k.ports++
	return k.ports
}

func build(t *testing.T, bin, from string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin, from)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// ours builds the proxy of server/.
func ours(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "server")
	build(t, bin, "./server")
	return bin
}

// run starts a program in the namespace, pinned, and waits until its port is open.
func run(t *testing.T, ns *testnet.NS, port int, words, line string) *kubeproxy.Process {
	t.Helper()
	p := spawn(t, ns, words, line)
	testnet.Eventually(t, 60*time.Second, func() error {
		c, err := ns.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
	return p
}

// spawn starts a program in the namespace.
func spawn(t *testing.T, ns *testnet.NS, words, line string) *kubeproxy.Process {
	t.Helper()
	args := strings.Fields(words + " " + line)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "XDG_DATA_HOME="+t.TempDir(), "XDG_CONFIG_HOME="+t.TempDir())
	return kubeproxy.Run(t, ns, cmd)
}

// configured writes a program's configuration and returns its path.
func configured(t *testing.T, text string, port, endpoint int) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "conf")
	text = strings.NewReplacer("DIR", dir, "PORT", fmt.Sprint(port), "ENDPOINT",
		fmt.Sprintf("127.0.0.1:%d", endpoint)).Replace(text)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// start starts all installed proxies in front of one endpoint, with routes in addition to the three hosts of the loads.
func (k *kit) start(r routes) (list []*contestant) {
	k.t.Helper()
	all := []string{"Wayleave", "nginx", "HAProxy", "ReverseProxy", "Caddy"}
	if os.Getenv(beside) != "" {
		all = []string{"Wayleave", versionBefore, "nginx"}
	}
	for _, name := range all {
		if c := k.startOne(name, r); c != nil {
			list = append(list, c)
		}
	}
	return list
}

// beside is the variable with a server program of another version, which is measured together with Wayleave and nginx
// only.
const (
	beside        = "WAYLEAVE_BENCH_BESIDE"
	versionBefore = "before"
)

func (k *kit) startOne(name string, r routes) *contestant {
	k.t.Helper()
	c := &contestant{name: name, plain: k.port(), p256: k.port(), rsa: k.port()}
	switch name {
	case "Wayleave":
		k.startOurs(c, r, filepath.Join(k.bins, "server"))
	case versionBefore:
		k.startOurs(c, r, os.Getenv(beside))
	case "ReverseProxy":
		line := fmt.Sprintf(
			"%s/server -reverseproxy -listen 127.0.0.1:%d -endpoints %s:%d -tls 127.0.0.1:%d=%s,127.0.0.1:%d=%s",
			k.bins, c.plain, endpointAddr, endpointPort, c.p256, k.pairs[p256Host], c.rsa, k.pairs[rsaHost])
		if len(r) > 0 {
			file := filepath.Join(k.t.TempDir(), "routes")
			if err := os.WriteFile(file, []byte(strings.Join(r.names(), "\n")), 0o600); err != nil {
				k.t.Fatal(err)
			}
			line += " -routes " + file
		}
		c.process = run(k.t, k.ns, c.plain, first, line)
	default:
		if !k.startOther(c, r) {
			return nil
		}
	}
	return c
}

// version extracts the version from a program's output.
func version(line string) string {
	args := strings.Fields(line)
	out, _ := exec.Command(args[0], args[1:]...).CombinedOutput()
	for _, w := range strings.FieldsFunc(string(out), func(r rune) bool { return r == ' ' || r == '/' || r == '\n' }) {
		if w[0] >= '0' && w[0] <= '9' {
			return w
		}
	}
	return "of an unknown version"
}

// family returns the processes of a contestant: its own, and its children.
func (c *contestant) family() (pids []int) {
	pids = []int{c.process.Pid()}
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	parents := map[int][]int{}
	for _, f := range files {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if s := stat(pid); len(s) > 1 {
			p, _ := strconv.Atoi(s[1])
			parents[p] = append(parents[p], pid)
		}
	}
	for i := 0; i < len(pids); i++ {
		pids = append(pids, parents[pids[i]]...)
	}
	return pids
}

// stat returns the fields of /proc/PID/stat after the name.
func stat(pid int) []string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil // it has ended
	}
	return strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
}

// used returns the CPU time of its processes in µs, and that outside the kernel. The sum is exact, its parts are by the
// kernel's ticks.
func (c *contestant) used() (all, user float64) {
	var ticks, ticksUser float64
	for _, pid := range c.family() {
		s := stat(pid)
		if len(s) < 13 {
			continue
		}
		u, _ := strconv.ParseFloat(s[11], 64)
		k, _ := strconv.ParseFloat(s[12], 64)
		ticks, ticksUser = ticks+u+k, ticksUser+u
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, f := range threads {
			var ns float64
			if raw, err := os.ReadFile(f); err == nil {
				_, _ = fmt.Sscan(string(raw), &ns)
				all += ns / 1000
			}
		}
	}
	if ticks == 0 {
		return all, 0
	}
	return all, all * ticksUser / ticks
}

// spent returns the CPU time of its processes in µs including ended children, by ticks.
func (c *contestant) spent() (us float64) {
	for _, pid := range c.family() {
		s := stat(pid)
		for i := 11; i < 15 && i < len(s); i++ {
			v, _ := strconv.ParseFloat(s[i], 64)
			us += v * 10000
		}
	}
	return us
}

// memory returns the memory of its processes, in MiB: resident, and with shared pages counted once.
func (c *contestant) memory() (resident, proportional float64) {
	for _, pid := range c.family() {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue
		}
		for line := range bytes.Lines(raw) {
			var kb float64
			if n, _ := fmt.Sscanf(string(line), "Rss: %f kB", &kb); n == 1 {
				resident += kb / 1024
			}
			if n, _ := fmt.Sscanf(string(line), "Pss: %f kB", &kb); n == 1 {
				proportional += kb / 1024
			}
		}
	}
	return resident, proportional
}
