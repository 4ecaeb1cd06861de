package l2

import (
	"encoding/binary"
	"net/netip"
)

// MAC is an Ethernet address.
type MAC [6]byte

// usable reports whether frames can be sent to the address of one machine.
func (m MAC) usable() bool { return m[0]&1 == 0 && m != MAC{} }

var (
	broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes  = MAC{0x33, 0x33, 0, 0, 0, 1}
)

const (
	etherARP    = 0x0806
	etherIPv6   = 0x86dd
	etherHeader = 14

	arpSize    = 28
	arpRequest = 1
	arpReply   = 2
)

// ARP is an ARP packet for IPv4 over Ethernet.
type ARP struct {
	Request            bool // otherwise a reply
	SenderMAC          MAC
	SenderIP, TargetIP netip.Addr
}

// ParseARP parses an Ethernet frame. It refuses everything but a complete, valid ARP packet for IPv4, and keeps
// nothing of the frame.
func ParseARP(frame []byte) (ARP, bool) {
	if len(frame) < etherHeader+arpSize || binary.BigEndian.Uint16(frame[12:]) != etherARP {
		return ARP{}, false
	}
	p := frame[etherHeader:]
	op := binary.BigEndian.Uint16(p[6:])
	// Hardware Ethernet, protocol IPv4, with addresses of 6 and 4 bytes.
	if binary.BigEndian.Uint64(p)>>16 != 0x0001_0800_0604 || (op != arpRequest && op != arpReply) {
		return ARP{}, false
	}
	a := ARP{
		Request:   op == arpRequest,
		SenderMAC: MAC(p[8:14]),
		SenderIP:  netip.AddrFrom4([4]byte(p[14:18])),
		TargetIP:  netip.AddrFrom4([4]byte(p[24:28])),
	}
	return a, a.SenderMAC.usable()
}

// appendARP makes a frame.
func appendARP(b []byte, op uint16, from, to MAC, sender netip.Addr, target netip.Addr, targetMAC MAC) []byte {
	b = append(b, to[:]...)
	b = append(b, from[:]...)
	b = append(b, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, byte(op))
	b = append(b, from[:]...)
	s, t := sender.As4(), target.As4()
	b = append(b, s[:]...)
	b = append(b, targetMAC[:]...)
	b = append(b, t[:]...)
	return pad(b)
}

// pad extends a frame to Ethernet's minimum, without the checksum.
func pad(b []byte) []byte {
	for len(b) < 60 {
		b = append(b, 0)
	}
	return b
}

// arpAnswer tells the sender that addr is at mac. A probe (RFC 5227, sender 0.0.0.0) gets the same answer, so a
// machine that wants the address learns that it is in use.
func arpAnswer(b []byte, q ARP, mac MAC) []byte {
	return appendARP(b, arpReply, mac, q.SenderMAC, q.TargetIP, q.SenderIP, q.SenderMAC)
}

// arpAnnouncements returns both forms of gratuitous ARP: some hosts and switches process only requests, some only
// replies.
func arpAnnouncements(b []byte, addr netip.Addr, mac MAC) (request, reply []byte) {
	request = appendARP(b, arpRequest, mac, broadcast, addr, addr, MAC{})
	return request, appendARP(nil, arpReply, mac, broadcast, addr, addr, broadcast)
}
