package h1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"wayleave.dev/proxy/message"
)

// hostileMessages are messages, or beginnings of one, whose every byte may come by itself.
func hostileMessages() map[string]string {
	chunked := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	return map[string]string{
		"options of Connection in trailers": chunked + "0\r\nConnection: " + strings.Repeat("a,", 3900),
		"options, then a slow trailer": chunked + "0\r\nConnection: " + strings.Repeat("a,", 3000) + "b\r\nX: " +
			strings.Repeat("y", 1900),
		"few options, then a slow trailer": chunked + "0\r\nConnection: " + strings.Repeat("a,", 25) + "b\r\nX: " +
			strings.Repeat("y", 7900),
		"lines of Connection in trailers": chunked + "0\r\n" + strings.Repeat("Connection: a\r\n", 120),
		"many trailers": chunked + "0\r\n" + strings.Repeat("X: "+strings.Repeat("y", 50)+"\r\n",
			120) + "\r\n",
		"one long trailer": chunked + "0\r\nX: " + strings.Repeat("y", 8000) + "\r\n\r\n",
		"extensions of chunks": chunked + strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\na\r\n",
			40) + "0\r\n\r\n",
		"chunks of one byte": chunked + strings.Repeat("1\r\na\r\n", 4000) + "0\r\n\r\n",
		"many fields": "GET / HTTP/1.1\r\nHost: a\r\n" +
			strings.Repeat("X: "+strings.Repeat("y", 100)+"\r\n", 120) + "\r\n",
		"one long field": "GET / HTTP/1.1\r\nHost: a\r\nX: " +
			strings.Repeat("y", 15<<10) + "\r\n\r\n",
		"a long target": "GET /" + strings.Repeat("y", 15<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n",
		"options of Connection": "GET / HTTP/1.1\r\nHost: a\r\nConnection: " + strings.Repeat("a,",
			7000) + "\r\n\r\n",
	}
}

// However many reads a message comes by, the work for it is linear in its bytes: each is searched and
// parsed a few times, not once for each read behind it.
func TestWorkIsLinear(t *testing.T) {
	for name, text := range hostileMessages() {
		for _, piece := range []int{1, 2, 7, 1000} {
			c := &pipe{text: []byte(text), piece: piece}
			rd := reader{c: c, from: newBlocks(), limit: 16 << 10}
			var r message.Request
			var fr framing
			err := rd.head(func(b []byte) (int, error) { return parseRequest(b, &r, &fr) })
			if err == nil {
				var b body
				b.reset(&rd, r.Length, &fr)
				_, err = io.Copy(io.Discard, &b)
			}
			if most := int64(6*len(text) + 4*earlyWork); rd.examined > most {
				t.Errorf("%s by %d: %d bytes were looked at for %d (%v); %d are enough", name, piece, rd.examined,
					len(text), err, most)
			}
		}
	}
}

// What a connection holds does not grow with the number of reads: 8 KB, a byte at a time, are 8 KB.
func TestMemoryDoesNotGrowWithReads(t *testing.T) {
	for name, text := range hostileMessages() {
		t.Run(name, func(t *testing.T) {
			const conns = 4
			got := make(chan error, conns)
			s := &Server{Limits: DefaultLimits(), Handle: func(_ context.Context, d message.Downstream) {
				_, err := io.Copy(io.Discard, d)
				got <- err
			}}
			before := held()
			for range conns {
				ours, theirs := socketPair(t)
				go s.Serve(t.Context(), ours, nil, false)
				for i := range min(len(text), 9000) {
					if _, err := io.WriteString(theirs, text[i:i+1]); err != nil {
						break // refused, and closed
					}
				}
			}
			time.Sleep(50 * time.Millisecond)
			if each := (held() - before) / conns; each > 96<<10 {
				t.Errorf("%d bytes for each connection that sent %d", each, len(text))
			}
		})
	}
}

// held is the memory in use.
func held() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

func socketPair(t testing.TB) (ours, theirs net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if theirs, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if ours, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close(); ours.Close() })
	return ours, theirs
}

// An idle connection keeps nothing of the messages before: no memory of a large head, and no slice of a
// buffer that another connection has by now.
func TestIdleConnectionsKeepNothing(t *testing.T) {
	answered := make(chan struct{}, 1)
	s := &Server{Limits: DefaultLimits(), Handle: func(_ context.Context, d message.Downstream) {
		_, _ = io.Copy(io.Discard, d)
		_ = d.Respond(&message.Response{Status: 204})
		answered <- struct{}{}
	}}
	long := "POST /" + strings.Repeat("p", 2000) + " HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" +
		strings.Repeat("X: "+strings.Repeat("y", 230)+"\r\n", 120)
	named := "Connection: " + strings.TrimSuffix(strings.Repeat("x-y,", 30), ",") + "\r\n"
	trailers := "0\r\n" + strings.Repeat("T: "+strings.Repeat("z", 50)+"\r\n", 120) + "\r\n"
	const conns = 50
	before := held()
	for range conns {
		ours, theirs := socketPair(t)
		go s.Serve(t.Context(), ours, nil, false)
		if _, err := fmt.Fprintf(theirs, "%s%s\r\n%s", long, named, trailers); err != nil {
			t.Fatal(err)
		}
		<-answered
	}
	time.Sleep(50 * time.Millisecond)
	if each := (held() - before) / conns; each > 20<<10 {
		t.Errorf("%d bytes for each idle connection that had a large request", each)
	}
}

// A pause, however long, at any byte of a chunked body changes nothing of how it is read.
func TestPausesBetweenBytes(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, x := range []struct{ text, content, trailers, err string }{
		{"5\r\nhello\r\n0\r\nX: y\r\n\r\n", "hello", "[X=y]", ""},
		{"5\r\nhello\r\n0\r\n\r\n", "hello", "[]", ""},
		{"5\r\nhello\r\n0\r\n5\r\nworld\r\n0\r\n\r\n", "hello", "", "a field line"}, // a chunk where trailers are
	} {
		for at := 1; at < len(x.text); at++ {
			c := &pausing{pipe: pipe{text: []byte(head + x.text), piece: 1}, at: len(x.text) - at}
			rd := reader{c: c, from: newBlocks(), limit: 16 << 10}
			var r message.Request
			var fr framing
			if err := rd.head(func(b []byte) (int, error) { return parseRequest(b, &r, &fr) }); err != nil {
				t.Fatal(err)
			}
			var b body
			b.reset(&rd, r.Length, &fr)
			content, err := "", error(nil)
			for buf := make([]byte, 3); err == nil; {
				var n int
				n, err = b.Read(buf)
				content += string(buf[:n])
				if isPause(err) {
					err = nil
				}
			}
			if err == io.EOF {
				err = nil
			}
			var trailers []string
			for _, f := range b.trailers {
				trailers = append(trailers, fmt.Sprintf("%s=%s", f.Name, f.Value))
			}
			if (err == nil) != (x.err == "") || content != x.content || err == nil &&
				fmt.Sprint(trailers) != x.trailers {
				t.Fatalf("%q, a pause behind %q: %q %q %v", x.text, x.text[:at], content, trailers, err)
			}
		}
	}
}

// pausing is a pipe whose deadline passes once, when at bytes are left.
type pausing struct {
	pipe
	at     int
	paused bool
}

func (p *pausing) Read(b []byte) (int, error) {
	if len(p.text) == p.at && !p.paused {
		p.paused = true
		return 0, os.ErrDeadlineExceeded
	}
	return p.pipe.Read(b)
}

// isPause says whether an error is that of a deadline.
func isPause(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
