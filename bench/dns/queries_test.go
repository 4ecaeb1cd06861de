package dns

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// types are the queried types of every name.
func types() []uint16 {
	return []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeCNAME, dns.TypeTXT,
		dns.TypeNS, dns.TypeSOA,
		dns.TypeMX, dns.TypeANY, dns.TypeHTTPS, dns.TypeCAA, dns.TypeDS}
}

// label is the name of an address, as in CoreDNS and Wayleave.
func label(addr string) string { return strings.NewReplacer(".", "-", ":", "-").Replace(addr) }

// names returns all interesting names of a snapshot, sorted.
func (s *snapshot) names() []string {
	set := map[string]bool{}
	add := func(format string, args ...any) { set[fmt.Sprintf(format, args...)] = true }
	of := map[string][]discoveryv1.Endpoint{}
	for _, e := range s.slices {
		key := e.Labels[discoveryv1.LabelServiceName] + "." + e.Namespace
		of[key] = append(of[key], e.Endpoints...)
	}
	for _, o := range s.services {
		key := o.Name + "." + o.Namespace
		base := key + ".svc." + domain
		add("%s", base)
		add("_tcp.%s", base)
		add("nothing.%s", base)
		add("a.b.%s", base)
		add("a.b.c.%s", base)
		add("_none._tcp.%s", base)
		add("x.y.z.%s", base)
		for _, p := range o.Spec.Ports {
			proto := strings.ToLower(string(p.Protocol))
			add("_%s._%s.%s", p.Name, proto, base)
			add("_%s._%s.%s", p.Name, map[bool]string{true: "udp", false: "tcp"}[proto == "tcp"], base)
			add("%s.%s.%s", p.Name, proto, base)
			add("_%s.%s", p.Name, base)
		}
		for _, a := range o.Spec.ClusterIPs {
			s.reverse(set, a)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(of)) {
		list := of[key]
		for i, e := range list[:min(len(list), 12)] {
			add("%s.%s.svc.%s", label(e.Addresses[0]), key, domain)
			if e.Hostname != nil {
				add("%s.%s.svc.%s", *e.Hostname, key, domain)
			}
			s.reverse(set, e.Addresses[0])
			add("%s.%s.pod.%s", label(e.Addresses[0]), strings.SplitN(key, ".", 2)[1], domain)
			if i == 0 {
				add("%s.missing.pod.%s", label(e.Addresses[0]), domain)
				add("x.%s.prod.pod.%s", label(e.Addresses[0]), domain)
			}
		}
	}
	s.fixed(set)
	for name := range set { // an unnamed port gives invalid names
		if _, ok := dns.IsDomainName(name); !ok || strings.Contains(name, "..") || strings.HasPrefix(name, ".") {
			delete(set, name)
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// reverse adds the name of an address, and neighbouring names.
func (s *snapshot) reverse(set map[string]bool, addr string) {
	name, err := dns.ReverseAddr(addr)
	if err != nil {
		return
	}
	set[name] = true
	if s.rand.IntN(8) == 0 {
		_, parent, _ := strings.Cut(name, ".")
		set[parent], set["1."+name] = true, true
	}
}

// fixed adds names without an object.
func (s *snapshot) fixed(set map[string]bool) {
	for _, n := range []string{"", "svc.", "pod.", "default.svc.", "empty.svc.", "missing.svc.", "deleted.svc.",
		"prod.svc.", "svc.svc.", "pod.svc.",
		"default.pod.", "empty.pod.", "missing.pod.", "dns-version.", "ns.dns.", "dns.", "a.ns.dns.", "x.dns-version.",
		"nosuch.", "a.nosuch.", "x.missing.svc.",
		"x.prod.svc.", "*.prod.svc.", "*.db.prod.svc.", "any.prod.svc.", "*.", "_http._tcp.*.prod.svc.", "_.prod.svc.",
		"-.prod.svc.", "a_b.prod.svc.",
		"prod.", "dual.prod.", "dual.prod.svc.cluster.local.svc.", "www.example.org.prod.svc.", "www.example.org.svc.",
		"www.example.org.",
		"10-0-0-1.default.pod.", "300-0-0-1.default.pod.", "1-2-3.default.pod.", "1-2-3-4-5.default.pod.",
		"0-0-0-0.default.pod.", "01-2-3-4.default.pod.",
		"--1.default.pod.", "fd00--1.default.pod.", "fd00---1.default.pod.", "1-2-3-4-5-6-7-8.default.pod.",
		"g--1.default.pod.", "abc.default.pod.",
		"--ffff-10-0-0-1.default.pod.", "255-255-255-255.empty.pod.", "apex.dns.", "10-0-0-1.10-0-0-1.pod.",
		"10-0-0-1.pod.svc.",
		strings.Repeat("a", 63) + ".prod.svc.", strings.Repeat(strings.Repeat("a", 40)+".", 5) + "prod.svc."} {
		set[n+domain] = true
	}
	for _, n := range []string{"www.example.org.", "alias.example.org.", "missing.example.org.", "example.org.",
		"local.", "xcluster.local.", "cluster.local.example.org.",
		"in-addr.arpa.", "ip6.arpa.", "10.in-addr.arpa.", "1.0.0.127.in-addr.arpa.", "9.9.9.10.in-addr.arpa.",
		"256.0.96.10.in-addr.arpa.", "01.0.96.10.in-addr.arpa.",
		"x.0.96.10.in-addr.arpa.", "a.ip6.arpa.", "1.0.96.10.ip6.arpa.", "arpa."} {
		set[n] = true
	}
	name, err := dns.ReverseAddr(netip.MustParseAddr("fd00:96::1:1").String())
	if err == nil {
		set["f"+name[1:]], set["z"+name[1:]], set["00"+name[1:]] = true, true, true
	}
}

// mixed changes letters to upper case at random (RFC 4343: names are equal regardless of case).
func mixed(r *rand.Rand, name string) string {
	b := []byte(name)
	for i, c := range b {
		if c >= 'a' && c <= 'z' && r.IntN(2) == 0 {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// queries returns every type of every name, some with mixed letter case, with EDNS0, or with rare flags.
func (s *snapshot) queries() (list []*dns.Msg) {
	for _, name := range s.names() {
		for _, qtype := range types() {
			q := new(dns.Msg).SetQuestion(name, qtype)
			list = append(list, q)
			switch s.rand.IntN(10) {
			case 0:
				q.Question[0].Name = mixed(s.rand, name)
			case 1:
				q.SetEdns0(1232, false)
			case 2:
				q.SetEdns0(4096, false)
			case 3:
				q.SetEdns0(100, true)
			case 4:
				q.CheckingDisabled = true
			case 5:
				q.AuthenticatedData = true
			}
		}
	}
	list = append(list, new(dns.Msg).SetQuestion("ns.dns."+domain, dns.TypeA),
		new(dns.Msg).SetQuestion(domain, dns.TypeNS))
	for _, name := range []string{"long.prod.svc.", "middle.prod.svc.", "_http._tcp.long.prod.svc.",
		"_http._tcp.middle.prod.svc."} {
		for _, size := range []uint16{0, 512, 1232, 4096, 65535} {
			for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV} {
				q := new(dns.Msg).SetQuestion(name+domain, qtype)
				if size > 0 {
					q.SetEdns0(size, false)
				}
				list = append(list, q)
			}
		}
	}
	return list
}
