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

// asked is what the options of a path know of one request.
type asked struct {
	// target and path are those of the client, whatever is sent on.
	target, path []byte
	// known is the client's address, once it was needed.
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
	// entered is as what the exchange counts among those of its client; see limited.
	entered limitKey
	// inError says that another backend answers for a status; among is how many endpoints the
	// backend has that is sent to.
	inError bool
	// compared counts the bytes of a response that were compared with expressions.
	compared int
	among    int
	// signed says that the client has given the password of a user.
	signed bool
	// certified says that fields of the request tell of the client's certificate.
	certified bool
	// host is the field Host for endpoints; nil for the client's.
	host []byte
	// paced is since when the body of a response is sent, where the path has a pace.
	paced time.Time
	// cookies are those that an authentication server sets.
	cookies message.Fields
	// authorization is what was taken out of the request; id is that of $request_id.
	authorization, id []byte
}

// options does what a path asks for before its request is sent on, in the order of
// docs/ingress-options.md: a later step sees only what every earlier one let through. It
// says whether one of them answered the request.
func (x *exchange) options(o *schema.Options) (answered bool) {
	ready := x.match.Ready
	return x.early(o, ready) || x.guards(o, ready) || x.late(o, ready)
}

// early does what comes before guards.
func (x *exchange) early(o *schema.Options, ready *table.Ready) (answered bool) {
	if ready.Err != nil {
		x.fail(500, ready.Err)
		return true
	}
	x.opt.target, x.opt.backend = x.r.Target, x.match.Path.Backend
	return o.CORS != nil && x.cors(o.CORS, &ready.Origins) || x.tooLarge(o) || x.redirect(o, ready)
}

// guards asks what may keep the request out.
func (x *exchange) guards(o *schema.Options, ready *table.Ready) (answered bool) {
	if x.limited(o, ready) || x.keptOut(o, ready) {
		return true
	}
	if o.Auth != nil {
		x.opt.authorization = x.r.Fields.Get("Authorization")
		x.r.Fields.Del("Authorization") // it was for us
	}
	return false
}

// late does what only requests meet that every guard let in.
func (x *exchange) late(o *schema.Options, ready *table.Ready) (answered bool) {
	if len(o.Canary) > 0 {
		x.drawCanary(o, ready)
	}
	if len(ready.Rewrite) > 0 && x.rewrite(ready) {
		return true
	}
	return o.Mirror != nil && x.mirror(o.Mirror, ready)
}

// keptOut answers clients that the guards of the path do not let in.
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
		if o.AuthURL != nil { // no server was asked: the client may not say what it would
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

var errNotAllowed = errors.New("no guard of the path lets the client in")

// letIn says whether the sources or the password of a request let it in, where one of them is
// enough. A list of denied clients admits no client where there is another guard. The error is that
// there was no time to find out.
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

// choose draws the endpoint for a try, by what the path asks for.
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

// answered appends what the client gets in addition to the fields of a response.
func (x *exchange) answered(f message.Fields, status int) message.Fields {
	f = append(x.setFields(f), x.answer...)
	if len(x.opt.cookies) > 0 && (x.match.Path.Options.AuthURL.AlwaysCookie || schema.CookieStatus(status)) {
		f = append(f, x.opt.cookies...)
	}
	return f
}

// tooLarge refuses a body by its Content-Length; sendBody counts one that has none.
func (x *exchange) tooLarge(o *schema.Options) (answered bool) {
	if o.MaxBody <= 0 || x.r.Length <= o.MaxBody {
		return false
	}
	x.fail(413, errTooLarge)
	return true
}

// empty answers with a head alone.
func (x *exchange) empty(status int, more message.Fields) {
	x.rec.Status = status
	resp := &message.Response{Status: status, Fields: x.answered(more, status)}
	x.named(&resp.Fields)
	if x.d.Respond(resp) == nil {
		_ = x.d.Finish(nil)
	}
}
