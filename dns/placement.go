package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/logging"
	"wayleave.dev/internal/statefile"
	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// NodePort is where DNS listens on the node's own addresses. It is the target of the Service kube-dns, for nodes whose
// own DNS is down; port 53 of these addresses may belong to other programs.
const NodePort = 10053

// Place is where DNS is served: the plan of the placement.
type Place struct {
	VIPs  []netip.Addr `json:"vips"`
	Nodes []netip.Addr `json:"nodes"` // this node's addresses
	// Clients are the networks that are answered.
	Clients []netip.Prefix `json:"-"`
}

// Equal compares two places.
func (p Place) Equal(o Place) bool {
	return slices.Equal(p.VIPs, o.VIPs) && slices.Equal(p.Nodes, o.Nodes) && slices.Equal(p.Clients, o.Clients)
}

// Placement serves DNS at the cluster's DNS addresses: they are local to every node, and the server gets the sockets.
type Placement struct {
	// Node is the name of this node.
	Node string
	// Service is that of the cluster DNS, kube-system/kube-dns.
	Service model.Name
	// Extra are addresses that kubelets give to pods in addition to those of the Service, such as that of a NodeLocal
	// DNSCache (169.254.20.10). They are served on every node in the same way.
	Extra []netip.Addr
	Feed  *Feed
	Net   link.Net
	// Bypass is the data plane's.
	Bypass Bypass
	// Domains, Pods and Forwarding complete the settings; Forwarding gets the VIPs, which must not be among its
	// servers.
	Domains    []string
	Pods       string
	Forwarding func(own []netip.Addr) schema.Forwarding
	// Autopath and Search are further settings.
	Autopath bool
	Search   func() []string
	// File, if not empty, stores the place for Remember.
	File string
	// Tell is called with the error if File cannot be written.
	Tell statefile.Tell
	Log  *slog.Logger
	// Logs are the settings of the server's log.
	Logs logging.Settings
}

var _ reconcile.Target[model.Name, Place] = (*Placement)(nil)

// Keys returns the one key, which its Service and any node affect.
func (p *Placement) Keys(_ model.Snapshot, c model.Changes) []model.Name {
	if c.Has(model.ServiceKind, p.Service) || c.Any(model.NodeKind) {
		return []model.Name{p.Service}
	}
	return nil
}

// Plan makes the place. While the Service leads to another DNS server, its addresses are left to that one.
func (p *Placement) Plan(snap model.Snapshot, key model.Name) (Place, bool, []model.Problem) {
	var out Place
	if svc, ok := snap.Service(key); ok && !svc.OtherDNS {
		out.VIPs = slices.Clone(svc.ClusterIPs)
		for _, a := range p.Extra {
			if !slices.Contains(out.VIPs, a) {
				out.VIPs = append(out.VIPs, a)
			}
		}
	}
	for n := range snap.Nodes() {
		out.Clients = append(out.Clients, n.PodCIDRs...)
		for _, a := range slices.Concat(n.InternalIPs, n.ExternalIPs) {
			out.Clients = append(out.Clients, netip.PrefixFrom(a, a.BitLen()))
		}
		if n.Name == p.Node {
			out.Nodes = n.InternalIPs
		}
	}
	return out, true, nil
}

// Sync implements reconcile.Target.
func (p *Placement) Sync(ctx context.Context, plans map[model.Name]Place) error {
	place := plans[p.Service]
	steps := []func() error{
		func() error { return p.Net.SetLocal(ctx, place.VIPs) },
		func() error { return p.Bypass.Set(ctx, place.VIPs) },
	}
	if len(place.VIPs) == 0 {
		slices.Reverse(steps) // queries must find their way by rules before the address is no longer local
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("dns: %w", err)
		}
	}
	p.tell(place)
	p.remember(place)
	return nil
}

func (p *Placement) tell(place Place) {
	s := schema.Settings{Log: p.Logs, Domains: p.Domains, Pods: p.Pods, VIPs: place.VIPs,
		Forwarding: p.Forwarding(place.VIPs),
		Clients:    place.Clients}
	if p.Autopath {
		s.Autopath, s.Search = true, p.Search()
	}
	p.Feed.Configure(s)
	p.Feed.Listen(sockets(place))
}

// Apply implements reconcile.Target.
func (p *Placement) Apply(ctx context.Context, set map[model.Name]Place, _ []model.Name) error {
	return p.Sync(ctx, set)
}

// Standby opens the sockets and changes nothing else. The server of an agent that waits for the ownership of the node
// answers together with the old server, so that no query is lost when the old one ends.
type Standby struct{ *Placement }

// Sync implements reconcile.Target.
func (s Standby) Sync(_ context.Context, plans map[model.Name]Place) error {
	s.tell(plans[s.Service])
	return nil
}

// Apply implements reconcile.Target.
func (s Standby) Apply(ctx context.Context, set map[model.Name]Place, _ []model.Name) error {
	return s.Sync(ctx, set)
}

// sockets returns those of a place.
func sockets(p Place) []schema.Socket {
	out := []schema.Socket{}
	add := func(a netip.Addr, port uint16) {
		for _, network := range []string{"udp", "tcp"} {
			out = append(out, schema.Socket{Network: network, Addr: netip.AddrPortFrom(a, port)})
		}
	}
	for _, a := range p.VIPs {
		add(a, 53)
	}
	for _, a := range p.Nodes {
		add(a, NodePort)
	}
	return out
}

// Uninstall removes what the placement left on the node.
func Uninstall(ctx context.Context, net link.Net, bypass Bypass) error {
	if err := net.SetLocal(ctx, nil); err != nil {
		return err
	}
	return bypass.Remove(ctx)
}

// Remains lists what the placement has left on the node.
func Remains(ctx context.Context, net link.Net, bypass Bypass) ([]string, error) {
	addrs, err := net.Local(ctx)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, a := range addrs {
		left = append(left, fmt.Sprintf("address %s on lo", a))
	}
	rules, err := bypass.Remains(ctx)
	return append(left, rules...), err
}
