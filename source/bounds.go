package source

import (
	"net/netip"

	"wayleave.dev/model"
)

// Bounds of one Service: each frontend, and each pair of a frontend and a source range, is an element or a rule on
// every node.
const (
	maxFrontends    = 4096
	maxSourceRanges = 1024
	maxGuards       = 65536 // frontends × ranges
)

// bounds removes what exceeds the bounds of one Service, and reports it: external IPs first, then addresses of load
// balancers, then ports. Removed source ranges deny.
func (c *checker) bounds(s *model.Service) {
	inside := max(1, len(s.ClusterIPs))
	for _, p := range s.Ports {
		if p.NodePort != 0 {
			inside *= 2
			break
		}
	}
	if most := maxFrontends / inside; len(s.Ports) > most {
		c.over("spec.ports", len(s.Ports), most)
		s.Ports = s.Ports[:most]
	}
	left := maxFrontends - inside*len(s.Ports)
	if n := len(s.Ports); n > 0 {
		s.LoadBalancerIPs = c.atMost("status.loadBalancer.ingress", s.LoadBalancerIPs, left/n)
		s.ExternalIPs = c.atMost("spec.externalIPs", s.ExternalIPs, left/n-len(s.LoadBalancerIPs))
	}
	most := min(maxSourceRanges, maxGuards/max(1, len(s.LoadBalancerIPs)*len(s.Ports)))
	if len(s.SourceRanges) > most {
		c.over("spec.loadBalancerSourceRanges", len(s.SourceRanges), most)
		// Without any range of a family, every client of that family would be allowed.
		s.SourceRanges = append(s.SourceRanges[:most:most], nobody(s.LoadBalancerIPs)...)
	}
}

func (c *checker) atMost(field string, list []netip.Addr, most int) []netip.Addr {
	if len(list) <= most {
		return list
	}
	c.over(field, len(list), most)
	return list[:most]
}

func (c *checker) over(field string, have, most int) {
	c.bad(field, "has %d entries; %d frontends (ports × addresses), %d source ranges and %d pairs of both "+
		"are allowed for one Service; the first %d are used", have, maxFrontends, maxSourceRanges, maxGuards, most)
}
