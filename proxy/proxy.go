// Package proxy answers HTTP requests by forwarding them to the endpoints of Services.
//
// Invariants:
//   - The routing table is replaced as a whole, by a pointer: a request sees the old or the new one, and
//     none waits for a change.
//   - A request is sent to a second endpoint only if the first cannot have read it, or
//     if the request is idempotent, and no part of a body is lost.
//   - The process parses hostile bytes, and has no other rights.
package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

// Timeouts are those of endpoints, unless a path's options set others.
type Timeouts struct {
	Connect, Send, Read time.Duration
}

// Proxy handles exchanges. Set the fields before the first one; the tables may be replaced at any time.
type Proxy struct {
	Upstreams *upstream.Set
	Timeouts  Timeouts
	// Tries is the maximum number of endpoints that a request is sent to.
	Tries int
	// Trusted are clients whose X-Forwarded-… fields are kept and extended; those of others are replaced.
	Trusted []netip.Prefix
	// Observe is called at the end of every exchange; may be nil.
	Observe func(*Record)
	Log     *slog.Logger
	// Keys are certificates and authorities by key; nil for none.
	Keys Keys
	// Asking configures subrequests to authentication servers.
	Asking Asking

	table    atomic.Pointer[table.Table]
	date     atomic.Pointer[date]
	pool     sync.Pool // of *exchange
	buffers  buffers
	tunnels  atomic.Int64
	http2    http2Clients
	settings atomic.Pointer[Settings]
	// oversized counts responses whose heads or trailers were too large.
	oversized atomic.Int64

	passwords passwords
	limits    limits
	crowd     crowd
	answers   answers
	mirrors   mirrors
	asker     asker
	reach     reachPolicy
}

// Record describes an exchange, for logs and metrics. Its slices belong to the exchange.
type Record struct {
	Request *message.Request
	Path    *schema.Path
	Host    *schema.Host
	// Endpoint is the last one that was tried.
	Endpoint netip.AddrPort
	Tries    int
	Status   int
	Sent     int64
	Took     time.Duration
	Err      error
}

// SetTable replaces the routing table.
func (p *Proxy) SetTable(t *table.Table) { p.table.Store(t) }

// Oversized returns how many responses had a larger head, or larger trailers, than the settings allow.
func (p *Proxy) Oversized() int64 { return p.oversized.Load() }

// Table returns the current routing table.
func (p *Proxy) Table() *table.Table { return p.table.Load() }

// exchange is one request in progress. Exchanges are reused.
type exchange struct {
	p     *Proxy
	ctx   context.Context
	d     message.Downstream
	r     *message.Request
	match table.Match
	start time.Time
	rec   Record

	more   message.Fields // fields that the proxy adds to the request
	tried  []*upstream.Endpoint
	name   []byte // host name, in lower case
	clean  []byte
	client []byte // the client's address as text, and which address that is
	whose  netip.Addr
	buf    *[]byte
	// last is the endpoint that the request was sent to; begun means that bytes of the body were read from the client,
	// so that no second endpoint can get them.
	last  *upstream.Endpoint
	begun bool
	// unwatch ends the watching of a waiting client; gone means that it left.
	unwatch func()
	gone    atomic.Bool
	// answer are fields that are added to the response.
	answer message.Fields
	opt    asked
	// hashed is the key by which an endpoint is chosen.
	hashed []byte
}

// Handle answers one exchange.
func (p *Proxy) Handle(ctx context.Context, d message.Downstream) {
	x, _ := p.pool.Get().(*exchange)
	if x == nil {
		x = &exchange{p: p, name: make([]byte, 0, 64), clean: make([]byte, 0, 256)}
	}
	x.ctx, x.d, x.r, x.start = ctx, d, d.Request(), time.Now()
	x.rec = Record{Request: x.r}
	defer p.survive(x, d)
	x.route()
	x.leave()
	if p.Observe != nil {
		x.rec.Took = time.Since(x.start)
		p.Observe(&x.rec)
	}
	if x.buf != nil {
		p.buffers.give(x.buf)
		x.buf = nil
	}
	clear(x.more[:cap(x.more)])
	clear(x.tried[:cap(x.tried)])
	clear(x.answer[:cap(x.answer)])
	x.opt = asked{}
	x.match.Reset()
	x.ctx, x.d, x.r, x.last, x.begun = nil, nil, nil, nil, false
	x.gone.Store(false)
	x.more, x.tried, x.answer = x.more[:0], x.tried[:0], x.answer[:0]
	p.pool.Put(x)
}

