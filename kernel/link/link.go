// Package link changes routes and local addresses of the node.
//
// Invariants:
//   - Routes of ours carry the protocol number 87; no other route is changed.
//   - Addresses of ours on the loopback are in a file that is written before the
//     address is added, so that none is forgotten. They are in memory alone only while the disk cannot be written.
package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"wayleave.dev/internal/statefile"
)

// Protocol marks our routes (rtm_protocol).
const Protocol = 87

// Table is our routing table, for packets that pods send through tunnels to nodes.
const Table = 87

// Route is a route to a network of pods.
type Route struct {
	Dst netip.Prefix
	// Via is the next hop. The zero Addr without Dev makes the network unreachable, behind every other route to it, so
	// that packets to unused addresses do not take the default route.
	Via netip.Addr
	// Src is the source address of packets that this node itself sends, or the zero Addr.
	Src netip.Addr
	// Dev is the tunnel that the next hop is behind, or empty for the uplinks. In a
	// tunnel, an IPv6 hop is a link-local address: the kernel refuses one that another
	// link has on its network. A WireGuard device needs no hop.
	Dev string
	// Table is Table, or 0 for the main one.
	Table int
	// MTU is that of the path, or 0 for that of the link.
	MTU int
	// Metric is that of a route with a next hop; 0 is the kernel's default. Routes of others with another metric stay.
	Metric int
}

// Rule makes packets from a network (From), or from sockets that are bound to a link (Link), use Table.
type Rule struct {
	From netip.Prefix
	Link string
	Is6  bool
}

// String is what the rule matches.
func (r Rule) String() string {
	if r.Link != "" {
		return "link " + r.Link
	}
	return r.From.String()
}

// Where identifies a route: a table has one route to a network, and one that makes it unreachable without the other.
type Where struct {
	Dst         netip.Prefix
	Table       int
	Unreachable bool
}

// Where is the route's.
func (r Route) Where() Where { return Where{r.Dst, r.Table, r.unreachable()} }

func (r Route) unreachable() bool { return !r.Via.IsValid() && r.Dev == "" }

// Net changes the network of one namespace.
type Net interface {
	// Routes lists our routes to networks with a next hop or none.
	Routes(ctx context.Context) ([]Route, error)
	// SetRoute adds a route or replaces that to the same network.
	SetRoute(ctx context.Context, r Route) error
	// DelRoute removes a route; none is no error.
	DelRoute(ctx context.Context, r Route) error
	// SetTunnel makes a tunnel or changes it into this.
	SetTunnel(ctx context.Context, t Tunnel) error
	// DelTunnel removes it; none is no error.
	DelTunnel(ctx context.Context, name string) error
	// HasTunnel says whether it is there.
	HasTunnel(ctx context.Context, name string) (bool, error)
	// HasLink says whether there is a link of that name.
	HasLink(name string) (bool, error)
	// SetPeers makes these the peers of a tunnel; others stay unless prune is set.
	SetPeers(ctx context.Context, tunnel string, peers []Peer, prune bool) error
	// SetChecksumOffload has a link's device, or the kernel, compute checksums.
	SetChecksumOffload(ctx context.Context, name string, on bool) error
	// SetRules makes packets that match these rules, and no others, use Table first.
	SetRules(ctx context.Context, rules []Rule) error
	// Rules lists them.
	Rules(ctx context.Context) ([]Rule, error)
	// Uplink finds the link that has one of the addresses; skip is not looked at.
	Uplink(ctx context.Context, nodeIPs []netip.Addr, skip string) (Uplink, error)
	// SetLocal makes exactly these addresses ours on the loopback, with scope host.
	SetLocal(ctx context.Context, addrs []netip.Addr) error
	// Local are the addresses on the loopback that SetLocal made.
	Local(ctx context.Context) ([]netip.Addr, error)
	// Watch reports when one of our routes or an address of the loopback was deleted, when the addresses of another
	// link changed, and when a link was set down.
	Watch(ctx context.Context) (<-chan struct{}, error)
}

// Kernel is the Net of a namespace.
type Kernel struct {
	handle *netlink.Handle
	nsfd   int
	state  string
	// Tell is called when a state file is damaged or cannot be written. Set it before the first use.
	Tell statefile.Tell
	// Sysctl is a writable mount of /proc/sys/net; empty is that itself. Set it before the first use.
	Sysctl string

	mu sync.Mutex
	// unwritten are remembered addresses that could not be written to disk.
	unwritten []netip.Addr
}

var _ Net = (*Kernel)(nil)

// NewKernel works in the namespace of a descriptor; stateFile remembers local
// addresses.
func NewKernel(nsfd int, stateFile string) (*Kernel, error) {
	h, err := Handle(nsfd)
	if err != nil {
		return nil, err
	}
	return &Kernel{handle: h, nsfd: nsfd, state: stateFile}, nil
}

