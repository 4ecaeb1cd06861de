// Package conntrack removes tracked flows to backends that no longer serve them.
//
// It removes UDP flows only. A TCP connection to a backend that has left the Service is for the backend to end; a UDP
// client would never notice.
package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Flow selects tracked UDP flows by destination and backend.
type Flow struct {
	// Dst is the address and port that the client uses; with an unspecified
	// address any address with that port.
	Dst netip.AddrPort
	// Backend is the address and port that the flow was translated to.
	Backend netip.AddrPort
}

// Flusher removes flows.
type Flusher interface {
	// Flush removes UDP flows that match one of the list, and of the destinations
	// in untranslated those that go to the destination itself. Other flows are not
	// touched.
	Flush(ctx context.Context, flows []Flow, untranslated []netip.AddrPort) error
	// FlushWhere removes the UDP flows for which stale is true: dst is where the client sends to, backend is where the
	// answers come from.
	FlushWhere(ctx context.Context, stale func(dst, backend netip.AddrPort) bool) error
}

// Kernel is the Flusher of a network namespace.
type Kernel struct{ handle *netlink.Handle }

var _ Flusher = (*Kernel)(nil)

// NewKernel makes a Flusher for the namespace of this process, or with a
// descriptor other than 0 for that one.
func NewKernel(nsfd int) (*Kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if nsfd != 0 {
		h, err = netlink.NewHandleAt(netns.NsHandle(nsfd), unix.NETLINK_NETFILTER)
	}
	if err != nil {
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	return &Kernel{h}, nil
}

// Flush implements Flusher. It reads the table once per family.
func (k *Kernel) Flush(_ context.Context, flows []Flow, untranslated []netip.AddrPort) error {
	var errs []error
	for _, is6 := range []bool{false, true} {
		f := filter{flows: map[Flow]bool{}, plain: map[netip.AddrPort]bool{}}
		for _, x := range flows {
			if x.Dst.Addr().Is6() == is6 {
				f.flows[x] = true
			}
		}
		for _, x := range untranslated {
			if x.Addr().Is6() == is6 {
				f.plain[x] = true
			}
		}
		if len(f.flows)+len(f.plain) == 0 {
			continue
		}
		family := netlink.InetFamily(unix.AF_INET)
		if is6 {
			family = unix.AF_INET6
		}
		if _, err := k.handle.ConntrackDeleteFilters(netlink.ConntrackTable, family, f); err != nil {
			errs = append(errs, fmt.Errorf("conntrack: %w", err))
		}
	}
	return errors.Join(errs...)
}

type filter struct {
	flows map[Flow]bool
	plain map[netip.AddrPort]bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f filter) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	dst, back, ok := udpFlow(c)
	if !ok {
		return false
	}
	any := netip.AddrPortFrom(netip.IPv4Unspecified(), dst.Port())
	if dst.Addr().Is6() {
		any = netip.AddrPortFrom(netip.IPv6Unspecified(), dst.Port())
	}
	if back == dst {
		return f.plain[dst] || f.plain[any]
	}
	return f.flows[Flow{dst, back}] || f.flows[Flow{any, back}]
}

// udpFlow returns where the client of a UDP flow sends to, and where the answers come from.
func udpFlow(c *netlink.ConntrackFlow) (dst, back netip.AddrPort, ok bool) {
	if c.Forward.Protocol != unix.IPPROTO_UDP {
		return dst, back, false
	}
	dst, ok = addrPort(c.Forward.DstIP, c.Forward.DstPort)
	back, ok2 := addrPort(c.Reverse.SrcIP, c.Reverse.SrcPort)
	return dst, back, ok && ok2
}

// where is a filter of flows by a function.
type where func(dst, backend netip.AddrPort) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (w where) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	dst, back, ok := udpFlow(c)
	return ok && w(dst, back)
}

// FlushWhere implements Flusher.
func (k *Kernel) FlushWhere(_ context.Context, stale func(dst, backend netip.AddrPort) bool) error {
	var errs []error
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := k.handle.ConntrackDeleteFilters(netlink.ConntrackTable, family, where(stale)); err != nil {
			errs = append(errs, fmt.Errorf("conntrack: %w", err))
		}
	}
	return errors.Join(errs...)
}

func addrPort(ip []byte, port uint16) (netip.AddrPort, bool) {
	a, ok := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port), ok
}

// Fake records what it was asked to flush.
type Fake struct {
	Flows        []Flow
	Untranslated []netip.AddrPort
	Err          error
}

var _ Flusher = (*Fake)(nil)

// Flush implements Flusher.
func (f *Fake) Flush(_ context.Context, flows []Flow, untranslated []netip.AddrPort) error {
	f.Flows = append(f.Flows, flows...)
	f.Untranslated = append(f.Untranslated, untranslated...)
	return f.Err
}

// FlushWhere implements Flusher: nothing is tracked.
func (f *Fake) FlushWhere(context.Context, func(dst, backend netip.AddrPort) bool) error {
	return f.Err
}
