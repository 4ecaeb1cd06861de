// Package ipvs changes the kernel's virtual servers, and the link that makes their
// addresses the node's.
//
// Invariants:
//   - Servers and backends are set whole; setting what is there is no error, and neither
//     is removing what is not.
//   - The link carries addresses of virtual servers and nothing else, with scope host:
//     the kernel then uses none of them as a source address.
package ipvs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	mobyipvs "github.com/moby/ipvs"
	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	kernellink "wayleave.dev/kernel/link"
	"wayleave.dev/model"
)

// Key identifies a virtual server.
type Key struct {
	Addr     netip.Addr
	Protocol model.Protocol
	Port     uint16
}

// Compare orders keys.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Protocol, o.Protocol), k.Addr.Compare(o.Addr), cmp.Compare(k.Port, o.Port))
}

// String reads "TCP 10.96.0.1:80".
func (k Key) String() string {
	return fmt.Sprintf("%s %s", k.Protocol, netip.AddrPortFrom(k.Addr, k.Port))
}

// Server is a virtual server without its backends.
type Server struct {
	Key
	Scheduler string
	// Persistent is how long a client keeps its backend, in whole seconds; 0 is none.
	Persistent time.Duration
}

// Backend is a real server (the kernel's "destination"). With weight 0 it gets no new
// connections, and those that it has live on.
type Backend struct {
	At     netip.AddrPort
	Weight int
	// Active counts the established connections, and Connections all that the kernel still remembers. Both are
	// read-only.
	Active, Connections int
}

// Conn changes the virtual servers of one network namespace.
type Conn interface {
	// Servers lists all virtual servers with an address, ours and foreign.
	Servers(ctx context.Context) ([]Server, error)
	// SetServer makes one or changes it into this.
	SetServer(ctx context.Context, s Server) error
	// DelServer removes it with its backends; the connections end.
	DelServer(ctx context.Context, k Key) error
	// Backends lists those of a server.
	Backends(ctx context.Context, k Key) ([]Backend, error)
	// SetBackend adds one or changes its weight.
	SetBackend(ctx context.Context, k Key, b Backend) error
	// DelBackend removes it; the next packet of a connection to it gets another.
	DelBackend(ctx context.Context, k Key, at netip.AddrPort) error
	// Addresses lists those of the link; made false when there is no such link.
	Addresses(ctx context.Context, link string) (list []netip.Addr, made bool, err error)
	// SetAddress adds one to the link, which it makes when it is not there.
	SetAddress(ctx context.Context, link string, a netip.Addr) error
	// DelAddress removes it.
	DelAddress(ctx context.Context, link string, a netip.Addr) error
	// DelLink removes the link with its addresses.
	DelLink(ctx context.Context, link string) error
	// Local lists the addresses of the node's other links.
	Local(ctx context.Context, but string) ([]netip.Addr, error)
}

// Kernel is the Conn of a network namespace.
type Kernel struct {
	handle *mobyipvs.Handle
	links  *netlink.Handle
	nsfd   int
	// Sysctl is a writable mount of /proc/sys/net; empty is that itself. Set it before the first use.
	Sysctl string
}

var _ Conn = (*Kernel)(nil)

// Available fails where the kernel has no IPVS and it cannot be loaded.
func Available() error {
	// Asking for the family by name has the kernel load its module.
	if _, err := netlink.GenlFamilyGet("IPVS"); err != nil {
		return fmt.Errorf("generic netlink family IPVS: %w", err)
	}
	return nil
}

