package ingress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// moreGuards are further guards, and annotations that tune them.
func moreGuards() []annotation {
	return []annotation{
		{name: "denylist-source-range", read: networks(func(p *parser, l []netip.Prefix) { p.out.table.Denied = l }),
			guard: true, note: "takes precedence over allowlist-source-range; at most 1,024 networks"},
		{name: "satisfy", read: oneOf(func(p *parser, v string) { p.out.table.AnyOf = v == "any" }, "all", "any"),
			guard: true, note: "of sources, auth-secret and auth-url"},
		{name: "limit-connections", read: number(0, 1<<20, func(p *parser, n int) { p.out.table.Exchanges = n }),
			guard: true, note: "concurrent requests and tunnels of a client; each node counts separately"},
		{name: "limit-whitelist", read: unlimited,
			note: "clients without limit-rps, limit-rpm and limit-connections; at most 1,024 networks"},
		{name: "limit-allowlist", read: unlimited, note: "as limit-whitelist"},
		{name: "limit-rate", read: number(0, 1<<30, func(p *parser, n int) { p.out.table.Bandwidth = int64(n) << 10 }),
			note: "of each response, in KiB per second"},
		{name: "limit-rate-after", read: number(0, 1<<30,
			func(p *parser, n int) { p.out.table.BandwidthAfter = int64(n) << 10 }), note: "in KiB"},
		{name: "auth-always-set-cookie", read: boolean(func(p *parser, v bool) { p.authURL.AlwaysCookie = v })},
		{name: "auth-cache-key", read: cacheKey, note: "a request in which all variables of the key are empty is " +
			"never answered from the cache; at most 4,096 answers of 4 KiB; an answer with Set-Cookie, Vary or " +
			"Cache-Control: " +
			"no-store, no-cache, private is not used again"},
		{name: "auth-cache-duration", read: cacheValid, note: "as proxy_cache_valid of nginx; 24h at most"},
		{name: "auth-request-redirect", read: fieldTemplate(func(p *parser, v string) { p.authURL.Target = v })},
		{name: "auth-signin-redirect-param", read: token(func(p *parser, v string) { p.authURL.Param = v })},
		{name: "auth-keepalive", read: number(0, 1<<30, func(*parser, int) {}), note: keptAlive},
		{name: "auth-keepalive-requests", read: number(0, 1<<30, func(*parser, int) {}), note: keptAlive},
		{name: "auth-keepalive-timeout", read: number(0, 1<<30, func(*parser, int) {}), note: keptAlive},
		{name: "auth-keepalive-share-vars", read: boolean(func(*parser, bool) {}), note: keptAlive},
	}
}

const keptAlive = "no effect: connections to authentication servers are always kept open"

// edits change requests to endpoints and responses to clients.
func edits() []annotation {
	return []annotation{
		{name: "x-forwarded-prefix", read: fieldTemplate(func(p *parser, v string) {
			p.upstream.Fields = append(p.upstream.Fields, schema.Field{Name: "X-Forwarded-Prefix", Value: v})
		}), note: "with or without rewrite-target"},
		{name: "upstream-vhost", read: upstreamHost, note: "X-Forwarded-Host stays the client's"},
		{name: "connection-proxy-header", read: oneOf(func(*parser, string) {}, "keep-alive"),
			note: "keep-alive: no effect, connections to endpoints are always kept open"},
		{name: "proxy-cookie-domain", read: cookieRule(func(p *parser, r schema.Replace) {
			p.response.Domain = append(p.response.Domain, r)
		}), note: replaceNote},
		{name: "proxy-cookie-path", read: cookieRule(func(p *parser, r schema.Replace) {
			p.response.CookiePath = append(p.response.CookiePath, r)
		}), note: replaceNote},
		{name: "proxy-redirect-from", read: rule(func(p *parser, v string) { p.from = v }),
			note: "off and default change nothing; " + replaceNote},
		{name: "proxy-redirect-to", read: rule(func(p *parser, v string) { p.to = v })},
		{name: "enable-access-log", read: boolean(func(p *parser, v bool) { p.out.table.Unlogged = !v }),
			note: "false excludes the requests from the log of ingress.accessLog"},
		{name: "preserve-trailing-slash", read: boolean(func(*parser, bool) {}),
			note: "no effect: redirects always preserve it"},
		{name: "http2-push-preload", read: boolean(func(*parser, bool) {}),
			note: "no effect: browsers, and nginx since 1.25.1, no longer support server push"},
		{name: "relative-redirects", read: boolean(func(*parser, bool) {}),
			note: "no effect: redirects use the path as written"},
		{name: "use-port-in-redirects", read: onlyFalse, note: "false"},
		{name: "ssl-prefer-server-ciphers", read: boolean(func(*parser, bool) {}),
			note: "nothing to do: the order is that of Go's crypto/tls"},
	}
}

