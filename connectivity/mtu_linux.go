package connectivity

import (
	"fmt"
	"net"
	"syscall"
)

// The bytes of a datagram's headers, without options.
const (
	headers4 = 20 + 8
	headers6 = 40 + 8
)

// noFragments has the kernel send datagrams whole, and refuse those that are larger than the path is known to be.
func noFragments(network, _ string, c syscall.RawConn) error {
	var set error
	err := c.Control(func(fd uintptr) {
		if network == "udp6" {
			set = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_MTU_DISCOVER,
				syscall.IPV6_PMTUDISC_DO)
			return
		}
		set = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_MTU_DISCOVER, syscall.IP_PMTUDISC_DO)
	})
	if err != nil {
		return err
	}
	return set
}

// largestDatagram is how many bytes fit in a packet of the path's MTU, as the kernel knows it.
func largestDatagram(c *net.UDPConn) (size int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var got error
	peer, _ := c.RemoteAddr().(*net.UDPAddr)
	err = raw.Control(func(fd uintptr) {
		if peer != nil && peer.IP.To4() == nil {
			size, got = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_MTU)
			size -= headers6
			return
		}
		size, got = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_MTU)
		size -= headers4
	})
	if err == nil {
		err = got
	}
	if err != nil {
		return 0, fmt.Errorf("MTU of the path: %w", err)
	}
	return min(size, maxDatagram-headers6), nil
}
