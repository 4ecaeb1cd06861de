package ingress

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"wayleave.dev/model"
	"wayleave.dev/proxy/reach"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// Notes of annotations. streamed and tuning are for annotations that have nothing to do in Wayleave.
const (
	variables = "[these](ingress-options.md#variables)"
	streamed  = "no effect: bodies are always streamed in both directions"
	// closesUnless is for snippets.
	closesUnless = "closes the paths unless all of its directives are known not to restrict access"
	noFirewall   = "closes the paths (503): there is no web application firewall; run one as a Service behind the proxy"
	tuning       = "no effect: it tunes buffers of nginx"
)

// annotations lists all annotations of ingress-nginx that Wayleave knows, by name.
func annotations() []annotation {
	return slices.SortedFunc(slices.Values(slices.Concat(routing(), redirects(), balancing(), canaries(), guards(),
		moreGuards(), clientCerts(), endpointTLS(), cors(), limits(), edits(), configMaps(), retries(), others(),
		notBuilt())),
		func(a, b annotation) int { return strings.Compare(a.name, b.name) })
}

func routing() []annotation {
	return []annotation{
		{name: "server-alias", read: aliases,
			note: "other names of the Ingress's first host, at most 32; a host that a rule names keeps its own rules"},
		{name: "rewrite-target", read: rewrite,
			note: "$1 … are groups of the path; regular expressions are RE2; a URL is a redirect (302); variables: " +
				variables},
		{name: "use-regex", read: booleanOr(true, func(p *parser, v bool) {
			p.out.regex, p.out.useRegex = p.out.regex ||
				v, v
		}), note: "all paths of the host match as prefixes without regard to case, see [Which path is " +
			"served](ingress.md#which-path-is-served); RE2"},
		{name: "backend-protocol", read: protocol,
			note: "HTTP, HTTPS, GRPC and GRPCS; certificates of endpoints are not verified, as in ingress-nginx"},
		{name: "proxy-http-version", read: oneOf(func(*parser, string) {}, "1.1"), note: "1.1"},
		{name: "proxy-body-size", read: size(func(p *parser, n int64) { p.out.table.MaxBody = n }),
			note: "without it there is no limit (ingress-nginx: 1m)"},
		{name: "proxy-connect-timeout", read: seconds(func(p *parser, d time.Duration) { p.out.table.Connect = d })},
		{name: "proxy-send-timeout", read: seconds(func(p *parser, d time.Duration) { p.out.table.Send = d })},
		{name: "proxy-read-timeout", read: seconds(func(p *parser, d time.Duration) { p.out.table.Read = d })},
		{name: "proxy-buffering", read: nothing, note: streamed},
		{name: "proxy-request-buffering", read: nothing, note: streamed},
		{name: "client-body-buffer-size", read: nothing, note: tuning},
		{name: "proxy-buffer-size", read: nothing, note: tuning},
		{name: "proxy-buffers-number", read: nothing, note: tuning},
		{name: "proxy-busy-buffers-size", read: nothing, note: tuning},
		{name: "proxy-max-temp-file-size", read: nothing, note: tuning},
		{name: "enable-rewrite-log", read: nothing, note: "no effect: it is for nginx's error log"},
	}
}

func redirects() []annotation {
	code := func(at int, low, high int) func(*parser, string) error {
		return number(low, high, func(p *parser, n int) { p.codes[at] = n })
	}
	return []annotation{
		{name: "ssl-redirect", read: boolean(func(p *parser, v bool) { p.out.keepPlain = !v }),
			note: "true by default: 308 to https for hosts with a certificate"},
		{name: "force-ssl-redirect", read: booleanOr(true, func(p *parser, v bool) { p.out.forceTLS = v })},
		{name: "permanent-redirect", read: location(func(p *parser, v string) { p.perm = v }),
			note: "variables: " + variables},
		{name: "permanent-redirect-code", read: code(0, 300, 308)},
		{name: "temporal-redirect", read: location(func(p *parser, v string) { p.temp = v }),
			note: "variables: " + variables},
		{name: "temporal-redirect-code", read: code(1, 300, 307)},
		{name: "app-root", read: appRoot},
	}
}

