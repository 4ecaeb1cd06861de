package schema

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Records are the records of one Service; or with an empty service name the existence of a namespace; or with podPrefix
// before the name, those of a pod. Names are relative: the server appends service, namespace, "svc" and the cluster
// domain.
type Records struct {
	// Unready is a Service without records: headless without a ready endpoint, or not allocated yet. Then nothing
	// else is set.
	Unready bool `json:"unready,omitempty"`
	// VIPs are the cluster IPs.
	VIPs []netip.Addr `json:"vips,omitempty"`
	// Hosts are the endpoints of a headless Service, in order of their addresses.
	Hosts []Host `json:"hosts,omitempty"`
	// Named are the endpoints with a hostname of a Service with ClusterIPs, in order of their addresses: pods of a
	// StatefulSet.
	Named []Host `json:"named,omitempty"`
	// CNAME is the target of an ExternalName Service, without a final dot.
	CNAME string `json:"cname,omitempty"`
	// Ports are the named ports, for SRV records.
	Ports []Port `json:"ports,omitempty"`
	// Pod are the addresses of a pod: the entry is then a pod's, and nothing else is set.
	Pod []netip.Addr `json:"pod,omitempty"`
}

// Host is an endpoint of a headless service.
type Host struct {
	// Name is its label: the pod's hostname, otherwise a label made of its address.
	Name string     `json:"name"`
	Addr netip.Addr `json:"addr"`
}

// Port is a named port of a service.
type Port struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"` // "tcp", "udp", "sctp"
	Port     uint16 `json:"port"`
	// Hosts are the names of the hosts that have it, in order; empty means all.
	Hosts []string `json:"hosts,omitempty"`
}

func (p Port) equal(o Port) bool {
	return p.Name == o.Name && p.Protocol == o.Protocol && p.Port == o.Port && slices.Equal(p.Hosts, o.Hosts)
}

// CompareHosts orders hosts by address, then by name.
func CompareHosts(a, b Host) int {
	return cmp.Or(a.Addr.Compare(b.Addr), strings.Compare(a.Name, b.Name))
}

// Equal compares two entries.
func Equal(a, b Records) bool {
	return a.Unready == b.Unready && a.CNAME == b.CNAME && slices.Equal(a.VIPs, b.VIPs) &&
		slices.Equal(a.Hosts, b.Hosts) && slices.Equal(a.Named, b.Named) && slices.EqualFunc(a.Ports, b.Ports,
		Port.equal) && slices.Equal(a.Pod, b.Pod)
}
