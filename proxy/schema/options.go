package schema

import (
	"net/netip"
	"reflect"
	"time"
)

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
	// Upstream is what endpoints are sent in addition to the request.
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
	// SignIn is where refused clients are sent.
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
	// MaxAge is 0 for the default; less has browsers keep nothing.
	MaxAge time.Duration `json:"maxAge,omitempty"`
}

// IsZero says that the options ask for nothing.
func (o *Options) IsZero() bool { return reflect.ValueOf(*o).IsZero() }

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

// Upstream is what endpoints are sent in addition to the request.
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
	// Namespace, Ingress, Service and Port are sent to the backend.
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
