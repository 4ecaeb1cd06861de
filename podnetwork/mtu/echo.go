package mtu

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Kernel pings from a network namespace.
type Kernel struct {
	// Inside runs a function in the namespace.
	Inside func(func() error) error
	// Wait is how long an answer may take.
	Wait time.Duration
}

var _ Pinger = Kernel{}

// errTooBig says that the packet does not even fit into the own link.
var errTooBig = errors.New("larger than the link's MTU")

// Ping implements Pinger. The socket is connected, so that the kernel passes only
// what the other node sends, and it is read for no more than our own bytes.
func (k Kernel) Ping(ctx context.Context, from, to netip.Addr, size int) (ok bool, err error) {
	return k.ping(ctx, from, to, size, "")
}

// Carries says whether small packets reach an address by a tunnel. The answer may come another way.
func (k Kernel) Carries(ctx context.Context, from, to netip.Addr, tunnel string) (bool, error) {
	for range tries {
		ok, err := k.ping(ctx, from, to, small, tunnel)
		if ok || err != nil {
			return ok, err
		}
	}
	return false, ctx.Err()
}

// ping sends by a link, or ("") by any.
func (k Kernel) ping(ctx context.Context, from, to netip.Addr, size int, link string) (ok bool, err error) {
	err = k.Inside(func() error {
		fd, err := open(from, to, link)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		request := make([]byte, size-header(to))
		request[0] = 8
		if to.Is6() {
			request[0] = 128 // the kernel sets the checksum
		}
		if _, err := rand.Read(request[4:24]); err != nil {
			return err
		}
		if to.Is4() {
			binary.BigEndian.PutUint16(request[2:], checksum(request))
		}
		if _, err := unix.Write(fd, request); err != nil {
			if errors.Is(err, unix.EMSGSIZE) {
				return errTooBig
			}
			if unreachable(err) {
				return nil
			}
			return fmt.Errorf("ping %s: %w", to, err)
		}
		ok, err = k.answer(ctx, fd, request, to)
		return err
	})
	return ok, err
}

// header is the length of the IP header.
func header(a netip.Addr) int {
	if a.Is6() {
		return 40
	}
	return 20
}

func open(from, to netip.Addr, link string) (fd int, err error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if to.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return -1, fmt.Errorf("ICMP socket: %w", err)
	}
	if to.Is6() {
		err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
	} else {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	}
	if from.IsValid() && err == nil {
		err = unix.Bind(fd, address(from, 0))
	}
	if link != "" && err == nil {
		err = sendBy(fd, to.Is6(), link)
	}
	if err == nil {
		err = unix.Connect(fd, address(to, 0))
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("ICMP socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func address(a netip.Addr, port int) unix.Sockaddr {
	if a.Is6() {
		return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
	}
	return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
}

func unreachable(err error) bool {
	for _, e := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EHOSTDOWN, unix.ECONNREFUSED, unix.EPERM,
		unix.EACCES} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// answer waits for the reply that carries our own bytes back.
func (k Kernel) answer(ctx context.Context, fd int, request []byte, to netip.Addr) (bool, error) {
	deadline := time.Now().Add(k.Wait)
	reply := byte(0)
	if to.Is6() {
		reply = 129
	}
	buf := make([]byte, 65536)
	for ctx.Err() == nil {
		left := time.Until(deadline)
		if left <= 0 {
			return false, nil
		}
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+
			1); err != nil && !errors.Is(err, unix.EINTR) {
			return false, fmt.Errorf("ping %s: %w", to, err)
		}
		n, err := unix.Read(fd, buf)
		if err != nil || n <= 0 {
			continue // an ICMP error of a router, or nothing yet
		}
		got := buf[:n]
		if to.Is4() { // with the IP header
			if length := int(got[0]&15) * 4; length >= 20 && length < n {
				got = got[length:]
			}
		}
		if len(got) == len(request) && got[0] == reply && bytes.Equal(got[4:], request[4:]) {
			return true, nil
		}
	}
	return false, ctx.Err()
}

// checksum is the Internet's (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
