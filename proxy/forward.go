package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/upstream"
)

// pages are the texts of the proxy's own responses.
var pages = func() map[int][]byte {
	m := map[int][]byte{}
	for i := 300; i < 600; i++ {
		if s := http.StatusText(i); s != "" {
			m[i] = []byte(strconv.Itoa(i) + " " + s + "\n")
		}
	}
	return m
}()

// forward sends the request to an endpoint of a backend, and to another one if that is safe.
func (x *exchange) forward(backend string) {
	b, isStandIn := x.p.Upstreams.Lookup(backend), false
	if b == nil || len(b.All()) == 0 {
		isStandIn = true
		if b = x.standIn(); b == nil {
			x.fail(503, fmt.Errorf("backend %q has no endpoint", backend))
			return
		}
	}
	if o := x.match.Path.Options; o != nil && (o.Protocol == schema.GRPC || o.Protocol == schema.GRPCS) {
		x.forward2(b, o)
		return
	}
	x.forwarded()
	x.dress()
	if isStandIn { // the request stays as it is; its fields say why it comes
		x.describeError(x.match.Path.Options.Errors, 503)
	}
	x.exchangeWith(b)
}

// exchangeWith sends the request, as it is now, to endpoints of the backend until one answers.
func (x *exchange) exchangeWith(b *upstream.Backend) {
	x.opt.among = len(b.All())
	sure := false
	for {
		e := x.pick(b)
		if e == nil {
			x.fail(503, fmt.Errorf("backend %q has no endpoint", b.Key))
			return
		}
		x.rec.Tries++
		x.last, x.rec.Endpoint = e, e.Addr
		again, err := x.try(e, sure)
		if err == nil {
			x.rec.Err = nil // of an earlier try
			return
		}
		var page *otherAnswers
		if errors.As(err, &page) {
			x.reply(page.status, nil)
			return
		}
		x.rec.Err = err
		switch again {
		case stale: // the endpoint is not to blame
			sure = true
			x.rec.Tries--
			continue
		case elsewhere:
			x.tried = append(x.tried, e)
			if x.mayTry() {
				continue
			}
		}
		x.broken(err)
		return
	}
}

// broken answers instead of an endpoint that did not.
func (x *exchange) broken(err error) {
	if x.d.Responded() {
		x.d.Abort()
		return
	}
	status := 502
	var timeout net.Error
	var client *clientError
	var bad *h1.Error
	switch {
	case errors.As(err, &client):
		status = 400
		if errors.As(client.error, &timeout) && timeout.Timeout() {
			status = 408
		}
		if errors.As(client.error, &bad) {
			status = bad.Status
		}
		if errors.Is(client.error, errTooLarge) {
			status = 413
		}
	case errors.As(err, &timeout) && timeout.Timeout():
		status = 504
	}
	x.fail(status, err)
}

// clientError is a fault of the client while its body was read.
type clientError struct{ error }

func (e *clientError) Unwrap() error { return e.error }

// again reports whether a failed try may be followed by another.
type again uint8

const (
	never again = iota
	// stale: the connection had been idle, and the server closed it before it read the request.
	stale
	// elsewhere: another endpoint may be tried.
	elsewhere
)

func (x *exchange) pick(b *upstream.Backend) *upstream.Endpoint {
	o := x.endpointOptions()
	if o == nil {
		return b.Pick(upstream.RandomTwo, x.tried)
	}
	return x.choose(b, o)
}

// times are the time-outs of the endpoint.
func (x *exchange) times() Timeouts {
	t := x.p.current().Timeouts
	if o := x.endpointOptions(); o != nil {
		if o.Connect > 0 {
			t.Connect = o.Connect
		}
		if o.Send > 0 {
			t.Send = o.Send
		}
		if o.Read > 0 {
			t.Read = o.Read
		}
	}
	return t
}

