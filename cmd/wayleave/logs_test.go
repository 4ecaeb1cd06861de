package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/dns"
	dnsschema "wayleave.dev/dns/schema"
	"wayleave.dev/internal/logging"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer/l2/speaker"
	"wayleave.dev/proxy/feed"
	proxyschema "wayleave.dev/proxy/schema"
	"wayleave.dev/statusserver"
)

// logsAgent marks the child that is an agent with its children, and has the folder of its socket.
const logsAgent = "WAYLEAVE_TEST_LOGS"

// TestLogsChild is the agent of TestLogsOfEveryProcess: its socket, and its children status-server and l2.
func TestLogsChild(t *testing.T) {
	dir := os.Getenv(logsAgent)
	if dir == "" {
		return // it is only there for the other
	}
	endWithParent()
	logs := logging.New(os.Stderr, logging.Settings{JSON: true})
	status := &statusserver.Supervisor{Args: []string{"status-server"}, Log: logs.Logger(), Logs: logs,
		Ports: func() []statusserver.Port { return nil }, Say: func(string, error) {},
		Render: func(statusserver.Page) statusserver.Answer { return statusserver.Text("") }}
	beats := speaker.New(logs.Logger(), "l2")
	beats.Logs = logs
	l, err := net.Listen("unix", filepath.Join(dir, "health.sock"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	logs.Serve(mux)
	t.Error(agent.All(t.Context(), status.Run, beats.Run, func(context.Context) error {
		return http.Serve(l, mux)
	}))
}

// logged runs a test's child as a user, and returns what it logs.
func logged(t *testing.T, test, env, dir string, user uint32) *said {
	t.Helper()
	program := "/proc/self/exe"
	if user != 0 {
		program = testBinary(t, dir)
	}
	cmd := exec.Command(program, "-test.run=^"+test+"$")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	out := &said{}
	cmd.Stderr = out
	if _, err := cmd.StdinPipe(); err != nil { // see endWithParent
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return out
}

// jsonLines are the lines of a log, each of which must be an object, from the first that is one.
func jsonLines(text string) (out []map[string]any, err error) {
	for line := range strings.Lines(text) {
		if len(out) == 0 && !strings.HasPrefix(line, "{") {
			continue // before the agent has told the format
		}
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		out = append(out, object)
	}
	return out, nil
}

// changed waits until a process has logged the change to a level, as JSON.
func changed(t *testing.T, out *said, process, level string) {
	t.Helper()
	testnet.Eventually(t, 30*time.Second, func() error {
		lines, err := jsonLines(out.String())
		if err != nil {
			return err
		}
		for _, l := range lines {
			if l["msg"] == "the level of the log has changed" && l["to"] == level &&
				(process == "" || l["process"] == process) {
				return nil
			}
		}
		return fmt.Errorf("%q has not changed to %s in %s", process, level, out)
	})
}

// setLevel runs `wayleave log-level` against a socket.
func setLevel(t *testing.T, socket string, level ...string) {
	t.Helper()
	testnet.Eventually(t, 30*time.Second, func() error {
		out, errs, code := run(t, "", append([]string{"log-level", "--socket", socket}, level...)...)
		if code != 0 || len(level) > 0 && strings.TrimSpace(out) != level[0] {
			return fmt.Errorf("status %d: %q, %q", code, out, errs)
		}
		return nil
	})
}

// Every process logs as JSON when the settings say so, and `wayleave log-level` changes the level of each while it
// runs: the agent's is also that of its children.
func TestLogsOfEveryProcess(t *testing.T) {
	told := logging.Settings{Level: slog.LevelWarn, JSON: true}
	quiet := slog.New(slog.DiscardHandler)
	t.Run("agent", func(t *testing.T) {
		dir := t.TempDir()
		out := logged(t, "TestLogsChild", logsAgent, dir, 0)
		testnet.Eventually(t, 30*time.Second, func() error {
			for _, p := range []string{"l2", "status-server"} { // they run without rights, so they follow already
				if !hasChild(t, p, dir) {
					return fmt.Errorf("%s does not run: %s", p, out)
				}
			}
			return nil
		})
		setLevel(t, filepath.Join(dir, "health.sock"), "debug")
		for _, p := range []string{"", "l2", "status-server"} {
			changed(t, out, p, "DEBUG")
		}
	})
	t.Run("dns", func(t *testing.T) {
		dir := t.TempDir()
		f := &dns.Feed{Log: quiet, Open: dns.OpenSocket}
		f.Configure(dnsschema.Settings{Log: told, Domains: []string{"cluster.local."}})
		serveFeed(t, f, filepath.Join(dir, "dns.sock"))
		out := logged(t, "TestDNSChild", dnsChild, dir, 0)
		changed(t, out, "", "WARN")
		health := filepath.Join(dir, "health.sock")
		setLevel(t, health, "error")
		changed(t, out, "", "ERROR")
		f.Configure(dnsschema.Settings{Log: told, Domains: []string{"cluster.local.", "corp.example."}})
		setLevel(t, health, "error") // an unrelated change of the settings does not undo it
		setLevel(t, health)
		told := told
		told.Level = slog.LevelDebug
		f.Configure(dnsschema.Settings{Log: told, Domains: []string{"cluster.local."}})
		changed(t, out, "", "DEBUG")
	})
	t.Run("proxy", func(t *testing.T) {
		dir := proxyDir(t)
		path := filepath.Join(dir, "proxy.sock")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
		f := feed.New(proxyTestUser, feed.NewKeeper("", quiet), quiet)
		f.Configure(proxyschema.Settings{Log: told})
		go func() { _ = f.Serve(t.Context(), l) }()
		out := logged(t, "TestProxyChild", proxyChild, dir, proxyTestUser)
		changed(t, out, "", "WARN")
		setLevel(t, filepath.Join(dir, "health.sock"), "error")
		changed(t, out, "", "ERROR")
	})
	for _, bad := range [][]string{{"trace"}, {"INFO"}, {"debug", "info"}} {
		if out, _, code := run(t, "", append([]string{"log-level", "--socket", "/nowhere.sock"},
			bad...)...); code == 0 {
			t.Errorf("%v: %q", bad, out)
		}
	}
}

// hasChild says whether a process runs with that word, whose parent has the folder in its environment.
func hasChild(t *testing.T, word, dir string) bool {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		env, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(env), logsAgent+"="+dir+"\x00") {
			continue
		}
		args, err := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		if err == nil && strings.Contains(string(args), "\x00"+word+"\x00") {
			return true
		}
	}
	return false
}
