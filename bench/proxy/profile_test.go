package proxy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/testnet"
)

// part is a share of a profile: samples in a function whose name begins with one of the prefixes, or that such a
// function called. The function closest to the sample decides.
type part struct {
	name  string
	words []string
}

const (
	kernelPart    = "kernel: reading and writing sockets"
	schedulerPart = "scheduler, poller, timers, also in the kernel"
	otherPart     = "the rest"
	own           = "wayleave.dev/proxy"
)

var parts = []part{
	{kernelPart, []string{"internal/runtime/syscall", "syscall.RawSyscall", "syscall.Syscall"}},
	{schedulerPart, []string{"runtime.netpoll", "runtime.findRunnable", "runtime.schedule", "runtime.mcall",
		"runtime.futex", "runtime.usleep", "runtime.sysmon", "runtime.ready", "runtime.goready", "runtime.gopark",
		"runtime.Gosched", "time.", "internal/poll.runtime_", "runtime.selectgo", "runtime.chansend",
		"runtime.chanrecv", "runtime.entersyscall", "runtime.exitsyscall", "runtime.reentersyscall",
		"runtime.casgstatus"}},
	{"memory: allocation and collection", []string{"runtime.mallocgc", "runtime.gcBgMarkWorker", "runtime.gcAssist",
		"runtime.bgsweep", "runtime.bgscavenge", "runtime.newobject", "runtime.growslice", "runtime.makeslice",
		"runtime.gcDrain", "runtime.gcStart", "runtime.gcMark", "runtime.newproc", "runtime.newstack", "runtime.malg",
		"runtime.gfget"}},
	{"cryptography", []string{"crypto/internal", "crypto/ecdsa", "crypto/rsa", "crypto/ecdh", "crypto/aes",
		"crypto/cipher", "crypto/sha", "crypto/hmac", "crypto/hkdf", "crypto/mlkem", "crypto/x509", "crypto/rand"}},
	{"TLS: records and messages", []string{"crypto/tls"}},
	{"HTTP/2: HPACK", []string{"golang.org/x/net/http2/hpack"}},
	{"HTTP/2: frames and streams", []string{"golang.org/x/net/http2", own + "/server.(*stream)",
		own + "/server.(*batch", own + "/server.(*http2Server)", own + "/server.newStream", own + "/server.addFields",
		own + "/message.FieldsOf", "net/http"}},
	{"HTTP/1.1: heads, bodies, connections", []string{own + "/h1"}},
	{"routing, pools, fields, metrics", []string{own}},
}

// profiled are the shares of a load, by part.
type profiled struct {
	load   string
	shares map[string]float64
}

// profile profiles Wayleave while work runs.
func (k *kit) profile(c *contestant, load string, work func()) profiled {
	k.t.Helper()
	if err := syscall.Kill(c.process.Pid(), syscall.SIGUSR1); err != nil {
		k.t.Fatal(err)
	}
	work()
	if err := syscall.Kill(c.process.Pid(), syscall.SIGUSR2); err != nil {
		k.t.Fatal(err)
	}
	file := k.profileFile()
	testnet.Eventually(k.t, 20*time.Second, func() error { _, err := os.Stat(file); return err })
	f, err := os.Open(file)
	if err != nil {
		k.t.Fatal(err)
	}
	defer f.Close()
	p, err := profile.Parse(f)
	if err != nil {
		k.t.Fatal(err)
	}
	if keep := os.Getenv("WAYLEAVE_BENCH_PROFILES"); keep != "" { // for go tool pprof
		raw, _ := os.ReadFile(file)
		_ = os.WriteFile(filepath.Join(keep, strings.NewReplacer(" ", "-", ",", "", "/", "").Replace(load)+
			".pprof"), raw, 0o600)
	}
	if err := os.Remove(file); err != nil {
		k.t.Fatal(err)
	}
	out := profiled{load, map[string]float64{}}
	var all float64
	for _, s := range p.Sample {
		all += float64(s.Value[1])
		out.shares[partOf(s)] += float64(s.Value[1])
	}
	for n := range out.shares {
		out.shares[n] /= all
	}
	return out
}

func (k *kit) profileFile() string { return filepath.Join(k.bins, "profile") }

func partOf(s *profile.Sample) string {
	var stack []string
	polls := false
	for _, l := range s.Location {
		for _, line := range l.Line {
			if line.Function != nil {
				stack = append(stack, line.Function.Name)
				polls = polls || strings.HasPrefix(line.Function.Name, "runtime.netpoll")
			}
		}
	}
	if polls { // also a system call
		return schedulerPart
	}
	for _, name := range stack {
		for _, p := range parts {
			for _, w := range p.words {
				if strings.HasPrefix(name, w) {
					return p.name
				}
			}
		}
	}
	return otherPart
}

// profiles are those of the distinct loads.
func (k *kit) profiles(c *contestant) (list []profiled) {
	k.t.Helper()
	for _, l := range loads() {
		if l.conns > 32 || l.host == rsaHost {
			continue
		}
		list = append(list, k.profile(c, strings.TrimSuffix(l.name, ", 32 connections"), func() {
			for range 3 { // there are few samples
				k.measure(c, l)
			}
		}))
	}
	for _, s := range shakes() {
		if !s.resume {
			list = append(list, k.profile(c, "handshake, "+s.name, func() { k.handshakes(c, mostTime, s) }))
		}
	}
	return list
}

func writeProfiles(t *testing.T, page *result.Page, list []profiled) {
	t.Helper()
	page.Text("## Where the time goes")
	page.Text("CPU profiles of Wayleave's process (100 samples per second of CPU time, in the same run, after the " +
		"measurements; 32 connections). Time in the kernel counts for the system call. Shares in percent:")
	head := []string{"where"}
	for _, p := range list {
		head = append(head, p.load)
	}
	rows := [][]string{head}
	for _, n := range append(parts[:len(parts):len(parts)], part{name: otherPart}) {
		line := []string{n.name}
		for _, p := range list {
			line = append(line, fmt.Sprintf("%.0f", 100*p.shares[n.name]))
		}
		rows = append(rows, line)
	}
	page.Table(rows)
}
