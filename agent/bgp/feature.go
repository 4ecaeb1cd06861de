// Package bgp announces addresses of Services to BGP peers, and learns routes from them, in the agent of a node.
// Package loadbalancer/bgp plans that, and the process bgp (loadbalancer/bgp/speaker) does it.
package bgp

import (
	"context"
	"net/netip"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/kernel/firewall"
	"wayleave.dev/model"
)

// Feature is BGP.
type Feature struct {
	// announcer is there while this agent owns the node.
	announcer atomic.Pointer[announcer]
	// followChoice is followChoice, but in tests.
	followChoice func(ctx context.Context, n *agent.Node, set func(own bool)) error
}

var (
	_ agent.Feature  = (*Feature)(nil)
	_ agent.Owner    = (*Feature)(nil)
	_ agent.Leaver   = (*Feature)(nil)
	_ agent.Reporter = (*Feature)(nil)
	_ agent.Lister   = (*Feature)(nil)
	_ agent.Metered  = (*Feature)(nil)
	_ agent.Admitter = (*Feature)(nil)
)

// New makes the feature of one process.
func New() *Feature { return &Feature{followChoice: followChoice} }

// Name implements agent.Feature.
func (f *Feature) Name() string { return "bgp" }

// Enabled implements agent.Feature.
func (f *Feature) Enabled(cfg config.Config) bool { return cfg.BGP.Enabled }

// Kinds implements agent.Feature. The writer makes the kinds of objects, and may be of a later version than the agent:
// a node is healthy without them.
func (f *Feature) Kinds(config.Config) agent.Kinds {
	return agent.Kinds{Watched: model.BGPKinds | model.AddressPoolKind | model.ServiceCIDRKind}
}

// Own implements agent.Owner: the sessions are the node's, and its routers keep the routes until the next agent has
// sessions.
func (f *Feature) Own(n *agent.Node) []agent.Part {
	return []agent.Part{{Name: f.Name(), Run: func(ctx context.Context) error { return f.announce(ctx, n) }}}
}

// Leave implements agent.Leaver.
func (f *Feature) Leave(n *agent.Node) []agent.Part {
	return []agent.Part{{Name: f.Name(), Run: func(context.Context) error { return forget(n) }}}
}

// Admits implements agent.Admitter: sessions that peers open.
func (f *Feature) Admits(n *agent.Node, snap model.Snapshot) []firewall.Pass {
	me, ok := snap.Node(n.Name)
	if !ok {
		return nil
	}
	p := firewall.Pass{Hook: firewall.Input}
	port := snap.BGP().Port
	for _, a := range me.InternalIPs {
		admit(&p, a, port)
	}
	return []firewall.Pass{p}
}

func admit(p *firewall.Pass, a netip.Addr, port uint16) {
	if port == 0 {
		return
	}
	p.Rules = append(p.Rules, firewall.Accepted{Proto: unix.IPPROTO_TCP, Dport: port, Dst: a})
	p.Samples = append(p.Samples, firewall.Packet{In: "any link", Is6: a.Is6(), Proto: unix.IPPROTO_TCP, Dport: port,
		Dst: a})
}

// Facts implements agent.Reporter.
func (f *Feature) Facts(*agent.Node, model.Snapshot) []string {
	if a := f.announcer.Load(); a != nil {
		return a.facts()
	}
	return nil
}

// Processes implements agent.Supervising.
func (f *Feature) Processes() map[string]bool {
	a := f.announcer.Load()
	if a == nil {
		return nil
	}
	return map[string]bool{"bgp": a.sup.Report().Running}
}

// Metrics implements agent.Metered.
func (f *Feature) Metrics(*agent.Node) []prometheus.Collector {
	return []prometheus.Collector{metrics{f}}
}
