package h1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"wayleave.dev/proxy/message"
)

// parts is a connection that gives a text in parts of sizes that a seed draws, and takes what is written.
type parts struct {
	net.Conn
	text []byte
	size func() int
}

// partsOf draws: seed 0 gives all at once, 1 a byte at a time.
func partsOf(text []byte, seed uint64) *parts {
	p := &parts{text: bytes.Clone(text)}
	rnd := rand.New(rand.NewPCG(seed, 1))
	switch seed {
	case 0:
		p.size = func() int { return len(text) + 1 }
	case 1:
		p.size = func() int { return 1 }
	default:
		p.size = func() int { return 1 + rnd.IntN(1<<rnd.IntN(12)) }
	}
	return p
}

func (p *parts) Read(b []byte) (int, error) {
	if len(p.text) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.size())], p.text)
	p.text = p.text[n:]
	return n, nil
}

func (p *parts) Write(b []byte) (int, error)      { return len(b), nil }
func (p *parts) Close() error                     { return nil }
func (p *parts) SetDeadline(time.Time) error      { return nil }
func (p *parts) SetReadDeadline(time.Time) error  { return nil }
func (p *parts) SetWriteDeadline(time.Time) error { return nil }

// readMessage is a message as a reader saw it; end is how far it goes in the text.
type readMessage struct {
	start, content, trailers string
	end                      int
}

// mostMessages of a text are read.
const mostMessages = 6

// readRequests reads a connection's requests as Server does, up to the first that is refused.
func readRequests(text []byte, seed uint64) (list []readMessage, fields [][]string, work int64, err error) {
	return readParts(partsOf(text, seed))
}

func readParts(c *parts) (list []readMessage, fields [][]string, work int64, err error) {
	total := len(c.text)
	rd := reader{c: c, from: newBlocks(), limit: 16 << 10}
	var r message.Request
	var fr framing
	var b body
	for range mostMessages {
		rd.begin()
		if err = rd.head(func(p []byte) (int, error) { return parseRequest(p, &r, &fr) }); err != nil {
			break
		}
		b.reset(&rd, r.Length, &fr)
		var content []byte
		if content, err = io.ReadAll(&b); err != nil {
			break
		}
		m := readMessage{start: fmt.Sprintf("%s %s %s", r.Method, r.Target, r.Version), content: string(content),
			end: total - len(rd.buffered()) - len(c.text)}
		var f []string
		for _, x := range b.trailers {
			f = append(f, string(x.Name)+"="+string(x.Value))
		}
		m.trailers = strings.Join(f, "\n")
		f = f[:0:0]
		for _, x := range r.Fields {
			f = append(f, string(x.Name))
		}
		list, fields = append(list, m), append(fields, f)
		if fr.close || r.Version == message.HTTP10 && !fr.keepAlive || r.Upgrade != nil {
			break
		}
	}
	return list, fields, rd.examined, err
}

// stricterThanUs are errors of Go's reader for what we pass on, with the sentence that decides it. Framing is not
// among them: what Go cannot find the end of, we must not.
var stricterThanUs = []string{
	"parse \"",                  // Go reads URLs; a target is passed on as it came, in the characters of RFC 9112, 3.2
	"invalid URI for request",   // the same
	"malformed Host header",     // RFC 3986's characters: Go's list is shorter
	"too much non-data",         // chunks with long extensions; we bound each line, and the rate of a body
	"unsupported transfer",      // of HTTP/1.0, where Go ignores it
	"suspiciously long trailer", // Go looks within its buffer only
}

func isStricter(err error) bool {
	for _, s := range stricterThanUs {
		if strings.Contains(err.Error(), s) {
			return true
		}
	}
	return false
}

// requestSeeds are connections that were found to go wrong, and forms that readers disagree about.
var requestSeeds = []string{
	"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: b\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nConnection: x, y\r\nX: " +
		"y\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nConnection: " + strings.Repeat("a,", 30) +
		"\r\nX: y\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: " +
		"chunked\r\nContent-Length: 5\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: " +
		"chunked\r\n\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a\r\nConnection: x-y\r\nX-Y: 1\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nX-Y: 1\r\n\r\n",
	"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n5\r\nworld\r\n0\r\n\r\n",
	"GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a\r\n X: y\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n{}raw",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: Upgrade\r\nUpgrade: tcp, " +
		"h2c\r\n\r\n2\r\n{}\r\n0\r\n\r\nraw",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n{}GET /2 " +
		"HTTP/1.1\r\nHost: a\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nExpect:\r\nContent-Length: 2\r\n\r\n{}GET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
}

