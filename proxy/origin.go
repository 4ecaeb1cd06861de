package proxy

import (
	"net/netip"

	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

// origin is the client as the endpoint of a path is told by the PROXY protocol: the address
// that X-Real-IP says. Of one that a trusted proxy names, the port is not known.
func (x *exchange) origin(o *table.Options) upstream.Origin {
	if o == nil {
		return upstream.Origin{}
	}
	var by *table.EndpointTLS
	if o.Protocol == table.HTTPS || o.Protocol == table.GRPCS {
		by = o.TLS
	}
	if o.SendProxy == 0 {
		return upstream.Origin{TLS: by}
	}
	client := netip.AddrPortFrom(x.r.Client.Addr().Unmap(), x.r.Client.Port())
	if a := x.who().Unmap(); a != client.Addr() {
		client = netip.AddrPortFrom(a, 0)
	}
	return upstream.Origin{Version: o.SendProxy, Client: client, Local: x.r.Local, TLS: by}
}
