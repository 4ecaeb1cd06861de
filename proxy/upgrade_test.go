package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// upgrader is an endpoint as docker and kubelets are: it answers a request that asks for "tcp" with 101, sends a
// greeting, and echoes. Before the greeting it says what it read: the body as Go reads it.
type upgrader struct {
	// early answers 101 before the body is read; plain answers 200, and reads on.
	early, plain bool
	seen         chan string
}

func (u *upgrader) serve(c net.Conn, br *bufio.Reader) {
	for {
		q, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		say := func() {
			switch {
			case q.Header.Get("Upgrade") != "" && !u.plain:
				_, _ = io.WriteString(c, "HTTP/1.1 101 UPGRADED\r\nContent-Type: "+
					"application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhi ")
			default:
				_, _ = io.WriteString(c, okay)
			}
		}
		if u.early {
			say()
		}
		body, err := io.ReadAll(q.Body)
		u.seen <- fmt.Sprintf("%s %s upgrade=%q connection=%q length=%d chunked=%v body=%s error=%v",
			q.Method, q.RequestURI,
			q.Header.Get("Upgrade"), q.Header.Get("Connection"), q.ContentLength,
			len(q.TransferEncoding) > 0, body, err)
		if err != nil {
			return
		}
		if !u.early {
			say()
		}
		if q.Header.Get("Upgrade") != "" && !u.plain {
			_, _ = io.Copy(c, br)
			return
		}
	}
}

func newUpgrader(t testing.TB, early, plain bool) (*upgrader, *rig) {
	u := &upgrader{early: early, plain: plain, seen: make(chan string, 16)}
	return u, newRig(t, nil, raw(t, u.serve))
}

