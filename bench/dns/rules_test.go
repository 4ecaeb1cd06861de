package dns

import (
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
)

// difference is a query with two answers.
type difference struct {
	q            *dns.Msg
	name         string // in lower case
	qtype        uint16
	theirs, ours reply
	cluster      *index
	// missing means that CoreDNS itself answered a query of type A for the name with NXDOMAIN.
	missing bool
}

// rule is one kind of difference, with what decides it.
type rule struct {
	title   string
	parts   []string
	when    func(c *difference) bool
	coredns string
	ours    string
	decides string
	// open marks a fault of Wayleave.
	open bool
}

func (r rule) part(p string) bool { return slices.Contains(r.parts, p) }

// content are the parts with records.
func content() []string {
	return []string{partRcode, partAA, partAnswer, partAuthority, partExtra}
}

const (
	spec = "[DNS specification 1.1.0](https://github.com/kubernetes/dns/blob/master/docs/specification.md) "
)

// noName, noData and records describe a reply's content.
func noName(r reply) bool { return r.full.Rcode == dns.RcodeNameError && len(r.full.Answer) == 0 }
func noData(r reply) bool { return r.full.Rcode == dns.RcodeSuccess && len(r.full.Answer) == 0 }
func found(r reply) bool  { return r.full.Rcode == dns.RcodeSuccess && len(r.full.Answer) > 0 }
func exists(r reply) bool { return r.full.Rcode == dns.RcodeSuccess }

func rules() []rule {
	return slices.Concat(messageRules(), nameRules(), serviceRules(), aliasRules(), reverseRules())
}

// messageRules are about the message, independent of the query.
func messageRules() []rule {
	return []rule{
		{title: "RA in the cluster's names", parts: []string{partRA},
			when: func(c *difference) bool {
				return c.ours.full.RecursionAvailable && (c.theirs.full.Authoritative ||
					c.theirs.full.Rcode == dns.RcodeServerFailure)
			},
			coredns: "RA is not set in its own answers", ours: "RA is set in all",
			decides: "RFC 1035, 4.1.1: RA “denotes whether recursive query support is available in the name " +
				"server”; it is"},
		{title: "letter case of other names than the question's", parts: content(),
			when: func(c *difference) bool {
				return mixedCase(c.q.Question[0].Name) && c.theirs.full.Rcode == c.ours.full.Rcode &&
					c.theirs.full.Authoritative == c.ours.full.Authoritative &&
					fold(c.theirs) == fold(c.ours)
			},
			coredns: "the zone's name, in SOA and targets, as the query wrote it", ours: "in lower case",
			decides: "RFC 4343, 3: names are compared without regard to case; the question itself comes back letter " +
				"by letter from both"},
		{title: "TC with other content", parts: []string{partTC},
			when: func(c *difference) bool {
				a, b := len(c.theirs.full.Answer)+len(c.theirs.full.Extra), len(c.ours.full.Answer)+
					len(c.ours.full.Extra)
				return a > b && c.theirs.udp.Truncated || a < b && c.ours.udp.Truncated ||
					mixedCase(c.q.Question[0].Name) && c.theirs.udp.Truncated
			},
			coredns: "cut: it has more (by another rule here), or compresses names only in one letter case",
			ours:    "all fits",
			decides: "RFC 2181, 9: TC is set when something does not fit"},
		{title: "answers from 1232 to 4096 bytes", parts: []string{partTC},
			when: func(c *difference) bool {
				opt := c.q.IsEdns0()
				return opt != nil && opt.UDPSize() > 1232 && c.ours.udp.Truncated && !c.theirs.udp.Truncated &&
					c.theirs.udp.Len() > 1232
			},
			coredns: "sent as one datagram, in fragments", ours: "cut, the whole by TCP",
			decides: "[DNS flag day 2020](https://www.dnsflagday.net/2020/): 1232 bytes cross every network " +
				"without fragments"},
	}
}