func balancing() []annotation {
	return []annotation{
		{name: "affinity", read: oneOf(func(*parser, string) {}, "cookie")},
		{name: "affinity-mode", read: oneOf(func(*parser, string) {}, "balanced", "persistent"),
			note: "both are persistent: a client keeps its endpoint while that exists"},
		{name: "session-cookie-name", read: token(func(p *parser, v string) { p.cookie.Name = v })},
		{name: "session-cookie-path", read: cookiePath},
		{name: "session-cookie-max-age",
			read: number(0, maxSeconds, func(p *parser, n int) { p.cookie.MaxAge = time.Duration(n) * time.Second })},
		{name: "session-cookie-expires",
			read: number(0, maxSeconds, func(p *parser, n int) { p.expiry = time.Duration(n) * time.Second }),
			note: "as session-cookie-max-age"},
		{name: "session-cookie-samesite", read: inAnyCase(func(p *parser, v string) { p.cookie.SameSite = v }, "None",
			"Lax", "Strict"), note: "None, Lax and Strict, in any case"},
		{name: "session-cookie-domain", read: cookieDomain},
		{name: "session-cookie-partitioned", read: boolean(func(p *parser, v bool) { p.cookie.Partitioned = v })},
		{name: "session-cookie-change-on-failure", read: boolean(func(p *parser, v bool) { p.cookie.Moves = v })},
		{name: "session-cookie-conditional-samesite-none",
			read: boolean(func(p *parser, v bool) { p.cookie.Conditional = v })},
		{name: "session-cookie-secure", read: boolean(func(p *parser, v bool) { p.cookie.Secure = v })},
		{name: "upstream-hash-by", read: hashBy, note: "variables: " + variables},
		{name: "upstream-hash-by-subset", read: boolean(func(p *parser, v bool) { p.subset = v })},
		{name: "upstream-hash-by-subset-size", read: number(1, 64, func(p *parser, n int) { p.subsetSize = n }),
			note: "1 to 64, 3 by default; the endpoints of a key are its own, not one of fixed groups"},
		{name: "load-balance", read: oneOf(func(p *parser, v string) { p.out.table.Balance = v }, "round_robin",
			"ewma"), note: "ewma: the less busy of two random endpoints, which is the default"},
	}
}

func canaries() []annotation {
	return []annotation{
		{name: "canary", read: canarySwitch, note: "an invalid value counts as true, so that the Ingress " +
			"takes no path for itself; of a path of an Ingress in the same namespace; several may follow one another"},
		{name: "canary-by-header", read: token(func(p *parser, v string) { p.canary.Header = v })},
		{name: "canary-by-header-value", read: fieldValue(func(p *parser, v string) { p.canary.Value = v })},
		{name: "canary-by-header-pattern", read: pattern(func(p *parser, v string) { p.canary.Pattern = v }),
			note: "RE2"},
		{name: "affinity-canary-behavior", read: oneOf(func(p *parser, v string) { p.canary.EachTime = v == "legacy" },
			"sticky", "legacy"), note: "of the canary Ingress"},
		{name: "canary-by-cookie", read: token(func(p *parser, v string) { p.canary.Cookie = v })},
		{name: "canary-weight", read: number(0, 1<<30, func(p *parser, n int) { p.canary.Weight = n })},
		{name: "canary-weight-total", read: number(1, 1<<30, func(p *parser, n int) { p.canary.Total = n }),
			note: "less than 100 counts as 100"},
	}
}

func guards() []annotation {
	sources := networks(func(p *parser, l []netip.Prefix) { p.out.table.Sources = l })
	return []annotation{
		{name: "whitelist-source-range", read: func(p *parser, v string) error {
			if _, both := p.values["allowlist-source-range"]; both {
				return nil // the older name of the same option
			}
			return sources(p, v)
		}, guard: true, note: "the older name of allowlist-source-range, which takes precedence"},
		{name: "allowlist-source-range", read: sources, guard: true},
		{name: "auth-type", read: oneOf(func(p *parser, v string) { p.auth.kind = v }, "basic"), guard: true,
			note: "basic"},
		{name: "auth-secret", read: authSecret, guard: true,
			note: "in the Ingress's own namespace; hashes of bcrypt, apr1, $1$, $5$, $6$, {SHA}, {SSHA} and {PLAIN}"},
		{name: "auth-secret-type", read: oneOf(func(p *parser, v string) { p.auth.secretKind = v }, "auth-file",
			"auth-map"), guard: true},
		{name: "auth-realm", read: fieldValue(func(p *parser, v string) { p.auth.realm = v })},
		{name: "auth-url", read: askedURL, guard: true,
			note: "not at addresses of nodes, of the API server, loopback, link-local or metadata services; " +
				"variables: " + variables},
		{name: "auth-method", read: oneOf(func(p *parser, v string) { p.authURL.Method = v }, "GET", "HEAD", "POST",
			"PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"), guard: true,
			note: "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS and TRACE"},
		{name: "auth-signin", read: authURL(func(p *parser, v string) { p.authURL.SignIn = v }),
			note: "variables: " + variables},
		{name: "auth-response-headers", read: authFields, guard: true,
			note: "at most 64; clients cannot send these fields to the same Service on any path"},
		{name: "enable-modsecurity", read: onlyFalse, guard: true, no: true, note: noFirewall},
		{name: "enable-owasp-core-rules", read: onlyFalse, guard: true, no: true, note: noFirewall},
		{name: "modsecurity-snippet", guard: true, note: noFirewall},
		{name: "configuration-snippet", read: snippet, no: true, note: closesUnless},
		{name: "server-snippet", read: snippet, no: true, note: closesUnless},
		{name: "auth-snippet", read: snippet, no: true, note: closesUnless},
		{name: "stream-snippet", read: streamSnippet, no: true,
			note: "closes the paths if it has a directive that restricts access"},
	}
}

