package proxy

import (
	"strconv"
	"strings"
	"time"

	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/upstream"
)

var setCookie = []byte("Set-Cookie")

// kept returns the endpoint of the client's cookie; nil if it has none, or one that is gone or draining. While its
// endpoint only fails, the cookie stays and leads to another endpoint, the same one for every request of the client.
// moved means that the client moves to that one permanently.
func (x *exchange) kept(b *upstream.Backend, a *schema.Affinity) (e *upstream.Endpoint, moved bool) {
	token := cookie(x.r.Fields, affinityName(a))
	if len(token) == 0 {
		return nil, false
	}
	e = b.Named(token)
	if e == nil || e.Fit(x.tried) {
		return e, false
	}
	return b.Hash(token, x.tried), a.Moves
}

func affinityName(a *schema.Affinity) string {
	if a.Name == "" {
		return "INGRESSCOOKIE"
	}
	return a.Name
}

// affinityCookie identifies the endpoint that answers.
func (x *exchange) affinityCookie(a *schema.Affinity) []byte {
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
			path = "/" // a browser cannot compare a pattern
		}
	}
	v = append(append(v, "; Path="...), path...)
	if a.Domain != "" {
		v = append(append(v, "; Domain="...), a.Domain...)
	}
	if a.Secure || x.secure() {
		v = append(v, "; Secure"...)
	}
	v = append(v, "; HttpOnly"...)
	if a.SameSite != "" && !(a.Conditional && a.SameSite == "None" &&
		refusesSameSiteNone(string(x.r.Fields.Get("User-Agent")))) {
		v = append(append(v, "; SameSite="...), a.SameSite...)
	}
	if a.Partitioned {
		v = append(v, "; Partitioned"...)
	}
	return v
}

// refusesSameSiteNone reports whether a browser refuses a cookie with SameSite=None, or treats it as Strict: Chrome 50
// to 69, and Safari and web views of iOS 12 and macOS 10.14.
func refusesSameSiteNone(agent string) bool {
	switch {
	case strings.Contains(agent, "Chrome/5"), strings.Contains(agent, "Chrome/6"):
		return true
	case strings.Contains(agent, "OS 12_") && strings.Contains(agent, "like Mac OS X"):
		return true
	}
	return strings.Contains(agent, "Macintosh; Intel Mac OS X 10_14") && !strings.Contains(agent, "Chrome/") &&
		(strings.Contains(agent, "Version/") && strings.Contains(agent, "Safari") ||
			strings.HasSuffix(agent, "(KHTML, like Gecko)"))
}
