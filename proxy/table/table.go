// Package table is what a proxy routes by: hosts with their paths, backends with their
// endpoints, certificates. Who reads it has a Table that never changes; who changes it
// makes a new one, in which what did not change is shared.
package table

import (
	"net/netip"
	"reflect"
	"time"
)

// PathKind is how a Path compares.
type PathKind uint8

// The kinds of Kubernetes' pathType; ImplementationSpecific is Prefix.
const (
	Exact PathKind = iota
	Prefix
)

// Host is all that is routed for one host name.
type Host struct {
	// Name is in lower case; "*.example.com" is any one label before .example.com, and
	// empty what no other host has.
	Name  string `json:"name"`
	Paths []Path `json:"paths,omitempty"`
	// Certificate is the key of that for TLS connections to this name, empty for the
	// default one.
	Certificate string `json:"certificate,omitempty"`
	// Default is the backend of what no path has, empty for that of the table.
	Default *Path `json:"default,omitempty"`
	// Namespace owns the host since then, in seconds of Unix time.
	Namespace string `json:"namespace,omitempty"`
	Since     int64  `json:"since,omitempty"`
	// OneNamespace says that no path of another namespace serves the host: none of a wildcard
	// host above it, and none of hosts that are not named.
	OneNamespace bool `json:"oneNamespace,omitempty"`
	// Passthrough is the key of the backend that connections for TLS are handed to as they are; empty
	// for none.
	Passthrough string `json:"passthrough,omitempty"`
	// ClientCert has clients show a certificate; nil asks for none.
	ClientCert *ClientCert `json:"clientCert,omitempty"`
	// Ciphers are those for TLS 1.2 and before, as crypto/tls numbers them; empty for its own.
	Ciphers []uint16 `json:"ciphers,omitempty"`
	// Regex says that every path also matches what begins with its text, without regard to case and
	// to elements, as ingress-nginx reads a host on which one Ingress asks for regular expressions.
	// Such a match opens no guard.
	Regex bool `json:"regex,omitempty"`
}

// Path is one way, and where it leads.
type Path struct {
	Kind PathKind `json:"kind"`
	// Path begins with a slash.
	Path string `json:"path"`
	// Backend is the key of one; empty answers 503.
	Backend string `json:"backend,omitempty"`
	// Options are what the Ingress asks for beside; nil for nothing.
	Options *Options `json:"options,omitempty"`
	// Closed says that something keeps requests out and cannot be done: 503, whatever else the
	// path has.
	Closed bool `json:"closed,omitempty"`
	// Foreign says that the path is of another namespace than the host: its pattern takes no
	// request from the paths of the host's namespace.
	Foreign bool `json:"foreign,omitempty"`
	// Source is the object and field that says so, for logs and people:
	// "Ingress shop/main spec.rules[0].http.paths[1]".
	Source string `json:"source,omitempty"`
}

