package process

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// checksummed is a tun device whose UDP packets over IPv6 all have a checksum. The kernel leaves checksums to the
// reader of the device, and the library writes a computed sum of zero as it is: in IPv6 that is forbidden, and the
// receiver drops one packet of 65,536 (RFC 8200, section 8.1).
type checksummed struct{ tun.Device }

// Read implements tun.Device.
func (c checksummed) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := c.Device.Read(bufs, sizes, offset)
	for i := range n {
		fill(bufs[i][offset : offset+sizes[i]])
	}
	return n, err
}

// Offsets in a packet of IPv6 without extension headers.
const (
	nextHeader = 6
	udpSum     = 40 + 6
)

// fill writes the sum that stands for zero.
func fill(packet []byte) {
	if len(packet) >= udpSum+2 && packet[0]>>4 == 6 && packet[nextHeader] == unix.IPPROTO_UDP &&
		binary.BigEndian.Uint16(packet[udpSum:]) == 0 {
		binary.BigEndian.PutUint16(packet[udpSum:], 0xffff)
	}
}
