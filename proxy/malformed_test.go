package proxy

import (
	"bufio"
	"context"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// badCase is a line of testdata/malformed.txt.
type badCase struct {
	status        int
	name, request string
}

func badCases(t testing.TB) (list []badCase) {
	t.Helper()
	text, err := os.ReadFile("testdata/malformed.txt")
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^(\d{3}) ([^\t]+)\t(".*")$`)
	for i, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		m := form.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("line %d is not STATUS NAME TAB REQUEST: %s", i+1, line)
		}
		request, err := strconv.Unquote(m[3])
		if err != nil {
			t.Fatalf("line %d: %v", i+1, err)
		}
		status, _ := strconv.Atoi(m[1])
		list = append(list, badCase{status, m[2], request})
	}
	return list
}

// witness is an endpoint that counts what it was asked for.
type witness struct {
	whole, probes atomic.Int64
}

func (w *witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if strings.Contains(r.RequestURI, "PROBE") {
		w.probes.Add(1)
	}
	if _, err := r.Body.Read(make([]byte, 1)); err == nil || err.Error() == "EOF" {
		buf := make([]byte, 4096)
		for err == nil {
			_, err = r.Body.Read(buf)
		}
		if err.Error() == "EOF" {
			w.whole.Add(1)
		}
	}
	rw.Header().Set("X-Endpoint", "yes")
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	for _, x := range badCases(t) {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			var w witness
			r := newRig(t, nil, handler(t, w.ServeHTTP))
			c := r.dial()
			c.send("%s", x.request)
			resp, body := c.response("GET")
			if resp.StatusCode != x.status {
				t.Errorf("%s %q, want %d", resp.Status, body, x.status)
			}
			if x.status == 200 {
				if resp.Header.Get("X-Endpoint") == "" || w.whole.Load() != 1 {
					t.Errorf("the endpoint saw %d requests", w.whole.Load())
				}
				return
			}
			if resp.Close {
				c.ended()
			} else if !strings.HasPrefix(x.name, "target ") { // of those, the end is sure
				t.Error("the connection is used on")
			}
			if w.whole.Load() != 0 || w.probes.Load() != 0 {
				t.Errorf("the endpoint saw %d whole requests and %d probes", w.whole.Load(), w.probes.Load())
			}
		})
	}
}

// mutate makes a request that is no longer one, mostly.
func mutate(r *rand.Rand, s string) string {
	b := []byte(s)
	odd := []string{"\r", "\n", "\x00", " ", "\t", ":", "\r\n", "\r\n\r\n", "\xff", "0", "Content-Length: 3\r\n",
		"Transfer-Encoding: chunked\r\n", "\r\n ", "HTTP/1.1"}
	for range 1 + r.IntN(4) {
		if len(b) == 0 {
			break
		}
		i := r.IntN(len(b))
		switch r.IntN(4) {
		case 0:
			b[i] = byte(r.IntN(256))
		case 1:
			b = append(b[:i], b[min(len(b), i+1+r.IntN(4)):]...)
		case 2:
			b = append(b[:i], append([]byte(odd[r.IntN(len(odd))]), b[i:]...)...)
		case 3:
			j := r.IntN(len(b))
			b = append(b[:i], append([]byte(string(b[min(i, j):max(i, j)])), b[i:]...)...)
		}
	}
	return string(b)
}

// Ten thousand requests that are broken in ways of their own, over sockets: the proxy serves
// on, and every request that the endpoint sees whole is one that the proxy answered by it.
func TestTenThousandMalformedRequests(t *testing.T) {
	const total, workers = 12000, 16
	var w witness
	r := newRig(t, func(r *rig) { r.limits.HeadTime, r.limits.Body = 300*time.Millisecond, 300*time.Millisecond },
		handler(t, w.ServeHTTP))
	cases := badCases(t)
	var refused, passed, silent atomic.Int64
	var wg sync.WaitGroup
	for n := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(9, uint64(n)))
			for i := range total / workers {
				text := mutate(rnd, cases[(i*workers+n)%len(cases)].request)
				refusedOne, passedOne := sendBad(t, r.addr, text)
				refused.Add(refusedOne)
				passed.Add(passedOne)
				if refusedOne+passedOne == 0 {
					silent.Add(1)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d requests: %d refused, %d answered by the endpoint, %d without an answer", total, refused.Load(),
		passed.Load(), silent.Load())
	if refused.Load() < 10000/2 {
		t.Errorf("only %d were refused", refused.Load())
	}
	c := r.dial()
	c.send("GET /well HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, _ := c.response("GET"); resp.StatusCode != 200 {
		t.Errorf("afterwards: %s", resp.Status)
	}
	for end := time.Now().Add(10 * time.Second); r.s.Conns() > 1 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := r.s.Conns(); n > 1 { // that of c
		t.Errorf("%d connections are left", n)
	}
}

// sendBad sends text and counts the answers on its connection.
func sendBad(t *testing.T, addr, text string) (refused, passed int64) {
	var d net.Dialer
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		t.Errorf("the proxy accepts nothing: %v", err)
		return 0, 0
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte(text)); err != nil {
		return 0, 0
	}
	_ = c.(*net.TCPConn).CloseWrite()
	br := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return refused, passed
		}
		if resp.Header.Get("X-Endpoint") != "" {
			passed++
		} else {
			refused++
		}
		buf := make([]byte, 1024)
		for err == nil {
			_, err = resp.Body.Read(buf)
		}
	}
}
