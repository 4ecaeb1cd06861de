package dnstest

import (
	"net/netip"
	"testing"

	"wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/model"
)

// Cluster is the model that the tables query.
func Cluster(t testing.TB) *model.Store {
	s, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	err = s.Write(func(w *model.Writer) {
		w.PutNamespace(&model.Namespace{Name: "default"})
		w.PutNamespace(&model.Namespace{Name: "empty"})
		w.PutService(&model.Service{Name: Name("default/backend"), ClusterIPs: []netip.Addr{Addr("10.96.100.50"),
			Addr("fd00:96::50")},
			Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}})
		w.PutService(&model.Service{Name: Name("default/cassandra"), Headless: true})
		w.PutEndpointSlice(&model.EndpointSlice{Name: Name("default/cassandra-1"), Service: "cassandra",
			Ports: []model.EndpointPort{{Name: "cql", Protocol: model.TCP, Port: 9042}},
			Endpoints: []model.Endpoint{
				{Addr: Addr("10.244.1.5"), Ready: true}, {Addr: Addr("10.244.2.9"), Ready: true},
				{Addr: Addr("10.244.3.7"), Ready: false}}})
		w.PutService(&model.Service{Name: Name("default/mysql"), Headless: true, PublishNotReady: true})
		w.PutEndpointSlice(&model.EndpointSlice{Name: Name("default/mysql-1"), Service: "mysql",
			Endpoints: []model.Endpoint{
				{Addr: Addr("10.244.1.6"), Ready: true, Hostname: "mysql-0"},
				{Addr: Addr("10.244.2.6"), Hostname: "mysql-1"}}})
		w.PutService(&model.Service{Name: Name("default/external-db"), Type: model.ExternalName,
			ExternalName: "db.example.com"})
		w.PutService(&model.Service{Name: Name("default/inner"), Type: model.ExternalName,
			ExternalName: "backend.default.svc.cluster.local"})
		w.PutService(&model.Service{Name: Name("default/loop"), Type: model.ExternalName,
			ExternalName: "loop.default.svc.cluster.local"})
		w.PutService(&model.Service{Name: Name("default/pending")})
		w.PutService(&model.Service{Name: Name("unknown/orphan"), ClusterIPs: []netip.Addr{Addr("10.96.0.77")}})
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Entries returns what the agent plans for a model.
func Entries(t testing.TB, s *model.Store) map[model.Name]schema.Records {
	t.Helper()
	w, err := s.Watch(model.ServiceKind | model.NamespaceKind)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	out := map[model.Name]schema.Records{}
	snap, c, _ := w.Poll()
	for _, k := range dns.Keys(snap, c) {
		if e, ok, _ := dns.Plan(snap, k); ok {
			out[k] = e
		}
	}
	return out
}
