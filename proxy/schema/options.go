package schema

import (
	"net/netip"
	"reflect"
	"time"
)

// Protocol is the protocol of endpoints.
type Protocol string

// The protocols; empty is HTTP.
const (
	HTTP  Protocol = "HTTP"
	HTTPS Protocol = "HTTPS"
	GRPC  Protocol = "GRPC"
	GRPCS Protocol = "GRPCS"
)

// Options of a path. The zero value has no effect.
type Options struct {
	// RewriteTarget replaces the path; $1 … are groups of PathPattern.
	RewriteTarget string `json:"rewriteTarget,omitempty"`
	// PathPattern is a regular expression (RE2) that the path must match from its start, case-insensitively, in place
	// of its Path.
	PathPattern string `json:"pathPattern,omitempty"`
	// RedirectTLS redirects plain requests to https, with this status.
	RedirectTLS int `json:"redirectTLS,omitempty"`
	// Redirect is the URL of a redirect; RedirectCode is its status (default 302). The URL is a Template, like those of
	// AuthURL.
	Redirect     string `json:"redirect,omitempty"`
	RedirectCode int    `json:"redirectCode,omitempty"`
	// RedirectQuery appends the query of the request to that URL, as a RewriteTarget keeps it.
	RedirectQuery bool `json:"redirectQuery,omitempty"`
	// MaxBody is the largest request body in bytes, 0 for none.
	MaxBody int64 `json:"maxBody,omitempty"`
	// Connect, Send and Read are time-outs of the endpoint; 0 for the proxy's defaults.
	Connect, Send, Read time.Duration `json:",omitempty"`
	Protocol            Protocol      `json:"protocol,omitempty"`
	// SendProxy starts connections to the endpoint with a PROXY header of that version, 1 or 2; 0 for none.
	SendProxy uint8 `json:"sendProxy,omitempty"`
	// Affinity keeps a client at its endpoint by a cookie.
	Affinity *Affinity `json:"affinity,omitempty"`
	// HashBy chooses the endpoint by variables of the request and text; see Template.
	HashBy string `json:"hashBy,omitempty"`
	// LeastRequest and RoundRobin choose how endpoints are selected; the default is the better of two random ones.
	Balance string `json:"balance,omitempty"`
	// Canary are other backends for some of the requests; the first that matches applies.
	Canary []Canary `json:"canary,omitempty"`
	// Sources may use the path, other clients get 403; empty for all.
	Sources []netip.Prefix `json:"sources,omitempty"`
	Auth    *Auth          `json:"auth,omitempty"`
	AuthURL *AuthURL       `json:"authURL,omitempty"`
	CORS    *CORS          `json:"cors,omitempty"`
	// RPS is how many requests per second a client may make, with bursts of Burst; 0 for no limit.
	RPS   float64 `json:"rps,omitempty"`
	Burst int     `json:"burst,omitempty"`
	// RPM and BurstRPM are a second limit, per minute.
	RPM      int `json:"rpm,omitempty"`
	BurstRPM int `json:"burstRPM,omitempty"`
	// Denied are clients that get 403, whatever Sources allows.
	Denied []netip.Prefix `json:"denied,omitempty"`
	// AnyOf admits a client that one of Sources, Auth and AuthURL admits; otherwise all of them must.
	AnyOf bool `json:"anyOf,omitempty"`
	// Exchanges is how many exchanges of a client may be open at a time; 0 for no limit.
	Exchanges int `json:"exchanges,omitempty"`
	// Unlimited are clients to which RPS, RPM and Exchanges do not apply.
	Unlimited []netip.Prefix `json:"unlimited,omitempty"`
	// Bandwidth limits a response's body after its first BandwidthAfter bytes, in bytes per second; 0 for no limit.
	Bandwidth      int64 `json:"bandwidth,omitempty"`
	BandwidthAfter int64 `json:"bandwidthAfter,omitempty"`
	// HashSubset is how many endpoints share a key of HashBy; 0 means 1.
	HashSubset int `json:"hashSubset,omitempty"`
	// Upstream changes the requests to endpoints.
	Upstream *Upstream `json:"upstream,omitempty"`
	// Response changes the responses of endpoints.
	Response *Response `json:"response,omitempty"`
	// Retry is when a request is sent to another endpoint; nil for the proxy's default.
	Retry *Retry `json:"retry,omitempty"`
	// Errors are statuses that another backend answers.
	Errors *Errors `json:"errors,omitempty"`
	// TLS configures HTTPS and GRPCS to endpoints; nil verifies nothing.
	TLS *EndpointTLS `json:"tls,omitempty"`
	// Unlogged excludes the requests from the access log.
	Unlogged bool `json:"unlogged,omitempty"`
	// Mirror sends copies of requests to another server.
	Mirror *Mirror `json:"mirror,omitempty"`
}