// fold returns the records of a reply in lower case.
func fold(r reply) string {
	text := func(list []dns.RR) string {
		var lower []dns.RR
		for _, rr := range list {
			if low, err := dns.NewRR(strings.ToLower(rr.String())); err == nil && low != nil {
				rr = low
			}
			lower = append(lower, rr)
		}
		return strings.ToLower(strings.Join(records(lower), "|"))
	}
	return text(r.full.Answer) + ";" + text(r.full.Ns) + ";" + text(r.full.Extra)
}

func mixedCase(name string) bool { return strings.ToLower(name) != name }

// nameRules are about names that exist in only one of both.
func nameRules() []rule {
	return []rule{
		{title: "SOA of a name that is not there", parts: content(),
			when: func(c *difference) bool {
				return c.qtype == dns.TypeSOA && c.missing && noData(c.theirs) && noName(c.ours)
			},
			coredns: "NODATA, though it says NXDOMAIN for other types", ours: "NXDOMAIN",
			decides: "RFC 1034, 4.3.2: whether a name exists does not depend on the type that is asked"},
		{title: "SRV of pod records", parts: content(),
			when: func(c *difference) bool {
				return c.qtype == dns.TypeSRV && strings.HasSuffix(c.name, ".pod."+domain) && found(c.theirs) &&
					noData(c.ours)
			},
			coredns: "an SRV record with port 0 for `1-2-3-4.ns.pod`", ours: "NODATA",
			decides: spec + "2.6: such a name has a record of its address alone"},
		{title: "names below pod records", parts: content(),
			when: func(c *difference) bool {
				return strings.HasSuffix(c.name, ".pod."+domain) && dns.CountLabel(c.name) > dns.CountLabel(domain)+3 &&
					exists(c.theirs) && noName(c.ours)
			},
			coredns: "`x.1-2-3-4.ns.pod` is the same as `1-2-3-4.ns.pod`", ours: "NXDOMAIN",
			decides: spec + "2.6: `<a>-<b>-<c>-<d>.<ns>.pod.<zone>`, and nothing below"},
		{title: "names between", parts: content(),
			when: func(c *difference) bool {
				txt := c.qtype == dns.TypeTXT && !c.missing && c.cluster.above[c.name]
				return (c.cluster.between[c.name] || txt || c.name == "dns-version."+domain || c.name == "ns.dns."+
					domain || c.name == "dns."+domain) && noName(c.theirs) && noData(c.ours)
			},
			coredns: "NXDOMAIN for `_tcp.svc.ns.svc`, for TXT of `ns.svc`, for some types of `dns-version` and " +
				"`ns.dns`",
			ours: "NODATA",
			decides: "RFC 8020, 2: NXDOMAIN says that a name has nothing and that nothing is below it; " +
				"`_http._tcp` is"},
		{title: "Services of a namespace that is not there", parts: content(),
			when: func(c *difference) bool {
				return strings.HasSuffix("."+c.name, ".deleted.svc."+domain) && noName(c.theirs) && exists(c.ours)
			},
			coredns: "NXDOMAIN", ours: "answered while the API has the Service",
			decides: spec + "2.3.1: a Service with a ClusterIP has a record; events of two kinds come in no order"},
		{title: "a Service that has no ClusterIP yet", parts: content(),
			when: func(c *difference) bool {
				return strings.HasSuffix("."+c.name, ".pending.prod.svc."+domain) && noName(c.ours)
			},
			coredns: "a CNAME to the root, `.`", ours: "NXDOMAIN",
			decides: spec + "2.3: records are for a Service with a ClusterIP"},
		{title: "the name of the server", parts: content(),
			when: func(c *difference) bool {
				return c.name == domain && c.qtype == dns.TypeNS && found(c.theirs) && found(c.ours)
			},
			coredns: "NS is the name of its Service, while SOA says `ns.dns`", ours: "`ns.dns` in both",
			decides: "RFC 1035, 3.3.13: SOA names the server that was the source of data for the zone; one that NS " +
				"names, too, can be asked"},
		{title: "letter case of the server's name", parts: content(),
			when: func(c *difference) bool {
				return c.name == "ns.dns."+domain && mixedCase(c.q.Question[0].Name) &&
					noName(c.theirs) && found(c.ours)
			},
			coredns: "NXDOMAIN for `Ns.dnS`", ours: "the address, as for `ns.dns`",
			decides: "RFC 4343, 3: names are compared without regard to case"},
	}
}

