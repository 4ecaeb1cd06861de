package model

import (
	"iter"
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

var ingresses = describe(descriptor[*Ingress]{kind: IngressKind, label: "Ingress",
	name: func(i *Ingress) Name { return i.Name }})

// PutIngress sets an Ingress; the store owns it from now on.
func (w *Writer) PutIngress(o *Ingress) { put(w, ingresses, o) }

// Ingress returns the Ingress of that name.
func (v Snapshot) Ingress(n Name) (*Ingress, bool) { return get(v, ingresses, n) }

// Ingresses yields all Ingresses.
func (v Snapshot) Ingresses() iter.Seq[*Ingress] { return all(v, ingresses) }
