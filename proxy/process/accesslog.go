package process

import (
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"wayleave.dev/proxy"
	"wayleave.dev/proxy/message"
)

// Bounds of the access log: lines wait for a common write. Lines that do not fit are dropped and counted, so that no
// request waits for the reader of the log.
const (
	logTogether = 32 << 10
	logMost     = 1 << 20
	logEvery    = 200 * time.Millisecond
)

// accessLog writes a line of JSON for each request.
type accessLog struct {
	on   atomic.Bool
	to   io.Writer
	wake chan struct{}
	// lost counts lines that did not fit, or could not be written.
	lost atomic.Uint64

	mu    sync.Mutex
	buf   []byte
	lines uint64
}

func newAccessLog(to io.Writer) *accessLog {
	return &accessLog{to: to, wake: make(chan struct{}, 1)}
}

// add appends the line of a request.
func (l *accessLog) add(r *proxy.Record, now time.Time) {
	if !l.on.Load() || r.Path != nil && r.Path.Options != nil && r.Path.Options.Unlogged {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.buf) > logMost {
		l.lost.Add(1)
		return
	}
	l.buf = appendRecord(l.buf, r, now)
	l.lines++
	if len(l.buf) > logTogether {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// run writes the lines until done is closed, and once more then.
func (l *accessLog) run(done <-chan struct{}) {
	tick := time.NewTicker(logEvery)
	defer tick.Stop()
	var spare []byte
	for last := false; !last; {
		select {
		case <-tick.C:
		case <-l.wake:
		case <-done:
			last = true
		}
		l.mu.Lock()
		out, lines := l.buf, l.lines
		l.buf, l.lines = spare[:0], 0
		l.mu.Unlock()
		if len(out) > 0 {
			if _, err := l.to.Write(out); err != nil {
				l.lost.Add(lines)
			}
		}
		spare = out
	}
}

// appendRecord appends a request's line. The names of fields are a stable interface (docs/ingress.md).
func appendRecord(b []byte, r *proxy.Record, now time.Time) []byte {
	q := r.Request
	b = append(b, `{"time":"`...)
	b = now.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(b, `","client":"`...)
	b = q.Client.Addr().AppendTo(b)
	b = append(b, `","method":`...)
	b = appendJSON(b, q.Method)
	b = append(b, `,"host":`...)
	b = appendJSON(b, q.Host)
	b = append(b, `,"target":`...)
	b = appendJSON(b, q.Target)
	b = append(b, `,"protocol":"`...)
	b = append(b, q.Version.String()...)
	b = append(b, `","tls":`...)
	b = strconv.AppendBool(b, q.TLS)
	b = append(b, `,"status":`...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	b = append(b, `,"sent":`...)
	b = strconv.AppendInt(b, r.Sent, 10)
	b = append(b, `,"seconds":`...)
	b = strconv.AppendFloat(b, r.Took.Seconds(), 'f', 6, 64)
	if r.Endpoint.IsValid() {
		b = append(b, `,"endpoint":"`...)
		b = r.Endpoint.AppendTo(b)
		b = append(b, `","tries":`...)
		b = strconv.AppendInt(b, int64(r.Tries), 10)
	}
	if r.Path != nil {
		if r.Path.Backend != "" {
			b = append(b, `,"backend":`...)
			b = appendJSON(b, []byte(r.Path.Backend))
		}
		if r.Path.Source != "" {
			b = append(b, `,"route":`...)
			b = appendJSON(b, []byte(r.Path.Source))
		}
	}
	b = appendField(b, `,"userAgent":`, q.Fields, "User-Agent")
	b = appendField(b, `,"referer":`, q.Fields, "Referer")
	b = appendField(b, `,"requestID":`, q.Fields, "X-Request-Id")
	if r.Err != nil {
		b = append(b, `,"error":`...)
		b = appendJSON(b, []byte(r.Err.Error()))
	}
	return append(b, "}\n"...)
}

func appendField(b []byte, key string, f message.Fields, name string) []byte {
	if v := f.Get(name); v != nil {
		b = append(b, key...)
		b = appendJSON(b, v)
	}
	return b
}

// appendJSON appends a string in JSON; bytes that are not UTF-8 become U+FFFD.
func appendJSON(b, s []byte) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for len(s) > 0 {
		c := s[0]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20 || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			r, n := utf8.DecodeRune(s)
			b = utf8.AppendRune(b, r)
			s = s[n:]
			continue
		}
		s = s[1:]
	}
	return append(b, '"')
}
