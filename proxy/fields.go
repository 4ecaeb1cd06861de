package proxy

import (
	"bytes"
	"net/http"
	"net/netip"
	"slices"
	"strconv"

	"wayleave.dev/proxy/message"
)

// Names of fields that describe the client to endpoints.
const (
	forwardedFor   = "X-Forwarded-For"
	forwardedProto = "X-Forwarded-Proto"
	forwardedHost  = "X-Forwarded-Host"
	forwardedPort  = "X-Forwarded-Port"
	realIP         = "X-Real-IP"
)

var nameForwarded = []byte("Forwarded")

var (
	nameFor, nameProto, nameHost, namePort, nameReal = []byte(forwardedFor), []byte(forwardedProto),
		[]byte(forwardedHost), []byte(forwardedPort), []byte(realIP)

	schemeHTTP, schemeHTTPS = []byte("http"), []byte("https")
)

// forwarded describes the client to the endpoint. What a client itself claims is used if it is trusted, such as a load
// balancer in front, and discarded otherwise.
func (x *exchange) forwarded() {
	x.more = x.more[:0]
	client := x.clientText()
	if x.trusted() {
		x.believe(client)
		return
	}
	f := &x.r.Fields
	kept := (*f)[:0]
	id := -1
	for _, h := range *f {
		switch claimOf(h.Name) {
		case aboutClient, aboutPath, disguised:
			continue
		case aboutRequest: // of several the last: it has one value
			if id >= 0 {
				kept[id].Value = h.Value
				continue
			}
			id = len(kept)
		}
		kept = append(kept, h)
	}
	*f = kept
	x.more = append(x.more, message.Field{Name: nameFor, Value: client}, message.Field{Name: nameReal, Value: client},
		message.Field{Name: nameHost, Value: x.r.Host}, message.Field{Name: nameProto, Value: x.scheme()},
		message.Field{Name: namePort, Value: x.port()})
}

// believe keeps the claims of a trusted client, and adds the client itself to the lists. A load balancer that adds
// lines adds them after those of its own client: of fields that are not lists, the last line counts. Fields that the
// balancer does not set may come from its client: X-Real-IP is therefore derived from X-Forwarded-For, and fields that
// lead an endpoint to another path are removed.
func (x *exchange) believe(client []byte) {
	real := x.who().AppendTo(nil)
	list, elements := x.lists()
	f := &x.r.Fields
	kept := (*f)[:0]
	for _, h := range *f {
		switch claimOf(h.Name) {
		case aboutPath, disguised:
			continue
		case aboutClient, aboutRequest:
			if isList(h.Name) || len(h.Value) == 0 || message.EqualFold(h.Name, realIP) ||
				message.EqualFold(h.Name, "X-Scheme") {
				continue
			}
			if i := slices.IndexFunc(kept, func(k message.Field) bool { return sameName(k.Name, h.Name) }); i >= 0 {
				kept[i].Value = h.Value
				continue
			}
		}
		kept = append(kept, h)
	}
	*f = kept
	x.more = append(x.more, message.Field{Name: nameReal, Value: real}, message.Field{Name: nameFor,
		Value: append(list, client...)})
	if len(list) == 0 && len(elements) > 0 {
		x.more = append(x.more, message.Field{Name: nameForwarded,
			Value: append(elements, element(x.r.Client.Addr())...)})
	}
	for _, d := range []struct {
		name  string
		field []byte
		value []byte
	}{{forwardedHost, nameHost, x.r.Host}, {forwardedProto, nameProto, x.scheme()},
		{forwardedPort, namePort, x.port()}} {
		if !f.Has(d.name) {
			x.more = append(x.more, message.Field{Name: d.field, Value: d.value})
		}
	}
}

// lists joins the lines of X-Forwarded-For, and those of Forwarded, with a comma at the end if there are any. A client
// that sends one of them is not assumed to know the other.
func (x *exchange) lists() (list, elements []byte) {
	for _, h := range x.r.Fields {
		if len(h.Value) == 0 || !isList(h.Name) {
			continue
		}
		to := &list
		if len(h.Name) == len("forwarded") {
			to = &elements
		}
		*to = append(append(*to, h.Value...), ", "...)
	}
	return list, elements
}

func isList(name []byte) bool {
	return message.EqualFold(name, forwardedFor) || message.EqualFold(name, "Forwarded")
}

// element returns one element of Forwarded (RFC 7239, 4).
func element(a netip.Addr) string {
	if a = plainAddr(a); a.Is6() {
		return `for="[` + a.String() + `]"`
	}
	return "for=" + a.String()
}

// claim is the kind of a field that only proxies may set.
type claim uint8

const (
	noClaim claim = iota
	// aboutClient describes the client and its scheme: X-Forwarded-…, Forwarded, X-Real-IP, X-Scheme.
	aboutClient
	// aboutPath names another path or method than that of the request: X-Original-URL, X-Rewrite-URL, X-Forwarded-URI.
	// Some frameworks use it as the request's.
	aboutPath
	// aboutRequest is X-Request-ID, which a client may set, once.
	aboutRequest
	// disguised is one of these, spelled so that only some endpoints recognize it: as variables, X_Forwarded_For is
	// X-Forwarded-For (CGI, WSGI).
	disguised
)

