package zone

import (
	"encoding/binary"
	"net/netip"

	"github.com/miekg/dns"

	"wayleave.dev/dns/wire"
)

// The hot path: answers for cluster names from prebuilt bytes. A record's owner is a pointer to the question, so one
// set of bytes serves every domain, and the letter case of the question is kept.

// Lengths of records with a pointer as owner.
const (
	recordHead = 12 // pointer, type, class, TTL, length
	v4Len      = recordHead + 4
	v6Len      = recordHead + 16
	optLen     = 11
)

// ownerIsQuestion is the pointer to the name in the question.
const ownerIsQuestion = 0xc000 | wire.HeaderLen

// addrRecords are the records of the addresses of one family.
func addrRecords(addrs []netip.Addr, rrtype uint16) []byte {
	n := 0
	for _, a := range addrs {
		if a.Is4() == (rrtype == dns.TypeA) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	out := make([]byte, 0, n*(recordHead+addrs[0].BitLen()/8))
	for _, a := range addrs {
		if a.Is4() != (rrtype == dns.TypeA) {
			continue
		}
		raw := a.AsSlice()
		out = appendHead(out, ownerIsQuestion, rrtype, wire.RecordTTL, len(raw))
		out = append(out, raw...)
	}
	return out
}

func appendHead(out []byte, owner, rrtype uint16, ttl uint32, length int) []byte {
	out = binary.BigEndian.AppendUint16(out, owner)
	out = binary.BigEndian.AppendUint16(out, rrtype)
	out = binary.BigEndian.AppendUint16(out, dns.ClassINET)
	out = binary.BigEndian.AppendUint32(out, ttl)
	return binary.BigEndian.AppendUint16(out, uint16(length))
}

// reply is a reply that is being written, in the caller's memory.
type reply struct {
	out []byte
	q   *wire.Question
	// random is where lists of answers start.
	random uint32
}

// start writes header and question.
func (r *reply) start(in []byte) {
	r.out = append(r.out, in[:r.q.End]...)
	r.out[2] = in[2]&0x01 | 0x84 // reply, authoritative, RD as asked
	r.out[3] = in[3]&0x10 | 0x80 // recursion available, CD as asked
	clear(r.out[6:wire.HeaderLen])
}

// room returns how many more bytes may be written, without those of the OPT record.
func (r *reply) room() int {
	room := r.q.Size - len(r.out)
	if r.q.EDNS {
		room -= optLen
	}
	return room
}

func (r *reply) count(at, n int) {
	binary.BigEndian.PutUint16(r.out[at:], binary.BigEndian.Uint16(r.out[at:])+uint16(n))
}

// records writes records of one length, starting at a random one, so that clients that use the first spread over all.
// Records that do not fit are left out, and the client repeats the query by TCP.
func (r *reply) records(list []byte, each int) {
	n := len(list) / each
	if fit := r.room() / each; fit < n {
		n = fit
		r.out[2] |= 0x02
	}
	if n == 0 {
		return
	}
	first := int(uint64(r.random) * uint64(len(list)/each) >> 32)
	whole := list[first*each:]
	whole = whole[:min(len(whole), n*each)]
	r.out = append(r.out, whole...)
	r.out = append(r.out, list[:n*each-len(whole)]...)
	r.count(wire.Answers, n)
}

// soaRest are serial, refresh, retry, expire and the negative TTL.
var soaRest = func() (out []byte) {
	for _, v := range []uint32{1, 7200, 1800, 86400, wire.NegativeTTL} {
		out = binary.BigEndian.AppendUint32(out, v)
	}
	return out
}()

// soa denies records, for the domain at the given offset of the name.
func (r *reply) soa(domain int) {
	const ns, mbox = "\x02ns\x03dns", "\x0ahostmaster"
	pointer := uint16(ownerIsQuestion + domain)
	r.out = appendHead(r.out, pointer, dns.TypeSOA, wire.NegativeTTL, len(ns)+2+len(mbox)+2+len(soaRest))
	r.out = append(r.out, ns...)
	r.out = binary.BigEndian.AppendUint16(r.out, pointer)
	r.out = append(r.out, mbox...)
	r.out = binary.BigEndian.AppendUint16(r.out, pointer)
	r.out = append(r.out, soaRest...)
	r.count(wire.Authority, 1)
}

// finish writes the OPT record if the query had one.
func (r *reply) finish() []byte {
	if r.q.EDNS {
		var do byte
		if r.q.DNSSEC {
			do = 0x80
		}
		r.out = append(r.out, 0, 0, byte(dns.TypeOPT), wire.MaxUDP>>8, wire.MaxUDP&0xff, 0, 0, do, 0, 0, 0)
		r.count(wire.Extra, 1)
	}
	return r.out
}

// hotSRV is the maximum number of SRV records in an answer of the hot path.
const hotSRV = 32

// services writes SRV records and the addresses of their targets; false if they do not fit: the slow path decides what
// to leave out.
func (z *Zone) services(r *reply, list []SRV, domain string) bool {
	if len(list) > hotSRV {
		return false
	}
	var targets [hotSRV]int
	first := int(uint64(r.random) * uint64(len(list)) >> 32)
	for i := range list {
		s := &list[(first+i)%len(list)]
		if r.room() < recordHead+6+len(s.Target)+len(domain) {
			return false
		}
		r.out = appendHead(r.out, ownerIsQuestion, dns.TypeSRV, wire.RecordTTL, 6+len(s.Target)+len(domain))
		r.out = append(r.out, 0, 0)
		r.out = binary.BigEndian.AppendUint16(r.out, wire.Weight(len(list)))
		r.out = binary.BigEndian.AppendUint16(r.out, s.Port)
		targets[i] = len(r.out)
		r.out = append(r.out, s.Target...)
		r.out = append(r.out, domain...)
	}
	r.count(wire.Answers, len(list))
	for i := range list {
		s := &list[(first+i)%len(list)]
		if s.again {
			continue
		}
		n, ok := z.names[s.Target]
		if !ok {
			continue
		}
		if r.room() < len(n.v4)+len(n.v6) {
			return false
		}
		at := len(r.out)
		r.out = append(append(r.out, n.v4...), n.v6...)
		for ; at < len(r.out); at += recordHead + int(binary.BigEndian.Uint16(r.out[at+10:])) {
			binary.BigEndian.PutUint16(r.out[at:], uint16(0xc000|targets[i]))
			r.count(wire.Extra, 1)
		}
	}
	return true
}

// Answer writes the reply to a query after out, if the hot path can answer it. The zone must be locked for reading.
// missing means that the name does not exist in the domains.
func (z *Zone) Answer(out, in []byte, q *wire.Question, domains []wire.Domain, random uint32) (done []byte,
	missing, ok bool) {
	r := reply{out: out, q: q, random: random}
	for i := range domains {
		d := &domains[i]
		at, below := q.Below(d)
		if !below {
			continue
		}
		rel := q.Name[:at]
		n, exists := z.names[string(rel)]
		if !exists {
			if special(rel) {
				return nil, false, false
			}
			r.start(in)
			r.out[3] |= dns.RcodeNameError
			r.soa(at)
			return r.finish(), true, true
		}
		if n.CNAME != "" || len(n.TXT) > 0 {
			return nil, false, false
		}
		r.start(in)
		if !z.content(&r, n, d.Name) {
			return nil, false, false
		}
		if r.out[2]&0x02 == 0 && r.out[wire.Answers] == 0 && r.out[wire.Answers+1] == 0 {
			r.soa(at)
		}
		return r.finish(), false, true
	}
	if len(domains) == 0 || !z.pointers(&r, in, domains[0].Name) {
		return nil, false, false
	}
	return r.finish(), false, true
}

// special are names without an entry: the domain itself, pods, the name server.
func special(rel []byte) bool {
	const pod, server = "\x03pod", "\x02ns\x03dns"
	if len(rel) == 0 || string(rel) == server || string(rel) == server[3:] {
		return true
	}
	return len(rel) >= len(pod) && string(rel[len(rel)-len(pod):]) == pod
}

func (z *Zone) content(r *reply, n *node, domain string) bool {
	switch r.q.Qtype {
	case dns.TypeA:
		r.records(n.v4, v4Len)
	case dns.TypeAAAA:
		r.records(n.v6, v6Len)
	case dns.TypeSRV:
		return z.services(r, n.SRV, domain)
	}
	return true
}

// pointers answers for the name of an address of the cluster.
func (z *Zone) pointers(r *reply, in []byte, domain string) bool {
	if r.q.Qtype != dns.TypePTR {
		return false
	}
	a, ok := r.q.Reverse()
	if !ok {
		return false
	}
	names := z.reverse[a]
	if len(names) == 0 {
		return false
	}
	r.start(in)
	for _, n := range names {
		if r.room() < recordHead+len(n)+len(domain) {
			return false
		}
		r.out = appendHead(r.out, ownerIsQuestion, dns.TypePTR, wire.RecordTTL, len(n)+len(domain))
		r.out = append(append(r.out, n...), domain...)
	}
	r.count(wire.Answers, len(names))
	return true
}
