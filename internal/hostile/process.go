package hostile

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Resident returns the current memory of a process, in bytes (VmRSS).
func Resident(t testing.TB, pid int) int64 { return memory(t, pid, "VmRSS:") }

// Peak returns the maximum memory of a process since its start or since ResetPeak, in bytes (VmHWM).
func Peak(t testing.TB, pid int) int64 { return memory(t, pid, "VmHWM:") }

// ResetPeak resets Peak to the current memory.
func ResetPeak(t testing.TB, pid int) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

func memory(t testing.TB, pid int, field string) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatalf("the process has ended: %v", err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("process %d has no %s: it has ended", pid, field)
	return 0
}

// Descriptors returns how many files a process has open.
func Descriptors(t testing.TB, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatalf("the process has ended: %v", err)
	}
	return len(list)
}

// Client is a well-behaved client that sends requests repeatedly.
type Client struct {
	mu            sync.Mutex
	asked, failed int
	slowest       time.Duration
	last          error
}

// Ask starts a client; stop ends it and waits for its last request. It ends with the test at the latest.
func Ask(t testing.TB, every time.Duration, ask func() error) (c *Client, stop func()) {
	c = &Client{}
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			start := time.Now()
			c.count(ask(), time.Since(start))
			select {
			case <-end:
				return
			case <-time.After(every):
			}
		}
	}()
	stop = sync.OnceFunc(func() { close(end); <-done })
	t.Cleanup(stop)
	return c, stop
}

func (c *Client) count(err error, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	c.slowest = max(c.slowest, took)
	if err != nil {
		c.failed++
		c.last = err
	}
}

// Counts returns the number of requests, the number of failures, and the last error.
func (c *Client) Counts() (asked, failed int, last error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked, c.failed, c.last
}

// Slowest returns the longest time of a request.
func (c *Client) Slowest() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slowest
}
