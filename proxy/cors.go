package proxy

import (
	"strconv"
	"time"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// Names of the fields of cross-origin sharing (the Fetch standard).
const (
	allowOrigin      = "Access-Control-Allow-Origin"
	allowCredentials = "Access-Control-Allow-Credentials"
	allowMethods     = "Access-Control-Allow-Methods"
	allowHeaders     = "Access-Control-Allow-Headers"
	exposeHeaders    = "Access-Control-Expose-Headers"
	maxAge           = "Access-Control-Max-Age"
)

// cors adds the fields that a browser requires for a page of another origin, and answers its preflight. An origin that
// is not allowed gets neither; its request continues, like one of a client that is not a browser.
func (x *exchange) cors(c *schema.CORS, origins *table.Origins) (answered bool) {
	if !origins.Any {
		x.answer.Add("Vary", []byte("Origin"))
	}
	origin := x.r.Fields.Get("Origin")
	if !origins.Allows(origin) {
		return false
	}
	x.opt.origin = origin
	value := origin
	if origins.Any {
		value = []byte("*")
	}
	x.answer.Add(allowOrigin, value)
	if c.Credentials {
		x.answer.Add(allowCredentials, []byte("true"))
	}
	if string(x.r.Method) != "OPTIONS" {
		if c.Expose != "" {
			x.answer.Add(exposeHeaders, []byte(c.Expose))
		}
		return false
	}
	var more message.Fields
	for _, f := range []struct{ name, value, otherwise string }{
		{allowMethods, c.Methods, "GET, PUT, POST, DELETE, PATCH, OPTIONS"},
		{allowHeaders, c.Headers,
			"DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type,Range," +
				"Authorization"},
		{maxAge, seconds(c.MaxAge), "1728000"},
	} {
		if f.value == "" {
			f.value = f.otherwise
		}
		more.Add(f.name, []byte(f.value))
	}
	x.empty(204, more)
	return true
}

func seconds(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return strconv.FormatInt(int64(d/time.Second), 10)
}