// Handle works on the links of a namespace; 0 is that of the process.
func Handle(nsfd int) (*netlink.Handle, error) {
	ns := netns.NsHandle(nsfd)
	if nsfd == 0 {
		ns = netns.None()
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return h, nil
}

// Metrics: of unreachable networks, and that which the kernel gives an IPv6 route without one (IP6_RT_PRIO_USER).
const (
	unreachableMetric = 4096
	defaultMetric6    = 1024
)

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (k *Kernel) netlink(r Route) (*netlink.Route, error) {
	out := &netlink.Route{Dst: ipnet(r.Dst), Protocol: Protocol, Table: unix.RT_TABLE_MAIN}
	if r.Table != 0 {
		out.Table = r.Table
	}
	if r.Src.IsValid() {
		out.Src = r.Src.AsSlice()
	}
	out.MTU = r.MTU
	if r.unreachable() {
		out.Type = unix.RTN_UNREACHABLE
		// Behind every other route to the same network, and IPv6 wants a device.
		out.Priority = unreachableMetric
		if r.Dst.Addr().Is6() {
			out.LinkIndex = 1
		}
		return out, nil
	}
	if out.Priority = r.Metric; r.Via.IsValid() {
		out.Gw = r.Via.AsSlice()
	} else {
		out.Scope = netlink.SCOPE_LINK
	}
	if r.Dev != "" {
		dev, err := k.handle.LinkByName(r.Dev)
		if err != nil {
			return nil, fmt.Errorf("link %s: %w", r.Dev, err)
		}
		out.LinkIndex = dev.Attrs().Index
		if r.Via.IsValid() && r.Via.Is4() {
			out.Flags = int(netlink.FLAG_ONLINK)
		}
	}
	return out, nil
}

// Routes implements Net.
func (k *Kernel) Routes(context.Context) ([]Route, error) {
	list, err := k.handle.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: Protocol,
		Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	tunnels := map[int]string{}
	var out []Route
	for _, r := range list {
		if r.Dst == nil {
			continue
		}
		own := Route{Dst: prefix(r.Dst), MTU: r.MTU}
		if r.Type != unix.RTN_UNREACHABLE {
			if own.Dev, err = k.tunnelOf(r.LinkIndex, tunnels); err != nil {
				return nil, err
			}
			if r.Gw == nil && own.Dev == "" {
				continue // a pod's
			}
		}
		if via, ok := netip.AddrFromSlice(r.Gw); ok {
			own.Via = via.Unmap()
		}
		if src, ok := netip.AddrFromSlice(r.Src); ok {
			own.Src = src.Unmap()
		}
		if r.Table == Table {
			own.Table = Table
		}
		if r.Type != unix.RTN_UNREACHABLE && (own.Dst.Addr().Is4() || r.Priority != defaultMetric6) {
			own.Metric = r.Priority
		}
		out = append(out, own)
	}
	return out, nil
}

// wireGuard is what the names of our WireGuard devices begin with.
const wireGuard = "wayleave-wg"

// tunnelOf is the name of a link that is a VXLAN or WireGuard device, or empty.
func (k *Kernel) tunnelOf(index int, known map[int]string) (string, error) {
	if name, ok := known[index]; ok {
		return name, nil
	}
	l, err := k.handle.LinkByIndex(index)
	if err != nil {
		return "", fmt.Errorf("link %d: %w", index, err)
	}
	known[index] = ""
	if _, ok := l.(*netlink.Vxlan); ok || strings.HasPrefix(l.Attrs().Name, wireGuard) {
		known[index] = l.Attrs().Name
	}
	return known[index], nil
}

// SetRoute implements Net.
func (k *Kernel) SetRoute(_ context.Context, r Route) error {
	route, err := k.netlink(r)
	if err == nil {
		err = k.handle.RouteReplace(route)
	}
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
		return fmt.Errorf("route to %s: the next hop %s is on no network of this node; routing direct needs all "+
			"nodes on one segment, vxlan does not: %w", r.Dst, r.Via, err)
	}
	if err != nil {
		return fmt.Errorf("route to %s via %s: %w", r.Dst, r.Via, err)
	}
	return nil
}

// DelRoute implements Net.
func (k *Kernel) DelRoute(_ context.Context, r Route) error {
	// By destination and kind only: the link of the next hop may be gone already.
	route := &netlink.Route{Dst: ipnet(r.Dst), Protocol: Protocol, Table: cmp.Or(r.Table, unix.RT_TABLE_MAIN),
		Type: unix.RTN_UNICAST, Priority: r.Metric}
	if r.unreachable() {
		route.Type, route.Priority = unix.RTN_UNREACHABLE, unreachableMetric
	} else if r.Dst.Addr().Is6() && r.Metric == 0 {
		route.Priority = defaultMetric6 // the kernel compares no types of IPv6
	}
	if err := k.handle.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route to %s: %w", r.Dst, err)
	}
	return nil
}

