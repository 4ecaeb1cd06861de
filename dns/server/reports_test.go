package server

import (
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"wayleave.dev/internal/dnstest"
	"wayleave.dev/model"
	"wayleave.dev/source"
)

// Inputs of public reports about CoreDNS, written anew; docs/field-reports.md lists them.
func TestReportsOfCoreDNS(t *testing.T) {
	s := dnstest.Cluster(t)
	dotted, problems := source.Service(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "dotted"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "db.example.com."}})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	err := s.Write(func(w *model.Writer) {
		w.PutService(dotted)
		w.PutService(&model.Service{Name: dnstest.Name("default/nginx"), Type: model.ExternalName,
			ExternalName: "nginx1.nginx.svc.cluster.local"})
		w.PutService(&model.Service{Name: dnstest.Name("default/mine"), Headless: true})
		w.PutEndpointSlice(&model.EndpointSlice{Name: dnstest.Name("default/mine-1"), Service: "mine",
			Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 80}},
			Endpoints: []model.Endpoint{{Addr: dnstest.Addr("10.1.1.1"), Hostname: "test.hostname", Ready: true},
				{Addr: dnstest.Addr("10.1.1.2"), Hostname: "two", Ready: true}}})
		w.PutService(&model.Service{Name: dnstest.Name("default/single"), Headless: true})
		w.PutEndpointSlice(&model.EndpointSlice{Name: dnstest.Name("default/single-1"), Service: "single",
			Endpoints: []model.Endpoint{{Addr: dnstest.Addr("fd00::5"), Ready: true}}})
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &Resolver{Zone: fill(t, s), Forward: upstream, Domains: []string{"cluster.local."}}
	const d = ".svc.cluster.local."
	for _, tc := range []struct {
		report, name string
		qtype        uint16
		want         string
	}{
		{"kubernetes#78384", "dotted.default" + d, dns.TypeA, "NOERROR: A 192.0.2.7, CNAME db.example.com."},
		{"#5733", "nginx2.nginx.default" + d, dns.TypeA, "NXDOMAIN:  +SOA"},
		{"#5733", "nginx.default" + d, dns.TypeCNAME, "NOERROR: CNAME nginx1.nginx.svc.cluster.local."},
		{"#6607", "mine.default" + d, dns.TypeA, "NOERROR: A 10.1.1.1, A 10.1.1.2"},
		{"#6607", "two.mine.default" + d, dns.TypeA, "NOERROR: A 10.1.1.2"},
		{"#5736", "foobarbaz" + d, dns.TypeTXT, "NXDOMAIN:  +SOA"},
		{"#5736", "foobarbaz" + d, dns.TypeA, "NXDOMAIN:  +SOA"},
		{"#3670", "cluster.local.", dns.TypeA, "NOERROR:  +SOA"},
		{"#975", "_tcp.cassandra.default" + d, dns.TypeSRV, "NOERROR:  +SOA"},
		{"#1851", "backend.default.extsvc.cluster.local.", dns.TypeA, "NXDOMAIN:  +SOA"},
		{"a headless Service of one family", "single.default" + d, dns.TypeA, "NOERROR:  +SOA"},
	} {
		m := r.Resolve(t.Context(), new(dns.Msg).SetQuestion(tc.name, tc.qtype))
		if got := dnstest.Text(m); got != tc.want {
			t.Errorf("%s, %s %s: got  %s\nwant %s", tc.report, dns.Type(tc.qtype), tc.name, got, tc.want)
		}
	}
}