// serviceRules are about names and ports of Services.
func serviceRules() []rule {
	return []rule{
		{title: "endpoints of a Service with a ClusterIP", parts: content(),
			when: func(c *difference) bool {
				return c.cluster.endpointOf(c.name, false) && exists(c.theirs) && noName(c.ours)
			},
			coredns: "`10-244-1-2.svc.ns.svc` is there for all Services",
			ours:    "for headless ones; of others, endpoints with a hostname (StatefulSets) have their names",
			decides: spec + "2.4.1: names of endpoints are those of headless Services. Names of addresses tell " +
				"nothing new, and would cost memory for every endpoint"},
		{title: "ports without underscores", parts: content(),
			when: func(c *difference) bool {
				return c.cluster.port(c.name) == "loose" && exists(c.theirs) && noName(c.ours)
			},
			coredns: "`http.tcp.svc.ns.svc` is the same as `_http._tcp`", ours: "NXDOMAIN",
			decides: spec + "2.3.2, RFC 2782: the labels of a service and its protocol begin with an underscore"},
		{title: "addresses at the name of a port", parts: content(),
			when: func(c *difference) bool {
				return (c.qtype == dns.TypeA || c.qtype == dns.TypeAAAA) && c.cluster.port(c.name) == "strict" &&
					found(c.theirs) && noData(c.ours)
			},
			coredns: "A and AAAA of `_http._tcp.svc.ns.svc` are those of the Service", ours: "NODATA",
			decides: spec + "2.3.2: that name has SRV records"},
		{title: "SRV at the name of a Service or endpoint", parts: content(),
			when: func(c *difference) bool {
				return c.qtype == dns.TypeSRV && (c.cluster.bases[c.name] != nil || c.cluster.endpointOf(c.name,
					true) || c.cluster.endpointOf(c.name, false)) && found(c.theirs) && noData(c.ours)
			},
			coredns: "an SRV record for each port, those without a name, too", ours: "NODATA",
			decides: spec + "2.3.2: the records are at `_<port>._<proto>.<service>.<ns>.svc`, and “Unnamed ports do " +
				"not have an `SRV` record.”"},
		{title: "weights of SRV", parts: []string{partAnswer, partExtra},
			when: func(c *difference) bool {
				same := func(text func(reply) string) bool { return text(c.theirs) == text(c.ours) }
				return c.qtype == dns.TypeSRV && found(c.theirs) && same(func(r reply) string {
					return strings.ToLower(weightless(r.full.Answer) + ";" + weightless(r.full.Extra))
				})
			},
			coredns: "100 by the number of addresses", ours: "100 by the number of records",
			decides: spec +
				"2.3.2 leaves weights open; RFC 2782: only their ratio within an answer counts, which is 1 for both"},
	}
}

// weightless returns the SRV records without their weights.
func weightless(section []dns.RR) string {
	var list []dns.RR
	for _, rr := range section {
		rr = dns.Copy(rr)
		if srv, ok := rr.(*dns.SRV); ok {
			srv.Weight = 0
		}
		list = append(list, rr)
	}
	return strings.Join(records(list), "|")
}

