package iptables

import (
	"fmt"
	"net/netip"
	"slices"

	"wayleave.dev/kernel/iptables"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// place identifies a chain with rules of many Services.
type place struct {
	family       iptables.Family
	table, chain string
}

// shared calls emit for the rules of a plan in chains that Services share.
func shared(k model.Name, p service.Plan, emit func(place, string)) {
	for _, e := range p.Frontends {
		sharedFrontend(k, e, emit)
	}
	if p.HealthCheck != 0 {
		for _, f := range families(p) {
			emit(place{f, "filter", chainNodePorts}, fmt.Sprintf("-p tcp %s -m tcp --dport %d -j ACCEPT",
				comment("%s health check node port", k), p.HealthCheck))
		}
	}
	// A packet that is still addressed to a VIP after translation is for a port that the Service does not have.
	for _, a := range p.VIPs {
		emit(place{family(a), "filter", chainServices},
			fmt.Sprintf("-d %s %s -j %s", single(a), comment("%s has no such port", k), chainRefuse))
	}
}

// families returns those of a plan's VIPs.
func families(p service.Plan) (out []iptables.Family) {
	for _, a := range p.VIPs {
		if f := family(a); !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

func sharedFrontend(k model.Name, e service.FrontendPlan, emit func(place, string)) {
	p, f := port{k, e.Port, e.Frontend.Protocol}, family(e.Frontend.Addr)
	nodePort, served := e.Frontend.IsNodePort(), e.Slots
	if e.Split {
		served = e.Outside
	}
	if len(e.Slots)+len(e.Outside) > 0 {
		switch {
		case nodePort:
			emit(place{f, "nat", chainNodePorts}, fmt.Sprintf("-p %s %s -m %s --dport %d -j %s", p.proto(),
				comment("%s", p), p.proto(), e.Frontend.Port, p.chain(prefixOutside)))
		case !e.External:
			emit(place{f, "nat", chainServices}, to(e.Frontend, p.proto(), comment("%s cluster IP", p))+" -j "+
				p.chain(drawing(e)))
		default:
			target := p.chain(prefixOutside)
			if len(e.Sources) > 0 {
				target = p.chain(prefixFirewall)
				emit(place{f, "filter", chainFirewall},
					to(e.Frontend, p.proto(), comment("%s traffic not accepted by %s", p, target))+" -j DROP")
			}
			emit(place{f, "nat", chainServices}, to(e.Frontend, p.proto(), comment("%s %s", p, words(e)))+" -j "+target)
		}
	}
	if len(served) > 0 {
		return
	}
	why, end := "has no endpoints", reject(f, p.proto())
	if e.Drop {
		why, end = "has no local endpoints", "-j DROP"
	}
	switch {
	case nodePort:
		emit(place{f, "filter", chainRefusePorts}, fmt.Sprintf("-p %s %s -m %s --dport %d %s", p.proto(),
			comment("%s %s", p, why), p.proto(), e.Frontend.Port, end))
	case !e.External:
		emit(place{f, "filter", chainServices}, to(e.Frontend, p.proto(), comment("%s %s", p, why))+" "+end)
	default:
		emit(place{f, "filter", chainExternal}, to(e.Frontend, p.proto(), comment("%s %s", p, why))+" "+end)
	}
}

// words describes an external address.
func words(e service.FrontendPlan) string {
	if e.Balancer {
		return "loadbalancer IP"
	}
	return "external IP"
}

// drawing returns the chain of a ClusterIP.
func drawing(e service.FrontendPlan) string {
	if e.Local {
		return prefixLocal
	}
	return prefixCluster
}

// own calls emit for the chains that belong to one plan, with all their rules. All are in the table nat.
func own(k model.Name, p service.Plan, l service.NodeFacts, emit func(f iptables.Family, chain string,
	rules []string)) {
	type where struct {
		family iptables.Family
		chain  string
	}
	done := map[where]bool{}
	add := func(f iptables.Family, chain string, rules func() []string) {
		if !done[where{f, chain}] {
			done[where{f, chain}] = true
			emit(f, chain, rules())
		}
	}
	// ClusterIPs first: the rules for their clients are in the same chains.
	for _, external := range []bool{false, true} {
		for _, e := range p.Frontends {
			if e.External == external && len(e.Slots)+len(e.Outside) > 0 {
				ownFrontend(k, e, p, l, add)
			}
		}
	}
}

func ownFrontend(k model.Name, e service.FrontendPlan, plan service.Plan, l service.NodeFacts,
	add func(iptables.Family, string,
		func() []string)) {
	p, f := port{k, e.Port, e.Frontend.Protocol}, family(e.Frontend.Addr)
	draw := func(prefix string, slots []netip.AddrPort, outside []string) {
		if len(slots) == 0 {
			return
		}
		add(f, p.chain(prefix), func() []string { return append(outside, drawOne(p, f, e, slots)...) })
		for _, s := range slots {
			add(f, p.endpoint(s), func() []string { return endpoint(p, f, e, s) })
		}
	}
	if !e.External {
		draw(drawing(e), e.Slots, []string{to(e.Frontend, p.proto(), comment("%s cluster IP", p)) + " -j " +
			chainOutside})
		return
	}
	draw(prefixCluster, e.Slots, nil)
	draw(prefixLocal, e.Outside, nil)
	add(f, p.chain(prefixOutside), func() []string { return outside(p, f, e, l) })
	if len(e.Sources) > 0 {
		// Frontends of one port have the same source ranges, apart from the address itself.
		add(f, p.chain(prefixFirewall), func() []string { return guarded(p, plan, f) })
	}
}

// drawOne returns the rules that send a connection to the client's previous endpoint, or to one of n: the first with
// probability 1/n, the second with 1/(n-1), and so on.
func drawOne(p port, f iptables.Family, e service.FrontendPlan, slots []netip.AddrPort) (rules []string) {
	if e.Affinity > 0 {
		for _, s := range slots {
			sep := p.endpoint(s)
			rules = append(rules, fmt.Sprintf(
				"%s -m recent --rcheck --seconds %d --reap --name %s --mask %s --rsource -j %s",
				comment("%s -> %s", p, s), int(e.Affinity.Seconds()), sep, mask(f), sep))
		}
	}
	for i, s := range slots {
		draw := ""
		if left := len(slots) - i; left > 1 {
			draw = " -m statistic --mode random --probability " + probability(left)
		}
		rules = append(rules, fmt.Sprintf("%s%s -j %s", comment("%s -> %s", p, s), draw, p.endpoint(s)))
	}
	return rules
}

// endpoint translates the address. A client that is the endpoint itself needs another source address, so that answers
// return through this node.
func endpoint(p port, f iptables.Family, e service.FrontendPlan, s netip.AddrPort) []string {
	set := ""
	if e.Affinity > 0 {
		set = fmt.Sprintf(" -m recent --set --name %s --mask %s --rsource", p.endpoint(s), mask(f))
	}
	return []string{
		fmt.Sprintf("-s %s %s -j %s", single(s.Addr()), comment("%s", p), chainMarkMasq),
		fmt.Sprintf("-p %s %s%s -m %s -j DNAT --to-destination %s", p.proto(), comment("%s", p), set, p.proto(), s),
	}
}

// outside returns the rules for clients of node ports and external addresses.
func outside(p port, f iptables.Family, e service.FrontendPlan, l service.NodeFacts) (rules []string) {
	if !e.Split {
		return []string{
			comment("masquerade traffic for %s external destinations", p) + " -j " + chainMarkMasq,
			"-j " + p.chain(prefixCluster),
		}
	}
	if len(e.Slots) > 0 {
		for _, c := range l.OwnPodCIDRs {
			if family(c.Addr()) == f {
				rules = append(rules, fmt.Sprintf("-s %s %s -j %s", c,
					comment("pod traffic for %s external destinations", p), p.chain(prefixCluster)))
			}
		}
		rules = append(rules,
			fmt.Sprintf("%s -m addrtype --src-type LOCAL -j %s",
				comment("masquerade LOCAL traffic for %s external destinations", p), chainMarkMasq),
			fmt.Sprintf("%s -m addrtype --src-type LOCAL -j %s",
				comment("route LOCAL traffic for %s external destinations", p), p.chain(prefixCluster)))
	}
	if len(e.Outside) > 0 {
		rules = append(rules, "-j "+p.chain(prefixLocal))
	}
	return rules
}

// guarded admits the clients in loadBalancerSourceRanges; for others the address stays untranslated, and chainFirewall
// drops that.
func guarded(p port, plan service.Plan, f iptables.Family) (rules []string) {
	seen := map[netip.Prefix]bool{}
	for _, e := range plan.Frontends {
		if e.Port != p.name || e.Frontend.Protocol != p.protocol || family(e.Frontend.Addr) != f {
			continue
		}
		for _, r := range e.Sources {
			r = r.Masked()
			if !seen[r] {
				seen[r] = true
				rules = append(rules, fmt.Sprintf("-s %s %s -j %s", r, comment("%s loadbalancer IP", p),
					p.chain(prefixOutside)))
			}
		}
	}
	// The rule has no effect; it informs readers of the rules.
	return append(rules, comment("other traffic to %s will be dropped by %s", p, chainFirewall))
}
