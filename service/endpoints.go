package service

import (
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// portKey is how a Service's port finds its number in EndpointSlices.
type portKey struct {
	name     string
	protocol model.Protocol
	is6      bool
}

// endpoints are the usable ones of a Service, by port.
type endpoints struct {
	ready map[portKey][]netip.AddrPort
	// terminating are those that still serve on their way out.
	terminating map[portKey][]netip.AddrPort
	local       []netip.Addr
}

func collect(snap model.Snapshot, svc *model.Service, node string) endpoints {
	e := endpoints{ready: map[portKey][]netip.AddrPort{}, terminating: map[portKey][]netip.AddrPort{}}
	for slice := range snap.EndpointSlices(svc.Name) {
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
				to := e.terminating
				if ready {
					to = e.ready
				}
				to[key] = append(to[key], netip.AddrPortFrom(ep.Addr, p.Port))
			}
		}
	}
	slices.SortFunc(e.local, netip.Addr.Compare)
	e.local = slices.Compact(e.local)
	return e
}

// slots are the backends of one port: the ready endpoints, or when none is ready
// those that terminate but still serve (KEP-1669), so that a rollout loses nothing.
func (e endpoints) slots(p model.ServicePort, is6 bool) []netip.AddrPort {
	key := portKey{p.Name, p.Protocol, is6}
	list := e.ready[key]
	if len(list) == 0 {
		list = e.terminating[key]
	}
	list = slices.Clone(list)
	slices.SortFunc(list, netip.AddrPort.Compare)
	return slices.Compact(list)
}
