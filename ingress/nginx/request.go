package nginx

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/dlclark/regexp2"

	"wayleave.dev/model"
)

// Request is a client's request.
type Request struct {
	Method string
	// Host is as sent; Target is path and query.
	Host, Target string
	TLS          bool
	Header       http.Header
}

// Answer is the result of a request.
type Answer struct {
	// Status and Location describe a response by nginx itself; 0 if a backend gets the request.
	Status   int
	Location string
	// Backends may get the request: the location's own, and canaries by weight.
	Backends []string
	// Target is the target of the request to the backend.
	Target string
	Guards []string
	// Ingress is that of the location; Path is its text, Type its type.
	Ingress model.Name
	Path    string
	Type    model.PathType
	// Backend is that of the location, whether it gets the request or not.
	Backend string
	// Root says that the request matches no path of an Ingress: the root of the server responds, with the annotations
	// of the first Ingress. Added says that the response is a redirect to the same path with a slash.
	Root, Added bool
	// Opaque says that Location or Target contains a variable that the model does not know.
	Opaque bool
}

// challenge is the default of no-tls-redirect-locations.
const challenge = "/.well-known/acme-challenge"

// Answer returns the result of a request.
func (c *Config) Answer(r Request) Answer {
	raw, args, hasArgs := strings.Cut(r.Target, "?")
	uri, ok := normalize(raw)
	if !ok {
		return Answer{Status: 400}
	}
	x := &exchange{Request: r, host: hostName(r.Host), uri: uri, args: args, hasArgs: hasArgs}
	s := c.Lookup(x.host)
	x.server = s
	if len(s.AppRoots) > 0 && uri == "/" {
		return Answer{Status: 302, Location: x.scheme() + "://" + r.Host + s.AppRoots[0]}
	}
	l, groups, added := s.find(uri)
	if l == nil {
		return Answer{Status: 404}
	}
	a := Answer{Path: l.Path, Backend: l.Backend, Type: l.Type, Root: l.root, Added: added, Guards: l.rules.guards}
	if l.Ingress != nil {
		a.Ingress = l.Ingress.Name
	}
	if added {
		a.Status, a.Location = 301, x.scheme()+"://"+r.Host+uri+"/"+x.query()
		return a
	}
	x.groups = groups
	x.serve(l, &a)
	return a
}

// exchange is one request on its way through a location.
type exchange struct {
	Request
	server    *Server
	host      string
	uri, args string
	hasArgs   bool
	groups    []string
	opaque    bool
}

func (x *exchange) query() string {
	if x.hasArgs {
		return "?" + x.args
	}
	return ""
}

func (x *exchange) scheme() string {
	if x.TLS {
		return "https"
	}
	return "http"
}

// serve applies the location in the order of nginx's phases: return and rewrite, the redirect to https, and the
// backend.
func (x *exchange) serve(l *Location, a *Answer) {
	defer func() { a.Opaque = x.opaque }()
	target := x.Target
	if l.rules.redirect != "" {
		a.Status, a.Location = l.rules.code, x.expand(l.rules.redirect, true)
		return
	}
	if l.rewrites() {
		away := isURL(l.rules.target)
		to := x.expand(l.rules.target, away)
		head, own, has := strings.Cut(to, "?")
		args := x.args
		switch {
		case has && own == "":
			args = ""
		case has && args != "":
			args = own + "&" + args
		case has:
			args = own
		}
		if args != "" {
			args = "?" + args
		}
		if away {
			a.Status, a.Location = 302, head+args
			return
		}
		target = escape(head) + args
	}
	tls := x.server.TLS && !l.rules.noTLS || l.rules.forceTLS
	if tls && !x.TLS && !strings.HasPrefix(l.Path, challenge) {
		name, _, _ := strings.Cut(x.Host, ":")
		a.Status, a.Location = 308, "https://"+name+strings.TrimSuffix(x.Target, "/")
		return
	}
	if l.Backend == "" {
		a.Status = 404 // the default backend
		return
	}
	a.Target, a.Backends = target, x.draw(l)
}

// draw returns the backends that may get the request.
func (x *exchange) draw(l *Location) []string {
	if len(l.Canaries) == 0 {
		return []string{l.Backend}
	}
	c := l.Canaries[0]
	if v := x.Header.Get(c.rules.header); c.rules.header != "" && v != "" {
		switch {
		case c.rules.value != "":
			if v == c.rules.value {
				return []string{c.Backend}
			}
		case c.rules.pattern != "":
			if ok := matches(c.rules.pattern, v); ok {
				return []string{c.Backend}
			}
		case v == "always":
			return []string{c.Backend}
		case v == "never":
			return []string{l.Backend}
		}
	}
	if c.rules.cookie != "" {
		r := http.Request{Header: x.Header}
		if k, err := r.Cookie(c.rules.cookie); err == nil && k.Value == "always" {
			return []string{c.Backend}
		} else if err == nil && k.Value == "never" {
			return []string{l.Backend}
		}
	}
	switch {
	case c.rules.weight >= 100:
		return []string{c.Backend}
	case c.rules.weight > 0:
		return []string{l.Backend, c.Backend}
	}
	return []string{l.Backend}
}

