package process

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// source opens connections to endpoints from the addresses by which policies identify the proxy. Its methods may be
// called concurrently.
type source struct {
	addrs atomic.Pointer[[]netip.Addr]
	// node allows subrequests from the node's own address if no other is known.
	node atomic.Bool
}

// set replaces the addresses, at most one per family.
func (s *source) set(addrs []netip.Addr) {
	addrs = slices.Clone(addrs)
	s.addrs.Store(&addrs)
}

// of returns the source address for a destination; the zero Addr if there is none of its family.
func (s *source) of(to string) netip.Addr {
	list := s.addrs.Load()
	ap, err := netip.ParseAddrPort(to)
	if list == nil || err != nil {
		return netip.Addr{}
	}
	for _, a := range *list {
		if a.Is4() == ap.Addr().Unmap().Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// dial connects. If the address is not on the node, or all of its ports are in use, it connects from the node's
// address: policies may deny that, but nothing else prevents it.
func (s *source) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: 30 * time.Second}
	if from := s.of(addr); from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		c, err := d.DialContext(ctx, network, addr)
		if err == nil || !errors.Is(err, unix.EADDRNOTAVAIL) {
			return c, err
		}
		d.LocalAddr = nil
	}
	return d.DialContext(ctx, network, addr)
}

// errNoSource: the node's own address passes policies that would deny the proxy's.
var errNoSource = errors.New("the proxy has no address in this family yet, so policies could not apply")

// ask connects for a subrequest to an authentication server. An Ingress's author chooses its URL, so the request is
// sent from the address that policies know, or not at all.
func (s *source) ask(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: 30 * time.Second}
	from := s.of(addr)
	switch {
	case from.IsValid():
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	case !s.node.Load():
		return nil, errNoSource
	}
	return d.DialContext(ctx, network, addr)
}
