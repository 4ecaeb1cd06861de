package l2

import (
	"encoding/binary"
	"net/netip"
)

const (
	ipv6Header = 40
	icmpV6     = 58
	// A solicitation and an advertisement are 24 bytes and options.
	ndpSize       = 24
	solicitation  = 135
	advertisement = 136

	flagSolicited = 0x40
	flagOverride  = 0x20

	optionSource = 1
	optionTarget = 2
)

// NDP is a neighbour solicitation or advertisement.
type NDP struct {
	Solicitation        bool // otherwise an advertisement
	Source, Destination netip.Addr
	Target              netip.Addr
	// MAC is the address in the message's option, otherwise the frame's sender.
	MAC MAC
	// Solicited is the flag of an advertisement.
	Solicited bool
}

// ParseNDP parses an Ethernet frame. It refuses everything that nodes must ignore by RFC 4861 7.1, and packets with
// extension headers (RFC 6980). It keeps nothing of the frame.
func ParseNDP(frame []byte) (NDP, bool) {
	if len(frame) < etherHeader+ipv6Header+ndpSize || binary.BigEndian.Uint16(frame[12:]) != etherIPv6 {
		return NDP{}, false
	}
	ip := frame[etherHeader:]
	size := int(binary.BigEndian.Uint16(ip[4:]))
	// A hop limit of 255 proves that no router has passed the packet on.
	if ip[0]>>4 != 6 || ip[6] != icmpV6 || ip[7] != 255 || size < ndpSize || size > len(ip)-ipv6Header {
		return NDP{}, false
	}
	p := ip[ipv6Header : ipv6Header+size]
	if p[1] != 0 || (p[0] != solicitation && p[0] != advertisement) || checksum(ip[8:40], p) != 0 {
		return NDP{}, false
	}
	n := NDP{
		Solicitation: p[0] == solicitation,
		Source:       netip.AddrFrom16([16]byte(ip[8:24])),
		Destination:  netip.AddrFrom16([16]byte(ip[24:40])),
		Target:       netip.AddrFrom16([16]byte(p[8:24])),
		Solicited:    p[0] == advertisement && p[4]&flagSolicited != 0,
		MAC:          MAC(frame[6:12]),
	}
	named, ok := n.options(p[ndpSize:])
	return n, ok && n.sane(named) && n.MAC.usable()
}

// options walks the options and returns the MAC address. A length of 0 is invalid: the walk would not end.
func (n *NDP) options(p []byte) (named, ok bool) {
	want := byte(optionTarget)
	if n.Solicitation {
		want = optionSource
	}
	for len(p) > 0 {
		if len(p) < 8 || p[1] == 0 || int(p[1])*8 > len(p) {
			return false, false
		}
		if p[0] == want && p[1] == 1 {
			n.MAC, named = MAC(p[2:8]), true
		}
		p = p[int(p[1])*8:]
	}
	return named, true
}

func (n *NDP) sane(named bool) bool {
	switch {
	case n.Target.IsMulticast() || n.Source.IsMulticast():
		return false
	case !n.Solicitation:
		return !(n.Destination.IsMulticast() && n.Solicited) && !n.Source.IsUnspecified()
	case n.Source.IsUnspecified():
		// Duplicate address detection: by the group only, and without a MAC.
		return n.Destination == solicitedNode(n.Target) && !named
	}
	return true
}

// solicitedNode is the group in which solicitations for an address are sent.
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

// checksum is ICMPv6's, over the pseudo header and the message: of a message that holds
// its right checksum it is 0.
func checksum(addrs, message []byte) uint16 {
	sum := uint32(len(message)) + icmpV6
	add := func(b []byte) {
		for ; len(b) > 1; b = b[2:] {
			sum += uint32(b[0])<<8 | uint32(b[1])
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	add(addrs)
	add(message)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// appendNDP makes a frame with the one option that names the sender's MAC.
func appendNDP(b []byte, kind, flags byte, from, to MAC, source, destination, target netip.Addr, option byte) []byte {
	start := len(b)
	size := ndpSize + 8
	b = append(b, to[:]...)
	b = append(b, from[:]...)
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(size), icmpV6, 255)
	s, d, t := source.As16(), destination.As16(), target.As16()
	b = append(b, s[:]...)
	b = append(b, d[:]...)
	b = append(b, kind, 0, 0, 0, flags, 0, 0, 0)
	b = append(b, t[:]...)
	b = append(b, option, 1)
	b = append(b, from[:]...)
	ip := b[start+etherHeader:]
	binary.BigEndian.PutUint16(ip[ipv6Header+2:], checksum(ip[8:40], ip[ipv6Header:]))
	return b
}

var everyNode = netip.MustParseAddr("ff02::1")

// ndpAnswer tells the sender that the target is at mac. Duplicate address detection has no address to reply to: all
// nodes are told, so the machine that wants the address gives it up.
func ndpAnswer(b []byte, q NDP, mac MAC) []byte {
	if q.Source.IsUnspecified() {
		return ndpAnnouncement(b, q.Target, mac)
	}
	return appendNDP(b, advertisement, flagSolicited|flagOverride, mac, q.MAC, q.Target, q.Source,
		q.Target, optionTarget)
}

// ndpAnnouncement is an unsolicited advertisement to all nodes, which overrides what they know.
func ndpAnnouncement(b []byte, addr netip.Addr, mac MAC) []byte {
	return appendNDP(b, advertisement, flagOverride, mac, allNodes, addr, everyNode, addr, optionTarget)
}

// ndpQuestion is a solicitation for the MAC of an address.
func ndpQuestion(b []byte, from, addr netip.Addr, mac MAC) []byte {
	group := solicitedNode(addr)
	g := group.As16()
	return appendNDP(b, solicitation, 0, mac, MAC{0x33, 0x33, g[12], g[13], g[14], g[15]}, from, group,
		addr, optionSource)
}
