package link

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The shortest prefixes that one node's pods may have. A shorter one is no network of pods, whatever the routes say.
const (
	shortestPods4 = 12
	shortestPods6 = 48
)

// PodNetworks are the networks of the main table that lead to pods of this node, whichever CNI plugin made them:
//   - a single address behind a veth that is no port of a bridge, as plugins that route make them;
//   - a network of a bridge of veths alone, of a veth or of an Open vSwitch port that has one of the known pods.
//
// Links with one of the node's addresses or a default route also lead to other hosts, and are left out.
func (k *Kernel) PodNetworks(_ context.Context, pods, nodes []netip.Addr) (out []netip.Prefix, err error) {
	err = k.eachPodNetwork(pods, nodes, func(p netip.Prefix, _ netlink.Link) {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	})
	slices.SortFunc(out, netip.Prefix.Compare)
	return out, err
}

// PodBridges are the names of bridges that have known pods of this node, in order. Packets between two pods of a bridge
// meet no rule of the node but by br_netfilter.
func (k *Kernel) PodBridges(_ context.Context, pods, nodes []netip.Addr) (out []string, err error) {
	err = k.eachPodNetwork(pods, nodes, func(_ netip.Prefix, l netlink.Link) {
		if name := l.Attrs().Name; l.Type() == "bridge" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	})
	slices.Sort(out)
	return out, err
}

// eachPodNetwork calls fn with each network of PodNetworks and its link; one may come twice.
func (k *Kernel) eachPodNetwork(pods, nodes []netip.Addr, fn func(netip.Prefix, netlink.Link)) error {
	list, err := k.handle.LinkList()
	if err != nil {
		return fmt.Errorf("links: %w", err)
	}
	routes, err := k.handle.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN},
		netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	addrs, err := k.handle.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	s := podLinks{links: map[int]netlink.Link{}, others: map[int]bool{}, bridged: map[int]int{}}
	for _, l := range list {
		s.add(l)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && slices.Contains(nodes, ip.Unmap()) {
			s.others[a.LinkIndex] = true
		}
	}
	for _, r := range routes {
		if isDefault(r) {
			for _, hop := range append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: r.LinkIndex}) {
				s.others[hop.LinkIndex] = true
			}
		}
	}
	for _, r := range routes {
		if r.Dst == nil || isDefault(r) || r.Type != unix.RTN_UNICAST || len(r.MultiPath) > 0 {
			continue
		}
		if p := prefix(r.Dst); s.leadsToPods(p, r, pods) {
			fn(p, s.links[r.LinkIndex])
		}
	}
	return nil
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// podLinks tells links of pods from others.
type podLinks struct {
	links map[int]netlink.Link
	// others lead to other hosts.
	others map[int]bool
	// bridged counts the ports of a bridge.
	bridged map[int]int
}

func (s podLinks) add(l netlink.Link) {
	s.links[l.Attrs().Index] = l
	if master := l.Attrs().MasterIndex; master != 0 {
		s.bridged[master]++
		if _, ok := l.(*netlink.Veth); !ok {
			s.others[master] = true
		}
	}
}

func (s podLinks) leadsToPods(p netip.Prefix, r netlink.Route, pods []netip.Addr) bool {
	l, ok := s.links[r.LinkIndex]
	if !ok || s.others[r.LinkIndex] || l.Attrs().MasterIndex != 0 || p.Addr().IsLinkLocalUnicast() ||
		p.Addr().IsMulticast() {
		return false
	}
	if p.Bits() < shortestPods4 || p.Addr().Is6() && p.Bits() < shortestPods6 {
		return false
	}
	if l.Type() == "veth" && p.IsSingleIP() && r.Gw == nil {
		return true
	}
	switch l.Type() {
	case "veth", "openvswitch":
	case "bridge":
		if s.bridged[r.LinkIndex] == 0 {
			return false
		}
	default:
		return false
	}
	return slices.ContainsFunc(pods, p.Contains)
}

// WatchRoutes reports when a route was added or removed, until ctx ends. Changes in quick succession are reported once.
func (k *Kernel) WatchRoutes(ctx context.Context) (<-chan struct{}, error) {
	updates, out := make(chan netlink.RouteUpdate, 64), make(chan struct{}, 1)
	at := netns.NsHandle(k.nsfd)
	lost := make(chan struct{}, 1)
	opts := netlink.RouteSubscribeOptions{Namespace: &at, ErrorCallback: func(error) {
		select {
		case lost <- struct{}{}: // events were lost, so look
		default:
		}
	}}
	if err := netlink.RouteSubscribeWithOptions(updates, ctx.Done(), opts); err != nil {
		return nil, fmt.Errorf("watch routes: %w", err)
	}
	go func() {
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
				return
			case _, ok := <-updates:
				if !ok {
					updates = nil
				}
			case <-lost:
			case <-time.After(time.Minute):
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out, nil
}
