package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// asking marks subrequests to an authentication server, so that a server behind its own path causes no endless loop.
const (
	sentFrom = "X-Sent-From"
	// authRedirect is the URL to which a client returns after signing in.
	authRedirect = "X-Auth-Request-Redirect"
	asking       = "wayleave-ingress"
)

var errAsksItself = errors.New("the authentication server of the path is behind the path")

// ask sends a subrequest to the path's authentication server: the request's head, without its body. 2xx permits the
// request, 401 and 403 are the response, and any other status is an error.
func (x *exchange) ask(a *schema.AuthURL, ready *table.Ready) (answered bool) {
	if string(x.r.Fields.Get(sentFrom)) == asking {
		x.fail(500, errAsksItself)
		return true
	}
	v, err := x.verdictOf(a, ready)
	if err != nil {
		x.fail(500, fmt.Errorf("authentication server: %w", err))
		return true
	}
	for _, c := range v.cookies {
		x.opt.cookies = append(x.opt.cookies, message.Field{Name: setCookie, Value: []byte(c)})
	}
	switch {
	case v.status >= 200 && v.status < 300:
		x.passOn(a.Headers, v.fields)
		return false
	case v.status == 401 && len(ready.SignIn) > 0:
		x.reply(302, message.Fields{{Name: location, Value: x.signIn(ready.SignIn, a.Param)}})
	case v.status == 401:
		var more message.Fields
		for _, c := range v.challenges {
			more.Add("WWW-Authenticate", []byte(c))
		}
		x.reply(401, more)
	case v.status == 403:
		x.reply(403, nil)
	default:
		x.fail(500, fmt.Errorf("authentication server: status %d", v.status))
	}
	return true
}

// passOn forwards fields of the server's answer to the endpoint. A field that the server did not send is removed: the
// client must not set it.
func (x *exchange) passOn(names []string, from http.Header) {
	for _, name := range names {
		if frames(name) {
			continue
		}
		x.takeOut(name)
		for _, v := range from.Values(name) {
			if clean(v) {
				x.r.Fields.Add(name, []byte(v))
			}
		}
	}
}

// frames reports whether a field frames the message, so that it must not be set.
func frames(name string) bool {
	switch strings.ToLower(name) {
	case "", "connection", "content-length", "host", "keep-alive", "proxy-connection", "te", "trailer",
		"transfer-encoding", "upgrade", "expect":
		return true
	}
	return strings.ContainsAny(name, " \t\r\n:\x00")
}

// clean reports whether a value contains no control characters.
func clean(v string) bool {
	for i := range len(v) {
		if c := v[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// signIn returns the URL where the client signs in, with the URL that it requested.
func (x *exchange) signIn(t table.Template, param string) []byte {
	if param == "" {
		param = "rd"
	}
	to := x.expand(nil, t, forPath)
	_, args, has := bytes.Cut(to, []byte("?"))
	if argument(args, param) != nil {
		return to
	}
	mark := byte('?')
	if has {
		mark = '&'
	}
	to = append(append(append(to, mark), param...), '=')
	return appendEscaped(to, x.whole(), &inValue)
}

// whole returns the URL that the client requested.
func (x *exchange) whole() []byte {
	scheme := "http"
	if x.secure() {
		scheme = "https"
	}
	host := x.r.Host
	if len(host) == 0 {
		host = x.hostName()
	}
	return append(append([]byte(scheme+"://"), host...), x.opt.target...)
}

// question sends the subrequest and reads the head of the answer.
func (x *exchange) question(a *schema.AuthURL, ready *table.Ready) (*http.Response, error) {
	u, err := x.askURL(ready.Ask)
	if err != nil {
		return nil, err
	}
	t := x.times()
	ctx, cancel := context.WithTimeout(x.ctx, t.Connect+t.Read)
	defer cancel()
	method := a.Method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	x.describe(req.Header)
	x.unassertQuestion(req.Header, a.Backend)
	x.tell(req.Header, ready)
	questions, _ := x.p.askers()
	by := questions.byName
	if a.Backend != "" {
		b := x.p.Upstreams.Lookup(a.Backend)
		if b == nil {
			return nil, fmt.Errorf("backend %q does not exist", a.Backend)
		}
		if req, err = toEndpoint(req, b); err != nil {
			return nil, err
		}
		by = questions.byEndpoint
	}
	resp, err := by.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	// A short rest is read, so that the connection can be reused.
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	return resp, resp.Body.Close()
}

// askURL returns the URL of the server. If a path serves all hosts, the client's Host must not select the server that
// authenticates it.
func (x *exchange) askURL(t table.Template) (*url.URL, error) {
	if t.Has(table.HostName, table.HTTPHost) && x.match.Host.Name == "" {
		return nil, errors.New("the URL depends on the host, and the path is one of all hosts")
	}
	u, err := url.Parse(string(x.expand(nil, t, forPath)))
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("%q is not a URL of http or https", u.Redacted())
	}
	u.Fragment = ""
	return u, nil
}

// tell adds the fields that the path configures.
func (x *exchange) tell(h http.Header, ready *table.Ready) {
	if len(ready.Extras.Target) > 0 {
		h[http.CanonicalHeaderKey(authRedirect)] = []string{string(x.expand(nil, ready.Extras.Target, forField))}
	}
	for _, f := range ready.Extras.Ask {
		if v := x.expand(nil, f.Value, forField); len(v) > 0 {
			h.Set(string(f.Name), string(v))
		} else {
			h.Del(string(f.Name))
		}
	}
}

// describe adds the description of the request: its own fields, including cookies and Authorization, and fields of the
// proxy.
func (x *exchange) describe(h http.Header) {
	for _, f := range x.r.Fields {
		if name := string(f.Name); !isForwarded(f.Name) && !frames(name) && !sameName(f.Name, "accept-encoding") &&
			!sameName(f.Name, sentFrom) && !sameName(f.Name, authRedirect) {
			h.Add(name, string(f.Value))
		}
	}
	if h["User-Agent"] == nil {
		h["User-Agent"] = nil // otherwise Go sets its own
	}
	who := x.who().String()
	scheme := "http"
	if x.secure() {
		scheme = "https"
	}
	for _, f := range [][2]string{
		{"X-Original-Url", string(x.whole())}, {"X-Original-Uri", string(x.opt.target)},
		{"X-Original-Method", string(x.r.Method)},
		{authRedirect, string(x.opt.target)}, {sentFrom, asking}, {realIP, who},
		{forwardedFor, who}, {forwardedProto, scheme}, {forwardedHost, string(x.r.Host)},
		{forwardedPort, string(x.port())}, {"X-Forwarded-Uri", string(x.opt.target)},
		{"X-Forwarded-Method", string(x.r.Method)}, {"X-Scheme", scheme},
	} {
		h[http.CanonicalHeaderKey(f[0])] = []string{f[1]}
	}
}
