package proxy

import (
	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

var location = []byte("Location")

// redirect redirects the client to the URL of the path, or to https.
func (x *exchange) redirect(o *schema.Options, ready *table.Ready) (answered bool) {
	switch {
	case len(ready.Redirect) > 0:
		status := o.RedirectCode
		if status == 0 {
			status = 302
		}
		to := x.expand(nil, ready.Redirect, forPath)
		if o.RedirectQuery {
			to = x.withQuery(to)
		}
		if len(to) > maxTarget {
			x.fail(414, errLongTarget)
			return true
		}
		x.reply(status, message.Fields{{Name: location, Value: to}})
	case o.RedirectTLS != 0 && !x.secure():
		to := append([]byte("https://"), x.hostName()...)
		if target := x.opt.target; len(target) > 0 && target[0] == '/' { // not of "*"
			to = appendEscaped(to, target, &inURL)
		}
		x.reply(o.RedirectTLS, message.Fields{{Name: location, Value: to}})
	default:
		return false
	}
	return true
}