// NewKernel makes a Conn for the namespace of a descriptor, or for that of the process
// with 0. It fails where the kernel has no IPVS and it cannot be loaded.
func NewKernel(nsfd int) (*Kernel, error) {
	if err := Available(); err != nil {
		return nil, fmt.Errorf("ipvs: the kernel has none (try: modprobe -a ip_vs ip_vs_rr): %w", err)
	}
	logrus.SetLevel(logrus.ErrorLevel) // the library warns where there is no modprobe
	path := ""
	if nsfd != 0 {
		path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), nsfd)
	}
	// The library goes to the namespace by way of this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	h, err := mobyipvs.New(path)
	if err != nil {
		return nil, fmt.Errorf("ipvs: %w", err)
	}
	l, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if nsfd != 0 {
		l, err = netlink.NewHandleAt(netns.NsHandle(nsfd), unix.NETLINK_ROUTE)
	}
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &Kernel{handle: h, links: l, nsfd: nsfd}, nil
}

// Flags of virtual servers: IP_VS_SVC_F_PERSISTENT and IP_VS_SVC_F_SCHED1.
const (
	flagPersistent = 1
	flagFallback   = 8
)

func service(s Server) *mobyipvs.Service {
	out := &mobyipvs.Service{Address: s.Addr.AsSlice(), Protocol: uint16(s.Protocol), Port: s.Port,
		SchedName:     s.Scheduler,
		AddressFamily: unix.AF_INET, Netmask: 0xffffffff}
	if s.Addr.Is6() {
		out.AddressFamily, out.Netmask = unix.AF_INET6, 128
	}
	if s.Scheduler == "sh" || s.Scheduler == "mh" {
		// A chosen backend that drains is skipped (sh-fallback, mh-fallback).
		out.Flags |= flagFallback
	}
	if s.Persistent > 0 {
		out.Flags, out.Timeout = out.Flags|flagPersistent, uint32(s.Persistent.Seconds())
	}
	return out
}

// Servers implements Conn.
func (k *Kernel) Servers(context.Context) ([]Server, error) {
	list, err := k.handle.GetServices()
	if err != nil {
		return nil, fmt.Errorf("ipvs: list: %w", err)
	}
	var out []Server
	for _, s := range list {
		a, ok := netip.AddrFromSlice(s.Address)
		if s.FWMark != 0 || !ok {
			continue
		}
		x := Server{Key: Key{a.Unmap(), model.Protocol(s.Protocol), s.Port}, Scheduler: s.SchedName}
		if s.AddressFamily == unix.AF_INET6 {
			x.Addr = a
		}
		if s.Flags&flagPersistent != 0 {
			x.Persistent = time.Duration(s.Timeout) * time.Second
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Server) int { return a.Key.Compare(b.Key) })
	return out, nil
}

// SetServer implements Conn.
func (k *Kernel) SetServer(_ context.Context, s Server) error {
	err := k.handle.NewService(service(s))
	if errors.Is(err, unix.EEXIST) {
		err = k.handle.UpdateService(service(s))
	}
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("ipvs: %s: the kernel has no scheduler %q (try: modprobe ip_vs_%s): %w", s.Key, s.Scheduler,
			s.Scheduler, err)
	}
	return wrap(s.Key, err)
}

func wrap(k Key, err error) error {
	if err != nil {
		return fmt.Errorf("ipvs: %s: %w", k, err)
	}
	return nil
}

// gone drops errors that say that something does not exist.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// DelServer implements Conn.
func (k *Kernel) DelServer(_ context.Context, key Key) error {
	return wrap(key, gone(k.handle.DelService(service(Server{Key: key}))))
}

// Backends implements Conn.
func (k *Kernel) Backends(_ context.Context, key Key) ([]Backend, error) {
	list, err := k.handle.GetDestinations(service(Server{Key: key}))
	if gone(err) == nil && err != nil {
		return nil, nil
	}
	if err != nil {
		return nil, wrap(key, err)
	}
	var out []Backend
	for _, d := range list {
		a, _ := netip.AddrFromSlice(d.Address)
		if !key.Addr.Is6() {
			a = a.Unmap()
		}
		out = append(out, Backend{netip.AddrPortFrom(a, d.Port), d.Weight, d.ActiveConnections, d.ActiveConnections +
			d.InactiveConnections})
	}
	slices.SortFunc(out, func(a, b Backend) int { return a.At.Compare(b.At) })
	return out, nil
}