func cors() []annotation {
	return []annotation{
		{name: "enable-cors", read: boolean(func(*parser, bool) {})},
		{name: "cors-allow-origin", read: origins,
			note: "origins, with *. for one label, and null; invalid entries are ignored"},
		{name: "cors-allow-methods", read: tokens(false, func(p *parser, v string) { p.cors.Methods = v })},
		{name: "cors-allow-headers", read: tokens(false, func(p *parser, v string) { p.cors.Headers = v })},
		{name: "cors-expose-headers", read: tokens(true, func(p *parser, v string) { p.cors.Expose = v })},
		{name: "cors-allow-credentials", read: boolean(func(*parser, bool) {})},
		{name: "cors-max-age", read: corsMaxAge, note: "0 and less: responses to preflights are not cached"},
	}
}

func limits() []annotation {
	return []annotation{
		{name: "limit-rps", read: number(0, 1<<20, func(p *parser, n int) { p.rps = float64(n) }), guard: true,
			note: "each node counts separately"},
		{name: "limit-rpm", read: number(0, 1<<20, func(p *parser, n int) { p.rpm = float64(n) }), guard: true,
			note: "each node counts separately"},
		{name: "limit-burst-multiplier", read: number(0, 1<<20, func(p *parser, n int) { p.burst = &n }),
			note: "0 is a burst of one request"},
	}
}

// ownAnnotations are Wayleave's own, below ingress.wayleave.dev/.
func ownAnnotations() []annotation {
	return []annotation{
		{name: "response-headers", read: headerLines(func(p *parser, f schema.Field) {
			p.response.Fields = append(p.response.Fields, f)
		}), note: "lines of NAME: VALUE; without a value the field is removed; at most 64; variables"},
		{name: "request-headers", read: headerLines(func(p *parser, f schema.Field) {
			p.upstream.Fields = append(p.upstream.Fields, f)
		}), note: "the same for requests to endpoints"},
		{name: "auth-request-headers",
			read: headerLines(func(p *parser, f schema.Field) { p.authURL.Fields = append(p.authURL.Fields, f) }),
			note: "the same for requests to the server of auth-url"},
		{name: "proxy-protocol", read: oneOf(func(p *parser, v string) { p.out.table.SendProxy = v[1] - '0' }, "v1",
			"v2")},
	}
}

// notBuilt are known, reported in an Event, and have no effect.
func notBuilt() []annotation {
	const tracing = "traces are not supported; ingress.accessLog writes a line for each request"
	return []annotation{
		{name: "modsecurity-transaction-id", note: "there is no web application firewall"},
		{name: "opentelemetry-operation-name", note: tracing}, {name: "opentelemetry-trust-incoming-span",
			note: tracing}, {name: "opentracing-trust-incoming-span", note: tracing},
		{name: "fastcgi-index", note: "FastCGI is not supported"}, {name: "fastcgi-params-configmap",
			note: "FastCGI is not supported"},
		{name: "global-rate-limit", guard: true,
			note: "closes the paths (503): proxies count separately; use limit-rps"},
		{name: "global-rate-limit-window", guard: true, note: "as global-rate-limit"}, {name: "global-rate-limit-key",
			guard: true, note: "as global-rate-limit"}, {name: "global-rate-limit-ignored-cidrs", guard: true,
			note: "as global-rate-limit"},
		{name: "enable-influxdb", read: onlyFalse, no: true, note: tracing}, {name: "influxdb-measurement",
			note: tracing}, {name: "influxdb-port", note: tracing}, {name: "influxdb-host", note: tracing},
		{name: "influxdb-server-name", note: tracing},
		{name: "enable-opentelemetry", read: onlyFalse, no: true, note: tracing}, {name: "enable-opentracing",
			read: onlyFalse, no: true, note: tracing},
	}
}

