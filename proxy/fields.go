package proxy

import (
	"bytes"
	"net/http"
	"net/netip"
	"slices"
	"strconv"

	"wayleave.dev/proxy/message"
)

// Names of fields that tell endpoints of the client.
const (
	forwardedFor   = "X-Forwarded-For"
	forwardedProto = "X-Forwarded-Proto"
	forwardedHost  = "X-Forwarded-Host"
	forwardedPort  = "X-Forwarded-Port"
	realIP         = "X-Real-IP"
)

var (
	nameFor, nameProto, nameHost, namePort, nameReal = []byte(forwardedFor), []byte(forwardedProto), []byte(forwardedHost), []byte(forwardedPort), []byte(realIP)

	schemeHTTP, schemeHTTPS = []byte("http"), []byte("https")
)

// forwarded tells the endpoint who asks. What a client says of that itself is believed
// when the client is trusted, a load balancer in front of us, and thrown away otherwise.
func (x *exchange) forwarded() {
	x.more = x.more[:0]
	client := x.clientText()
	if x.trusted() {
		x.believe(client)
		return
	}
	f := &x.r.Fields
	kept := (*f)[:0]
	for _, h := range *f {
		if !isForwarded(h.Name) {
			kept = append(kept, h)
		}
	}
	*f = kept
	x.more = append(x.more, message.Field{Name: nameFor, Value: client}, message.Field{Name: nameReal, Value: client},
		message.Field{Name: nameHost, Value: x.r.Host}, message.Field{Name: nameProto, Value: x.scheme()}, message.Field{Name: namePort, Value: x.port()})
}

// believe keeps what a trusted client says, and adds itself to the list.
func (x *exchange) believe(client []byte) {
	f := x.r.Fields
	if !f.Has(realIP) {
		// Not the first of the list, which anybody may have made up.
		x.more = append(x.more, message.Field{Name: nameReal, Value: x.who().AppendTo(nil)})
	}
	if list := f.Get(forwardedFor); len(list) > 0 {
		x.r.Fields.Set(forwardedFor, slices.Concat(list, []byte(", "), client))
	} else {
		x.more = append(x.more, message.Field{Name: nameFor, Value: client})
	}
	for _, d := range []struct {
		name  string
		field []byte
		value []byte
	}{{forwardedHost, nameHost, x.r.Host}, {forwardedProto, nameProto, x.scheme()}, {forwardedPort, namePort, x.port()}} {
		if !f.Has(d.name) {
			x.more = append(x.more, message.Field{Name: d.field, Value: d.value})
		}
	}
}

// isForwarded says whether a field is one that only we may set. With underscores it is the
// same to endpoints that see fields as variables (CGI, WSGI).
func isForwarded(name []byte) bool {
	switch len(name) {
	case 9:
		return named(name, realIP) || message.EqualFold(name, "Forwarded")
	case 15:
		return named(name, forwardedFor)
	case 16:
		return named(name, forwardedHost) || named(name, forwardedPort)
	case 17:
		return named(name, forwardedProto)
	}
	return false
}

func named(name []byte, want string) bool {
	for i, c := range name {
		if w := want[i]; c|0x20 != w|0x20 && (c != '_' || w != '-') {
			return false
		}
	}
	return true
}

func (x *exchange) trusted() bool {
	return slices.ContainsFunc(x.p.current().Trusted, func(p netip.Prefix) bool { return p.Contains(x.r.Client.Addr()) })
}

// clientText is the client's address, made once for a client.
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

// port is the one that the client used, as its Host says it.
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

// trailers are those that go on: none that an endpoint could take for what we say of the client.
func trailers(list message.Fields) message.Fields {
	kept := list[:0]
	for _, f := range list {
		if !isForwarded(f.Name) {
			kept = append(kept, f)
		}
	}
	return kept
}

// date is the text of a second.
type date struct {
	second int64
	text   []byte
}

// dated adds the date to a response that has none (RFC 9110, 6.6.1).
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
