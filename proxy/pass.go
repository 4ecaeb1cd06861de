package proxy

import (
	"context"
	"net"

	"wayleave.dev/proxy/upstream"
)

// Pass connects a client's connection to an endpoint of a backend unchanged, until both ends have ended. If no endpoint
// answers, the connection is closed. ctx ends the search for one.
func (p *Proxy) Pass(ctx context.Context, client net.Conn, backend string) {
	defer client.Close()
	b := p.Upstreams.Lookup(backend)
	if b == nil {
		return
	}
	var tried []*upstream.Endpoint
	for now := p.current(); len(tried) < now.Tries; {
		e := b.Pick(upstream.RandomTwo, tried)
		if e == nil {
			return
		}
		e.Begin()
		dialing, cancel := context.WithTimeout(ctx, now.Timeouts.Connect)
		server, err := e.DialFor(dialing, upstream.Origin{}, false)
		cancel()
		if err != nil {
			e.End()
			e.Failed()
			tried = append(tried, e)
			continue
		}
		e.Worked()
		tunnel(p.track(), client, server)
		e.End()
		return
	}
}
