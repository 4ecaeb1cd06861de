package service

import (
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// portKey matches a Service's port to the ports of EndpointSlices.
type portKey struct {
	name     string
	protocol model.Protocol
	is6      bool
}

// endpoints are the usable endpoints of a Service, by port.
type endpoints struct {
	// cluster are the ready endpoints that this node should use. If none is ready, they are those that are terminating
	// and still serve (KEP-1669), so that a rollout loses nothing.
	cluster map[portKey][]netip.AddrPort
	// here are the same on this node.
	here  map[portKey][]netip.AddrPort
	local []netip.Addr
}

// candidate is an endpoint of one port.
type candidate struct {
	model.Endpoint
	at    netip.AddrPort
	ready bool
}

func collect(snap model.Snapshot, svc *model.Service, node string, self *model.Node, preferRemote bool) endpoints {
	all := map[portKey][]candidate{}
	e := endpoints{cluster: map[portKey][]netip.AddrPort{}, here: map[portKey][]netip.AddrPort{}}
	for slice := range snap.EndpointSlices(svc.Name) {
		if slice.NotProxied {
			continue
		}
		for _, ep := range slice.Endpoints {
			ready := ep.Ready || svc.PublishNotReady
			if !ready && !(ep.Serving && ep.Terminating) {
				continue
			}
			if ep.Node == node {
				e.local = append(e.local, ep.Addr)
			}
			for _, p := range slice.Ports {
				key := portKey{p.Name, p.Protocol, ep.Addr.Is6()}
				all[key] = append(all[key], candidate{ep, netip.AddrPortFrom(ep.Addr, p.Port), ready})
			}
		}
	}
	zone := ""
	if self != nil {
		zone = self.Zone
	}
	for key, list := range all {
		here := func(c candidate) bool { return c.Node == node }
		e.here[key] = choose(list, here)
		if others := slices.DeleteFunc(slices.Clone(list), here); preferRemote && len(others) > 0 {
			list = others
		}
		e.cluster[key] = choose(list, near(list, node, zone))
	}
	slices.SortFunc(e.local, netip.Addr.Compare)
	e.local = slices.Compact(e.local)
	return e
}

// choose returns the ready endpoints that fit, or if there are none, those that still serve.
func choose(list []candidate, fits func(candidate) bool) (out []netip.AddrPort) {
	for _, ready := range []bool{true, false} {
		for _, c := range list {
			if c.ready == ready && fits(c) {
				out = append(out, c.at)
			}
		}
		if len(out) > 0 {
			break
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// near returns which endpoints the hints assign to this node (KEP-2433, KEP-3015). Hints count only if every ready
// endpoint has them and one is for this node or its zone; otherwise no endpoint would serve the node.
func near(list []candidate, node, zone string) func(candidate) bool {
	forNode := func(c candidate) bool { return !c.ready || slices.Contains(c.ForNodes, node) }
	forZone := func(c candidate) bool { return !c.ready || slices.Contains(c.ForZones, zone) }
	nodes, zones := hint{all: true}, hint{all: true}
	for _, c := range list {
		if c.ready {
			nodes.see(c.ForNodes, node)
			zones.see(c.ForZones, zone)
		}
	}
	switch {
	case nodes.all && nodes.one:
		return forNode
	case zones.all && zones.one && zone != "":
		return forZone
	}
	return func(candidate) bool { return true }
}

// hint reports whether all endpoints have hints of a kind, and whether one is for this node.
type hint struct{ all, one bool }

func (h *hint) see(list []string, me string) {
	h.all = h.all && len(list) > 0
	h.one = h.one || slices.Contains(list, me)
}

// internal returns the frontend of a ClusterIP.
func (e endpoints) internal(svc *model.Service, p model.ServicePort, vip netip.Addr) FrontendPlan {
	key := portKey{p.Name, p.Protocol, vip.Is6()}
	out := FrontendPlan{Frontend: Frontend{vip, p.Protocol, p.Port}, Port: p.Name, Slots: e.cluster[key],
		Affinity: svc.Affinity}
	if svc.InternalLocal {
		out.Local = true
		out.Slots = e.here[key]
		out.Drop = len(out.Slots) == 0 && len(e.cluster[key]) > 0
	}
	return out
}

// external returns the frontend of an address or port for external clients.
func (e endpoints) external(svc *model.Service, p model.ServicePort, at netip.Addr, port uint16) FrontendPlan {
	key := portKey{p.Name, p.Protocol, at.Is6()}
	out := FrontendPlan{Frontend: Frontend{at, p.Protocol, port}, Port: p.Name, Slots: e.cluster[key], External: true,
		Split: svc.ExternalLocal, Affinity: svc.Affinity}
	if out.Split {
		out.Outside = e.here[key]
		out.Drop = len(out.Outside) == 0 && len(out.Slots) > 0
	}
	return out
}

// Here returns the number of ready endpoints of a Service on the named node, each pod counted once: health checks of
// load balancers request it.
func Here(snap model.Snapshot, svc *model.Service, node string) int {
	pods := map[string]bool{}
	for slice := range snap.EndpointSlices(svc.Name) {
		if slice.NotProxied {
			continue
		}
		for _, ep := range slice.Endpoints {
			if ep.Node == node && (ep.Ready || svc.PublishNotReady) {
				if ep.Pod != "" {
					pods[ep.Pod] = true
				} else {
					pods[ep.Addr.String()] = true
				}
			}
		}
	}
	return len(pods)
}
