package proxy

import (
	"fmt"

	"wayleave.dev/proxy/table"
)

// forbidden refuses clients that are not among the path's sources.
func (x *exchange) forbidden(o *table.Options) (answered bool) {
	if len(o.Sources) == 0 {
		return false
	}
	who := x.who()
	for _, p := range o.Sources {
		if p.Contains(who) {
			return false
		}
	}
	x.fail(403, fmt.Errorf("client %s is not among the sources of the path", who))
	return true
}
