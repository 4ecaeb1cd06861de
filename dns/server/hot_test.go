package server

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"wayleave.dev/dns/cache"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
	"wayleave.dev/dns/zone"
	"wayleave.dev/internal/dnstest"
)

// hotZone is a zone with its domains, as the hot path takes them.
func hotZone(t testing.TB) (*zone.Zone, *Resolver, []wire.Domain) {
	r := &Resolver{Zone: fill(t, dnstest.Cluster(t)), Forward: upstream, Domains: []string{"cluster.local.",
		"example.internal."}}
	many := schema.Records{Ports: []schema.Port{{Name: "p", Protocol: "tcp", Port: 1}}}
	for i := range 100 {
		many.Hosts = append(many.Hosts, schema.Host{Name: fmt.Sprintf("h-%d", i),
			Addr: netip.AddrFrom4([4]byte{10, 9, 0, byte(i)})})
	}
	r.Zone.Set(dnstest.Name("default/many"), &many)
	both := schema.Records{Ports: []schema.Port{{Name: "p", Protocol: "tcp", Port: 1},
		{Name: "q", Protocol: "udp", Port: 2}},
		Hosts: []schema.Host{{Name: "a", Addr: dnstest.Addr("10.8.0.1")}, {Name: "a", Addr: dnstest.Addr("fd08::1")},
			{Name: "b", Addr: dnstest.Addr("10.8.0.2")}}}
	r.Zone.Set(dnstest.Name("default/both"), &both)
	split := schema.Records{Ports: []schema.Port{{Name: "p", Protocol: "tcp", Port: 1, Hosts: []string{"a"}},
		{Name: "p", Protocol: "tcp", Port: 2}, {Name: "q", Protocol: "tcp", Port: 3, Hosts: []string{"b"}}},
		Hosts: []schema.Host{{Name: "a", Addr: dnstest.Addr("10.7.0.1")}, {Name: "b", Addr: dnstest.Addr("10.7.0.1")},
			{Name: "b", Addr: dnstest.Addr("10.7.0.2")}}}
	r.Zone.Set(dnstest.Name("default/split"), &split)
	return r.Zone, r, wire.Domains(r.Domains)
}

// namesOf are the names and the addresses of a zone, by what it is made of.
func namesOf(z *zone.Zone) (names map[string]bool, addrs map[netip.Addr]bool) {
	names, addrs = map[string]bool{"dns-version": true}, map[netip.Addr]bool{}
	add := func(name string) {
		for ok := true; ok; _, name, ok = strings.Cut(name, ".") {
			names[name] = true
		}
	}
	for k, e := range z.Entries() {
		base := k.Namespace + ".svc"
		if k.Name != "" {
			base = k.Name + "." + base
		}
		add(base)
		for _, h := range slices.Concat(e.Hosts, e.Named) {
			add(h.Name + "." + base)
			addrs[h.Addr] = true
		}
		for _, a := range e.VIPs {
			addrs[a] = true
		}
		for _, p := range e.Ports {
			add("_" + p.Name + "._" + p.Protocol + "." + base)
		}
	}
	return names, addrs
}

// The hot path answers what the slow path does, for every name there is and some
// that are not, of all types, with and without EDNS0.
func TestTheHotPathAnswersAsTheSlowOne(t *testing.T) {
	z, r, domains := hotZone(t)
	var names []string
	all, addrs := namesOf(z)
	for rel := range all {
		for _, d := range r.Domains {
			names = append(names, rel+"."+d, "x."+rel+"."+d, strings.ToUpper(rel)+"."+d)
		}
	}
	for a := range addrs {
		rev, err := dns.ReverseAddr(a.String())
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, rev)
	}
	names = append(names, "cluster.local.", "xcluster.local.", "local.", ".", "a\\.b.svc.cluster.local.",
		"1.0.0.10.in-addr.arpa.", "google.com.")
	hot := map[bool]int{}
	for _, n := range names {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeTXT, dns.TypeNS,
			dns.TypeSOA, dns.TypeANY} {
			for _, size := range []uint16{0, 100, 700, 1232, 4096} {
				q := new(dns.Msg).SetQuestion(n, qtype)
				if size > 0 {
					q.SetEdns0(size, size == 700)
				}
				hot[sameBothWays(t, z, r, domains, q)]++
			}
		}
	}
	if hot[true] < 5*hot[false] {
		t.Errorf("the hot path took %d, the slow path %d", hot[true], hot[false])
	}
}

func sameBothWays(t *testing.T, z *zone.Zone, r *Resolver, domains []wire.Domain, q *dns.Msg) bool {
	t.Helper()
	in, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var parsed wire.Question
	if !parsed.Read(in) {
		t.Fatalf("a usual query is not read: %v", q)
	}
	out, _, ok := z.Answer(nil, in, &parsed, domains, rand.Uint32())
	if !ok {
		return false
	}
	got := new(dns.Msg)
	if err := got.Unpack(out); err != nil {
		t.Fatalf("%v: %v: %x", q.Question, err, out)
	}
	if len(out) > parsed.Size {
		t.Fatalf("%v: %d bytes", q.Question, len(out))
	}
	want := r.Resolve(t.Context(), q)
	if got.Truncated {
		all := len(want.Answer)
		if want.Truncate(parsed.Size); !want.Truncated || len(got.Answer) == 0 || len(got.Answer) >= all ||
			len(got.Answer) < len(want.Answer) {
			t.Fatalf("%v: truncated to %d of %d, the slow path to %d", q.Question, len(got.Answer), all,
				len(want.Answer))
		}
		return true
	}
	if g, w := dnstest.Sorted(got), dnstest.Sorted(want); g != w {
		t.Fatalf("the hot path answers\n%s\nthe slow path\n%s", g, w)
	}
	return true
}

