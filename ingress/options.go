package ingress

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"wayleave.dev/model"
	"wayleave.dev/proxy/htpasswd"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// Prefixes of annotations that are options.
const (
	nginxPrefix = "nginx.ingress.kubernetes.io/"
	ownPrefix   = "ingress.wayleave.dev/"
)

// options are the parsed annotations of an Ingress.
type options struct {
	table schema.Options
	// closed is the reason why the paths answer 503: a guard that is not in effect. Empty for open paths.
	closed string
	// keepPlain serves plain requests although the host has a certificate; forceTLS redirects them although it has
	// none.
	keepPlain, forceTLS bool
	// regex says that paths may be regular expressions, useRegex that use-regex requests it; target is that of
	// rewrite-target.
	regex, useRegex bool
	target          string
	aliases         []string
	appRoot         string
	canary          *schema.Canary
	// clientCert and ciphers apply to whole hosts.
	clientCert *schema.ClientCert
	ciphers    []uint16
	// www redirects the other names of the hosts, with or without www., to them.
	www bool
	// virtual reaches endpoints through the Service's virtual address.
	virtual bool
	// passthrough hands connections to the Service unchanged.
	passthrough bool
	// globalAuth says that the authentication server is that of the settings.
	globalAuth bool
	secrets    []model.Name
	problems   []model.Problem
	// hosts are the parts of the Ingress by host.
	hosts hostIndex
}

// annotation describes an annotation of ingress-nginx.
type annotation struct {
	name string
	// read parses the value; nil if the annotation is not built.
	read func(p *parser, v string) error
	// guard says that the annotation restricts access: if it is not built or invalid, the paths are closed.
	guard bool
	// no says that it is not built, although it is parsed.
	no bool
	// note is for the documentation.
	note string
}

// isOptional reports whether an empty value equals none: the annotation restricts nothing and requests nothing.
func (a *annotation) isOptional() bool {
	return a.read != nil && !a.guard && !a.no && !strings.HasPrefix(a.name, "cors-")
}

// parser parses the annotations of one Ingress.
type parser struct {
	out      options
	in       *model.Ingress
	snap     model.Snapshot
	settings Settings
	// values by their short names.
	values map[string]string
	cors   schema.CORS
	cookie schema.Affinity
	canary schema.Canary
	expiry time.Duration
	auth   struct {
		kind, realm, secretKind string
		secret                  model.Name
	}
	authURL schema.AuthURL
	// upstream and response become part of the options if an annotation needs them.
	upstream schema.Upstream
	response schema.Response
	retry    *schema.Retry
	client   clientCert
	mirror   schema.Mirror
	headOnly bool // of copies
	noGlobal bool
	endpoint endpointOf
	errors   schema.Errors
	from, to string // of proxy-redirect
	// noCache says that auth-cache-duration is invalid.
	noCache bool
	subset  bool
	// subsetSize is 0 for the default.
	subsetSize int
	rps        float64
	rpm        float64
	burst      *int
	// wrongCORS says that a value of CORS is invalid: its default would allow more.
	wrongCORS bool
	// Redirects by temporal-redirect, permanent-redirect and rewrite-target.
	temp, perm, away string
	codes            [2]int // of permanent and temporal redirects
}

// parse parses the annotations. Invalid ones are left out and reported.
func parse(snap model.Snapshot, s Settings, in *model.Ingress) options {
	p := &parser{in: in, snap: snap, settings: s, values: map[string]string{}}
	known := annotations()
	for _, key := range slices.Sorted(maps.Keys(in.Annotations)) {
		v := strings.TrimSpace(in.Annotations[key])
		short, nginx := strings.CutPrefix(key, nginxPrefix)
		switch {
		case strings.HasPrefix(key, ownPrefix):
			p.own(key, v)
			continue
		case !nginx:
			p.foreign(key, v)
			continue
		}
		p.values[short] = v
		if !slices.ContainsFunc(known, func(a annotation) bool { return a.name == short }) {
			p.unknown(key, short, "is not known to Wayleave")
		}
	}
	for _, a := range known {
		v, ok := p.values[a.name]
		if !ok {
			continue
		}
		if v == "" && a.isOptional() {
			continue // ingress-nginx uses the default
		}
		err := errNotBuilt
		switch {
		case a.read != nil:
			err = a.read(p, v)
		case a.guard:
			err = errNoGuard
		}
		if err == nil {
			continue
		}
		text := err.Error()
		if a.read == nil && a.note != "" {
			text += ": " + strings.TrimPrefix(a.note, "closes the paths (503): ")
		}
		if strings.HasPrefix(a.name, "cors-") && !errors.Is(err, errStar) && !errors.Is(err, errSkipped) {
			p.wrongCORS = true
		}
		if a.guard || errors.Is(err, errCloses) {
			p.close(a.name)
			text += "; it restricts access, so all paths of this Ingress answer 503"
		}
		p.bad(nginxPrefix+a.name, "%s", text)
	}
	p.combine()
	return p.out
}

