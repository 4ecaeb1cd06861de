package networkpolicy

import (
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// Party is the holder of an address: one end of a packet, after translation.
type Party struct {
	Addr netip.Addr
	// Pod is the pod of the pod network that has the address; nil for all others.
	Pod *model.Pod
	// Unknown is the name of a pod that leased the address on this node, and that is not in the model yet.
	Unknown model.Name
	// Node is the name of the node whose own address it is; empty for all others.
	Node string
	// DNS says that the address is one of kube-dns.
	DNS bool
	// Proxy is the name of the node whose ingress proxy sends from the address; empty for
	// all others.
	Proxy string
}

// dnsPod represents kube-dns, on whichever node its address is answered. The names of its ports are the usual ones.
func dnsPod() *model.Pod {
	return &model.Pod{
		Name:   model.Name{Namespace: "kube-system"},
		Labels: map[string]string{"k8s-app": "kube-dns"},
		Ports: []model.NamedPort{{Name: "dns", Protocol: model.UDP, Port: 53},
			{Name: "dns-tcp", Protocol: model.TCP, Port: 53}},
	}
}

// proxyPod represents the ingress proxy of any node.
func proxyPod() *model.Pod {
	return &model.Pod{Name: model.Name{Namespace: "kube-system"}, Labels: ProxyLabels()}
}

// Identify finds the holder of an address. The leases of this node come first. Of several pods that claim an address
// the youngest holds it, since the others are about to end.
func Identify(v model.Snapshot, l NodeInputs, addr netip.Addr) Party {
	p := Party{Addr: addr, DNS: slices.Contains(l.DNS, addr)}
	if p.DNS {
		return p
	}
	if name, leased := l.Pods[addr]; leased {
		if pod, ok := v.Pod(name); ok && mayHave(pod, l.Node, addr) {
			p.Pod = pod
		} else {
			p.Unknown = name
		}
		return p
	}
	for pod := range v.Pods() {
		switch {
		case !slices.Contains(pod.IPs, addr):
		case pod.HostNetwork:
			p.Node = pod.Node
		case p.Pod == nil || p.Pod.Created.Compare(pod.Created) <= 0: // in order of names
			p.Pod = pod
		}
	}
	for n := range v.Nodes() {
		if slices.Contains(n.InternalIPs, addr) {
			p.Node = n.Name
		}
	}
	if p.Proxy = proxyAt(v, l, addr); p.Pod != nil {
		p.Proxy = "" // until the pod ends, which had the address before it was the proxy's
	} else if p.Proxy != "" {
		p.Node = ""
	}
	return p
}

// proxyAt is the node whose ingress proxy the address is for, or empty.
func proxyAt(v model.Snapshot, l NodeInputs, addr netip.Addr) string {
	if !l.Ingress {
		return ""
	}
	for n := range v.Nodes() {
		if slices.Contains(n.ProxyAddrs(), addr) {
			return n.Name
		}
	}
	return ""
}

// mayHave says whether the pod of that name may be the one that leased the address on
// the node, and not an earlier one.
func mayHave(p *model.Pod, node string, addr netip.Addr) bool {
	return !p.HostNetwork && (p.Node == node || p.Node == "") && (len(p.IPs) == 0 || slices.Contains(p.IPs, addr))
}