// find returns the location for a URI, with the groups of its expression. added says that nginx redirects the client
// to the same URI with a slash.
func (s *Server) find(uri string) (found *Location, groups []string, added bool) {
	if s.Regex {
		for _, l := range s.Locations {
			if l.re == nil {
				continue // nginx would not start
			}
			if m, err := l.re.FindStringMatch(uri); err == nil && m != nil {
				for _, g := range m.Groups() {
					groups = append(groups, g.String())
				}
				return l, groups, false
			}
		}
		return nil, nil, false
	}
	for _, l := range s.Locations {
		switch {
		case l.Type == model.PathExact:
			if l.Path == uri {
				return l, nil, false
			}
		case strings.HasPrefix(uri, l.Path):
			if found == nil || len(l.Path) > len(found.Path) {
				found, added = l, false
			}
		}
	}
	for _, l := range s.Locations {
		if l.Path == uri+"/" && (found == nil || len(l.Path) > len(found.Path)) {
			return l, nil, true
		}
	}
	return found, nil, false
}

// matches reports whether an expression matches a value.
func matches(pattern, value string) bool {
	re, err := compile(pattern, false)
	if err != nil {
		return false
	}
	ok, err := re.MatchString(value)
	return err == nil && ok
}

// matchWithin bounds one comparison: PCRE expressions may take very long.
const matchWithin = 100 * time.Millisecond

// compile compiles a PCRE expression.
func compile(s string, fold bool) (*regexp2.Regexp, error) {
	options := regexp2.None
	if fold {
		options = regexp2.IgnoreCase
	}
	re, err := regexp2.Compile(s, options)
	if err == nil {
		re.MatchTimeout = matchWithin
	}
	return re, err
}

func isURL(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "$scheme")
}

// expand replaces variables by their values. Groups of a redirect are escaped.
func (x *exchange) expand(s string, away bool) string {
	var b strings.Builder
	for s != "" {
		at := strings.IndexByte(s, '$')
		if at < 0 {
			b.WriteString(s)
			break
		}
		b.WriteString(s[:at])
		name := s[at+1:]
		n := 0
		for n < len(name) && (name[n] == '_' || 'a' <= name[n]|0x20 && name[n]|0x20 <= 'z' || '0' <= name[n] &&
			name[n] <= '9') {
			if n++; n == 1 && '1' <= name[0] && name[0] <= '9' {
				break
			}
		}
		s = name[n:]
		name = name[:n]
		if n == 1 && '1' <= name[0] && name[0] <= '9' {
			if g := int(name[0] - '0'); g < len(x.groups) {
				if v := x.groups[g]; away {
					b.WriteString(escape(v))
				} else {
					b.WriteString(v)
				}
			}
			continue
		}
		b.WriteString(x.variable(strings.ToLower(name)))
	}
	return b.String()
}

func (x *exchange) variable(name string) string {
	switch name {
	case "scheme", "pass_access_scheme":
		return x.scheme()
	case "host":
		return x.host
	case "http_host", "best_http_host":
		return x.Host
	case "request_uri":
		return x.Target
	case "uri", "document_uri":
		return x.uri
	case "args", "query_string":
		return x.args
	case "is_args":
		if x.args != "" {
			return "?"
		}
		return ""
	case "request_method":
		return x.Method
	}
	x.opaque = true
	return ""
}

// hostName returns the name in lower case, without port and final dot.
func hostName(s string) string {
	s = strings.ToLower(s)
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		s = s[:i]
	}
	return strings.TrimSuffix(s, ".")
}

// normalize returns the URI that nginx compares: decoded, with dot segments resolved and slashes merged.
func normalize(raw string) (string, bool) {
	plain, err := url.PathUnescape(raw)
	if err != nil || !strings.HasPrefix(plain, "/") || strings.ContainsRune(plain, 0) {
		return "", false
	}
	parts := strings.Split(plain, "/")[1:]
	var out []string
	for i, p := range parts {
		last := i == len(parts)-1
		switch {
		case p == "..":
			if len(out) == 0 {
				return "", false
			}
			out = out[:len(out)-1]
		case p == "." || p == "" && !last:
		default:
			if !last || p != "" {
				out = append(out, p)
			}
		}
	}
	uri := "/" + strings.Join(out, "/")
	if end := parts[len(parts)-1]; (end == "" || end == "." || end == "..") && uri != "/" {
		uri += "/"
	}
	return uri, true
}

// escape escapes a URI for a request line (ngx_escape_uri).
func escape(uri string) string {
	var b bytes.Buffer
	for _, c := range []byte(uri) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"#%<>?\^`+"`{|}", c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// Allows reports whether a backend is one of those that may get the request.
func (a *Answer) Allows(backend string) bool { return slices.Contains(a.Backends, backend) }