func destination(key Key, b Backend) *mobyipvs.Destination {
	out := &mobyipvs.Destination{Address: b.At.Addr().AsSlice(), Port: b.At.Port(), Weight: b.Weight,
		AddressFamily: unix.AF_INET}
	if key.Addr.Is6() {
		out.AddressFamily = unix.AF_INET6
	}
	return out
}

// SetBackend implements Conn.
func (k *Kernel) SetBackend(_ context.Context, key Key, b Backend) error {
	err := k.handle.NewDestination(service(Server{Key: key}), destination(key, b))
	if errors.Is(err, unix.EEXIST) {
		err = k.handle.UpdateDestination(service(Server{Key: key}), destination(key, b))
	}
	return wrap(key, err)
}

// DelBackend implements Conn.
func (k *Kernel) DelBackend(_ context.Context, key Key, at netip.AddrPort) error {
	return wrap(key, gone(k.handle.DelDestination(service(Server{Key: key}), destination(key, Backend{At: at}))))
}

func (k *Kernel) link(name string) (netlink.Link, bool, error) {
	l, err := k.links.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("link %s: %w", name, err)
	}
	return l, true, nil
}

// Addresses implements Conn.
func (k *Kernel) Addresses(_ context.Context, name string) (out []netip.Addr, made bool, err error) {
	l, made, err := k.link(name)
	if err != nil || !made {
		return nil, false, err
	}
	list, err := k.links.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, true, fmt.Errorf("addresses of %s: %w", name, err)
	}
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && !addr.Unmap().IsLinkLocalUnicast() {
			out = append(out, addr.Unmap())
		}
	}
	return out, true, nil
}

func hostAddr(a netip.Addr) *netlink.Addr {
	out := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
		Scope: unix.RT_SCOPE_HOST}
	if a.Is6() {
		out.Flags = unix.IFA_F_NODAD
	}
	return out
}

// SetAddress implements Conn.
func (k *Kernel) SetAddress(_ context.Context, name string, a netip.Addr) error {
	l, made, err := k.link(name)
	if err != nil {
		return err
	}
	if !made {
		l = &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name, Flags: net.FlagUp}}
		if err := k.links.LinkAdd(l); err != nil {
			return fmt.Errorf("link %s (a dummy, which is the module dummy): %w", name, err)
		}
		if err := k.links.LinkSetUp(l); err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	if a.Is6() {
		if err := kernellink.EnableIPv6(k.nsfd, k.Sysctl, name); err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	if err := k.links.AddrReplace(l, hostAddr(a)); err != nil {
		return fmt.Errorf("address %s on %s: %w", a, name, err)
	}
	return nil
}

// DelAddress implements Conn.
func (k *Kernel) DelAddress(_ context.Context, name string, a netip.Addr) error {
	l, made, err := k.link(name)
	if err != nil || !made {
		return err
	}
	if err := k.links.AddrDel(l, hostAddr(a)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("address %s on %s: %w", a, name, err)
	}
	return nil
}

// DelLink implements Conn.
func (k *Kernel) DelLink(_ context.Context, name string) error {
	l, made, err := k.link(name)
	if err != nil || !made {
		return err
	}
	if err := k.links.LinkDel(l); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return nil
}

// Local implements Conn. Addresses of scope link are left out.
func (k *Kernel) Local(_ context.Context, but string) (out []netip.Addr, err error) {
	links, err := k.links.LinkList()
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().Name == but || strings.HasPrefix(l.Attrs().Name, "kube-ipvs") {
			continue
		}
		list, err := k.links.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, a := range list {
			if addr, ok := netip.AddrFromSlice(a.IP); ok && !addr.Unmap().IsLinkLocalUnicast() {
				out = append(out, addr.Unmap())
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}
