//go:build lab

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"wayleave.dev/lab/place"
	"wayleave.dev/lab/process"
)

// These tests bring labs up for real: go test -tags lab ./cmd/lab. They need
// root, and a machine on which no lab is up.

// volatile are kernel values that change by themselves.
var volatile = regexp.MustCompile(
	`random/|fs/(dentry-state|file-nr|inode-|aio-nr|quota)|ns_last_pid|pty/nr|nf_conntrack_count|` +
		`nr_hugepages_mempolicy|sched_domain|(ipv4|ipv6)/(neigh|conf)/.*/(stable_secret)|printk_ratelimit|` +
		`perf_event_max_sample_rate`)

// program builds the lab once.
func program(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the lab needs root (CAP_SYS_ADMIN)")
	}
	file := filepath.Join(t.TempDir(), "lab")
	if out, err := exec.Command("go", "build", "-o", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return file
}

// host is what must not change: name of a thing → its state.
func host(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	_ = filepath.WalkDir("/proc/sys", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !volatile.MatchString(path) {
			if value, err := os.ReadFile(path); err == nil {
				all[path] = string(value)
			}
		}
		return nil
	})
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "wayleave") {
			all[path] = "cgroup"
		}
		return nil
	})
	for _, command := range []string{"ip -o link show", "ip -o -4 addr show", "ip route show table all", "ip -6 rule",
		"ip rule", "nft list ruleset"} {
		words := strings.Fields(command)
		if out, err := exec.Command(words[0], words[1:]...).Output(); err == nil {
			all[command] = string(out)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	all["mounts"] = fmt.Sprint(len(strings.Split(string(mounts), "\n")))
	dirs, err := place.Find(os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dirs.State, dirs.Data, "/opt/cni", "/etc/cni", "/etc/kubernetes", "/var/lib/kubelet",
		"/var/lib/cni",
		"/var/lib/containerd", "/run/containerd", "/var/log/pods", "/usr/libexec/kubernetes", "/run/netns/wl-fabric",
		"/run/netns/wl-node1"} {
		if _, err := os.Lstat(path); err == nil {
			all[path] = "there"
		}
	}
	return all
}

func compare(t *testing.T, when string, before, after map[string]string) {
	t.Helper()
	names := slices.Collect(maps.Keys(before))
	for name := range after {
		if _, ok := before[name]; !ok {
			names = append(names, name)
		}
	}
	for _, name := range names {
		if before[name] != after[name] {
			t.Errorf("%s: %s was %q, is %q", when, name, before[name], after[name])
		}
	}
	dirs, err := place.Find(os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	left, err := process.Executing(filepath.Join(dirs.State, "bin", "lab"))
	if err != nil || len(left) > 0 {
		t.Errorf("%s: processes left: %+v, %v", when, left, err)
	}
}

func run(t *testing.T, program string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	return string(out), err
}

func TestLabComesUpOnceAndLeavesNothing(t *testing.T) {
	lab := program(t)
	if out, err := run(t, lab, "down"); err != nil {
		t.Fatalf("down with nothing up: %v\n%s", err, out)
	}
	before := host(t)
	t.Cleanup(func() { _, _ = run(t, lab, "down") })
	if out, err := run(t, lab, "up", "--network", "upstream", "--nodes", "2"); err != nil ||
		!strings.Contains(out, "export KUBECONFIG=") {
		t.Fatalf("up: %v\n%s", err, out)
	}
	if out, err := run(t, lab, "up"); err == nil || !strings.Contains(out, "up already") {
		t.Errorf("a second lab: %v\n%s", err, out)
	}
	if out, err := run(t, lab, "status"); err != nil || strings.Count(out, " Ready ") != 2 {
		t.Errorf("status: %v\n%s", err, out)
	}
	// A pod of an image that no node has: it comes from the lab's registry.
	for _, words := range [][]string{
		{"exec", "outside", "kubectl", "run", "a", "--image=busybox", "--restart=Never", "--", "nslookup",
			"kubernetes.default.svc.cluster.local"},
		{"exec", "outside", "kubectl", "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/a", "--timeout=60s"},
	} {
		if out, err := run(t, lab, words...); err != nil {
			t.Errorf("%q: %v\n%s", words, err, out)
		}
	}
	var ended *exec.ExitError
	if _, err := run(t, lab, "exec", "node2", "sh", "-c", "exit 7"); !errors.As(err, &ended) || ended.ExitCode() != 7 {
		t.Errorf("exit status of a command in a node: %v", err)
	}
	for range 2 {
		if out, err := run(t, lab, "down"); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
	}
	compare(t, "after down", before, host(t))
}

// Ctrl-C, at whatever moment, takes down what was started.
func TestInterruptedUpLeavesNothing(t *testing.T) {
	lab := program(t)
	dirs, err := place.Find(os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	before := host(t)
	for _, moment := range []string{"pki/ca.crt", "processes/control.json", "processes/node2.json",
		"logs/node1-kubelet.log"} {
		cmd := exec.Command(lab, "up", "--network", "none", "--nodes", "2")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
		err := process.WaitFor(ctx, moment, time.Millisecond, func() error {
			_, err := os.Stat(filepath.Join(dirs.State, moment))
			return err
		})
		cancel()
		if err != nil {
			t.Error(err)
		}
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Error(err)
		}
		var ended *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &ended) || ended.ExitCode() != interrupted {
			t.Errorf("at %s: %v", moment, err)
		}
		compare(t, "interrupted at "+moment, before, host(t))
	}
}

// What a killed "up" left behind goes with the next "down".
func TestDownAfterAKilledUp(t *testing.T) {
	lab := program(t)
	dirs, err := place.Find(os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	before := host(t)
	cmd := exec.Command(lab, "up", "--network", "none", "--nodes", "1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	err = process.WaitFor(ctx, "the node", time.Millisecond, func() error {
		_, err := os.Stat(filepath.Join(dirs.State, "processes/node1.json"))
		return err
	})
	if err != nil {
		t.Error(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if out, err := run(t, lab, "down"); err != nil {
		t.Errorf("down: %v\n%s", err, out)
	}
	compare(t, "after down", before, host(t))
}
