package networkpolicy

import (
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// isLocal says whether the address is one of this node's pods: by its lease, or by the
// API where this node has no lease of it (of another CNI, or adopted without a name).
func (x *index) isLocal(a netip.Addr) bool {
	if _, leased := x.local.Pods[a]; leased {
		return true
	}
	p := x.holder[a]
	return p != nil && p.object != nil && p.object.Node == x.local.Node
}

// readdress follows a change of the addresses that a pod claims, or of what decides
// who has one.
func (x *index) readdress(p *pod, old, now []netip.Addr) {
	for _, a := range old {
		take(x.claims, a, p)
	}
	for _, a := range now {
		put(x.claims, a, p)
	}
	for _, a := range slices.Concat(old, now, slices.Collect(maps.Keys(x.leased[p.name]))) {
		x.rehold(a)
	}
}

// rehold finds out anew who has an address.
func (x *index) rehold(a netip.Addr) {
	x.unsettled[a] = struct{}{} // also when it is not local any more
	if old, now := x.holder[a], x.whose(a); old != now {
		x.move(a, old, now)
	}
}

func (x *index) move(a netip.Addr, old, now *pod) {
	for _, p := range []*pod{old, now} {
		if p == nil {
			continue
		}
		for g := range p.groups {
			x.markPeer(g, p, a)
		}
	}
	if old != nil {
		delete(old.addrs, a)
	}
	if x.holder[a] = now; now == nil {
		delete(x.holder, a)
		return
	}
	now.addrs[a] = struct{}{}
}

// whose says which pod truly has an address, nil when none is known. What this node
// leased is known best. Of several pods that claim one address the youngest has it: the
// others are about to end, and their state lags.
func (x *index) whose(a netip.Addr) *pod {
	if slices.Contains(x.local.DNS, a) {
		return x.dns
	}
	if name, ok := x.local.Pods[a]; ok {
		if p := x.pods[name]; p != nil && p.mayHave(a, x.local.Node) {
			return p
		}
		return nil
	}
	var best *pod
	for p := range x.claims[a] {
		if best == nil || best.before(p) {
			best = p
		}
	}
	if best == nil && x.local.Ingress && x.proxies[a] > 0 {
		return x.proxy
	}
	return best
}

// mayHave says whether the model's pod may be the one that leased the address here. One
// that has other addresses, or is on another node, is an earlier pod of the same name:
// the new one's labels are not known yet.
func (p *pod) mayHave(a netip.Addr, node string) bool {
	return (len(p.object.IPs) == 0 || slices.Contains(p.object.IPs, a)) &&
		(p.object.Node == node || p.object.Node == "")
}

// before orders pods that claim one address.
func (p *pod) before(o *pod) bool {
	if c := p.object.Created.Compare(o.object.Created); c != 0 {
		return c < 0
	}
	return p.name.Compare(o.name) < 0
}

// changeNode follows a node's pod networks, which say where its ingress proxy is; n is nil
// when the node is gone.
func (x *index) changeNode(name string, n *model.Node) {
	old, now := x.nodes[name], []netip.Addr(nil)
	if n != nil {
		now = n.ProxyAddrs()
	}
	if slices.Equal(old, now) {
		return
	}
	if x.nodes[name] = now; len(now) == 0 {
		delete(x.nodes, name)
	}
	for _, a := range now {
		x.proxies[a]++
	}
	for _, a := range old {
		if x.proxies[a]--; x.proxies[a] == 0 {
			delete(x.proxies, a)
		}
	}
	for _, a := range slices.Concat(old, now) {
		if name == x.local.Node {
			x.markProxy(a)
		}
		x.rehold(a)
	}
}

func (x *index) markProxy(a netip.Addr) { x.dirty[Key{Kind: ProxyEntry, Addr: a}] = struct{}{} }

// changeInputs follows the facts of the node.
func (x *index) changeInputs(now NodeInputs) {
	old := x.local
	x.local = now
	todo := map[netip.Addr]struct{}{}
	if old.Node != now.Node {
		for a := range x.claims {
			todo[a] = struct{}{}
		}
	}
	for a, n := range old.Pods {
		if now.Pods[a] != n || old.Node != now.Node {
			todo[a] = struct{}{}
			take(x.leased, n, a)
		}
	}
	for a, n := range now.Pods {
		if old.Pods[a] != n || old.Node != now.Node {
			todo[a] = struct{}{}
			put(x.leased, n, a)
		}
	}
	for _, a := range slices.Concat(old.DNS, now.DNS) {
		todo[a] = struct{}{}
		x.dirty[Key{Kind: DNSEntry, Addr: a}] = struct{}{}
	}
	if old.Ingress != now.Ingress {
		for a := range x.proxies {
			todo[a] = struct{}{}
		}
	}
	if old.Ingress != now.Ingress || old.Node != now.Node {
		for _, a := range slices.Concat(x.nodes[old.Node], x.nodes[now.Node]) {
			x.markProxy(a)
		}
	}
	for a := range todo {
		x.rehold(a)
	}
}

// unknown are the leased addresses of a namespace whose pods are not known.
func (x *index) unknown(namespace string) (out []netip.Addr) {
	for a, n := range x.local.Pods {
		if n.Namespace == namespace && x.holder[a] == nil {
			out = append(out, a)
		}
	}
	return out
}

// clone makes facts that nobody else changes.
func (l NodeInputs) clone() NodeInputs {
	return NodeInputs{Node: l.Node, Pods: maps.Clone(l.Pods), DNS: slices.Clone(l.DNS), Ingress: l.Ingress}
}
