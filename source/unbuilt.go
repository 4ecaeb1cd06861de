package source

import (
	corev1 "k8s.io/api/core/v1"
)

// unbuilt names what a Service asks for and does not get yet, so that nobody takes
// it for something that works. The rest of the Service is served.
func (c *checker) unbuilt(in *corev1.Service) {
	s := in.Spec
	if s.SessionAffinity == corev1.ServiceAffinityClientIP {
		c.bad("spec.sessionAffinity", "ClientIP is not built yet: connections are spread without affinity")
	}
	if s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		c.bad("spec.externalTrafficPolicy", "Local is not built yet: it is treated as Cluster")
	}
	if p := s.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		c.bad("spec.internalTrafficPolicy", "Local is not built yet: it is treated as Cluster")
	}
	if len(s.ExternalIPs) > 0 {
		c.bad("spec.externalIPs", "is not built yet: these addresses are not served")
	}
	if len(s.LoadBalancerSourceRanges) > 0 {
		c.bad("spec.loadBalancerSourceRanges", "is not built yet: nobody is kept out")
	}
	if s.TrafficDistribution != nil {
		c.bad("spec.trafficDistribution", "%q is not built yet: all endpoints get an equal share", *s.TrafficDistribution)
	}
	if len(in.Status.LoadBalancer.Ingress) > 0 {
		c.bad("status.loadBalancer.ingress", "is not built yet: these addresses are not served")
	}
	for _, p := range s.Ports {
		if p.Protocol == corev1.ProtocolSCTP {
			c.bad("spec.ports", "SCTP is not built yet: port %d is not served", p.Port)
		}
	}
}
