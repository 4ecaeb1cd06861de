package model

import (
	"fmt"
	"strings"
)

// Name identifies a namespaced object.
type Name struct {
	Namespace string
	Name      string
}

// String is the namespace/name form that kubectl and kube-proxy print.
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Compare orders names by namespace, then by name.
func (n Name) Compare(o Name) int {
	if c := strings.Compare(n.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(n.Name, o.Name)
}

// Protocol is a transport protocol by its IANA number, as packets carry it.
type Protocol uint8

// The protocols that Services know (corev1.Protocol).
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String is the upper-case name that the API uses.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Problem is something wrong in an object: what is bad stays out of the model,
// the rest of the object and all other objects are used. Problems end as Events
// on the object, in the log and in `wayleave status`.
type Problem struct {
	// Kind is the API kind of the object, for example "Service".
	Kind string
	// Object is the object's name; Namespace is empty for cluster-wide kinds.
	Object Name
	// Field is the path of the field as in the manifest: "spec.ports[0].port".
	Field string
	// Reason says what was found and what is allowed.
	Reason string
	// Note says that nothing is wrong, but that the field has no effect as things are.
	Note bool
	// Event is the reason of its Event, where that is not the usual: "CertificateExpired".
	Event string
}

// Error reads "Service default/web: spec.ports[0].port: …".
func (p Problem) Error() string {
	name := p.Object.String()
	if p.Object.Namespace == "" {
		name = p.Object.Name
	}
	if p.Field == "" {
		return fmt.Sprintf("%s %s: %s", p.Kind, name, p.Reason)
	}
	return fmt.Sprintf("%s %s: %s: %s", p.Kind, name, p.Field, p.Reason)
}
