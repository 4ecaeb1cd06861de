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
	// authorization is what was taken out of the request; id is that of $request_id.
	authorization, id []byte
}

// options does what a path asks for before its request is sent on, in the order of
// docs/ingress-options.md: a later step sees only what every earlier one let through. It
// says whether one of them answered the request.
func (x *exchange) options(o *table.Options) (answered bool) {
	ready := x.match.Ready
	return x.early(o, ready) || x.guards(o, ready) || x.late(o, ready)
}

// early does what comes before guards.
func (x *exchange) early(o *table.Options, ready *table.Ready) (answered bool) {
	if ready.Err != nil {
		x.fail(500, ready.Err)
		return true
	}
	x.opt.target, x.opt.backend = x.r.Target, x.match.Path.Backend
	return o.CORS != nil && x.cors(o.CORS, &ready.Origins) || x.tooLarge(o) || x.redirect(o, ready)
}

// guards asks what may keep the request out.
func (x *exchange) guards(o *table.Options, ready *table.Ready) (answered bool) {
	if x.limited(o, ready) || x.forbidden(o) || o.Auth != nil && x.basic(o.Auth) || o.AuthURL != nil && x.ask(o.AuthURL, ready) {
		return true
	}
	if o.Auth != nil {
		x.opt.authorization = x.r.Fields.Get("Authorization")
		x.r.Fields.Del("Authorization") // it was for us
	}
	return false
}

// late does what only requests meet that every guard let in.
func (x *exchange) late(o *table.Options, ready *table.Ready) (answered bool) {
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
	if x.d.Respond(resp) == nil {
		_ = x.d.Finish(nil)
	}
}
