package proxy

import (
	"fmt"
	"net/netip"

	"wayleave.dev/proxy/schema"
)

// forbidden refuses clients that are not in the path's sources, or that are denied.
func (x *exchange) forbidden(o *schema.Options) (answered bool) {
	if len(o.Sources)+len(o.Denied) == 0 || x.comesFrom(o) {
		return false
	}
	x.fail(403, fmt.Errorf("client %s is not among the sources of the path", x.who()))
	return true
}

// comesFrom reports whether the client is in the path's sources, and not denied.
func (x *exchange) comesFrom(o *schema.Options) bool {
	who := x.who()
	return !isIn(o.Denied, who) && (len(o.Sources) == 0 || isIn(o.Sources, who))
}

func isIn(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
