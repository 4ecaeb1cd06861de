package ingress

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"wayleave.dev/model"
	"wayleave.dev/proxy/reach"
	"wayleave.dev/proxy/schema"
)

// resolve finds the backend of a path: its key, and the Service's port. why explains why there is none.
func resolve(snap model.Snapshot, namespace string, b model.IngressBackend) (key string, why string) {
	if b.Service == "" {
		return "", "" // reported when it was parsed
	}
	name := model.Name{Namespace: namespace, Name: b.Service}
	svc, ok := snap.Service(name)
	if !ok {
		return "", fmt.Sprintf("Service %s does not exist", name)
	}
	if svc.Type == model.ExternalName {
		return "",
			fmt.Sprintf("Service %s is of type ExternalName, which is refused: its name can resolve to any address",
				name)
	}
	p, ok := port(svc, b)
	if !ok {
		return "", fmt.Sprintf("Service %s has no TCP port %s", name, portText(b))
	}
	return backendKey(name, p.Port), ""
}

func portText(b model.IngressBackend) string {
	if b.PortName != "" {
		return fmt.Sprintf("%q", b.PortName)
	}
	return fmt.Sprint(b.Port)
}

// port returns the Service's port that the backend names; the first TCP port if it names none. A backend that names no
// port of the Service, but a targetPort, means the port with that, as in ingress-nginx.
func port(svc *model.Service, b model.IngressBackend) (model.ServicePort, bool) {
	for _, p := range svc.Ports {
		if p.Protocol == model.TCP && (b.PortName != "" && p.Name == b.PortName || b.PortName == "" &&
			(p.Port == b.Port || b.Port == 0)) {
			return p, true
		}
	}
	target := cmp.Or(b.PortName, strconv.Itoa(int(b.Port)))
	for _, p := range svc.Ports {
		if p.Protocol == model.TCP && p.Target == target {
			return p, true
		}
	}
	return model.ServicePort{}, false
}

// makeBackend collects the endpoints of a Service's port. Terminating endpoints that still serve are drained.
// Addresses that no pod can have, such as loopback and metadata addresses, are left out. If a Service has two
// families, the endpoints of the first are used: both are the same pods.
func makeBackend(snap model.Snapshot, service model.Name, number uint16) (*schema.Backend, bool) {
	svc, ok := snap.Service(service)
	if !ok || svc.Type == model.ExternalName {
		return nil, false
	}
	p, ok := port(svc, model.IngressBackend{Service: service.Name, Port: number})
	if !ok {
		return nil, false
	}
	var of [2][]schema.Endpoint // IPv4, IPv6
	for slice := range snap.EndpointSlices(service) {
		i := slices.IndexFunc(slice.Ports, func(q model.EndpointPort) bool {
			return q.Name == p.Name &&
				q.Protocol == model.TCP
		})
		if i < 0 {
			continue
		}
		for _, e := range slice.Endpoints {
			ready := e.Ready || svc.PublishNotReady
			if !ready && !(e.Serving && e.Terminating) || reach.Special(e.Addr) != "" {
				continue
			}
			family := 0
			if e.Addr.Is6() {
				family = 1
			}
			of[family] = append(of[family], schema.Endpoint{Addr: netip.AddrPortFrom(e.Addr, slice.Ports[i].Port),
				Draining: !ready})
		}
	}
	first := 0
	if len(svc.ClusterIPs) > 0 && svc.ClusterIPs[0].Is6() {
		first = 1
	}
	list := of[first]
	if len(list) == 0 {
		list = of[1-first]
	}
	// A duplicate address is ready if it is ready once.
	slices.SortFunc(list, func(a, b schema.Endpoint) int {
		if c := a.Addr.Compare(b.Addr); c != 0 {
			return c
		}
		if a.Draining == b.Draining {
			return 0
		}
		if b.Draining {
			return -1
		}
		return 1
	})
	list = slices.CompactFunc(list, func(a, b schema.Endpoint) bool { return a.Addr == b.Addr })
	return &schema.Backend{Key: backendKey(service, number), Endpoints: list}, true
}
