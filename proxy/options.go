package proxy

import (
	"errors"
	"net/netip"
	"time"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

// asked is the state of a path's options for one request.
type asked struct {
	// target and path are those of the client, whatever is forwarded.
	target, path []byte
	// known is the client's address, set when it is first needed.
	known netip.Addr
	// backend is the one that the request is sent to; canary means that it is not the path's own.
	backend string
	canary  bool
	// sticky means that the client gets a cookie for its endpoint.
	sticky bool
	// asserted are fields that only an authentication server may set for the backend.
	asserted []string
	// origin is the allowed origin of the request.
	origin []byte
	// entered is how the exchange is counted among those of its client; see limited.
	entered limitKey
	// inError means that another backend answers for a status; among is the number of endpoints of the backend that is
	// used.
	inError bool
	// compared counts the bytes of a response that were compared with expressions.
	compared int
	among    int
	// signed means that the client has sent the password of a user.
	signed bool
	// certified means that fields of the request describe the client's certificate.
	certified bool
	// host is the field Host for endpoints; nil for the client's.
	host []byte
	// paced is when sending the body of a response began, if the path limits the rate.
	paced time.Time
	// cookies are those that an authentication server sets.
	cookies message.Fields
	// authorization is the field that was removed from the request; id is the value of $request_id.
	authorization, id []byte
}

// options applies the options of a path before its request is sent, in the order of docs/ingress-options.md: a later
// step sees only requests that every earlier one passed. It reports whether one of them answered the request.
func (x *exchange) options(o *schema.Options) (answered bool) {
	ready := x.match.Ready
	return x.early(o, ready) || x.guards(o, ready) || x.late(o, ready)
}

// early runs the steps before guards.
func (x *exchange) early(o *schema.Options, ready *table.Ready) (answered bool) {
	if ready.Err != nil {
		x.fail(500, ready.Err)
		return true
	}
	x.opt.target, x.opt.backend = x.r.Target, x.match.Path.Backend
	return o.CORS != nil && x.cors(o.CORS, &ready.Origins) || x.tooLarge(o) || x.redirect(o, ready)
}

// guards runs the steps that may refuse the request.
func (x *exchange) guards(o *schema.Options, ready *table.Ready) (answered bool) {
	if x.limited(o, ready) || x.keptOut(o, ready) {
		return true
	}
	if o.Auth != nil {
		x.opt.authorization = x.r.Fields.Get("Authorization")
		x.r.Fields.Del("Authorization") // it was for the proxy
	}
	return false
}

// late runs the steps for requests that every guard has admitted.
func (x *exchange) late(o *schema.Options, ready *table.Ready) (answered bool) {
	if len(o.Canary) > 0 {
		x.drawCanary(o, ready)
	}
	if len(ready.Rewrite) > 0 && x.rewrite(ready) {
		return true
	}
	return o.Mirror != nil && x.mirror(o.Mirror, ready)
}

// keptOut answers clients that the guards of the path do not admit.
func (x *exchange) keptOut(o *schema.Options, ready *table.Ready) (answered bool) {
	if !o.AnyOf {
		return x.forbidden(o) ||
			o.Auth != nil && x.basic(o.Auth) ||
			o.AuthURL != nil && x.ask(o.AuthURL, ready)
	}
	in, err := x.letIn(o)
	switch {
	case err != nil:
		x.fail(503, err)
	case in:
		if o.AuthURL != nil { // no server was asked: the client must not set its fields
			x.passOn(o.AuthURL.Headers, nil)
		}
		return false
	case o.AuthURL != nil:
		return x.ask(o.AuthURL, ready)
	case o.Auth != nil:
		x.challenge(o.Auth)
	default:
		x.fail(403, errNotAllowed)
	}
	return true
}

var errNotAllowed = errors.New("no guard of the path admits the client")

// letIn reports whether the sources or the password of a request admit it, if one of them is enough. A list of denied
// clients admits no client if there is another guard. The error means that there was no time to check.
func (x *exchange) letIn(o *schema.Options) (bool, error) {
	if len(o.Sources) > 0 || o.Auth == nil && o.AuthURL == nil {
		if x.comesFrom(o) {
			return true, nil
		}
	}
	if o.Auth == nil {
		return false, nil
	}
	return x.signedIn(o.Auth)
}

// choose selects the endpoint for a try, by the path's options.
func (x *exchange) choose(b *upstream.Backend, o *schema.Options) *upstream.Endpoint {
	if o.Affinity != nil {
		e, moved := x.kept(b, o.Affinity)
		if moved || e == nil {
			x.opt.sticky = true
		}
		if e != nil {
			return e
		}
	}
	if t := x.match.Ready.Hash; len(t) > 0 {
		if key := x.expand(x.hashed[:0], t, asItIs); len(key) > 0 {
			x.hashed = key
			if o.HashSubset > 1 {
				return b.HashSubset(key, o.HashSubset, x.tried)
			}
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
	if x.opt.inError {
		r.Fields = x.answered(r.Fields, r.Status)
		return
	}
	if x.opt.sticky && x.last != nil {
		x.answer = append(x.answer, message.Field{Name: setCookie, Value: x.affinityCookie(o.Affinity)})
	}
	x.edit(o, r)
	if x.opt.origin != nil { // the proxy answers for CORS in place of the endpoint
		for _, name := range []string{allowOrigin, allowCredentials, exposeHeaders} {
			r.Fields.Del(name)
		}
	}
	r.Fields = x.answered(r.Fields, r.Status)
}

// answered appends the fields that the client gets in addition to those of a response.
func (x *exchange) answered(f message.Fields, status int) message.Fields {
	f = append(x.setFields(f), x.answer...)
	if len(x.opt.cookies) > 0 && (x.match.Path.Options.AuthURL.AlwaysCookie || schema.CookieStatus(status)) {
		f = append(f, x.opt.cookies...)
	}
	return f
}

// tooLarge refuses a body by its Content-Length; sendBody counts a body without one.
func (x *exchange) tooLarge(o *schema.Options) (answered bool) {
	if o.MaxBody <= 0 || x.r.Length <= o.MaxBody {
		return false
	}
	x.fail(413, errTooLarge)
	return true
}

// empty answers with only a head.
func (x *exchange) empty(status int, more message.Fields) {
	x.rec.Status = status
	resp := &message.Response{Status: status, Fields: x.answered(more, status)}
	x.named(&resp.Fields)
	if x.d.Respond(resp) == nil {
		_ = x.d.Finish(nil)
	}
}
