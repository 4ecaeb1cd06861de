package model

import (
	"slices"
	"strings"
)

// ingressDomains are the prefixes by which controllers of Ingress know their annotations,
// ours and others', beside those that end in .ingress.kubernetes.io or begin with
// "ingress.".
var ingressDomains = []string{
	"ako.vmware.com", "appprotect.f5.com", "appprotectdos.f5.com", "configuration.konghq.com", "contour.heptio.com",
	"getambassador.io", "haproxy-ingress.github.io", "haproxy.org", "haproxy.router.openshift.io", "higress.io",
	"k8s.apisix.apache.org", "k8s.ngrok.com", "konghq.com", "networking.gke.io", "nginx.com", "nginx.org",
	"plugins.konghq.com", "projectcontour.io", "virtual-server.f5.com", "voyager.appscode.com", "zalando.org",
}

// IngressDomain is the prefix of an annotation that some controller of Ingress reads, and
// ok says that it is one. The class of an Ingress has a field of its own.
func IngressDomain(key string) (domain, name string, ok bool) {
	domain, name, cut := strings.Cut(key, "/")
	if !cut {
		return "", "", false
	}
	ok = strings.HasSuffix(domain, ".ingress.kubernetes.io") || strings.HasPrefix(domain, "ingress.") ||
		slices.Contains(ingressDomains, domain)
	return domain, name, ok
}
