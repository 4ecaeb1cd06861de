package schema

import (
	"net/netip"
	"strings"
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
	// Options are what the Ingress asks for in addition; nil for nothing.
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

// Verify is what becomes of requests without a good certificate of the client.
type Verify string

// The kinds: VerifyOn refuses them; VerifyOptional admits clients that show none; VerifyNoCA also those that
// shows one that no authority has signed; VerifyOff asks for none.
const (
	VerifyOn       Verify = ""
	VerifyOptional Verify = "optional"
	VerifyNoCA     Verify = "optional_no_ca"
	VerifyOff      Verify = "off"
)

// ClientCert has the clients of a host show a certificate.
type ClientCert struct {
	// Authority is the key of the Certificate whose CA must have signed, with at most Depth between.
	Authority string `json:"authority"`
	Depth     int    `json:"depth,omitempty"`
	Verify    Verify `json:"verify,omitempty"`
	// ErrorPage is where refused clients are sent, a Template; empty answers 400.
	ErrorPage string `json:"errorPage,omitempty"`
	// Pass sends the certificate to endpoints.
	Pass bool `json:"pass,omitempty"`
	// Subject is a regular expression (RE2) that must fit somewhere in the subject's name.
	Subject string `json:"subject,omitempty"`
}

// Namespace is that of the object which the path comes from, and so of its endpoints; empty
// where Source does not say.
func (p *Path) Namespace() string {
	ns, _ := p.Ingress()
	return ns
}

// Ingress is the namespace and the name of the object that the path comes from; both are empty
// where Source does not say.
func (p *Path) Ingress() (namespace, name string) {
	_, object, _ := strings.Cut(p.Source, " ")
	object, _, _ = strings.Cut(object, " ")
	namespace, name, ok := strings.Cut(object, "/")
	if !ok {
		return "", ""
	}
	return namespace, name
}