// own parses an annotation of Wayleave's own.
func (p *parser) own(key, v string) {
	for _, a := range ownAnnotations() {
		if ownPrefix+a.name == key {
			if err := a.read(p, v); err != nil {
				p.bad(key, "%v", err)
			}
			return
		}
	}
	p.unknown(key, strings.TrimPrefix(key, ownPrefix), "Wayleave has no annotation of that name")
}

// unknown reports an unknown annotation, and closes the paths if it looks like a misspelled guard.
func (p *parser) unknown(key, name, text string) {
	if looksLikeGuard(name) && !isOff(p.in.Annotations[key]) {
		p.close(name)
		p.bad(key, "%s; it seems to restrict access, so all paths of this Ingress answer 503", text)
		return
	}
	p.bad(key, "%s, and has no effect", text)
}

var (
	errNotBuilt = errors.New("is not built, and has no effect")
	errNoGuard  = errors.New("is not built")
	errCloses   = errors.New("is not built, and seems to restrict access")
)

func (p *parser) bad(key, format string, args ...any) {
	p.out.problems = append(p.out.problems, model.Problem{Kind: "Ingress", Object: p.in.Name,
		Field: "metadata.annotations[" + key + "]", Reason: fmt.Sprintf(format, args...)})
}

func (p *parser) close(why string) {
	if p.out.closed == "" {
		p.out.closed = why
	}
}

// combine combines related annotations to options.
func (p *parser) combine() {
	p.combineRedirects()
	p.combineAffinity()
	p.combineCanary()
	p.combineAuth()
	p.combineLimits()
	p.combineEdits()
	p.combineErrors()
	p.combineClientCert()
	p.combineMirror()
	p.combineGlobalAuth()
	p.combineEndpointTLS()
	if p.isTrue("enable-cors") && !p.wrongCORS {
		c := p.cors
		if len(c.Origins) == 0 {
			c.Origins = []string{"*"}
		}
		if c.Methods == "" {
			c.Methods = "GET, PUT, POST, DELETE, PATCH, OPTIONS"
		}
		if c.Headers == "" {
			c.Headers = "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type," +
				"Range,Authorization"
		}
		c.Credentials = p.values["cors-allow-credentials"] == "" || p.isTrue("cors-allow-credentials")
		if c.MaxAge == 0 {
			c.MaxAge = 1728000 * time.Second
		}
		p.out.table.CORS = &c
	}
}

func (p *parser) combineRedirects() {
	o := &p.out.table
	switch {
	case p.temp != "": // as in ingress-nginx, it takes precedence
		o.Redirect, o.RedirectCode = p.temp, 302
		if p.codes[1] != 0 {
			o.RedirectCode = p.codes[1]
		}
	case p.perm != "":
		o.Redirect, o.RedirectCode = p.perm, 301
		if p.codes[0] != 0 {
			o.RedirectCode = p.codes[0]
		}
	case p.away != "":
		o.Redirect, o.RedirectCode, o.RedirectQuery = p.away, 302, true
	}
}

func (p *parser) combineAffinity() {
	if p.values["affinity"] != "cookie" {
		return
	}
	a := p.cookie
	if a.Name == "" {
		a.Name = "INGRESSCOOKIE"
	}
	if a.MaxAge == 0 {
		a.MaxAge = p.expiry
	}
	p.out.table.Affinity = &a
}