func list(v string) (out []string) {
	for s := range strings.SplitSeq(v, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// Bounds of lists: each alias is a host with all paths of the first one, and each field is searched for in each
// request.
const (
	maxAliases      = 32
	maxAliasedPaths = 16384 // aliases × paths of one Ingress
	maxFields       = model.MaxFields
	maxNetworks     = 1024
	maxOrigins      = 256
)

func aliases(p *parser, v string) error {
	paths, most := 0, maxAliases
	for _, r := range p.in.Rules {
		paths += len(r.Paths)
	}
	most = min(most, maxAliasedPaths/max(1, paths))
	for n, a := range list(v) {
		if n == most {
			return fmt.Errorf("has more than %d names, of an Ingress with %d paths; the rest has no effect", most,
				paths)
		}
		a = strings.ToLower(a)
		if !isHost(strings.TrimPrefix(a, "*.")) {
			return fmt.Errorf("%q is neither a DNS name nor *. and a DNS name", a)
		}
		p.out.aliases = append(p.out.aliases, a)
	}
	return nil
}

// isHost reports whether s is a DNS name in lower case.
func isHost(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' ||
			strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}

func authFields(p *parser, v string) error {
	names := list(v)
	if n := len(names); n > maxFields {
		return fmt.Errorf("has %d fields; allowed: %d", n, maxFields)
	} else if n == 0 {
		return fmt.Errorf("%q is not a list of names separated by commas", v)
	}
	for _, n := range names {
		if !isToken(n) {
			return fmt.Errorf("%q is not a list of names separated by commas: %q is not a name", v, n)
		}
	}
	p.authURL.Headers = names
	return nil
}

// canarySwitch reads an invalid value as true: otherwise a canary would become a main backend.
func canarySwitch(_ *parser, v string) error {
	if _, err := strconv.ParseBool(v); err != nil && !isOff(v) {
		return fmt.Errorf("%q is neither true nor false; true is used", v)
	} else if err != nil {
		return fmt.Errorf("%q is neither true nor false; false is used", v)
	}
	return nil
}

func corsMaxAge(p *parser, v string) error {
	return number(math.MinInt32, maxSeconds, func(p *parser, n int) {
		p.cors.MaxAge = time.Duration(max(n, -1)) * time.Second
		if n <= 0 {
			p.cors.MaxAge = -time.Second // an empty value means the default
		}
	})(p, v)
}

// rewrite parses a path, or a redirect URL. A path without its leading slash gets one: nginx would forward it
// unchanged, which is not a valid request.
func rewrite(p *parser, v string) error {
	t, err := table.ParseTemplate(v)
	switch {
	case err != nil:
		return fmt.Errorf("%q: %w", v, err)
	case v == "" || strings.ContainsAny(v, " \t\r\n\"<>"):
		return fmt.Errorf("%q is neither a path nor a URL", v)
	case t.IsURL():
		if err := location(func(p *parser, v string) { p.away = v })(p, v); err != nil {
			return err
		}
	case strings.Contains(v, "://"):
		return fmt.Errorf("%q is neither a path nor a URL of http or https", v)
	default:
		p.out.table.RewriteTarget = v
	}
	p.out.target, p.out.regex = v, true
	return nil
}

// template checks text with variables as the proxy will parse it.
func template(v string) error {
	if _, err := table.ParseTemplate(v); err != nil {
		return fmt.Errorf("%q: %w", v, err)
	}
	return nil
}

// filled replaces variables by text, to check the rest: by a path for variables that begin with a slash.
func filled(v string) string {
	v = regexp.MustCompile(`\$\{?(request_uri|uri|document_uri)\b\}?`).ReplaceAllString(v, "/x")
	return regexp.MustCompile(`\$\{?\w+\}?`).ReplaceAllString(v, "x")
}

func appRoot(p *parser, v string) error {
	if !strings.HasPrefix(v, "/") || v == "/" {
		return fmt.Errorf("%q is not a path below /", v)
	}
	return location(func(p *parser, v string) { p.out.appRoot = v })(p, v)
}

func cookiePath(p *parser, v string) error {
	if !strings.HasPrefix(v, "/") || strings.ContainsAny(v, " ;,\t\r\n") {
		return fmt.Errorf("%q is not a path", v)
	}
	p.cookie.Path = v
	return nil
}

func hashBy(p *parser, v string) error {
	if err := template(v); err != nil || v == "" {
		return cmp.Or(err, errors.New("is empty"))
	}
	p.out.table.HashBy = v
	return nil
}

func authSecret(p *parser, v string) (err error) {
	p.auth.secret, err = secretName(p.in, v)
	return err
}

// secretName parses NAME or NAMESPACE/NAME of a Secret in the Ingress's own namespace.
func secretName(i *model.Ingress, v string) (model.Name, error) { return ownName(i, v, "Secret") }

// ownName parses NAME or NAMESPACE/NAME of an object in the Ingress's own namespace.
func ownName(i *model.Ingress, v, kind string) (model.Name, error) {
	ns, name, qualified := strings.Cut(v, "/")
	if !qualified {
		ns, name = i.Name.Namespace, v
	}
	if !isHost(name) {
		return model.Name{}, fmt.Errorf("%q is not the name of a %s", v, kind)
	}
	if ns != i.Name.Namespace {
		return model.Name{}, fmt.Errorf(
			"%q is in another namespace; only %ss of the Ingress's namespace are allowed", v, kind)
	}
	return model.Name{Namespace: ns, Name: name}, nil
}

// templateURL returns the URL of a template, with variables replaced.
func templateURL(v string) (*url.URL, error) {
	plain := filled(v)
	if rest, ok := strings.CutPrefix(plain, "x://"); ok {
		plain = "http://" + rest // the scheme is a variable
	}
	return url.Parse(plain)
}

func authURL(to func(p *parser, v string)) func(*parser, string) error {
	return func(p *parser, v string) error {
		if err := template(v); err != nil {
			return err
		}
		u, err := templateURL(v)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" ||
			strings.ContainsAny(v, " \t\r\n\"<>") {
			return fmt.Errorf("%q is not a URL of http or https", v)
		}
		to(p, v)
		return nil
	}
}

// protocol parses the protocol of endpoints, in upper or lower case.
func protocol(p *parser, v string) error {
	return oneOf(func(p *parser, v string) {
		if v != "HTTP" {
			p.out.table.Protocol = schema.Protocol(v)
		}
	}, "HTTP", "HTTPS", "GRPC", "GRPCS")(p, strings.ToUpper(v))
}

// askedURL parses the URL of an authentication server. Forbidden addresses are refused here; names are checked at
// each request.
func askedURL(p *parser, v string) error {
	if err := authURL(func(*parser, string) {})(p, v); err != nil {
		return err
	}
	u, err := templateURL(v)
	if err != nil {
		return err
	}
	if u.User != nil {
		return errors.New("the URL contains a user name, which is not supported")
	}
	host := strings.TrimSuffix(u.Hostname(), ".")
	if a, err := netip.ParseAddr(host); err == nil {
		if what := reach.Special(a); what != "" && !slices.ContainsFunc(p.settings.AuthURLNetworks,
			func(n netip.Prefix) bool { return n.Contains(a.WithZone("").Unmap()) }) {
			return fmt.Errorf("%s is %s; only ingress.authURLNetworks can allow that", a, what)
		}
	} else if last := host[strings.LastIndexByte(host, '.')+1:]; last == "" || '0' <= last[0] && last[0] <= '9' {
		return fmt.Errorf("%q is neither a name nor an address", host)
	}
	p.authURL.URL = v
	return nil
}

// errSkipped means that an entry of a list was left out.
var errSkipped = errors.New("has no effect; the other entries take effect")

func origins(p *parser, v string) error {
	if n := len(list(v)); n > maxOrigins {
		return fmt.Errorf("has %d origins; allowed: %d", n, maxOrigins)
	}
	var skipped error
	for _, o := range list(v) {
		plain := strings.Replace(o, "://*.", "://", 1)
		if u, err := url.Parse(plain); o != "*" && o != "null" && (err != nil || u.Scheme == "" || u.Host == "" ||
			u.Path != "" || u.RawQuery != "" || strings.Contains(plain, "*")) {
			skipped = fmt.Errorf("%q is not an origin like https://shop.example or https://*.shop.example, and %w",
				o, errSkipped)
			continue
		}
		p.cors.Origins = append(p.cors.Origins, o)
	}
	if len(p.cors.Origins) == 0 {
		return fmt.Errorf("%q is not an origin like https://shop.example or https://*.shop.example", v)
	}
	return skipped
}
