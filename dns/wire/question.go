package wire

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// HeaderLen is the length of a message's header; the question follows it.
const HeaderLen = 12

// MaxUDP is the largest datagram that crosses any network unfragmented (DNS flag day).
const MaxUDP = 1232

// Offsets of the counts in the header.
const (
	Answers   = 6
	Authority = 8
	Extra     = 10
)

// Question is what the hot path knows about a query. It is reused, so that parsing a query allocates nothing.
type Question struct {
	// Name is the queried name in wire form with the root, in lower case.
	Name []byte
	// Starts are the offsets of its labels.
	Starts []uint8
	Qtype  uint16
	// End is the offset of the first byte after the question in the datagram.
	End int
	// EDNS means that the query has an OPT record, dnssec that its DO bit is set.
	EDNS, DNSSEC bool
	// Recursion is the bit RD.
	Recursion bool
	// Size is the longest answer that the client accepts.
	Size int

	nameBuf  [256]byte
	startBuf [128]uint8
}

// Read parses a query of the usual form: one question of class IN with a name of plain labels, followed by nothing but
// an OPT record of version 0. It returns false for anything else, valid or not, which the slow path handles.
func (q *Question) Read(b []byte) bool {
	if len(b) < HeaderLen+5 {
		return false
	}
	// Not a reply, a plain query, not truncated.
	if b[2]&0xfa != 0 || binary.BigEndian.Uint16(b[4:]) != 1 || binary.BigEndian.Uint32(b[6:]) != 0 {
		return false
	}
	if !q.readName(b) || len(b) < q.End+4 {
		return false
	}
	q.Qtype = binary.BigEndian.Uint16(b[q.End:])
	if binary.BigEndian.Uint16(b[q.End+2:]) != dns.ClassINET {
		return false
	}
	q.End += 4
	q.Recursion = b[2]&0x01 != 0
	q.EDNS, q.DNSSEC, q.Size = false, false, dns.MinMsgSize
	switch binary.BigEndian.Uint16(b[10:]) {
	case 0:
		return len(b) == q.End
	case 1:
		return q.readOPT(b[q.End:])
	}
	return false
}

func (q *Question) readName(b []byte) bool {
	q.Starts = q.startBuf[:0]
	at := HeaderLen
	for {
		if at >= len(b) || at-HeaderLen > 254 {
			return false
		}
		n := int(b[at])
		if n == 0 {
			break
		}
		if n > 63 || len(q.Starts) == cap(q.Starts) {
			return false
		}
		q.Starts = append(q.Starts, uint8(at-HeaderLen))
		at += 1 + n
	}
	at++
	q.End = at
	q.Name = q.nameBuf[:at-HeaderLen]
	for i, c := range b[HeaderLen:at] {
		if 'A' <= c && c <= 'Z' { // the length of a label is never a letter
			c += 'a' - 'A'
		}
		q.Name[i] = c
	}
	return true
}

// readOPT parses the record after the question (RFC 6891).
func (q *Question) readOPT(b []byte) bool {
	if len(b) < 11 || b[0] != 0 || binary.BigEndian.Uint16(b[1:]) != dns.TypeOPT || b[5] != 0 || b[6] != 0 {
		return false
	}
	if int(binary.BigEndian.Uint16(b[9:])) != len(b)-11 || !WholeOptions(b[11:]) {
		return false
	}
	q.EDNS, q.DNSSEC = true, b[7]&0x80 != 0
	q.Size = min(max(int(binary.BigEndian.Uint16(b[3:])), dns.MinMsgSize), MaxUDP)
	return true
}

// WholeOptions reports whether EDNS0's options end where their record does. Their content is ignored, because servers
// ignore unknown options (RFC 6891, 6.1.2).
func WholeOptions(b []byte) bool {
	for len(b) >= 4 {
		n := 4 + int(binary.BigEndian.Uint16(b[2:]))
		if n > len(b) {
			return false
		}
		b = b[n:]
	}
	return len(b) == 0
}

// Below returns the offset at which the domain begins in the name, if the name is the domain or below it.
func (q *Question) Below(d *Domain) (int, bool) {
	if len(q.Starts) < d.Labels {
		return 0, false
	}
	at := len(q.Name) - len(d.Name)
	if first := len(q.Starts) - d.Labels; first < len(q.Starts) && int(q.Starts[first]) != at {
		return 0, false
	}
	return at, at >= 0 && string(q.Name[at:]) == d.Name
}

// Domain is a cluster domain.
type Domain struct {
	Name   string // wire form with the root, in lower case
	Labels int
}

// FromText returns the wire form, without the root, of a name with or without a final dot; false if it is invalid.
func FromText(text string) (string, bool) {
	var buf [256]byte
	n, err := dns.PackDomainName(dns.Fqdn(text), buf[:], 0, nil, false)
	if err != nil || n < 2 {
		return "", false
	}
	return string(buf[:n-1]), true
}

// ToText returns the text of a wire form without the root, without a final dot.
func ToText(wire string) string {
	text, _, err := dns.UnpackDomainName(append([]byte(wire), 0), 0)
	if err != nil {
		return ""
	}
	return text[:len(text)-1]
}

// Domains returns the domains in the hot path's form; invalid names are left out.
func Domains(list []string) []Domain {
	var out []Domain
	for _, text := range list {
		if wire, ok := FromText(text); ok {
			out = append(out, Domain{Name: strings.ToLower(wire) + "\x00", Labels: dns.CountLabel(text)})
		}
	}
	return out
}

// Reverse returns the address of a name below in-addr.arpa or ip6.arpa.
func (q *Question) Reverse() (netip.Addr, bool) {
	const v4, v6 = "\x07in-addr\x04arpa\x00", "\x03ip6\x04arpa\x00"
	switch {
	case len(q.Starts) == 6 && string(q.Name[q.Starts[4]:]) == v4:
		var a [4]byte
		for i := range a {
			label := q.Name[int(q.Starts[3-i])+1:]
			n, ok := decimal(label[:q.Name[q.Starts[3-i]]])
			if !ok {
				return netip.Addr{}, false
			}
			a[i] = n
		}
		return netip.AddrFrom4(a), true
	case len(q.Starts) == 34 && len(q.Name) == 64+len(v6) && string(q.Name[64:]) == v6:
		var a [16]byte
		for i := range a {
			low, high := hexDigit(q.Name[63-4*i-2]), hexDigit(q.Name[63-4*i])
			if low > 15 || high > 15 {
				return netip.Addr{}, false
			}
			a[i] = high<<4 | low
		}
		return netip.AddrFrom16(a), true
	}
	return netip.Addr{}, false
}

// decimal parses a number of 0 to 255, without leading zeros.
func decimal(b []byte) (byte, bool) {
	if len(b) == 0 || len(b) > 3 || (b[0] == '0' && len(b) > 1) {
		return 0, false
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return byte(n), n < 256
}

// hexDigit returns the value of a digit in lower case, or 255.
func hexDigit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}
