package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/namespace"
)

// Kernel is the Net of the kernel's own WireGuard.
type Kernel struct {
	links *links

	mu     sync.Mutex
	client *wgctrl.Client // nil before the first device
	before map[string]Config
}

var _ Net = (*Kernel)(nil)

// ErrNotInKernel says that the kernel has no WireGuard.
var ErrNotInKernel = errors.New("the kernel has no WireGuard (module wireguard)")

// NewKernel works in the namespace of a descriptor; 0 is that of the process. sysctl is a writable mount of
// /proc/sys/net.
func NewKernel(nsfd int, sysctl string) (*Kernel, error) {
	l, err := newLinks(nsfd, sysctl)
	if err != nil {
		return nil, err
	}
	return &Kernel{links: l, before: map[string]Config{}}, nil
}

// Kind implements Net.
func (k *Kernel) Kind() string { return "kernel" }

// Changed implements Net: the kernel keeps its devices.
func (k *Kernel) Changed() <-chan struct{} { return nil }

// Probe says whether the kernel has WireGuard: nil, ErrNotInKernel or another error. It makes a device for a moment,
// which loads the module.
func (k *Kernel) Probe() error {
	dev := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: Prefix + "p"}} // at most 15 characters
	err := k.links.handle.LinkAdd(dev)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return ErrNotInKernel
	case err != nil && !errors.Is(err, unix.EEXIST):
		return fmt.Errorf("probe of WireGuard: %w", err)
	}
	return k.links.remove(dev.Name)
}

// wg opens the interface of the kernel's WireGuard, in the namespace.
func (k *Kernel) wg() (*wgctrl.Client, error) {
	if k.client != nil {
		return k.client, nil
	}
	err := namespace.Do(k.links.nsfd, func() (err error) {
		k.client, err = wgctrl.New()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("WireGuard: %w", err)
	}
	return k.client, nil
}

// Get implements Net.
func (k *Kernel) Get(_ context.Context, name string) (*State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.get(name)
}

func (k *Kernel) get(name string) (*State, error) {
	l, err := k.links.find(name)
	if err != nil || l == nil {
		return nil, err
	}
	if l.Type() != "wireguard" {
		return nil, nil // a tun device of a process: it is made anew
	}
	client, err := k.wg()
	if err != nil {
		return nil, err
	}
	d, err := client.Device(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", name, err)
	}
	s := &State{Index: l.Attrs().Index, Private: Key(d.PrivateKey), Port: uint16(d.ListenPort)}
	for _, p := range d.Peers {
		is := PeerState{Peer: Peer{Public: Key(p.PublicKey)}, Handshake: p.LastHandshakeTime,
			Received: uint64(p.ReceiveBytes), Sent: uint64(p.TransmitBytes)}
		if p.Endpoint != nil {
			a := p.Endpoint.AddrPort()
			is.Endpoint = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		}
		for _, n := range p.AllowedIPs {
			a, _ := netip.AddrFromSlice(n.IP)
			bits, _ := n.Mask.Size()
			is.Allowed = append(is.Allowed, netip.PrefixFrom(a.Unmap(), bits))
		}
		s.Peers = append(s.Peers, is)
	}
	return s, nil
}

// Set implements Net.
func (k *Kernel) Set(_ context.Context, c Config) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	have, err := k.get(c.Name)
	if err != nil {
		return err
	}
	if have == nil {
		if err := k.links.make(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: c.Name, MTU: c.MTU}}); err != nil {
			return err
		}
		if have, err = k.get(c.Name); err != nil || have == nil {
			return errors.Join(fmt.Errorf("device %s is gone again", c.Name), err)
		}
	}
	if d := differ(*have, c, k.before[c.Name], time.Now()); d != nil {
		client, err := k.wg()
		if err != nil {
			return err
		}
		if err := client.ConfigureDevice(c.Name, d.wgctrl()); err != nil {
			return fmt.Errorf("device %s: %w", c.Name, portTaken(c.Port, err))
		}
	}
	k.before[c.Name] = c
	return portTaken(c.Port, k.links.configure(c))
}

// Remove implements Net.
func (k *Kernel) Remove(_ context.Context, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.before, name)
	return k.links.remove(name)
}

// wgctrl is the change as the library wants it.
func (c *change) wgctrl() (out wgtypes.Config) {
	if c.private != nil {
		key := wgtypes.Key(*c.private)
		out.PrivateKey = &key
	}
	if c.port != nil {
		port := int(*c.port)
		out.ListenPort = &port
	}
	for _, key := range c.remove {
		out.Peers = append(out.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), Remove: true})
	}
	alive := KeepAlive
	for _, p := range c.set {
		one := wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.Public), UpdateOnly: p.known,
			PersistentKeepaliveInterval: &alive}
		if p.endpoint {
			one.Endpoint = net.UDPAddrFromAddrPort(p.Endpoint)
		}
		if p.allowed {
			one.ReplaceAllowedIPs = true
			for _, n := range p.Allowed {
				one.AllowedIPs = append(one.AllowedIPs, net.IPNet{IP: n.Addr().AsSlice(),
					Mask: net.CIDRMask(n.Bits(), n.Addr().BitLen())})
			}
		}
		out.Peers = append(out.Peers, one)
	}
	return out
}

// portTaken names the setting where the port is another program's.
func portTaken(port uint16, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("UDP port %d is taken by a program of the node (`ss -lunp`); free it, or set "+
			"podnetwork.wireguardPort to another port: %w", port, err)
	}
	return err
}

// links are the devices as links of a namespace.
type links struct {
	handle *netlink.Handle
	nsfd   int
	sysctl string
}

func newLinks(nsfd int, sysctl string) (*links, error) {
	h, err := link.Handle(nsfd)
	if err != nil {
		return nil, err
	}
	return &links{h, nsfd, sysctl}, nil
}

// find returns the link, nil for none.
func (l *links) find(name string) (netlink.Link, error) {
	dev, err := l.handle.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	return dev, nil
}

// make adds a link in place of one of another kind.
func (l *links) make(dev netlink.Link) error {
	name := dev.Attrs().Name
	if err := l.remove(name); err != nil {
		return err
	}
	err := l.handle.LinkAdd(dev)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = ErrNotInKernel
	}
	if err != nil {
		return fmt.Errorf("make link %s: %w", name, err)
	}
	return nil
}

func (l *links) remove(name string) error {
	dev, err := l.find(name)
	if err != nil || dev == nil {
		return err
	}
	if err := l.handle.LinkDel(dev); err != nil {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// configure gives the link its MTU and addresses, and sets it up.
func (l *links) configure(c Config) error {
	dev, err := l.find(c.Name)
	if err != nil {
		return err
	}
	if dev == nil {
		return fmt.Errorf("link %s is gone", c.Name)
	}
	var errs []error
	if dev.Attrs().MTU != c.MTU {
		errs = append(errs, l.handle.LinkSetMTU(dev, c.MTU))
	}
	if slices.ContainsFunc(c.Addrs, netip.Addr.Is6) {
		errs = append(errs, link.EnableIPv6(l.nsfd, l.sysctl, c.Name))
	}
	errs = append(errs, link.SetAddrs(l.handle, dev, c.Addrs))
	if dev.Attrs().Flags&net.FlagUp == 0 {
		errs = append(errs, l.handle.LinkSetUp(dev))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("link %s: %w", c.Name, err)
	}
	return nil
}