func packed(t testing.TB, name string, qtype uint16) []byte {
	raw, err := new(dns.Msg).SetQuestion(name, qtype).SetEdns0(1232, false).Pack()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// No query of a cluster name allocates memory.
func TestTheHotPathAllocatesNothing(t *testing.T) {
	z, _, domains := hotZone(t)
	out, q := make([]byte, 0, wire.MaxUDP), new(wire.Question)
	for _, in := range [][]byte{packed(t, "backend.default.svc.cluster.local.", dns.TypeA),
		packed(t, "BACKEND.default.svc.example.internal.", dns.TypeAAAA),
		packed(t, "nobody.default.svc.cluster.local.", dns.TypeA),
		packed(t, "many.default.svc.cluster.local.", dns.TypeA),
		packed(t, "_p._tcp.both.default.svc.cluster.local.", dns.TypeSRV), packed(t, "50.100.96.10.in-addr.arpa.",
			dns.TypePTR)} {
		allocs := testing.AllocsPerRun(100, func() {
			read := q.Read(in)
			if _, _, ok := z.Answer(out, in, q, domains, 7); !read || !ok {
				t.Fatalf("not for the hot path: %q", in)
			}
		})
		if allocs != 0 {
			t.Errorf("%q: %v allocations", in, allocs)
		}
	}
}

// What is not a plain query of one name is left to the slow path.
func TestOddQueriesAreNotForTheHotPath(t *testing.T) {
	plain := packed(t, "backend.default.svc.cluster.local.", dns.TypeA)
	if !new(wire.Question).Read(plain) {
		t.Fatal("a plain query is not read")
	}
	end := len(plain) - 11 // the OPT record
	for what, change := range map[string]func(b []byte) []byte{
		"a reply":            func(b []byte) []byte { b[2] |= 0x80; return b },
		"an update":          func(b []byte) []byte { b[2] |= 5 << 3; return b },
		"truncated":          func(b []byte) []byte { b[2] |= 2; return b },
		"no question":        func(b []byte) []byte { b[5] = 0; return b },
		"two questions":      func(b []byte) []byte { b[5] = 2; return b },
		"an answer":          func(b []byte) []byte { b[7] = 1; return b },
		"class chaos":        func(b []byte) []byte { b[end-1] = 3; return b },
		"a pointer":          func(b []byte) []byte { b[12], b[13] = 0xc0, 0x0c; return b },
		"a label too long":   func(b []byte) []byte { b[12] = 64; return b },
		"cut":                func(b []byte) []byte { return b[:len(b)-1] },
		"more behind it":     func(b []byte) []byte { return append(b, 0) },
		"EDNS version 1":     func(b []byte) []byte { b[end+6] = 1; return b },
		"not an OPT":         func(b []byte) []byte { b[end+2] = 1; return b },
		"an option cut":      func(b []byte) []byte { b[len(b)-1] = 9; return b },
		"half an option":     func(b []byte) []byte { b[len(b)-1] = 3; return append(b, 0, 3, 0) },
		"too long an option": func(b []byte) []byte { b[len(b)-1] = 8; return append(b, 0, 3, 0, 0, 0, 3, 0, 1) },
		"no end of the name": func(b []byte) []byte { return b[:30] },
		"nothing":            func([]byte) []byte { return nil },
	} {
		if new(wire.Question).Read(change(slices.Clone(plain))) {
			t.Errorf("%s is read", what)
		}
	}
}

// FuzzQuery: whatever the hot path answers is a message that fits, and a reply to
// the question that the library reads.
func FuzzQuery(f *testing.F) {
	z, r, domains := hotZone(f)
	for _, n := range []string{"backend.default.svc.cluster.local.", "_p._tcp.both.default.svc.cluster.local.",
		"50.100.96.10.in-addr.arpa.", "x.svc.example.internal."} {
		f.Add(packed(f, n, dns.TypeA), uint32(0))
		f.Add(packed(f, n, dns.TypeSRV), uint32(1<<31))
		f.Add(packed(f, n, dns.TypePTR), uint32(1<<32-1))
	}
	for _, n := range []string{"many.default.SVC.cluster.local.", "_p._tcp.split.default.svc.cluster.local.",
		`a\.b\000\255\@.cluster.local.`, "nobody.example.internal.", "inner.default.svc.cluster.local.",
		"0.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.", "dns-version.cluster.local.",
		"google.com.", ".", strings.Repeat("x.", 100) + "cluster.local."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR} {
			bare, options := new(dns.Msg).SetQuestion(n, qtype), new(dns.Msg).SetQuestion(n, qtype)
			options.SetEdns0(600, true)
			options.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID},
				&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"},
				&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(192, 0, 2, 0)},
				&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 2, SourceNetmask: 56,
					Address: net.ParseIP("2001:db8::")},
				&dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE}, &dns.EDNS0_EXPIRE{Code: dns.EDNS0EXPIRE},
				&dns.EDNS0_PADDING{Padding: make([]byte, 3)}, &dns.EDNS0_EDE{InfoCode: 1, ExtraText: "x"},
				&dns.EDNS0_ESU{Code: dns.EDNS0ESU, Uri: "sip:x"},
				&dns.EDNS0_UL{Code: dns.EDNS0UL, Lease: 1, KeyLease: 2}, &dns.EDNS0_LLQ{Code: dns.EDNS0LLQ, Version: 1},
				&dns.EDNS0_DAU{Code: dns.EDNS0DAU, AlgCode: []uint8{8}}, &dns.EDNS0_DHU{Code: dns.EDNS0DHU,
					AlgCode: []uint8{1}},
				&dns.EDNS0_N3U{Code: dns.EDNS0N3U, AlgCode: []uint8{1}}, &dns.EDNS0_LOCAL{Code: dns.EDNS0LOCALSTART,
					Data: []byte{1}}}
			for _, m := range []*dns.Msg{bare, options} {
				raw, err := m.Pack()
				if err != nil {
					f.Fatal(err)
				}
				f.Add(raw, uint32(1<<30))
			}
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, random uint32) {
		var q wire.Question
		if !q.Read(in) {
			return
		}
		out, _, ok := z.Answer(nil, in, &q, domains, random)
		if !ok {
			return
		}
		asked, got := new(dns.Msg), new(dns.Msg)
		if err := asked.Unpack(in); err != nil {
			// It may dislike what is in an option that we ignore, and nothing else.
			in = slices.Clone(in)
			if q.EDNS {
				in = append(in[:q.End+9], 0, 0)
			}
			if err := asked.Unpack(in); err != nil {
				t.Fatalf("the library does not read %x: %v", in, err)
			}
		}
		if err := got.Unpack(out); err != nil || len(out) > q.Size || got.Id != asked.Id ||
			got.Question[0] != asked.Question[0] {
			t.Fatalf("%x is answered by %x: %v", in, out, err)
		}
		if want := r.Resolve(t.Context(), asked); got.Rcode != want.Rcode ||
			(!got.Truncated && len(got.Answer) != len(want.Answer)) {
			t.Fatalf("the hot path answers\n%v\nthe slow path\n%v", got, want)
		}
	})
}