func (p *parser) combineCanary() {
	if v := p.values["canary"]; !p.isTrue("canary") {
		if _, err := strconv.ParseBool(v); err == nil || v == "" || isOff(v) {
			return
		}
	}
	c := p.canary
	if c.Total < 100 {
		if c.Total > 0 {
			p.bad(nginxPrefix+"canary-weight-total", "%d is less than 100, and counts as 100, as in ingress-nginx",
				c.Total)
		}
		c.Total = 100
	}
	if c.Value+c.Pattern == "" && p.values["canary-by-header-value"]+p.values["canary-by-header-pattern"] != "" {
		c.Header = "" // the required value is invalid: the header selects nothing
	}
	if c.Header == "" && (c.Value != "" || c.Pattern != "") {
		p.bad(nginxPrefix+"canary-by-header-value", "has no effect without canary-by-header")
		c.Value, c.Pattern = "", ""
	}
	if c.Value != "" {
		c.Pattern = ""
	}
	if c.Weight > c.Total {
		p.bad(nginxPrefix+"canary-weight", "%d is more than canary-weight-total, %d; %d is used", c.Weight,
			c.Total, c.Total)
		c.Weight = c.Total
	}
	if c.Header == "" && c.Cookie == "" && c.Weight == 0 && p.values["canary-weight"] == "" {
		p.bad(nginxPrefix+"canary", "takes no request without canary-weight, canary-by-header or canary-by-cookie")
	}
	p.out.canary = &c
}

func (p *parser) combineAuth() {
	if p.authURL.URL != "" {
		p.combineCache()
		p.combineAuthURL()
	}
	if p.values["auth-type"] != "basic" {
		if _, typed := p.values["auth-type"]; !typed && p.values["auth-secret"] != "" {
			p.close("auth-secret")
			p.bad(nginxPrefix+"auth-secret",
				"has no effect without auth-type; it restricts access, so all paths of this Ingress answer 503")
		}
		return
	}
	wrong := func(format string, args ...any) {
		p.close("auth-secret")
		p.bad(nginxPrefix+"auth-secret", format+"; all paths of this Ingress answer 503", args...)
	}
	if p.auth.secret.Name == "" {
		if _, said := p.values["auth-secret"]; !said {
			wrong("is missing: auth-type basic needs a Secret with users")
		}
		return
	}
	p.out.secrets = append(p.out.secrets, p.auth.secret)
	s, ok := secretOf(p.snap, p.auth.secret)
	if !ok {
		wrong("Secret %s does not exist", p.auth.secret)
		return
	}
	users := s.Users
	if p.auth.secretKind == "auth-map" {
		users = s.UserMap
	}
	if len(users) == 0 {
		if s.Wrong != "" {
			wrong("Secret %s %s", p.auth.secret, s.Wrong)
			return
		}
		wrong("Secret %s has no users: auth-file needs a key auth with lines of htpasswd, auth-map a key with a "+
			"hash for each user", p.auth.secret)
		return
	}
	good := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(users)) {
		if err := htpasswd.Check(users[name]); err != nil {
			p.bad(nginxPrefix+"auth-secret", "user %q of Secret %s cannot sign in: %v", name, p.auth.secret, err)
			continue
		}
		good[name] = users[name]
	}
	p.out.table.Auth = &schema.Auth{Realm: p.auth.realm, Users: good}
}

// combineAuthURL finds the Service that a URL names: the proxy does not query the cluster DNS.
func (p *parser) combineAuthURL() {
	u := p.authURL
	if s, b, ok := p.settings.serviceOf(u.URL); ok {
		key, why := resolve(p.snap, s.Namespace, b)
		if why != "" {
			p.close("auth-url")
			p.bad(nginxPrefix+"auth-url", "%s; all paths of this Ingress answer 503", why)
			return
		}
		u.Backend = key
	} else if n, ok := p.shortService(u.URL); ok {
		p.bad(nginxPrefix+"auth-url", "the proxy uses the DNS of the node, which does not know Service %s by this "+
			"name; use %s.%s.svc, which needs no DNS", n, n.Name, n.Namespace)
	}
	p.out.table.AuthURL = &u
}

// shortService returns the Service that a URL seems to name as pods may, by NAME or NAME.NAMESPACE.
func (p *parser) shortService(text string) (model.Name, bool) {
	u, err := templateURL(text)
	if err != nil {
		return model.Name{}, false
	}
	name, ns, _ := strings.Cut(strings.ToLower(u.Hostname()), ".")
	n := model.Name{Namespace: cmp.Or(ns, p.in.Name.Namespace), Name: name}
	_, ok := p.snap.Service(n)
	return n, ok
}

