package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	agent "wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
	"wayleave.dev/dns/zone"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/model"
)

// fill makes the zone of a model.
func fill(t testing.TB, s *model.Store) *zone.Zone {
	t.Helper()
	z := zone.New()
	z.Reset(dnstest.Entries(t, s))
	return z
}

func upstream(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
	m := new(dns.Msg).SetReply(q)
	switch q.Question[0].Name {
	case "db.example.com.", "google.com.":
		rr, err := dns.NewRR(q.Question[0].Name + " 300 IN A 192.0.2.7")
		if err != nil {
			return nil, err
		}
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = append(m.Answer, rr)
		}
	case "dead.example.com.":
		return nil, errors.New("no answer")
	default:
		m.Rcode = dns.RcodeNameError
	}
	return m, nil
}

func TestAnswers(t *testing.T) {
	r := &Resolver{Zone: fill(t, dnstest.Cluster(t)), Forward: upstream, Domains: []string{"cluster.local."}}
	const d = ".svc.cluster.local."
	for _, tc := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		// Services with a cluster IP.
		{"backend.default" + d, dns.TypeA, "NOERROR: A 10.96.100.50"},
		{"backend.default" + d, dns.TypeAAAA, "NOERROR: AAAA fd00:96::50"},
		{"BackEnd.Default" + d, dns.TypeA, "NOERROR: A 10.96.100.50"},
		{"backend.default" + d, dns.TypeMX, "NOERROR:  +SOA"},
		{"_http._tcp.backend.default" + d, dns.TypeSRV, "NOERROR: SRV 0 100 80 backend.default.svc.cluster.local."},
		{"_tcp.backend.default" + d, dns.TypeSRV, "NOERROR:  +SOA"},
		{"_https._tcp.backend.default" + d, dns.TypeSRV, "NXDOMAIN:  +SOA"},
		{"x.backend.default" + d, dns.TypeA, "NXDOMAIN:  +SOA"},
		{"orphan.unknown" + d, dns.TypeA, "NOERROR: A 10.96.0.77"},
		{"pending.default" + d, dns.TypeA, "NXDOMAIN:  +SOA"},
		{"nobody.default" + d, dns.TypeA, "NXDOMAIN:  +SOA"},
		{"nobody.nowhere" + d, dns.TypeA, "NXDOMAIN:  +SOA"},
		{"*.default" + d, dns.TypeA, "NXDOMAIN:  +SOA"},
		// Names that only exist for those below them.
		{"default" + d, dns.TypeA, "NOERROR:  +SOA"},
		{"empty" + d, dns.TypeA, "NOERROR:  +SOA"},
		{"nowhere" + d, dns.TypeA, "NXDOMAIN:  +SOA"},
		{"svc.cluster.local.", dns.TypeA, "NOERROR:  +SOA"},
		{"cluster.local.", dns.TypeA, "NOERROR:  +SOA"},
		{"cluster.local.", dns.TypeSOA,
			"NOERROR: SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30"},
		{"cluster.local.", dns.TypeNS, "NOERROR: NS ns.dns.cluster.local."},
		{"dns-version.cluster.local.", dns.TypeTXT, `NOERROR: TXT "1.1.0"`},
		// Headless.
		{"cassandra.default" + d, dns.TypeA, "NOERROR: A 10.244.1.5, A 10.244.2.9"},
		{"cassandra.default" + d, dns.TypeAAAA, "NOERROR:  +SOA"},
		{"10-244-1-5.cassandra.default" + d, dns.TypeA, "NOERROR: A 10.244.1.5"},
		{"10-244-3-7.cassandra.default" + d, dns.TypeA, "NXDOMAIN:  +SOA"},
		{"_cql._tcp.cassandra.default" + d, dns.TypeSRV, "NOERROR: SRV 0 50 9042 " +
			"10-244-1-5.cassandra.default.svc.cluster.local., SRV 0 50 9042 " +
			"10-244-2-9.cassandra.default.svc.cluster.local."},
		// StatefulSets.
		{"mysql-0.mysql.default" + d, dns.TypeA, "NOERROR: A 10.244.1.6"},
		{"mysql-1.mysql.default" + d, dns.TypeA, "NOERROR: A 10.244.2.6"},
		{"mysql-2.mysql.default" + d, dns.TypeA, "NXDOMAIN:  +SOA"},
		{"mysql.default" + d, dns.TypeA, "NOERROR: A 10.244.1.6, A 10.244.2.6"},
		// ExternalName.
		{"external-db.default" + d, dns.TypeA, "NOERROR: A 192.0.2.7, CNAME db.example.com."},
		{"external-db.default" + d, dns.TypeAAAA, "NOERROR: CNAME db.example.com."},
		{"external-db.default" + d, dns.TypeCNAME, "NOERROR: CNAME db.example.com."},
		{"inner.default" + d, dns.TypeA, "NOERROR: A 10.96.100.50, CNAME backend.default.svc.cluster.local."},
		// Reverse.
		{"50.100.96.10.in-addr.arpa.", dns.TypePTR, "NOERROR: PTR backend.default.svc.cluster.local."},
		{"5.1.244.10.in-addr.arpa.", dns.TypePTR, "NOERROR: PTR 10-244-1-5.cassandra.default.svc.cluster.local."},
		{"0.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR,
			"NOERROR: PTR backend.default.svc.cluster.local."},
		{"9.9.9.9.in-addr.arpa.", dns.TypePTR, "NXDOMAIN: "},
		// Outside, and the walk of ndots:5.
		{"google.com.default" + d, dns.TypeA, "NXDOMAIN:  +SOA"},
		{"google.com" + d, dns.TypeA, "NXDOMAIN:  +SOA"},
		{"google.com.cluster.local.", dns.TypeA, "NXDOMAIN:  +SOA"},
		{"google.com.", dns.TypeA, "NOERROR: A 192.0.2.7"},
		{"dead.example.com.", dns.TypeA, "SERVFAIL: "},
		{"notcluster.local.", dns.TypeA, "NXDOMAIN: "},
	} {
		t.Run(fmt.Sprintf("%s %s", tc.name, dns.TypeToString[tc.qtype]), func(t *testing.T) {
			q := new(dns.Msg).SetQuestion(tc.name, tc.qtype)
			m := r.Resolve(t.Context(), q)
			if got := dnstest.Text(m); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if m.Id != q.Id || m.Question[0].Name != tc.name || !m.Response {
				t.Error("the reply is not one to this question, letter by letter")
			}
			if _, err := m.Pack(); err != nil {
				t.Errorf("the reply cannot be sent: %v", err)
			}
		})
	}
}

