package server

import (
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/miekg/dns"

	agent "wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/model"
)

// Names of Services may begin with a digit (relaxed validation, Kubernetes 1.37), or be digits
// alone, and look like parts of addresses and of pods' names.
func TestServiceNamesThatBeginWithADigit(t *testing.T) {
	r := newCallersRig(t)
	names := []string{"7web", "1", "10-0-0-7", "0x10"}
	err := r.store.Write(func(w *model.Writer) {
		for i, n := range names {
			w.PutService(&model.Service{Name: dnstest.Name("shop/" + n),
				ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 9, byte(i + 1)})},
				Ports:      []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range names {
		r.answered("10.7.0.2", "udp", n+".shop.svc.cluster.local.", dns.TypeA, "NOERROR: A "+
			netip.AddrFrom4([4]byte{10, 96, 9, byte(i + 1)}).String())
	}
}

// The root among the search domains is the name itself, in its place of the walk.
func TestOddSearchDomains(t *testing.T) {
	c := schema.Caller{Pod: dnstest.Name("shop/cart"), Cluster: true, Searches: []string{"_tcp.Corp_x.example.",
		".", "a.example"}}
	want := []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "", "node.example",
		"_tcp.corp_x.example", "a.example"}
	if got := c.Search("cluster.local.", []string{".", "node.example."}); !slices.Equal(got, want) {
		t.Errorf("the search list is %q, want %q", got, want)
	}
	file := t.TempDir() + "/resolv.conf" // as systemd-resolved writes it where there is none
	if err := os.WriteFile(file, []byte("search old.example\nnameserver 10.0.0.1\nsearch . Corp_x.example.\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := agent.Search(file); err != nil || !slices.Equal(got, []string{".", "Corp_x.example"}) {
		t.Errorf("the node's search list is %q, %v", got, err)
	}
}

// A walk asks for the name itself where the search list has the root.
func TestAWalkPassesTheRoot(t *testing.T) {
	s := &Server{}
	s.settings.Store(&schema.Settings{Domains: []string{"cluster.local."}})
	asked := s.names(schema.Caller{Pod: dnstest.Name("shop/cart"), Cluster: true, NDots: 5,
		Searches: []string{".", "a.example"}},
		"web")
	want := []string{"web.shop.svc.cluster.local.", "web.svc.cluster.local.", "web.cluster.local.", "web.",
		"web.a.example.", "web."}
	if !slices.Equal(asked, want) {
		t.Errorf("the walk is %q, want %q", asked, want)
	}
}
