package proxy

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/upstream"
)

// forward2 sends the request to an endpoint that speaks HTTP/2.
func (x *exchange) forward2(b *upstream.Backend, o *schema.Options) {
	x.forwarded()
	x.dress()
	if s, ok := x.d.(interface{ Patient() }); ok {
		s.Patient() // streams may be silent in one direction; try2 bounds both together
	}
	for {
		e := x.pick(b)
		if e == nil {
			x.fail(503, fmt.Errorf("backend %q has no endpoint", b.Key))
			return
		}
		x.rec.Tries++
		x.last, x.rec.Endpoint = e, e.Addr
		again, err := x.try2(e, o)
		if err == nil {
			x.rec.Err = nil // of an earlier try
			return
		}
		x.rec.Err = err
		x.tried = append(x.tried, e)
		if again == elsewhere && x.mayTry() {
			continue
		}
		x.broken(err)
		return
	}
}

// errIdle means that an endpoint was silent for too long.
type errIdle struct{}

func (errIdle) Error() string   { return "the endpoint sends nothing" }
func (errIdle) Timeout() bool   { return true }
func (errIdle) Temporary() bool { return false }

var _ net.Error = errIdle{}

// try2 sends the request to one endpoint, and its response to the client.
func (x *exchange) try2(e *upstream.Endpoint, o *schema.Options) (again, error) {
	encrypted := o.Protocol == schema.GRPCS
	ctx := context.WithValue(x.ctx, endpointKey{}, e)
	of := x.origin(o)
	if of != (upstream.Origin{}) {
		ctx = context.WithValue(ctx, originKey{}, of)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	wait := x.times().Read
	idle := time.AfterFunc(wait, func() { cancel(errIdle{}) })
	defer idle.Stop()
	touch := func() { idle.Reset(wait) }
	body := &body2{d: x.d, limit: o.MaxBody, touch: touch}
	defer body.stop()
	e.Begin()
	defer e.End()
	req := x.request2(ctx, e, body, encrypted)
	if of != (upstream.Origin{}) {
		// The transport indexes its connections by this name, which is never resolved.
		req.URL.Host = hex.EncodeToString([]byte(e.Addr.String()+" "+of.Key())) + ".endpoint:80"
	}
	stop := x.leaving(cancel)
	resp, err := x.p.roundTripper(encrypted).RoundTrip(req)
	stop()
	if err == nil {
		defer resp.Body.Close()
		touch()
		err = x.receive2(resp, touch)
	}
	if err == nil {
		e.Worked()
		return never, nil
	}
	return x.verdict2(e, ctx, body, err)
}

// leaving aborts a request whose client leaves while it waits. A stream's context ends by itself.
func (x *exchange) leaving(cancel context.CancelCauseFunc) (stop func()) {
	if x.r.Version == message.HTTP2 || x.r.Length != 0 {
		return func() {}
	}
	return x.d.Watch(func() { cancel(errClient) })
}

// verdict2 returns whether another try may follow, and whether the endpoint is to blame.
func (x *exchange) verdict2(e *upstream.Endpoint, ctx context.Context, body *body2, err error) (again, error) {
	if cause := context.Cause(ctx); cause != nil && x.ctx.Err() == nil {
		err = cause
	}
	begun, broken := body.state()
	var dial *dialError
	switch {
	case broken != nil:
		return never, &clientError{broken}
	case x.ctx.Err() != nil:
		return never, errors.Join(errClient, err)
	case errors.Is(err, errClient):
		return never, err
	case isHeaderListTooLarge(err), errors.Is(err, errOversized):
		x.p.oversized.Add(1)
		return never, fmt.Errorf("%w: %w", errOversized, err)
	}
	e.Failed()
	if !begun && !x.d.Responded() && (errors.As(err, &dial) || x.repeatable() &&
		(!isTimeout(err) || x.retriesTimeouts())) {
		return elsewhere, err
	}
	return never, err
}

// request2 returns the request for net/http. Its path is sent unchanged.
func (x *exchange) request2(ctx context.Context, e *upstream.Endpoint, body *body2, encrypted bool) *http.Request {
	scheme, addr, host := "http", e.Addr.String(), string(x.sentHost())
	if encrypted {
		scheme = "https"
	}
	if host == "" {
		host = addr
	}
	h := make(http.Header, len(x.r.Fields)+len(x.more)+2)
	h["User-Agent"] = nil // none is added
	req := &http.Request{Method: string(x.r.Method), URL: &url.URL{Scheme: scheme, Host: addr, Opaque: "//" + host +
		string(x.r.Target)},
		Host: host, Header: h, Proto: "HTTP/2.0", ProtoMajor: 2, ContentLength: x.r.Length}
	for _, list := range []message.Fields{x.r.Fields, x.more} {
		for i := range list {
			name := http.CanonicalHeaderKey(string(list[i].Name))
			if name == "Trailer" {
				x.announce(req, string(list[i].Value))
				continue
			}
			h[name] = append(h[name], string(list[i].Value))
		}
	}
	h["Te"] = []string{"trailers"}
	if x.r.Length != 0 {
		body.req = req
		req.Body = body
	}
	return req.WithContext(ctx)
}

// announce prepares trailers, which net/http must know in advance.
func (x *exchange) announce(req *http.Request, names string) {
	for name := range strings.SplitSeq(names, ",") {
		if name = http.CanonicalHeaderKey(strings.TrimSpace(name)); name != "" && x.mayTrail([]byte(name)) {
			if req.Trailer == nil {
				req.Trailer = http.Header{}
			}
			req.Trailer[name] = nil
		}
	}
}

// receive2 forwards the response, each part as it arrives.
func (x *exchange) receive2(from *http.Response, touch func()) error {
	resp := &message.Response{Status: from.StatusCode, Fields: message.FieldsOf(from.Header),
		Length: from.ContentLength}
	if resp.Length < 0 {
		resp.Length = message.Unknown
	}
	if len(resp.Fields) > x.p.responseHead().Fields {
		return errOversized
	}
	resp.Fields.Del("Trailer")
	x.rec.Status = resp.Status
	x.respond(resp)
	x.final(&resp.Fields)
	if err := x.d.Respond(resp); err != nil {
		return errors.Join(errClient, err)
	}
	buf := x.buffer()
	for unsent := !resp.Bodyless(x.r.Method) && resp.Length != 0; unsent; {
		if err := x.d.Flush(); err != nil {
			return errors.Join(errClient, err)
		}
		n, err := from.Body.Read(buf)
		touch()
		if n > 0 {
			if _, err := x.write(buf[:n]); err != nil {
				return errors.Join(errClient, err)
			}
		}
		if err != nil && err != io.EOF {
			return err
		}
		unsent = err == nil
	}
	if err := x.d.Finish(message.FieldsOf(from.Trailer)); err != nil {
		return errors.Join(errClient, err)
	}
	return nil
}

// body2 is the request's body for net/http, which reads it in another goroutine. After stop nobody reads the exchange
// any more, since it is reused.
type body2 struct {
	d     message.Downstream
	req   *http.Request // gets the trailers
	limit int64
	touch func()

	reading sync.Mutex // held by a Read
	mu      sync.Mutex
	total   int64
	begun   bool
	stopped bool
	err     error
}

var errStopped = errors.New("the exchange has ended")

// Read implements io.Reader.
func (b *body2) Read(p []byte) (int, error) {
	b.reading.Lock()
	defer b.reading.Unlock()
	b.mu.Lock()
	stopped := b.stopped
	b.begun = true
	b.mu.Unlock()
	if stopped {
		return 0, errStopped
	}
	n, err := b.d.Read(p)
	b.touch()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.total += int64(n); b.limit > 0 && b.total > b.limit {
		n, err = 0, errTooLarge
	}
	switch {
	case err == io.EOF:
		for _, t := range b.d.Trailers() {
			name := http.CanonicalHeaderKey(string(t.Name))
			if _, ok := b.req.Trailer[name]; ok {
				b.req.Trailer[name] = append(b.req.Trailer[name], string(t.Value))
			}
		}
	case err != nil && !b.stopped:
		b.err = err
	}
	return n, err
}

// Close implements io.Closer. It does not wait: the caller may hold what a Read waits for.
func (b *body2) Close() error { return nil }

// state returns whether bytes were read from the client, and the read error.
func (b *body2) state() (begun bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.begun, b.err
}

// stop ends reading, and waits for a running Read.
func (b *body2) stop() {
	b.mu.Lock()
	b.stopped = true
	begun := b.begun
	b.mu.Unlock()
	if !begun {
		return
	}
	if !b.reading.TryLock() {
		b.d.StopReading()
		b.reading.Lock()
	}
	b.reading.Unlock()
}