// Backend is the port of a Service with its endpoints.
type Backend struct {
	// Key is "namespace/service:port".
	Key       string     `json:"key"`
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// Endpoint is one server.
type Endpoint struct {
	Addr netip.AddrPort `json:"addr"`
	// Draining ones get no new exchanges while there are others.
	Draining bool `json:"draining,omitempty"`
}

// Certificate is one of a Secret, in PEM. It is never written to a disk.
type Certificate struct {
	// Key is "namespace/name" of the Secret.
	Key   string `json:"key"`
	Chain []byte `json:"chain,omitempty"`
	Priv  []byte `json:"priv,omitempty"`
	// CA are authorities, and CRL their revocation lists, in PEM. A Certificate may be one of
	// these alone.
	CA  []byte `json:"ca,omitempty"`
	CRL []byte `json:"crl,omitempty"`
}

// Protocol is how endpoints are spoken to.
type Protocol string

// The protocols; empty is HTTP.
const (
	HTTP  Protocol = "HTTP"
	HTTPS Protocol = "HTTPS"
	GRPC  Protocol = "GRPC"
	GRPCS Protocol = "GRPCS"
)

// Options of a path. The zero value asks for nothing.
type Options struct {
	// RewriteTarget takes the place of the path; $1 … are groups of PathPattern.
	RewriteTarget string `json:"rewriteTarget,omitempty"`
	// PathPattern is a regular expression (RE2) that the path must match from its begin,
	// without regard to case, in place of its Path.
	PathPattern string `json:"pathPattern,omitempty"`
	// RedirectTLS sends plain requests to https, with that status.
	RedirectTLS int `json:"redirectTLS,omitempty"`
	// Redirect answers with a redirection to a URL, RedirectCode with which status (302).
	// The URL is a Template, as those of AuthURL are.
	Redirect     string `json:"redirect,omitempty"`
	RedirectCode int    `json:"redirectCode,omitempty"`
	// RedirectQuery adds the query of the request to that URL, as a RewriteTarget keeps it.
	RedirectQuery bool `json:"redirectQuery,omitempty"`
	// MaxBody is the largest request body in bytes, 0 for none.
	MaxBody int64 `json:"maxBody,omitempty"`
	// Connect, Send and Read are time-outs towards the endpoint, 0 for the proxy's.
	Connect, Send, Read time.Duration `json:",omitempty"`
	Protocol            Protocol      `json:"protocol,omitempty"`
	// SendProxy begins connections to the endpoint with a PROXY header of that version, 1
	// or 2; 0 for none.
	SendProxy uint8 `json:"sendProxy,omitempty"`
	// Affinity has a client keep its endpoint by a cookie.
	Affinity *Affinity `json:"affinity,omitempty"`
	// HashBy chooses the endpoint by variables of the request, and text; see Template.
	HashBy string `json:"hashBy,omitempty"`
	// LeastRequest and RoundRobin choose how endpoints are drawn; random two is the
	// default.
	Balance string `json:"balance,omitempty"`
	// Canary are other backends for a part of the requests, the first that takes one.
	Canary []Canary `json:"canary,omitempty"`
	// Sources may use the path, others get 403; empty for all.
	Sources []netip.Prefix `json:"sources,omitempty"`
	Auth    *Auth          `json:"auth,omitempty"`
	AuthURL *AuthURL       `json:"authURL,omitempty"`
	CORS    *CORS          `json:"cors,omitempty"`
	// RPS is how many requests a second a client may make, with bursts of Burst; 0 for
	// no limit.
	RPS   float64 `json:"rps,omitempty"`
	Burst int     `json:"burst,omitempty"`
	// RPM and BurstRPM are a second limit, by the minute.
	RPM      int `json:"rpm,omitempty"`
	BurstRPM int `json:"burstRPM,omitempty"`
	// Denied are clients that get 403, whatever Sources says.
	Denied []netip.Prefix `json:"denied,omitempty"`
	// AnyOf lets in a client that one of Sources, Auth and AuthURL lets in; without it all must.
	AnyOf bool `json:"anyOf,omitempty"`
	// Exchanges is how many of a client may be open at a time, 0 for no limit.
	Exchanges int `json:"exchanges,omitempty"`
	// Unlimited are clients to which RPS, RPM and Exchanges do not apply.
	Unlimited []netip.Prefix `json:"unlimited,omitempty"`
	// Bandwidth is the most bytes a second of a response's body behind its first
	// BandwidthAfter bytes, 0 for no limit.
	Bandwidth      int64 `json:"bandwidth,omitempty"`
	BandwidthAfter int64 `json:"bandwidthAfter,omitempty"`
	// HashSubset is how many endpoints share a key of HashBy; 0 is one.
	HashSubset int `json:"hashSubset,omitempty"`
	// Upstream is what endpoints are sent beside the request.
	Upstream *Upstream `json:"upstream,omitempty"`
	// Response is how responses of endpoints are changed.
	Response *Response `json:"response,omitempty"`
	// Retry is when a request goes to another endpoint; nil is the proxy's own rule.
	Retry *Retry `json:"retry,omitempty"`
	// Errors are statuses for which another backend answers.
	Errors *Errors `json:"errors,omitempty"`
	// TLS is how endpoints of HTTPS and GRPCS are spoken to; nil checks nothing.
	TLS *EndpointTLS `json:"tls,omitempty"`
	// Unlogged leaves the requests out of the access log.
	Unlogged bool `json:"unlogged,omitempty"`
	// Mirror sends copies of requests elsewhere.
	Mirror *Mirror `json:"mirror,omitempty"`
}

// Affinity is a cookie that names the endpoint.
type Affinity struct {
	Name     string        `json:"name"`
	Path     string        `json:"path,omitempty"`
	MaxAge   time.Duration `json:"maxAge,omitempty"`
	SameSite string        `json:"sameSite,omitempty"`
	Secure   bool          `json:"secure,omitempty"`
	// Domain is the attribute; empty for none.
	Domain string `json:"domain,omitempty"`
	// Partitioned sets that attribute (CHIPS).
	Partitioned bool `json:"partitioned,omitempty"`
	// Conditional leaves SameSite=None out for browsers that do not know it.
	Conditional bool `json:"conditional,omitempty"`
	// Moves gives the client another endpoint for good when its own fails.
	Moves bool `json:"moves,omitempty"`
}

// Canary takes a part of the requests: by header, then by cookie, then by weight.
type Canary struct {
	Backend string `json:"backend"`
	Header  string `json:"header,omitempty"`
	// Value is what the header must have; empty: "always" takes and "never" does not.
	Value string `json:"value,omitempty"`
	// Pattern is a regular expression for the header's value, in place of Value.
	Pattern string `json:"pattern,omitempty"`
	Cookie  string `json:"cookie,omitempty"`
	// Weight of Total.
	Weight int    `json:"weight,omitempty"`
	Total  int    `json:"total,omitempty"`
	Source string `json:"source,omitempty"`
	// EachTime draws by weight for each request, also for a client that has its endpoint by a cookie.
	EachTime bool `json:"eachTime,omitempty"`
}

// Auth is HTTP basic authentication (RFC 7617).
type Auth struct {
	Realm string `json:"realm"`
	// Users has password hashes by name, as htpasswd writes them.
	Users map[string]string `json:"users"`
}

// AuthURL asks another server about each request.
type AuthURL struct {
	URL string `json:"url"`
	// Backend is asked at its endpoints, in place of looking up the URL's host: for names
	// of Services, which a proxy outside of the cluster's DNS does not know. Empty for the
	// host.
	Backend string `json:"backend,omitempty"`
	Method  string `json:"method,omitempty"`
	// SignIn is where who is refused is sent.
	SignIn string `json:"signIn,omitempty"`
	// Headers of its answer go on to the endpoint.
	Headers []string `json:"headers,omitempty"`
	// Param is the argument of SignIn that says where the client wanted to go; empty is "rd".
	Param string `json:"param,omitempty"`
	// Target is what the server is told as X-Auth-Request-Redirect, a Template; empty is the
	// request's target.
	Target string `json:"target,omitempty"`
	// AlwaysCookie passes cookies of the server on with all responses; without it only with
	// those of CookieStatus.
	AlwaysCookie bool `json:"alwaysCookie,omitempty"`
	// CacheKey is a Template; requests for which it makes the same text get the same answer
	// for as long as Cache says. Empty asks for each.
	CacheKey string       `json:"cacheKey,omitempty"`
	Cache    []CacheValid `json:"cache,omitempty"`
	// Fields are sent to the server beside the request's.
	Fields []Field `json:"fields,omitempty"`
}

// CORS answers preflight requests and adds the headers of cross-origin sharing.
type CORS struct {
	Origins     []string `json:"origins,omitempty"`
	Methods     string   `json:"methods,omitempty"`
	Headers     string   `json:"headers,omitempty"`
	Expose      string   `json:"expose,omitempty"`
	Credentials bool     `json:"credentials,omitempty"`
	// MaxAge is 0 for the default; less has browsers keep nothing.
	MaxAge time.Duration `json:"maxAge,omitempty"`
}

// Table routes. It must not be changed.
type Table struct {
	exact map[string]*Routes
	// wild are by what follows the star.
	wild map[string]*Routes
	rest *Routes
	// certified says that some host asks for certificates of clients, or has ciphers of its own.
	certified bool
	// passes says that some host is passed through.
	passes bool
	// asserted are fields that clients may not set, by Service.
	asserted map[string][]string
	// said are all of these names, once each in lower case.
	said []string
	// lower routes paths in lower case; nil where this table does.
	lower *Table
}

// Routes are the paths of one host, made for looking up.
type Routes struct {
	Host   *Host
	exact  map[string]*Path
	prefix map[string]*Path
	// ordered is nil for a host without patterns.
	ordered *ordered
	// ready are the options of the paths that have some.
	ready map[*Path]*Ready
	// asserted is the host's part of Table.asserted.
	asserted map[string][]string
	// watched says that some path is guarded, folded are the routes in lower case; see
	// Table.Spelled.
	watched bool
	folded  *Routes
	// client is the host's rule for certificates of clients; nil for none.
	client *ClientRule
}

// Make makes a table; hosts that last has already are shared with it.
func Make(last *Table, hosts map[string]*Host) *Table {
	t := &Table{exact: make(map[string]*Routes, len(hosts)), wild: map[string]*Routes{}}
	for name, h := range hosts {
		var r *Routes
		if last != nil {
			if r = last.named(name); r != nil && r.Host != h {
				r = nil
			}
		}
		if r == nil {
			r = compile(h)
			r.watched = watches(r)
			r.folded = folded(r)
		}
		t.assert(r)
		t.passes = t.passes || h.Passthrough != ""
		t.certified = t.certified || r.client != nil || len(h.Ciphers) > 0
		switch {
		case name == "":
			t.rest = r
		case len(name) > 2 && name[:2] == "*.":
			t.wild[name[1:]] = r
		default:
			t.exact[name] = r
		}
	}
	t.said = t.allAsserted()
	t.lower = t.lowered()
	return t
}

func (t *Table) named(name string) *Routes {
	switch {
	case name == "":
		return t.rest
	case len(name) > 2 && name[:2] == "*.":
		return t.wild[name[1:]]
	}
	return t.exact[name]
}

func compile(h *Host) *Routes {
	r := &Routes{Host: h, exact: map[string]*Path{}, prefix: map[string]*Path{}, ready: map[*Path]*Ready{},
		asserted: assertions(h)}
	r.client = clientRule(h)
	if h.Default != nil && h.Default.Options != nil {
		r.ready[h.Default] = Prepare(h.Default)
	}
	patterns := compilePatterns(h)
	for i := range h.Paths {
		p := &h.Paths[i]
		prog, isPattern := patterns[i]
		if p.Options != nil {
			r.ready[p] = prepare(p, prog.err)
		}
		if isPattern {
			continue
		}
		into, key := r.exact, p.Path
		if p.Kind == Prefix {
			into, key = r.prefix, trimSlash(p.Path)
		}
		if _, there := into[key]; !there { // the first of two is the older one
			into[key] = p
		}
	}
	r.ordered = r.order(patterns)
	return r
}

// trimSlash: a trailing slash of a prefix means nothing.
func trimSlash(s string) string {
	for len(s) > 0 && s[len(s)-1] == '/' {
		s = s[:len(s)-1]
	}
	return s
}

// IsZero says that the options ask for nothing.
func (o *Options) IsZero() bool { return reflect.ValueOf(*o).IsZero() }
