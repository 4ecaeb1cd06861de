package podnetwork

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
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
	// empty are the nodes that answer, but not by the tunnel, and since when.
	empty map[string]time.Time
}

// emptyAfter is how long a tunnel carries nothing before that is told: a node that starts has no tunnel yet.
const emptyAfter = 30 * time.Second

// dead are the nodes that the tunnel has not reached for as long as is told, in order of names.
func (f findings) dead(after time.Duration) (out []string) {
	for _, name := range slices.Sorted(maps.Keys(f.empty)) {
		if time.Since(f.empty[name]) >= after {
			out = append(out, name)
		}
	}
	return out
}

func (f findings) facts() (out []string) {
	for _, name := range slices.Sorted(maps.Keys(f.paths)) {
		out = append(out, fmt.Sprintf("packets of at most %d bytes reach %s; routes to its pods are lowered to that",
			f.paths[name], name))
	}
	if f.spoiled {
		out = append(out, "checksums were wrong behind VXLAN; the kernel computes them now")
	}
	if len(f.empty) > 0 {
		names := slices.Sorted(maps.Keys(f.empty))
		out = append(out, fmt.Sprintf("VXLAN carries nothing to %d nodes that answer outside of it: %s", len(names),
			strings.Join(names[:min(len(names), maxNamedNodes)], ", ")))
	}
	return out
}

// maxNamedNodes bounds how many nodes are named at once.
const maxNamedNodes = 10

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
	now := findings{paths: map[string]int{}, empty: map[string]time.Time{}, spoiled: before.spoiled}
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
			carries, told := n.probeTunnel(ctx, local, me, peer, known)
			mu.Lock()
			defer mu.Unlock()
			since, was := before.empty[peer.Name]
			if told && !carries && !was {
				since = time.Now()
			}
			if told && !carries || !told && was {
				now.empty[peer.Name] = since
			}
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
	n.reportTunnel(now.dead(min(emptyAfter, n.ProbeEvery)), local.VXLANPort())
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
func (n *Network) probeOne(ctx context.Context, local routes.NodeLinks, me, peer *model.Node) (size int, known,
	spoiled bool) {
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
	if known && byVXLAN(n.Store.Snapshot(), local, peer) && !local.Spoiled {
		if spoiled, err = k.Spoiled(ctx, from, to, routes.Device); err != nil {
			n.Log.Debug("probe", "node", peer.Name, "err", err)
			spoiled = false
		}
	}
	return size, known, spoiled
}

// probeTunnel says whether packets reach a node by the tunnel. That is known only of nodes that answer outside of it.
func (n *Network) probeTunnel(ctx context.Context, local routes.NodeLinks, me, peer *model.Node,
	answers bool) (carries, told bool) {
	if !answers || !byVXLAN(n.Store.Snapshot(), local, peer) {
		return false, false
	}
	from, to := routes.Underlay(me), routes.Underlay(peer)
	if to.Is6() && local.Uplink.MTU-routes.Overhead(true) < leastIPv6 {
		return false, false // there is no IPv6 in the tunnel
	}
	carries, err := mtu.Kernel{Inside: n.host.Inside, Wait: probeWait}.Carries(ctx, from, to, routes.Device)
	if err != nil {
		n.Log.Debug("probe of the tunnel", "node", peer.Name, "err", err)
		return false, false
	}
	if n.Tunnel != nil {
		n.Tunnel(peer.Name, carries)
	}
	return carries, true
}

// byVXLAN says whether VXLAN to a node is in use. Where packets to nodes are encrypted, it is not.
func byVXLAN(snap model.Snapshot, local routes.NodeLinks, peer *model.Node) bool {
	e := local.Encryption
	return local.ByVXLAN(snap, peer) && !(e.Nodes && (e.Strict || e.Via[peer.Name] != ""))
}

// leastIPv6 is what IPv6 asks of every link (RFC 8200, section 5).
const leastIPv6 = 1280

func (n *Network) reportTunnel(dead []string, port uint16) {
	var problems []model.Problem
	for _, name := range dead[:min(len(dead), maxNamedNodes)] {
		problems = append(problems, model.Problem{Kind: "Node", Object: model.Name{Name: n.Node},
			Field: "VXLAN to " + name,
			Reason: fmt.Sprintf("packets by the tunnel do not arrive, though the node answers outside of it: pods "+
				"cannot reach its pods; let UDP port %d pass between the nodes (firewalls of both hosts and of the "+
				"network), or set podnetwork.vxlanPort", port)})
	}
	if more := len(dead) - maxNamedNodes; more > 0 {
		problems = append(problems, model.Problem{Kind: "Node", Object: model.Name{Name: n.Node}, Field: "VXLAN",
			Reason: fmt.Sprintf("packets by the tunnel do not arrive at %d more nodes", more)})
	}
	n.report("podnetwork", "tunnels", problems)
}

func (n *Network) reportPaths(f findings, uplink int) {
	var problems []model.Problem
	self := model.Name{Name: n.Node}
	for _, name := range slices.Sorted(maps.Keys(f.paths)) {
		problems = append(problems, model.Problem{Kind: "Node", Object: self, Field: "path to " + name,
			Reason: fmt.Sprintf("packets of at most %d bytes arrive, though this node's link has an MTU of %d: "+
				"routes to its pods are lowered", f.paths[name], uplink)})
	}
	if f.spoiled {
		problems = append(problems, model.Problem{Kind: "Node", Object: self, Field: "VXLAN",
			Reason: "packets come out of it with wrong checksums (a fault of the network card's offload): the " +
				"kernel computes them now"})
	}
	n.report("podnetwork", "paths", problems)
}
