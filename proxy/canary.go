package proxy

import (
	"math/rand/v2"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// drawCanary sends the request to the first canary that selects it. A canary without endpoints selects none.
func (x *exchange) drawCanary(o *schema.Options, ready *table.Ready) {
	for i := range o.Canary {
		c := &o.Canary[i]
		b := x.p.Upstreams.Lookup(c.Backend)
		if b == nil || len(b.All()) == 0 {
			continue
		}
		if x.takes(c, o, ready, i) {
			x.opt.backend, x.opt.canary = c.Backend, true
			return
		}
	}
}

// takes evaluates header, cookie, and weight, in that order: each decides or leaves the decision to the next. A client
// with an endpoint by an affinity cookie stays with its backend, whatever the weights are.
func (x *exchange) takes(c *schema.Canary, o *schema.Options, ready *table.Ready, i int) bool {
	if c.Header != "" {
		v := x.r.Fields.Get(c.Header)
		switch re := ready.Headers[i]; {
		case v == nil:
		case re != nil:
			if len(v) <= maxMatched && re.Match(v) {
				return true
			}
		case c.Value != "":
			if string(v) == c.Value {
				return true
			}
		case message.EqualFold(v, "always"):
			return true
		case message.EqualFold(v, "never"):
			return false
		}
	}
	if c.Cookie != "" {
		switch v := cookie(x.r.Fields, c.Cookie); string(v) {
		case "always":
			return true
		case "never":
			return false
		}
	}
	if o.Affinity != nil && !c.EachTime {
		if token := cookie(x.r.Fields, affinityName(o.Affinity)); len(token) > 0 {
			if b := x.p.Upstreams.Lookup(x.match.Path.Backend); b != nil && b.Named(token) != nil {
				return false
			}
			if b := x.p.Upstreams.Lookup(c.Backend); b.Named(token) != nil {
				return true
			}
		}
	}
	total := c.Total
	if total <= 0 {
		total = 100
	}
	return c.Weight > 0 && rand.IntN(total) < c.Weight
}

// maxMatched is the longest value that is compared with a pattern; see table.MaxCanaries.
const maxMatched = 1 << 10
