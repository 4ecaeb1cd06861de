package mtu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// closedPort is one that nobody should listen on.
const closedPort = 65533

// Refused sends a UDP datagram to a closed port, by a link or ("") any, and says
// whether the other kernel answered that it is closed: it does so only when the
// checksum is right. Kernels limit such answers to one a second or so.
func (k Kernel) Refused(ctx context.Context, from, to netip.Addr, link string) (refused bool, err error) {
	err = k.Inside(func() error {
		fd, err := socket(from, link)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		err = unix.Sendto(fd, []byte("wayleave: is the checksum right?"), 0, address(to, closedPort))
		if err != nil {
			if unreachable(err) {
				return nil
			}
			return fmt.Errorf("UDP to %s: %w", to, err)
		}
		for deadline := time.Now().Add(k.Wait); time.Now().Before(deadline) && ctx.Err() == nil; {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}},
				int(time.Until(deadline).Milliseconds())+1)
			if _, err := unix.Read(fd, make([]byte, 64)); errors.Is(err, unix.ECONNREFUSED) {
				refused = true
				return nil
			}
		}
		return ctx.Err()
	})
	return refused, err
}

// socket sends by a link, and hears of errors whichever way they come: it is not
// bound to the link, as the answer may take another one.
func socket(from netip.Addr, link string) (fd int, err error) {
	family, level, recvErr := unix.AF_INET, unix.IPPROTO_IP, unix.IP_RECVERR
	if from.Is6() {
		family, level, recvErr = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("UDP socket: %w", err)
	}
	err = errors.Join(unix.SetsockoptInt(fd, level, recvErr, 1), unix.Bind(fd, address(from, 0)))
	if link != "" && err == nil {
		err = sendBy(fd, from.Is6(), link)
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("UDP socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// sendBy has a socket send by a link, and take packets from all.
func sendBy(fd int, is6 bool, link string) error {
	l, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	level, option := unix.IPPROTO_IP, ipUnicastIf
	if is6 {
		level, option = unix.IPPROTO_IPV6, ipv6UnicastIf
	}
	index := binary.BigEndian.AppendUint32(nil, uint32(l.Index))
	return unix.SetsockoptInt(fd, level, option, int(binary.NativeEndian.Uint32(index)))
}

// Socket options of linux/in.h and linux/in6.h.
const (
	ipUnicastIf   = 50
	ipv6UnicastIf = 76
)

// pause lets the other kernel's allowance for ICMP errors refill: one a second
// (icmp_ratelimit).
const pause = 1100 * time.Millisecond

// Spoiled says whether checksums are wrong behind a tunnel: the same datagram is
// answered outside of it, again and again, and never inside.
func (k Kernel) Spoiled(ctx context.Context, from, to netip.Addr, tunnel string) (bool, error) {
	if ok, err := k.Refused(ctx, from, to, tunnel); ok || err != nil {
		return false, err
	}
	for range tries {
		for _, link := range []string{tunnel, ""} {
			select {
			case <-ctx.Done():
				return false, ctx.Err()
			case <-time.After(pause):
			}
			ok, err := k.Refused(ctx, from, to, link)
			if err != nil || ok == (link == tunnel) {
				return false, err // fine, or not to be known
			}
		}
	}
	return true, nil
}
