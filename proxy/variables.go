package proxy

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/table"
)

// escape is how the values of variables are written.
type escape uint8

const (
	// asItIs is for text that stays in the proxy, such as keys.
	asItIs escape = iota
	// forPath is for a request's target and for URLs: bytes that could end a line or begin a query or a fragment, and
	// bytes that are not ASCII, become %XX. Variables that were sent as part of a target are escaped already.
	forPath
	// forField is for values of header fields: control characters become %XX.
	forField
)

// expand appends a template with the values of this request.
func (x *exchange) expand(to []byte, t table.Template, how escape) []byte {
	inQuery := false
	for _, p := range t {
		if p.Kind == table.Text {
			to = append(to, p.Name...)
			inQuery = inQuery || bytes.IndexByte([]byte(p.Name), '?') >= 0
			continue
		}
		v := x.variable(p)
		inQuery = inQuery || p.Kind == table.IsArgs && len(v) > 0
		switch {
		case how == asItIs:
			to = append(to, v...)
		case p.Kind == table.EscapedRequestURI:
			to = appendEscaped(to, v, &inValue)
		case how == forField:
			to = appendEscaped(to, v, &inField)
		case p.Kind == table.Group || p.Kind == table.URI: // decoded bytes of a path
			set := &inPath
			if inQuery {
				set = &inValue
			}
			to = appendEscaped(to, v, set)
		default: // as sent, with their own escapes
			to = appendEscaped(to, v, &inURL)
		}
	}
	return to
}

// variable returns the value of a variable for this request; nil if it has none.
func (x *exchange) variable(p table.Part) []byte {
	switch p.Kind {
	case table.Group:
		if p.Group < len(x.match.Groups) {
			return x.match.Groups[p.Group]
		}
	case table.RequestURI, table.EscapedRequestURI:
		return x.opt.target
	case table.URI:
		return x.opt.path
	case table.HostName:
		return x.hostName()
	case table.HTTPHost:
		return x.r.Host
	case table.Scheme:
		if x.secure() {
			return schemeHTTPS
		}
		return schemeHTTP
	case table.RemoteAddr:
		return x.who().AppendTo(nil)
	case table.Args:
		return query(x.opt.target)
	case table.Method:
		return x.r.Method
	case table.HeaderField:
		if p.Name == "host" {
			return x.r.Host
		}
		return x.r.Fields.Get(p.Name)
	case table.CookieValue:
		return cookie(x.r.Fields, p.Name)
	case table.Argument:
		return argument(query(x.opt.target), p.Name)
	case table.IsArgs:
		if len(query(x.opt.target)) > 0 {
			return []byte("?")
		}
	case table.RequestLine:
		return fmt.Appendf(nil, "%s %s %s", x.r.Method, x.opt.target, x.r.Version)
	case table.ContentLength:
		if x.r.Length > 0 {
			return strconv.AppendInt(nil, x.r.Length, 10)
		}
	default:
		if p.Kind >= table.Namespace {
			return x.ofPath(p.Kind)
		}
		return x.peers(p.Kind)
	}
	return nil
}

// peers are variables of the connection and of its two ends.
func (x *exchange) peers(k table.VariableKind) []byte {
	switch k {
	case table.BinaryRemoteAddr:
		return x.who().AsSlice()
	case table.ConnectedAddr:
		return plainAddr(x.r.Client.Addr()).AppendTo(nil)
	case table.RemotePort:
		if x.who() != plainAddr(x.r.Client.Addr()) {
			return []byte("0") // unknown
		}
		return strconv.AppendUint(nil, uint64(x.r.Client.Port()), 10)
	case table.RemoteUser:
		if o := x.match.Path.Options; o != nil && o.AnyOf && o.Auth != nil && !x.opt.signed {
			return nil // the client was admitted without its password
		}
		field := x.opt.authorization
		if field == nil {
			field = x.r.Fields.Get("Authorization")
		}
		name, _, _ := credentials(field)
		return name
	case table.ServerName:
		if h := x.match.Host; h != nil && h.Name != "" {
			return []byte(h.Name)
		}
		return []byte("_")
	case table.ServerAddr:
		return plainAddr(x.r.Local.Addr()).AppendTo(nil)
	case table.ServerPort:
		return x.port()
	case table.ServerProtocol:
		return []byte(x.r.Version.String())
	case table.HTTPSOn:
		if x.secure() {
			return []byte("on")
		}
	case table.RequestID:
		return x.requestID()
	case table.KnownRequestID:
		if id := x.r.Fields.Get("X-Request-ID"); len(id) > 0 {
			return id
		}
		return x.requestID()
	case table.Milliseconds, table.TimeISO8601, table.TimeLocal:
		return clock(k, time.Now())
	}
	return nil
}

