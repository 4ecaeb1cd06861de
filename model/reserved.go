package model

// ReservedPort names the program of the node that listens on a port, where no Service and
// no pod may take it: a node port or a host port there would get what is meant for the
// kubelet, the control plane or Wayleave. It is empty for all other ports.
func ReservedPort(p Protocol, port uint16) string {
	switch p {
	case TCP:
		switch port {
		case 2379, 2380, 2381:
			return "etcd"
		case 6443:
			return "the API server"
		case 10248, 10250, 10255:
			return "the kubelet"
		case 10257, 10259:
			return "the control plane"
		case 10249, 10256:
			return "Wayleave's agent"
		}
	case UDP:
		if port == 4789 {
			return "the pod network (VXLAN)"
		}
	}
	switch {
	case p != TCP && p != UDP:
	case port == 10053:
		return "the cluster DNS"
	case port == 7946:
		return "Wayleave's heartbeats"
	}
	return ""
}

// Reserved are ports of the nodes' programs that differ from cluster to cluster, beside those
// of ReservedPort. The zero value has none of the settings.
type Reserved struct {
	// Peers is the port of heartbeats (the setting loadbalancer.peerPort).
	Peers uint16
	// VXLAN is the UDP port of tunnels (the setting podnetwork.vxlanPort).
	VXLAN uint16
	// WireGuard is the first of two UDP ports of encryption (the setting podnetwork.wireguardPort).
	WireGuard uint16
	// Metrics is the port of metrics (the setting metrics.port).
	Metrics uint16
	// BGP says that nodes listen at the port of the BGPConfiguration (the setting bgp.enabled).
	BGP bool
}

// Port names the program of the nodes that listens on a port; it is empty for all other ports.
// The API server's ports are those of the EndpointSlices of Service default/kubernetes.
func (r Reserved) Port(snap Snapshot, p Protocol, port uint16) string {
	if whose := ReservedPort(p, port); whose != "" {
		return whose
	}
	if port == r.Peers && (p == TCP || p == UDP) && port != 0 {
		return "Wayleave's heartbeats"
	}
	if port == r.Metrics && p == TCP && port != 0 {
		return "Wayleave's metrics"
	}
	if r.BGP && p == TCP && port == snap.BGP().Port {
		return "Wayleave's BGP sessions"
	}
	if port == r.VXLAN && p == UDP && port != 0 {
		return "the pod network (VXLAN)"
	}
	if r.WireGuard != 0 && p == UDP && (port == r.WireGuard || port == r.WireGuard+1) {
		return "the pod network (WireGuard)"
	}
	for s := range snap.EndpointSlices(APIService()) {
		for _, e := range s.Ports {
			if e.Protocol == p && e.Port == port {
				return "the API server"
			}
		}
	}
	return ""
}

// APIService is the Service of the API server.
func APIService() Name { return Name{Namespace: "default", Name: "kubernetes"} }
