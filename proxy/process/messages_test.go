package process

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"strconv"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/schema"
)

// Limits of heads and the field Server follow the agent's settings, plain and encrypted, in every version.
func TestSettingsOfMessages(t *testing.T) {
	r := newRig(t)
	end := r.backend("b", func(w http.ResponseWriter, q *http.Request) {
		n, _ := strconv.Atoi(q.URL.Query().Get("n"))
		for i := range n {
			w.Header().Set(fmt.Sprintf("X-%d", i), "y")
		}
		w.Header().Set("Server", "own")
	})
	r.up(map[string]schema.Host{"a.example.com": route("a.example.com", "b", "c")}, map[string]schema.Backend{"b": end},
		map[string]schema.Certificate{"c": r.ca.issue("c", "a.example.com")})
	for _, x := range []struct {
		settings schema.Settings
		// what responses with ten and 100 fields answer, and a request with 200 over HTTP/1.1.
		ten, hundred, request int
		server                string
	}{
		{schema.Settings{}, 200, 200, 431, "own"},
		{schema.Settings{Server: "wayleave", ResponseHead: schema.HeadLimits{Fields: 50},
			RequestHead: schema.HeadLimits{Bytes: 64 << 10, Fields: 300}}, 200, 502, 200, "wayleave"},
		{schema.Settings{HideServer: true}, 200, 200, 431, ""},
	} {
		r.feed.Configure(x.settings)
		testnet.Eventually(t, 10*time.Second, func() error {
			for _, http2 := range []bool{false, true} {
				for _, scheme := range []string{"http", "https"} {
					c := r.client(http2) // a new one: the limits of requests are those of new connections
					for n, want := range map[int]int{10: x.ten, 100: x.hundred} {
						resp, err := c.Get(fmt.Sprintf("%s://a.example.com/?n=%d", scheme, n))
						if err != nil {
							return err
						}
						resp.Body.Close()
						if got := strings.Join(resp.Header["Server"], ","); resp.StatusCode != want || want == 200 &&
							got != x.server {
							return fmt.Errorf("%s, HTTP/2 %v, %d fields: %s, Server %q; want %d, %q", scheme, http2, n,
								resp.Status, got, want, x.server)
						}
					}
					if http2 {
						continue
					}
					req, err := http.NewRequestWithContext(t.Context(), "GET", scheme+"://a.example.com/", nil)
					if err != nil {
						return err
					}
					for i := range 200 {
						req.Header.Set(fmt.Sprintf("X-%d", i), "y")
					}
					resp, err := c.Do(req)
					if err != nil {
						return err
					}
					resp.Body.Close()
					own := x.server
					if x.request == 431 && own == "own" {
						own = ""
					}
					if got := strings.Join(resp.Header["Server"], ","); resp.StatusCode != x.request || got != own {
						return fmt.Errorf("%s, 200 fields: %s, Server %q", scheme, resp.Status, got)
					}
				}
			}
			return nil
		})
	}
}

// What endpoints of HTTP/1.1 send comes whole to clients of both versions; what clients of HTTP/2 split comes whole to
// endpoints of HTTP/1.1.
func TestOddMessagesOverBothVersions(t *testing.T) {
	const early = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
	many := strings.Builder{}
	for i := range 500 {
		fmt.Fprintf(&many, "X-%d: %d\r\n", i, i)
	}
	answers := map[string]string{
		"/latin1": "HTTP/1.1 302 Found\r\nLocation: /caf\xe9\r\nContent-Length: 0\r\n\r\n",
		"/utf8": "HTTP/1.1 200 OK\r\nContent-Disposition: attachment; " +
			"filename=\"\xc3\xa4.txt\"\r\nContent-Length: 2\r\n\r\nok",
		"/control": "HTTP/1.1 200 OK\r\nX-Odd: a\x01b\r\nX-Empty:\r\nContent-Length: 2\r\n\r\nok",
		"/many":    "HTTP/1.1 200 OK\r\n" + many.String() + "Content-Length: 2\r\n\r\nok",
		"/early":   early + early + "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
		"/trailer": "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2 " +
			"\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",
		"/204":     "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
		"/end":     "HTTP/1.0 200 OK\r\n\r\nok",
		"/421":     "HTTP/1.1 421 Misdirected Request\r\nContent-Length: 2\r\n\r\nok",
		"/cookies": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
	}
	cookies := make(chan []string, 8)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				br := bufio.NewReaderSize(c, 64<<10)
				for {
					q, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					if q.URL.Path == "/cookies" {
						cookies <- q.Header["Cookie"]
					}
					if _, err := io.WriteString(c, answers[q.URL.Path]); err != nil || q.URL.Path == "/end" {
						return
					}
				}
			}()
		}
	}()
	r := newRig(t)
	r.up(map[string]schema.Host{"": route("", "b", "")},
		map[string]schema.Backend{"b": {Key: "b",
			Endpoints: []schema.Endpoint{{Addr: netip.MustParseAddrPort(l.Addr().String())}}}}, nil)
	var crumbs []string
	for i := range 200 {
		crumbs = append(crumbs, fmt.Sprintf("c%d=%s", i, strings.Repeat("v", 50)))
	}
	for _, http2 := range []bool{false, true} {
		c := r.client(http2)
		c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		ask := func(path string) (*http.Response, string, int) {
			t.Helper()
			hints := 0
			ctx := httptrace.WithClientTrace(t.Context(),
				&httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
					if code == 103 && h.Get("Link") == "</a.css>" {
						hints++
					}
					return nil
				}})
			req, err := http.NewRequestWithContext(ctx, "GET", "http://a"+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if path == "/cookies" {
				req.Header.Set("Cookie", strings.Join(crumbs, "; "))
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatalf("HTTP/2 %v, %s: %v", http2, path, err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatalf("HTTP/2 %v, %s: %v", http2, path, err)
			}
			return resp, string(body), hints
		}
		check := func(what string, ok bool, got ...any) {
			t.Helper()
			if !ok {
				t.Errorf("HTTP/2 %v, %s: %q", http2, what, got)
			}
		}
		resp, _, _ := ask("/latin1")
		check("Location in Latin-1", resp.Header.Get("Location") == "/caf\xe9", resp.Header)
		resp, body, _ := ask("/utf8")
		check("a file name in UTF-8", bytes.Contains([]byte(resp.Header.Get("Content-Disposition")),
			[]byte("\xc3\xa4.txt")) && body == "ok", resp.Header)
		resp, body, _ = ask("/control")
		_, empty := resp.Header["X-Empty"]
		check("a control character, and an empty value", resp.Header.Get("X-Odd") == "a b" && empty &&
			body == "ok", resp.Header)
		resp, body, _ = ask("/many")
		check("500 fields", len(resp.Header) > 500 && body == "ok", len(resp.Header))
		resp, body, hints := ask("/early")
		check("early hints", hints == 2 && resp.StatusCode == 200 && body == "ok", hints, resp.Status)
		resp, body, _ = ask("/trailer")
		check("trailers", resp.Trailer.Get("X-Sum") == "7" && body == "ok", resp.Trailer, body)
		resp, _, _ = ask("/204")
		check("204", resp.StatusCode == 204, resp.Status)
		resp, body, _ = ask("/end")
		check("the end of the connection", resp.StatusCode == 200 && body == "ok", body)
		resp, body, _ = ask("/421")
		check("421", resp.StatusCode == 421 && body == "ok", resp.Status, body)
		ask("/cookies")
		got := <-cookies
		check("cookies", len(got) == 1 && got[0] == strings.Join(crumbs, "; "), len(got))
	}
}
