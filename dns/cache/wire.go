package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
)

const (
	wireHeader = 12
	optRecord  = 11
	// maxName is the longest name on the wire; maxKey adds the type and bits.
	maxName = 255
	MaxKey  = maxName + 3
	// adBit is "authenticated data" in the fourth byte of a header.
	adBit = 0x20
)

// asked is the content of a usual query.
type asked struct {
	Key       int // length of the key
	End       int // of the question
	Size      int // of the reply, as requested by the client
	Recursion bool
	EDNS, Do  bool
}

// Parse parses a usual query and writes its key: the name in lower case, the type, and the bits DO and CD. It returns
// false for every unusual query.
func Parse(b []byte, key *[MaxKey]byte) (q asked, ok bool) {
	if len(b) < wireHeader+5 || b[2]&0xfe != 0 || b[3]&0x0f != 0 {
		return q, false // a reply, another opcode, truncated, or with a code
	}
	if binary.BigEndian.Uint32(b[4:]) != 1<<16 || b[8] != 0 || b[9] != 0 || b[10] != 0 || b[11] > 1 {
		return q, false
	}
	q.Recursion = b[2]&0x01 != 0
	n, ok := lowerName(b, key)
	if !ok || wireHeader+n+4 > len(b) {
		return q, false
	}
	q.End = wireHeader + n + 4
	if b[q.End-2] != 0 || b[q.End-1] != dns.ClassINET {
		return q, false
	}
	copy(key[n:], b[q.End-4:q.End-2])
	q.Size = dns.MinMsgSize
	if b[11] == 1 {
		if !q.option(b[q.End:]) {
			return q, false
		}
	} else if len(b) != q.End {
		return q, false
	}
	key[n+2] = keyBits(q.Do, b[3]&0x10 != 0)
	q.Key = n + 3
	return q, true
}

// option parses the only record that a query may have: OPT of version 0.
func (q *asked) option(b []byte) bool {
	if len(b) < optRecord || b[0] != 0 || binary.BigEndian.Uint16(b[1:]) != dns.TypeOPT || b[6] != 0 {
		return false
	}
	if len(b) != optRecord+int(binary.BigEndian.Uint16(b[9:])) || !wire.WholeOptions(b[optRecord:]) {
		return false
	}
	q.EDNS, q.Size, q.Do = true, int(binary.BigEndian.Uint16(b[3:])), b[7]&0x80 != 0
	return true
}

// lowerName copies the name of the question in lower case, and returns its length including the root.
func lowerName(b []byte, to *[MaxKey]byte) (int, bool) {
	for at := wireHeader; at < len(b); {
		n := int(b[at])
		next := at + 1 + n
		if n > 63 || next > len(b) || next-wireHeader > maxName {
			return 0, false
		}
		to[at-wireHeader] = b[at]
		if n == 0 {
			return next - wireHeader, true
		}
		for i := at + 1; i < next; i++ {
			c := b[i]
			if c >= 'A' && c <= 'Z' {
				c += 'a' - 'A'
			}
			to[i-wireHeader] = c
		}
		at = next
	}
	return 0, false
}

func keyBits(do, cd bool) (bits byte) {
	if do {
		bits |= 1
	}
	if cd {
		bits |= 2
	}
	return bits
}

// KeyOf returns the key of a message's question.
func KeyOf(q *dns.Msg) ([]byte, error) {
	b := make([]byte, MaxKey)
	n, err := dns.PackDomainName(strings.ToLower(q.Question[0].Name), b[:maxName], 0, nil, false)
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint16(b[n:], q.Question[0].Qtype)
	opt := q.IsEdns0()
	b[n+2] = keyBits(opt != nil && opt.Do(), q.CheckingDisabled)
	return b[:n+3], nil
}

// QuestionOf returns the query of a key.
func QuestionOf(key []byte) (*dns.Msg, error) {
	if len(key) < 3 {
		return nil, errors.New("no key")
	}
	end := len(key) - 3
	name, n, err := dns.UnpackDomainName(key[:end], 0)
	if err != nil || n != end {
		return nil, fmt.Errorf("no name in a key: %w", err)
	}
	q := new(dns.Msg).SetQuestion(name, binary.BigEndian.Uint16(key[end:]))
	q.CheckingDisabled = key[end+2]&2 != 0
	q.SetEdns0(wire.MaxUDP, key[end+2]&1 != 0)
	return q, nil
}

