package dns

import (
	"encoding/binary"
	"strings"

	"github.com/miekg/dns"
)

// headerLen is the length of a message's header; the question stands behind it.
const headerLen = 12

// question is what the hot path knows of a query. It is used again and again, so
// that reading a query allocates nothing.
type question struct {
	// name is the asked name in wire form with the root, in lower case.
	name []byte
	// starts are the offsets of its labels.
	starts []uint8
	qtype  uint16
	// end is the offset behind the question in the datagram.
	end int
	// edns says that the query has an OPT record, dnssec that its DO bit is set.
	edns, dnssec bool
	// recursion is the bit RD.
	recursion bool
	// size is the longest answer that the client takes.
	size int

	nameBuf  [256]byte
	startBuf [128]uint8
}

// read parses a query of the usual form: one question of class IN with a name of
// plain labels, and nothing behind it but an OPT record of version 0. False is
// anything else, right or wrong, which the slow path looks into.
func (q *question) read(b []byte) bool {
	if len(b) < headerLen+5 {
		return false
	}
	// Not a reply, a plain query, not truncated.
	if b[2]&0xfa != 0 || binary.BigEndian.Uint16(b[4:]) != 1 || binary.BigEndian.Uint32(b[6:]) != 0 {
		return false
	}
	if !q.readName(b) || len(b) < q.end+4 {
		return false
	}
	q.qtype = binary.BigEndian.Uint16(b[q.end:])
	if binary.BigEndian.Uint16(b[q.end+2:]) != dns.ClassINET {
		return false
	}
	q.end += 4
	q.recursion = b[2]&0x01 != 0
	q.edns, q.dnssec, q.size = false, false, dns.MinMsgSize
	switch binary.BigEndian.Uint16(b[10:]) {
	case 0:
		return len(b) == q.end
	case 1:
		return q.readOPT(b[q.end:])
	}
	return false
}

func (q *question) readName(b []byte) bool {
	q.starts = q.startBuf[:0]
	at := headerLen
	for {
		if at >= len(b) || at-headerLen > 254 {
			return false
		}
		n := int(b[at])
		if n == 0 {
			break
		}
		if n > 63 || len(q.starts) == cap(q.starts) {
			return false
		}
		q.starts = append(q.starts, uint8(at-headerLen))
		at += 1 + n
	}
	at++
	q.end = at
	q.name = q.nameBuf[:at-headerLen]
	for i, c := range b[headerLen:at] {
		if 'A' <= c && c <= 'Z' { // no length of a label is a letter
			c += 'a' - 'A'
		}
		q.name[i] = c
	}
	return true
}

// readOPT reads the record behind the question (RFC 6891).
func (q *question) readOPT(b []byte) bool {
	if len(b) < 11 || b[0] != 0 || binary.BigEndian.Uint16(b[1:]) != dns.TypeOPT || b[5] != 0 || b[6] != 0 {
		return false
	}
	if int(binary.BigEndian.Uint16(b[9:])) != len(b)-11 || !wholeOptions(b[11:]) {
		return false
	}
	q.edns, q.dnssec = true, b[7]&0x80 != 0
	q.size = min(max(int(binary.BigEndian.Uint16(b[3:])), dns.MinMsgSize), maxUDP)
	return true
}

// wholeOptions says that EDNS0's options end where their record does. What is in them is
// not looked at: options that a server does not know are ignored (RFC 6891, 6.1.2).
func wholeOptions(b []byte) bool {
	for len(b) >= 4 {
		n := 4 + int(binary.BigEndian.Uint16(b[2:]))
		if n > len(b) {
			return false
		}
		b = b[n:]
	}
	return len(b) == 0
}

// below says at what offset of the name the domain begins, when the name is it or
// below it.
func (q *question) below(d *wireDomain) (int, bool) {
	if len(q.starts) < d.labels {
		return 0, false
	}
	at := len(q.name) - len(d.name)
	if first := len(q.starts) - d.labels; first < len(q.starts) && int(q.starts[first]) != at {
		return 0, false
	}
	return at, at >= 0 && string(q.name[at:]) == d.name
}

// wireDomain is a cluster domain.
type wireDomain struct {
	name   string // wire form with the root, in lower case
	labels int
}

// toWire is the wire form, without the root, of a name with or without a final
// dot; false when it is no name.
func toWire(text string) (string, bool) {
	var buf [256]byte
	n, err := dns.PackDomainName(dns.Fqdn(text), buf[:], 0, nil, false)
	if err != nil || n < 2 {
		return "", false
	}
	return string(buf[:n-1]), true
}

// fromWire is the text of a wire form without the root, with no final dot.
func fromWire(wire string) string {
	text, _, err := dns.UnpackDomainName(append([]byte(wire), 0), 0)
	if err != nil {
		return ""
	}
	return text[:len(text)-1]
}

// wireDomains are the domains as the hot path takes them; one that is no name is left out.
func wireDomains(list []string) []wireDomain {
	var out []wireDomain
	for _, text := range list {
		if wire, ok := toWire(text); ok {
			out = append(out, wireDomain{name: strings.ToLower(wire) + "\x00", labels: dns.CountLabel(text)})
		}
	}
	return out
}
