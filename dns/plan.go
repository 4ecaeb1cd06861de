package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"wayleave.dev/dns/schema"
	"wayleave.dev/model"
)

// podPrefix is the prefix of the keys of pods; no name of a Service contains a slash.
const podPrefix = "pod/"

// Keys returns the keys that a change affects: Services, namespaces (a name without a Service), and pods if the store
// watches them.
func Keys(_ model.Snapshot, c model.Changes) []model.Name {
	keys := make([]model.Name, 0, len(c.Of(model.ServiceKind))+len(c.Of(model.NamespaceKind)))
	for n := range c.Of(model.ServiceKind) {
		keys = append(keys, n)
	}
	for ns := range c.Of(model.NamespaceKind) {
		keys = append(keys, model.Name{Namespace: ns.Name})
	}
	for p := range c.Of(model.PodKind) {
		keys = append(keys, model.Name{Namespace: p.Namespace, Name: podPrefix + p.Name})
	}
	return keys
}

// Plan returns the entry of one key.
func Plan(snap model.Snapshot, key model.Name) (schema.Records, bool, []model.Problem) {
	if key.Name == "" {
		_, ok := snap.Namespace(key.Namespace)
		return schema.Records{}, ok, nil
	}
	if pod, ok := strings.CutPrefix(key.Name, podPrefix); ok {
		p, ok := snap.Pod(model.Name{Namespace: key.Namespace, Name: pod})
		if !ok {
			return schema.Records{}, false, nil
		}
		return schema.Records{Pod: p.IPs}, len(p.IPs) > 0, nil
	}
	svc, ok := snap.Service(key)
	if !ok {
		return schema.Records{}, false, nil
	}
	switch {
	case svc.Type == model.ExternalName:
		return schema.Records{CNAME: svc.ExternalName}, svc.ExternalName != "", nil
	case svc.Headless:
		e := headless(snap, svc)
		e.Unready = len(e.Hosts) == 0 // NXDOMAIN without a ready endpoint (DNS specification 1.1.0, 2.4.1)
		return e, true, nil
	case len(svc.ClusterIPs) == 0:
		return schema.Records{Unready: true}, true, nil // its address is not allocated yet
	}
	e := schema.Records{VIPs: svc.ClusterIPs, Named: named(snap, svc)}
	for _, p := range svc.Ports {
		if p.Name != "" {
			e.Ports = append(e.Ports, schema.Port{Name: p.Name, Protocol: strings.ToLower(p.Protocol.String()),
				Port: p.Port})
		}
	}
	return e, true, nil
}

// portKey is a port without its hosts.
type portKey struct {
	name, protocol string
	port           uint16
}

// headless adds every ready endpoint, or all of a Service that publishes those not ready. Ports are those of an
// endpoint's own slice: pods may have different numbers under one name.
func headless(snap model.Snapshot, svc *model.Service) schema.Records {
	var e schema.Records
	ports := map[portKey][]string{}
	for slice := range snap.EndpointSlices(svc.Name) {
		var names []string
		for _, ep := range slice.Endpoints {
			if !ep.Ready && !svc.PublishNotReady {
				continue
			}
			h := schema.Host{Name: strings.ToLower(ep.Hostname), Addr: ep.Addr}
			if h.Name == "" {
				h.Name = addressLabel(ep.Addr)
			}
			e.Hosts, names = append(e.Hosts, h), append(names, h.Name)
		}
		for _, p := range slice.Ports {
			if k := (portKey{p.Name, strings.ToLower(p.Protocol.String()), p.Port}); p.Name != "" && len(names) > 0 {
				ports[k] = append(ports[k], names...)
			}
		}
	}
	slices.SortFunc(e.Hosts, schema.CompareHosts)
	e.Hosts = slices.Compact(e.Hosts) // an endpoint may be in two slices while it moves
	e.Ports = portsOf(ports, e.Hosts)
	return e
}

// named returns the endpoints with a hostname, of those that headless adds.
func named(snap model.Snapshot, svc *model.Service) (out []schema.Host) {
	for slice := range snap.EndpointSlices(svc.Name) {
		for _, ep := range slice.Endpoints {
			if ep.Hostname != "" && (ep.Ready || svc.PublishNotReady) {
				out = append(out, schema.Host{Name: strings.ToLower(ep.Hostname), Addr: ep.Addr})
			}
		}
	}
	slices.SortFunc(out, schema.CompareHosts)
	return slices.Compact(out)
}

// portsOf returns the ports in order, each with its hosts unless all have it.
func portsOf(ports map[portKey][]string, hosts []schema.Host) []schema.Port {
	all := map[string]bool{}
	for _, h := range hosts {
		all[h.Name] = true
	}
	var out []schema.Port
	for k, names := range ports {
		slices.Sort(names)
		p := schema.Port{Name: k.name, Protocol: k.protocol, Port: k.port}
		if names = slices.Compact(names); len(names) < len(all) {
			p.Hosts = names
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b schema.Port) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Protocol, b.Protocol),
			cmp.Compare(a.Port, b.Port))
	})
	return out
}

// addressLabel is the label of an endpoint without a hostname: its address with dashes. A label must not end with a
// dash (RFC 1123, 2.1), so the zeros after "::" are written out.
func addressLabel(a netip.Addr) string {
	label := strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
	if strings.HasSuffix(label, "-") {
		label += "0"
	}
	return label
}