// try sends the request to one endpoint and its response to the client.
func (x *exchange) try(e *upstream.Endpoint, sure bool) (again, error) {
	o := x.endpointOptions()
	encrypted := o != nil && o.Protocol == schema.HTTPS
	t := x.times()
	e.Begin()
	defer e.End()
	of := x.origin(o)
	c, reused, err := e.GetFor(x.ctx, of, encrypted, sure, t.Connect)
	if err != nil {
		if x.ctx.Err() != nil {
			return never, errors.Join(errClient, err)
		}
		e.Failed()
		return elsewhere, err
	}
	safe := x.repeatable()
	c.Timeouts(t.Send, t.Read)
	up, err := x.send(c)
	if err == nil {
		err = x.receive(c, up)
	}
	if err == nil {
		e.Worked()
		switch {
		case x.rec.Status == 101: // both connections have been handed over
		case c.Done():
			e.PutFor(c, of, encrypted)
		default:
			_ = c.Close()
		}
		return never, nil
	}
	// The connection's stopper has the cause: the client left, or its body was truncated. The endpoint is not to blame
	// for its answer to that.
	stopped := c.Stopped()
	c.Stop()
	up.wait()
	_ = c.Close() // returns buffers, to which the upload would still write
	if stopped && up != nil && !x.gone.Load() {
		err = errors.Join(up.err, err)
	}
	return x.verdict(e, c, reused, safe, err)
}

// verdict returns whether another try may follow, and whether the endpoint is to blame.
func (x *exchange) verdict(e *upstream.Endpoint, c *h1.Client, reused, safe bool, err error) (again, error) {
	var client *clientError
	if errors.As(err, &client) || errors.Is(err, errClient) {
		return never, err
	}
	var refused *refusedStatus
	var page *otherAnswers
	switch {
	case errors.As(err, &page):
		e.Worked()
		return never, err
	case errors.As(err, &refused):
		if refused.status >= 500 {
			e.Failed()
		}
		return elsewhere, err
	}
	untouched := !x.d.Responded() && !x.begun && !c.Started()
	var large *h1.Error
	switch {
	case errors.As(err, &large) && large.IsTooLarge(): // the proxy's limit is not a fault of the endpoint
		x.p.oversized.Add(1)
		return never, fmt.Errorf("%w: %w", errOversized, err)
	case untouched && reused && (safe || !c.Sent()) && !isTimeout(err):
		return stale, err
	case untouched && (safe || !c.Sent()) && (!isTimeout(err) || x.retriesTimeouts()):
		e.Failed()
		return elsewhere, err
	}
	e.Failed()
	return never, err
}

// errOversized means that the response has a larger head, or larger trailers, than the settings allow.
var errOversized = errors.New(
	"the endpoint's response has a larger head than ingress.responseHeadBytes and ingress.responseFields allow")

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// idempotent methods can be repeated without further effect (RFC 9110, 9.2.2).
func idempotent(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE":
		return true
	}
	return false
}

var errClient = errors.New("the client does not read the response")

// upload is a body that is being sent while the response arrives.
type upload struct {
	x    *exchange
	c    *h1.Client
	done chan error
	// ending means that the client has sent the complete body.
	ending atomic.Bool
	err    error
	over   bool
}

// lastWrite is how long the end of a body may take once the response has ended.
const lastWrite = 100 * time.Millisecond

// wait ends the upload: the rest of the client's body is not needed. A nil upload has ended.
func (u *upload) wait() {
	if u == nil || u.failed() != nil || u.over {
		return
	}
	if u.ending.Load() { // it need not be stopped, or not yet
		select {
		case u.err = <-u.done:
			u.over = true
			return
		case <-time.After(lastWrite):
			u.c.Stop()
		}
	} else {
		u.x.d.StopReading()
	}
	u.err, u.over = <-u.done, true
}

// complete waits until the client's complete body has been sent. The client's and the endpoint's time-outs bound that.
func (u *upload) complete() error {
	if u == nil {
		return nil
	}
	if !u.over {
		u.err, u.over = <-u.done, true
	}
	return u.err
}

// failed returns the error that it ended with; nil while it runs.
func (u *upload) failed() error {
	if u == nil {
		return nil
	}
	if !u.over {
		select {
		case u.err = <-u.done:
			u.over = true
		default:
		}
	}
	return u.err
}

// send writes the request. A body that has arrived is sent with the head; otherwise a separate goroutine sends it,
// since the response may arrive before its end.
func (x *exchange) send(c *h1.Client) (*upload, error) {
	host := x.r.Host
	x.r.Host = x.sentHost()
	c.Begin(x.r, x.more)
	x.r.Host = host
	switch n := x.r.Length; {
	case n == 0:
		return nil, c.Last()
	case n > 0 && int64(x.d.Buffered()) == n && n <= smallBuffer:
		x.begun = true
		buf := x.buffer()[:n]
		if _, err := io.ReadFull(x.d, buf); err != nil {
			return nil, &clientError{err}
		}
		if _, err := c.Write(buf); err != nil {
			return nil, err
		}
		return nil, c.Last()
	}
	x.begun = true
	if !x.d.Ready() { // the endpoint may answer after the head
		if err := c.Flush(); err != nil {
			return nil, err
		}
	}
	u := &upload{x: x, c: c, done: make(chan error, 1)}
	limit := int64(0)
	if o := x.match.Path.Options; o != nil {
		limit = o.MaxBody
	}
	length := x.r.Length
	go func() { u.done <- u.send(x.p, x.d, length, limit) }()
	return u, nil
}

