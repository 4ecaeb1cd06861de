// Package veth makes and removes the link between a pod and its node.
//
// A pod has no neighbour but its node: its addresses are /32 and /128, its default
// route goes to a link-local address that no host has, with a permanent neighbour
// entry for it, so that no ARP and no neighbour discovery is ever sent or needed.
// There is no bridge: the node routes each pod's address to the pod's link.
//
// Both MAC addresses are set as the link is made, so that no daemon that renames
// or re-addresses new links has anything to do.
package veth

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/namespace"
	"wayleave.dev/podnetwork/cni/call"
)

// RouteProtocol marks the routes that are ours (rtm_protocol).
const RouteProtocol = 87

// The next hops that pods see.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// minIPv6MTU is what IPv6 asks of every link (RFC 8200, section 5).
const minIPv6MTU = 1280

// Link describes the link of one pod.
type Link struct {
	// Name is that of the interface in the pod: "eth0".
	Name string
	// HostName is that of its other end on the node, see call.HostName.
	HostName string
	IPs      []netip.Addr
	MTU      int
	// NodeIPs are the node's own addresses, the source of what it sends to the pod.
	NodeIPs []netip.Addr
	// MAC is the pod's, nil for one made from its first address.
	MAC net.HardwareAddr
	// Localhost lets processes of the node reach the pod from 127.0.0.1.
	Localhost bool
	// Rates limit what the pod gets and sends, in bits per second.
	Rates Rates
}

// ErrExists says that the pod has an interface of that name already.
var ErrExists = errors.New("has an interface of that name already")

// Gateway is the next hop that pods see.
func Gateway(is6 bool) netip.Addr {
	if is6 {
		return gateway6
	}
	return gateway4
}

// Anywhere is the destination of default routes.
func Anywhere(is6 bool) net.IPNet { return *anywhere(is6) }

// HostMAC is the node's end of every link: it is alone with the pod.
func HostMAC() net.HardwareAddr { return hostMAC() }

func hostMAC() net.HardwareAddr { return net.HardwareAddr{0xee, 0x57, 0x4c, 0, 0, 1} }

// podMAC is locally administered and follows the address, so that a pod made
// again with its address has its MAC, too.
func (l Link) podMAC() net.HardwareAddr {
	if l.MAC != nil {
		return l.MAC
	}
	raw := l.IPs[0].AsSlice()
	return append(net.HardwareAddr{0x0a, 0x57}, raw[len(raw)-4:]...)
}

func ipnet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func anywhere(is6 bool) *net.IPNet {
	if is6 {
		return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
}

// Host is where the node's ends are: the namespace of the agent.
type Host struct {
	nsfd   int // of the node's network namespace
	handle *netlink.Handle
	// sysctl is the mount of /proc/sys/net.
	sysctl string
}

// NewHost works in the namespace with that descriptor; sysctl is where its
// /proc/sys/net is writable.
func NewHost(nsfd int, sysctl string) (*Host, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(nsfd), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &Host{nsfd, h, sysctl}, nil
}

// Inside runs fn on a thread that is in the node's namespace.
func (h *Host) Inside(fn func() error) error { return namespace.Do(h.nsfd, fn) }

// Setup makes the link in the pod's namespace; after an error nothing of it is left.
// An interface of that name that the pod has already is not touched: ErrExists.
func (h *Host) Setup(podNS *os.File, l Link) (podMAC net.HardwareAddr, err error) {
	if l.MTU < minIPv6MTU && slices.ContainsFunc(l.IPs, netip.Addr.Is6) { // the kernel would take IPv6 off the link
		return nil, fmt.Errorf("the MTU of pods is %d, and IPv6 asks for %d: the node's uplink is too small for IPv6",
			l.MTU, minIPv6MTU)
	}
	pod, err := netlink.NewHandleAt(netns.NsHandle(podNS.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink in the pod: %w", err)
	}
	defer pod.Close()
	if _, err := pod.LinkByName(l.Name); err == nil {
		return nil, fmt.Errorf("the pod: %s: %w", l.Name, ErrExists)
	}
	if err := h.deleteLink(l.HostName); err != nil {
		return nil, err
	}
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: l.Name, MTU: l.MTU, HardwareAddr: l.podMAC()},
		PeerName:         l.HostName,
		PeerHardwareAddr: hostMAC(),
		PeerNamespace:    netlink.NsFd(h.nsfd),
		PeerMTU:          uint32(l.MTU),
	}
	if err := pod.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("make link %s: %w", l.Name, err)
	}
	if err := errors.Join(h.hostSide(l), h.podSide(podNS, pod, l), h.limit(pod, l)); err != nil {
		return nil, errors.Join(err, h.deleteLink(l.HostName))
	}
	h.awaitReady(pod, l)
	return l.podMAC(), nil
}