// FuzzParsers: the parsers of queries, that of the cluster's names and that of the cache,
// read the same in what both take for a usual query. Without the library behind it this
// is fast enough to see all that there is to cover.
func FuzzParsers(f *testing.F) {
	for _, n := range []string{"backend.default.svc.cluster.local.", "50.100.96.10.in-addr.arpa.",
		"X.svc.Example.internal.", "."} {
		raw := packed(f, n, dns.TypeA)
		f.Add(raw)
		f.Add(append(raw[:len(raw)-1:len(raw)-1], 6, 0, 10, 0, 2, 1, 2))
	}
	z, _, domains := hotZone(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		var q wire.Question
		var key [cache.MaxKey]byte
		read := q.Read(in)
		other, ok := cache.Parse(in, &key)
		if !read {
			return
		}
		if out, _, ok := z.Answer(nil, in, &q, domains, 7); ok && len(out) > q.Size {
			t.Fatalf("%x is answered by %d bytes, %d were allowed", in, len(out), q.Size)
		}
		if !ok {
			return
		}
		name := key[:other.Key-3]
		if string(name) != string(q.Name) || other.End != q.End || other.EDNS != q.EDNS || other.Do != q.DNSSEC ||
			other.Recursion != q.Recursion || min(max(other.Size, dns.MinMsgSize), wire.MaxUDP) != q.Size {
			t.Fatalf("%x is read as %+v of %x, and as %+v of %x", in, q, q.Name, other, name)
		}
	})
}

func BenchmarkHotPath(b *testing.B) {
	z, _, domains := hotZone(b)
	for _, tc := range []struct {
		what string
		in   []byte
	}{{"A", packed(b, "backend.default.svc.cluster.local.", dns.TypeA)},
		{"NXDOMAIN", packed(b, "google.com.default.svc.cluster.local.", dns.TypeA)},
		{"SRV", packed(b, "_p._tcp.both.default.svc.cluster.local.", dns.TypeSRV)},
		{"PTR", packed(b, "50.100.96.10.in-addr.arpa.", dns.TypePTR)}} {
		b.Run(tc.what, func(b *testing.B) {
			out, q := make([]byte, 0, wire.MaxUDP), new(wire.Question)
			b.ReportAllocs()
			for b.Loop() {
				q.Read(tc.in)
				if _, _, ok := z.Answer(out, tc.in, q, domains, 7); !ok {
					b.Fatal("not for the hot path")
				}
			}
		})
	}
}
