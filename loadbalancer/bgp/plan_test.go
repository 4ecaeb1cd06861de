package bgp

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/model"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func name(s string) model.Name     { return model.Name{Namespace: "default", Name: s} }

// world has three nodes of two families, two pools, a peer and an advertisement of everything.
func world(t *testing.T, more ...func(*model.Writer)) *model.Store {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	err = store.Write(func(w *model.Writer) {
		for i := range 3 {
			w.PutNode(&model.Node{Name: fmt.Sprint("node", i+1), Labels: map[string]string{"rack": fmt.Sprint(i % 2)},
				InternalIPs: []netip.Addr{addr(fmt.Sprintf("10.0.0.%d", i+1)), addr(fmt.Sprintf("fd00::%d", i+1))},
				PodCIDRs:    []netip.Prefix{prefix(fmt.Sprintf("10.244.%d.0/24", i+1))}})
		}
		w.PutNamespace(&model.Namespace{Name: "default"})
		w.PutServiceCIDR(&model.ServiceCIDR{Name: "kubernetes", CIDRs: []netip.Prefix{prefix("10.96.0.0/16")}})
		w.PutAddressPool(&model.AddressPool{Name: "routed", BGP: true, Ranges: []model.Range{
			{From: addr("192.0.2.0"), To: addr("192.0.2.255")}, {From: addr("2001:db8::"), To: addr("2001:db8::ff")}}})
		w.PutAddressPool(&model.AddressPool{Name: "local", L2: model.L2{Enabled: true}, Ranges: []model.Range{
			{From: addr("198.51.100.0"), To: addr("198.51.100.255")}}})
		w.PutBGPPeer(peer("rack"))
		w.PutBGPAdvertisement(&model.BGPAdvertisement{Name: "all", Length4: 32, Length6: 128,
			Addresses: model.AnnounceLoadBalancerIPs})
		for _, f := range more {
			f(w)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func peer(name string) *model.BGPPeer {
	return &model.BGPPeer{Name: name, Address: addr("10.0.0.254"), ASN: 65000, IPv4: true, IPv6: true,
		Timers: model.BGPTimers{Hold: model.Unset, Keepalive: model.Unset, Connect: model.Unset}}
}

func balancer(n string, ips ...string) *model.Service {
	s := &model.Service{Name: name(n), Type: model.LoadBalancer, LoadBalancer: &model.Balancer{}}
	for _, ip := range ips {
		s.LoadBalancerIPs = append(s.LoadBalancerIPs, addr(ip))
	}
	return s
}

func endpoints(service string, list ...model.Endpoint) *model.EndpointSlice {
	return &model.EndpointSlice{Name: name(service + "-1"), Service: service, Endpoints: list}
}

func plan(t *testing.T, store *model.Store, node string) (State, []model.Problem) {
	t.Helper()
	s, ok, problems := Plan(store.Snapshot(), Input{Node: node, Balanced: true, Balancer: true, ExternalIPs: true})
	if !ok {
		t.Fatal("no plan")
	}
	if err := s.Check(); err != nil {
		t.Errorf("the plan is invalid: %v", err)
	}
	return s, problems
}

// announced are the prefixes that a node announces to a session.
func announced(s State, session string) string {
	var out []string
	for _, p := range s.Paths {
		for _, c := range s.Classes {
			if slices.Contains(p.Classes, c.Name) && slices.Contains(c.Sessions, session) {
				out = append(out, p.Prefix.String())
				break
			}
		}
	}
	return strings.Join(out, " ")
}

// What each node announces, by the objects.
func TestWhatANodeAnnounces(t *testing.T) {
	local := balancer("web", "192.0.2.10", "2001:db8::10")
	local.ExternalLocal = true
	shared := balancer("api", "192.0.2.10")
	aggregate := &model.BGPAdvertisement{Name: "all", Length4: 24, Length6: 120,
		Addresses: model.AnnounceLoadBalancerIPs}
	everything := &model.BGPAdvertisement{Name: "all", Length4: 32, Length6: 128, Addresses: model.AnnouncePodCIDRs |
		model.AnnounceLoadBalancerIPs | model.AnnounceExternalIPs | model.AnnounceClusterIPs}
	various := balancer("web", "192.0.2.10")
	various.ClusterIPs, various.ExternalIPs = []netip.Addr{addr("10.96.0.7")}, []netip.Addr{addr("192.0.2.99")}
	external := func(n, ip string, age int64, local bool) *model.Service {
		return &model.Service{Name: name(n), Created: time.Unix(1000-age, 0), ExternalLocal: local,
			ExternalIPs: []netip.Addr{addr(ip)}}
	}
	internal := *various
	internal.InternalLocal = true
	class := balancer("web", "192.0.2.10")
	class.LoadBalancer = &model.Balancer{Class: "other.example/lb"}
	labelled := balancer("web", "192.0.2.10")
	labelled.LoadBalancer = &model.Balancer{Labels: map[string]string{"app": "web"}}
	selector := func(v string) model.Selector {
		return model.Selector{Requirements: []model.Requirement{{Key: "app", Operator: model.In, Values: []string{v}}}}
	}
	node := func(change func(*model.Node)) func(*model.Writer) {
		return func(w *model.Writer) {
			n := &model.Node{Name: "node1", InternalIPs: []netip.Addr{addr("10.0.0.1"), addr("fd00::1")},
				PodCIDRs: []netip.Prefix{prefix("10.244.1.0/24")}}
			change(n)
			w.PutNode(n)
		}
	}
	put := func(list ...any) func(*model.Writer) {
		return func(w *model.Writer) {
			for _, o := range list {
				switch o := o.(type) {
				case *model.Service:
					w.PutService(o)
				case *model.EndpointSlice:
					w.PutEndpointSlice(o)
				case *model.BGPAdvertisement:
					w.PutBGPAdvertisement(o)
				case *model.BGPPeer:
					w.PutBGPPeer(o)
				}
			}
		}
	}
	both := "192.0.2.10/32 2001:db8::10/128"
	for what, x := range map[string]struct {
		objects []func(*model.Writer)
		want    [3]string // by node
	}{
		"all nodes": {[]func(*model.Writer){put(balancer("web", "192.0.2.10", "2001:db8::10"))},
			[3]string{both, both, both}},
		"a pool of layer 2":    {[]func(*model.Writer){put(balancer("web", "198.51.100.7"))}, [3]string{}},
		"outside of all pools": {[]func(*model.Writer){put(balancer("web", "203.0.113.7"))}, [3]string{}},
		"another class":        {[]func(*model.Writer){put(class)}, [3]string{}},
		"Local": {[]func(*model.Writer){put(local, endpoints("web", model.Endpoint{Node: "node2", Ready: true},
			model.Endpoint{Node: "node3"}))}, [3]string{"", both, ""}},
		"Local, all terminating": {[]func(*model.Writer){put(local, endpoints("web",
			model.Endpoint{Node: "node3", Serving: true, Terminating: true}))}, [3]string{"", "", both}},
		"Local, none": {[]func(*model.Writer){put(local)}, [3]string{}},
		"shared with a Local one": {[]func(*model.Writer){put(local, shared, endpoints("web",
			model.Endpoint{Node: "node2", Ready: true}))}, [3]string{"", both, ""}},
		"aggregates": {[]func(*model.Writer){put(aggregate, balancer("web", "192.0.2.10", "192.0.2.11",
			"2001:db8::10"))},
			[3]string{"192.0.2.0/24 2001:db8::/120", "192.0.2.0/24 2001:db8::/120", "192.0.2.0/24 2001:db8::/120"}},
		"every kind": {[]func(*model.Writer){put(everything, various)}, [3]string{
			"10.96.0.7/32 10.244.1.0/24 192.0.2.10/32 192.0.2.99/32",
			"10.96.0.7/32 10.244.2.0/24 192.0.2.10/32 192.0.2.99/32",
			"10.96.0.7/32 10.244.3.0/24 192.0.2.10/32 192.0.2.99/32"}},
		"internally Local": {[]func(*model.Writer){put(everything, &internal, endpoints("web",
			model.Endpoint{Node: "node2", Ready: true}))}, [3]string{"10.244.1.0/24 192.0.2.10/32 192.0.2.99/32",
			"10.96.0.7/32 10.244.2.0/24 192.0.2.10/32 192.0.2.99/32", "10.244.3.0/24 192.0.2.10/32 192.0.2.99/32"}},
		"an externalIP outside of all pools": {[]func(*model.Writer){put(everything, external("a", "10.0.0.53", 1,
			false))}, [3]string{"10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"}},
		"an externalIP in a pool of layer 2": {[]func(*model.Writer){put(everything, external("a", "198.51.100.7", 1,
			false))}, [3]string{"10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"}},
		"an externalIP that withdraws a balancer's address": {[]func(*model.Writer){put(everything,
			balancer("web", "192.0.2.10"), external("thief", "192.0.2.10", 500, true))},
			[3]string{"10.244.1.0/24 192.0.2.10/32", "10.244.2.0/24 192.0.2.10/32", "10.244.3.0/24 192.0.2.10/32"}},
		"the older of two externalIPs": {[]func(*model.Writer){put(everything,
			external("old", "192.0.2.99", 9, false), external("a-thief", "192.0.2.99", 1, true))},
			[3]string{"10.244.1.0/24 192.0.2.99/32", "10.244.2.0/24 192.0.2.99/32", "10.244.3.0/24 192.0.2.99/32"}},
		"a draining node": {[]func(*model.Writer){put(everything, balancer("web", "192.0.2.10")),
			node(func(n *model.Node) { n.Excluded = true })},
			[3]string{"10.244.1.0/24", "10.244.2.0/24 192.0.2.10/32", "10.244.3.0/24 192.0.2.10/32"}},
		"a leaving node": {[]func(*model.Writer){put(balancer("web", "192.0.2.10")),
			node(func(n *model.Node) { n.Leaving = true })}, [3]string{"", "192.0.2.10/32", "192.0.2.10/32"}},
		"a selector that matches": {[]func(*model.Writer){
			put(labelled, &model.BGPAdvertisement{Name: "all", Length4: 32,
				Addresses: model.AnnounceLoadBalancerIPs, Services: selector("web")})},
			[3]string{"192.0.2.10/32", "192.0.2.10/32", "192.0.2.10/32"}},
		"a selector that does not": {[]func(*model.Writer){
			put(labelled, &model.BGPAdvertisement{Name: "all", Length4: 32,
				Addresses: model.AnnounceLoadBalancerIPs, Services: selector("db")})}, [3]string{}},
		"an invalid advertisement": {[]func(*model.Writer){put(balancer("web", "192.0.2.10"), &model.BGPAdvertisement{
			Name: "all", Length4: 32, Addresses: model.AnnounceLoadBalancerIPs, Invalid: "x"})}, [3]string{}},
		"an invalid selector": {[]func(*model.Writer){put(balancer("web", "192.0.2.10"), &model.BGPAdvertisement{
			Name: "all", Length4: 32, Addresses: model.AnnounceLoadBalancerIPs, Nodes: model.Selector{Nothing: true}})},
			[3]string{}},
		"another peer": {[]func(*model.Writer){put(balancer("web", "192.0.2.10"), &model.BGPAdvertisement{Name: "all",
			Length4: 32, Addresses: model.AnnounceLoadBalancerIPs, Peers: []string{"other"}})}, [3]string{}},
	} {
		store := world(t, x.objects...)
		for i, want := range x.want {
			s, _ := plan(t, store, fmt.Sprint("node", i+1))
			if got := announced(s, "BGPPeer rack"); got != want {
				t.Errorf("%s: node%d announces %q, want %q", what, i+1, got, want)
			}
		}
	}
}

// The sessions of a node, and what an object lacks for one.
func TestSessionsOfANode(t *testing.T) {
	for what, x := range map[string]struct {
		change func(*model.BGPPeer)
		check  func(Session) bool
		says   string // there is no session, and why; "-" for no reason
	}{
		"defaults": {func(*model.BGPPeer) {}, func(s Session) bool {
			return s.Addr == addr("10.0.0.254") && s.ASN == 65000 && s.Hold == 90*time.Second &&
				s.Restart == 120*time.Second && s.NextHop6 == addr("fd00::1") && !s.NextHop4.IsValid() && s.V4 && s.V6
		}, ""},
		"over IPv6": {func(p *model.BGPPeer) { p.Address = addr("fd00::fe") }, func(s Session) bool {
			return s.NextHop4 == addr("10.0.0.1") && !s.NextHop6.IsValid()
		}, ""},
		"internal": {func(p *model.BGPPeer) { p.ASN, p.Type = 0, model.InternalASN }, func(s Session) bool {
			return s.ASN == model.BGPDefaultASN
		}, ""},
		"external": {func(p *model.BGPPeer) { p.ASN, p.Type = 0, model.ExternalASN }, func(s Session) bool {
			return s.ASN == 0 && s.External
		}, ""},
		"another rack": {func(p *model.BGPPeer) {
			p.Nodes = model.Selector{Requirements: []model.Requirement{{Key: "rack", Operator: model.In,
				Values: []string{"1"}}}}
		}, nil, "-"},
		"invalid": {func(p *model.BGPPeer) { p.Invalid = "x" }, nil, "-"},
		"no Secret": {func(p *model.BGPPeer) { p.Password = model.SecretKey{Name: "s", Key: "other"} }, nil,
			"spec.password"},
		"password": {func(p *model.BGPPeer) { p.Password = model.SecretKey{Name: "s", Key: "key"} },
			func(s Session) bool { return s.Password == "secret" }, ""},
		"hold time": {func(p *model.BGPPeer) { p.Timers.Hold = time.Second }, nil, "hold time"},
		"wide range": {func(p *model.BGPPeer) { p.Address, p.Range = netip.Addr{}, prefix("10.0.0.0/16") }, nil,
			"more than 256"},
	} {
		p := peer("rack")
		x.change(p)
		store := world(t, func(w *model.Writer) {
			w.PutBGPPeer(p)
			w.PutPeerSecret(&model.PeerSecret{Name: model.Name{Namespace: model.PeersNamespace, Name: "s"},
				Values: map[string]string{"key": "secret"}})
		})
		s, problems := plan(t, store, "node1")
		switch {
		case x.says == "" && (len(s.Sessions) != 1 || !x.check(s.Sessions[0])):
			t.Errorf("%s: %+v, %v", what, s.Sessions, problems)
		case x.says != "" && len(s.Sessions) > 0:
			t.Errorf("%s: there is a session: %+v", what, s.Sessions)
		case x.says != "" && x.says != "-" && (len(problems) != 1 || !strings.Contains(problems[0].Error(), x.says)):
			t.Errorf("%s: %v, want %q", what, problems, x.says)
		}
	}
}

// accepts evaluates the import policy as the process does.
func accepts(s State, session string, p netip.Prefix) bool {
	for _, row := range s.Imports {
		if len(row.Sessions) > 0 && !slices.Contains(row.Sessions, session) {
			continue
		}
		for _, r := range row.Prefixes {
			if r.Prefix.Bits() <= p.Bits() && r.Prefix.Contains(p.Addr()) && int(r.Min) <= p.Bits() &&
				p.Bits() <= int(r.Max) {
				return row.Accept
			}
		}
	}
	return false
}

// Whatever a peer asks for, routes to this node's pods, Services and itself are never imported, and a default route
// only when asked for.
func TestImportsNeverDivertOurs(t *testing.T) {
	p := peer("rack")
	p.Import = model.BGPImport{Networks: []netip.Prefix{prefix("0.0.0.0/0"), prefix("::/0")}}
	store := world(t, func(w *model.Writer) { w.PutBGPPeer(p); w.PutService(balancer("web", "192.0.2.10")) })
	s, _, _ := Plan(store.Snapshot(), Input{Node: "node1", Balanced: true, Balancer: true, Routing: true})
	ours := []netip.Prefix{prefix("10.96.0.0/16"), prefix("10.244.1.0/24"), prefix("192.0.2.10/32"),
		prefix("10.0.0.1/32"), prefix("fd00::1/128")}
	random := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		o := ours[random.IntN(len(ours))]
		a := o.Addr().AsSlice()
		for bit := o.Bits(); bit < len(a)*8; bit++ {
			a[bit/8] ^= byte(random.IntN(2)) << (7 - bit%8)
		}
		inside, _ := netip.AddrFromSlice(a)
		q := netip.PrefixFrom(inside, o.Bits()+random.IntN(inside.BitLen()-o.Bits()+1)).Masked()
		if accepts(s, "BGPPeer rack", q) {
			t.Fatalf("%s, which is in %s, is imported", q, o)
		}
	}
	if accepts(s, "BGPPeer rack", prefix("0.0.0.0/0")) || accepts(s, "BGPPeer rack", prefix("::/0")) {
		t.Error("a default route is imported")
	}
	if !accepts(s, "BGPPeer rack", prefix("172.16.0.0/16")) || accepts(s, "BGPPeer other", prefix("172.16.0.0/16")) {
		t.Error("a route that was asked for is not imported, or another peer's is")
	}
	p.Import.DefaultRoute = true
	s, _, _ = Plan(store.Snapshot(), Input{Node: "node1", Routing: true})
	if !accepts(s, "BGPPeer rack", prefix("0.0.0.0/0")) {
		t.Error("the default route that was asked for is not imported")
	}
	if s, _, _ := Plan(store.Snapshot(), Input{Node: "node1"}); accepts(s, "BGPPeer rack", prefix("172.16.0.0/16")) {
		t.Error("a route is imported without routing: bgp")
	}
}

// A router id is an IPv4 address, and differs between nodes.
func TestRouterIDs(t *testing.T) {
	seen := map[netip.Addr]string{}
	for i := range 1000 {
		n := &model.Node{Name: fmt.Sprint("node", i), InternalIPs: []netip.Addr{addr("fd00::1")}}
		id := routerID(n)
		if !id.Is4() || id.As4()[0] == 0 || id.As4()[0] > 223 {
			t.Errorf("%s: %s", n.Name, id)
		}
		if other, ok := seen[id]; ok {
			t.Errorf("%s and %s have %s", n.Name, other, id)
		}
		seen[id] = n.Name
	}
	if id := routerID(&model.Node{Name: "a", InternalIPs: []netip.Addr{addr("10.0.0.1")}}); id != addr("10.0.0.1") {
		t.Errorf("a node with an IPv4 address has %s", id)
	}
}

// Objects over a bound, or that contradict each other, cost only themselves: the process takes the rest.
func TestOneObjectCostsOnlyItself(t *testing.T) {
	zero := uint32(0)
	twin := peer("twin")
	store := world(t, func(w *model.Writer) {
		w.PutBGPPeer(twin)
		for i := range MaxSessions + 5 {
			p := peer(fmt.Sprintf("z%04d", i))
			p.Address = netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
			w.PutBGPPeer(p)
		}
		for i := range MaxClasses + 5 {
			w.PutBGPAdvertisement(&model.BGPAdvertisement{Name: fmt.Sprintf("b%04d", i), Length4: 32, Length6: 128,
				Addresses: model.AnnouncePodCIDRs})
		}
		w.PutBGPAdvertisement(&model.BGPAdvertisement{Name: "aa", Length4: 32, LocalPref: &zero,
			Addresses: model.AnnouncePodCIDRs})
		w.PutService(balancer("web", "192.0.2.10"))
	})
	s, problems := plan(t, store, "node1")
	if len(s.Sessions) != MaxSessions || len(s.Classes) != MaxClasses {
		t.Errorf("%d sessions and %d classes", len(s.Sessions), len(s.Classes))
	}
	if got := announced(s, "BGPPeer rack"); !strings.Contains(got, "192.0.2.10/32") {
		t.Errorf("the first peer gets %q", got)
	}
	named := map[string]int{}
	for _, p := range problems {
		named[p.Kind]++
		if p.Object.Name == "twin" && !strings.Contains(p.Reason, "BGPPeer rack has a session with it") {
			t.Errorf("%v", p)
		}
	}
	// One twin, six over the bound of sessions (rack is one of the allowed); one preference, six over the bound of
	// classes.
	if named["BGPPeer"] != 7 || named["BGPAdvertisement"] != 7 {
		t.Errorf("%v are named", named)
	}
}

// What a peer asks for and does not get is said.
func TestImportsWithoutRoutingAreReported(t *testing.T) {
	asking := peer("rack")
	asking.Import.Networks = []netip.Prefix{prefix("10.50.0.0/16")}
	store := world(t, func(w *model.Writer) { w.PutBGPPeer(asking) })
	for _, routing := range []bool{false, true} {
		_, _, problems := Plan(store.Snapshot(), Input{Node: "node1", Routing: routing})
		said := slices.ContainsFunc(problems, func(p model.Problem) bool {
			return p.Object.Name == "rack" && p.Field == "spec.import" && strings.Contains(p.Reason, "routing: bgp")
		})
		if said == routing {
			t.Errorf("routing %t: %v", routing, problems)
		}
	}
}
