package schema

import (
	"net/netip"
	"strings"
)

// PathKind is how a Path is matched.
type PathKind uint8

// The kinds of Kubernetes' pathType; ImplementationSpecific is Prefix.
const (
	Exact PathKind = iota
	Prefix
)

// Host is the configuration of one host name.
type Host struct {
	// Name is in lower case. "*.example.com" stands for any one label before .example.com, and the empty name for all
	// hosts that no other entry matches.
	Name  string `json:"name"`
	Paths []Path `json:"paths,omitempty"`
	// Certificate is the key of the certificate for this name; empty for the default one.
	Certificate string `json:"certificate,omitempty"`
	// OtherCertificate is the key of a certificate for the same name with another kind of key, as RSA beside ECDSA:
	// clients get the one that they can use. Empty for none.
	OtherCertificate string `json:"otherCertificate,omitempty"`
	// Default is the backend for requests that match no path; empty for that of the table.
	Default *Path `json:"default,omitempty"`
	// Namespace owns the host, Since that time in Unix seconds.
	Namespace string `json:"namespace,omitempty"`
	Since     int64  `json:"since,omitempty"`
	// OneNamespace means that no path of another namespace serves the host: neither those of a wildcard host above it
	// nor those of the empty host.
	OneNamespace bool `json:"oneNamespace,omitempty"`
	// Passthrough is the key of the backend to which TLS connections are passed unchanged; empty for none.
	Passthrough string `json:"passthrough,omitempty"`
	// ClientCert requests client certificates; nil for none.
	ClientCert *ClientCert `json:"clientCert,omitempty"`
	// Ciphers are for TLS 1.2 and earlier, in crypto/tls's numbers; empty for its defaults.
	Ciphers []uint16 `json:"ciphers,omitempty"`
	// Regex means that every path also matches all paths that begin with its text, case-insensitively and regardless of
	// elements, as ingress-nginx treats a host on which an Ingress requests regular expressions. Such a match never
	// opens a guarded path.
	Regex bool `json:"regex,omitempty"`
}

// Path is a route to a backend.
type Path struct {
	Kind PathKind `json:"kind"`
	// Path begins with a slash.
	Path string `json:"path"`
	// Backend is the key of a backend; empty answers 503.
	Backend string `json:"backend,omitempty"`
	// Options are the options of the Ingress; nil for none.
	Options *Options `json:"options,omitempty"`
	// Closed means that a guard cannot be enforced: the path answers 503, whatever its other fields contain.
	Closed bool `json:"closed,omitempty"`
	// Foreign means that the path belongs to another namespace than the host: its pattern takes no request from the
	// paths of the host's namespace.
	Foreign bool `json:"foreign,omitempty"`
	// Source is the object and field of the path, for logs and people: "Ingress shop/main spec.rules[0].http.paths[1]".
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
	// Draining endpoints get no new exchanges while there are others.
	Draining bool `json:"draining,omitempty"`
}

// Certificate contains the data of one Secret, in PEM. It is never written to disk.
type Certificate struct {
	// Key is "namespace/name" of the Secret.
	Key   string `json:"key"`
	Chain []byte `json:"chain,omitempty"`
	Priv  []byte `json:"priv,omitempty"`
	// CA are authorities, and CRL their revocation lists, in PEM. A Certificate may contain only these.
	CA  []byte `json:"ca,omitempty"`
	CRL []byte `json:"crl,omitempty"`
}

// Verify is how requests without a valid client certificate are handled.
type Verify string

// The kinds: VerifyOn refuses them; VerifyOptional admits clients without a certificate; VerifyNoCA also those with one
// that no authority has signed; VerifyOff requests none.
const (
	VerifyOn       Verify = ""
	VerifyOptional Verify = "optional"
	VerifyNoCA     Verify = "optional_no_ca"
	VerifyOff      Verify = "off"
)

// ClientCert requests certificates from the clients of a host.
type ClientCert struct {
	// Authority is the key of the Certificate whose CA must have signed, with at most Depth intermediates.
	Authority string `json:"authority"`
	Depth     int    `json:"depth,omitempty"`
	Verify    Verify `json:"verify,omitempty"`
	// ErrorPage is the URL to which refused clients are redirected, a Template; empty answers 400.
	ErrorPage string `json:"errorPage,omitempty"`
	// Pass forwards the certificate to endpoints.
	Pass bool `json:"pass,omitempty"`
	// Subject is a regular expression (RE2) that must match a part of the subject's name.
	Subject string `json:"subject,omitempty"`
}

// Namespace is that of the path's object, and so of its endpoints; empty if Source does not contain it.
func (p *Path) Namespace() string {
	ns, _ := p.Ingress()
	return ns
}

// Ingress is the namespace and name of the path's object; both are empty if Source does not contain them.
func (p *Path) Ingress() (namespace, name string) {
	_, object, _ := strings.Cut(p.Source, " ")
	object, _, _ = strings.Cut(object, " ")
	namespace, name, ok := strings.Cut(object, "/")
	if !ok {
		return "", ""
	}
	return namespace, name
}
