package server

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	agent "wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
	"wayleave.dev/dns/zone"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/model"
)

// headlessSlices are two slices of one service at a time.
type headlessSlices [2]model.EndpointSlice

// A headless Service without a ready endpoint has no name; an address is sent once, whatever
// names it has; a port is that of the hosts in its own slice.
func TestHeadlessServices(t *testing.T) {
	ready := func(a, host string) model.Endpoint {
		return model.Endpoint{Addr: dnstest.Addr(a), Hostname: host, Ready: true}
	}
	http := func(port uint16) []model.EndpointPort {
		return []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: port}}
	}
	const d = ".web.default.svc.cluster.local."
	const none, nodata = "NXDOMAIN:  +SOA", "NOERROR:  +SOA"
	one := headlessSlices{{Ports: http(8080), Endpoints: []model.Endpoint{ready("10.0.0.1", "one"),
		ready("10.0.0.2", "one"), ready("10.0.0.1", "two")}}}
	unready := headlessSlices{{Ports: http(8080),
		Endpoints: []model.Endpoint{{Addr: dnstest.Addr("10.0.0.1"), Hostname: "one"}}}}
	ports := headlessSlices{{Ports: http(8080), Endpoints: []model.Endpoint{ready("10.0.0.1", "old")}},
		{Ports: http(8081), Endpoints: []model.Endpoint{ready("10.0.0.2", "new")}}}
	extra := headlessSlices{{Ports: http(80), Endpoints: []model.Endpoint{ready("10.0.0.1", "a")}},
		{Ports: append(http(80), model.EndpointPort{Name: "more", Protocol: model.UDP, Port: 9}),
			Endpoints: []model.Endpoint{ready("fd00::1", "a"), ready("fd00::2", "b"),
				{Addr: dnstest.Addr("fd00::3"), Hostname: "c"}}}}
	away := headlessSlices{{Ports: http(80), Endpoints: []model.Endpoint{ready("10.0.0.1", "a")}},
		{Ports: http(81), Endpoints: []model.Endpoint{{Addr: dnstest.Addr("10.0.0.2"), Hostname: "b"}}}}
	moved := headlessSlices{{Ports: http(80), Endpoints: []model.Endpoint{ready("10.0.0.1", "")}},
		{Ports: http(80), Endpoints: []model.Endpoint{ready("10.0.0.1", "")}}}
	for _, tc := range []struct {
		what, name string
		slices     headlessSlices
		notReady   bool
		qtype      uint16
		want       string
	}{
		{"no slice", d[1:], headlessSlices{}, false, dns.TypeA, none},
		{"nobody ready", d[1:], unready, false, dns.TypeA, none},
		{"nobody ready, another type", d[1:], unready, false, dns.TypeMX, none},
		{"nobody ready, a port", "_http._tcp" + d, unready, false, dns.TypeSRV, none},
		{"nobody ready, a protocol", "_tcp" + d, unready, false, dns.TypeSRV, none},
		{"nobody ready, a host", "one" + d, unready, false, dns.TypeA, none},
		{"not ready and told", d[1:], unready, true, dns.TypeA, "NOERROR: A 10.0.0.1"},
		{"not ready and told, a port", "_http._tcp" + d, unready, true, dns.TypeSRV, "NOERROR: SRV 0 100 8080 one" + d},
		{"nobody, and those not ready told", d[1:], headlessSlices{}, true, dns.TypeA, none},
		{"ready in one family", d[1:], ports, false, dns.TypeAAAA, nodata},
		{"an address of two names", d[1:], one, false, dns.TypeA, "NOERROR: A 10.0.0.1, A 10.0.0.2"},
		{"a name of two addresses", "one" + d, one, false, dns.TypeA, "NOERROR: A 10.0.0.1, A 10.0.0.2"},
		{"the other name", "two" + d, one, false, dns.TypeA, "NOERROR: A 10.0.0.1"},
		{"names are told once", "_http._tcp" + d, one, false, dns.TypeSRV, "NOERROR: SRV 0 50 8080 one" + d +
			", SRV 0 50 8080 two" + d},
		{"the address's names", "1.0.0.10.in-addr.arpa.", one, false, dns.TypePTR, "NOERROR: PTR one" + d +
			", PTR two" + d},
		{"an endpoint in two slices", d[1:], moved, false, dns.TypeA, "NOERROR: A 10.0.0.1"},
		{"an endpoint in two slices, its name", "10-0-0-1" + d, moved, false, dns.TypeA, "NOERROR: A 10.0.0.1"},
		{"an endpoint in two slices, its port", "_http._tcp" + d, moved, false, dns.TypeSRV,
			"NOERROR: SRV 0 100 80 10-0-0-1" + d},
		{"each its slice's port", "_http._tcp" + d, ports, false, dns.TypeSRV, "NOERROR: SRV 0 50 8080 old" + d +
			", SRV 0 50 8081 new" + d},
		{"a port of all hosts", "_http._tcp" + d, extra, false, dns.TypeSRV, "NOERROR: SRV 0 50 80 a" + d +
			", SRV 0 50 80 b" + d},
		{"a port of one slice", "_more._udp" + d, extra, false, dns.TypeSRV, "NOERROR: SRV 0 50 9 a" + d +
			", SRV 0 50 9 b" + d},
		{"the port of a slice with nobody ready", "_http._tcp" + d, away, false, dns.TypeSRV,
			"NOERROR: SRV 0 100 80 a" + d},
		{"another type at an address's name", "1.0.0.10.in-addr.arpa.", one, false, dns.TypeA, nodata},
		{"the SOA of an address's name", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
			extra, false, dns.TypeSOA, nodata},
	} {
		s, err := model.NewStore()
		if err != nil {
			t.Fatal(err)
		}
		err = s.Write(func(w *model.Writer) {
			w.PutNamespace(&model.Namespace{Name: "default"})
			w.PutService(&model.Service{Name: dnstest.Name("default/web"), Headless: true,
				PublishNotReady: tc.notReady})
			for i := range tc.slices {
				if slice := tc.slices[i]; slice.Endpoints != nil {
					slice.Name, slice.Service = dnstest.Name("default/web-"+string(rune('a'+i))), "web"
					w.PutEndpointSlice(&slice)
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		r := &Resolver{Zone: fill(t, s), Forward: upstream, Domains: []string{"cluster.local."}}
		q := new(dns.Msg).SetQuestion(tc.name, tc.qtype)
		if m := r.Resolve(t.Context(), q); dnstest.Text(m) != tc.want || !m.Authoritative {
			t.Errorf("%s: got  %s\nwant %s", tc.what, dnstest.Text(m), tc.want)
		}
		sameBothWays(t, r.Zone, r, wire.Domains(r.Domains), q)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The SOA of a negative answer is of a zone above the name, or no cache may keep it.
func TestTheSOAOfAddressesNames(t *testing.T) {
	r := &Resolver{Zone: zone.New(), Forward: upstream, Domains: []string{"cluster.local."}}
	for a, zone := range map[string]string{"10.96.0.1": "in-addr.arpa.", "fd00:96::1": "ip6.arpa."} {
		r.Zone.Set(dnstest.Name("default/web"), &schema.Records{VIPs: []netip.Addr{dnstest.Addr(a)}})
		rev, err := dns.ReverseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		m := r.Resolve(t.Context(), new(dns.Msg).SetQuestion(rev, dns.TypeTXT))
		if len(m.Ns) != 1 || m.Ns[0].Header().Name != zone || m.Ns[0].Header().Ttl != wire.NegativeTTL ||
			!dns.IsSubDomain(zone, rev) {
			t.Errorf("%s: the authority is %v", rev, m.Ns)
		}
	}
}

// Pods of a StatefulSet have names under a Service with a ClusterIP, too, as CoreDNS has them: they are not addresses
// of the Service. Endpoints without a hostname have no name there.
func TestStatefulSetsUnderAClusterIP(t *testing.T) {
	s, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	svc := &model.Service{Name: dnstest.Name("bugs/db"), ClusterIPs: []netip.Addr{dnstest.Addr("10.96.7.19")},
		Ports: []model.ServicePort{{Name: "sql", Protocol: model.TCP, Port: 5432}}}
	r := &Resolver{Zone: zone.New(), Forward: upstream, Domains: []string{"cluster.local."}}
	put := func(endpoints ...model.Endpoint) {
		t.Helper()
		err := s.Write(func(w *model.Writer) {
			w.PutService(&model.Service{Name: svc.Name, ClusterIPs: svc.ClusterIPs, Ports: svc.Ports,
				PublishNotReady: svc.PublishNotReady})
			w.PutEndpointSlice(&model.EndpointSlice{Name: dnstest.Name("bugs/db-1"), Service: "db",
				Ports: []model.EndpointPort{{Name: "sql", Protocol: model.TCP, Port: 5432}}, Endpoints: endpoints})
		})
		if err != nil {
			t.Fatal(err)
		}
		e, ok, _ := agent.Plan(s.Snapshot(), svc.Name)
		if !ok {
			t.Fatal("no entry")
		}
		r.Zone.Set(svc.Name, &e)
	}
	answers := func(wants map[string]string) {
		t.Helper()
		for question, want := range wants {
			n, qtype, _ := strings.Cut(question, " ")
			if !strings.HasSuffix(n, ".arpa.") {
				n += "db.bugs.svc.cluster.local."
			}
			q := new(dns.Msg).SetQuestion(n, dns.StringToType[qtype])
			if got := dnstest.Text(r.Resolve(t.Context(), q)); got != want {
				t.Errorf("%s: got %s, want %s", question, got, want)
			}
			sameBothWays(t, r.Zone, r, wire.Domains(r.Domains), q)
		}
	}
	const none = "NXDOMAIN:  +SOA"
	one := model.Endpoint{Addr: dnstest.Addr("10.244.1.19"), Hostname: "db-0", Ready: true}
	put(one, model.Endpoint{Addr: dnstest.Addr("10.244.2.19"), Hostname: "DB-1", Ready: true},
		model.Endpoint{Addr: dnstest.Addr("10.244.3.19"), Hostname: "db-2"},
		model.Endpoint{Addr: dnstest.Addr("10.244.4.19"), Ready: true})
	answers(map[string]string{
		"db-0. A": "NOERROR: A 10.244.1.19", "db-1. A": "NOERROR: A 10.244.2.19", "db-2. A": none,
		"10-244-4-19. A": none, "db-0. AAAA": "NOERROR:  +SOA", " A": "NOERROR: A 10.96.7.19",
		"_sql._tcp. SRV":                "NOERROR: SRV 0 100 5432 db.bugs.svc.cluster.local.",
		"19.1.244.10.in-addr.arpa. PTR": "NOERROR: PTR db-0.db.bugs.svc.cluster.local.",
		"x.db-0. A":                     none,
	})
	put(one)
	answers(map[string]string{"db-0. A": "NOERROR: A 10.244.1.19", "db-1. A": none})
	one.Addr = dnstest.Addr("10.244.9.19")
	put(one)
	answers(map[string]string{"db-0. A": "NOERROR: A 10.244.9.19", " A": "NOERROR: A 10.96.7.19",
		"19.9.244.10.in-addr.arpa. PTR": "NOERROR: PTR db-0.db.bugs.svc.cluster.local."})
	svc = &model.Service{Name: svc.Name, ClusterIPs: svc.ClusterIPs, PublishNotReady: true}
	put(model.Endpoint{Addr: dnstest.Addr("10.244.3.19"), Hostname: "db-2"})
	answers(map[string]string{"db-0. A": none, "db-2. A": "NOERROR: A 10.244.3.19"})
}
