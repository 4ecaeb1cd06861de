package service

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"wayleave.dev/model"
)

func ep(ip, node string, state string) model.Endpoint {
	e := model.Endpoint{Addr: netip.MustParseAddr(ip), Node: node}
	e.Ready = strings.Contains(state, "ready")
	e.Serving = e.Ready || strings.Contains(state, "serving")
	e.Terminating = strings.Contains(state, "terminating")
	return e
}

func TestWhichEndpointsServe(t *testing.T) {
	for _, tt := range []struct {
		name            string
		publishNotReady bool
		endpoints       []model.Endpoint
		want            string
	}{
		{"none", false, nil, "[]"},
		{"ready ones, sorted, each once", false, []model.Endpoint{ep("10.0.0.3", "", "ready"),
			ep("10.0.0.1", "", "ready"), ep("10.0.0.3", "", "ready")}, "[10.0.0.1:8080 10.0.0.3:8080]"},
		{"not the others", false, []model.Endpoint{ep("10.0.0.1", "", ""), ep("10.0.0.2", "", "ready"),
			ep("10.0.0.3", "", "serving terminating")}, "[10.0.0.2:8080]"},
		{"those on their way out when none is ready", false, []model.Endpoint{ep("10.0.0.1", "", ""),
			ep("10.0.0.3", "", "serving terminating")}, "[10.0.0.3:8080]"},
		{"not those that no longer serve", false, []model.Endpoint{ep("10.0.0.3", "", "terminating")}, "[]"},
		{"all with publishNotReadyAddresses", true, []model.Endpoint{ep("10.0.0.1", "", ""),
			ep("10.0.0.2", "", "ready")}, "[10.0.0.1:8080 10.0.0.2:8080]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			svc := &model.Service{Name: model.Name{Namespace: "ns", Name: "web"},
				ClusterIPs:      []netip.Addr{netip.MustParseAddr("10.96.0.1")},
				Ports:           []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}},
				PublishNotReady: tt.publishNotReady}
			p, ok, problems := Make(snapshot(t, svc, model.EndpointPort{Name: "http", Protocol: model.TCP, Port: 8080},
				tt.endpoints...), svc.Name, "node1")
			if !ok || len(problems) > 0 {
				t.Fatal(ok, problems)
			}
			if got := fmt.Sprint(p.Frontends[0].Slots); got != tt.want {
				t.Errorf("slots are %s, want %s", got, tt.want)
			}
		})
	}
}

// A Service that a node serves by itself is, for the rest, served by other nodes, as
// long as there is one: also where the only endpoint of the zone is the node's own.
func TestServedElsewhere(t *testing.T) {
	zoned := func(e model.Endpoint, zone string) model.Endpoint {
		e.ForZones = []string{zone}
		return e
	}
	for _, tt := range []struct {
		name      string
		endpoints []model.Endpoint
		want      string
	}{
		{"others", []model.Endpoint{ep("10.0.0.1", "node1", "ready"), ep("10.0.0.2", "node2", "ready"),
			ep("10.0.0.3", "node3", "ready")}, "[10.0.0.2:8080 10.0.0.3:8080]"},
		{"one on its way out before the own", []model.Endpoint{ep("10.0.0.1", "node1", "ready"),
			ep("10.0.0.2", "node2", "serving terminating")}, "[10.0.0.2:8080]"},
		{"the own before none", []model.Endpoint{ep("10.0.0.1", "node1", "ready"), ep("10.0.0.2", "node2", "")},
			"[10.0.0.1:8080]"},
		{"others of other zones", []model.Endpoint{zoned(ep("10.0.0.1", "node1", "ready"), "a"),
			zoned(ep("10.0.0.2", "node2", "ready"), "b")}, "[10.0.0.2:8080]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			svc := &model.Service{Name: model.Name{Namespace: "ns", Name: "web"},
				ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
				Ports:      []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}}
			snap := snapshot(t, svc, model.EndpointPort{Name: "http", Protocol: model.TCP, Port: 8080}, tt.endpoints...)
			p, ok, problems := MakeWith(snap, svc.Name, Options{Node: "node1", PreferRemote: true})
			if !ok || len(problems) > 0 {
				t.Fatal(ok, problems)
			}
			if got := fmt.Sprint(p.Frontends[0].Slots); got != tt.want {
				t.Errorf("slots are %s, want %s", got, tt.want)
			}
		})
	}
}

