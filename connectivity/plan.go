package connectivity

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strconv"

	"wayleave.dev/check"
	"wayleave.dev/source/kubernetes/sandbox"
	"wayleave.dev/writeback"
)

// group is a line of the report: what several probes of a pod have in common.
type group struct {
	section, id string
	// text is what must be, and problem what a failure is.
	text, problem string
	// fix is what to do, with %s for the node of the client.
	fix string
}

// family names the family of an address.
func family(a netip.Addr) string {
	if a.Is4() || a.Is4In6() {
		return "IPv4"
	}
	return "IPv6"
}

func at(a netip.Addr, port int) string { return netip.AddrPortFrom(a, uint16(port)).String() }

// status is the command that says what a node's agent has programmed.
const status = "wayleave status --node %s"

func overFamily(g group, a netip.Addr) group {
	f := family(a)
	g.id += "-" + map[string]string{"IPv4": "4", "IPv6": "6"}[f]
	g.text += " over " + f
	g.problem += " over " + f
	return g
}

func podGroup(sameNode bool, kind Kind, a netip.Addr) group {
	where, id, fix := "other nodes", "other-node",
		"open UDP 4789 (podnetwork.vxlanPort) between the nodes, or see the "+
			"setting routing; "+status
	if sameNode {
		where, id, fix = "the same node", "same-node", status+"; on the node, as root: wayleave check --pre --node"
	}
	proto := map[Kind]string{HTTP: "TCP", UDP: "UDP"}[kind]
	return overFamily(group{"pods", "pods-" + id + "-" + string(kind), "pods reach pods of " + where + " by " + proto,
		"pods do not reach pods of " + where + " by " + proto, fix}, a)
}

func pathGroup(kind Kind, a netip.Addr) group {
	fix := "lower the MTU of the links between the nodes, or let ICMP \"fragmentation needed\" and " +
		"\"packet too big\" " +
		"pass; " + status
	if kind == Path {
		return overFamily(group{"path", "mtu", "packets of the path's MTU pass between nodes",
			"packets of the path's MTU are lost between nodes", fix}, a)
	}
	return overFamily(group{"path", "large", fmt.Sprintf("%d KiB pass between nodes, both ways", largeBody>>10),
		fmt.Sprintf("%d KiB do not pass between nodes", largeBody>>10), fix}, a)
}

func serviceGroup(id, what string, a netip.Addr) group {
	return overFamily(group{"services", id, "pods reach " + what, "pods do not reach " + what,
		status + "; wayleave explain policy POD SERVICE"}, a)
}

func dnsGroup(id, what string) group {
	return group{"dns", id, "pods resolve " + what, "pods do not resolve " + what,
		"wayleave check; kubectl -n kube-system get service kube-dns; " + status}
}

// attempt is a probe of a pod for a line.
type attempt struct {
	from  sandbox.PodState
	group group
	Probe
}

// open are the probes before policies.
func (r *run) open() (out []attempt) {
	servers := r.of(server)
	for _, c := range r.of(client) {
		add := func(g group, p Probe) { out = append(out, attempt{c, g, p}) }
		for _, s := range servers {
			r.toPod(add, c, s)
		}
		want := names(servers)
		for _, a := range r.service.Addrs {
			add(serviceGroup("clusterip-tcp", "a ClusterIP by TCP", a),
				Probe{Kind: HTTP, To: at(a, TCPPort), Want: want})
			add(serviceGroup("clusterip-udp", "a ClusterIP by UDP", a),
				Probe{Kind: UDP, To: at(a, UDPPort), Want: want})
		}
		r.toNodes(add, want)
		for _, a := range r.balancer.External {
			add(serviceGroup(PartLoadBalancer, "a load balancer's address", a), Probe{Kind: HTTP, To: at(a, TCPPort),
				Want: want})
		}
		if !r.skips(PartDNS) {
			r.names(add, servers)
		}
	}
	return out
}

func (r *run) toPod(add func(group, Probe), c, s sandbox.PodState) {
	for _, a := range s.Addrs {
		for _, p := range []Probe{{Kind: HTTP, To: at(a, TCPPort)}, {Kind: UDP, To: at(a, UDPPort)}} {
			p.Want = []string{s.Name}
			add(podGroup(c.Node == s.Node, p.Kind, a), p)
		}
		if c.Node == s.Node || r.skips(PartMTU) {
			continue
		}
		for _, p := range []Probe{{Kind: Large, To: at(a, TCPPort)}, {Kind: Path, To: at(a, UDPPort)}} {
			add(pathGroup(p.Kind, a), p)
		}
	}
}

func (r *run) toNodes(add func(group, Probe), want []string) {
	for _, n := range r.nodes {
		for _, a := range n.Addrs {
			// A Service of one family has no port at addresses of the other.
			if r.node.NodeTCP == 0 || !hasFamily(r.node.Addrs, a) {
				continue
			}
			add(serviceGroup("nodeport-tcp", "node ports by TCP", a),
				Probe{Kind: HTTP, To: at(a, r.node.NodeTCP), Want: want})
			add(serviceGroup("nodeport-udp", "node ports by UDP", a),
				Probe{Kind: UDP, To: at(a, r.node.NodeUDP), Want: want})
		}
	}
}

