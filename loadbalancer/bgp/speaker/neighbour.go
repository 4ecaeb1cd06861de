package speaker

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/link"
)

// canSign reports why this kernel has no TCP MD5 signatures (RFC 2385), or nil.
func canSign() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("password: %w", err)
	}
	defer unix.Close(fd)
	sig := &unix.TCPMD5Sig{Keylen: 1, Key: [80]uint8{'x'}}
	sig.Addr.Family = unix.AF_INET
	sig.Addr.Data[2] = 127 // any address
	if err := unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, sig); err != nil {
		return fmt.Errorf("password: this kernel has no TCP MD5 signatures: %w", err)
	}
	return nil
}

// neighbour returns the only link-local neighbour of an interface, with its zone. The kernel learns neighbours from
// router advertisements and from packets between the two.
func neighbour(name string) (netip.Addr, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("interface %s: %w", name, err)
	}
	list, err := link.LinkLocalNeighbours(i.Index)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("neighbours of interface %s: %w", name, err)
	}
	if len(list) != 1 {
		return netip.Addr{}, fmt.Errorf("interface %s has %d link-local neighbours that are routers or known to the "+
			"kernel; a session needs exactly one", name, len(list))
	}
	return list[0].WithZone(name), nil
}
