package model

import (
	"net/netip"
	"time"
)

// Ingress is what Wayleave uses of an Ingress (networking.k8s.io/v1).
type Ingress struct {
	Name Name
	UID  string
	// Created decides which of two Ingresses keeps what both ask for: the older.
	Created time.Time
	// Version is the resourceVersion that a write is based on.
	Version string
	// Leaving ones are being deleted.
	Leaving bool
	// Class is spec.ingressClassName, ClassAnnotation kubernetes.io/ingress.class, which
	// is older; both are empty where the default class is meant.
	Class, ClassAnnotation string
	// Default serves what no rule matches; nil for none.
	Default *IngressBackend
	Rules   []IngressRule
	TLS     []IngressTLS
	// Annotations are those that ask for options: nginx.ingress.kubernetes.io/… and
	// ingress.wayleave.dev/… with their whole names; nil for none.
	Annotations map[string]string
	// Given and GivenNames are the addresses and host names in its status.
	Given      []netip.Addr
	GivenNames []string
	// Problems are what could not be read of it: they are told only of Ingresses that are
	// for us, which follows from classes.
	Problems []Problem
}

// IngressRule is the paths of one host.
type IngressRule struct {
	// Index is the rule's place in spec.rules.
	Index int
	// Host is in lower case; "*.example.com" is any one label before .example.com, empty
	// is every host that no rule names.
	Host  string
	Paths []IngressPath
}

// PathType is a path's pathType.
type PathType uint8

// The path types.
const (
	PathExact PathType = iota
	PathPrefix
	PathImplementationSpecific
)

// IngressPath is one way, and where it leads.
type IngressPath struct {
	// Index is the path's place in the rule's http.paths.
	Index int
	Type  PathType
	// Path begins with a slash.
	Path    string
	Backend IngressBackend
}

// IngressBackend is a port of a Service in the Ingress's namespace. Service is empty when
// it could not be read: who is sent there is answered 503.
type IngressBackend struct {
	Service string
	// Port is 0 when PortName names it.
	Port     uint16
	PortName string
}

// IngressTLS is a certificate and the hosts that it is for.
type IngressTLS struct {
	// Index is its place in spec.tls.
	Index int
	// Hosts are in lower case; empty for all of the Ingress that the certificate covers.
	Hosts []string
	// Secret is in the Ingress's namespace; empty for the default certificate.
	Secret string
}

// IngressClass is what Wayleave uses of an IngressClass (networking.k8s.io/v1).
type IngressClass struct {
	Name    string
	Created time.Time
	// Controller is who serves the class.
	Controller string
	// Default makes it the class of Ingresses without one.
	Default bool
}

// Secret is one that an Ingress names, reduced to what it is named for. It is never
// written to a disk, and String tells nothing of it.
type Secret struct {
	Name Name
	// Chain and Key are a certificate and its private key in PEM, which fit each other;
	// nil when there is none or it is bad. Names are what the certificate is for, in lower
	// case; it is valid from From to Until.
	Chain, Key  []byte
	Names       []string
	From, Until time.Time
	// Users are password hashes by name, of a file of htpasswd in the key "auth"; UserMap
	// those of a Secret with a key for each user (auth-secret-type auth-map).
	Users, UserMap map[string]string
	// CA are authorities in PEM, and CRL their revocation lists: keys ca.crt and ca.crl.
	CA, CRL []byte
	// Wrong says why there is no certificate, where one seems to be meant.
	Wrong string
	// Missing says that it was asked for and is not there; one that has not been asked for
	// is not in the model.
	Missing bool
}

// String names the Secret, and keeps it.
func (s Secret) String() string { return "Secret " + s.Name.String() }

// GoString is String: %#v must not print a key either.
func (s Secret) GoString() string { return s.String() }

// Covers says whether a certificate for these names is one for the host, which may be a
// wildcard itself (RFC 6125: a star is one whole label, the leftmost).
func Covers(names []string, host string) bool {
	for _, n := range names {
		if n == host {
			return true
		}
		if len(n) > 2 && n[:2] == "*." && len(host) > 2 && host[:2] != "*." {
			for i := range len(host) {
				if host[i] == '.' {
					if host[i:] == n[1:] && i > 0 {
						return true
					}
					break
				}
			}
		}
	}
	return false
}
