package proxy

import (
	"net/http"
	"strings"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/table"
)

// unassert removes fields that only an authentication server may set for the endpoints of a backend: those that
// auth-response-headers of any path to it lists. passOn has set or removed those of the request's own path.
func (x *exchange) unassert(backend string) {
	x.opt.asserted = x.p.table.Load().Asserted(backend)
	for _, name := range x.opt.asserted {
		if !x.asks(name) {
			x.takeOut(name)
		}
	}
}

// unassertQuestion removes from a subrequest the fields that the authentication server's Service trusts the proxy to
// set, and those about a client certificate if there was none: the Service may be another tenant's.
func (x *exchange) unassertQuestion(h http.Header, backend string) {
	for _, name := range append(table.CertificateFields(), x.p.table.Load().Asserted(backend)...) {
		if !x.opt.certified || !table.AboutCertificate(name) {
			unassertAll(h, []string{name})
		}
	}
}

// asks reports whether the server of the request's path, or the client's certificate, sets the field.
func (x *exchange) asks(name string) bool {
	if x.opt.certified && strings.HasPrefix(name, "ssl-client-") {
		return true
	}
	o := x.match.Path.Options
	if o == nil || o.AuthURL == nil {
		return false
	}
	for _, own := range o.AuthURL.Headers {
		if strings.EqualFold(own, name) {
			return true
		}
	}
	return false
}

// takeOut removes a field by its name, and by spellings that servers such as CGI treat alike, in which "_" is "-".
func (x *exchange) takeOut(name string) {
	kept := x.r.Fields[:0]
	for _, f := range x.r.Fields {
		if !sameName(f.Name, name) {
			kept = append(kept, f)
		}
	}
	x.r.Fields = kept
}

// trailers returns those that are forwarded: none that an endpoint could take for statements of the proxy, or an
// authentication server, about the client.
func (x *exchange) trailers(list message.Fields) message.Fields {
	kept := list[:0]
	for _, f := range list {
		if x.mayTrail(f.Name) {
			kept = append(kept, f)
		}
	}
	return kept
}

// mayTrail reports whether a client may send a field of the name as a trailer.
func (x *exchange) mayTrail(name []byte) bool {
	if isForwarded(name) {
		return false
	}
	for _, own := range x.opt.asserted {
		if sameName(name, own) {
			return false
		}
	}
	if o := x.match.Path.Options; o != nil && o.AuthURL != nil {
		for _, own := range o.AuthURL.Headers {
			if sameName(name, own) {
				return false
			}
		}
	}
	return true
}
