package proxy

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/table"
)

// Bounds of copies: how many are on their way, the body of one, and the time for it.
const (
	maxMirrors    = 64
	maxMirrorBody = 64 << 10
	mirrorTime    = 30 * time.Second
)

// mirrors counts the copies that are on their way. The zero value is ready.
type mirrors struct{ open atomic.Int64 }

// mirror sends a copy of the request elsewhere, and waits for nothing. Its body, where it has one, is
// read before. A copy that cannot be made is left out.
func (x *exchange) mirror(m *table.Mirror, ready *table.Ready) (answered bool) {
	if string(x.r.Fields.Get(sentFrom)) == asking {
		return false // it is a copy, or a question, itself
	}
	var body []byte
	switch n := x.r.Length; {
	case n == 0 || !m.Body:
	case n < 0 || n > maxMirrorBody || n > 0 && len(x.r.Upgrade) > 0:
		return false
	default:
		if o := x.match.Path.Options; o.MaxBody > 0 && n > o.MaxBody {
			return false
		}
		body = make([]byte, n)
		if _, err := io.ReadFull(x.d, body); err != nil {
			x.broken(&clientError{err})
			return true
		}
		x.d = &replayed{Downstream: x.d, rest: body}
	}
	u, err := url.Parse(string(x.expand(nil, ready.Extras.Mirror, forPath)))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return false
	}
	if x.p.mirrors.open.Add(1) > maxMirrors {
		x.p.mirrors.open.Add(-1)
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), mirrorTime)
	by := x.p.public()
	if m.Backend != "" {
		b := x.p.Upstreams.Lookup(m.Backend)
		if b == nil || len(b.All()) == 0 {
			cancel()
			x.p.mirrors.open.Add(-1)
			return false
		}
		ctx, by = context.WithValue(ctx, askedBackend{}, b), x.p.cluster()
	}
	req, err := http.NewRequestWithContext(ctx, string(x.r.Method), u.String(), bytes.NewReader(body))
	if err == nil {
		x.describe(req.Header)
		unassertAll(req.Header, x.p.table.Load().AllAsserted())
		if host := x.expand(nil, ready.Extras.MirrorHost, forField); len(host) > 0 && isAuthority(host) {
			req.Host = string(host)
		}
	}
	go func() {
		defer x.p.mirrors.open.Add(-1)
		defer cancel()
		if err != nil {
			return
		}
		if resp, err := by.RoundTrip(req); err == nil {
			_, _ = io.CopyN(io.Discard, resp.Body, maxMirrorBody)
			_ = resp.Body.Close()
		}
	}()
	return false
}

// unassertAll takes out what endpoints trust the proxy to say: whoever chose where the copy goes must
// not have it say that.
func unassertAll(h http.Header, names []string) {
	for field := range h {
		for _, n := range names {
			if sameName([]byte(field), n) {
				delete(h, field)
				break
			}
		}
	}
}

// replayed is an exchange whose body was read.
type replayed struct {
	message.Downstream
	rest []byte
}

// Read gives what was read.
func (r *replayed) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Buffered implements message.Downstream.
func (r *replayed) Buffered() int { return len(r.rest) }

// Ready implements message.Downstream.
func (r *replayed) Ready() bool { return true }

// Trailers implements message.Downstream: a body whose length is known has none.
func (r *replayed) Trailers() message.Fields { return nil }

// Patient implements what streams of HTTP/2 have.
func (r *replayed) Patient() {
	if s, ok := r.Downstream.(interface{ Patient() }); ok {
		s.Patient()
	}
}
