package proxy

import (
	"strconv"
	"time"

	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

var setCookie = []byte("Set-Cookie")

// kept is the endpoint that the client has by its cookie; nil when it has none, or one that
// has gone or drains. While its endpoint only fails, the cookie stays and leads to another,
// the same for every request of the client.
func (x *exchange) kept(b *upstream.Backend, a *table.Affinity) *upstream.Endpoint {
	token := cookie(x.r.Fields, affinityName(a))
	if len(token) == 0 {
		return nil
	}
	e := b.Named(token)
	if e == nil || e.Fit(x.tried) {
		return e
	}
	return b.Hash(token, x.tried)
}

func affinityName(a *table.Affinity) string {
	if a.Name == "" {
		return "INGRESSCOOKIE"
	}
	return a.Name
}

// affinityCookie names the endpoint that answers.
func (x *exchange) affinityCookie(a *table.Affinity) []byte {
	v := append(append([]byte(affinityName(a)), '='), x.last.Token()...)
	if a.MaxAge > 0 {
		v = append(v, "; Expires="...)
		v = time.Now().Add(a.MaxAge).UTC().AppendFormat(v, "Mon, 02 Jan 2006 15:04:05 GMT")
		v = append(v, "; Max-Age="...)
		v = strconv.AppendInt(v, int64(a.MaxAge/time.Second), 10)
	}
	path := a.Path
	if path == "" {
		if path = x.match.Path.Path; path == "" || x.match.Path.Options.PathPattern != "" {
			path = "/" // a pattern is no path that a browser could compare
		}
	}
	v = append(append(v, "; Path="...), path...)
	if a.Secure || x.secure() {
		v = append(v, "; Secure"...)
	}
	v = append(v, "; HttpOnly"...)
	if a.SameSite != "" {
		v = append(append(v, "; SameSite="...), a.SameSite...)
	}
	return v
}
