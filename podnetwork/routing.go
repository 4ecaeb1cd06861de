package podnetwork

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wayleave.dev/kernel/wireguard"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/routes"
	"wayleave.dev/reconcile"
)

// lookAgain is how often the uplink is looked at, beside when its addresses change:
// nobody tells of a changed MTU.
const lookAgain = 30 * time.Second

// forwarding makes the node a router. Where it takes its own IPv6 routes from router
// advertisements, it must go on doing so, which a router does not by default.
func (n *Network) forwarding() error {
	s := sysctls(n.Config)
	if err := s.Ensure("ipv4/ip_forward", "1"); err != nil {
		return err
	}
	confs, err := filepath.Glob(filepath.Join(n.Sysctl, "ipv6/conf/*/accept_ra"))
	if err != nil {
		return err
	}
	for _, file := range confs {
		if raw, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(raw)) != "1" {
			continue
		}
		if name := filepath.Base(filepath.Dir(file)); name != "all" && name != "default" &&
			name != "lo" && !ours(name) {
			if err := s.Ensure("ipv6/conf/"+name+"/accept_ra", "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	err = s.Ensure("ipv6/conf/all/forwarding", "1")
	if errors.Is(err, fs.ErrNotExist) { // booted with ipv6.disable=1
		return nil
	}
	return err
}

// forwardingEvery is how often it is looked whether the node still forwards: the kernel tells nobody.
const forwardingEvery = time.Second

// keepForwarding makes the node a router again when others undo it: `sysctl --system` of a host whose files say 0, or
// a daemon that configures links.
func (n *Network) keepForwarding(ctx context.Context) error {
	failing := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(forwardingEvery):
		}
		for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			off := false
			err := n.host.Inside(func() error {
				raw, err := os.ReadFile(filepath.Join(n.Sysctl, name))
				off = err == nil && strings.TrimSpace(string(raw)) == "0"
				if !off {
					return nil // or there is no IPv6
				}
				return n.forwarding()
			})
			if off && !failing[name] {
				n.Log.Warn("others switched forwarding off; it is switched on again", "sysctl", name, "err", err)
			}
			if now := err != nil; now || failing[name] {
				failing[name] = now
				n.report("podnetwork", "forwarding "+name, n.forwardingProblems(name, err))
			}
		}
	}
}

func (n *Network) forwardingProblems(name string, err error) []model.Problem {
	if err == nil {
		return nil
	}
	return []model.Problem{{Kind: "Node", Object: model.Name{Name: n.Node}, Field: name,
		Reason: "forwarding was switched off, and pods reach nothing: " + err.Error()}}
}

// tunneled tells whether this node's end of VXLAN could be made.
func (n *Network) tunneled(err error) {
	var problems []model.Problem
	if err != nil {
		problems = []model.Problem{{Kind: "Node", Object: model.Name{Name: n.Node}, Field: "VXLAN",
			Reason: err.Error()}}
	}
	n.report("podnetwork", "tunnel", problems)
}

// ours says whether a link of that name is one of ours.
func ours(name string) bool {
	return name == routes.Device || strings.HasPrefix(name, call.Prefix) || strings.HasPrefix(name, wireguard.Prefix)
}

// loosen lets packets in by a link that answers would not go out by, where the host
// is strict: with two ways to a node, that of the answer may be the other one. The
// kernel takes the larger of the link's value and that of all.
func (n *Network) loosen(dev string) error {
	return n.host.Inside(func() error {
		strict := false
		for _, name := range []string{"all", dev} {
			raw, err := os.ReadFile(filepath.Join(n.Sysctl, "ipv4/conf", name, "rp_filter"))
			if err != nil {
				return fmt.Errorf("sysctl: %w", err)
			}
			switch strings.TrimSpace(string(raw)) {
			case "2":
				return nil
			case "1":
				strict = true
			}
		}
		if !strict {
			return nil
		}
		return sysctls(n.Config).Ensure("ipv4/conf/"+dev+"/rp_filter", "2")
	})
}

