package agent

import (
	"net/netip"

	"wayleave.dev/config"
	"wayleave.dev/model"
	"wayleave.dev/writeback"
)

// ClusterDNS is the Service of the cluster DNS.
func ClusterDNS() model.Name {
	return model.Name{Namespace: writeback.DNSNamespace, Name: writeback.DNSName}
}

// PodSelector selects the pods of all agents, whichever DaemonSet they are of.
func PodSelector() map[string]string { return map[string]string{"app.kubernetes.io/name": "wayleave"} }

// SplitDNS tells addresses that can be a Service's from IPv4 link-local ones, which a NodeLocal DNSCache has on each
// node. An IPv6 link-local address means nothing without a link, and stays for the API server to refuse.
func SplitDNS(all []netip.Addr) (service, node []netip.Addr) {
	for _, a := range all {
		if a.Is4() && a.IsLinkLocalUnicast() {
			node = append(node, a)
		} else {
			service = append(service, a)
		}
	}
	return service, node
}

// ReservedPorts are ports of the nodes that settings give to Wayleave.
func ReservedPorts(cfg config.Config) model.Reserved {
	r := model.Reserved{Metrics: uint16(cfg.Metrics.Port), BGP: cfg.BGP.Enabled}
	if cfg.LoadBalancer.Enabled {
		r.Peers = uint16(cfg.LoadBalancer.PeerPort)
	}
	if cfg.PodNetwork.Enabled {
		r.VXLAN = uint16(cfg.PodNetwork.VXLANPort)
	}
	if cfg.Encrypts() {
		r.WireGuard = uint16(cfg.PodNetwork.WireGuardPort)
	}
	return r
}

// PodsAndNode are the addresses of a node's pods, and its own.
func PodsAndNode(snap model.Snapshot, name string) (pods, node []netip.Addr) {
	for p := range snap.Pods() {
		if p.Node == name && !p.HostNetwork {
			pods = append(pods, p.IPs...)
		}
	}
	if n, ok := snap.Node(name); ok {
		node = append(append(node, n.InternalIPs...), n.ExternalIPs...)
	}
	return pods, node
}
