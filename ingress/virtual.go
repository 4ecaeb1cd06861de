package ingress

import (
	"net/netip"
	"slices"

	"wayleave.dev/model"
	"wayleave.dev/proxy/reach"
	"wayleave.dev/proxy/schema"
)

// virtualBackend returns a Service's port at its virtual address, for service-upstream; false if the Service has
// none.
func virtualBackend(snap model.Snapshot, service model.Name, number uint16) (*schema.Backend, bool) {
	svc, ok := snap.Service(service)
	if !ok || svc.Type == model.ExternalName || len(svc.ClusterIPs) == 0 || reach.Special(svc.ClusterIPs[0]) != "" {
		return nil, false
	}
	b := &schema.Backend{Key: portKey{number, true}.of(service)}
	real, ok := makeBackend(snap, service, number)
	switch {
	case !ok || len(real.Endpoints) == 0: // the path answers 503
	case leadsToSpecial(snap, service): // the virtual address may lead there, too
		b.Endpoints = real.Endpoints
	default:
		b.Endpoints = []schema.Endpoint{{Addr: netip.AddrPortFrom(svc.ClusterIPs[0], number)}}
	}
	return b, true
}

// leadsToSpecial reports whether the Service has an endpoint that makeBackend leaves out.
func leadsToSpecial(snap model.Snapshot, service model.Name) bool {
	for slice := range snap.EndpointSlices(service) {
		if slices.ContainsFunc(slice.Endpoints, func(e model.Endpoint) bool { return reach.Special(e.Addr) != "" }) {
			return true
		}
	}
	return false
}

// virtual returns the key of a path's backend by the virtual address; the key itself, with a problem, if the Service
// has none.
func (m *merger) virtual(i *model.Ingress, key string) string {
	service, number, ok := parseBackend(key)
	if !ok {
		return key
	}
	if _, has := virtualBackend(m.snap, service, number.port); !has {
		m.bad(i, annotationField("service-upstream"), "Service %s has no virtual address; its endpoints are used",
			service)
		return key
	}
	number.virtual = true
	return number.of(service)
}
