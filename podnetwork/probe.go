package podnetwork

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"wayleave.dev/model"
	"wayleave.dev/podnetwork/mtu"
	"wayleave.dev/podnetwork/routes"
)

// findings are what the probes of the paths to other nodes found.
type findings struct {
	// paths are the sizes that arrive where they are smaller than the uplink's MTU.
	paths map[string]int
	// spoiled stays set once it was found: probing with the remedy on proves nothing.
	spoiled bool
}

func (f findings) facts() (out []string) {
	for _, name := range slices.Sorted(maps.Keys(f.paths)) {
		out = append(out, fmt.Sprintf("packets of at most %d bytes reach %s; routes to its pods are lowered to that", f.paths[name], name))
	}
	if f.spoiled {
		out = append(out, "checksums were wrong behind VXLAN; the kernel computes them now")
	}
	return out
}

// Probes at once, and how long one waits for an answer.
const (
	probesAtOnce = 8
	probeWait    = 300 * time.Millisecond
)

// probe looks now and then at the paths to all other nodes: soon after the start and
// after nodes changed, and then every ProbeEvery.
func (n *Network) probe(ctx context.Context) error {
	if n.ProbeEvery <= 0 || n.Routing == routes.Cloud {
		<-ctx.Done()
		return ctx.Err()
	}
	w, err := n.Store.Watch(model.NodeKind)
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		_, _, ready := w.Poll()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.looked:
		}
		n.probeAll(ctx)
		wait, cancel := context.WithTimeout(ctx, n.ProbeEvery)
		select {
		case <-wait.Done():
		case <-ready.C(wait):
			// A new node is probed once it has had time to set itself up.
			select {
			case <-ctx.Done():
			case <-time.After(min(n.ProbeEvery, 2*time.Second)):
			}
		}
		cancel()
	}
}

// probeAll probes every path once, and passes on what changed.
func (n *Network) probeAll(ctx context.Context) {
	snap, local := n.Store.Snapshot(), *n.links.Load()
	me, ok := snap.Node(n.Node)
	if !ok {
		return
	}
	before := n.probed.Load()
	if before == nil {
		before = &findings{}
	}
	now := findings{paths: map[string]int{}, spoiled: before.spoiled}
	var mu sync.Mutex
	var wg sync.WaitGroup
	turns := make(chan struct{}, probesAtOnce)
	for peer := range snap.Nodes() {
		if peer.Name == n.Node || ctx.Err() != nil {
			continue
		}
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			size, known, spoiled := n.probeOne(ctx, local, me, peer)
			mu.Lock()
			defer mu.Unlock()
			if !known {
				size = before.paths[peer.Name] // what was found stays until it is disproved
			}
			if size != 0 && size < local.Uplink.MTU {
				now.paths[peer.Name] = size
			}
			now.spoiled = now.spoiled || spoiled
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	n.probed.Store(&now)
	if maps.Equal(before.paths, now.paths) && before.spoiled == now.spoiled {
		return
	}
	n.reportPaths(now, local.Uplink.MTU)
	select {
	case n.found <- struct{}{}:
	default:
	}
}

// probeOne returns the size that reaches a node, if that can be known, and whether
// the tunnel to it spoils checksums.
func (n *Network) probeOne(ctx context.Context, local routes.Local, me, peer *model.Node) (size int, known, spoiled bool) {
	from, to := routes.Underlay(me), routes.Underlay(peer)
	if !from.IsValid() || !to.IsValid() || from.Is6() != to.Is6() {
		return 0, false, false
	}
	k := mtu.Kernel{Inside: n.host.Inside, Wait: probeWait}
	size, known, err := mtu.Path(ctx, k, from, to, local.Uplink.MTU)
	if err != nil {
		n.Log.Debug("probe", "node", peer.Name, "err", err)
		return 0, false, false
	}
	if known && n.PathMTU != nil {
		n.PathMTU(peer.Name, size)
	}
	if known && local.ByVXLAN(peer) && !local.Spoiled {
		if spoiled, err = k.Spoiled(ctx, from, to, routes.Device); err != nil {
			n.Log.Debug("probe", "node", peer.Name, "err", err)
			spoiled = false
		}
	}
	return size, known, spoiled
}

func (n *Network) reportPaths(f findings, uplink int) {
	var problems []model.Problem
	self := model.Name{Name: n.Node}
	for _, name := range slices.Sorted(maps.Keys(f.paths)) {
		problems = append(problems, model.Problem{Kind: "Node", Object: self, Field: "path to " + name,
			Reason: fmt.Sprintf("packets of at most %d bytes arrive, though this node's link has an MTU of %d: routes to its pods are lowered", f.paths[name], uplink)})
	}
	if f.spoiled {
		problems = append(problems, model.Problem{Kind: "Node", Object: self, Field: "VXLAN",
			Reason: "packets come out of it with wrong checksums (a fault of the network card's offload): the kernel computes them now"})
	}
	n.report("podnetwork", "paths", problems)
}