// Affinity is a cookie that identifies the endpoint.
type Affinity struct {
	Name     string        `json:"name"`
	Path     string        `json:"path,omitempty"`
	MaxAge   time.Duration `json:"maxAge,omitempty"`
	SameSite string        `json:"sameSite,omitempty"`
	Secure   bool          `json:"secure,omitempty"`
	// Domain is the attribute of that name; empty for none.
	Domain string `json:"domain,omitempty"`
	// Partitioned sets that attribute (CHIPS).
	Partitioned bool `json:"partitioned,omitempty"`
	// Conditional omits SameSite=None for browsers that do not support it.
	Conditional bool `json:"conditional,omitempty"`
	// Moves assigns the client to another endpoint permanently if its own fails.
	Moves bool `json:"moves,omitempty"`
}

// Canary selects some of the requests: by header, then by cookie, then by weight.
type Canary struct {
	Backend string `json:"backend"`
	Header  string `json:"header,omitempty"`
	// Value is the required value of the header; if empty, "always" selects and "never" excludes the request.
	Value string `json:"value,omitempty"`
	// Pattern is a regular expression for the header's value, in place of Value.
	Pattern string `json:"pattern,omitempty"`
	Cookie  string `json:"cookie,omitempty"`
	// Weight is the share of requests out of Total.
	Weight int    `json:"weight,omitempty"`
	Total  int    `json:"total,omitempty"`
	Source string `json:"source,omitempty"`
	// EachTime draws by weight for each request, also if a cookie assigns the client to an endpoint.
	EachTime bool `json:"eachTime,omitempty"`
}

// Auth is HTTP basic authentication (RFC 7617).
type Auth struct {
	Realm string `json:"realm"`
	// Users are password hashes by name, in htpasswd's formats.
	Users map[string]string `json:"users"`
}

// AuthURL sends a subrequest to an authentication server for each request.
type AuthURL struct {
	URL string `json:"url"`
	// Backend provides the endpoints of the server, instead of DNS for the URL's host: for names of Services, which a
	// proxy that does not use the cluster's DNS cannot resolve. Empty for the host.
	Backend string `json:"backend,omitempty"`
	Method  string `json:"method,omitempty"`
	// SignIn is the URL to which refused clients are redirected.
	SignIn string `json:"signIn,omitempty"`
	// Headers are the fields of the answer that are forwarded to the endpoint.
	Headers []string `json:"headers,omitempty"`
	// Param is the argument of SignIn with the original URL; empty for "rd".
	Param string `json:"param,omitempty"`
	// Target is the value of X-Auth-Request-Redirect, a Template; empty for the request's target.
	Target string `json:"target,omitempty"`
	// AlwaysCookie adds the server's cookies to all responses; otherwise only to those of CookieStatus.
	AlwaysCookie bool `json:"alwaysCookie,omitempty"`
	// CacheKey is a Template; requests with the same result share an answer for the time in Cache. Empty for no cache.
	CacheKey string       `json:"cacheKey,omitempty"`
	Cache    []CacheValid `json:"cache,omitempty"`
	// Fields are sent to the server in addition to the request's.
	Fields []Field `json:"fields,omitempty"`
}

// CORS answers preflight requests and adds the headers of cross-origin sharing.
type CORS struct {
	Origins     []string `json:"origins,omitempty"`
	Methods     string   `json:"methods,omitempty"`
	Headers     string   `json:"headers,omitempty"`
	Expose      string   `json:"expose,omitempty"`
	Credentials bool     `json:"credentials,omitempty"`
	// MaxAge is 0 for the default; a negative value disables caching in browsers.
	MaxAge time.Duration `json:"maxAge,omitempty"`
}

// IsZero reports whether the options have no effect.
func (o *Options) IsZero() bool { return reflect.ValueOf(*o).IsZero() }

