// Package ipvs renders service plans to the kernel's virtual servers.
//
// A virtual server chooses an endpoint of a frontend by its scheduler, and translates to it. The companion tables of
// service/nftables masquerade, limit sources and refuse. They also serve clients in the cluster that use an external
// address of a Service with externalTrafficPolicy Local: a virtual server has one list of backends, which is the one
// for external clients.
//
// The addresses are on an interface of Wayleave, with scope host. Packets to them are therefore local, and IPVS handles
// them.
package ipvs

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"wayleave.dev/kernel/ipvs"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
)

// Link is the name of the interface with the addresses.
const Link = "wayleave-ipvs"

// Schedulers are the allowed values, with the kernel's names.
func Schedulers() []string { return []string{"rr", "lc", "dh", "sh", "wrr", "wlc", "sed", "nq", "mh"} }

// server is a wanted virtual server.
type server struct {
	ipvs.Server
	backends []netip.AddrPort
}

// node holds the facts of the node that servers depend on, apart from the plan.
type node struct {
	scheduler string
	// addrs are the node's addresses that serve node ports.
	addrs []netip.Addr
}

// servers calls emit for every virtual server of a plan, including those without a backend: connections to former
// backends continue.
func servers(p service.Plan, n node, emit func(server)) {
	for _, e := range p.Frontends {
		s := server{ipvs.Server{Key: ipvs.Key{Protocol: e.Frontend.Protocol, Port: e.Frontend.Port},
			Scheduler: n.scheduler, Persistent: e.Affinity}, e.Slots}
		if e.Split {
			s.backends = e.Outside
		}
		if !e.Frontend.IsNodePort() {
			s.Addr = e.Frontend.Addr
			emit(s)
			continue
		}
		for _, a := range n.addrs {
			if a.Is6() == e.Frontend.Addr.Is6() {
				s.Addr = a
				emit(s)
			}
		}
	}
}

// addresses calls emit for the addresses that a plan needs on the interface.
func addresses(p service.Plan, emit func(netip.Addr)) {
	for _, a := range p.VIPs {
		emit(a)
	}
	for i, e := range p.Frontends {
		a := e.Frontend.Addr
		same := func(o service.FrontendPlan) bool { return o.Frontend.Addr == a }
		if !e.Frontend.IsNodePort() && !slices.Contains(p.VIPs, a) && !slices.ContainsFunc(p.Frontends[:i], same) {
			emit(a)
		}
	}
}

// nodeAddrs returns the node's addresses that serve node ports. IPVS sends nothing from 127.0.0.1 to another host, so
// the companion tables do that.
func nodeAddrs(l service.NodeFacts, own []netip.Addr) (out []netip.Addr) {
	for _, a := range own {
		in := func(p netip.Prefix) bool { return p.Contains(a) }
		if slices.ContainsFunc(l.NodePortNets(), in) && !a.IsLoopback() {
			out = append(out, a)
		}
	}
	return out
}

// Text renders plans for people: the virtual servers as ipvsadm -Ln lists them, and the companion tables as nft text.
func Text(plans map[model.Name]service.Plan, l service.NodeFacts, scheduler string) string {
	var list []server
	for _, p := range plans {
		servers(p, node{scheduler, nodeAddrs(l, l.NodeIPs)}, func(s server) { list = append(list, s) })
	}
	slices.SortFunc(list, func(a, b server) int { return a.Key.Compare(b.Key) })
	var b strings.Builder
	b.WriteString("IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> " +
		"RemoteAddress:Port           Forward Weight\n")
	for _, s := range list {
		fmt.Fprintf(&b, "%-4s %s %s", s.Protocol, netip.AddrPortFrom(s.Addr, s.Port), s.Scheduler)
		if s.Persistent > 0 {
			fmt.Fprintf(&b, " persistent %d", int(s.Persistent.Seconds()))
		}
		b.WriteByte('\n')
		for _, at := range s.backends {
			fmt.Fprintf(&b, "  -> %-28s Masq    1\n", at)
		}
	}
	return b.String() + nftables.TextIPVSCompanion(plans, l, nil)
}

// Sysctls are the values that the mode needs below /proc/sys/net, the same as kube-proxy's. Connections are tracked, so
// that their source can be translated. Packets to a removed backend are sent to another one. Other interfaces do not
// answer ARP for the addresses (kube-proxy's strictARP).
func Sysctls() map[string]string {
	return map[string]string{
		"ipv4/vs/conntrack":                 "1",
		"ipv4/vs/expire_nodest_conn":        "1",
		"ipv4/vs/expire_quiescent_template": "1",
		"ipv4/conf/all/arp_ignore":          "1",
		"ipv4/conf/all/arp_announce":        "2",
	}
}
