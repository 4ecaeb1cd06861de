package proxy

import (
	"errors"

	"wayleave.dev/proxy/table"
	"wayleave.dev/proxy/upstream"
)

// forward2 sends the request to an endpoint that speaks HTTP/2.
func (x *exchange) forward2(_ *upstream.Backend, o *table.Options) {
	x.fail(502, errors.New("endpoints are not spoken to by "+string(o.Protocol)+" yet"))
}