func snapshot(t *testing.T, svc *model.Service, port model.EndpointPort, endpoints ...model.Endpoint) model.Snapshot {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	err = store.Write(func(w *model.Writer) {
		w.PutService(svc)
		// Endpoints are spread over slices as the controller likes: one each here.
		for i, e := range endpoints {
			w.PutEndpointSlice(&model.EndpointSlice{Name: model.Name{Namespace: svc.Name.Namespace,
				Name: fmt.Sprintf("slice-%d", i)},
				Service: svc.Name.Name, Ports: []model.EndpointPort{port}, Endpoints: []model.Endpoint{e}})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return store.Snapshot()
}

// A port finds its number by name, protocol and family, and by nothing else.
func TestPortsAreJoinedByName(t *testing.T) {
	svc := &model.Service{Name: model.Name{Namespace: "ns", Name: "web"}, Type: model.NodePort,
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00::1")},
		Ports: []model.ServicePort{{Name: "a", Protocol: model.TCP, Port: 80, NodePort: 30080},
			{Name: "a", Protocol: model.UDP, Port: 80}, {Name: "b", Protocol: model.TCP, Port: 81}}}
	p, ok, problems := Make(snapshot(t, svc, model.EndpointPort{Name: "a", Protocol: model.TCP, Port: 8080},
		ep("10.0.0.1", "node1", "ready"), ep("10.0.0.2", "node2", "ready")), svc.Name, "node1")
	if !ok || len(problems) > 0 {
		t.Fatal(ok, problems)
	}
	want := `service ns/web
  vip 10.96.0.1
  vip fd00::1
  TCP node port 30080 → 10.0.0.1:8080, 10.0.0.2:8080
  TCP 10.96.0.1:80 → 10.0.0.1:8080, 10.0.0.2:8080
  TCP 10.96.0.1:81: refused, no endpoints
  UDP 10.96.0.1:80: refused, no endpoints
  TCP node port 30080: refused, no endpoints
  TCP [fd00::1]:80: refused, no endpoints
  TCP [fd00::1]:81: refused, no endpoints
  UDP [fd00::1]:80: refused, no endpoints
  on this node 10.0.0.1
`
	if got := Text(map[model.Name]Plan{svc.Name: p}); got != want {
		t.Errorf("plan is\n%s\nwant\n%s", got, want)
	}
	for _, e := range p.Frontends {
		if got, ok := p.Frontend(e.Frontend); !ok || len(got.Slots) != len(e.Slots) {
			t.Errorf("%s is not found", e.Frontend)
		}
	}
	if _, ok := p.Frontend(Frontend{p.VIPs[0], model.SCTP, 80}); ok {
		t.Error("a frontend is found that is not there")
	}
}

func TestNothingToDo(t *testing.T) {
	vip := []netip.Addr{netip.MustParseAddr("10.96.0.1")}
	for what, svc := range map[string]*model.Service{
		"headless":     {Headless: true},
		"ExternalName": {Type: model.ExternalName, ExternalName: "x.example"},
		"no address":   {},
		"bad address":  {ClusterIPs: []netip.Addr{netip.MustParseAddr("224.0.0.1")}},
	} {
		svc.Name = model.Name{Namespace: "ns", Name: "web"}
		_, ok, problems := Make(snapshot(t, svc, model.EndpointPort{}), svc.Name, "node1")
		if ok || len(problems) != len(svc.ClusterIPs) {
			t.Errorf("%s: %v, %v", what, ok, problems)
		}
	}
	gone := model.Name{Namespace: "ns", Name: "gone"}
	if _, ok, _ := Make(snapshot(t, &model.Service{Name: model.Name{Namespace: "ns", Name: "web"}, ClusterIPs: vip},
		model.EndpointPort{}), gone, "node1"); ok {
		t.Error("a service that is not there has a plan")
	}
}

// Types other than NodePort and LoadBalancer have no node port, whatever is left in
// the field.
func TestNodePortsAreOfTheirTypes(t *testing.T) {
	for typ, want := range map[model.ServiceType]int{model.ClusterIP: 1, model.NodePort: 2, model.LoadBalancer: 2} {
		svc := &model.Service{Name: model.Name{Namespace: "ns", Name: "web"}, Type: typ,
			ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
			Ports:      []model.ServicePort{{Protocol: model.TCP, Port: 80, NodePort: 30080}}}
		if p, _, _ := Make(snapshot(t, svc, model.EndpointPort{}), svc.Name, "node1"); len(p.Frontends) != want {
			t.Errorf("%s: frontends are %v", typ, p.Frontends)
		}
	}
}

func TestNodeFacts(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	addrs := func(list ...string) (out []netip.Addr) {
		for _, s := range list {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	cidrs := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	if _, ok, _ := MakeNodeFacts(store.Snapshot(), "node1"); ok {
		t.Error("a node that is not there has facts")
	}
	err = store.Write(func(w *model.Writer) {
		w.PutNode(&model.Node{Name: "node1", InternalIPs: addrs("192.0.2.1", "127.0.0.1"),
			PodCIDRs: cidrs("10.244.1.0/24", "fd00::/64")})
		w.PutNode(&model.Node{Name: "node2", InternalIPs: addrs("192.0.2.2"), PodCIDRs: cidrs("10.244.0.0/24")})
		w.PutNode(&model.Node{Name: "node3"})
	})
	if err != nil {
		t.Fatal(err)
	}
	l, ok, problems := MakeNodeFacts(store.Snapshot(), "node1")
	want := NodeFacts{addrs("192.0.2.1"), nil, cidrs("10.244.0.0/24", "10.244.1.0/24", "fd00::/64"),
		cidrs("10.244.1.0/24", "fd00::/64")}
	if !ok || len(problems) > 0 || !NodeFactsEqual(l, want) {
		t.Errorf("%+v, %v", l, problems)
	}
	if _, ok, problems = MakeNodeFacts(store.Snapshot(), "node3"); !ok || len(problems) != 1 ||
		problems[0].Field != "status.addresses" {
		t.Errorf("a node without address: %v", problems)
	}
	keys := NodeFactsKeys("node1")
	if got := keys(model.Snapshot{}, model.Changes{}); got != nil {
		t.Error(got)
	}
	var changed model.Changes
	changed.Add(model.NodeKind, model.Name{Name: "node2"})
	if got := keys(model.Snapshot{}, changed); len(got) != 1 || got[0] != "node1" {
		t.Error(got)
	}
}