// look finds out about the node's own links.
func (n *Network) look(ctx context.Context) (routes.NodeLinks, error) {
	l := routes.NodeLinks{Self: n.Node, Mode: n.Routing, Port: n.VXLANPort, Encryption: n.encryption.routes()}
	node, ok := n.Store.Snapshot().Node(n.Node)
	if !ok {
		return l, fmt.Errorf("there is no Node %s (yet)", n.Node)
	}
	var err error
	l.Uplink, err = n.Kernel.Uplink(ctx, node.InternalIPs, routes.Device)
	if found := n.probed.Load(); found != nil {
		l.Paths, l.Spoiled = found.paths, found.spoiled
	}
	return l, err
}

// routing keeps the routes between nodes. When the node's own links change, it
// starts again with what is true then.
func (n *Network) routing(ctx context.Context) error {
	changed, err := n.Kernel.Watch(ctx)
	if err != nil {
		return err
	}
	if n.Config.Encryption.On() {
		// Until then, the routes of the agent before stay: they are encrypted.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.encryption.ready:
		}
	}
	for ctx.Err() == nil {
		local, err := n.look(ctx)
		if err != nil {
			n.report("podnetwork", "uplink", []model.Problem{{Kind: "Node", Object: model.Name{Name: n.Node},
				Field: "status.addresses", Reason: err.Error()}})
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		n.report("podnetwork", "uplink", nil)
		if err := n.loosen(local.Uplink.Name); err != nil {
			return err
		}
		if n.links.Swap(&local) == nil {
			close(n.looked)
		}
		select {
		case n.relook <- struct{}{}:
		default:
		}
		n.repair()
		if err := n.routeWith(ctx, local, changed); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// routeWith runs the loop until the node's links are others than these.
func (n *Network) routeWith(ctx context.Context, local routes.NodeLinks, changed <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	foreign := make(chan struct{}, 1)
	plan := func(s model.Snapshot, name string) (routes.Plan, bool, []model.Problem) {
		return routes.Make(s, name, local)
	}
	loop := &reconcile.Loop[string, routes.Plan]{
		Name: "routes", Store: n.Store, Kinds: n.Routing.Kinds(), Equal: routes.Equal,
		Planner: reconcile.PlannerOf(routes.Keys(n.Node), plan),
		Target:  &routes.Target{Net: n.Kernel, Loosen: n.loosen, Spoiled: local.Spoiled, Tunneled: n.tunneled},
		Foreign: foreign, Health: n.Routes, Log: n.Log,
		Report: func(key string, problems []model.Problem) { n.report("routes", key, problems) },
	}
	done := make(chan error, 1)
	go func() { done <- loop.Run(ctx) }()
	for {
		select {
		case <-ctx.Done():
			return <-done
		case err := <-done:
			return err
		case <-time.After(lookAgain):
		case <-n.found:
		case <-changed:
			// Own deletions are seen as well, and a DEL takes the link before the lease.
			select {
			case <-ctx.Done():
			case <-time.After(300 * time.Millisecond):
			}
			n.repair()
			select {
			case foreign <- struct{}{}:
			default:
			}
		}
		if now, err := n.look(ctx); err == nil && !now.Equal(local) {
			n.Log.Info("the node's links have changed", "uplink", now.Uplink.Name, "mtu", now.Uplink.MTU)
			cancel()
			<-done
			return nil
		}
	}
}

// bgpFacts is a line about nodes whose blocks are not learned, with `routing: bgp`.
func (n *Network) bgpFacts() []string {
	local := n.links.Load()
	if n.Routing != routes.BGP || local == nil {
		return nil
	}
	snap := n.Store.Snapshot()
	if n.Store.Synced()&model.BGPRouteKind == 0 {
		return []string{"the sessions of BGP have not told all routes yet; routes between nodes stay as they are"}
	}
	missing := local.Unlearned(snap)
	if len(missing) == 0 {
		return []string{fmt.Sprintf("BGP has told the blocks of all %d other nodes", snap.Count(model.NodeKind)-1)}
	}
	var names []string
	for _, node := range missing[:min(len(missing), maxNamedNodes)] {
		names = append(names, node.Name)
	}
	return []string{
		fmt.Sprintf("BGP has told no way to the blocks of %d of %d other nodes; while they are Ready they are "+
			"reached directly or by VXLAN, and not at all otherwise: %s", len(missing), snap.Count(model.NodeKind)-1,
			strings.Join(names, ", "))}
}
