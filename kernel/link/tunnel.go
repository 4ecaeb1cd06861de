package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/namespace"
)

// Tunnel is a VXLAN device (RFC 7348) without learning and flooding: its peers say where packets go.
type Tunnel struct {
	Name string
	// VNI is the network identifier, Port the UDP destination port.
	VNI  int
	Port int
	// Local is the outer source address; its family is that of the underlay.
	Local netip.Addr
	MAC   MAC
	MTU   int
	// Addrs are the device's own, the source of what is masqueraded into it.
	Addrs []netip.Addr
}

// Equal compares two tunnels.
func (t Tunnel) Equal(o Tunnel) bool { return t.fixed() == o.fixed() && slices.Equal(t.Addrs, o.Addrs) }

type fixedPart struct {
	name      string
	vni, port int
	local     netip.Addr
	mac       MAC
	mtu       int
}

func (t Tunnel) fixed() fixedPart { return fixedPart{t.Name, t.VNI, t.Port, t.Local, t.MAC, t.MTU} }

// MAC is a hardware address that can be compared.
type MAC [6]byte

// String is the usual form with colons.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Peer is the other end of a tunnel.
type Peer struct {
	MAC MAC
	// Underlay is the peer's outer address.
	Underlay netip.Addr
	// Hops are the next hops, in routes, that stand for this peer.
	Hops []netip.Addr
}

// Equal compares two peers.
func (p Peer) Equal(o Peer) bool {
	return p.MAC == o.MAC && p.Underlay == o.Underlay && slices.Equal(p.Hops, o.Hops)
}

// device finds the tunnel's device; nil when there is none.
func (k *Kernel) device(name string) (*netlink.Vxlan, error) {
	l, err := k.handle.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	v, ok := l.(*netlink.Vxlan)
	if !ok {
		return nil, fmt.Errorf("link %s: is a foreign %s, not a VXLAN device", name, l.Type())
	}
	return v, nil
}

// SetTunnel implements Net. A device that differs in what cannot be changed is
// made anew.
func (k *Kernel) SetTunnel(_ context.Context, t Tunnel) error {
	have, err := k.device(t.Name)
	if err != nil {
		return err
	}
	local, ok := netip.AddrFromSlice(t.Local.AsSlice())
	if !ok {
		return fmt.Errorf("tunnel %s: no address of this node to send from", t.Name)
	}
	if have != nil {
		addr, _ := netip.AddrFromSlice(have.SrcAddr)
		if addr.Unmap() != local || have.VxlanId != t.VNI || have.Port != t.Port || have.Learning {
			if err := k.handle.LinkDel(have); err != nil {
				return fmt.Errorf("remove link %s: %w", t.Name, err)
			}
			have = nil
		}
	}
	if have == nil {
		dev := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: t.Name, HardwareAddr: t.MAC[:], MTU: t.MTU},
			VxlanId: t.VNI, Port: t.Port, SrcAddr: t.Local.AsSlice(), Learning: false}
		if err := k.handle.LinkAdd(dev); err != nil {
			return fmt.Errorf("make VXLAN device %s (port %d, from %s): %w", t.Name, t.Port, t.Local, portTaken(t, err))
		}
		if have, err = k.device(t.Name); err != nil || have == nil {
			return errors.Join(fmt.Errorf("link %s is gone again", t.Name), err)
		}
	}
	return k.configure(have, t)
}

