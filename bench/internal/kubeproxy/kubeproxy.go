// Package kubeproxy runs the real kube-proxy in a network namespace.
package kubeproxy

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/lab/build"
	"wayleave.dev/lab/progress"
)

// Program builds kube-proxy, or takes it from the lab's cache, and returns its path and version.
func Program(t *testing.T) (path, version string) {
	t.Helper()
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	checkout, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	cache := &build.Cache{Dir: filepath.Join(home, ".cache", "wayleave-lab"), Progress: progress.New(os.Stderr),
		Log: os.Stderr}
	unlock, err := cache.Lock(t.Context()) // a lab may be building the same program
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	p, err := cache.Programs(t.Context(), checkout)
	if err != nil {
		t.Fatal(err)
	}
	return p.Kube, p.KubernetesVersion
}

// Process is a running program.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	Log  *bytes.Buffer
}

// Start runs kube-proxy in a namespace against an API server that is reachable there.
// It syncs as soon as it can.
func Start(t *testing.T, bin string, ns *testnet.NS, node, mode, master, clusterCIDR string) *Process {
	t.Helper()
	dir := t.TempDir()
	kubeconfig, config := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "config")
	for file, text := range map[string]string{
		kubeconfig: fmt.Sprintf(
			`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c",`+
				`"context":{"cluster":"c","user":"u"}}],"clusters":[{"name":"c","cluster":{"server":%q}}],`+
				`"users":[{"name":"u"}]}`, master),
		config: fmt.Sprintf(
			`{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration",
"clientConnection":{"kubeconfig":%q,"qps":1000,"burst":1000},
"mode":%q,"hostnameOverride":%q,"clusterCIDR":%q,"configSyncPeriod":"1h",
"nftables":{"minSyncPeriod":"1ms","syncPeriod":"1h"},"iptables":{"minSyncPeriod":"1ms","syncPeriod":"1h"},
"ipvs":{"minSyncPeriod":"1ms","syncPeriod":"1h","strictARP":true},
"conntrack":{"maxPerCore":0,"tcpEstablishedTimeout":"0s","tcpCloseWaitTimeout":"0s"}}`, kubeconfig, mode,
			node, clusterCIDR),
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Run(t, ns, exec.Command(bin, "kube-proxy", "--config="+config, "--v=1"))
}

// Run runs a program in a namespace until the test ends.
func Run(t *testing.T, ns *testnet.NS, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{cmd: cmd, done: make(chan struct{}), Log: &bytes.Buffer{}}
	cmd.Stdout, cmd.Stderr = p.Log, p.Log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			log := p.Log.Bytes()
			t.Logf("%s: %s", filepath.Base(cmd.Path), log[max(0, len(log)-3000):])
		}
	})
	return p
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Stop kills it.
func (p *Process) Stop() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
	}
}

// CPU returns the CPU time of the process and its ended children.
func (p *Process) CPU() (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
	if err != nil {
		return 0, err
	}
	var ticks [4]int64
	rest := raw[bytes.LastIndexByte(raw, ')')+2:]
	f := bytes.Fields(rest)
	for i := range ticks {
		if _, err := fmt.Sscan(string(f[11+i]), &ticks[i]); err != nil {
			return 0, err
		}
	}
	return time.Duration(ticks[0]+ticks[1]+ticks[2]+ticks[3]) * 10 * time.Millisecond, nil
}

// Runs reports whether it has a running child process.
func (p *Process) Runs() bool {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		var state string
		var parent int
		if _, err := fmt.Sscan(string(raw[bytes.LastIndexByte(raw, ')')+1:]), &state, &parent); err == nil &&
			parent == p.Pid() && state != "Z" {
			return true
		}
	}
	return false
}

// Memory returns its resident memory, in bytes.
func (p *Process) Memory() (int64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(raw) {
		var kb int64
		if n, _ := fmt.Sscanf(string(line), "VmRSS: %d kB", &kb); n == 1 {
			return kb << 10, nil
		}
	}
	return 0, fmt.Errorf("no VmRSS of %d", p.Pid())
}