// How long and how often Setup checks whether a link carries packets and its addresses take them.
const (
	readyWithin = time.Second
	readyEvery  = time.Millisecond
)

// awaitReady waits until both ends carry packets and the pod takes those to its addresses. The kernel activates a link
// a moment after it is set up, in a work queue that waits for the lock of all links; until then the link drops what it
// sends, such as the answer to a pod's first packet. From another work queue it then makes an IPv6 address local
// (addrconf_dad_work in net/ipv6/addrconf.c, also with IFA_F_NODAD); until then the pod drops packets to that address.
// A link that takes longer than readyWithin is left to come up by itself.
func (h *Host) awaitReady(pod *netlink.Handle, l Link) {
	up := func(handle *netlink.Handle, name string) bool {
		link, err := handle.LinkByName(name)
		return err != nil || link.Attrs().OperState == netlink.OperUp
	}
	local := func(ip netip.Addr) bool {
		if ip.Is4() { // local when it is set
			return true
		}
		routes, err := pod.RouteGet(ip.AsSlice())
		return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
	}
	for deadline := time.Now().Add(readyWithin); time.Now().Before(deadline); time.Sleep(readyEvery) {
		if up(h.handle, l.HostName) && up(pod, l.Name) && !slices.ContainsFunc(l.IPs,
			func(ip netip.Addr) bool { return !local(ip) }) {
			return
		}
	}
}

// hostSide configures the node's end.
func (h *Host) hostSide(l Link) error {
	link, err := h.handle.LinkByName(l.HostName)
	if err != nil {
		return fmt.Errorf("link %s: %w", l.HostName, err)
	}
	if err := h.hostSysctls(l); err != nil {
		return err
	}
	if err := h.handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s up: %w", l.HostName, err)
	}
	for _, ip := range l.IPs {
		neigh := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(),
			HardwareAddr: l.podMAC()}
		if err := h.handle.NeighSet(neigh); err != nil {
			return fmt.Errorf("neighbour %s: %w", ip, err)
		}
		if err := h.handle.RouteReplace(h.route(link, ip, l.NodeIPs)); err != nil {
			return fmt.Errorf("route to %s: %w", ip, err)
		}
		if ip.Is6() {
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: gateway6.AsSlice(), Mask: net.CIDRMask(64, 128)},
				Flags: unix.IFA_F_NODAD}
			if err := h.handle.AddrReplace(link, addr); err != nil {
				return fmt.Errorf("address %s of %s: %w", gateway6, l.HostName, err)
			}
		}
	}
	return nil
}

// route is the node's to a pod. Its source is given, since a VIP on the loopback
// could be chosen otherwise.
func (h *Host) route(link netlink.Link, ip netip.Addr, nodeIPs []netip.Addr) *netlink.Route {
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipnet(ip), Scope: netlink.SCOPE_LINK,
		Protocol: RouteProtocol}
	if i := slices.IndexFunc(nodeIPs, func(a netip.Addr) bool { return a.Is6() == ip.Is6() }); i >= 0 {
		r.Src = nodeIPs[i].AsSlice()
	}
	return r
}

// hostSysctls: strict reverse path checks that the host may have as default would
// drop nothing here, but loose ones are enough; redirects make no sense on a link
// with one peer; no addresses from router advertisements.
func (h *Host) hostSysctls(l Link) error {
	values := map[string]string{
		"ipv4/conf/" + l.HostName + "/send_redirects": "0",
		"ipv4/conf/" + l.HostName + "/rp_filter":      "0",
		"ipv4/conf/" + l.HostName + "/forwarding":     "1",
	}
	if l.Localhost {
		values["ipv4/conf/"+l.HostName+"/route_localnet"] = "1"
	}
	if slices.ContainsFunc(l.IPs, netip.Addr.Is6) {
		values["ipv6/conf/"+l.HostName+"/disable_ipv6"] = "0" // hosts that switch IPv6 off for new links
		values["ipv6/conf/"+l.HostName+"/accept_ra"] = "0"
		values["ipv6/conf/"+l.HostName+"/accept_dad"] = "0"
		values["ipv6/conf/"+l.HostName+"/forwarding"] = "1"
	}
	return h.write(h.nsfd, values)
}