func (u *upgrader) saw(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-u.seen:
		if got != want {
			t.Errorf("the endpoint saw %s\nwant             %s", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Errorf("the endpoint saw nothing; want %s", want)
	}
}

// A request with a body may ask for another protocol, as docker exec does: the body is sent as a body, and what
// comes behind it is the other protocol's, once the endpoint has answered 101.
func TestUpgradesWithABody(t *testing.T) {
	for _, early := range []bool{false, true} {
		for _, x := range []struct {
			name, fields, body, saw string
		}{
			{"length", "Content-Length: 15\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n", `{"Detach":false`,
				"length=15 chunked=false body={\"Detach\":false"},
			{"chunks", "Transfer-Encoding: chunked\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n",
				"5\r\n{\"a\":\r\n2;x=y\r\n1}\r\n0\r\n\r\n", "length=-1 chunked=true body={\"a\":1}"},
			{"chunks and a trailer", "Transfer-Encoding: chunked\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n",
				"2\r\n{}\r\n0\r\nX: y\r\n\r\n", "length=-1 chunked=true body={}"},
			{"no body", "Content-Length: 0\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n", "",
				"length=0 chunked=false body="},
			{"options of Connection",
				"Content-Length: 2\r\nConnection: keep-alive, Upgrade, X-Hop\r\nX-Hop: 1\r\nUpgrade: tcp\r\n", "{}",
				"length=2 chunked=false body={}"},
			{"two fields Connection",
				"Content-Length: 2\r\nConnection: keep-alive\r\nConnection: upgrade\r\nUpgrade: tcp\r\n", "{}",
				"length=2 chunked=false body={}"},
			{"a request as body", "Content-Length: 33\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n",
				"GET /smuggled HTTP/1.1\r\nHost: a\r\n",
				"length=33 chunked=false body=GET /smuggled HTTP/1.1\r\nHost: a\r\n"},
		} {
			t.Run(fmt.Sprintf("%s, early %v", x.name, early), func(t *testing.T) {
				u, r := newUpgrader(t, early, false)
				c := r.dial()
				c.send("POST /exec HTTP/1.1\r\nHost: a\r\n%s\r\n%sahead ", x.fields, x.body)
				head, err := readHead(c.br)
				if err != nil || !strings.HasPrefix(head, "HTTP/1.1 101 UPGRADED\r\n") ||
					!strings.Contains(head, "Upgrade: tcp\r\n") ||
					!strings.Contains(head, "Connection: Upgrade\r\n") ||
					!strings.Contains(head, "vnd.docker.raw-stream\r\n") {
					t.Fatalf("%q, %v; %s", head, err, r.told())
				}
				u.saw(t, "POST /exec upgrade=\"tcp\" connection=\"Upgrade\" "+x.saw+" error=<nil>")
				c.send("and more")
				if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(c.br); string(got) != "hi ahead and more" {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
	}
}

// A client that waits for 100 before it sends the body gets that, then 101.
func TestUpgradesThatWaitForContinue(t *testing.T) {
	u, r := newUpgrader(t, false, false)
	c := r.dial()
	c.send("POST /exec HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\nUpgrade: " +
		"tcp\r\nConnection: Upgrade\r\n\r\n")
	if head, err := readHead(c.br); err != nil || head != "HTTP/1.1 100 Continue\r\n\r\n" {
		t.Fatalf("%q, %v", head, err)
	}
	c.send("{}")
	if head, err := readHead(c.br); err != nil || !strings.HasPrefix(head, "HTTP/1.1 101 ") {
		t.Fatalf("%q, %v", head, err)
	}
	u.saw(t, `POST /exec upgrade="tcp" connection="Upgrade" length=2 chunked=false body={} error=<nil>`)
}

// An endpoint that ignores the request for another protocol: the body was framed, and what comes behind
// it is the next request.
func TestUpgradesThatEndpointsIgnore(t *testing.T) {
	u, r := newUpgrader(t, false, true)
	c := r.dial()
	c.send("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\nhelloGET " +
		"/2 HTTP/1.1\r\nHost: a\r\n\r\n")
	for range 2 {
		if resp, body := c.response("POST"); resp.StatusCode != 200 || body != "ok" {
			t.Errorf("%s %q", resp.Status, body)
		}
	}
	u.saw(t, `POST /1 upgrade="tcp" connection="Upgrade" length=5 chunked=false body=hello error=<nil>`)
	u.saw(t, `GET /2 upgrade="" connection="" length=0 chunked=false body= error=<nil>`)
}

// A body that breaks off behind a 101 makes no tunnel: what the endpoint takes for the other protocol would be the
// rest of a body.
func TestUpgradesWhoseBodyBreaksOff(t *testing.T) {
	// Of the first, nothing is sent: it is wrong before the head has left.
	for i, body := range []string{"2\r\n{}\r\nzz\r\nGET /", "2\r\n{}\r\n3\r\nab"} {
		u, r := newUpgrader(t, true, false)
		c := r.dial()
		c.send("POST /exec HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nUpgrade: tcp\r\nConnection: "+
			"Upgrade\r\n\r\n%s", body)
		_ = c.Conn.(*net.TCPConn).CloseWrite()
		if head, err := readHead(c.br); strings.HasPrefix(head, "HTTP/1.1 101") {
			t.Errorf("%q: %q, %v", body, head, err)
		}
		select {
		case got := <-u.seen:
			if strings.Contains(got, "error=<nil>") {
				t.Errorf("%q: the endpoint took the body for whole: %s", body, got)
			}
		case <-time.After(time.Duration(100+9900*i) * time.Millisecond):
			if i > 0 {
				t.Errorf("%q: the endpoint waits on", body)
			}
		}
	}
}

// What protocols an endpoint is offered, and what it may change to.
func TestProtocolsOfUpgrades(t *testing.T) {
	for _, x := range []struct {
		fields, offered string // what the endpoint is offered
		answer          string // its field Upgrade; none for ""
		status          int
	}{
		{"Upgrade: websocket\r\n", "websocket", "WebSocket", 101},
		{"Upgrade: h2c, websocket\r\n", "websocket", "websocket", 101},
		{"Upgrade: h2c\r\nUpgrade: websocket\r\n", "websocket", "websocket", 101},
		{"Upgrade: tcp, websocket\r\n", "tcp, websocket", "websocket", 101},
		{"Upgrade: tcp\r\nUpgrade: x/2\r\n", "tcp, x/2", "x/2, tcp", 101},
		{"Upgrade: SPDY/3.1\r\n", "SPDY/3.1", "SPDY/3.1", 101},
		{"Upgrade: tcp\r\n", "tcp", "", 101},
		{"Upgrade: tcp, udp\r\n", "tcp, udp", "", 502},
		{"Upgrade: tcp\r\n", "tcp", "udp", 502},
		{"Upgrade: tcp\r\n", "tcp", "tcp, udp", 502},
		{"Upgrade: h2c\r\n", "", "h2c", 502},
		{"Upgrade: HTTP/2.0, h2, H2C, TLS/1.0\r\n", "", "h2c", 502},
		{"Upgrade:\r\n", "", "tcp", 502},
		{"Upgrade: , ,\r\n", "", "tcp", 502},
		{"Upgrade: " + strings.Repeat("a,", 200) + "\r\n", "", "a", 502},
	} {
		offered := make(chan string, 4)
		r := newRig(t, nil, raw(t, func(c net.Conn, br *bufio.Reader) {
			q, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			offered <- strings.Join(q.Header["Upgrade"], "|")
			field := ""
			if x.answer != "" {
				field = "Upgrade: " + x.answer + "\r\n"
			}
			fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n%s\r\n", field)
		}))
		c := r.dial()
		c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n%s\r\n", x.fields)
		resp, err := http.ReadResponse(c.br, nil)
		if err != nil {
			t.Fatalf("%q: %v", x.fields, err)
		}
		if got := <-offered; got != x.offered || resp.StatusCode != x.status {
			t.Errorf("%.60q answered with %q: %s, offered %q; want %d, %q", x.fields, x.answer, resp.Status, got,
				x.status, x.offered)
		}
	}
}

// However a client's bytes come, and whenever the endpoint answers, the endpoint reads the body that was sent, and
// each side gets the bytes of the other protocol, and none of HTTP's.
func TestUpgradesOfAnyBody(t *testing.T) {
	rounds := 120
	if testing.Short() {
		rounds = 20
	}
	rnd := rand.New(rand.NewPCG(15, 4))
	for i := range rounds {
		early, chunked := rnd.IntN(2) == 0, rnd.IntN(2) == 0
		body := make([]byte, rnd.IntN(1<<rnd.IntN(18)))
		for j := range body {
			body[j] = "GET / HTTP/1.1\r\n0"[rnd.IntN(17)]
		}
		var text bytes.Buffer
		text.WriteString("POST / HTTP/1.1\r\nHost: a\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n")
		if chunked {
			text.WriteString("Transfer-Encoding: chunked\r\n\r\n")
			for rest := body; len(rest) > 0; {
				n := 1 + rnd.IntN(len(rest))
				fmt.Fprintf(&text, "%x\r\n%s\r\n", n, rest[:n])
				rest = rest[n:]
			}
			text.WriteString("0\r\n\r\n")
		} else {
			fmt.Fprintf(&text, "Content-Length: %d\r\n\r\n%s", len(body), body)
		}
		tail := strings.Repeat("0\r\n\r\nGET /t HTTP/1.1\r\n", rnd.IntN(200))
		text.WriteString(tail)
		u, r := newUpgrader(t, early, false)
		c := r.dial()
		most := 1 + rnd.IntN(1+text.Len()/3)
		go func() {
			for rest := text.Bytes(); len(rest) > 0; {
				n := min(len(rest), most)
				if _, err := c.Write(rest[:n]); err != nil {
					return
				}
				rest = rest[n:]
			}
			_ = c.Conn.(*net.TCPConn).CloseWrite()
		}()
		head, err := readHead(c.br)
		if err != nil || !strings.HasPrefix(head, "HTTP/1.1 101 ") {
			t.Fatalf("round %d, early %v, chunked %v, %d bytes: %q %v; %s", i, early, chunked, len(body), head,
				err, r.told())
		}
		got, err := io.ReadAll(c.br)
		if string(got) != "hi "+tail {
			t.Fatalf("round %d, early %v, chunked %v, %d bytes: the client got %d bytes, want %d: %v", i, early,
				chunked, len(body), len(got), len(tail)+3, err)
		}
		length := len(body)
		if chunked {
			length = -1
		}
		u.saw(t, fmt.Sprintf("POST / upgrade=\"tcp\" connection=\"Upgrade\" length=%d chunked=%v body=%s error=<nil>",
			length, chunked, body))
	}
}