// FuzzConnectionRequests reads whole connections of clients. However the bytes are split, the messages are the
// same, and Go's reader, which may refuse fewer, sees the same messages with the same ends.
func FuzzConnectionRequests(f *testing.F) {
	for _, s := range requestSeeds {
		f.Add([]byte(s), uint64(7))
	}
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		list, fields, work, err := readRequests(text, 0)
		for _, s := range []uint64{1, seed | 2} {
			list2, fields2, work2, err2 := readRequests(text, s)
			if !reflect.DeepEqual(list, list2) || !reflect.DeepEqual(fields, fields2) || (err == nil) != (err2 == nil) {
				t.Fatalf("%q\nat once  %+v %q: %v\nsplit %d %+v %q: %v", text, list, fields, err, s, list2,
					fields2, err2)
			}
			work = max(work, work2)
		}
		if most := int64(8*len(text) + 4*(mostMessages+1)*earlyWork); work > most {
			t.Fatalf("%d bytes were looked at for %d", work, len(text))
		}
		src := bytes.NewReader(text)
		br := bufio.NewReaderSize(src, 64<<10)
		for i, m := range list {
			if b, _ := br.Peek(2); string(b) == "\r\n" {
				_, _ = br.Discard(2)
			}
			g, err := http.ReadRequest(br)
			var content []byte
			if err == nil {
				content, err = io.ReadAll(g.Body)
			}
			if err != nil {
				if !isStricter(err) {
					t.Fatalf("%q: message %d: we take %+v, Go says %v", text, i, m, err)
				}
				return
			}
			if end := len(text) - br.Buffered() - src.Len(); string(content) != m.content || end != m.end ||
				g.Method != m.start[:len(g.Method)] {
				t.Fatalf("%q: message %d: we take %+v, Go %s %q up to %d", text, i, m, g.Method, content, end)
			}
		}
	})
}

// readResponses reads an endpoint's answers as the proxy does, by one connection, until that is not to be used
// any more.
func readResponses(text []byte, methods string, seed uint64) (list []readMessage, kept bool, err error) {
	c := partsOf(text, seed)
	u := Dialed(c, NewShared())
	u.Timeouts(time.Hour, time.Hour)
	for i := range mostMessages {
		method := methodOf(methods, i)
		u.Begin(&message.Request{Method: []byte(method), Target: []byte("/"), Host: []byte("a")}, nil)
		if err = u.Last(); err != nil {
			return list, false, err
		}
		resp, err := u.Response([]byte(method), func(*message.Response) error { return nil })
		if err != nil {
			return list, false, err
		}
		m := readMessage{start: fmt.Sprint(resp.Status)}
		if resp.Status == 101 {
			return append(list, m), false, nil
		}
		content, err := io.ReadAll(u)
		if err != nil {
			return list, false, err
		}
		m.content, m.end = string(content), len(text)-len(c.text)-len(u.rd.buffered())
		var f []string
		for _, x := range u.Trailers() {
			f = append(f, string(x.Name)+"="+string(x.Value))
		}
		m.trailers = strings.Join(f, "\n")
		list = append(list, m)
		ahead := len(u.rd.buffered())
		if kept = u.Done(); kept && ahead > 0 {
			return list, true, fmt.Errorf("%d bytes behind a message, and the connection is kept", ahead)
		}
		if !kept {
			break
		}
	}
	return list, kept, nil
}

func methodOf(methods string, i int) string {
	if i < len(methods) && methods[i] == 'H' {
		return "HEAD"
	}
	return "GET"
}