// serviceOf returns the Service and port that a URL names by its cluster DNS name.
func (s Settings) serviceOf(text string) (model.Name, model.IngressBackend, bool) {
	u, err := url.Parse(text)
	if err != nil {
		if u, err = url.Parse(filled(text)); err != nil {
			return model.Name{}, model.IngressBackend{}, false
		}
	}
	f := strings.SplitN(strings.TrimSuffix(strings.ToLower(u.Hostname()), "."), ".", 4)
	if len(f) < 3 || f[2] != "svc" || len(f) == 4 &&
		f[3] != cmp.Or(strings.ToLower(strings.TrimSuffix(s.ClusterDomain, ".")), "cluster.local") {
		return model.Name{}, model.IngressBackend{}, false
	}
	port := uint16(80)
	if u.Scheme == "https" {
		port = 443
	}
	if n, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
		port = uint16(n)
	}
	return model.Name{Namespace: f[1], Name: f[0]}, model.IngressBackend{Service: f[0], Port: port}, true
}

func (p *parser) combineLimits() {
	o := &p.out.table
	multiplier := 5
	if p.burst != nil {
		multiplier = *p.burst
	}
	if o.RPS = p.rps; p.rps > 0 {
		o.Burst = max(1, multiplier*int(p.rps))
	}
	if o.RPM = int(p.rpm); p.rpm > 0 {
		o.BurstRPM = max(1, multiplier*int(p.rpm))
	}
	if o.Bandwidth == 0 {
		o.BandwidthAfter = 0
	}
}

// Parsers of values.

// boolean accepts what strconv.ParseBool accepts, as ingress-nginx does.
func boolean(to func(p *parser, v bool)) func(*parser, string) error {
	return func(p *parser, v string) error {
		on, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", v)
		}
		to(p, on)
		return nil
	}
}

// booleanOr parses a boolean with a safe value, which an invalid one becomes.
func booleanOr(safe bool, to func(p *parser, v bool)) func(*parser, string) error {
	return func(p *parser, v string) error {
		err := boolean(to)(p, v)
		if err != nil {
			to(p, safe)
			err = fmt.Errorf("%w; %v is used", err, safe)
		}
		return err
	}
}

// onlyFalse is for switches that are not built.
func onlyFalse(_ *parser, v string) error {
	if on, err := strconv.ParseBool(v); err != nil || on {
		return fmt.Errorf("%q is not built; allowed: false", v)
	}
	return nil
}

// isTrue reports whether a boolean is set and true.
func (p *parser) isTrue(name string) bool {
	on, err := strconv.ParseBool(p.values[name])
	return err == nil && on
}

func number(low, high int, to func(p *parser, n int)) func(*parser, string) error {
	return func(p *parser, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < low || n > high {
			return fmt.Errorf("%q is not a number from %d to %d", v, low, high)
		}
		to(p, n)
		return nil
	}
}

// maxSeconds is the longest time, which is also nginx's limit.
const maxSeconds = math.MaxInt32

// seconds parses a time-out as in ingress-nginx, without a unit.
func seconds(to func(p *parser, d time.Duration)) func(*parser, string) error {
	return number(1, maxSeconds, func(p *parser, n int) { to(p, time.Duration(n)*time.Second) })
}

// inAnyCase is oneOf for values that ingress-nginx accepts in upper or lower case; to gets the listed spelling.
func inAnyCase(to func(p *parser, v string), allowed ...string) func(*parser, string) error {
	return func(p *parser, v string) error {
		for _, a := range allowed {
			if strings.EqualFold(a, v) {
				v = a
			}
		}
		return oneOf(to, allowed...)(p, v)
	}
}

func oneOf(to func(p *parser, v string), allowed ...string) func(*parser, string) error {
	return func(p *parser, v string) error {
		if !slices.Contains(allowed, v) {
			return fmt.Errorf("%q is not built; allowed: %s", v, strings.Join(allowed, ", "))
		}
		to(p, v)
		return nil
	}
}

// token parses the name of a header field or cookie (RFC 9110, 5.6.2).
func token(to func(p *parser, v string)) func(*parser, string) error {
	return func(p *parser, v string) error {
		if !isToken(v) {
			return fmt.Errorf("%q is not a name: letters, digits and !#$%%&'*+-.^_`|~ are allowed", v)
		}
		to(p, v)
		return nil
	}
}

