package dns

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/dns"
	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// clients tells the dns container which pods may ask that are in no network of a Node.
func (f *Feature) clients(ctx context.Context, n *agent.Node) error {
	const name = "dns clients"
	g := &dns.Guests{Feed: f.feed, Log: n.Log}
	loop := &reconcile.Loop[model.Name, []netip.Addr]{
		Name: name, Store: n.Store, Kinds: model.PodKind,
		Planner: reconcile.PlannerOf(dns.CallerKeys, dns.PlanGuest),
		Equal:   slices.Equal[[]netip.Addr],
		Target:  g, Health: n.Health(name), Log: n.Log,
	}
	if n.Config.PodNetwork.Enabled {
		return loop.Run(ctx)
	}
	return agent.All(ctx, loop.Run, func(ctx context.Context) error { return localPods(ctx, n, g) })
}

// Routes are listed again as soon as one changed, then after localPodsEvery, or where listing is slow after
// localPodsShare times as long as it took.
const (
	localPodsEvery = 250 * time.Millisecond
	localPodsShare = 20
)

// localPods follows the networks that the node routes to pods of another CNI: a pod asks before the API has its
// address.
func localPods(ctx context.Context, n *agent.Node, g *dns.Guests) error {
	links, err := link.NewKernel(int(n.NetNS.Fd()), "")
	if err != nil {
		return err
	}
	routes, err := links.WatchRoutes(ctx)
	if err != nil {
		return err
	}
	w, err := n.Store.Watch(model.PodKind | model.NodeKind)
	if err != nil {
		return err
	}
	defer w.Close()
	for ctx.Err() == nil {
		snap, _, ready := w.Poll()
		start := time.Now()
		pods, nodes := agent.PodsAndNode(snap, n.Name)
		list, err := links.PodNetworks(ctx, pods, nodes)
		n.SetCondition("networks of pods", err)
		if err == nil {
			g.SetRouted(list)
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