func TestAnAliasOfItselfEnds(t *testing.T) {
	r := &Resolver{Zone: fill(t, dnstest.Cluster(t)), Forward: upstream, Domains: []string{"cluster.local."}}
	m := r.Resolve(t.Context(), new(dns.Msg).SetQuestion("loop.default.svc.cluster.local.", dns.TypeA))
	if len(m.Answer) != wire.MaxAliases+1 {
		t.Errorf("%d records", len(m.Answer))
	}
}

func TestOddMessages(t *testing.T) {
	r := &Resolver{Zone: zone.New(), Forward: upstream, Domains: []string{"cluster.local."}}
	for _, tc := range []struct {
		name string
		make func(*dns.Msg)
		want int
	}{
		{"no question", func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		{"a reply", func(m *dns.Msg) { m.Response = true }, dns.RcodeFormatError},
		{"update", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		{"chaos class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		{"EDNS 1", func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
		{"no recursion", func(m *dns.Msg) { m.RecursionDesired = false }, dns.RcodeRefused},
	} {
		q := new(dns.Msg).SetQuestion("google.com.", dns.TypeA)
		tc.make(q)
		m := r.Resolve(t.Context(), q)
		if m.Rcode != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, dns.RcodeToString[m.Rcode], dns.RcodeToString[tc.want])
		}
	}
}

func TestAnswersAreRotated(t *testing.T) {
	r := &Resolver{Zone: fill(t, dnstest.Cluster(t)), Forward: upstream, Domains: []string{"cluster.local."}}
	first := map[string]int{}
	for range 200 {
		m := r.Resolve(t.Context(), new(dns.Msg).SetQuestion("cassandra.default.svc.cluster.local.", dns.TypeA))
		first[m.Answer[0].String()]++
	}
	if len(first) != 2 {
		t.Errorf("first answers were %v", first)
	}
}

func FuzzResolve(f *testing.F) {
	q, err := new(dns.Msg).SetQuestion("backend.default.svc.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(q)
	f.Add([]byte{0})
	r := &Resolver{Zone: fill(f, dnstest.Cluster(f)), Forward: upstream, Domains: []string{"cluster.local."}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := new(dns.Msg)
		if m.Unpack(raw) != nil {
			return
		}
		reply := r.Resolve(context.Background(), m)
		reply.Truncate(dns.MinMsgSize)
		_, _ = reply.Pack()
	})
}

func BenchmarkResolveClusterName(b *testing.B) {
	r := &Resolver{Zone: fill(b, dnstest.Cluster(b)), Forward: upstream, Domains: []string{"cluster.local."}}
	raw, err := new(dns.Msg).SetQuestion("backend.default.svc.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		q := new(dns.Msg)
		if err := q.Unpack(raw); err != nil {
			b.Fatal(err)
		}
		if _, err := r.Resolve(b.Context(), q).Pack(); err != nil {
			b.Fatal(err)
		}
	}
}

// Names of pods, by the setting; the name server's own; two domains; reverse names
// of IPv6; all of the specification that is of no Service.
func TestAnswersBesideServices(t *testing.T) {
	r := &Resolver{Zone: fill(t, dnstest.Cluster(t)), Forward: upstream, Domains: []string{"cluster.local.",
		"corp.example."},
		Servers: []netip.Addr{dnstest.Addr("10.96.0.10"), dnstest.Addr("fd00:96::a")}}
	for _, tc := range []struct {
		pods, name string
		qtype      uint16
		want       string
	}{
		{"insecure", "10-244-1-5.default.pod.cluster.local.", dns.TypeA, "NOERROR: A 10.244.1.5"},
		{"insecure", "10-244-1-5.Default.POD.corp.example.", dns.TypeA, "NOERROR: A 10.244.1.5"},
		{"insecure", "10-244-1-5.default.pod.cluster.local.", dns.TypeAAAA, "NOERROR:  +SOA"},
		{"insecure", "fd00--1-5.default.pod.cluster.local.", dns.TypeAAAA, "NOERROR: AAAA fd00::1:5"},
		{"insecure", "10-244-1-5.nowhere.pod.cluster.local.", dns.TypeA, "NXDOMAIN:  +SOA"},
		{"insecure", "10-244-1-500.default.pod.cluster.local.", dns.TypeA, "NXDOMAIN:  +SOA"},
		{"insecure", "x.10-244-1-5.default.pod.cluster.local.", dns.TypeA, "NXDOMAIN:  +SOA"},
		{"insecure", "web.default.pod.cluster.local.", dns.TypeA, "NXDOMAIN:  +SOA"},
		{"insecure", "default.pod.cluster.local.", dns.TypeA, "NOERROR:  +SOA"},
		{"insecure", "pod.cluster.local.", dns.TypeA, "NOERROR:  +SOA"},
		{"disabled", "10-244-1-5.default.pod.cluster.local.", dns.TypeA, "NXDOMAIN:  +SOA"},
		{"disabled", "pod.cluster.local.", dns.TypeA, "NXDOMAIN:  +SOA"},
		{"", "ns.dns.cluster.local.", dns.TypeA, "NOERROR: A 10.96.0.10"},
		{"", "ns.dns.corp.example.", dns.TypeAAAA, "NOERROR: AAAA fd00:96::a"},
		{"", "ns.dns.cluster.local.", dns.TypeTXT, "NOERROR:  +SOA"},
		{"", "dns.cluster.local.", dns.TypeA, "NOERROR:  +SOA"},
		{"", "corp.example.", dns.TypeNS, "NOERROR: NS ns.dns.corp.example."},
		{"", "backend.default.svc.corp.example.", dns.TypeA, "NOERROR: A 10.96.100.50"},
		{"", "_http._tcp.backend.default.svc.corp.example.", dns.TypeSRV,
			"NOERROR: SRV 0 100 80 backend.default.svc.corp.example."},
		{"", "dns-version.corp.example.", dns.TypeTXT, `NOERROR: TXT "1.1.0"`},
		{"", "0.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR,
			"NOERROR: PTR backend.default.svc.cluster.local."},
	} {
		r.Pods = tc.pods
		m := r.Resolve(t.Context(), new(dns.Msg).SetQuestion(tc.name, tc.qtype))
		if got := dnstest.Text(m); got != tc.want || !m.Authoritative {
			t.Errorf("pods %s, %s %s: %s, want %s", tc.pods, tc.name, dns.TypeToString[tc.qtype], got, tc.want)
		}
	}
	m := r.Resolve(t.Context(), new(dns.Msg).SetQuestion("cluster.local.", dns.TypeNS))
	if len(m.Extra) != 2 || m.Extra[0].Header().Name != "ns.dns.cluster.local." {
		t.Errorf("the glue of NS is %v", m.Extra)
	}
}

// With dns.pods verified a pod has a name for each address, in its namespace only,
// as long as one that has the address is there.
func TestNamesOfPodsAreVerified(t *testing.T) {
	s := dnstest.Cluster(t)
	write := func(fn func(w *model.Writer)) {
		t.Helper()
		if err := s.Write(fn); err != nil {
			t.Fatal(err)
		}
	}
	write(func(w *model.Writer) {
		w.PutPod(&model.Pod{Name: dnstest.Name("default/web"), IPs: []netip.Addr{dnstest.Addr("10.244.1.5"),
			dnstest.Addr("fd00::5")}})
		for _, p := range []string{"default/host-a", "default/host-b"} {
			w.PutPod(&model.Pod{Name: dnstest.Name(p), IPs: []netip.Addr{dnstest.Addr("192.0.2.1")}, HostNetwork: true})
		}
	})
	z := zone.New()
	w, err := s.Watch(model.NamespaceKind | model.PodKind)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r := &Resolver{Zone: z, Forward: upstream, Domains: []string{"cluster.local."}, Pods: schema.PodsVerified}
	expect := func(rel, want string) {
		t.Helper()
		snap, c, _ := w.Poll()
		for _, k := range agent.Keys(snap, c) {
			e, ok, _ := agent.Plan(snap, k)
			if !ok {
				z.Set(k, nil)
				continue
			}
			z.Set(k, &e)
		}
		if got := dnstest.Text(r.Resolve(t.Context(), new(dns.Msg).SetQuestion(rel+".pod.cluster.local.",
			dns.TypeA))); got != want {
			t.Errorf("%s: %s, want %s", rel, got, want)
		}
	}
	expect("10-244-1-5.default", "NOERROR: A 10.244.1.5")
	expect("10-244-1-5.empty", "NXDOMAIN:  +SOA")
	expect("10-244-1-6.default", "NXDOMAIN:  +SOA")
	expect("fd00--5.default", "NOERROR:  +SOA")
	write(func(w *model.Writer) {
		w.Delete(model.PodKind, dnstest.Name("default/web"))
		w.Delete(model.PodKind, dnstest.Name("default/host-a"))
	})
	expect("10-244-1-5.default", "NXDOMAIN:  +SOA")
	expect("192-0-2-1.default", "NOERROR: A 192.0.2.1")
	write(func(w *model.Writer) { w.Delete(model.PodKind, dnstest.Name("default/host-b")) })
	expect("192-0-2-1.default", "NXDOMAIN:  +SOA")
	for _, e := range z.Entries() {
		if len(e.Pod) > 0 {
			t.Errorf("%v is left behind", e)
		}
	}
}