const replaceNote = "text, or an expression of RE2 behind ~ or ~*"

// retries configure what happens if an endpoint fails.
func retries() []annotation {
	return []annotation{
		{name: "proxy-next-upstream", read: nextUpstream, note: "error and invalid_header are always in force except " +
			"with off; a request is never sent again once part of its body has been sent"},
		{name: "proxy-next-upstream-tries",
			read: number(0, 1<<30, func(p *parser, n int) { p.retrying().Tries = tries(n) }),
			note: "0 is as many as there are, 16 at most"},
		{name: "proxy-next-upstream-timeout",
			read: number(0, 86400, func(p *parser, n int) { p.retrying().Within = time.Duration(n) * time.Second }),
			note: "0 is no limit"},
		{name: "default-backend", read: defaultBackend,
			note: "the first TCP port of a Service in the Ingress's namespace"},
		{name: "custom-http-errors", read: errorStatuses, note: "with default-backend; it gets a GET or HEAD " +
			"with X-Code, X-Format, X-Original-URI, X-Namespace, X-Ingress-Name, X-Service-Name, X-Service-Port " +
			"and X-Request-ID"},
		{name: "disable-proxy-intercept-errors", read: boolean(func(p *parser, v bool) { p.errors.OwnOnly = v })},
	}
}

// unlimited parses the clients without limits. If it is invalid, all clients keep their limits.
func unlimited(p *parser, v string) error {
	return networks(func(p *parser, l []netip.Prefix) {
		p.out.table.Unlimited = append(p.out.table.Unlimited,
			l...)
	})(p, v)
}

// fieldTemplate parses a value of a header field, with variables.
func fieldTemplate(to func(p *parser, v string)) func(*parser, string) error {
	return func(p *parser, v string) error {
		if err := template(v); err != nil {
			return err
		}
		return fieldValue(to)(p, v)
	}
}

// maxCacheKey bounds the text of a key, in bytes.
const maxCacheKey = 1024

func cacheKey(p *parser, v string) error {
	if len(v) > maxCacheKey {
		return fmt.Errorf("has %d bytes; allowed: %d", len(v), maxCacheKey)
	}
	t, err := table.ParseTemplate(v)
	if err != nil {
		return fmt.Errorf("%q: %w; no answer is cached", v, err)
	}
	if !slices.ContainsFunc(t, func(q table.Part) bool { return q.Kind != table.Text }) {
		return fmt.Errorf(
			"%q has no variable, so all clients would share one client's answer; no answer is cached", v)
	}
	p.authURL.CacheKey = v
	return nil
}

// Bounds of auth-cache-duration.
const (
	maxCacheRules = 16
	maxCacheTime  = 24 * time.Hour
)

