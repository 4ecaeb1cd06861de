package zone

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/model"
)

// A zone that went through changes is the zone that is made anew.
func TestChangesLeaveNothingBehind(t *testing.T) {
	z := New()
	z.Reset(dnstest.Entries(t, dnstest.Cluster(t)))
	before := len(z.names)
	extra := schema.Records{Hosts: []schema.Host{{Name: "a", Addr: dnstest.Addr("10.244.9.9")}},
		Ports: []schema.Port{{Name: "p", Protocol: "tcp", Port: 1}}}
	z.Set(dnstest.Name("new/svc"), &extra)
	if len(z.names) == before {
		t.Fatal("nothing was added")
	}
	z.Set(dnstest.Name("new/svc"), &schema.Records{VIPs: []netip.Addr{dnstest.Addr("10.96.9.9")},
		Named: []schema.Host{{Name: "b", Addr: dnstest.Addr("10.244.9.9")}}})
	z.Set(dnstest.Name("new/svc"), &schema.Records{VIPs: []netip.Addr{dnstest.Addr("10.96.9.9")},
		Named: []schema.Host{{Name: "c", Addr: dnstest.Addr("10.244.9.9")}}})
	z.Set(dnstest.Name("new/svc"), &schema.Records{Unready: true})
	z.Set(dnstest.Name("new/svc"), nil)
	if len(z.names) != before || len(z.Pointer(dnstest.Addr("10.244.9.9"))) != 0 ||
		len(z.Pointer(dnstest.Addr("10.96.9.9"))) != 0 {
		t.Errorf("%d names, want %d", len(z.names), before)
	}
	for k := range z.Entries() {
		z.Set(k, nil)
	}
	if len(z.names) != len(New().names) || len(z.reverse) != 0 {
		t.Errorf("an emptied zone still has %v %v", z.names, z.reverse)
	}
}

// A zone that went through any changes of an entry, of some hosts or of all it is,
// holds exactly what a zone made of the last state does.
func TestAChangedEntryIsAsAFreshOne(t *testing.T) {
	host := func(n, a string) schema.Host { return schema.Host{Name: n, Addr: dnstest.Addr(a)} }
	ports := []schema.Port{{Name: "p", Protocol: "tcp", Port: 1}, {Name: "q", Protocol: "udp", Port: 2},
		{Name: "p", Protocol: "tcp", Port: 3}}
	states := []*schema.Records{
		{Hosts: []schema.Host{host("a", "10.0.0.1"), host("b", "10.0.0.2")}, Ports: ports},
		{Hosts: []schema.Host{host("a", "10.0.0.1"), host("b", "10.0.0.2"), host("a", "fd00::1")}, Ports: ports[:1]},
		{Hosts: []schema.Host{host("b", "10.0.0.2"), host("c", "10.0.0.1")}, Ports: ports[1:]},
		{Hosts: []schema.Host{host("c", "10.0.0.1"), host("b", "10.0.0.2"), host("bad..label", "10.0.0.3"),
			host("", "10.0.0.4")}, Ports: ports},
		{Hosts: []schema.Host{host("a", "10.0.0.1"), host("b", "10.0.0.1"), host("b", "10.0.0.2")},
			Ports: []schema.Port{{Name: "p", Protocol: "tcp", Port: 1, Hosts: []string{"a"}},
				{Name: "p", Protocol: "tcp",
					Port: 3, Hosts: []string{"a", "b"}}}},
		{Hosts: []schema.Host{host("a", "10.0.0.1"), host("b", "10.0.0.1"), host("b", "10.0.0.2")},
			Ports: []schema.Port{{Name: "p", Protocol: "tcp", Port: 1, Hosts: []string{"b"}}}},
		{VIPs: []netip.Addr{dnstest.Addr("10.96.0.1")}, Ports: ports},
		{VIPs: []netip.Addr{dnstest.Addr("10.96.0.1"), dnstest.Addr("fd00:96::1")}},
		{CNAME: "example.com"}, {Pod: []netip.Addr{dnstest.Addr("10.0.0.9")}}, {}, nil,
	}
	key := dnstest.Name("default/web")
	for i, from := range states {
		for j, to := range states {
			z, fresh := New(), New()
			for _, e := range []*schema.Records{from, to} {
				z.Set(key, e)
			}
			fresh.Set(key, to)
			if !reflect.DeepEqual(z.names, fresh.names) || !reflect.DeepEqual(z.pods, fresh.pods) ||
				!reflect.DeepEqual(z.Entries(), fresh.Entries()) {
				t.Errorf("from %d to %d: the names are\n%v, want\n%v", i, j, z.names, fresh.names)
			}
			for _, other := range []*Zone{z, fresh} {
				for a := range other.reverse {
					if got, want := slices.Sorted(slices.Values(z.reverse[a])),
						slices.Sorted(slices.Values(fresh.reverse[a])); !slices.Equal(got, want) {
						t.Errorf("from %d to %d: %s has the names %q, want %q", i, j, a, got, want)
					}
				}
			}
		}
	}
}

// BenchmarkChange changes one endpoint of a headless service of that size, among
// 1,000 services.
func BenchmarkChange(b *testing.B) {
	for _, size := range []int{10, 1000} {
		b.Run(fmt.Sprint(size, " endpoints"), func(b *testing.B) {
			z := New()
			var e [2]schema.Records
			for i := range size {
				h := schema.Host{Addr: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}
				h.Name = strings.ReplaceAll(h.Addr.String(), ".", "-")
				e[0].Hosts = append(e[0].Hosts, h)
			}
			e[0].Ports = []schema.Port{{Name: "http", Protocol: "tcp", Port: 80}}
			e[1] = e[0]
			e[1].Hosts = e[0].Hosts[1:]
			for i := range 1000 {
				z.Set(model.Name{Namespace: "default", Name: fmt.Sprint("s", i)}, &e[0])
				if size > 10 {
					break
				}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				z.Set(model.Name{Namespace: "default", Name: "s0"}, &e[i%2])
			}
		})
	}
}