func hasFamily(all []netip.Addr, a netip.Addr) bool {
	for _, b := range all {
		if family(a) == family(b) {
			return true
		}
	}
	return false
}

func (r *run) names(add func(group, Probe), servers []sandbox.PodState) {
	var service, pods []string
	for _, a := range r.service.Addrs {
		service = append(service, a.String())
	}
	for _, s := range servers {
		for _, a := range s.Addrs {
			if hasFamily(r.service.Addrs, a) {
				pods = append(pods, a.String())
			}
		}
	}
	add(dnsGroup("dns-kubernetes", "kubernetes.default"), Probe{Kind: DNS, To: "kubernetes.default"})
	add(dnsGroup("dns-short", "a Service of their namespace by its short name"), Probe{Kind: DNS, To: server,
		Want: service})
	if r.domain == "" {
		add(dnsGroup("dns-search", "names by a search list: they have none"),
			Probe{Kind: DNS, To: server + "." + r.place.Name()})
		return
	}
	add(dnsGroup("dns-full", "a Service by its full name"),
		Probe{Kind: DNS, To: server + "." + r.place.Name() + ".svc." + r.domain + ".", Want: service})
	add(dnsGroup("dns-headless", "a headless Service to its pods"), Probe{Kind: DNS, To: headless, Want: pods})
	add(dnsGroup("dns-externalname", "a Service of type ExternalName"), Probe{Kind: DNS, To: alias, Want: service})
}

// ingress tries an Ingress from each client.
func (r *run) ingress(ctx context.Context) error {
	if r.skips(PartIngress) {
		return nil
	}
	const host = "connectivity.wayleave.test"
	ok, err := r.place.HasClass(ctx, r.Class)
	if err != nil {
		return err
	}
	if !ok {
		r.say("ingress", PartIngress, "", check.Warning, "the cluster has no IngressClass "+r.Class,
			"the setting ingress.enabled: true; or --ingress-class, or --skip "+PartIngress)
		return nil
	}
	if err := r.place.CreateIngress(ctx, r.Class, host, server, TCPPort); err != nil {
		return err
	}
	var found []netip.Addr
	wait(ctx, cmp.Or(r.AddressWithin, addressWithin), func(ctx context.Context) bool {
		found, err = r.place.IngressAddrs(ctx, server)
		return err == nil && len(found) > 0
	})
	if len(found) == 0 {
		// Without an address for clients outside, the proxy's Service leads there.
		if s, err := r.place.Exposed(ctx, writeback.DNSNamespace, writeback.IngressService); err == nil {
			found = s.Addrs
		}
	}
	if len(found) == 0 {
		r.say("ingress", PartIngress, "", check.Failed, "the Ingress got no address", "wayleave ingress check; "+
			"kubectl -n kube-system get service wayleave-ingress")
		return ctx.Err()
	}
	var all []attempt
	for _, c := range r.of(client) {
		for _, a := range found {
			g := overFamily(group{"ingress", PartIngress, "pods reach a Service by its Ingress",
				"pods do not reach a Service by its Ingress", "wayleave ingress check; " + status}, a)
			all = append(all, attempt{c, g, Probe{Kind: HTTP, To: at(a, 80), Host: host, Want: names(r.of(server))}})
		}
	}
	r.try(ctx, all)
	return ctx.Err()
}

// policy tries two pods before and after policies: guarded, which clients alone may reach, and closed.
func (r *run) policy(ctx context.Context) error {
	if r.skips(PartPolicy) {
		return nil
	}
	const fix = "the setting networkpolicy.enabled, or the cluster's own network; wayleave explain policy; " + status
	before := group{"policy", "policy-before", "pods reach a pod before a policy isolates it",
		"pods do not reach a pod that no policy isolates", status}
	allows := group{"policy", "policy-allows", "a policy allows what it names", "a policy denies what it allows", fix}
	denies := group{"policy", "policy-denies", "a policy denies what it does not name", "a policy does not deny", fix}
	probes := func(app string, g group, denied bool, from ...sandbox.PodState) (out []attempt) {
		for _, c := range from {
			for _, s := range r.of(app) {
				for _, a := range s.Addrs {
					p := Probe{Kind: HTTP, To: at(a, TCPPort), Denied: denied}
					if !denied {
						p.Want = []string{s.Name}
					}
					out = append(out, attempt{c, overFamily(g, a), p})
				}
			}
		}
		return out
	}
	clients, others := r.of(client), r.of(server)
	both := append(append([]sandbox.PodState{}, clients...), others...)
	if !r.try(ctx, append(probes(guarded, before, false, both...), probes(closed, before, false, clients...)...)) {
		return ctx.Err() // a denial would prove nothing
	}
	if err := r.place.Isolate(ctx, guarded, client); err != nil {
		return err
	}
	if err := r.place.Isolate(ctx, closed, ""); err != nil {
		return err
	}
	all := append(probes(guarded, denies, true, others...), probes(closed, denies, true, clients...)...)
	r.try(ctx, all)
	// After the denials: now the policies are in force.
	r.try(ctx, probes(guarded, allows, false, clients...))
	return ctx.Err()
}

func number(all []attempt) {
	for i := range all {
		all[i].ID = strconv.Itoa(i)
	}
}
