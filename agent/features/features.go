// Package features is the registry: the features of Wayleave, a line each.
package features

import (
	"wayleave.dev/agent"
	"wayleave.dev/agent/bgp"
	"wayleave.dev/agent/dns"
	"wayleave.dev/agent/hostfirewall"
	"wayleave.dev/agent/ingress"
	"wayleave.dev/agent/loadbalancer"
	"wayleave.dev/agent/networkpolicy"
	"wayleave.dev/agent/podnetwork"
	"wayleave.dev/agent/service"
)

// All makes the features of one process. They are prepared and started in this order, and uninstalled in the opposite
// one.
func All() []agent.Feature {
	return []agent.Feature{
		networkpolicy.New(),
		dns.New(),
		podnetwork.New(),
		hostfirewall.New(),
		service.New(),
		loadbalancer.New(),
		bgp.New(),
		ingress.New(),
	}
}
