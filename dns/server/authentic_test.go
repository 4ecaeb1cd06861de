package server

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"wayleave.dev/dns/forward"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
	"wayleave.dev/dns/zone"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/model"
)

// That data is authenticated is what upstream says, to clients that ask for it by AD or
// DO (RFC 6840, 5.7 and 5.8), whoever asked first; and never of what is put together from
// a server that says so and one that does not.
func TestAuthenticatedData(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	signed := func(ad bool) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			m := dnstest.Told(q, "192.0.2.1", 300)
			if strings.EqualFold(q.Question[0].Name, "alias.example.") {
				m.Answer = []dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeCNAME,
					Class: dns.ClassINET, Ttl: 300}, Target: "a.plain.example."}}
			}
			// As a validating resolver does: only for clients that ask for it.
			if m.AuthenticatedData = ad && q.AuthenticatedData; m.AuthenticatedData {
				asked.Add(1)
			}
			_ = w.WriteMsg(m)
		}
	}
	yes, no := dnstest.NewServer(t, signed(true)), dnstest.NewServer(t, signed(false))
	f := forward.New(nil)
	t.Cleanup(f.Close)
	f.Configure(schema.Forwarding{Upstreams: []model.Nameserver{yes.Nameserver()}, Cache: dnstest.Limits,
		Stubs: map[string][]model.Nameserver{"plain.example.": {no.Nameserver()}}})
	r := &Resolver{Zone: zone.New(), Forward: f.Forward, Domains: []string{"cluster.local."}}
	r.Zone.Set(dnstest.Name("default/out"), &schema.Records{CNAME: "a.signed.example"})
	plain := func(*dns.Msg) {}
	ad := func(q *dns.Msg) { q.AuthenticatedData = true }
	do := func(q *dns.Msg) { q.SetEdns0(1232, true) }
	edns := func(q *dns.Msg) { q.SetEdns0(1232, false) }
	for _, tc := range []struct {
		what, name string
		change     func(*dns.Msg)
		want       bool
	}{
		{"nobody asked", "a.signed.example.", plain, false},
		{"EDNS0 alone", "a.signed.example.", edns, false},
		{"AD", "a.signed.example.", ad, true},
		{"DO", "a.signed.example.", do, true},
		{"AD of what is not authenticated", "a.plain.example.", ad, false},
		{"DO of what is not authenticated", "a.plain.example.", do, false},
		{"AD of an alias into what is not", "alias.example.", ad, false},
		{"AD of a name of the cluster that leads out", "out.default.svc.cluster.local.", ad, false},
	} {
		q := new(dns.Msg).SetQuestion(tc.name, dns.TypeA)
		tc.change(q)
		for _, when := range []string{"first", "from the cache"} {
			m := r.Resolve(t.Context(), q)
			if m.AuthenticatedData != tc.want || len(m.Answer) == 0 {
				t.Errorf("%s, %s: %v", tc.what, when, m)
			}
		}
		raw, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if b, ok := f.Answer(nil, raw, wire.MaxUDP); ok != !strings.HasSuffix(tc.name, "cluster.local.") {
			t.Errorf("%s: on the hot path it is %v", tc.what, ok)
		} else if ok && (b[3]&0x20 != 0) != tc.want {
			t.Errorf("%s: the hot path answers %x", tc.what, b)
		}
	}
	if asked.Load() == 0 {
		t.Error("nothing was authenticated")
	}
}
