package proxy

import (
	"bytes"
	"errors"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/table"
)

// maxTarget bounds a rewritten target: a group may be used more than once.
const maxTarget = 64 << 10

var errLongTarget = errors.New("the rewritten target is too long")

// rewrite replaces the request's target by the path's. The query stays, after that of the target if it has one; a
// question mark at the target's end drops it.
func (x *exchange) rewrite(ready *table.Ready) (answered bool) {
	if string(x.opt.target) == "*" {
		return false
	}
	// The buffer is not reused: a body may still be being sent then.
	to := x.expand(make([]byte, 0, len(x.opt.target)+64), ready.Rewrite, forPath)
	if len(to) > maxTarget {
		x.fail(414, errLongTarget)
		return true
	}
	if absolute(to) { // as in nginx, a rewrite to a URL is a redirect
		x.reply(302, message.Fields{{Name: location, Value: x.withQuery(to)}})
		return true
	}
	if len(to) == 0 || to[0] != '/' {
		to = append([]byte("/"), to...)
	}
	x.r.Target = x.withQuery(to)
	return false
}

func absolute(b []byte) bool {
	return bytes.HasPrefix(b, []byte("http://")) || bytes.HasPrefix(b, []byte("https://"))
}

// withQuery appends the request's query to a target.
func (x *exchange) withQuery(to []byte) []byte {
	if n := len(to); n > 0 && to[n-1] == '?' {
		return to[:n-1]
	}
	q := query(x.opt.target)
	if q == nil {
		return to
	}
	mark := byte('?')
	if bytes.IndexByte(to, '?') >= 0 {
		mark = '&'
	}
	return append(append(to, mark), q...)
}
