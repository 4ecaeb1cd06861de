package table

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Field is a header field that a path sets. Value is a Template; an empty one takes the field
// out.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// CacheValid is how long an answer of one of the statuses may be used again.
type CacheValid struct {
	// Statuses that it is for; empty is every one.
	Statuses []int         `json:"statuses,omitempty"`
	For      time.Duration `json:"for"`
}

// CookieStatus says whether a response of the status has cookies of an authentication server where
// AuthURL.AlwaysCookie is not set, as nginx's add_header does it.
func CookieStatus(status int) bool {
	switch status {
	case 200, 201, 204, 206, 301, 302, 303, 304, 307, 308:
		return true
	}
	return false
}

// Upstream is what endpoints are sent beside the request.
type Upstream struct {
	// Host is the field Host, a Template; empty is the client's.
	Host string `json:"host,omitempty"`
	// Fields are set in place of the client's.
	Fields []Field `json:"fields,omitempty"`
}

// Response is how the responses of endpoints are changed.
type Response struct {
	// Fields are set in place of the endpoint's.
	Fields []Field `json:"fields,omitempty"`
	// Domain and CookiePath change these attributes of cookies, Location the fields Location and
	// Refresh. Of several rules the first that fits counts.
	Domain     []Replace `json:"domain,omitempty"`
	CookiePath []Replace `json:"cookiePath,omitempty"`
	Location   []Replace `json:"location,omitempty"`
}

// Replace is a rule: what From fits becomes To. From is text, which the value must begin with,
// or a regular expression (RE2) behind "~", or behind "~*" without regard to case. To is a Template,
// in which $1 … are the groups of the expression.
type Replace struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Retry is when a request that failed goes to another endpoint. A body that has begun to leave is
// never sent again.
type Retry struct {
	// Never ends with the first endpoint.
	Never bool `json:"never,omitempty"`
	// Timeout has an endpoint that took too long count as one that failed.
	Timeout bool `json:"timeout,omitempty"`
	// Statuses of responses that count as failures.
	Statuses []int `json:"statuses,omitempty"`
	// Unsafe has requests sent again whose methods may do a thing twice, as POST.
	Unsafe bool `json:"unsafe,omitempty"`
	// Tries is how many endpoints may be asked, 0 for the proxy's number.
	Tries int `json:"tries,omitempty"`
	// Within is how long tries may be begun, 0 for no limit.
	Within time.Duration `json:"within,omitempty"`
}

// Errors are statuses for which another backend answers, with fields that say what happened.
type Errors struct {
	// Backend answers for Statuses, and in place of a backend without endpoints.
	Backend  string `json:"backend,omitempty"`
	Statuses []int  `json:"statuses,omitempty"`
	// OwnOnly leaves responses of endpoints as they are: only what the proxy itself answers
	// counts.
	OwnOnly bool `json:"ownOnly,omitempty"`
	// Namespace, Ingress, Service and Port are told to the backend.
	Namespace string `json:"namespace,omitempty"`
	Ingress   string `json:"ingress,omitempty"`
	Service   string `json:"service,omitempty"`
	Port      string `json:"port,omitempty"`
}

// EndpointTLS is how endpoints are spoken to by TLS.
type EndpointTLS struct {
	// Certificate is the key of that which endpoints are shown; empty for none.
	Certificate string `json:"certificate,omitempty"`
	// Authority is the key of the authorities that must have signed the endpoint's
	// certificate, with at most Depth between; empty checks nothing.
	Authority string `json:"authority,omitempty"`
	Depth     int    `json:"depth,omitempty"`
	// Name is what the certificate must be for; SendName has it said in the handshake (SNI).
	Name     string `json:"name,omitempty"`
	SendName bool   `json:"sendName,omitempty"`
	// Least and Most are versions of TLS as crypto/tls has them, 0 for its own.
	Least uint16 `json:"least,omitempty"`
	Most  uint16 `json:"most,omitempty"`
	// Ciphers are for TLS 1.2 and before, empty for those of crypto/tls.
	Ciphers []uint16 `json:"ciphers,omitempty"`
}

// Mirror sends copies of requests elsewhere; what comes back is thrown away.
type Mirror struct {
	// URL is a Template. Backend is asked at its endpoints in place of looking the host up.
	URL     string `json:"url"`
	Backend string `json:"backend,omitempty"`
	// Host is the field Host, a Template; empty is that of the URL.
	Host string `json:"host,omitempty"`
	// Body sends bodies, too.
	Body bool `json:"body,omitempty"`
}

// ReadyField is a Field that was read.
type ReadyField struct {
	Name  []byte
	Value Template
}

// ReadyReplace is a Replace that was read.
type ReadyReplace struct {
	// Begin is in place of an expression.
	Begin string
	Match *regexp.Regexp
	To    Template
}

// extras are what of the options is read for a request's use beside the templates of Ready.
type extras struct {
	// Target, CacheKey, Host, Mirror and MirrorHost are templates of AuthURL, Upstream and Mirror.
	Target, CacheKey, Host, Mirror, MirrorHost Template
	Ask                                        []ReadyField
	Request, Response                          []ReadyField
	Domain, CookiePath, Location               []ReadyReplace
}

func (r *Ready) readExtras(o *Options) (errs []error) {
	template := func(to *Template, field, s string) {
		t, err := ParseTemplate(s)
		if *to = t; err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w", field, s, err))
		}
	}
	fields := func(to *[]ReadyField, field string, list []Field) {
		for _, f := range list {
			one := ReadyField{Name: []byte(f.Name)}
			template(&one.Value, field, f.Value)
			*to = append(*to, one)
		}
	}
	replace := func(to *[]ReadyReplace, field string, list []Replace) {
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

func readReplace(p Replace) (out ReadyReplace, err error) {
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
	prog, err := compile1(from, prefix)
	if err != nil {
		return out, err
	}
	out.Match = prog.re
	return out, nil
}
