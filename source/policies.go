package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/model"
)

// proxyNameLabel gives a Service to another service proxy, whatever its value (KEP-2447).
const proxyNameLabel = "service.kubernetes.io/service-proxy-name"

// Limits of sessionAffinityConfig, as the API server has them.
const (
	defaultAffinity = 3 * time.Hour
	maxAffinity     = 24 * time.Hour
)

// external takes the addresses that a Service has for clients outside.
func (c *checker) external(in *corev1.Service, out *model.Service) {
	for i, s := range in.Spec.ExternalIPs {
		if a, ok := c.vip(fmt.Sprintf("spec.externalIPs[%d]", i), s); ok {
			out.ExternalIPs = append(out.ExternalIPs, a)
		}
	}
	if out.Type != model.LoadBalancer {
		return
	}
	for i, g := range in.Status.LoadBalancer.Ingress {
		field := fmt.Sprintf("status.loadBalancer.ingress[%d].", i)
		if g.IP == "" { // a host name is for DNS
			continue
		}
		if g.IPMode != nil && *g.IPMode != corev1.LoadBalancerIPModeVIP {
			if *g.IPMode != corev1.LoadBalancerIPModeProxy {
				c.bad(field+"ipMode", "%q is not a mode; VIP and Proxy are", *g.IPMode)
			}
			continue
		}
		if a, ok := c.vip(field+"ip", g.IP); ok {
			out.LoadBalancerIPs = append(out.LoadBalancerIPs, a)
		}
	}
	for i, s := range in.Spec.LoadBalancerSourceRanges {
		p, err := apiaddr.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			c.bad(fmt.Sprintf("spec.loadBalancerSourceRanges[%d]", i), "%q is not a CIDR: nobody is let in by it", s)
			out.SourceRanges = append(out.SourceRanges, nobody(out.LoadBalancerIPs)...)
			continue
		}
		out.SourceRanges = append(out.SourceRanges, p.Masked())
	}
	out.HealthCheckPort = c.healthCheckPort(in)
}

// nobody are ranges that no client is in, one of each family of the addresses: a list
// that is wrong must not open the door in a family for which nothing else is in it.
func nobody(to []netip.Addr) (out []netip.Prefix) {
	zero4, zero6 := netip.PrefixFrom(netip.IPv4Unspecified(), 32), netip.PrefixFrom(netip.IPv6Unspecified(), 128)
	if len(to) == 0 || slices.ContainsFunc(to, netip.Addr.Is4) {
		out = append(out, zero4)
	}
	if slices.ContainsFunc(to, netip.Addr.Is6) {
		out = append(out, zero6)
	}
	return out
}

func (c *checker) healthCheckPort(in *corev1.Service) uint16 {
	if in.Spec.HealthCheckNodePort == 0 || in.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return 0
	}
	port, ok := c.nodePort("spec.healthCheckNodePort", model.TCP, in.Spec.HealthCheckNodePort)
	if !ok {
		return 0
	}
	return port
}

// vip parses an address that a Service can have outside.
func (c *checker) vip(field, s string) (netip.Addr, bool) {
	a, ok := c.addr(field, s)
	if ok && (a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast()) {
		c.bad(field,
			"%s is not an address of a service: unspecified, loopback, link-local and multicast ones are refused", a)
		return a, false
	}
	return a, ok
}

// policies takes how connections are spread.
func (c *checker) policies(in *corev1.Service, out *model.Service) {
	_, named := in.Labels[proxyNameLabel]
	_, headless := in.Labels[corev1.IsHeadlessService]
	out.OtherProxy = named || headless
	switch in.Spec.SessionAffinity {
	case corev1.ServiceAffinityNone, "":
	case corev1.ServiceAffinityClientIP:
		out.Affinity = c.affinity(in.Spec.SessionAffinityConfig)
	default:
		c.bad("spec.sessionAffinity", "%q is not an affinity; None and ClientIP are", in.Spec.SessionAffinity)
	}
	switch p := in.Spec.ExternalTrafficPolicy; p {
	case corev1.ServiceExternalTrafficPolicyCluster, "":
	case corev1.ServiceExternalTrafficPolicyLocal:
		out.ExternalLocal = true
	default:
		c.bad("spec.externalTrafficPolicy", "%q is not a policy; Cluster and Local are", p)
	}
	if p := in.Spec.InternalTrafficPolicy; p != nil && *p != corev1.ServiceInternalTrafficPolicyCluster {
		if out.InternalLocal = *p == corev1.ServiceInternalTrafficPolicyLocal; !out.InternalLocal {
			c.bad("spec.internalTrafficPolicy", "%q is not a policy; Cluster and Local are", *p)
		}
	}
	// The EndpointSlice controller turns trafficDistribution into hints, which is all
	// that a proxy looks at (KEP-4444).
	if d := in.Spec.TrafficDistribution; d != nil {
		known := []string{corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone,
			corev1.ServiceTrafficDistributionPreferSameNode}
		if !slices.Contains(known, *d) {
			c.bad("spec.trafficDistribution", "%q is not a distribution; %s are", *d, strings.Join(known, ", "))
		}
	}
}

func (c *checker) affinity(cfg *corev1.SessionAffinityConfig) time.Duration {
	if cfg == nil || cfg.ClientIP == nil || cfg.ClientIP.TimeoutSeconds == nil {
		return defaultAffinity
	}
	d := time.Duration(*cfg.ClientIP.TimeoutSeconds) * time.Second
	if d <= 0 || d > maxAffinity {
		c.bad("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d is not allowed; 1 to %d are; %d is used",
			*cfg.ClientIP.TimeoutSeconds, int(maxAffinity.Seconds()), int(defaultAffinity.Seconds()))
		return defaultAffinity
	}
	return d
}
