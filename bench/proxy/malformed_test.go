package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/testnet"
)

// malformed is a row of the proxy's own table.
type malformed struct {
	status        int
	name, request string
}

func cases(t *testing.T) (list []malformed) {
	t.Helper()
	text, err := os.ReadFile("../../proxy/testdata/malformed.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^(\d{3}) ([^\t]+)\t(".*")$`).FindAllStringSubmatch(string(text), -1) {
		request, err := strconv.Unquote(m[3])
		if err != nil {
			t.Fatal(err)
		}
		status, _ := strconv.Atoi(m[1])
		list = append(list, malformed{status, m[2], request})
	}
	return list
}

// seen is the result of a request.
type seen struct {
	answer string // the statuses of the answers, in order
	whole  int64  // complete requests that the endpoint read
	probes int64
}

// String is a cell of the table.
func (s seen) String() string {
	text := s.answer
	if s.whole > 0 {
		text += ", passed on"
	}
	if s.whole > 1 {
		text += fmt.Sprintf(" as %d requests", s.whole)
	}
	return text
}

// reasons has, for every request that nginx answers differently, what decides; other requests must have the same answer
// from both.
func reasons(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("testdata/differences.txt")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, line := range strings.Split(string(text), "\n") {
		if name, why, ok := strings.Cut(line, "\t"); ok {
			m[name] = why
		}
	}
	return m
}

// TestMalformed compares nginx's answers to malformed requests with Wayleave's, and writes docs/ingress-malformed.md.
func TestMalformed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root (CAP_SYS_ADMIN)")
	}
	if _, err := exec.LookPath("nginx"); err != nil {
		t.Skip("nginx is not installed (Debian: apt-get install nginx-light)")
	}
	ns := testnet.New(t, "malformed")
	// An endpoint for each: what nginx forwards late must not count for Wayleave.
	var whole, probes [2]atomic.Int64
	for i := range 2 {
		l := ns.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", endpointPort-i))
		go func() {
			_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.RequestURI, "PROBE") {
					probes[i].Add(1)
				}
				if _, err := io.Copy(io.Discard, r.Body); err == nil {
					whole[i].Add(1)
				}
			}))
		}()
	}
	bin := ours(t)
	run(t, ns, 9001, "nice", fmt.Sprintf("%s -listen 127.0.0.1:9001 -endpoints 127.0.0.1:%d", bin, endpointPort))
	run(t, ns, 9002, "nice", "nginx -c "+configured(t, nginxProxy, 9002, endpointPort-1))
	why, same := reasons(t), 0
	rows := [][]string{{"request", "Wayleave", "nginx", "why"}}
	for _, c := range cases(t) {
		var got [2]seen
		for i, port := range []int{9001, 9002} {
			whole[i].Store(0)
			probes[i].Store(0)
			got[i].answer = ask(t, ns, port, c.request)
			got[i].whole, got[i].probes = whole[i].Load(), probes[i].Load()
		}
		if status, _, _ := strings.Cut(got[0].answer, " "); status != strconv.Itoa(c.status) {
			t.Errorf("%s: %s, want %d", c.name, got[0], c.status)
		}
		if got[0].probes > 0 || c.status != 200 && got[0].whole > 0 {
			t.Errorf("%s: the endpoint got it from Wayleave: %+v", c.name, got[0])
		}
		if got[0].String() == got[1].String() {
			same++
			if why[c.name] != "" {
				t.Errorf("%s: both answer %s; the reason for a difference is out of date", c.name, got[0])
			}
			continue
		}
		if why[c.name] == "" {
			t.Errorf("%s: %s; nginx: %s; the reason is missing", c.name, got[0], got[1])
		}
		rows = append(rows, []string{c.name, got[0].String(), got[1].String(), why[c.name]})
	}
	if t.Failed() {
		return
	}
	page := result.New(result.Docs, "ingress-malformed", "Comparison with nginx: malformed requests")
	page.Text("`cd bench && go test -run TestMalformed ./proxy` generates this page: it sends the %d requests of "+
		"proxy/testdata/malformed.txt to both Wayleave and nginx %s, as a proxy with Debian's defaults. An answer "+
		"is its status; \"passed on\" means that the endpoint, a server of Go's net/http, read a complete request. "+
		"%d requests have the same answer. The others are below; section numbers refer to RFC 9112 unless another "+
		"RFC is named. Except where noted, Wayleave is stricter: it refuses what two servers could interpret "+
		"differently.",
		len(cases(t)), version("nginx -v"), same)
	page.Table(rows)
	if err := page.Write(); err != nil {
		t.Fatal(err)
	}
}

// silence is how long to wait for more answers.
const silence = 300 * time.Millisecond

// ask sends a request, reads all answers, and returns their statuses.
func ask(t *testing.T, ns *testnet.NS, port int, text string) string {
	t.Helper()
	c, err := ns.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	br := bufio.NewReader(c)
	var list []string
	for {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			break
		}
		list = append(list, strconv.Itoa(resp.StatusCode))
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			break
		}
		_ = c.SetDeadline(time.Now().Add(silence))
	}
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, " ")
}
