package server

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/zone"
	"wayleave.dev/internal/dnstest"
)

// A short query costs little, however many records its name has: a datagram's reply has room for few of them.
func TestLargeAnswersAreNotMadeForDatagrams(t *testing.T) {
	const many = 5000
	z := zone.New()
	all := schema.Records{Ports: []schema.Port{{Name: "p", Protocol: "tcp", Port: 1}}}
	for i := range many {
		a := netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
		all.Hosts = append(all.Hosts, schema.Host{Name: fmt.Sprintf("h-%d", i), Addr: a})
		z.Set(dnstest.Name(fmt.Sprintf("default/s-%d", i)),
			&schema.Records{Hosts: []schema.Host{{Name: "h", Addr: dnstest.Addr("10.8.0.1")}}})
	}
	z.Set(dnstest.Name("default/all"), &all)
	s := New(z, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	s.Configure(schema.Settings{Domains: []string{"cluster.local."}})
	client := netip.MustParseAddr("127.0.0.1")
	for _, q := range []struct {
		name  string
		qtype uint16
	}{{"_p._tcp.all.default.svc.cluster.local.", dns.TypeSRV}, {"1.0.8.10.in-addr.arpa.", dns.TypePTR}} {
		raw := dnstest.Query(t, q.name, q.qtype, nil)
		allocations := testing.AllocsPerRun(3, func() { s.answerSlowly(raw, client, overUDP) })
		if allocations > many/4 {
			t.Errorf("%s: %.0f allocations for a reply by UDP of %d records", q.name, allocations, many)
		}
		for by, least := range map[*transport]int{&overUDP: 5, &overTCP: many / 5} {
			m := new(dns.Msg)
			if err := m.Unpack(s.answerSlowly(raw, client, *by)); err != nil {
				t.Fatal(err)
			}
			if len(m.Answer) < least || !m.Truncated || m.Rcode != dns.RcodeSuccess {
				t.Errorf("%s by %s: %d records, truncated %t, want at least %d, truncated", q.name, by.network,
					len(m.Answer), m.Truncated, least)
			}
		}
	}
}
