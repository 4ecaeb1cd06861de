package service

import (
	"fmt"
	"net/netip"
	"testing"

	"wayleave.dev/model"
)

// Inputs of public reports about kube-proxy and EndpointSlices, written anew; docs/field-reports.md lists them.
func TestReportsOfEndpoints(t *testing.T) {
	port := func(n uint16) []model.EndpointPort {
		return []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: n}}
	}
	for _, tc := range []struct {
		name   string
		slices []model.EndpointSlice
		change func(*model.Service)
		want   string
	}{
		{name: "kubernetes#101935 one address with two ports", want: "[10.0.1.1:8080 10.0.1.1:8081]",
			slices: []model.EndpointSlice{{Ports: port(8080),
				Endpoints: []model.Endpoint{ep("10.0.1.1", "n", "ready")}}, {Ports: port(8081),
				Endpoints: []model.Endpoint{ep("10.0.1.1", "n", "ready")}}}},
		{name: "kubernetes#114144 one endpoint in two slices", want: "[10.0.1.1:8080 10.0.1.2:8080]",
			slices: []model.EndpointSlice{{Ports: port(8080), Endpoints: []model.Endpoint{ep("10.0.1.1", "n", "ready"),
				ep("10.0.1.2", "n", "ready")}}, {Ports: port(8080),
				Endpoints: []model.Endpoint{ep("10.0.1.1", "n", "ready")}}}},
		{name: "kubernetes#135266 ready in one slice, not in another", want: "[10.0.1.1:8080]",
			slices: []model.EndpointSlice{{Ports: port(8080), Endpoints: []model.Endpoint{ep("10.0.1.1", "n", "")}},
				{Ports: port(8080), Endpoints: []model.Endpoint{ep("10.0.1.1", "n", "ready")}},
				{Ports: port(8080), Endpoints: []model.Endpoint{ep("10.0.1.1", "n", "terminating")}}}},
		{name: "kubernetes#115907 an ended pod had the address of a ready one", want: "[10.0.1.1:8080]",
			slices: []model.EndpointSlice{{Ports: port(8080), Endpoints: []model.Endpoint{
				{Addr: netip.MustParseAddr("10.0.1.1"), Pod: "ended"}, {Addr: netip.MustParseAddr("10.0.1.1"),
					Pod: "new", Ready: true, Serving: true}}}}},
		{name: "kubernetes#110302 affinity does not keep an endpoint that is not ready", want: "[10.0.1.2:8080]",
			change: func(s *model.Service) { s.Affinity = 10800e9 },
			slices: []model.EndpointSlice{{Ports: port(8080), Endpoints: []model.Endpoint{ep("10.0.1.1", "n", ""),
				ep("10.0.1.2", "n", "ready")}}}},
		{name: "kubernetes#106030 no usable endpoint is refused, not dropped", want: "[]",
			slices: []model.EndpointSlice{{Ports: port(8080), Endpoints: []model.Endpoint{ep("10.0.1.1", "n", "")}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := reported(t, tc.change, tc.slices...)
			if got := fmt.Sprint(p.Frontends[0].Slots); got != tc.want || p.Frontends[0].Drop {
				t.Errorf("slots are %s, drop %t; want %s", got, p.Frontends[0].Drop, tc.want)
			}
		})
	}
}

// reported plans a Service with slices on node n.
func reported(t *testing.T, change func(*model.Service), slices ...model.EndpointSlice) Plan {
	t.Helper()
	svc := &model.Service{Name: model.Name{Namespace: "ns", Name: "web"},
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports:      []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80, NodePort: 30080}}}
	if change != nil {
		change(svc)
	}
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	err = store.Write(func(w *model.Writer) {
		w.PutService(svc)
		for i := range slices {
			slices[i].Name, slices[i].Service = model.Name{Namespace: "ns", Name: fmt.Sprint("web-", i)}, "web"
			w.PutEndpointSlice(&slices[i])
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	p, ok, problems := Make(store.Snapshot(), svc.Name, "n")
	if !ok || len(problems) > 0 {
		t.Fatal(ok, problems)
	}
	return p
}

// With externalTrafficPolicy Local, affinity chooses among this node's endpoints, in each mode: plans have no others
// for clients from outside (kubernetes#55429, #71596).
func TestReportsOfLocalAffinity(t *testing.T) {
	ports := []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}
	p := reported(t, func(s *model.Service) {
		s.Type, s.ExternalLocal, s.Affinity = model.NodePort, true, 10800e9
	}, model.EndpointSlice{Ports: ports, Endpoints: []model.Endpoint{ep("10.0.1.1", "n", "ready"),
		ep("10.0.1.2", "other", "ready")}})
	found := false
	for _, f := range p.Frontends {
		if !f.External {
			continue
		}
		found = true
		if fmt.Sprint(f.Outside) != "[10.0.1.1:8080]" || f.Affinity != 10800e9 || !f.Split || f.Drop {
			t.Errorf("%+v", f)
		}
	}
	if !found {
		t.Errorf("no frontend for outside: %+v", p.Frontends)
	}
}

// Which tracked UDP flows end: those to endpoints that do not serve, also when none is left or the Service is deleted,
// and untranslated ones once there is an endpoint (kubernetes#139629, #141371, #48370, #59368, #105192, #106163).
func TestReportsOfStaleFlows(t *testing.T) {
	at := netip.MustParseAddrPort
	table := func(slots ...netip.AddrPort) *OwnershipTable {
		k := model.Name{Namespace: "ns", Name: "dns"}
		b := NewOwnershipTable()
		b.owner[Frontend{netip.MustParseAddr("10.96.0.10"), model.UDP, 53}] = k
		b.Plans[k] = Plan{Frontends: []FrontendPlan{{Slots: slots,
			Frontend: Frontend{netip.MustParseAddr("10.96.0.10"), model.UDP, 53}}}}
		return b
	}
	vip, old, other := at("10.96.0.10:53"), at("10.0.0.1:53"), at("10.0.0.2:53")
	gone := map[Frontend]bool{{netip.MustParseAddr("10.96.0.10"), model.UDP, 53}: true}
	for _, tc := range []struct {
		name    string
		table   *OwnershipTable
		gone    map[Frontend]bool
		backend netip.AddrPort
		want    bool
	}{
		{"#59368 the endpoint was replaced", table(other), nil, old, true},
		{"the endpoint serves", table(old), nil, old, false},
		{"#139629 no endpoint is left", table(), nil, old, true},
		{"#141371 the Service was deleted", NewOwnershipTable(), gone, old, true},
		{"#48370, #106163 and #105192 the first endpoint comes", table(old), nil, vip, true},
		{"#106163 endpoints that are not ready end no flow", table(), nil, vip, false},
		{"#113802 flows to other destinations stay", NewOwnershipTable(), nil, old, false},
	} {
		if got := tc.table.Stale(tc.gone)(vip, tc.backend); got != tc.want {
			t.Errorf("%s: stale is %t", tc.name, got)
		}
	}
}
