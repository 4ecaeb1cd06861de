package proxy

import (
	"net/http"
	"strings"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/table"
)

// unassert takes out what only an authentication server may say to the endpoints of a
// backend: the names that auth-response-headers of any path to it lists. Those of the
// request's own path are set, or were taken out, by passOn.
func (x *exchange) unassert(backend string) {
	x.opt.asserted = x.p.table.Load().Asserted(backend)
	for _, name := range x.opt.asserted {
		if !x.asks(name) {
			x.takeOut(name)
		}
	}
}

// unassertQuestion takes out of a question what the Service that is asked trusts the proxy to say, and
// what tells of a client's certificate where none was seen: the Service may be another tenant's.
func (x *exchange) unassertQuestion(h http.Header, backend string) {
	for _, name := range append(table.CertificateFields(), x.p.table.Load().Asserted(backend)...) {
		if !x.opt.certified || !table.AboutCertificate(name) {
			unassertAll(h, []string{name})
		}
	}
}

// asks says whether the server of the request's path, or the client's certificate, says the field.
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

// takeOut takes a field out by its name, and by what servers like CGI take for it, where
// "_" is "-".
func (x *exchange) takeOut(name string) {
	kept := x.r.Fields[:0]
	for _, f := range x.r.Fields {
		if !sameName(f.Name, name) {
			kept = append(kept, f)
		}
	}
	x.r.Fields = kept
}

// trailers are those that go on: none that an endpoint could take for what we, or an
// authentication server, say of the client.
func (x *exchange) trailers(list message.Fields) message.Fields {
	kept := list[:0]
	for _, f := range list {
		if x.mayTrail(f.Name) {
			kept = append(kept, f)
		}
	}
	return kept
}

// mayTrail says whether a client may send a field of the name behind its body.
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