// Field is a header field that a path sets. Value is a Template; an empty one removes the field.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// CacheValid is how long an answer with one of the statuses may be reused.
type CacheValid struct {
	// Statuses are those that it applies to; empty for all.
	Statuses []int         `json:"statuses,omitempty"`
	For      time.Duration `json:"for"`
}

// CookieStatus reports whether a response of the status gets cookies of an authentication server if
// AuthURL.AlwaysCookie is not set, like nginx's add_header.
func CookieStatus(status int) bool {
	switch status {
	case 200, 201, 204, 206, 301, 302, 303, 304, 307, 308:
		return true
	}
	return false
}

// Upstream changes requests to endpoints.
type Upstream struct {
	// Host is the field Host, a Template; empty for the client's.
	Host string `json:"host,omitempty"`
	// Fields replace the client's.
	Fields []Field `json:"fields,omitempty"`
}

// Response changes responses of endpoints.
type Response struct {
	// Fields replace the endpoint's.
	Fields []Field `json:"fields,omitempty"`
	// Domain and CookiePath change these attributes of cookies, Location the fields Location and Refresh. The first
	// rule that matches applies.
	Domain     []Replace `json:"domain,omitempty"`
	CookiePath []Replace `json:"cookiePath,omitempty"`
	Location   []Replace `json:"location,omitempty"`
}

// Replace is a rule: a match of From is replaced by To. From is text, with which the value must begin, or a regular
// expression (RE2) after "~", or case-insensitive after "~*". To is a Template, in which $1 … are the groups of the
// expression.
type Replace struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Retry is when a failed request is sent to another endpoint. A request is never sent again once part of its body has
// been sent.
type Retry struct {
	// Never disables retries.
	Never bool `json:"never,omitempty"`
	// Timeout counts an endpoint that is too slow as failed.
	Timeout bool `json:"timeout,omitempty"`
	// Statuses of responses that count as failures.
	Statuses []int `json:"statuses,omitempty"`
	// Unsafe retries requests with methods that are not idempotent, such as POST.
	Unsafe bool `json:"unsafe,omitempty"`
	// Tries is the maximum number of endpoints; 0 for the proxy's default.
	Tries int `json:"tries,omitempty"`
	// Within is the time within which retries may start; 0 for no limit.
	Within time.Duration `json:"within,omitempty"`
}

// Errors are statuses that another backend answers, with fields that describe the error.
type Errors struct {
	// Backend answers for Statuses, and instead of a backend without endpoints.
	Backend  string `json:"backend,omitempty"`
	Statuses []int  `json:"statuses,omitempty"`
	// OwnOnly leaves responses of endpoints unchanged: only responses of the proxy itself count.
	OwnOnly bool `json:"ownOnly,omitempty"`
	// Namespace, Ingress, Service and Port are sent to the backend.
	Namespace string `json:"namespace,omitempty"`
	Ingress   string `json:"ingress,omitempty"`
	Service   string `json:"service,omitempty"`
	Port      string `json:"port,omitempty"`
}

// EndpointTLS configures TLS to endpoints.
type EndpointTLS struct {
	// Certificate is the key of the client certificate; empty for none.
	Certificate string `json:"certificate,omitempty"`
	// Authority is the key of the authorities that must have signed the endpoint's certificate, with at most Depth
	// intermediates; empty verifies nothing.
	Authority string `json:"authority,omitempty"`
	Depth     int    `json:"depth,omitempty"`
	// Name is the name that the certificate must be valid for; SendName sends it in the handshake (SNI).
	Name     string `json:"name,omitempty"`
	SendName bool   `json:"sendName,omitempty"`
	// Least and Most are versions of TLS in crypto/tls's numbers; 0 for its default.
	Least uint16 `json:"least,omitempty"`
	Most  uint16 `json:"most,omitempty"`
	// Ciphers are for TLS 1.2 and earlier; empty for those of crypto/tls.
	Ciphers []uint16 `json:"ciphers,omitempty"`
}

// Mirror sends copies of requests; the responses are discarded.
type Mirror struct {
	// URL is a Template. Backend provides the endpoints instead of DNS for the host.
	URL     string `json:"url"`
	Backend string `json:"backend,omitempty"`
	// Host is the field Host, a Template; empty for that of the URL.
	Host string `json:"host,omitempty"`
	// Body copies bodies, too.
	Body bool `json:"body,omitempty"`
}
