package ingress

import (
	"cmp"
	"net/netip"

	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
)

// Class and controllers.
const (
	// ClassName is the IngressClass that the elected writer creates.
	ClassName = "wayleave"
	// Controller is spec.controller of Wayleave's classes.
	Controller = "wayleave.dev/ingress"
	// nginxController and nginxClass are ingress-nginx's.
	nginxController = "k8s.io/ingress-nginx"
	nginxClass      = "nginx"
)

// Settings are the settings of the feature.
type Settings struct {
	// AdoptNginx also serves Ingresses of ingress-nginx.
	AdoptNginx bool
	// Default makes the class the cluster's default when it is created, if there is no other.
	Default bool
	// DefaultCertificate is a Secret for hosts without a certificate; zero for none.
	DefaultCertificate model.Name
	// ResponseHeaders are the fields that ConfigMaps of custom-headers may set, in any case.
	ResponseHeaders []string
	// HostsOfOneNamespace refuses rules for a host of another namespace.
	HostsOfOneNamespace bool
	// GlobalAuth is the authentication server of every Ingress without its own; nil for none.
	GlobalAuth *schema.AuthURL
	// AuthURLNetworks are special addresses that auth-url can reach.
	AuthURLNetworks []netip.Prefix
	// ClusterDomain is the DNS domain of the cluster; empty is cluster.local.
	ClusterDomain string
}

// Ours reports whether Wayleave serves an Ingress: by the old annotation, otherwise by spec.ingressClassName,
// otherwise by the default class.
func (s Settings) Ours(snap model.Snapshot, i *model.Ingress) bool {
	name := cmp.Or(i.ClassAnnotation, i.Class)
	if name == "" {
		return s.oursByDefault(snap)
	}
	if c, ok := snap.IngressClass(name); ok {
		return s.serves(c)
	}
	// A class by annotation needs no object; the writer may not have created Wayleave's yet.
	return name == ClassName || s.AdoptNginx && name == nginxClass
}

// AnyOurs reports whether the cluster has an Ingress for Wayleave.
func (s Settings) AnyOurs(snap model.Snapshot) bool {
	for i := range snap.Ingresses() {
		if s.Ours(snap, i) {
			return true
		}
	}
	return false
}

func (s Settings) serves(c *model.IngressClass) bool {
	return c.Controller == Controller || s.AdoptNginx && c.Controller == nginxController
}

// oursByDefault reports whether Wayleave serves Ingresses without a class. If there are several default classes, the
// youngest counts, as in the API server. Wayleave's class counts before the writer has created it.
func (s Settings) oursByDefault(snap model.Snapshot) bool {
	var found *model.IngressClass
	for c := range snap.IngressClasses() {
		if c.Default && (found == nil || c.Created.After(found.Created)) {
			found = c
		}
	}
	if found != nil {
		return s.serves(found)
	}
	_, made := snap.IngressClass(ClassName)
	return s.Default && !made
}
