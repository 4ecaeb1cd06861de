package proxy

import (
	"net/netip"
	"time"

	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

// origin is the client as the endpoint of a path is told by the PROXY protocol: the address
// that X-Real-IP says. Of one that a trusted proxy names, the port is not known.
func (x *exchange) origin(o *table.Options) upstream.Origin {
	if o == nil || o.SendProxy == 0 {
		return upstream.Origin{}
	}
	client := netip.AddrPortFrom(x.r.Client.Addr().Unmap(), x.r.Client.Port())
	if a := x.who().Unmap(); a != client.Addr() {
		client = netip.AddrPortFrom(a, 0)
	}
	return upstream.Origin{Version: o.SendProxy, Client: client, Local: x.r.Local}
}

// connect returns a connection to an endpoint.
func (x *exchange) connect(e *upstream.Endpoint, o *table.Options, encrypted, sure bool, timeout time.Duration) (c *h1.Client, reused bool, err error) {
	if of := x.origin(o); of.Version != 0 {
		return e.GetFor(x.ctx, of, encrypted, sure, timeout)
	}
	return e.Get(x.ctx, encrypted, sure, timeout)
}

// keep keeps a connection of connect for the next request that it is good for.
func (x *exchange) keep(e *upstream.Endpoint, o *table.Options, c *h1.Client, encrypted bool) {
	if of := x.origin(o); of.Version != 0 {
		e.PutFor(c, of, encrypted)
		return
	}
	e.Put(c, encrypted)
}