// SetLocal implements Net.
func (k *Kernel) SetLocal(_ context.Context, want []netip.Addr) error {
	have := k.remembered()
	lo, err := k.handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	all := slices.Clone(want)
	for _, a := range have {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	k.remember(all)
	for _, a := range all {
		if slices.Contains(want, a) {
			err = k.handle.AddrReplace(lo, local(a))
		} else if err = k.handle.AddrDel(lo, local(a)); errors.Is(err, unix.EADDRNOTAVAIL) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("local address %s: %w", a, err)
		}
	}
	k.remember(want)
	return nil
}

// Local implements Net. Without the state file none is known to be ours.
func (k *Kernel) Local(context.Context) ([]netip.Addr, error) {
	ours := k.remembered()
	if len(ours) == 0 {
		return nil, nil
	}
	lo, err := k.handle.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("loopback: %w", err)
	}
	have, err := k.handle.AddrList(lo, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresses of the loopback: %w", err)
	}
	return slices.DeleteFunc(ours, func(a netip.Addr) bool {
		return !slices.ContainsFunc(have, func(h netlink.Addr) bool { return h.IP.Equal(a.AsSlice()) })
	}), nil
}

func local(a netip.Addr) *netlink.Addr {
	out := &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(a, a.BitLen())), Scope: unix.RT_SCOPE_HOST}
	if a.Is6() {
		out.Flags = unix.IFA_F_NODAD
	}
	return out
}

// remembered are the addresses of the file, and those that a full disk did not take.
func (k *Kernel) remembered() []netip.Addr {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.recall()
	for _, a := range k.unwritten {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func (k *Kernel) recall() []netip.Addr {
	return statefile.Recall(k.state, k.Tell, func(list []netip.Addr) error {
		if slices.ContainsFunc(list, func(a netip.Addr) bool { return !a.IsValid() }) {
			return errors.New("an address is empty")
		}
		return nil
	})
}

// remember writes the addresses. A disk that takes nothing stops no address: they are remembered by the process,
// and written when it can be.
func (k *Kernel) remember(addrs []netip.Addr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(addrs) == 0 {
		k.unwritten = nil
		if err := statefile.Remove(k.state); err != nil && k.Tell != nil {
			k.Tell(k.state, err)
		}
		return
	}
	if len(k.unwritten) == 0 && slices.Equal(k.recall(), addrs) {
		return
	}
	k.unwritten = nil
	if !statefile.Keep(k.state, addrs, k.Tell) {
		k.unwritten = slices.Clone(addrs)
	}
}

// Watch implements Net.
func (k *Kernel) Watch(ctx context.Context) (<-chan struct{}, error) {
	ns := netns.NsHandle(k.nsfd)
	routes, addrs, links := make(chan netlink.RouteUpdate, 256), make(chan netlink.AddrUpdate, 256),
		make(chan netlink.LinkUpdate, 256)
	if err := netlink.LinkSubscribeWithOptions(links, ctx.Done(),
		netlink.LinkSubscribeOptions{Namespace: &ns}); err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	if err := netlink.RouteSubscribeWithOptions(routes, ctx.Done(),
		netlink.RouteSubscribeOptions{Namespace: &ns}); err != nil {
		return nil, fmt.Errorf("watch routes: %w", err)
	}
	if err := netlink.AddrSubscribeWithOptions(addrs, ctx.Done(),
		netlink.AddrSubscribeOptions{Namespace: &ns}); err != nil {
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	out := make(chan struct{}, 1)
	go func() {
		for routes != nil || addrs != nil || links != nil {
			found := false
			select {
			case u, ok := <-routes:
				if !ok {
					routes = nil
				}
				found = ok && u.Type == unix.RTM_DELROUTE && u.Protocol == Protocol
			case u, ok := <-links:
				if !ok {
					links = nil
				}
				// A new link is reported with all bits changed: it was not set down.
				found = ok && u.Header.Type == unix.RTM_NEWLINK && u.Change != ^uint32(0) &&
					u.Change&unix.IFF_UP != 0 && u.Flags&unix.IFF_UP == 0
			case u, ok := <-addrs:
				if !ok {
					addrs = nil
				}
				found = ok && (u.LinkIndex == 1 && !u.NewAddr || u.LinkIndex != 1 &&
					!u.LinkAddress.IP.IsLinkLocalUnicast())
			}
			if found {
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}
	}()
	return out, nil
}