// lifetime returns how long a reply may be cached, and whether it is a denial: the smallest TTL of its answers, or the
// SOA's value (RFC 2308, 5). It is 0 for failures and for denials without SOA.
func lifetime(m *dns.Msg, l *schema.CacheLimits) (life time.Duration, denial bool) {
	if m.Truncated || len(m.Question) != 1 || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0, false
	}
	qtype := m.Question[0].Qtype
	denial = true
	least := uint32(1<<31 - 1)
	for _, rr := range m.Answer {
		if t := rr.Header().Rrtype; t == qtype || qtype == dns.TypeANY {
			denial = false
		}
		least = min(least, ttlOf(rr))
	}
	denial = denial || m.Rcode == dns.RcodeNameError
	if !denial {
		return min(time.Duration(least)*time.Second, l.TTL), false
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			least = min(least, ttlOf(rr), soa.Minttl)
			return min(time.Duration(least)*time.Second, l.NegativeTTL), true
		}
	}
	return 0, true
}

// ttlOf returns a record's TTL; one with the highest bit set is 0 (RFC 2181, 8).
func ttlOf(rr dns.RR) uint32 {
	if ttl := rr.Header().Ttl; ttl < 1<<31 {
		return ttl
	}
	return 0
}

// wireOf packs a reply for the cache, and returns the offsets of its TTLs. TTLs are cut to the limit, so that no client
// keeps a wrong answer longer than the cache does.
func wireOf(m *dns.Msg, life uint32, denial bool, l *schema.CacheLimits) (wire []byte, ttls []uint16, ok bool) {
	most := uint32(l.TTL / time.Second)
	if denial {
		most = life
	}
	c := m.Copy()
	c.Id, c.Response, c.RecursionAvailable, c.Compress = 0, true, true, true
	c.Authoritative, c.CheckingDisabled, c.RecursionDesired, c.Zero = false, false, false, false
	c.Extra = withoutOPT(c.Extra)
	for _, section := range [][]dns.RR{c.Answer, c.Ns, c.Extra} {
		for _, rr := range section {
			rr.Header().Ttl = min(ttlOf(rr), most)
		}
	}
	wire, err := c.Pack()
	if err != nil {
		return nil, nil, false
	}
	ttls, ok = ttlOffsets(wire)
	return append([]byte(nil), wire...), ttls, ok
}

func withoutOPT(list []dns.RR) []dns.RR {
	var out []dns.RR
	for _, rr := range list {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, rr)
		}
	}
	return out
}

// ttlOffsets finds the TTLs of a message that this package packed.
func ttlOffsets(b []byte) ([]uint16, bool) {
	at := wireHeader
	var ok bool
	if at, ok = skipName(b, at); !ok {
		return nil, false
	}
	at += 4
	var out []uint16
	for at < len(b) {
		if at, ok = skipName(b, at); !ok || at+10 > len(b) {
			return nil, false
		}
		out = append(out, uint16(at+4))
		at += 10 + int(binary.BigEndian.Uint16(b[at+8:]))
	}
	return out, at == len(b)
}

// set is a run of records of one name with addresses of one family: n records of each bytes, the first at offset at.
type set struct{ at, each, n uint16 }

// setsOf finds the sets of two and more in the answers of a message that this package packed. All names in one are
// pointers to the same name, so records can be exchanged.
func setsOf(raw []byte, ttls []uint16) (out []set) {
	ttls = ttls[:min(len(ttls), int(binary.BigEndian.Uint16(raw[wire.Answers:])))]
	var last set
	flush := func() {
		if last.n > 1 {
			out = append(out, last)
		}
		last = set{}
	}
	end, _ := skipName(raw, wireHeader)
	end += 4
	for _, ttl := range ttls {
		at := uint16(end)
		end = int(ttl) + 6 + int(binary.BigEndian.Uint16(raw[ttl+4:]))
		rrtype := binary.BigEndian.Uint16(raw[ttl-4:])
		if ttl-at != 6 || raw[at] < 0xc0 || rrtype != dns.TypeA && rrtype != dns.TypeAAAA {
			flush()
			continue
		}
		each := uint16(end) - at
		if last.n > 0 && (each != last.each || string(raw[at:ttl]) != string(raw[last.at:last.at+6])) {
			flush()
		}
		if last.n == 0 {
			last.at, last.each = at, each
		}
		last.n++
	}
	flush()
	return out
}

func skipName(b []byte, at int) (int, bool) {
	for at < len(b) {
		switch n := int(b[at]); {
		case n == 0:
			return at + 1, true
		case n >= 0xc0:
			return at + 2, at+2 <= len(b)
		default:
			at += 1 + n
		}
	}
	return 0, false
}