func isToken(v string) bool {
	for _, c := range []byte(v) {
		if !('a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return v != ""
}

// fieldValue parses a value of a header field.
func fieldValue(to func(p *parser, v string)) func(*parser, string) error {
	return func(p *parser, v string) error {
		for _, c := range []byte(v) {
			if c < 0x20 || c == 0x7f {
				return fmt.Errorf("%q contains a control character", v)
			}
		}
		to(p, v)
		return nil
	}
}

// tokens parses a list of names, separated by commas or spaces. ingress-nginx accepts a single star in some lists; in
// the others it uses its default, which allows less.
func tokens(star bool, to func(p *parser, v string)) func(*parser, string) error {
	return func(p *parser, v string) error {
		names := strings.FieldsFunc(v, func(c rune) bool { return c == ',' || c == ' ' })
		for _, t := range names {
			if t == "*" && !star {
				return errStar
			}
			if t != "*" && !isToken(t) {
				return fmt.Errorf("%q is not a list of names separated by commas: %q is not a name", v, t)
			}
		}
		if len(names) == 0 {
			return fmt.Errorf("%q is not a list of names separated by commas", v)
		}
		to(p, strings.Join(names, ", "))
		return nil
	}
}

var errStar = errors.New("has a star, which ingress-nginx does not accept here; the default is used")

// location parses a redirect URL: absolute, or a path.
func location(to func(p *parser, v string)) func(*parser, string) error {
	return func(p *parser, v string) error {
		if err := template(v); err != nil {
			return err
		}
		u, err := templateURL(v)
		switch {
		case err != nil || v == "" || strings.ContainsAny(v, " \t\r\n\"<>"):
			return fmt.Errorf("%q is not a URL", v)
		case u.IsAbs() && u.Scheme != "http" && u.Scheme != "https" || u.IsAbs() && u.Host == "" || !u.IsAbs() &&
			!strings.HasPrefix(v, "/"):
			return fmt.Errorf("%q is neither http://…, https://… nor a path", v)
		}
		to(p, v)
		return nil
	}
}

// size parses a number of bytes as in nginx: 8m, 512k, 1g; 0 is no limit.
func size(to func(p *parser, n int64)) func(*parser, string) error {
	return func(p *parser, v string) error {
		digits, unit := v, int64(1)
		if n := len(v); n > 0 {
			switch v[n-1] | 0x20 {
			case 'k':
				digits, unit = v[:n-1], 1<<10
			case 'm':
				digits, unit = v[:n-1], 1<<20
			case 'g':
				digits, unit = v[:n-1], 1<<30
			}
		}
		n, err := strconv.ParseUint(digits, 10, 63)
		if err != nil || n > uint64(math.MaxInt64/unit) {
			return fmt.Errorf("%q is not a size like 8m, 512k or 1g", v)
		}
		to(p, int64(n)*unit)
		return nil
	}
}

// networks parses addresses and CIDRs, separated by commas. A superfluous comma is ignored.
func networks(to func(p *parser, list []netip.Prefix)) func(*parser, string) error {
	return func(p *parser, v string) error {
		if n := len(list(v)); n > maxNetworks {
			return fmt.Errorf("has %d addresses and CIDRs; allowed: %d", n, maxNetworks)
		}
		var out []netip.Prefix
		for _, s := range list(v) {
			n, err := parseNetwork(s)
			if err != nil {
				return err
			}
			out = append(out, n)
		}
		if len(out) == 0 {
			return fmt.Errorf("%q contains neither an address nor a CIDR", v)
		}
		to(p, out)
		return nil
	}
}

// parseNetwork parses an address or a CIDR. IPv4-mapped addresses become IPv4, as those of clients.
func parseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	n, err := netip.ParsePrefix(s)
	if err != nil {
		return n, fmt.Errorf("%q is neither an address nor a CIDR", s)
	}
	if n.Addr().Is4In6() && n.Bits() >= 96 {
		n = netip.PrefixFrom(n.Addr().Unmap(), n.Bits()-96)
	}
	return n.Masked(), nil
}

func pattern(to func(p *parser, v string)) func(*parser, string) error {
	return func(p *parser, v string) error {
		if err := table.Prepare(&schema.Path{
			Options: &schema.Options{Canary: []schema.Canary{{Pattern: v}}}}).Err; err != nil {
			return fmt.Errorf("%q is not a valid RE2 expression within the bounds: %w", v, err)
		}
		to(p, v)
		return nil
	}
}

// nothing is for annotations that tune nginx only.
func nothing(*parser, string) error { return nil }
