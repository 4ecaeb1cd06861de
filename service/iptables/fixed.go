package iptables

import (
	"fmt"
	"slices"
	"strings"

	"wayleave.dev/kernel/iptables"
	"wayleave.dev/service"
)

// jump leads from a base chain of the kernel to one of Wayleave's chains, as its first rule.
type jump struct{ table, from, rule string }

// jumps are in the order in which packets traverse them.
func jumps(f iptables.Family) []jump {
	list := []jump{
		{"filter", "INPUT", firewall()}, {"filter", "INPUT", onlyNew("kubernetes service portals", chainServices)},
		{"filter", "INPUT", comment("kubernetes health check service ports") + " -j " + chainNodePorts},
		{"filter", "INPUT", onlyNew("kubernetes externally-visible service portals", chainExternal)},
		{"filter", "FORWARD", firewall()}, {"filter", "FORWARD", comment("kubernetes forwarding rules") + " -j " +
			chainForward},
		{"filter", "FORWARD", onlyNew("kubernetes service portals", chainServices)},
		{"filter", "FORWARD", onlyNew("kubernetes externally-visible service portals", chainExternal)},
		{"filter", "OUTPUT", firewall()}, {"filter", "OUTPUT", onlyNew("kubernetes service portals", chainServices)},
		{"filter", "OUTPUT", onlyNew("kubernetes externally-visible service portals", chainExternal)},
		{"nat", "PREROUTING", comment("kubernetes service portals") + " -j " + chainServices},
		{"nat", "OUTPUT", comment("kubernetes service portals") + " -j " + chainServices},
		{"nat", "POSTROUTING", comment("kubernetes postrouting rules") + " -j " + chainPostrouting},
	}
	if f == iptables.IPv4 {
		list = append([]jump{{"filter", "INPUT", "-j " + chainLocalhost},
			{"filter", "FORWARD", "-j " + chainLocalhost}}, list...)
	}
	return list
}

func onlyNew(words, chain string) string {
	return fmt.Sprintf("-m conntrack --ctstate NEW %s -j %s", comment("%s", words), chain)
}

func firewall() string { return onlyNew("kubernetes load balancer firewall", chainFirewall) }

// fixed returns the chains that every node has. Chains that also hold rules of Services end with these rules.
func fixed(f iptables.Family, l service.NodeFacts) map[place][]string {
	in := func(table, chain string) place { return place{f, table, chain} }
	out := map[place][]string{
		in("nat", chainServices): toNodePorts(f, l,
			"kubernetes service nodeports; NOTE: this must be the last rule in this chain", chainNodePorts),
		in("nat", chainNodePorts): nil,
		in("nat", chainMarkMasq):  {fmt.Sprintf("-j MARK --set-xmark %s/%s", masqueradeMark, masqueradeMark)},
		in("nat", chainOutside):   markOutside(f, l),
		in("nat", chainPostrouting): {
			fmt.Sprintf("-m mark ! --mark %s/%s -j RETURN", masqueradeMark, masqueradeMark),
			// The mark is cleared first: it survives encapsulation, and would cause the outer packet to be masqueraded,
			// too.
			fmt.Sprintf("-j MARK --set-xmark %s/0x0", masqueradeMark),
			comment("kubernetes service traffic requiring SNAT") + " -j MASQUERADE --random-fully",
		},
		in("filter", chainServices):  nil,
		in("filter", chainNodePorts): nil, // only health checks, at any address of the node
		in("filter", chainExternal):  toNodePorts(f, l, "kubernetes service nodeports", chainRefusePorts),
		in("filter", chainFirewall):  nil,

		in("filter", chainRefusePorts): nil,
		in("filter", chainForward): {
			"-m conntrack --ctstate INVALID -j DROP",
			fmt.Sprintf("%s -m mark --mark %s/%s -j ACCEPT", comment("kubernetes forwarding rules"), masqueradeMark,
				masqueradeMark),
			comment("kubernetes forwarding conntrack rule") + " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		},
		in("filter", chainRefuse): {"-p tcp " + reject(f, "tcp"), "-p udp " + reject(f, "udp"), "-p sctp " +
			reject(f, "sctp")},
	}
	if f == iptables.IPv4 {
		// If node ports are served on 127.0.0.1, the kernel routes that address; this rule keeps remote clients away
		// from local listeners (CVE-2020-8558).
		out[in("filter", chainLocalhost)] = []string{
			"! -i lo -m conntrack --ctstate NEW --ctorigdst 127.0.0.0/8 -j DROP"}
	}
	return out
}

// masqueradeMark is the bit of the packet mark that kube-proxy uses by default.
const masqueradeMark = "0x4000"

// markOutside gives clients that are not pods the node's address, otherwise the endpoint's answer would bypass this
// node. The node itself already has its address, unless the VIP is one of its addresses and the kernel chose that.
func markOutside(f iptables.Family, l service.NodeFacts) (rules []string) {
	pods := false
	for _, c := range l.PodCIDRs {
		if family(c.Addr()) == f {
			pods = true
			rules = append(rules, fmt.Sprintf("-s %s -j RETURN", c))
		}
	}
	if !pods {
		return nil // if no network is known, every address counts as a pod's
	}
	for _, a := range l.NodeIPs {
		if family(a) == f {
			rules = append(rules, fmt.Sprintf("-s %s -j RETURN", single(a)))
		}
	}
	return append(rules, fmt.Sprintf("-j MARK --set-xmark %s/%s", masqueradeMark, masqueradeMark))
}

// toNodePorts leads packets for an address of the node that serves node ports to a chain.
func toNodePorts(f iptables.Family, l service.NodeFacts, words, chain string) (rules []string) {
	for _, n := range l.NodePortNets() {
		if family(n.Addr()) == f {
			dst := fmt.Sprintf("-d %s ", n)
			if n.Bits() == 0 {
				dst = ""
			}
			rules = append(rules, fmt.Sprintf("%s%s -m addrtype --dst-type LOCAL -j %s", dst,
				comment("%s", words), chain))
		}
	}
	return rules
}

// ours reports whether a chain belongs to a service proxy: to Wayleave, or to a former kube-proxy. Chains of the
// kubelet (KUBE-FIREWALL, KUBE-IPTABLES-HINT and others) do not.
func ours(chain string) bool {
	switch chain {
	case chainServices, chainNodePorts, chainExternal, chainFirewall, chainForward, chainPostrouting, chainMarkMasq,
		chainOutside, chainRefusePorts, chainRefuse, chainLocalhost, canary,
		// The rest are of kube-proxy's mode ipvs.
		"KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER",
		"KUBE-IPVS-OUT-FILTER":
		return true
	}
	return slices.ContainsFunc([]string{prefixCluster, prefixLocal, prefixOutside, prefixFirewall,
		prefixEndpoint, "KUBE-XLB-"},
		func(p string) bool { return strings.HasPrefix(chain, p) })
}

// canary is a chain by which kube-proxy detects that the tables were flushed. While it exists, and no Wayleave has
// taken over, the chains are kube-proxy's.
const canary = "KUBE-PROXY-CANARY"