// aliasRules are about ExternalName.
func aliasRules() []rule {
	alias := func(c *difference) bool { return c.cluster.alias(c.name) }
	return []rule{
		{title: "other types of an ExternalName", parts: content(),
			when: func(c *difference) bool {
				return alias(c) && c.qtype != dns.TypeA && c.qtype != dns.TypeAAAA && noData(c.theirs) &&
					hasCNAME(c.ours)
			},
			coredns: "only A, AAAA and CNAME follow it", ours: "CNAME, followed for all types",
			decides: "RFC 1034, 3.6.2: a name with a CNAME has no other data, and the query goes on at its target"},
		{title: "an ExternalName that leads to nothing", parts: content(),
			when: func(c *difference) bool {
				bare := c.theirs.full.Rcode == dns.RcodeSuccess && hasCNAME(c.theirs) && !hasAddress(c.theirs)
				return alias(c) && (c.qtype == dns.TypeA || c.qtype == dns.TypeAAAA) && (!found(c.theirs) || bare) &&
					hasCNAME(c.ours) && !hasAddress(c.ours)
			},
			coredns: "NODATA, with no CNAME where the target is in the cluster",
			ours:    "the CNAME, with the code of the last name",
			decides: "RFC 6604, 3: the code is that of the last name of a chain"},
		{title: "an ExternalName that looks like an address", parts: content(),
			when: func(c *difference) bool {
				return alias(c) && strings.HasPrefix(c.name, "ext-number") && !found(c.theirs) && hasCNAME(c.ours) &&
					!hasAddress(c.ours)
			},
			coredns: "NXDOMAIN, for SRV also records", ours: "CNAME to that name, which does not exist",
			decides: "[Services](https://kubernetes.io/docs/concepts/services-networking/service/#externalname): " +
				"the API “treats that string as a DNS name comprised of digits, not as an IP address”"},
		{title: "times to live of a chain", parts: content(),
			when: func(c *difference) bool {
				return alias(c) && found(c.ours) && foldedChain(c.theirs) == foldedChain(c.ours) &&
					lower(c.theirs, c.ours)
			},
			coredns: "all records have the least TTL of the chain, and names the letter case of who asked " +
				"for them first", ours: "each record its own",
			decides: "RFC 2181, 5.2: a TTL is of one set of records"},
		{title: "what CoreDNS keeps of an ExternalName", parts: append(content(), partRA),
			when: func(c *difference) bool {
				return dns.IsSubDomain("example.org.", c.name) && !c.ours.full.Authoritative &&
					c.theirs.full.Rcode == c.ours.full.Rcode && fold(c.theirs) == fold(c.ours)
			},
			coredns: "AA, and the letter case of the ExternalName, for the outside name itself",
			ours:    "as upstream said",
			decides: "RFC 1035, 4.1.1: AA is for an authority of the name"},
		{title: "the end of an alias outside", parts: []string{partAuthority},
			when: func(c *difference) bool {
				return c.name == "alias.example.org." && hasCNAME(c.ours) && len(c.theirs.full.Ns) == 0 &&
					hasSOA(c.ours)
			},
			coredns: "the CNAME alone, as upstream said",
			ours:    "the target is asked for, too: its records, or the SOA that denies them",
			decides: "RFC 1034, 5.3.3, 4c: a resolver goes on at the CNAME's target; RFC 2308, 2.2: NODATA behind a " +
				"CNAME has the SOA"},
	}
}

func hasSOA(r reply) bool {
	return slices.ContainsFunc(r.full.Ns, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeSOA })
}

func hasCNAME(r reply) bool {
	return slices.ContainsFunc(r.full.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeCNAME })
}

func hasAddress(r reply) bool {
	return slices.ContainsFunc(r.full.Answer, func(rr dns.RR) bool {
		return rr.Header().Rrtype == dns.TypeA || rr.Header().Rrtype == dns.TypeAAAA
	})
}

// foldedChain returns an answer without TTLs and letter case.
func foldedChain(r reply) string {
	var list []dns.RR
	for _, rr := range r.full.Answer {
		rr = dns.Copy(rr)
		rr.Header().Ttl = 0
		list = append(list, rr)
	}
	return strings.ToLower(fold(reply{full: &dns.Msg{Answer: list}}))
}

// lower reports whether no TTL of a chain exceeds the other's.
func lower(a, b reply) bool {
	least := func(r reply) uint32 {
		ttl := uint32(1 << 31)
		for _, rr := range r.full.Answer {
			ttl = min(ttl, rr.Header().Ttl)
		}
		return ttl
	}
	return least(a) <= least(b)
}

func reverse(name string) bool {
	return dns.IsSubDomain("in-addr.arpa.", name) || dns.IsSubDomain("ip6.arpa.", name)
}

