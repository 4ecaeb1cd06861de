package fabric

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	bridgeLink = "segment"
	uplink     = "eth0"
)

// Build creates the namespaces and the links between them.
func Build(p Plan) error {
	if err := Create(Bridge); err != nil {
		return err
	}
	if err := Do(Bridge, func() error { return makeBridge(p) }); err != nil {
		return fmt.Errorf("fabric: bridge: %w", err)
	}
	for _, m := range p.Machines() {
		if err := attach(p, m); err != nil {
			return fmt.Errorf("fabric: %s: %w", m.Name, err)
		}
	}
	return nil
}

// Destroy removes everything that Build created, also if it created only a part.
func Destroy() error {
	var errs []error
	for _, name := range Existing() {
		errs = append(errs, Delete(name))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// An empty folder is removed: whoever needs it creates it again.
	_ = os.Remove(folder)
	return nil
}

// makeBridge creates the segment. Its gateway forwards, and has no further routes: packets to unknown destinations are
// refused at once instead of being lost.
func makeBridge(p Plan) error {
	if err := loopback(); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeLink
	attrs.HardwareAddr = mac(p.Gateways[0].Addr())
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return err
	}
	if err := address(bridgeLink, p.Gateways); err != nil {
		return err
	}
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := sysctl(name, "1"); err != nil && len(p.Gateways) > 1 {
			return err
		}
	}
	// Redirects would give a machine routes that a test has removed.
	for _, name := range []string{"all", "default", bridgeLink} {
		if err := sysctl("net/ipv4/conf/"+name+"/send_redirects", "0"); err != nil {
			return err
		}
	}
	return nil
}

// attach creates the namespace of a machine and its link to the bridge, or to the gateway alone. The pair is created in
// the bridge's namespace, so the host never sees it.
func attach(p Plan, m Machine) error {
	if err := Create(m.Namespace); err != nil {
		return err
	}
	file, err := os.Open(File(m.Namespace))
	if err != nil {
		return err
	}
	defer file.Close()
	err = Do(Bridge, func() error {
		bridge, err := netlink.LinkByName(bridgeLink)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = m.Name
		if len(m.Gateways) == 0 {
			attrs.MasterIndex = bridge.Attrs().Index
		}
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplink, PeerHardwareAddr: mac(m.V4()),
			PeerNamespace: netlink.NsFd(int(file.Fd()))}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return address(m.Name, m.Gateways)
	})
	if err != nil {
		return err
	}
	return Do(m.Namespace, func() error {
		if err := loopback(); err != nil {
			return err
		}
		if err := address(uplink, m.Addresses); err != nil {
			return err
		}
		if len(m.Gateways) > 0 {
			return defaultRoutes(m.Gateways)
		}
		return defaultRoutes(p.Gateways)
	})
}

func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func address(name string, prefixes []netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, prefix := range prefixes {
		addr := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // the plan has no duplicates
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %s: %w", prefix, err)
		}
	}
	return netlink.LinkSetUp(link)
}

func defaultRoutes(gateways []netip.Prefix) error {
	for _, gateway := range gateways {
		route := &netlink.Route{Gw: gateway.Addr().AsSlice()}
		if gateway.Addr().Is6() {
			route.Dst = ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
		}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("default route by %s: %w", gateway.Addr(), err)
		}
	}
	return nil
}

// Route adds a route for a prefix through another machine in the namespace.
func Route(namespace string, to netip.Prefix, by netip.Addr) error {
	return Do(namespace, func() error {
		route := &netlink.Route{Dst: ipNet(to), Gw: by.AsSlice()}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("%s: route to %s by %s: %w", namespace, to, by, err)
		}
		return nil
	})
}

// sysctl sets a value in the namespace of the calling thread.
func sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// mac derives a locally administered address from an IPv4 address, so that
// traces of the lab are easy to read.
func mac(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x57, b[0], b[1], b[2], b[3]}
}
