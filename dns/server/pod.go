package server

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
)

// pod answers for a name below pod.<domain>, to which rel is relative: the name contains the address, so only the
// existence of the namespace, or of the pod, is looked up.
func (r *Resolver) pod(m *dns.Msg, rel string) (exists bool) {
	if r.Pods != schema.PodsInsecure && r.Pods != schema.PodsVerified {
		return false
	}
	labels := dns.SplitDomainName(rel)
	if len(labels) == 0 {
		return true // pod.<domain> itself
	}
	if _, ok := r.Zone.Look(labels[len(labels)-1] + ".svc"); !ok || len(labels) > 2 {
		return false
	}
	if len(labels) == 1 {
		return true
	}
	a, ok := labelAddr(labels[0])
	if !ok || (r.Pods == schema.PodsVerified && !r.Zone.HasPod(labels[1], a)) {
		return false
	}
	q := m.Question[0]
	m.Answer = wire.Addresses(q.Name, q.Qtype, []netip.Addr{a})
	return true
}

// labelAddr parses an address that is written with dashes.
func labelAddr(label string) (netip.Addr, bool) {
	by := ":"
	if strings.Count(label, "-") == 3 && !strings.Contains(label, "--") {
		by = "."
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", by))
	return a.Unmap(), err == nil && a.Zone() == ""
}
