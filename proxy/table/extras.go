package table

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"wayleave.dev/proxy/regex"
	"wayleave.dev/proxy/schema"
)

// ReadyField is a parsed Field.
type ReadyField struct {
	Name  []byte
	Value Template
}

// ReadyReplace is a parsed Replace.
type ReadyReplace struct {
	// Begin is used in place of an expression.
	Begin string
	Match *regexp.Regexp
	To    Template
}

// extras are the parsed options in addition to the templates of Ready.
type extras struct {
	// Target, CacheKey, Host, Mirror and MirrorHost are templates of AuthURL, Upstream and Mirror.
	Target, CacheKey, Host, Mirror, MirrorHost Template
	Ask                                        []ReadyField
	Request, Response                          []ReadyField
	Domain, CookiePath, Location               []ReadyReplace
}

func (r *Ready) readExtras(o *schema.Options) (errs []error) {
	template := func(to *Template, field, s string) {
		t, err := ParseTemplate(s)
		if *to = t; err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w", field, s, err))
		}
	}
	fields := func(to *[]ReadyField, field string, list []schema.Field) {
		for _, f := range list {
			one := ReadyField{Name: []byte(f.Name)}
			template(&one.Value, field, f.Value)
			*to = append(*to, one)
		}
	}
	replace := func(to *[]ReadyReplace, field string, list []schema.Replace) {
		for _, p := range list {
			one, err := readReplace(p)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", field, err))
			}
			*to = append(*to, one)
		}
	}
	x := &r.Extras
	if a := o.AuthURL; a != nil {
		template(&x.Target, "authURL.target", a.Target)
		template(&x.CacheKey, "authURL.cacheKey", a.CacheKey)
		fields(&x.Ask, "authURL.fields", a.Fields)
	}
	if u := o.Upstream; u != nil {
		template(&x.Host, "upstream.host", u.Host)
		fields(&x.Request, "upstream.fields", u.Fields)
	}
	if p := o.Response; p != nil {
		fields(&x.Response, "response.fields", p.Fields)
		replace(&x.Domain, "response.domain", p.Domain)
		replace(&x.CookiePath, "response.cookiePath", p.CookiePath)
		replace(&x.Location, "response.location", p.Location)
	}
	if m := o.Mirror; m != nil {
		template(&x.Mirror, "mirror.url", m.URL)
		template(&x.MirrorHost, "mirror.host", m.Host)
	}
	return errs
}

func readReplace(p schema.Replace) (out ReadyReplace, err error) {
	if out.To, err = ParseTemplate(p.To); err != nil {
		return out, fmt.Errorf("%q: %w", p.To, err)
	}
	from, pattern := strings.CutPrefix(p.From, "~")
	if !pattern {
		if out.Begin = p.From; p.From == "" {
			err = errors.New("nothing to replace")
		}
		return out, err
	}
	prefix := ""
	if rest, fold := strings.CutPrefix(from, "*"); fold {
		from, prefix = rest, "(?i)"
	}
	prog, err := regex.Compile(from, prefix)
	if err != nil {
		return out, err
	}
	out.Match = prog.Regexp
	return out, nil
}
