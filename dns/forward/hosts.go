package forward

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"wayleave.dev/dns/wire"
)

// hosts are names with addresses from the settings. Their reverse names are answered, too.
type hosts struct {
	addrs map[string][]netip.Addr
	names map[netip.Addr][]string
}

func newHosts(list map[string][]netip.Addr) *hosts {
	h := &hosts{addrs: list, names: map[netip.Addr][]string{}}
	for name, addrs := range list {
		for _, a := range addrs {
			h.names[a] = append(h.names[a], name)
		}
	}
	for _, names := range h.names {
		slices.Sort(names)
	}
	return h
}

// answer returns the reply for one of the names; false for all others.
func (h *hosts) answer(q *dns.Msg) (*dns.Msg, bool) {
	if h == nil {
		return nil, false
	}
	m := new(dns.Msg).SetReply(q)
	asked := q.Question[0]
	if addrs, ok := h.addrs[strings.ToLower(asked.Name)]; ok {
		m.Answer = wire.Addresses(asked.Name, asked.Qtype, addrs)
		return m, true
	}
	if a, ok := wire.ReverseAddr(strings.ToLower(asked.Name)); ok && asked.Qtype == dns.TypePTR {
		for _, n := range h.names[a] {
			m.Answer = append(m.Answer, &dns.PTR{Hdr: wire.Header(asked.Name, dns.TypePTR), Ptr: n})
		}
	}
	return m, len(m.Answer) > 0
}