func (k *Kernel) configure(dev *netlink.Vxlan, t Tunnel) error {
	var errs []error
	if !slices.Equal(dev.HardwareAddr, t.MAC[:]) {
		errs = append(errs, k.handle.LinkSetHardwareAddr(dev, t.MAC[:]))
	}
	if dev.MTU != t.MTU {
		errs = append(errs, k.handle.LinkSetMTU(dev, t.MTU))
	}
	if slices.ContainsFunc(t.Addrs, netip.Addr.Is6) {
		errs = append(errs, EnableIPv6(k.nsfd, k.Sysctl, t.Name))
	}
	errs = append(errs, SetAddrs(k.handle, dev, t.Addrs))
	errs = append(errs, portTaken(t, k.handle.LinkSetUp(dev)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("link %s: %w", t.Name, err)
	}
	return nil
}

// SetAddrs makes these the addresses of a link, beside its link-local ones.
func SetAddrs(h *netlink.Handle, dev netlink.Link, want []netip.Addr) error {
	have, err := h.AddrList(dev, netlink.FAMILY_ALL)
	errs := []error{err}
	for _, a := range want {
		// An address that is there is not set again: that would notify watchers of addresses.
		if slices.ContainsFunc(have, func(h netlink.Addr) bool { return h.IP.Equal(a.AsSlice()) }) {
			continue
		}
		addr := &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(a, a.BitLen()))}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		errs = append(errs, h.AddrReplace(dev, addr))
	}
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); !ip.IsLinkLocalUnicast() && !slices.Contains(want, ip) {
			errs = append(errs, h.AddrDel(dev, &a))
		}
	}
	return errors.Join(errs...)
}

// EnableIPv6 lets a new link of a namespace (0 is that of the process) have IPv6 addresses where the host switches IPv6
// off for new links (net.ipv6.conf.default.disable_ipv6). The folder is a writable mount of /proc/sys/net; empty is
// that itself.
func EnableIPv6(nsfd int, sysctl, name string) error {
	file := filepath.Join(cmp.Or(sysctl, "/proc/sys/net"), "ipv6/conf", name, "disable_ipv6")
	return namespace.Do(nsfd, func() error {
		raw, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(raw)) == "0" {
			return nil // a kernel without IPv6 refuses the address by itself
		}
		if err == nil {
			err = os.WriteFile(file, []byte("0"), 0)
		}
		if err != nil {
			return fmt.Errorf("switch IPv6 on: %w", err)
		}
		return nil
	})
}

// portTaken names the possible user of a tunnel's port: a device of the same port that shares no socket, or a program.
func portTaken(t Tunnel, err error) error {
	if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("UDP port %d is taken by another VXLAN device or a program of the node (`ip -d link show "+
			"type vxlan`, `ss -lunp`); free it, or set podnetwork.vxlanPort to the same other port on all nodes: %w",
			t.Port, err)
	}
	return err
}

// DelTunnel implements Net.
func (k *Kernel) DelTunnel(_ context.Context, name string) error {
	dev, err := k.device(name)
	if err != nil || dev == nil {
		return err
	}
	if err := k.handle.LinkDel(dev); err != nil {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// HasTunnel implements Net.
func (k *Kernel) HasTunnel(_ context.Context, name string) (bool, error) {
	dev, err := k.device(name)
	return dev != nil, err
}

// HasLink implements Net.
func (k *Kernel) HasLink(name string) (bool, error) {
	_, err := k.handle.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("link %s: %w", name, err)
	}
	return true, nil
}

// SetPeers implements Net.
func (k *Kernel) SetPeers(_ context.Context, tunnel string, peers []Peer, prune bool) error {
	dev, err := k.device(tunnel)
	if err != nil {
		return err
	}
	if dev == nil {
		if len(peers) == 0 {
			return nil
		}
		return fmt.Errorf("link %s is not there", tunnel)
	}
	fdb, err := k.handle.NeighList(dev.Index, unix.AF_BRIDGE)
	if err != nil {
		return fmt.Errorf("forwarding table of %s: %w", tunnel, err)
	}
	var hops []netlink.Neigh
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := k.handle.NeighList(dev.Index, family)
		if err != nil {
			return fmt.Errorf("neighbours of %s: %w", tunnel, err)
		}
		hops = append(hops, list...)
	}
	var errs []error
	wantFDB, wantHops := map[string]netlink.Neigh{}, map[string]netlink.Neigh{}
	for _, p := range peers {
		n := netlink.Neigh{LinkIndex: dev.Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT,
			Flags: netlink.NTF_SELF,
			IP:    p.Underlay.AsSlice(), HardwareAddr: p.MAC[:]}
		wantFDB[p.MAC.String()] = n
		for _, hop := range p.Hops {
			wantHops[hop.String()] = netlink.Neigh{LinkIndex: dev.Index, State: netlink.NUD_PERMANENT,
				IP: hop.AsSlice(), HardwareAddr: p.MAC[:]}
		}
	}
	errs = append(errs, k.neighbours(fdb, wantFDB, prune,
		func(n netlink.Neigh) string { return n.HardwareAddr.String() }),
		k.neighbours(hops, wantHops, prune, func(n netlink.Neigh) string {
			a, _ := netip.AddrFromSlice(n.IP)
			return a.Unmap().String()
		}))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("peers of %s: %w", tunnel, err)
	}
	return nil
}