// clock are variables of the time.
func clock(k table.VariableKind, now time.Time) []byte {
	switch k {
	case table.TimeISO8601:
		return now.AppendFormat(nil, "2006-01-02T15:04:05-07:00")
	case table.TimeLocal:
		return now.AppendFormat(nil, "02/Jan/2006:15:04:05 -0700")
	}
	return fmt.Appendf(nil, "%d.%03d", now.Unix(), now.Nanosecond()/1e6)
}

// ofPath are variables of the object of the path.
func (x *exchange) ofPath(k table.VariableKind) []byte {
	p := x.match.Path
	if p == nil {
		return nil
	}
	if k == table.LocationPath {
		return []byte(p.Path)
	}
	if k == table.Namespace || k == table.IngressName {
		namespace, name := p.Ingress()
		if k == table.Namespace {
			return []byte(namespace)
		}
		return []byte(name)
	}
	namespace, rest, _ := strings.Cut(p.Backend, "/")
	service, port, _ := strings.Cut(rest, ":")
	port, _, _ = strings.Cut(port, "/") // of a virtual address
	switch k {
	case table.ServiceName:
		return []byte(service)
	case table.ServicePort:
		return []byte(port)
	case table.UpstreamName:
		return []byte(namespace + "-" + service + "-" + port)
	}
	return nil
}

// requestID returns 128 random bits, the same ones throughout the exchange.
func (x *exchange) requestID() []byte {
	if x.opt.id == nil {
		x.opt.id = fmt.Appendf(nil, "%016x%016x", rand.Uint64(), rand.Uint64())
	}
	return x.opt.id
}

// hostName returns the name that the client requested, without port. For HTTP/1.0, which may have none, it is that of
// the routes, or the address that the client connected to.
func (x *exchange) hostName() []byte {
	if n := table.Name(x.r.Host, nil); len(n) > 0 {
		return n
	}
	if h := x.match.Host; h != nil && h.Name != "" && h.Name[0] != '*' {
		return []byte(h.Name)
	}
	a := x.r.Local.Addr().Unmap()
	if a.Is6() {
		return append(a.WithZone("").AppendTo([]byte("[")), ']')
	}
	return a.AppendTo(nil)
}

func query(target []byte) []byte {
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		return target[i+1:]
	}
	return nil
}

// cookie returns the value of the first cookie of a name (RFC 6265, 4.2); nil if there is none. Names are
// case-sensitive. HTTP/2 may split the field.
func cookie(f message.Fields, name string) []byte {
	for i := range f {
		if len(f[i].Name) != len("cookie") || !message.EqualFold(f[i].Name, "cookie") {
			continue
		}
		for rest := f[i].Value; len(rest) > 0; {
			var one []byte
			one, rest, _ = bytes.Cut(rest, []byte(";"))
			n, v, ok := bytes.Cut(bytes.TrimSpace(one), []byte("="))
			if !ok || string(bytes.TrimRight(n, " \t")) != name {
				continue
			}
			if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
				v = v[1 : len(v)-1]
			}
			return v
		}
	}
	return nil
}

// argument returns the value of the first argument of a name, as sent.
func argument(query []byte, name string) []byte {
	for len(query) > 0 {
		var one []byte
		one, query, _ = bytes.Cut(query, []byte("&"))
		if n, v, _ := bytes.Cut(one, []byte("=")); message.EqualFold(n, name) {
			return v
		}
	}
	return nil
}

// The bytes that need no escape in a path, in the value of an argument, and in a URL that is escaped already (RFC
// 3986).
var (
	inPath  = bytesOf("!$&'()*+,;=:@/-._~")
	inValue = bytesOf("-._~")
	inURL   = bytesOf("!$&'()*+,;=:@/-._~?%[]")
	inField = printable()
)

func printable() (t [256]bool) {
	for c := range t {
		t[c] = c >= ' ' && c != 0x7f
	}
	return t
}

func bytesOf(marks string) (t [256]bool) {
	for c := '0'; c <= 'z'; c++ {
		t[c] = c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c
	}
	for i := range len(marks) {
		t[marks[i]] = true
	}
	return t
}

func appendEscaped(to, v []byte, stays *[256]bool) []byte {
	const digits = "0123456789ABCDEF"
	for _, c := range v {
		if stays[c] {
			to = append(to, c)
			continue
		}
		to = append(to, '%', digits[c>>4], digits[c&15])
	}
	return to
}