// FuzzConnectionResponses reads whole connections of endpoints: what a message is does not depend on how its
// bytes are split, Go's reader sees the same, and what has been read beyond a message ends the connection.
func FuzzConnectionResponses(f *testing.F) {
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" + evil,
		"HTTP/1.1 200 OK\r\nContent-Length: 44\r\n\r\n" + evil,
		"HTTP/1.1 204 No Content\r\n\r\n" + evil,
		"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 " +
			"OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n" + evil,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n" + evil,
		"HTTP/1.0 200 OK\r\n\r\nto the end", "HTTP/1.1 200 OK\n\nto the end",
		"HTTP/1.1 200 OK\r\nConnection: x\r\nX: y\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello" + evil,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello" + evil,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5  \r\nhello\r\n0\t\r\n\r\n" + evil,
		"HTTP/1.1 200 OK\r\nX: \x01a\x7f\r\nContent-Length: 5\r\n\r\nhello" + evil,
		"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 200) + "Content-Length: 5\r\n\r\nhello" + evil,
	} {
		for _, methods := range []string{"GG", "HG"} {
			f.Add([]byte(s), methods, uint64(7))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte, methods string, seed uint64) {
		first := func(list []readMessage) readMessage {
			if len(list) == 0 {
				return readMessage{}
			}
			return list[0]
		}
		list, _, err := readResponses(text, methods, 0)
		var byByte []readMessage
		for _, s := range []uint64{1, seed | 2} {
			list2, kept, err2 := readResponses(text, methods, s)
			if first(list) != first(list2) || (len(list) == 0) != (len(list2) == 0) {
				t.Fatalf("%q %q\nat once  %+v: %v\nsplit %d %+v: %v", text, methods, list, err, s, list2, err2)
			}
			if kept && err2 != nil {
				t.Fatalf("%q %q: %v", text, methods, err2)
			}
			if s == 1 {
				byByte = list2 // whose every message has been sent behind the one before
			}
		}
		judgeResponses(t, text, methods, byByte)
	})
}

// withoutControls has spaces in place of control characters, but for those that end lines, and NUL.
func withoutControls(text []byte) []byte {
	out := bytes.Clone(text)
	for i, c := range out {
		if c > 0 && c < ' ' && c != '\t' && c != '\r' && c != '\n' || c == 0x7f {
			out[i] = ' '
		}
	}
	return out
}

// judgeResponses has Go read the same messages.
func judgeResponses(t *testing.T, text []byte, methods string, list []readMessage) {
	text = withoutControls(text) // which Go refuses in values of fields, where we put spaces
	src := bytes.NewReader(text)
	br := bufio.NewReaderSize(src, 64<<10)
	for i, m := range list {
		var g *http.Response
		var err error
		for {
			g, err = http.ReadResponse(br, &http.Request{Method: methodOf(methods, i)})
			if err != nil || g.StatusCode >= 200 || g.StatusCode == 101 {
				break
			}
		}
		if err != nil {
			if !isStricter(err) {
				t.Fatalf("%q %q: message %d: we take %+v, Go says %v", text, methods, i, m, err)
			}
			return
		}
		if fmt.Sprint(g.StatusCode) != m.start {
			t.Fatalf("%q %q: message %d: we take %+v, Go status %d", text, methods, i, m, g.StatusCode)
		}
		if g.StatusCode == 101 {
			return
		}
		if g.ProtoMinor == 0 && bytes.Contains(bytes.ToLower(text), []byte("transfer-encoding")) {
			// Go takes chunks of HTTP/1.0 for the body itself; we read them, and end the connection (RFC 9112, 6.1).
			if i+1 < len(list) {
				t.Fatalf("%q %q: message %d is behind chunks of HTTP/1.0: %+v", text, methods, i+1, list)
			}
			return
		}
		content, err := io.ReadAll(g.Body)
		if err != nil {
			if !isStricter(err) {
				t.Fatalf("%q %q: message %d: we take %+v, Go says %v", text, methods, i, m, err)
			}
			return
		}
		if end := len(text) - br.Buffered() - src.Len(); string(content) != string(
			withoutControls([]byte(m.content))) || end != m.end {
			t.Fatalf("%q %q: message %d: we take %+v, Go %q up to %d", text, methods, i, m, content, end)
		}
	}
}

// Every message of the seeds is read the same whatever one byte its connection is split at.
func TestConnectionsSplitAtEveryByte(t *testing.T) {
	for _, s := range requestSeeds {
		list, fields, _, err := readRequests([]byte(s), 0)
		for at := 1; at < len(s); at++ {
			c := partsOf([]byte(s), 0)
			cut := at
			c.size = func() int {
				n := cut
				cut = len(s)
				return n
			}
			list2, fields2, _, err2 := readParts(c)
			if !reflect.DeepEqual(list, list2) || !reflect.DeepEqual(fields, fields2) || (err == nil) != (err2 == nil) {
				t.Fatalf("%q split at %d: %+v %v, want %+v %v", s, at, list2, err2, list, err)
			}
		}
	}
}
