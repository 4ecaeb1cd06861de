package ingress

import (
	"cmp"
	"net/netip"

	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
)

// Class and controllers.
const (
	// ClassName is the IngressClass that the elected writer makes.
	ClassName = "wayleave"
	// Controller is spec.controller of classes that are ours.
	Controller = "wayleave.dev/ingress"
	// nginxController and nginxClass are ingress-nginx's.
	nginxController = "k8s.io/ingress-nginx"
	nginxClass      = "nginx"
)

// Settings of the feature.
type Settings struct {
	// AdoptNginx serves Ingresses of ingress-nginx, too.
	AdoptNginx bool
	// Default makes the class the cluster's default one, when it is made and no other is.
	Default bool
	// DefaultCertificate is a Secret for hosts without a certificate; zero for none.
	DefaultCertificate model.Name
	// HostsOfOneNamespace refuses rules for a host of another namespace.
	HostsOfOneNamespace bool
	// GlobalAuth is a server that is asked about each request of every Ingress that asks no other;
	// nil for none.
	GlobalAuth *schema.AuthURL
	// AuthURLNetworks are addresses that auth-url may ask though they are special.
	AuthURLNetworks []netip.Prefix
	// ClusterDomain is the DNS domain of the cluster; empty is cluster.local.
	ClusterDomain string
}

// Ours says whether an Ingress is for Wayleave: by the old annotation, else by
// spec.ingressClassName, else by the default class.
func (s Settings) Ours(snap model.Snapshot, i *model.Ingress) bool {
	name := cmp.Or(i.ClassAnnotation, i.Class)
	if name == "" {
		return s.oursByDefault(snap)
	}
	if c, ok := snap.IngressClass(name); ok {
		return s.serves(c)
	}
	// A class by the annotation needs no object; that of ours may not be made yet.
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

// oursByDefault says whether Ingresses without a class are. Of several default classes the
// youngest counts, as for the API server. Before the writer has made ours it is taken for
// made.
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