// write sets sysctls of the network in a namespace.
func (h *Host) write(nsfd int, values map[string]string) error {
	return namespace.Do(nsfd, func() error {
		for name, v := range values {
			if err := os.WriteFile(filepath.Join(h.sysctl, name), []byte(v), 0); err != nil {
				return fmt.Errorf("sysctl: %w", err)
			}
		}
		return nil
	})
}

// podSide configures the pod's end. A namespace inherits net.ipv6.conf.default.disable_ipv6, and the kernel then
// refuses IPv6 addresses on its links: the reference plugins switch IPv6 on for the interface and the loopback, too.
func (h *Host) podSide(podNS *os.File, pod *netlink.Handle, l Link) error {
	link, err := pod.LinkByName(l.Name)
	if err != nil {
		return fmt.Errorf("link %s: %w", l.Name, err)
	}
	if slices.ContainsFunc(l.IPs, netip.Addr.Is6) {
		on := map[string]string{"ipv6/conf/lo/disable_ipv6": "0", "ipv6/conf/" + l.Name + "/disable_ipv6": "0"}
		if err := h.write(int(podNS.Fd()), on); err != nil {
			return fmt.Errorf("IPv6 of the pod: %w", err)
		}
	}
	for _, ip := range l.IPs {
		addr := &netlink.Addr{IPNet: ipnet(ip)}
		if ip.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := pod.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %s: %w", ip, err)
		}
	}
	if err := pod.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s up: %w", l.Name, err)
	}
	done := map[bool]bool{}
	for _, ip := range l.IPs {
		if done[ip.Is6()] {
			continue
		}
		done[ip.Is6()] = true
		if err := defaultRoute(pod, link, ip.Is6()); err != nil {
			return err
		}
	}
	return nil
}

func defaultRoute(pod *netlink.Handle, link netlink.Link, is6 bool) error {
	gw := Gateway(is6)
	neigh := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: gw.AsSlice(),
		HardwareAddr: hostMAC()}
	if err := pod.NeighSet(neigh); err != nil {
		return fmt.Errorf("neighbour %s: %w", gw, err)
	}
	def := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: anywhere(is6), Gw: gw.AsSlice(),
		Flags: int(netlink.FLAG_ONLINK)}
	if err := pod.RouteReplace(def); err != nil {
		return fmt.Errorf("default route: %w", err)
	}
	return nil
}

// Teardown removes the link of a name on the node, and with it the pod's end and
// the routes. No link is no error.
func (h *Host) Teardown(hostName string) error { return h.deleteLink(hostName) }

func (h *Host) deleteLink(name string) error {
	link, err := h.handle.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = h.handle.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// Exists says whether the node has a link of that name.
func (h *Host) Exists(hostName string) bool {
	_, err := h.handle.LinkByName(hostName)
	return err == nil
}

// Listed is what Check must find: a later plugin of a chain may have taken the rest.
type Listed struct {
	IPs                []netip.Addr
	Default4, Default6 bool
}

// Check says what of a link is not as Setup made it.
func (h *Host) Check(podNS *os.File, l Link, want Listed) error {
	pod, err := netlink.NewHandleAt(netns.NsHandle(podNS.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink in the pod: %w", err)
	}
	defer pod.Close()
	link, err := pod.LinkByName(l.Name)
	if err != nil {
		return fmt.Errorf("the pod has no interface %s: %w", l.Name, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("the pod's interface %s is down", l.Name)
	}
	if have := link.Attrs().HardwareAddr; !bytes.Equal(have, l.podMAC()) { // the node sends to this one
		return fmt.Errorf("the pod's interface %s has the MAC address %s instead of %s", l.Name, have, l.podMAC())
	}
	addrs, err := pod.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", l.Name, err)
	}
	for _, ip := range want.IPs {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(ip.AsSlice()) }) {
			return fmt.Errorf("the pod's interface %s has lost the address %s", l.Name, ip)
		}
	}
	for is6, listed := range map[bool]bool{false: want.Default4, true: want.Default6} {
		if listed {
			if err := hasDefault(pod, link, is6); err != nil {
				return err
			}
		}
	}
	return h.checkHost(l, want.IPs)
}

