package ingress

import (
	"slices"
	"strconv"
	"strings"

	"wayleave.dev/model"
)

// controllers names the controllers of known prefixes, for messages.
var controllers = map[string]string{
	"ako.vmware.com": "AVI", "alb.ingress.kubernetes.io": "the AWS Load Balancer Controller",
	"appgw.ingress.kubernetes.io": "Azure's Application Gateway", "appprotect.f5.com": "F5 NGINX App Protect",
	"appprotectdos.f5.com": "F5 NGINX App Protect", "configuration.konghq.com": "Kong", "contour.heptio.com": "Contour",
	"getambassador.io": "Ambassador", "haproxy-ingress.github.io": "HAProxy Ingress",
	"haproxy.org": "HAProxy", "haproxy.router.openshift.io": "OpenShift's router", "higress.io": "Higress",
	"ingress.appscode.com": "Voyager", "ingress.bluemix.net": "IBM Cloud", "ingress.cilium.io": "Cilium",
	"ingress.citrix.com": "Citrix", "ingress.kubernetes.io": "older controllers (NGINX, HAProxy, Traefik 1)",
	"ingress.pomerium.io": "Pomerium", "k8s.apisix.apache.org": "APISIX", "k8s.ngrok.com": "ngrok",
	"konghq.com":        "Kong",
	"networking.gke.io": "GKE", "nginx.com": "F5 NGINX", "nginx.org": "F5 NGINX", "plugins.konghq.com": "Kong",
	"projectcontour.io": "Contour", "traefik.ingress.kubernetes.io": "Traefik",
	"virtual-server.f5.com": "F5 BIG-IP", "voyager.appscode.com": "Voyager", "zalando.org": "Skipper",
}

// foreignGuards are annotations that restrict access although their names do not say so, by prefix: lists of modules,
// configuration in another language, and conditions other than host and path.
var foreignGuards = map[string][]string{
	"alb.ingress.kubernetes.io": {"inbound-cidrs", "security-groups", "security-group-prefix-lists",
		"frontend-nlb-security-groups", "frontend-nlb-security-group-prefix-lists", "mutual-authentication",
		"shield-advanced-protection", "conditions.*", "actions.*"},
	"appgw.ingress.kubernetes.io": {"appgw-ssl-profile", "use-private-ip"},
	"getambassador.io":            {"config"},
	"haproxy-ingress.github.io": {"config-backend", "config-frontend", "config-global", "config-sections",
		"http-request", "secure-verify-ca-secret"},
	"haproxy.org":                   {"whitelist", "blacklist", "client-ca", "client-crt-optional"},
	"haproxy.router.openshift.io":   {"ip_whitelist", "ip_allowlist"},
	"ingress.bluemix.net":           {"appid-auth", "mutual-auth", "location-snippets", "server-snippets"},
	"ingress.citrix.com":            {"frontend-ip"},
	"ingress.pomerium.io":           {"*"}, // without its rules it admits nobody
	"k8s.apisix.apache.org":         {"plugin-config-name", "http-allow-methods", "http-block-methods"},
	"k8s.ngrok.com":                 {"modules", "traffic-policy"},
	"konghq.com":                    {"plugins", "override", "methods", "protocols", "headers.*", "snis"},
	"configuration.konghq.com":      {"*"},
	"plugins.konghq.com":            {"*"},
	"nginx.com":                     {"jwt-*", "policies"},
	"traefik.ingress.kubernetes.io": {"router.middlewares", "router.tls.options", "router.rulesyntax"},
	"zalando.org":                   {"skipper-filter", "skipper-predicate", "skipper-routes"},
}

// guardWords are words in names of annotations that restrict access, in any controller.
var guardWords = []string{
	"acl", "acls", "allowlist", "allowed", "blacklist", "block", "blocklist", "bot", "captcha", "cidr", "cidrs", "csrf",
	"deny", "denylist", "denied", "firewall", "jwt", "limit", "limits", "middlewares", "middleware",
	"modsecurity", "mtls", "oauth", "oauth2", "oidc", "openid", "plugins", "policies", "policy", "protect", "ratelimit",
	"restrict", "restriction", "saml", "satisfy", "snippet", "snippets", "waf", "wafv2", "whitelist",
}

// guardParts are groups of words with the same meaning.
var guardParts = []string{"allow-list", "deny-list", "block-list", "source-range", "allow-source", "client-ca",
	"client-cert", "verify-client", "client-verify", "web-acl", "app-protect", "ip-white", "ip_white",
	"ip-allow", "inbound-"}

// harmlessParts contain such a word, and restrict nothing.
var harmlessParts = []string{"ssl-policy", "tls-policy", "limit-rate"}

// looksLikeGuard reports whether an annotation restricts access, judged by its name.
func looksLikeGuard(name string) bool {
	name = strings.ToLower(name)
	contains := func(part string) bool { return strings.Contains(name, part) }
	if strings.HasPrefix(name, "cors-") || slices.ContainsFunc(harmlessParts, contains) {
		return false
	}
	if slices.ContainsFunc(guardParts, contains) {
		return true
	}
	words := strings.FieldsFunc(name, func(r rune) bool { return r == '-' || r == '.' || r == '_' || r == '/' })
	return slices.ContainsFunc(words, func(w string) bool {
		return strings.HasPrefix(w, "auth") && w != "authority" || slices.Contains(guardWords, w)
	})
}

// isOff reports whether a value switches an annotation off.
func isOff(v string) bool {
	if on, err := strconv.ParseBool(v); err == nil {
		return !on
	}
	switch strings.ToLower(v) {
	case "off", "none", "no", "disabled", "disable":
		return true
	}
	return false
}

// isForeignGuard reports whether an annotation of another controller restricts access.
func isForeignGuard(domain, name, v string) bool {
	switch {
	case domain == "traefik.ingress.kubernetes.io" && name == "router.entrypoints":
		return slices.ContainsFunc(list(v),
			func(e string) bool { return !slices.Contains([]string{"web", "websecure", "http", "https"}, e) })
	case name == "scheme", name == "frontend-nlb-scheme":
		return v == "internal"
	case name == "insecure-termination": // Citrix
		return v == "disallow"
	}
	listed := slices.ContainsFunc(foreignGuards[domain], func(g string) bool {
		begin, open := strings.CutSuffix(g, "*")
		return g == name || open && strings.HasPrefix(name, begin)
	})
	return (listed || looksLikeGuard(name)) && !isOff(v)
}

// allowHTTP is GKE's switch for plain HTTP.
const allowHTTP = "kubernetes.io/ingress.allow-http"

// foreign reports an annotation of another controller, and closes the paths if it is a guard.
func (p *parser) foreign(key, v string) {
	if key == allowHTTP && isOff(v) {
		p.out.forceTLS = true
		p.bad(key, "is for GKE; Wayleave redirects plain requests to https")
		return
	}
	domain, name, ok := model.IngressDomain(key)
	if !ok {
		return
	}
	whose := controllers[domain]
	if whose == "" {
		whose = "another controller"
	}
	if isForeignGuard(domain, name, v) {
		p.close(key)
		p.bad(key,
			"is for %s, and Wayleave does not read it; it restricts access, so all paths of this Ingress answer 503",
			whose)
		return
	}
	p.bad(key, "is for %s, and has no effect", whose)
}