// neighbours sets the permanent entries that are wanted, and with prune removes all
// others.
func (k *Kernel) neighbours(have []netlink.Neigh, want map[string]netlink.Neigh, prune bool,
	key func(netlink.Neigh) string) error {
	var errs []error
	for _, n := range have {
		if n.State&netlink.NUD_PERMANENT == 0 {
			continue
		}
		id := key(n)
		w, ok := want[id]
		if ok && w.IP.Equal(n.IP) && slices.Equal(w.HardwareAddr, n.HardwareAddr) {
			delete(want, id)
			continue
		}
		if !ok && prune {
			if err := k.handle.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, err)
			}
		}
	}
	for _, n := range want {
		errs = append(errs, k.handle.NeighSet(&n))
	}
	return errors.Join(errs...)
}

// rulePriority is where our routing policy rules are: before the main table.
const rulePriority = 8700

func (r Rule) netlink() *netlink.Rule {
	out := netlink.NewRule()
	out.Priority, out.Table, out.Protocol, out.Family, out.OifName = rulePriority, Table, Protocol,
		netlink.FAMILY_V4, r.Link
	if r.From.IsValid() {
		out.Src = ipnet(r.From)
	}
	if r.Is6 {
		out.Family = netlink.FAMILY_V6
	}
	return out
}

// SetRules implements Net.
func (k *Kernel) SetRules(ctx context.Context, want []Rule) error {
	have, err := k.Rules(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range want {
		if !slices.Contains(have, r) {
			if err := k.handle.RuleAdd(r.netlink()); err != nil && !errors.Is(err, unix.EEXIST) {
				errs = append(errs, err)
			}
		}
	}
	for _, r := range have {
		if !slices.Contains(want, r) {
			errs = append(errs, k.handle.RuleDel(r.netlink()))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("routing rules: %w", err)
	}
	return nil
}

// Rules implements Net.
func (k *Kernel) Rules(context.Context) (out []Rule, err error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := k.handle.RuleList(family)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("routing rules: %w", err)
		}
		for _, r := range list {
			if r.Priority != rulePriority || r.Table != Table {
				continue
			}
			own := Rule{Link: r.OifName, Is6: family == netlink.FAMILY_V6}
			if r.Src != nil {
				own.From = prefix(r.Src)
			}
			out = append(out, own)
		}
	}
	return out, nil
}

func prefix(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}

// Uplink is the link that has one of the addresses, and is no tunnel of ours.
type Uplink struct {
	Name string
	MTU  int
	// Segments are the networks of its addresses: who is in one of them is a
	// neighbour.
	Segments []netip.Prefix
}

// Uplink implements Net.
func (k *Kernel) Uplink(_ context.Context, nodeIPs []netip.Addr, skip string) (Uplink, error) {
	links, err := k.handle.LinkList()
	if err != nil {
		return Uplink{}, fmt.Errorf("links: %w", err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; name == skip || strings.HasPrefix(name, wireGuard) ||
			l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := k.handle.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return Uplink{}, fmt.Errorf("addresses of %s: %w", l.Attrs().Name, err)
		}
		u, ours := Uplink{Name: l.Attrs().Name, MTU: l.Attrs().MTU}, false
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			ours = ours || slices.Contains(nodeIPs, ip.Unmap())
			if p := prefix(a.IPNet); !ip.IsLinkLocalUnicast() && p.Bits() < p.Addr().BitLen() {
				u.Segments = append(u.Segments, p.Masked())
			}
		}
		if ours {
			return u, nil
		}
	}
	return Uplink{}, fmt.Errorf("no link of this node has one of its addresses %v", nodeIPs)
}