func hasDefault(pod *netlink.Handle, link netlink.Link, is6 bool) error {
	family := netlink.FAMILY_V4
	if is6 {
		family = netlink.FAMILY_V6
	}
	routes, err := pod.RouteList(link, family)
	if err != nil {
		return fmt.Errorf("routes of the pod: %w", err)
	}
	if !slices.ContainsFunc(routes, func(r netlink.Route) bool {
		return r.Gw != nil && (r.Dst == nil || r.Dst.IP.IsUnspecified())
	}) {
		return fmt.Errorf("the pod has lost its default route by %s", Gateway(is6))
	}
	return nil
}

func (h *Host) checkHost(l Link, ips []netip.Addr) error {
	link, err := h.handle.LinkByName(l.HostName)
	if err != nil {
		return fmt.Errorf("the node has no link %s: %w", l.HostName, err)
	}
	for _, ip := range ips {
		routes, err := h.handle.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: link.Attrs().Index,
			Dst: ipnet(ip)}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST)
		if err != nil {
			return fmt.Errorf("routes: %w", err)
		}
		if len(routes) == 0 {
			return fmt.Errorf("the node has lost its route to %s", ip)
		}
	}
	return nil
}

// Repair puts the node's side of a link back; the link itself must be there. Routes and neighbours of ours to other
// addresses than the link's are removed: a pod could send from them, and packets to them would reach the wrong pod.
func (h *Host) Repair(l Link) error {
	link, err := h.handle.LinkByName(l.HostName)
	if err != nil {
		return fmt.Errorf("link %s: %w", l.HostName, err)
	}
	return errors.Join(h.hostSide(l), h.prune(link, l.IPs))
}

// prune removes what a link has of addresses that are not its own.
func (h *Host) prune(link netlink.Link, own []netip.Addr) error {
	foreign := func(ip net.IP) bool {
		a, ok := netip.AddrFromSlice(ip)
		return ok && !slices.Contains(own, a.Unmap())
	}
	routes, err := h.podRoutes(link)
	errs := []error{err}
	for _, r := range routes {
		if foreign(r.Dst.IP) {
			errs = append(errs, ignoreGone(h.handle.RouteDel(&r)))
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := h.handle.NeighList(link.Attrs().Index, family)
		errs = append(errs, err)
		for _, n := range list {
			if n.State&netlink.NUD_PERMANENT != 0 && foreign(n.IP) {
				errs = append(errs, ignoreGone(h.handle.NeighDel(&n)))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("link %s: what it has of other pods: %w", link.Attrs().Name, err)
	}
	return nil
}

// ignoreGone is nil for what was removed already.
func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// podRoutes are our routes to single addresses by a link.
func (h *Host) podRoutes(link netlink.Link) (out []netlink.Route, err error) {
	list, err := h.handle.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: link.Attrs().Index,
		Protocol: RouteProtocol}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	for _, r := range list {
		if r.Dst != nil {
			out = append(out, r)
		}
	}
	return out, nil
}

// Addresses are those that the node routes to one of our links.
func (h *Host) Addresses(hostName string) (out []netip.Addr, err error) {
	link, err := h.handle.LinkByName(hostName)
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", hostName, err)
	}
	list, err := h.podRoutes(link)
	for _, r := range list {
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			out = append(out, a.Unmap())
		}
	}
	return out, err
}

// Names lists the node's ends of our links.
func (h *Host) Names() ([]string, error) {
	links, err := h.handle.LinkList()
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	var out []string
	for _, l := range links {
		name := l.Attrs().Name
		if _, ok := l.(*netlink.Veth); ok && len(name) == len(call.Prefix)+10 &&
			name[:len(call.Prefix)] == call.Prefix {
			out = append(out, name)
		}
	}
	return out, nil
}
