package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// Bounds of copies: their number, the body of one, and its time.
const (
	maxMirrors    = 64
	maxMirrorBody = 64 << 10
	mirrorTime    = 30 * time.Second
)

// mirrors counts the copies in flight. The zero value is ready.
type mirrors struct{ open atomic.Int64 }

// enter counts a copy; it reports whether there is room for one.
func (m *mirrors) enter() bool {
	if m.open.Add(1) > maxMirrors {
		m.leave()
		return false
	}
	return true
}

func (m *mirrors) leave() { m.open.Add(-1) }

// mirror sends a copy of the request elsewhere, and waits for nothing. If it has a body, that is read first. A copy
// that cannot be made is left out.
func (x *exchange) mirror(m *schema.Mirror, ready *table.Ready) (answered bool) {
	if string(x.r.Fields.Get(sentFrom)) == asking {
		return false // it is itself a copy or a subrequest
	}
	n := x.r.Length
	if !m.Body {
		n = 0
	}
	if o := x.match.Path.Options; n < 0 || n > maxMirrorBody || n > 0 && len(x.r.Upgrade) > 0 || o.MaxBody > 0 &&
		n > o.MaxBody {
		return false
	}
	if !x.p.mirrors.enter() { // before a body takes memory
		return false
	}
	var body []byte
	if n > 0 {
		body = make([]byte, n)
		if _, err := io.ReadFull(x.d, body); err != nil {
			x.p.mirrors.leave()
			x.broken(&clientError{err})
			return true
		}
		x.d = &replayed{Downstream: x.d, rest: body}
	}
	ctx, cancel := context.WithTimeout(context.Background(), mirrorTime)
	req, by, err := x.copied(ctx, m, ready, body)
	if err != nil {
		cancel()
		x.p.mirrors.leave()
		return false
	}
	go func() {
		defer x.p.mirrors.leave()
		defer cancel()
		if resp, err := by.RoundTrip(req); err == nil {
			_, _ = io.CopyN(io.Discard, resp.Body, maxMirrorBody)
			_ = resp.Body.Close()
		}
	}()
	return false
}

var errNoCopy = errors.New("no copy can be made")

// copied makes the copy of a request, and returns the transport for it.
func (x *exchange) copied(ctx context.Context, m *schema.Mirror, ready *table.Ready, body []byte) (*http.Request,
	*http.Transport, error) {
	u, err := url.Parse(string(x.expand(nil, ready.Extras.Mirror, forPath)))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, nil, errors.Join(errNoCopy, err)
	}
	req, err := http.NewRequestWithContext(ctx, string(x.r.Method), u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	x.describe(req.Header)
	unassertAll(req.Header, x.p.table.Load().AllAsserted())
	if host := x.expand(nil, ready.Extras.MirrorHost, forField); len(host) > 0 && isAuthority(host) {
		req.Host = string(host)
	}
	_, copies := x.p.askers()
	if m.Backend == "" {
		return req, copies.byName, nil
	}
	b := x.p.Upstreams.Lookup(m.Backend)
	if b == nil {
		return nil, nil, errNoCopy
	}
	req, err = toEndpoint(req, b)
	return req, copies.byEndpoint, err
}

// unassertAll removes fields that endpoints trust the proxy to set: the author of the copy's destination must not set
// them through the proxy.
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

// replayed is an exchange whose body has been read.
type replayed struct {
	message.Downstream
	rest []byte
}

// Read returns the body that was read.
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

// Trailers implements message.Downstream: a body of known length has none.
func (r *replayed) Trailers() message.Fields { return nil }

// Patient matches the method of HTTP/2 streams.
func (r *replayed) Patient() {
	if s, ok := r.Downstream.(interface{ Patient() }); ok {
		s.Patient()
	}
}
