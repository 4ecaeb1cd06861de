package proxy

import (
	"net/netip"

	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/upstream"
)

// origin is the client as described to the path's endpoint by the PROXY protocol: the address in X-Real-IP. If a
// trusted proxy names it, the port is unknown.
func (x *exchange) origin(o *schema.Options) upstream.Origin {
	if o == nil {
		return upstream.Origin{}
	}
	var of upstream.Origin
	if by := o.TLS; by != nil && (o.Protocol == schema.HTTPS || o.Protocol == schema.GRPCS) {
		if of.TLS = by; x.p.Keys != nil && by.Authority != "" {
			of.Authority = x.p.Keys.Authority(by.Authority)
		}
		if x.p.Keys != nil && by.Certificate != "" {
			of.Certificate = x.p.Keys.Pair(by.Certificate)
		}
	}
	if o.SendProxy == 0 {
		return of
	}
	client := netip.AddrPortFrom(x.r.Client.Addr().Unmap(), x.r.Client.Port())
	if a := x.who().Unmap(); a != client.Addr() {
		client = netip.AddrPortFrom(a, 0)
	}
	of.Version, of.Client, of.Local = o.SendProxy, client, x.r.Local
	return of
}
