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

// proxyNameLabel assigns a Service to another service proxy, whatever its value (KEP-2447).
const proxyNameLabel = "service.kubernetes.io/service-proxy-name"

// Limits of sessionAffinityConfig, as in the API server.
const (
	defaultAffinity = 3 * time.Hour
	maxAffinity     = 24 * time.Hour
)

// external reads the addresses of a Service for clients outside.
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
				c.bad(field+"ipMode", "%q is not a mode; VIP and Proxy are allowed", *g.IPMode)
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
			c.bad(fmt.Sprintf("spec.loadBalancerSourceRanges[%d]", i), "%q is not a CIDR: it allows no source", s)
			out.SourceRanges = append(out.SourceRanges, nobody(out.LoadBalancerIPs)...)
			continue
		}
		out.SourceRanges = append(out.SourceRanges, p.Masked())
	}
	out.HealthCheckPort = c.healthCheckPort(in)
}

// nobody returns ranges without clients, one for each family of the addresses: an invalid list must not allow a
// family for which it has no other range.
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

// vip parses an address for clients outside.
func (c *checker) vip(field, s string) (netip.Addr, bool) {
	a, ok := c.addr(field, s)
	if ok && (a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast()) {
		c.bad(field,
			"%s cannot be an address of a Service: unspecified, loopback, link-local and multicast addresses are "+
				"refused", a)
		return a, false
	}
	return a, ok
}

// policies reads how connections are spread.
func (c *checker) policies(in *corev1.Service, out *model.Service) {
	_, named := in.Labels[proxyNameLabel]
	_, headless := in.Labels[corev1.IsHeadlessService]
	out.OtherProxy = named || headless
	switch in.Spec.SessionAffinity {
	case corev1.ServiceAffinityNone, "":
	case corev1.ServiceAffinityClientIP:
		out.Affinity = c.affinity(in.Spec.SessionAffinityConfig)
	default:
		c.bad("spec.sessionAffinity", "%q is not an affinity; None and ClientIP are allowed", in.Spec.SessionAffinity)
	}
	switch p := in.Spec.ExternalTrafficPolicy; p {
	case corev1.ServiceExternalTrafficPolicyCluster, "":
	case corev1.ServiceExternalTrafficPolicyLocal:
		out.ExternalLocal = true
	default:
		c.bad("spec.externalTrafficPolicy", "%q is not a policy; Cluster and Local are allowed", p)
	}
	if p := in.Spec.InternalTrafficPolicy; p != nil && *p != corev1.ServiceInternalTrafficPolicyCluster {
		if out.InternalLocal = *p == corev1.ServiceInternalTrafficPolicyLocal; !out.InternalLocal {
			c.bad("spec.internalTrafficPolicy", "%q is not a policy; Cluster and Local are allowed", *p)
		}
	}
	// The EndpointSlice controller converts trafficDistribution to hints, which are all that a proxy reads
	// (KEP-4444).
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
		c.bad("spec.sessionAffinityConfig.clientIP.timeoutSeconds",
			"%d is out of range; 1 to %d are allowed; %d is used",
			*cfg.ClientIP.TimeoutSeconds, int(maxAffinity.Seconds()), int(defaultAffinity.Seconds()))
		return defaultAffinity
	}
	return d
}