// cacheValid parses "200 202 10m, 401 5m". If it is invalid, no answer is cached.
func cacheValid(p *parser, v string) error {
	p.noCache = true
	rules := list(v)
	if len(rules) == 0 || len(rules) > maxCacheRules {
		return fmt.Errorf("%q has %d rules; allowed: 1 to %d", v, len(rules), maxCacheRules)
	}
	var out []schema.CacheValid
	for _, r := range rules {
		words := strings.Fields(r)
		last := len(words) - 1
		d, err := nginxTime(words[last])
		if err != nil || d > maxCacheTime {
			return fmt.Errorf("%q does not end with a time like 5m, %s at most", r, maxCacheTime)
		}
		one := schema.CacheValid{For: d}
		for _, w := range words[:last] {
			code, err := strconv.Atoi(w)
			if w == "any" {
				one.Statuses = nil
				break
			}
			if err != nil || code < 100 || code > 599 {
				return fmt.Errorf("%q is neither a status nor any", w)
			}
			one.Statuses = append(one.Statuses, code)
		}
		if last == 0 { // as nginx: 200, 301 and 302
			one.Statuses = []int{200, 301, 302}
		}
		out = append(out, one)
	}
	p.authURL.Cache, p.noCache = out, false
	return nil
}

// nginxTime parses a time of nginx: 30, 30s, 5m, 1h30m, 1d.
func nginxTime(v string) (sum time.Duration, err error) {
	units := []struct {
		name string
		unit time.Duration
	}{{"ms", time.Millisecond}, {"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour},
		{"w", 7 * 24 * time.Hour}}
	for rest := v; rest != ""; {
		n := 0
		for n < len(rest) && '0' <= rest[n] && rest[n] <= '9' {
			n++
		}
		count, err := strconv.ParseInt(rest[:n], 10, 32)
		if err != nil {
			return 0, fmt.Errorf("%q is not a time", v)
		}
		if rest = rest[n:]; rest == "" {
			return sum + time.Duration(count)*time.Second, nil
		}
		i := slices.IndexFunc(units, func(u struct {
			name string
			unit time.Duration
		}) bool {
			return strings.HasPrefix(rest, u.name)
		})
		if i < 0 || count > int64(400*24*time.Hour/units[i].unit) {
			return 0, fmt.Errorf("%q is not a time", v)
		}
		sum, rest = sum+time.Duration(count)*units[i].unit, rest[len(units[i].name):]
	}
	if v == "" {
		return 0, errors.New("is empty")
	}
	return sum, nil
}

func upstreamHost(p *parser, v string) error {
	if plain := filled(v); plain == "" || strings.Trim(strings.ToLower(plain),
		"abcdefghijklmnopqrstuvwxyz0123456789-._:[]") != "" {
		return fmt.Errorf("%q is not a host", v)
	}
	return fieldTemplate(func(p *parser, v string) { p.upstream.Host = v })(p, v)
}

// rule is one side of a replacement rule.
func rule(to func(p *parser, v string)) func(*parser, string) error {
	return func(p *parser, v string) error {
		if v == "" || strings.ContainsAny(v, " \t\r\n\"") {
			return fmt.Errorf("%q is empty, or has white space or quotes in it", v)
		}
		to(p, v)
		return nil
	}
}

// cookieRule parses "off", or two words of which the second replaces the first.
func cookieRule(to func(p *parser, r schema.Replace)) func(*parser, string) error {
	return func(p *parser, v string) error {
		words := strings.Fields(v)
		if len(words) == 1 && words[0] == "off" {
			return nil
		}
		if len(words) != 2 || strings.ContainsAny(v, "\"';") {
			return fmt.Errorf("%q is neither off nor two words", v)
		}
		r := schema.Replace{From: words[0], To: words[1]}
		if err := checkReplace(r); err != nil {
			return err
		}
		to(p, r)
		return nil
	}
}

// checkReplace parses a rule as the proxy will.
func checkReplace(r schema.Replace) error {
	return table.Prepare(&schema.Path{
		Options: &schema.Options{Response: &schema.Response{Location: []schema.Replace{r}}}}).Err
}

func cookieDomain(p *parser, v string) error {
	if !isHost(strings.ToLower(strings.TrimPrefix(v, "."))) {
		return fmt.Errorf("%q is not a DNS name", v)
	}
	p.cookie.Domain = v
	return nil
}

func (p *parser) retrying() *schema.Retry {
	if p.retry == nil {
		p.retry = &schema.Retry{Timeout: true} // ingress-nginx's own is "error timeout"
	}
	return p.retry
}

// maxTries bounds the number of endpoints that one request is sent to.
const maxTries = 16

func tries(n int) int {
	if n == 0 {
		return maxTries
	}
	return min(n, maxTries)
}

func nextUpstream(p *parser, v string) error {
	next := schema.Retry{}
	for _, w := range strings.Fields(v) {
		code, isStatus := strings.CutPrefix(w, "http_")
		n, err := strconv.Atoi(code)
		switch {
		case w == "off":
			next.Never = true
		case w == "error", w == "invalid_header":
		case w == "timeout":
			next.Timeout = true
		case w == "non_idempotent":
			next.Unsafe = true
		case isStatus && err == nil && slices.Contains([]int{403, 404, 429, 500, 502, 503, 504}, n):
			next.Statuses = append(next.Statuses, n)
		default:
			return fmt.Errorf("%q is not known; allowed: error, timeout, invalid_header, http_403, http_404, "+
				"http_429, http_500, http_502, http_503, http_504, non_idempotent, off", w)
		}
	}
	r := p.retrying()
	next.Tries, next.Within = r.Tries, r.Within
	*r = next
	return nil
}

func defaultBackend(p *parser, v string) error {
	if !isHost(v) {
		return fmt.Errorf("%q is not the name of a Service", v)
	}
	key, why := resolve(p.snap, p.in.Name.Namespace, model.IngressBackend{Service: v})
	if why != "" {
		return errors.New(why + "; it has no effect")
	}
	p.errors.Backend = key
	return nil
}

// maxStatuses bounds custom-http-errors.
const maxStatuses = 64

func errorStatuses(p *parser, v string) error {
	var out []int
	for _, s := range list(v) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 300 || n > 599 {
			return fmt.Errorf("%q is not a status from 300 to 599", s)
		}
		out = append(out, n)
	}
	if len(out) == 0 || len(out) > maxStatuses {
		return fmt.Errorf("has %d statuses; allowed: 1 to %d", len(out), maxStatuses)
	}
	p.errors.Statuses = out
	return nil
}

