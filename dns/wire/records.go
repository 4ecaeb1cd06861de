package wire

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Times to live, in seconds: those of kubeadm's CoreDNS.
const (
	RecordTTL   = 30
	NegativeTTL = 30
)

// ReverseAddr returns the address of a name below in-addr.arpa or ip6.arpa.
func ReverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := len(rest) - 1; i >= 0; i -= 2 {
		b.WriteByte(rest[i])
		if n := (len(rest) - i); n%8 == 7 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

// ReverseZone returns the zone whose SOA denies a record type of an address's name: the same as CoreDNS's.
func ReverseZone(a netip.Addr) string {
	if a.Is4() {
		return "in-addr.arpa."
	}
	return "ip6.arpa."
}

// Header returns the head of a record. The name is the question's own, so that its letter case is kept.
func Header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: RecordTTL}
}

// Addresses returns those of one family, starting at a random one.
func Addresses(name string, rrtype uint16, addrs []netip.Addr) []dns.RR {
	var out []dns.RR
	for _, a := range addrs {
		switch {
		case rrtype == dns.TypeA && a.Is4():
			out = append(out, &dns.A{Hdr: Header(name, rrtype), A: net.IP(a.AsSlice())})
		case rrtype == dns.TypeAAAA && a.Is6():
			out = append(out, &dns.AAAA{Hdr: Header(name, rrtype), AAAA: net.IP(a.AsSlice())})
		}
	}
	return Rotated(out)
}

// Rotated returns the list from a random position on, so that clients that use the first spread over all (RFC 1794).
// The list itself stays unchanged.
func Rotated[T any](list []T) []T {
	if len(list) < 2 {
		return list
	}
	k := rand.IntN(len(list))
	return append(list[k:len(list):len(list)], list[:k]...)
}

// Weight is that of each of n SRV records: all have the same share.
func Weight(n int) uint16 { return uint16(max(1, 100/n)) }

// MaxAliases bounds a chain of ExternalName Services that refer to each other.
const MaxAliases = 8

// SOA returns how long the absence of a name may be cached.
func SOA(domain string) dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: domain, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: NegativeTTL},
		Ns:  "ns.dns." + domain, Mbox: "hostmaster." + domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: NegativeTTL,
	}
}

// DNSSECOK reports whether a query requests DNSSEC data: its OPT record has the DO bit.
func DNSSECOK(q *dns.Msg) bool {
	opt := q.IsEdns0()
	return opt != nil && opt.Do()
}