// claimOf classifies a field by its name.
func claimOf(name []byte) claim {
	if len(name) < 8 || name[0]|0x20 != 'x' && name[0]|0x20 != 'f' {
		return noClaim
	}
	c := noClaim
	switch {
	case len(name) == 9 && message.EqualFold(name, "Forwarded"):
		return aboutClient
	case isSeparator(name[1]):
		c = claimAfterX(name)
	}
	if c != noClaim && !dashed(name) {
		return disguised
	}
	return c
}

func claimAfterX(name []byte) claim {
	switch name[2] | 0x20 {
	case 'f':
		switch {
		case !begins(name, "x-forwarded"):
		case begins(name, "x-forwarded-uri"), begins(name, "x-forwarded-url"), begins(name, "x-forwarded-path"),
			begins(name, "x-forwarded-method"):
			return aboutPath
		default:
			return aboutClient
		}
	case 'o':
		switch {
		case !begins(name, "x-original-"):
		case sameName(name, "x-original-host"), sameName(name, "x-original-for"), sameName(name, "x-original-proto"):
			return aboutClient
		default:
			return aboutPath
		}
	case 'r':
		switch {
		case len(name) == len(realIP) && begins(name, "x-real-ip"):
			return aboutClient
		case begins(name, "x-rewrite-"):
			return aboutPath
		case len(name) == len("x-request-id") && begins(name, "x-request-id"):
			return aboutRequest
		}
	case 's':
		if len(name) == len("x-scheme") && begins(name, "x-scheme") {
			return aboutClient
		}
	}
	return noClaim
}

// isForwarded reports whether only proxies may set a field.
func isForwarded(name []byte) bool {
	c := claimOf(name)
	return c != noClaim && c != aboutRequest
}

// isSeparator reports whether a byte of a name becomes "_" where fields become variables.
func isSeparator(c byte) bool {
	return c != 0 && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z')
}

// dashed reports whether "-" is the only separator of the name.
func dashed(name []byte) bool {
	for _, c := range name {
		if c != '-' && isSeparator(c) {
			return false
		}
	}
	return true
}

// begins compares the start of a name, ignoring case and separators; prefix is in lower case.
func begins(name []byte, prefix string) bool {
	return len(name) >= len(prefix) && sameName(name[:len(prefix)], prefix)
}

// sameName reports whether two names are equal for endpoints that see fields as variables.
func sameName[N []byte | string](name []byte, other N) bool {
	if len(name) != len(other) {
		return false
	}
	for i, c := range name {
		if o := other[i]; c != o && (c|0x20 != o|0x20 || isSeparator(c) || isSeparator(o)) &&
			!(isSeparator(c) && isSeparator(o)) {
			return false
		}
	}
	return true
}

func (x *exchange) trusted() bool {
	return slices.ContainsFunc(x.p.current().Trusted,
		func(p netip.Prefix) bool { return p.Contains(x.r.Client.Addr()) })
}

// clientText returns the client's address as text, formatted once.
func (x *exchange) clientText() []byte {
	if a := x.r.Client.Addr(); a != x.whose {
		x.whose = a
		x.client = a.AppendTo(x.client[:0])
	}
	return x.client
}

func (x *exchange) scheme() []byte {
	if x.r.TLS {
		return schemeHTTPS
	}
	return schemeHTTP
}

var port80, port443 = []byte("80"), []byte("443")

// port returns the one that the client used, according to its Host.
func (x *exchange) port() []byte {
	h := x.r.Host
	if i := bytes.LastIndexByte(h, ':'); i >= 0 && bytes.IndexByte(h[i:], ']') < 0 {
		if n, err := strconv.ParseUint(string(h[i+1:]), 10, 16); err == nil && n > 0 {
			return h[i+1:]
		}
	}
	if x.r.TLS {
		return port443
	}
	return port80
}

// final adds the proxy's fields to every final response.
func (x *exchange) final(f *message.Fields) {
	x.dated(f)
	x.named(f)
}

// named sets the field Server as configured: the endpoint's, none, or another value.
func (x *exchange) named(f *message.Fields) {
	s := x.p.settings.Load()
	switch {
	case s == nil:
	case s.HideServer:
		f.Del("Server")
	case len(s.Server) > 0:
		f.Set("Server", s.Server)
	}
}

// date is the text of a second.
type date struct {
	second int64
	text   []byte
}

// dated adds the date to a response without one (RFC 9110, 6.6.1).
func (x *exchange) dated(f *message.Fields) {
	if f.Has("Date") {
		return
	}
	d, now := x.p.date.Load(), x.start.Unix()
	if d == nil || d.second != now {
		d = &date{now, x.start.UTC().AppendFormat(nil, http.TimeFormat)}
		x.p.date.Store(d)
	}
	*f = append(*f, message.Field{Name: nameDate, Value: d.text})
}

var nameDate = []byte("Date")
