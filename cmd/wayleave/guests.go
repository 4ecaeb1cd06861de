package main

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/dns"
	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// splitDNS tells addresses that can be a Service's from IPv4 link-local ones, which a NodeLocal DNSCache has on each
// node. An IPv6 link-local address means nothing without a link, and stays for the API server to refuse.
func splitDNS(all []netip.Addr) (service, node []netip.Addr) {
	for _, a := range all {
		if a.Is4() && a.IsLinkLocalUnicast() {
			node = append(node, a)
		} else {
			service = append(service, a)
		}
	}
	return service, node
}

// dnsGuests tells the dns container which pods may ask that are in no network of a Node.
func (a *agent) dnsGuests(ctx context.Context) error {
	g := &dns.Guests{Feed: a.feed, Log: a.log}
	loop := &reconcile.Loop[model.Name, []netip.Addr]{
		Name: "dns clients", Store: a.store, Kinds: model.PodKind,
		Planner: reconcile.PlannerOf(dns.CallerKeys, dns.PlanGuest), Equal: slices.Equal[[]netip.Addr],
		Target: g, Health: a.health("dns clients"), Log: a.log,
	}
	if a.cfg.PodNetwork.Enabled {
		return loop.Run(ctx)
	}
	return all(ctx, loop.Run, func(ctx context.Context) error { return a.localPods(ctx, g) })
}

// Routes are listed again as soon as one changed, then after localPodsEvery, or where listing is slow after
// localPodsShare times as long as it took.
const (
	localPodsEvery = 250 * time.Millisecond
	localPodsShare = 20
)

// localPods follows the networks that the node routes to pods of another CNI: a pod asks before the API has its
// address.
func (a *agent) localPods(ctx context.Context, g *dns.Guests) error {
	links, err := link.NewKernel(int(a.netns.Fd()), "")
	if err != nil {
		return err
	}
	routes, err := links.WatchRoutes(ctx)
	if err != nil {
		return err
	}
	w, err := a.store.Watch(model.PodKind | model.NodeKind)
	if err != nil {
		return err
	}
	defer w.Close()
	for ctx.Err() == nil {
		snap, _, ready := w.Poll()
		start := time.Now()
		pods, nodes := podsAndNodes(snap, a.node)
		list, err := links.PodNetworks(ctx, pods, nodes)
		a.say("networks of pods", err)
		if err == nil {
			g.Local(list)
		}
		wait := max(localPodsEvery, localPodsShare*time.Since(start))
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		changed, cancel := context.WithCancel(ctx)
		select {
		case <-ctx.Done():
		case <-routes:
		case <-ready.C(changed):
		}
		cancel()
	}
	return ctx.Err()
}

// podsAndNodes are the addresses of a node's pods, and its own.
func podsAndNodes(snap model.Snapshot, node string) (pods, nodes []netip.Addr) {
	for p := range snap.Pods() {
		if p.Node == node && !p.HostNetwork {
			pods = append(pods, p.IPs...)
		}
	}
	if n, ok := snap.Node(node); ok {
		nodes = append(append(nodes, n.InternalIPs...), n.ExternalIPs...)
	}
	return pods, nodes
}
