package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"wayleave.dev/model"
)

// Entry is the records of one Service; or with an empty service name the mere
// existence of a namespace; or with podPrefix before the name, that of a pod. Names are relative: the server puts
// service,
// namespace, "svc" and the cluster domain behind them.
type Entry struct {
	// Unready is a Service without records: headless with nobody ready, or not allocated yet. Nothing else is set.
	Unready bool `json:"unready,omitempty"`
	// VIPs are the cluster IPs.
	VIPs []netip.Addr `json:"vips,omitempty"`
	// Hosts are the endpoints of a headless service, in order of their addresses.
	Hosts []Host `json:"hosts,omitempty"`
	// Named are the endpoints with a hostname of a Service with cluster IPs, in order of their addresses: pods of a
	// StatefulSet.
	Named []Host `json:"named,omitempty"`
	// CNAME is the target of an ExternalName service, with no final dot.
	CNAME string `json:"cname,omitempty"`
	// Ports are the named ports, for SRV records.
	Ports []Port `json:"ports,omitempty"`
	// Pod are the addresses of a pod: then the entry is a pod's, and nothing else is set.
	Pod []netip.Addr `json:"pod,omitempty"`
}

// Host is an endpoint of a headless service.
type Host struct {
	// Name is its label: the hostname that the pod asks for, else one made of
	// its address.
	Name string     `json:"name"`
	Addr netip.Addr `json:"addr"`
}

// Port is a named port of a service.
type Port struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"` // "tcp", "udp", "sctp"
	Port     uint16 `json:"port"`
	// Hosts are the names of the hosts that have it, in order; empty is all of them.
	Hosts []string `json:"hosts,omitempty"`
}

func (p Port) equal(o Port) bool {
	return p.Name == o.Name && p.Protocol == o.Protocol && p.Port == o.Port && slices.Equal(p.Hosts, o.Hosts)
}

// podPrefix begins the keys of pods; no name of a Service has a slash.
const podPrefix = "pod/"

// Keys are the entries that a change touches: services, namespaces as names without
// a service, and, for those who watch them, pods.
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

// Plan makes the entry of one key.
func Plan(snap model.Snapshot, key model.Name) (Entry, bool, []model.Problem) {
	if key.Name == "" {
		_, ok := snap.Namespace(key.Namespace)
		return Entry{}, ok, nil
	}
	if pod, ok := strings.CutPrefix(key.Name, podPrefix); ok {
		p, ok := snap.Pod(model.Name{Namespace: key.Namespace, Name: pod})
		if !ok {
			return Entry{}, false, nil
		}
		return Entry{Pod: p.IPs}, len(p.IPs) > 0, nil
	}
	svc, ok := snap.Service(key)
	if !ok {
		return Entry{}, false, nil
	}
	switch {
	case svc.Type == model.ExternalName:
		return Entry{CNAME: svc.ExternalName}, svc.ExternalName != "", nil
	case svc.Headless:
		e := headless(snap, svc)
		e.Unready = len(e.Hosts) == 0 // NXDOMAIN with nobody ready (DNS specification 1.1.0, 2.4.1)
		return e, true, nil
	case len(svc.ClusterIPs) == 0:
		return Entry{Unready: true}, true, nil // its address is not allocated yet
	}
	e := Entry{VIPs: svc.ClusterIPs, Named: named(snap, svc)}
	for _, p := range svc.Ports {
		if p.Name != "" {
			e.Ports = append(e.Ports, Port{Name: p.Name, Protocol: strings.ToLower(p.Protocol.String()), Port: p.Port})
		}
	}
	return e, true, nil
}

// portKey is a port without the hosts that have it.
type portKey struct {
	name, protocol string
	port           uint16
}

// headless takes every endpoint that is ready, or all of a service that publishes
// those not ready. Ports are those of an endpoint's own slice: pods may have different
// numbers under one name.
func headless(snap model.Snapshot, svc *model.Service) Entry {
	var e Entry
	ports := map[portKey][]string{}
	for slice := range snap.EndpointSlices(svc.Name) {
		var names []string
		for _, ep := range slice.Endpoints {
			if !ep.Ready && !svc.PublishNotReady {
				continue
			}
			h := Host{strings.ToLower(ep.Hostname), ep.Addr}
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
	slices.SortFunc(e.Hosts, compareHosts)
	e.Hosts = slices.Compact(e.Hosts) // an endpoint may be in two slices while it moves
	e.Ports = portsOf(ports, e.Hosts)
	return e
}

// named are the endpoints with a hostname, of those that headless takes.
func named(snap model.Snapshot, svc *model.Service) (out []Host) {
	for slice := range snap.EndpointSlices(svc.Name) {
		for _, ep := range slice.Endpoints {
			if ep.Hostname != "" && (ep.Ready || svc.PublishNotReady) {
				out = append(out, Host{strings.ToLower(ep.Hostname), ep.Addr})
			}
		}
	}
	slices.SortFunc(out, compareHosts)
	return slices.Compact(out)
}

// portsOf are the ports in order, each with its hosts where it has not all of them.
func portsOf(ports map[portKey][]string, hosts []Host) []Port {
	all := map[string]bool{}
	for _, h := range hosts {
		all[h.Name] = true
	}
	var out []Port
	for k, names := range ports {
		slices.Sort(names)
		p := Port{Name: k.name, Protocol: k.protocol, Port: k.port}
		if names = slices.Compact(names); len(names) < len(all) {
			p.Hosts = names
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Port) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Protocol, b.Protocol),
			cmp.Compare(a.Port, b.Port))
	})
	return out
}

func compareHosts(a, b Host) int {
	return cmp.Or(a.Addr.Compare(b.Addr), strings.Compare(a.Name, b.Name))
}

// addressLabel is the name of an endpoint that has none: its address with dashes. A
// label may not end with one (RFC 1123, 2.1), so the zeros behind "::" are told.
func addressLabel(a netip.Addr) string {
	label := strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
	if strings.HasSuffix(label, "-") {
		label += "0"
	}
	return label
}

// Equal compares two entries.
func Equal(a, b Entry) bool {
	return a.Unready == b.Unready && a.CNAME == b.CNAME && slices.Equal(a.VIPs, b.VIPs) &&
		slices.Equal(a.Hosts, b.Hosts) && slices.Equal(a.Named, b.Named) && slices.EqualFunc(a.Ports, b.Ports,
		Port.equal) && slices.Equal(a.Pod, b.Pod)
}
