package testnet

import (
	"bufio"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// RouteMonitor records which routes the kernel of a namespace loses.
type RouteMonitor struct {
	mu   sync.Mutex
	gone []string
}

// WatchRoutes watches the routes of both families in the namespace, until the test ends.
func WatchRoutes(ns *NS) *RouteMonitor {
	ns.t.Helper()
	m := &RouteMonitor{}
	for _, family := range []string{"-4", "-6"} {
		cmd := exec.Command("ip", family, "monitor", "route")
		out, err := cmd.StdoutPipe()
		if err != nil {
			ns.t.Fatal(err)
		}
		ns.Must(cmd.Start)
		ns.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		go func() {
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if strings.HasPrefix(lines.Text(), "Deleted ") {
					m.mu.Lock()
					m.gone = append(m.gone, lines.Text())
					m.mu.Unlock()
				}
			}
		}()
	}
	time.Sleep(200 * time.Millisecond) // its sockets are open
	return m
}

// Lost returns the losses of prefixes so far.
func (m *RouteMonitor) Lost(prefixes ...string) (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, line := range m.gone {
		for _, p := range prefixes {
			if strings.Contains(line, strings.TrimSuffix(strings.TrimSuffix(p, "/32"), "/128")+" ") {
				out = append(out, line)
			}
		}
	}
	return out
}
