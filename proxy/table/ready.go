package table

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"wayleave.dev/proxy/regex"
	"wayleave.dev/proxy/schema"
)

// Ready are a path's Options, parsed once for all requests.
type Ready struct {
	Rewrite, Redirect, Hash, Ask, SignIn Template
	// Headers are the patterns of Options.Canary; nil for canaries without one.
	Headers []*regexp.Regexp
	Origins Origins
	// Limit identifies the requests that are counted together: those of one Ingress. LimitRPM is the same for the limit
	// per minute.
	Limit, LimitRPM string
	Extras          extras
	// Err is a parse error. The path is closed then: an option that is left out may be a guard.
	Err error
}

// Prepare parses the options of a path. Ready.Err is used for Events, too.
func Prepare(p *schema.Path) *Ready {
	var bad error
	if p.Options.PathPattern != "" {
		if _, err := regex.CompilePath(p.Options.PathPattern); err != nil {
			bad = fmt.Errorf("pathPattern: %w", err)
		}
	}
	return prepare(p, bad)
}

// prepare parses the options of a path whose pattern was compiled; pattern is the error of that.
func prepare(p *schema.Path, pattern error) *Ready {
	o := p.Options
	r := &Ready{Origins: Origins{}, Limit: owner(p), LimitRPM: owner(p) + " by the minute"}
	errs := []error{pattern}
	template := func(to *Template, field, s string) {
		t, err := ParseTemplate(s)
		if *to = t; err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w", field, s, err))
		}
	}
	template(&r.Rewrite, "rewriteTarget", o.RewriteTarget)
	template(&r.Redirect, "redirect", o.Redirect)
	template(&r.Hash, "hashBy", o.HashBy)
	if o.AuthURL != nil {
		template(&r.Ask, "authURL.url", o.AuthURL.URL)
		template(&r.SignIn, "authURL.signIn", o.AuthURL.SignIn)
	}
	for i, c := range o.Canary {
		var re *regexp.Regexp
		if c.Pattern != "" {
			if prog, err := regex.Compile(c.Pattern, ""); err != nil {
				errs = append(errs, fmt.Errorf("canary[%d].pattern: %w", i, err))
			} else {
				re = prog.Regexp
			}
		}
		r.Headers = append(r.Headers, re)
	}
	if o.CORS != nil {
		r.Origins = parseOrigins(o.CORS.Origins)
	}
	r.Err = errors.Join(append(errs, r.readExtras(o)...)...)
	return r
}

// owner returns kind and name of a path's source: "Ingress shop/main".
func owner(p *schema.Path) string {
	if f := strings.Fields(p.Source); len(f) >= 2 {
		return f[0] + " " + f[1]
	}
	return p.Source + p.Path
}

// Origins are the allowed origins of cross-origin requests.
type Origins struct {
	Any   bool
	exact map[string]bool
	wild  []wildOrigin
}

// wildOrigin is "https://" and ".example.com:8443" for "https://*.example.com:8443".
type wildOrigin struct{ before, after string }

func parseOrigins(list []string) Origins {
	o := Origins{Any: len(list) == 0, exact: map[string]bool{}}
	for _, s := range list {
		s = strings.ToLower(strings.TrimSpace(s))
		if s == "*" {
			o.Any = true
		} else if i := strings.Index(s, "*."); i >= 0 {
			o.wild = append(o.wild, wildOrigin{s[:i], s[i+1:]})
		} else {
			o.exact[s] = true
		}
	}
	return o
}

// Allows reports whether an origin, as a browser sends it, is allowed.
func (o *Origins) Allows(origin []byte) bool {
	if len(origin) == 0 || len(origin) > 512 {
		return false
	}
	if o.Any {
		return true
	}
	s := strings.ToLower(string(origin))
	if o.exact[s] {
		return true
	}
	for _, w := range o.wild {
		if label, ok := strings.CutPrefix(s, w.before); ok {
			if label, ok = strings.CutSuffix(label, w.after); ok && isLabel(label) {
				return true
			}
		}
	}
	return false
}

func isLabel(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return s != ""
}
