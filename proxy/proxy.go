// Package proxy answers HTTP requests by sending them on to the endpoints of Services.
//
// Invariants:
//   - What routes is swapped whole, as a pointer: a request sees the old or the new, and
//     none waits for a change.
//   - A request is sent to a second endpoint only when the first cannot have seen it, or
//     when sending it twice does what sending it once does, and nothing of a body is lost.
//   - It reads what strangers send, and has no right to do anything but that.
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

// Timeouts are towards endpoints, where a path's options say nothing else.
type Timeouts struct {
	Connect, Send, Read time.Duration
}

// Proxy handles exchanges. Fill the fields before the first; the tables may be swapped at
// any time.
type Proxy struct {
	Upstreams *upstream.Set
	Timeouts  Timeouts
	// Tries is how many endpoints a request may be sent to.
	Tries int
	// Trusted are whose X-Forwarded-… fields are believed, and added to; others' are
	// replaced.
	Trusted []netip.Prefix
	// Observe is called for every exchange at its end; may be nil.
	Observe func(*Record)
	Log     *slog.Logger
	// Keys are certificates and authorities by key; nil for none.
	Keys Keys
	// Asking is how questions to authentication servers leave.
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

// Record is what an exchange was, for logs and metrics. Its slices are the exchange's.
type Record struct {
	Request *message.Request
	Path    *schema.Path
	Host    *schema.Host
	// Endpoint is the last that was tried.
	Endpoint netip.AddrPort
	Tries    int
	Status   int
	Sent     int64
	Took     time.Duration
	Err      error
}

// SetTable swaps the routes.
func (p *Proxy) SetTable(t *table.Table) { p.table.Store(t) }

// Oversized is how many responses had a larger head, or larger trailers, than the settings allow.
func (p *Proxy) Oversized() int64 { return p.oversized.Load() }

// Table is what routes now.
func (p *Proxy) Table() *table.Table { return p.table.Load() }

// exchange is one request on its way. They are used again.
type exchange struct {
	p     *Proxy
	ctx   context.Context
	d     message.Downstream
	r     *message.Request
	match table.Match
	start time.Time
	rec   Record

	more   message.Fields // what the proxy adds to the request
	tried  []*upstream.Endpoint
	name   []byte // host name, in lower case
	clean  []byte
	client []byte // the client's address as text, and whose
	whose  netip.Addr
	buf    *[]byte
	// last is the endpoint that the request was sent to; begun says that bytes of the
	// body were taken from the client, which no second endpoint can be sent.
	last  *upstream.Endpoint
	begun bool
	// unwatch ends the watching of a client that waits long; gone says that it left.
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

// survive has a fault of ours end one exchange, and not all connections with it.
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

// route finds where the request leads, and asks the options of its path before it goes
// on.
func (x *exchange) route() {
	if string(x.r.Method) == "TRACE" { // it would show a page what its browser and the proxy say to the endpoint alone
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
	x.r.Target = target // what the client sent is what the record shows
}

// find finds the path of the request, and answers one that has none or may not go on.
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

// spelled refuses a path that an endpoint may take for another one, which is guarded, and
// takes dot segments out of the target, so that what is sent on, and what an authentication
// server is told, leads where the request was routed.
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
	errTrace       = errors.New("TRACE is not passed on")
	errClosed      = errors.New("the path is closed: its guard cannot be applied")
)

// fail answers by the proxy itself.
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

// reply sends a short text with fields of the proxy's own.
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
