package source

import (
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/model"
)

const (
	// classAnnotation is the predecessor of spec.ingressClassName.
	classAnnotation = "kubernetes.io/ingress.class"
	// defaultClassAnnotation marks the IngressClass of Ingresses without a class.
	defaultClassAnnotation = "ingressclass.kubernetes.io/is-default-class"
)

// isIngressOption reports whether the annotation of an Ingress is an option of Wayleave or of another controller,
// which may restrict access.
func isIngressOption(key string) bool {
	_, _, ok := model.IngressDomain(key)
	return ok
}

// Ingress converts an Ingress. A host, path or certificate that cannot be parsed is left out. A path with an invalid
// backend stays, and leads nowhere.
func Ingress(in *networkingv1.Ingress) (*model.Ingress, []model.Problem) {
	c := newChecker("Ingress", &in.ObjectMeta)
	out := &model.Ingress{
		Name: c.object, UID: string(in.UID), Created: in.CreationTimestamp.Time, Version: in.ResourceVersion,
		Leaving: in.DeletionTimestamp != nil, Class: intern(deref(in.Spec.IngressClassName, "")),
		ClassAnnotation: intern(in.Annotations[classAnnotation]),
		Annotations:     ingressOptions(&in.ObjectMeta),
	}
	if in.Spec.DefaultBackend != nil {
		b := c.ingressBackend("spec.defaultBackend", in.Spec.DefaultBackend)
		out.Default = &b
	}
	for i := range in.Spec.Rules {
		if r, ok := c.ingressRule(i, &in.Spec.Rules[i]); ok {
			out.Rules = append(out.Rules, r)
		}
	}
	for i := range in.Spec.TLS {
		out.TLS = append(out.TLS, c.ingressTLS(i, &in.Spec.TLS[i]))
	}
	for _, g := range in.Status.LoadBalancer.Ingress {
		if a, err := apiaddr.ParseAddr(g.IP); err == nil {
			out.Given = append(out.Given, a)
		} else if g.Hostname != "" {
			out.GivenNames = append(out.GivenNames, g.Hostname)
		}
	}
	out.Problems = c.problems
	return out, c.problems
}

func ingressOptions(m *metav1.ObjectMeta) (out map[string]string) {
	for k, v := range m.Annotations {
		if isIngressOption(k) {
			if out == nil {
				out = map[string]string{}
			}
			out[intern(k)] = v
		}
	}
	return out
}

// host checks the name of a host and converts it to lower case.
func (c *checker) host(field, s string) (string, bool) {
	name := strings.ToLower(s)
	var wrong []string
	if strings.HasPrefix(name, "*.") {
		wrong = validation.IsWildcardDNS1123Subdomain(name)
	} else {
		wrong = validation.IsDNS1123Subdomain(name)
		if _, err := apiaddr.ParseAddr(name); err == nil {
			wrong = []string{"an address is not allowed"}
		}
	}
	if len(wrong) > 0 {
		c.bad(field, "%q is neither a DNS name nor *. and a DNS name: %s", s, strings.Join(wrong, "; "))
		return "", false
	}
	return name, true
}

func (c *checker) ingressRule(i int, in *networkingv1.IngressRule) (model.IngressRule, bool) {
	out := model.IngressRule{Index: i}
	if in.Host != "" {
		var ok bool
		if out.Host, ok = c.host(fmt.Sprintf("spec.rules[%d].host", i), in.Host); !ok {
			return out, false
		}
	}
	if in.HTTP == nil {
		return out, true
	}
	for j := range in.HTTP.Paths {
		if p, ok := c.ingressPath(fmt.Sprintf("spec.rules[%d].http.paths[%d]", i, j), &in.HTTP.Paths[j]); ok {
			p.Index = j
			out.Paths = append(out.Paths, p)
		}
	}
	return out, true
}

func (c *checker) ingressPath(at string, in *networkingv1.HTTPIngressPath) (model.IngressPath, bool) {
	out := model.IngressPath{Path: in.Path}
	switch t := deref(in.PathType, ""); t {
	case networkingv1.PathTypeExact:
		out.Type = model.PathExact
	case networkingv1.PathTypePrefix:
		out.Type = model.PathPrefix
	case networkingv1.PathTypeImplementationSpecific:
		out.Type = model.PathImplementationSpecific
	default:
		c.bad(at+".pathType", "%q is not a type; Exact, Prefix and ImplementationSpecific are allowed", t)
		return out, false
	}
	if out.Path == "" && out.Type == model.PathImplementationSpecific {
		out.Path = "/"
	}
	if !strings.HasPrefix(out.Path, "/") || strings.ContainsAny(out.Path, "\x00\r\n") {
		c.bad(at+".path", "%q does not begin with a slash, or contains a line break", in.Path)
		return out, false
	}
	if out.Type != model.PathImplementationSpecific {
		for _, s := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(out.Path, s) {
				c.bad(at+".path", "%q contains %q, which no normalized request path contains", in.Path, s)
				return out, false
			}
		}
	}
	out.Backend = c.ingressBackend(at+".backend", &in.Backend)
	return out, true
}

func (c *checker) ingressBackend(at string, in *networkingv1.IngressBackend) (out model.IngressBackend) {
	switch {
	case in.Resource != nil:
		c.bad(at+".resource", "%s %s is not a Service: only Services are backends; the path answers 503",
			in.Resource.Kind, in.Resource.Name)
		return out
	case in.Service == nil:
		c.bad(at, "is empty: a service is needed; the path answers 503")
		return out
	}
	if wrong := validation.IsDNS1123Label(in.Service.Name); len(wrong) > 0 {
		c.bad(at+".service.name", "%q is not the name of a Service; the path answers 503", in.Service.Name)
		return out
	}
	p := in.Service.Port
	switch {
	case p.Name != "" && p.Number != 0:
		c.bad(at+".service.port", "has a name and a number; only one is allowed; the path answers 503")
		return out
	case p.Name != "":
		return model.IngressBackend{Service: in.Service.Name, PortName: intern(p.Name)}
	}
	n, ok := c.port(at+".service.port.number", p.Number)
	if !ok {
		return out
	}
	return model.IngressBackend{Service: in.Service.Name, Port: n}
}

func (c *checker) ingressTLS(i int, in *networkingv1.IngressTLS) model.IngressTLS {
	out := model.IngressTLS{Index: i, Secret: in.SecretName}
	if wrong := validation.IsDNS1123Subdomain(in.SecretName); in.SecretName != "" && len(wrong) > 0 {
		c.bad(fmt.Sprintf("spec.tls[%d].secretName", i),
			"%q is not the name of a Secret; the default certificate is used", in.SecretName)
		out.Secret = ""
	}
	for j, h := range in.Hosts {
		if name, ok := c.host(fmt.Sprintf("spec.tls[%d].hosts[%d]", i, j), h); ok && !slices.Contains(out.Hosts, name) {
			out.Hosts = append(out.Hosts, name)
		}
	}
	return out
}

// IngressClass converts an IngressClass.
func IngressClass(in *networkingv1.IngressClass) (*model.IngressClass, []model.Problem) {
	c := newChecker("IngressClass", &in.ObjectMeta)
	out := &model.IngressClass{Name: intern(in.Name), Created: in.CreationTimestamp.Time,
		Controller: intern(in.Spec.Controller)}
	switch v := in.Annotations[defaultClassAnnotation]; v {
	case "true":
		out.Default = true
	case "", "false":
	default:
		c.bad("metadata.annotations["+defaultClassAnnotation+"]", "%q is neither true nor false", v)
	}
	return out, c.problems
}