// survive makes a panic end only one exchange.
func (p *Proxy) survive(x *exchange, d message.Downstream) {
	fault := recover()
	if fault == nil {
		return
	}
	x.leave()
	d.Abort()
	if p.Log != nil {
		p.Log.Error("an exchange ended in a panic", "panic", fault, "stack", string(debug.Stack()))
	}
}

// route finds the path of the request, and applies its options before it is forwarded.
func (x *exchange) route() {
	if string(x.r.Method) == "TRACE" { // it would reveal to a page the fields that its browser and the proxy send
		x.rec.Err = errTrace
		x.reply(405, message.Fields{{Name: allow, Value: allowed}})
		return
	}
	target := x.r.Target
	if x.find() {
		return
	}
	if o := x.match.Path.Options; o == nil {
		x.opt.backend = x.match.Path.Backend
	} else if x.options(o) {
		x.r.Target = target
		return
	}
	x.unassert(x.opt.backend)
	x.forward(x.opt.backend)
	x.r.Target = target // the record shows what the client sent
}

// find finds the path of the request, and answers a request without one, or one that is refused.
func (x *exchange) find() (answered bool) {
	t := x.p.table.Load()
	name := table.Name(x.r.Host, x.name)
	path, ok := table.Clean(x.r.Path(), x.clean)
	if !ok {
		x.fail(400, errors.New("a path that leaves its root, or has a bad escape"))
		return true
	}
	if !t.Route(name, path, &x.match) {
		x.fail(404, nil)
		return true
	}
	x.rec.Host, x.rec.Path = x.match.Host, x.match.Path
	switch {
	case x.match.TooLong:
		x.fail(414, errPathTooLong)
		return true
	case x.match.Path.Closed:
		x.fail(503, errClosed)
		return true
	}
	if x.uncertified(t, name) {
		return true
	}
	if err := x.spelled(t, name); err != nil {
		x.fail(400, err)
		return true
	}
	x.opt.path = path
	return false
}

// spelled refuses a path that an endpoint may take for another one, which is guarded. It removes dot segments from the
// target, so that endpoints and authentication servers see the path by which the request was routed.
func (x *exchange) spelled(t *table.Table, name []byte) error {
	raw := x.r.Path()
	sent, err := t.Spelled(name, raw, &x.match)
	if err != nil || len(sent) == len(raw) {
		return err
	}
	x.r.Target = append(slices.Clip(sent), x.r.Target[len(raw):]...)
	return nil
}

var (
	errPathTooLong = errors.New("the path is too long to compare with the patterns of the host")
	errTrace       = errors.New("TRACE is not forwarded")
	errClosed      = errors.New("the path is closed: its guard cannot be enforced")
)

// fail answers with an error by the proxy itself.
func (x *exchange) fail(status int, err error) {
	x.rec.Err = err
	x.reply(status, nil)
}

var (
	contentType = []byte("Content-Type")
	textPlain   = []byte("text/plain; charset=utf-8")
	allow       = []byte("Allow")
	allowed     = []byte("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
)

// reply sends a short text with the proxy's own fields.
func (x *exchange) reply(status int, more message.Fields) {
	if x.d.Responded() {
		x.d.Abort()
		return
	}
	if x.errorPage(status, more) {
		return
	}
	text := pages[status]
	resp := &message.Response{Status: status, Length: int64(len(text)),
		Fields: append(message.Fields{{Name: contentType, Value: textPlain}}, more...)}
	resp.Fields = x.answered(resp.Fields, status)
	x.final(&resp.Fields)
	x.rec.Status = status
	if err := x.d.Respond(resp); err != nil {
		return
	}
	if n, err := x.d.Write(text); err == nil {
		x.rec.Sent += int64(n)
		_ = x.d.Finish(nil)
	}
}