// combineEdits combines annotations that change requests and responses.
func (p *parser) combineEdits() {
	o := &p.out.table
	switch {
	case p.from == "off" || p.from == "default" || p.from == "" && p.to == "":
	case p.from == "" || p.to == "":
		p.bad(nginxPrefix+"proxy-redirect-to", "proxy-redirect-from and proxy-redirect-to need each other; the "+
			"fields Location and Refresh stay as they are")
	default:
		if r := (schema.Replace{From: p.from, To: p.to}); checkReplace(r) != nil {
			p.bad(nginxPrefix+"proxy-redirect-from", "%v; the fields Location and Refresh stay as they are",
				checkReplace(r))
		} else {
			p.response.Location = append(p.response.Location, r)
		}
	}
	if p.upstream.Host != "" || len(p.upstream.Fields) > 0 {
		u := p.upstream
		o.Upstream = &u
	}
	if r := p.response; len(r.Fields)+len(r.Domain)+len(r.CookiePath)+len(r.Location) > 0 {
		o.Response = &r
	}
	o.Retry = p.retry
	if o.HashBy != "" && p.subset {
		if o.HashSubset = p.subsetSize; p.subsetSize == 0 {
			o.HashSubset = 3
		}
	}
	if o.Balance == "ewma" {
		o.Balance = ""
	}
}

// combineErrors combines annotations of error backends.
func (p *parser) combineErrors() {
	e := p.errors
	if e.Backend == "" {
		if len(e.Statuses) > 0 {
			p.bad(nginxPrefix+"custom-http-errors",
				"has no effect without default-backend: Wayleave has none of its own for all Ingresses")
		}
		return
	}
	e.Namespace, e.Ingress = p.in.Name.Namespace, p.in.Name.Name
	p.out.table.Errors = &e
}

// combineCache combines auth-cache-key and auth-cache-duration.
func (p *parser) combineCache() {
	u := &p.authURL
	if u.CacheKey == "" || p.noCache {
		u.CacheKey, u.Cache = "", nil
		return
	}
	if len(u.Cache) == 0 {
		u.Cache = []schema.CacheValid{{Statuses: []int{200, 202, 401}, For: 5 * time.Minute}}
	}
}
