package hostile

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
)

// HalfOpen sends n SYN segments over IPv4 to a listener, from random addresses and ports of a prefix, and never
// answers. No host may have the addresses, otherwise it resets the connections.
func HalfOpen(t testing.TB, ns *testnet.NS, from netip.Prefix, target netip.AddrPort, n int) {
	t.Helper()
	ns.Must(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("raw socket: %w", err)
		}
		defer unix.Close(fd)
		to := &unix.SockaddrInet4{Addr: target.Addr().As4()}
		for range n {
			if err := unix.Sendto(fd, syn(drawn(from), target), 0, to); err != nil && err != unix.ENOBUFS {
				return fmt.Errorf("send a SYN: %w", err)
			}
		}
		return nil
	})
}

// drawn returns a random address of an IPv4 prefix.
func drawn(p netip.Prefix) netip.Addr {
	a := binary.BigEndian.Uint32(p.Masked().Addr().AsSlice())
	a |= rand.Uint32() & (1<<(32-p.Bits()) - 1)
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, a)))
}

// syn returns a packet of 40 bytes; the kernel writes the checksum of its IP header.
func syn(from netip.Addr, to netip.AddrPort) []byte {
	b := make([]byte, 40)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	src, dst := from.As4(), to.Addr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	tcp := b[20:]
	binary.BigEndian.PutUint16(tcp, uint16(1024+rand.IntN(64000)))
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	binary.BigEndian.PutUint32(tcp[4:], rand.Uint32())
	tcp[12], tcp[13] = 5<<4, 0x02 // five words, SYN
	binary.BigEndian.PutUint16(tcp[14:], 64240)
	sum := uint32(unix.IPPROTO_TCP + len(tcp))
	for _, part := range [][]byte{b[12:20], tcp} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
	return b
}
