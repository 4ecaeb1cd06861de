package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"wayleave.dev/proxy/schema"
)

// oddity is a line of testdata/oddities.txt.
type oddity struct {
	status, name, request, response string
	// closes says that the endpoint ends the connection behind its response.
	closes bool
}

func oddities(t testing.TB) (list []oddity) {
	t.Helper()
	text, err := os.ReadFile("testdata/oddities.txt")
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		parts := strings.Split(line, "\t")
		status, name, ok := strings.Cut(parts[0], " ")
		if !ok || len(parts) < 3 {
			t.Fatalf("line %d is not STATUS NAME TAB REQUEST TAB RESPONSE: %s", i+1, line)
		}
		request, err1 := strconv.Unquote(parts[1])
		response, err2 := strconv.Unquote(parts[2])
		if err1 != nil || err2 != nil {
			t.Fatalf("line %d: %v, %v", i+1, err1, err2)
		}
		list = append(list, oddity{status, name, request, response, len(parts) > 3})
	}
	return list
}

// simple is an endpoint that reads a request, answers with the oddity's response, and reads the next.
type simple struct {
	mu   sync.Mutex
	now  oddity
	seen []string // method, target and body of each request
}

func (s *simple) serve(c net.Conn, br *bufio.Reader) {
	for {
		q, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		body, err := io.ReadAll(q.Body)
		if err != nil {
			return
		}
		s.mu.Lock()
		now := s.now
		s.seen = append(s.seen, q.Method+" "+q.RequestURI+" "+string(body))
		s.mu.Unlock()
		if _, err := io.WriteString(c, now.response); err != nil || now.closes {
			return
		}
	}
}

// Each oddity is answered as its line says, and the endpoint is asked what the client asked. What Wayleave refuses,
// it refuses with a reason, and goes on; what it passes on comes whole.
func TestOddities(t *testing.T) {
	for _, x := range oddities(t) {
		t.Run(x.name, func(t *testing.T) {
			s := &simple{now: x}
			r := newRig(t, nil, raw(t, s.serve))
			c := r.dial()
			c.send("%s", x.request)
			_ = c.Conn.(*net.TCPConn).CloseWrite()
			method, _, _ := strings.Cut(x.request, " ")
			for {
				resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
				if err != nil {
					if x.status != "cut" {
						t.Errorf("%v; %s", err, r.told())
					}
					break
				}
				if resp.StatusCode < 200 && resp.StatusCode != 101 {
					continue
				}
				if resp.StatusCode == 101 {
					resp.Body = io.NopCloser(c.br)
				}
				body, err := io.ReadAll(resp.Body)
				x.judge(t, resp, body, err, r)
				break
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			_, sent, _ := strings.Cut(x.request, "\r\n\r\n")
			if len(s.seen) > 0 && strings.HasPrefix(sent, "hi") && !strings.HasSuffix(s.seen[0], " hi") {
				t.Errorf("the endpoint saw %q", s.seen)
			}
		})
	}
}

func (x *oddity) judge(t *testing.T, resp *http.Response, body []byte, err error, r *rig) {
	t.Helper()
	got := strconv.Itoa(resp.StatusCode)
	if err != nil {
		got = "cut"
	}
	if got != x.status {
		t.Fatalf("%s %q, %v, want %s; %s", resp.Status, body, err, x.status, r.told())
	}
	own := resp.StatusCode >= 400 && !strings.Contains(x.response, " "+got+" ")
	switch {
	case own && resp.StatusCode == 502:
		if rec := r.record(0); rec.Err == nil {
			t.Error("no reason is given")
		}
	case own || err != nil || resp.Request.Method == "HEAD" || resp.StatusCode == 204:
	case strings.HasSuffix(x.response, "ok") && string(body) != "ok", strings.HasSuffix(x.response, "raw") &&
		string(body) != "raw":
		t.Errorf("body %q", body)
	}
	_, head, _ := strings.Cut(x.response, "\r\n")
	for line := range strings.SplitSeq(head, "\r\n") {
		name, value, ok := strings.Cut(line, ":")
		if line == "" {
			break
		}
		if ok && !own && (strings.HasPrefix(name, "X") || name == "Location" || name == "Set-Cookie" ||
			name == "Content-Disposition") {
			if !strings.Contains(strings.Join(resp.Header.Values(name), "\n"),
				strings.TrimSpace(string(withoutControls([]byte(value))))) {
				t.Errorf("field %q is %q", name, resp.Header.Values(name))
			}
		}
	}
}

// TRACE is refused, whatever the path, as nginx does: a page could read by it what only the endpoint is to see.
func TestTRACEIsRefused(t *testing.T) {
	s := &simple{now: oddity{response: okay}}
	r := newRig(t, nil, raw(t, s.serve))
	r.route(path(schema.Options{}))
	c := r.dial()
	c.send("TRACE / HTTP/1.1\r\nHost: a\r\nCookie: a=b\r\n\r\n")
	if resp, body := c.response("TRACE"); resp.StatusCode != 405 || resp.Header.Get("Allow") == "" ||
		strings.Contains(body, "a=b") || len(s.seen) > 0 {
		t.Errorf("%s %q %v", resp.Status, body, s.seen)
	}
}
