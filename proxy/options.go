package proxy

import (
	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

// options does what a path asks for before its request is sent on. It says whether that
// answered the request.
func (x *exchange) options(o *table.Options) (answered bool) {
	if o.RedirectTLS != 0 && !x.r.TLS {
		host := table.Name(x.r.Host, nil)
		x.reply(o.RedirectTLS, message.Fields{{Name: []byte("Location"), Value: append(append([]byte("https://"), host...), x.r.Target...)}})
		return true
	}
	if o.MaxBody > 0 && x.r.Length > o.MaxBody { // of Unknown, sendBody counts
		x.fail(413, errTooLarge)
		return true
	}
	return false
}

// choose draws the endpoint for a try, by what the path asks for.
func (x *exchange) choose(b *upstream.Backend, o *table.Options) *upstream.Endpoint {
	how := upstream.RandomTwo
	if o.Balance == "round_robin" {
		how = upstream.RoundRobin
	}
	return b.Pick(how, x.tried)
}

// respond changes the head of an endpoint's response before the client gets it.
func (x *exchange) respond(r *message.Response) { r.Fields = append(r.Fields, x.answer...) }