// reverseRules are about addresses.
func reverseRules() []rule {
	return []rule{
		{title: "PTR of endpoints of other Services", parts: content(),
			when: func(c *difference) bool {
				return c.qtype == dns.TypePTR && reverse(c.name) && found(c.theirs) && noName(c.ours)
			},
			coredns: "PTR for endpoints of every EndpointSlice",
			ours:    "for those of headless Services and those with a hostname, else from upstream",
			decides: spec + "2.4.3: PTR is for endpoints of headless Services; an endpoint of any other without a " +
				"hostname has no name"},
		{title: "other types of an address's name", parts: content(),
			when: func(c *difference) bool {
				return reverse(c.name) && c.qtype != dns.TypePTR && c.qtype != dns.TypeSOA && noName(c.theirs) &&
					!c.theirs.full.Authoritative && noData(c.ours) && c.ours.full.Authoritative
			},
			coredns: "NXDOMAIN, from upstream", ours: "NODATA",
			decides: "RFC 8020, 2: the name has a PTR, so NXDOMAIN would deny that, too"},
		{title: "the reverse zones", parts: content(),
			when: func(c *difference) bool {
				apex := c.name == "in-addr.arpa." || c.name == "ip6.arpa."
				soa := c.qtype == dns.TypeSOA && reverse(c.name) && c.theirs.full.Authoritative && noData(c.theirs)
				return (apex || soa) && !c.ours.full.Authoritative
			},
			coredns: "in-addr.arpa and ip6.arpa are its own, but for names that it does not have",
			ours:    "from upstream, but for addresses of the cluster",
			decides: "RFC 3172, 2: these zones are the IANA's; of them the cluster has its own addresses alone"},
	}
}

// index is the meaning of the names of a snapshot.
type index struct {
	bases   map[string]*corev1.Service
	between map[string]bool
	above   map[string]bool // names of namespaces, svc and the domain itself
	ready   map[string]bool // names of endpoints that are ready
}

func newIndex(s *snapshot) *index {
	x := &index{bases: map[string]*corev1.Service{}, between: map[string]bool{}, ready: map[string]bool{},
		above: map[string]bool{"svc." + domain: true, "pod." + domain: true, domain: true}}
	for _, o := range s.objects {
		x.above[o.GetName()+".svc."+domain], x.above[o.GetName()+".pod."+domain] = true, true
	}
	for _, o := range s.services {
		base := o.Name + "." + o.Namespace + ".svc." + domain
		x.bases[base] = o
		for _, p := range o.Spec.Ports {
			if p.Name != "" && o.Spec.Type != corev1.ServiceTypeExternalName {
				x.between["_"+strings.ToLower(string(p.Protocol))+"."+base] = true
			}
		}
	}
	for _, e := range s.slices {
		base := e.Labels["kubernetes.io/service-name"] + "." + e.Namespace + ".svc." + domain
		for _, one := range e.Endpoints {
			if one.Conditions.Ready != nil && !*one.Conditions.Ready {
				continue
			}
			if one.Hostname != nil {
				x.ready[*one.Hostname+"."+base] = true
			} else {
				x.ready[label(one.Addresses[0])+"."+base] = true
			}
		}
	}
	return x
}

func headless(o *corev1.Service) bool { return o.Spec.ClusterIP == corev1.ClusterIPNone }

// endpointOf reports whether a name is that of a ready endpoint of a Service that is headless, or not.
func (x *index) endpointOf(name string, ofHeadless bool) bool {
	_, base, _ := strings.Cut(name, ".")
	o := x.bases[base]
	return o != nil && o.Spec.Type != corev1.ServiceTypeExternalName && headless(o) == ofHeadless && x.ready[name]
}

// port returns how a name refers to a port of a Service: "strict", "loose" or "".
func (x *index) port(name string) string {
	parts := strings.SplitN(name, ".", 3)
	if len(parts) < 3 || x.bases[parts[2]] == nil {
		return ""
	}
	for _, p := range x.bases[parts[2]].Spec.Ports {
		proto := strings.ToLower(string(p.Protocol))
		switch {
		case p.Name != "" && parts[0] == "_"+p.Name && parts[1] == "_"+proto:
			return "strict"
		case strings.TrimPrefix(parts[0], "_") == p.Name && strings.TrimPrefix(parts[1], "_") == proto:
			return "loose"
		}
	}
	return ""
}

// alias reports whether a name is an ExternalName's.
func (x *index) alias(name string) bool {
	o := x.bases[name]
	return o != nil && o.Spec.Type == corev1.ServiceTypeExternalName
}
