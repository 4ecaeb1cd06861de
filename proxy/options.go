package proxy

import (
	"net/netip"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

// asked is what the options of a path know of one request.
type asked struct {
	// target and path are those of the client, whatever is sent on.
	target, path []byte
	// known is who the client is, once somebody wanted to know.
	known netip.Addr
	// backend is the one that is sent to; canary says that it is not the path's own.
	backend string
	canary  bool
	// sticky says that the client shall be told its endpoint.
	sticky bool
	// asserted are fields that only an authentication server may say to the backend.
	asserted []string
	// origin is the allowed origin that the request came from.
	origin []byte
}

// options does what a path asks for before its request is sent on, in the order of
// docs/ingress-options.md: a later step sees only what every earlier one let through. It
// says whether one of them answered the request.
func (x *exchange) options(o *table.Options) (answered bool) {
	ready := x.match.Ready
	if ready.Err != nil {
		x.fail(500, ready.Err)
		return true
	}
	x.opt.target, x.opt.backend = x.r.Target, x.match.Path.Backend
	if o.CORS != nil && x.cors(o.CORS, &ready.Origins) ||
		x.tooLarge(o) ||
		x.redirect(o, ready) ||
		x.limited(o, ready) ||
		x.forbidden(o) ||
		o.Auth != nil && x.basic(o.Auth) ||
		o.AuthURL != nil && x.ask(o.AuthURL, ready) {
		return true
	}
	if o.Auth != nil {
		x.r.Fields.Del("Authorization") // it was for us
	}
	if len(o.Canary) > 0 {
		x.drawCanary(o, ready)
	}
	return len(ready.Rewrite) > 0 && x.rewrite(ready)
}

// choose draws the endpoint for a try, by what the path asks for.
func (x *exchange) choose(b *upstream.Backend, o *table.Options) *upstream.Endpoint {
	if o.Affinity != nil {
		if e := x.kept(b, o.Affinity); e != nil {
			return e
		}
		x.opt.sticky = true
	}
	if t := x.match.Ready.Hash; len(t) > 0 {
		if key := x.expand(x.hashed[:0], t, asItIs); len(key) > 0 {
			x.hashed = key
			return b.Hash(key, x.tried)
		}
	}
	how := upstream.RandomTwo
	if o.Balance == "round_robin" {
		how = upstream.RoundRobin
	}
	return b.Pick(how, x.tried)
}

// respond changes the head of an endpoint's response before the client gets it.
func (x *exchange) respond(r *message.Response) {
	o := x.match.Path.Options
	if o == nil {
		return
	}
	if x.opt.sticky && x.last != nil {
		x.answer = append(x.answer, message.Field{Name: setCookie, Value: x.affinityCookie(o.Affinity)})
	}
	if x.opt.origin != nil { // who asks us for CORS need not ask the endpoint
		for _, name := range []string{allowOrigin, allowCredentials, exposeHeaders} {
			r.Fields.Del(name)
		}
	}
	r.Fields = append(r.Fields, x.answer...)
}

// tooLarge refuses a body by its Content-Length; sendBody counts one that has none.
func (x *exchange) tooLarge(o *table.Options) (answered bool) {
	if o.MaxBody <= 0 || x.r.Length <= o.MaxBody {
		return false
	}
	x.fail(413, errTooLarge)
	return true
}

// empty answers with a head alone.
func (x *exchange) empty(status int, more message.Fields) {
	x.rec.Status = status
	resp := &message.Response{Status: status, Fields: append(more, x.answer...)}
	x.named(&resp.Fields)
	if x.d.Respond(resp) == nil {
		_ = x.d.Finish(nil)
	}
}
