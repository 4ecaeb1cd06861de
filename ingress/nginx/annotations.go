package nginx

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"wayleave.dev/model"
)

const prefix = "nginx.ingress.kubernetes.io/"

// rules are the annotations of an Ingress that decide where requests go.
type rules struct {
	target   string
	regex    bool
	appRoot  string
	redirect string
	code     int
	// noTLS serves plain requests on a host with a certificate, forceTLS redirects them on a host without one.
	noTLS, forceTLS bool
	aliases         []string
	guards          []string

	canary                         bool
	header, value, pattern, cookie string
	weight                         int
}

// Values that ingress-nginx accepts (internal/ingress/annotations/parser/validators.go).
var (
	validPath  = regexp.MustCompile(`^/?[\-._~a-zA-Z0-9/:$]*$`)
	validURL   = regexp.MustCompile(`^[\-._~a-zA-Z0-9/:,?&=]*$`)
	validNames = regexp.MustCompile(`^[\-._~a-zA-Z0-9/:]*$`)
	validRegex = regexp.MustCompile(`^[/\-._~a-zA-Z0-9:^$\[\](){}*+?|&=\\]*$`)
)

// parse parses the annotations. ok is false if ingress-nginx ignores the Ingress.
func parse(i *model.Ingress) (r rules, ok bool) {
	get := func(name string) string { return i.Annotations[prefix+name] }
	on := func(name string) bool { v, err := strconv.ParseBool(get(name)); return err == nil && v }
	if v := strings.TrimSpace(get("rewrite-target")); validPath.MatchString(v) {
		r.target = v
	}
	r.regex, r.forceTLS = on("use-regex"), on("force-ssl-redirect")
	if v, err := strconv.ParseBool(get("ssl-redirect")); err == nil {
		r.noTLS = !v
	}
	if v := strings.TrimSpace(get("app-root")); v != "" && validPath.MatchString(v) {
		if u, err := url.ParseRequestURI(v); err == nil && !u.IsAbs() {
			r.appRoot = v
		}
	}
	for a := range strings.SplitSeq(get("server-alias"), ",") {
		if a = strings.TrimSpace(a); a != "" && !slices.Contains(r.aliases, a) {
			r.aliases = append(r.aliases, a)
		}
	}
	slices.Sort(r.aliases)
	if !r.redirects(get) {
		return r, false
	}
	r.readCanary(get, on)
	r.readGuards(get)
	return r, true
}

// redirects parses temporal-redirect and permanent-redirect; the first one applies. An invalid value makes
// ingress-nginx ignore the Ingress.
func (r *rules) redirects(get func(string) string) bool {
	temporal, permanent := get("temporal-redirect"), get("permanent-redirect")
	number := func(v string, high, otherwise int) (int, bool) {
		n, err := strconv.Atoi(v)
		if v != "" && err != nil {
			return 0, false
		}
		if n < http.StatusMultipleChoices || n > high {
			n = otherwise
		}
		return n, true
	}
	if !validURL.MatchString(temporal) || temporal == "" && !validURL.MatchString(permanent) {
		return false
	}
	ok := true
	switch {
	case temporal != "":
		if u, err := url.Parse(temporal); err != nil || !strings.HasPrefix(u.Scheme, "http") {
			return true // only the redirect is ignored
		}
		r.redirect = strings.TrimSpace(temporal)
		r.code, ok = number(get("temporal-redirect-code"), http.StatusTemporaryRedirect, http.StatusFound)
	default:
		r.redirect = strings.TrimSpace(permanent)
		r.code, ok = number(get("permanent-redirect-code"), http.StatusPermanentRedirect, http.StatusMovedPermanently)
	}
	return ok
}

func (r *rules) readCanary(get func(string) string, on func(string) bool) {
	r.canary = on("canary")
	text := func(name string, valid *regexp.Regexp) string {
		if v := strings.TrimSpace(get(name)); valid.MatchString(strings.ReplaceAll(v, " ", "")) {
			return v
		}
		return ""
	}
	r.header, r.value = text("canary-by-header", validNames), text("canary-by-header-value", validNames)
	r.pattern, r.cookie = text("canary-by-header-pattern", validRegex), text("canary-by-cookie", validNames)
	weight, _ := strconv.Atoi(get("canary-weight"))
	r.weight = max(weight, 0)
}

// readGuards names the guards. An invalid list of sources, and some others, deny the location.
func (r *rules) readGuards(get func(string) string) {
	guard := func(name string) { r.guards = append(r.guards, name) }
	if get("whitelist-source-range") != "" || get("allowlist-source-range") != "" {
		guard("sources")
	}
	if get("denylist-source-range") != "" {
		guard("denied sources")
	}
	if get("auth-type") != "" {
		guard("password")
	}
	if get("auth-url") != "" {
		guard("auth-url")
	}
	if get("auth-tls-secret") != "" {
		guard("client certificate")
	}
	for _, name := range []string{"limit-rps", "limit-rpm"} {
		if n, err := strconv.Atoi(get(name)); err == nil && n > 0 {
			guard("rate")
			break
		}
	}
	if n, err := strconv.Atoi(get("limit-connections")); err == nil && n > 0 {
		guard("connections")
	}
}
