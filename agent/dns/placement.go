package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"wayleave.dev/agent"
	"wayleave.dev/agent/dataplane"
	"wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// placement says where DNS is served; bypass may be nil for a standby, which changes no rules.
func (f *Feature) placement(n *agent.Node, bypass dns.Bypass) *dns.Placement {
	domains := []string{n.Config.ClusterDomain + "."}
	for _, d := range n.Config.DNS.ExtraDomains {
		domains = append(domains, strings.ToLower(strings.TrimSuffix(d, "."))+".")
	}
	return &dns.Placement{Node: n.Name, Service: agent.ClusterDNS(), Extra: n.NodeLocalDNS,
		Feed: f.feed, Bypass: bypass, Domains: domains, Pods: n.Config.DNS.Pods,
		Forwarding: func(own []netip.Addr) schema.Forwarding { return forwarding(n, own) },
		Autopath:   n.Config.DNS.Autopath, Search: func() []string { return search(n) }, Tell: n.TellState, Log: n.Log,
		Logs: n.Config.Log()}
}

// place serves DNS at the cluster's DNS addresses until ctx ends.
func (f *Feature) place(ctx context.Context, n *agent.Node) error {
	const name = "dns placement"
	local, err := n.Links(addressesFile)
	if err != nil {
		return err
	}
	plane, err := dataplane.For(n.Config)
	if err != nil {
		return err
	}
	bypass := plane.DNS(dataplane.Kernel{NFT: n.NFT})
	p := f.placement(n, bypass)
	p.Net, p.File = local, filepath.Join(n.State, placeFile)
	rules, err := bypass.Watch(ctx)
	if err != nil {
		return err
	}
	addrs, err := local.Watch(ctx)
	if err != nil {
		return err
	}
	loop := placementLoop(n, name, p)
	loop.Target, loop.Foreign, loop.Health = p, agent.Merge(ctx, rules, addrs), n.Health(name)
	return loop.Run(ctx)
}

// placementLoop follows where DNS is to be served; target and health are not set.
func placementLoop(n *agent.Node, name string, p *dns.Placement) *reconcile.Loop[model.Name, dns.Place] {
	return &reconcile.Loop[model.Name, dns.Place]{
		Name: name, Store: n.Store, Kinds: model.ServiceKind | model.NodeKind, Planner: p,
		Equal: dns.Place.Equal, Log: n.Log,
	}
}

// forwarding is the settings for names outside of the cluster. own are the
// addresses of the cluster DNS, which is not asked by itself.
func forwarding(n *agent.Node, own []netip.Addr) schema.Forwarding {
	c := n.Config.DNS
	out := schema.Forwarding{Hosts: c.Hosts, CA: c.TLSCA, Stubs: map[string][]model.Nameserver{},
		Cache: schema.CacheLimits{Bytes: c.CacheMiB << 20, TTL: c.CacheTTL, NegativeTTL: c.NegativeTTL,
			Stale: c.StaleFor}}
	for _, s := range c.PlainLetters {
		out.PlainLetters = append(out.PlainLetters, s.Addr)
	}
	var errs []error
	for domain, list := range c.StubDomains {
		servers, err := dns.Foreign(list, own)
		if err != nil {
			errs = append(errs, fmt.Errorf("dns.stubDomains: %s: %w", domain, err))
		}
		out.Stubs[domain] = servers
	}
	var err error
	if len(c.Upstreams) > 0 {
		if out.Upstreams, err = dns.Foreign(c.Upstreams, own); err != nil {
			err = fmt.Errorf("dns.upstreams: %w", err)
		}
	} else {
		out.Upstreams, err = dns.Upstreams("/etc/resolv.conf", own) // the node's: dnsPolicy Default
		if err == nil && len(out.Upstreams) == 0 {
			err = errors.New(
				"the node's /etc/resolv.conf has no nameserver: names outside of the cluster are answered SERVFAIL")
		}
	}
	n.SetCondition("dns upstreams", errors.Join(append(errs, err)...))
	return out
}

// search is the node's search list, which the kubelet gives to pods, too.
func search(n *agent.Node) []string {
	list, err := dns.Search("/etc/resolv.conf")
	n.SetCondition("dns search list", err)
	return list
}
