package proxy

import (
	"strconv"
	"strings"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/upstream"
)

// endpointOptions returns those of the path that concern its endpoints; nil for the backend that answers for statuses,
// to which they do not apply.
func (x *exchange) endpointOptions() *schema.Options {
	if x.opt.inError {
		return nil
	}
	return x.match.Path.Options
}

// standIn returns the backend that answers instead of one without endpoints; nil for none.
func (x *exchange) standIn() *upstream.Backend {
	o := x.match.Path.Options
	if o == nil || o.Errors == nil {
		return nil
	}
	b := x.p.Upstreams.Lookup(o.Errors.Backend)
	if b == nil || len(b.All()) == 0 {
		return nil
	}
	x.unassert(b.Key)
	return b
}

// errorsFor returns the backend that answers for a status; nil for none.
func (x *exchange) errorsFor(status int) *upstream.Backend {
	if x.match.Path == nil || x.opt.inError || status < 300 {
		return nil
	}
	o := x.match.Path.Options
	if o == nil || o.Errors == nil || !contains(o.Errors.Statuses, status) {
		return nil
	}
	b := x.p.Upstreams.Lookup(o.Errors.Backend)
	if b == nil || len(b.All()) == 0 {
		return nil
	}
	return b
}

func contains(list []int, n int) bool {
	for _, m := range list {
		if m == n {
			return true
		}
	}
	return false
}

// errorPage lets another backend answer for a status, by a request of its own. It reports whether there is one.
func (x *exchange) errorPage(status int, more message.Fields) (answered bool) {
	b := x.errorsFor(status)
	if b == nil || x.d.Responded() {
		return false
	}
	e := x.match.Path.Options.Errors
	x.opt.inError, x.opt.sticky = true, false
	x.answer = append(x.answer, more...)
	if len(x.more) == 0 {
		x.forwarded()
	}
	x.credentialsOut(b.Key)
	x.describeError(e, status)
	r := *x.r
	if string(x.r.Method) != "HEAD" {
		x.r.Method = []byte("GET")
	}
	x.r.Target, x.r.Length, x.r.Upgrade, x.r.Trailers = []byte("/"), 0, nil, false
	x.tried, x.begun, x.rec.Tries = x.tried[:0], false, 0
	x.exchangeWith(b)
	x.r.Method, x.r.Target, x.r.Length, x.r.Upgrade, x.r.Trailers = r.Method, r.Target, r.Length, r.Upgrade, r.Trailers
	return true
}

// credentialsOut removes what only the endpoints of the path, or its guards, may see, and what an authentication server
// sets: it may not have been asked.
func (x *exchange) credentialsOut(backend string) {
	o := x.match.Path.Options
	if o.Auth != nil {
		x.r.Fields.Del("Authorization")
	}
	if o.AuthURL != nil {
		for _, name := range o.AuthURL.Headers {
			x.takeOut(name)
		}
	}
	for _, name := range x.p.table.Load().Asserted(backend) {
		if x.opt.certified && strings.HasPrefix(name, "ssl-client-") {
			continue
		}
		x.takeOut(name)
	}
	x.r.Fields.Del("Content-Type")
	x.r.Fields.Del("Content-Encoding")
	x.r.Fields.Del("Range")
	x.r.Fields.Del("If-None-Match")
	x.r.Fields.Del("If-Modified-Since")
}

// describeError describes the error, in ingress-nginx's fields.
func (x *exchange) describeError(e *schema.Errors, status int) {
	for _, f := range []message.Field{
		{Name: []byte("X-Code"), Value: strconv.AppendInt(nil, int64(status), 10)},
		{Name: []byte("X-Format"), Value: x.r.Fields.Get("Accept")},
		{Name: []byte("X-Original-URI"), Value: x.opt.target},
		{Name: []byte("X-Namespace"), Value: []byte(e.Namespace)},
		{Name: []byte("X-Ingress-Name"), Value: []byte(e.Ingress)},
		{Name: []byte("X-Service-Name"), Value: []byte(e.Service)},
		{Name: []byte("X-Service-Port"), Value: []byte(e.Port)},
	} {
		x.takeOut(string(f.Name))
		x.more = withoutField(x.more, f.Name)
		if len(f.Value) > 0 {
			x.more = append(x.more, f)
		}
	}
}
