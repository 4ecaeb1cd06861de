package loadbalancer

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/loadbalancer"
	"wayleave.dev/loadbalancer/l2/speaker"
	"wayleave.dev/loadbalancer/peers"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/writeback"
)

// announce answers for addresses of load balancers, or waits until the agent before has
// ended. settle is how long it leaves them to other nodes: not at all when it follows.
func (f *Feature) announce(ctx context.Context, node *agent.Node, settle time.Duration) error {
	n := &announcer{node: node.Name, began: time.Now(), sup: speaker.New(node.Log, "l2"),
		plans: map[model.Name]loadbalancer.Announcement{},
		cfg: speaker.State{Node: node.Name, Port: uint16(node.Config.LoadBalancer.PeerPort),
			Settle: settle}}
	n.sup.Logs = node.Logs
	f.announcer.Store(n)
	defer f.announcer.Store(nil)
	// This node's part of the key of heartbeats.
	keys := &writeback.PeerKeys{Client: node.Client.Interface, Namespace: writeback.PeersNamespace, Node: node.Name,
		File: node.State + "/peer-key", Log: node.Log}
	if err := keys.Load(); err != nil {
		return err
	}
	// The process outlives ctx for as long as it takes to hand its addresses on.
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	var process sync.WaitGroup
	process.Go(func() {
		if err := n.sup.Run(running); err != nil {
			node.Log.Warn("the process that answers for addresses", "err", err)
		}
	})
	defer process.Wait()
	defer end()
	err := agent.All(ctx, func(ctx context.Context) error { return n.plan(ctx, node) },
		func(ctx context.Context) error { return n.followChoice(ctx, node) },
		func(ctx context.Context) error { return keys.Run(ctx, n.setKeys) },
		func(ctx context.Context) error { return n.followNodes(ctx, node.Store) },
		func(ctx context.Context) error { return n.watch(ctx, node) })
	n.handOver(node)
	return err
}

// plan plans which addresses are answered for. It waits for AddressPools here, without which a node is healthy.
func (n *announcer) plan(ctx context.Context, node *agent.Node) error {
	if err := node.Store.WaitSynced(ctx, loadbalancer.Kinds); err != nil {
		return err
	}
	loop := &reconcile.Loop[model.Name, loadbalancer.Announcement]{
		Name: "loadbalancer", Store: node.Store, Kinds: loadbalancer.Kinds,
		Planner: reconcile.PlannerOf(loadbalancer.Keys, loadbalancer.Plan(node.Config.LoadBalancer.Default)),
		Equal:   loadbalancer.Equal, Target: n, Health: node.Health("loadbalancer"), Log: node.Log,
		Report: node.ReportTo("announce"),
	}
	return loop.Run(ctx)
}

// followChoice follows whether Services without a class are Wayleave's.
func (n *announcer) followChoice(ctx context.Context, node *agent.Node) error {
	if node.Config.LoadBalancer.Default {
		return writeback.FollowBalancerChoice(ctx, node.Client.Interface, n.setChoice)
	}
	n.setChoice(false)
	<-ctx.Done()
	return ctx.Err()
}

// handOver lets other nodes take the addresses over before this agent ends, unless another
// agent of this node follows at once.
func (n *announcer) handOver(node *agent.Node) {
	if !node.Owns() {
		return // the agent before still answers
	}
	awaited, err := node.Awaited()
	if err != nil {
		node.Log.Warn("whether another agent follows is not known", "err", err)
	}
	if awaited {
		n.sup.Handover()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := n.sup.Drain(ctx); err != nil {
		node.Log.Warn("addresses of load balancers were not handed on", "err", err)
	}
}

// followNodes tells the announcer of the nodes.
func (n *announcer) followNodes(ctx context.Context, store *model.Store) error {
	w, err := store.Watch(model.NodeKind)
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		snap, _, err := w.Next(ctx)
		if err != nil {
			return err
		}
		var list []peers.Peer
		for node := range snap.Nodes() {
			if len(node.InternalIPs) > 0 {
				list = append(list, peers.Peer{Name: node.Name, Addrs: node.InternalIPs})
			}
		}
		n.setPeers(list)
	}
}

// watch follows what the process sees, and the node's interfaces.
func (n *announcer) watch(ctx context.Context, node *agent.Node) error {
	links := time.NewTicker(interfacesEvery)
	defer links.Stop()
	for {
		r, changed := n.sup.Watch()
		n.look(time.Now())
		var problems []model.Problem
		for _, f := range r.Foreign {
			problems = append(problems, node.Problem("",
				fmt.Sprintf("%s, which is no node's, announces on %s the address %s of a load balancer; "+
					"take the address from that machine, or from the AddressPool", f.MAC, f.Interface, f.Addr)))
		}
		node.Problems.Set("announce", "foreign", problems)
		var wrong error
		if !node.Owns() || n.idle() {
			// Another agent's process has the port, or another load balancer's may have it.
		} else if r.Heartbeats != "" {
			wrong = fmt.Errorf("heartbeats are not sent: %s", r.Heartbeats)
		} else if len(r.Problems) > 0 {
			wrong = fmt.Errorf("%s", strings.Join(r.Problems, "; "))
		}
		node.SetCondition("l2", wrong)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-links.C:
			node.SetCondition("interfaces", n.tell())
		}
	}
}