var errTooLarge = errors.New("the body is larger than this path allows")

// send copies a body from the client. A part is sent as soon as no more bytes are buffered.
func (u *upload) send(p *Proxy, d message.Downstream, length, limit int64) error {
	c := u.c
	kept := p.buffers.take()
	defer p.buffers.give(kept)
	buf := *kept
	for total := int64(0); ; {
		n, err := d.Read(buf)
		if total += int64(n); limit > 0 && total > limit {
			err = errTooLarge
		}
		last := err == io.EOF || err == nil && total == length
		u.ending.Store(last)
		if n > 0 && (err == nil || last) {
			if _, err := c.Write(buf[:n]); err != nil {
				return err
			}
		}
		if last {
			return c.Finish(u.x.trailers(d.Trailers()))
		}
		if err != nil {
			// The endpoint must notice that the body is incomplete.
			c.Stop()
			return &clientError{err}
		}
		if !d.Ready() {
			if err := c.Flush(); err != nil {
				return err
			}
		}
	}
}

func (x *exchange) buffer() []byte {
	if x.buf == nil {
		x.buf = x.p.buffers.take()
	}
	return *x.buf
}

// receive forwards the response.
func (x *exchange) receive(c *h1.Client, up *upload) error {
	resp, err := x.response(c)
	if err != nil {
		return err
	}
	if resp.Status == 101 {
		return x.switchTo(c, resp, up)
	}
	if err := x.judge(resp.Status); err != nil {
		return err
	}
	x.rec.Status = resp.Status
	x.respond(resp)
	x.final(&resp.Fields)
	if err := x.d.Respond(resp); err != nil {
		return errors.Join(errClient, err)
	}
	if err := x.copyBody(c, resp); err != nil {
		return err
	}
	// A response before the request's end ends the request.
	up.wait()
	if err := x.d.Finish(c.Trailers()); err != nil {
		return errors.Join(errClient, err)
	}
	return nil
}

// response waits for the head.
func (x *exchange) response(c *h1.Client) (*message.Response, error) {
	resp, err := c.Response(x.r.Method, x.d.Respond)
	for errors.Is(err, h1.ErrPatience) {
		x.watch(c)
		resp, err = c.Response(x.r.Method, x.d.Respond)
	}
	x.watched()
	if err == nil {
		return resp, nil
	}
	if x.gone.Load() {
		return nil, errors.Join(errClient, err)
	}
	return nil, err
}

// watch aborts the exchange when the client leaves: while nothing is sent to it, there is no other sign. It starts only
// if an endpoint is slow to answer.
func (x *exchange) watch(c *h1.Client) {
	if x.unwatch == nil {
		x.unwatch = x.d.Watch(func() {
			x.gone.Store(true)
			c.Stop()
		})
	}
}

// watched ends that.
func (x *exchange) watched() {
	if x.unwatch != nil {
		x.unwatch()
		x.unwatch = nil
	}
}

// copyBody copies the response's body. Bytes that were read with the head are sent with the head; later bytes are sent
// as they arrive.
func (x *exchange) copyBody(c *h1.Client, resp *message.Response) error {
	if resp.Bodyless(x.r.Method) || resp.Length == 0 {
		return nil
	}
	if first := c.Ahead(); first != nil {
		n, err := x.write(first)
		if err != nil {
			return errors.Join(errClient, err)
		}
		if int64(n) == resp.Length {
			return nil
		}
	}
	buf := x.buffer()
	for {
		if !c.Ready() {
			if err := x.d.Flush(); err != nil {
				return errors.Join(errClient, err)
			}
		}
		n, err := c.Read(buf)
		if errors.Is(err, h1.ErrPatience) {
			x.watch(c)
			continue
		}
		x.watched()
		if n > 0 {
			if _, err := x.write(buf[:n]); err != nil {
				return errors.Join(errClient, err)
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case x.gone.Load():
			return errors.Join(errClient, err, errors.New("it has disconnected"))
		case err != nil:
			return err
		}
	}
}
