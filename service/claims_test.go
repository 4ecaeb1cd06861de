package service

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/model"
)

// A claims world is a store that a planner follows, as the agent's loop does.
type claims struct {
	t       *testing.T
	store   *model.Store
	watcher *model.Watcher
	planner *Planner
	plans   map[model.Name]Plan
	bad     map[model.Name][]model.Problem
}

func newClaims(t *testing.T) *claims {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	c := &claims{t: t, store: store}
	c.write(func(w *model.Writer) {
		w.PutNode(&model.Node{Name: "n1", InternalIPs: addrs("192.0.2.11", "2001:db8::11"),
			ExternalIPs: addrs("203.0.113.11"), PodCIDRs: prefixes("10.244.1.0/24")})
		w.PutNode(&model.Node{Name: "n2", InternalIPs: addrs("192.0.2.12"), PodCIDRs: prefixes("10.244.2.0/24")})
		w.PutServiceCIDR(&model.ServiceCIDR{Name: "kubernetes", CIDRs: prefixes("10.96.0.0/16", "fd00:96::/112")})
		w.PutService(svc("default/kubernetes", 0, "10.96.0.1", 443))
		w.PutEndpointSlice(&model.EndpointSlice{Name: model.Name{Namespace: "default", Name: "kubernetes"},
			Service:   "kubernetes",
			Ports:     []model.EndpointPort{{Protocol: model.TCP, Port: 16443}},
			Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("192.0.2.100"), Ready: true}}})
		w.PutService(svc("kube-system/kube-dns", 1, "10.96.0.10", 53))
		ingress := svc("kube-system/wayleave-ingress", 9, "10.96.0.80", 80)
		ingress.Type, ingress.LoadBalancerIPs = model.LoadBalancer, addrs("198.51.100.80")
		w.PutService(ingress)
	})
	c.restart()
	return c
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// svc is a Service that is so many minutes old at the end of the first day.
func svc(name string, minute int, clusterIP string, ports ...uint16) *model.Service {
	ns, n, _ := strings.Cut(name, "/")
	s := &model.Service{Name: model.Name{Namespace: ns, Name: n}, ClusterIPs: addrs(clusterIP),
		Created: time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC)}
	for _, p := range ports {
		s.Ports = append(s.Ports, model.ServicePort{Name: fmt.Sprint(p), Protocol: model.TCP, Port: p})
	}
	return s
}

func (c *claims) write(fn func(*model.Writer)) {
	c.t.Helper()
	if err := c.store.Write(fn); err != nil {
		c.t.Fatal(err)
	}
}

// restart forgets what was planned, as an agent that starts.
func (c *claims) restart() {
	c.t.Helper()
	if c.watcher != nil {
		c.watcher.Close()
	}
	var err error
	if c.watcher, err = c.store.Watch(Kinds); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(c.watcher.Close)
	c.planner = &Planner{Options: func(model.Name) Options { return Options{Node: "n1"} }}
	c.plans, c.bad = map[model.Name]Plan{}, map[model.Name][]model.Problem{}
	c.follow()
}

// follow plans what changed.
func (c *claims) follow() {
	snap, changes, _ := c.watcher.Poll()
	for _, k := range c.planner.Keys(snap, changes) {
		p, ok, bad := c.planner.Plan(snap, k)
		delete(c.plans, k)
		if delete(c.bad, k); len(bad) > 0 {
			c.bad[k] = bad
		}
		if ok {
			c.plans[k] = p
		}
	}
}

// owners are who has which frontend. Nothing may have two.
func (c *claims) owners() map[Frontend]model.Name {
	c.t.Helper()
	out := map[Frontend]model.Name{}
	for k, p := range c.plans {
		for _, e := range p.Frontends {
			if o, ok := out[e.Frontend]; ok {
				c.t.Fatalf("%s is planned for %s and for %s", e.Frontend, o, k)
			}
			out[e.Frontend] = k
		}
	}
	return out
}

// A Service of another namespace, first by name, must not take the API server's address.
func TestAnExternalIPTakesNoClusterIP(t *testing.T) {
	c := newClaims(t)
	evil := svc("aaa/evil", 60, "10.96.7.7", 443)
	evil.ExternalIPs = addrs("10.96.0.1")
	c.write(func(w *model.Writer) { w.PutService(evil) })
	for _, when := range []string{"after the change", "after a start"} {
		if when == "after a start" {
			c.restart()
		}
		c.follow()
		fe := Frontend{netip.MustParseAddr("10.96.0.1"), model.TCP, 443}
		if o := c.owners()[fe]; o.String() != "default/kubernetes" {
			t.Errorf("%s: %s belongs to %q", when, fe, o)
		}
		if bad := c.bad[evil.Name]; len(bad) != 1 || bad[0].Field != "spec.externalIPs[0]" ||
			!strings.Contains(bad[0].Reason, "default/kubernetes") {
			t.Errorf("%s: problems %v", when, bad)
		}
	}
}

// Addresses of nodes, pods, ranges, of our own and of nobody are refused, in both fields.
func TestClaimsThatNoServiceMayHave(t *testing.T) {
	for addr, why := range map[string]string{
		"10.96.0.1": "default/kubernetes", "10.96.0.10": "kube-system/kube-dns",
		"10.96.200.200": "ServiceCIDR kubernetes", "fd00:96::99": "ServiceCIDR kubernetes",
		"192.0.2.11": "node n1", "192.0.2.12": "node n2", "203.0.113.11": "node n1", "2001:db8::11": "node n1",
		"10.244.2.9":    "pod network of node n2",
		"198.51.100.80": "kube-system/wayleave-ingress", "192.0.2.100": "API server", "127.0.0.1": "loopback",
		"169.254.1.1": "link-local", "224.0.0.1": "multicast",
		"0.0.0.0": "unspecified", "0.1.2.3": "0.0.0.0/8", "255.255.255.255": "broadcast", "::1": "loopback",
		"fe80::1": "link-local", "::ffff:192.0.2.11": "IPv6 form",
	} {
		for _, field := range []string{"spec.externalIPs[0]", "status.loadBalancer.ingress[0].ip"} {
			c := newClaims(t)
			s := svc("aaa/evil", 0, "10.96.7.7", 80, 443, 53)
			s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr("fd00:96::7"))
			if field == "spec.externalIPs[0]" {
				s.ExternalIPs = addrs(addr)
			} else {
				s.Type, s.LoadBalancerIPs = model.LoadBalancer, addrs(addr)
			}
			c.write(func(w *model.Writer) { w.PutService(s) })
			c.follow()
			if bad := c.bad[s.Name]; len(bad) != 1 || bad[0].Field != field || !strings.Contains(bad[0].Reason, why) {
				t.Errorf("%s %s: problems %v, want one that says %q", field, addr, bad, why)
			}
			for _, e := range c.plans[s.Name].Frontends {
				if !slices.Contains(s.ClusterIPs, e.Frontend.Addr) {
					t.Errorf("%s %s: %s is planned", field, addr, e.Frontend)
				}
			}
		}
	}
}

// What keeps a claim out may come later, and go again.
func TestAClaimFollowsWhatKeepsItOut(t *testing.T) {
	c := newClaims(t)
	s := svc("aaa/web", 60, "10.96.7.7", 80)
	s.ExternalIPs = addrs("203.0.113.50")
	c.write(func(w *model.Writer) { w.PutService(s) })
	served := func(want bool, when string) {
		t.Helper()
		c.follow()
		if _, ok := c.owners()[Frontend{s.ExternalIPs[0], model.TCP, 80}]; ok != want {
			t.Errorf("%s: served %v, want %v", when, ok, want)
		}
	}
	served(true, "free")
	for what, put := range map[string]struct{ in, out func(*model.Writer) }{
		"a node": {func(w *model.Writer) { w.PutNode(&model.Node{Name: "n3", ExternalIPs: s.ExternalIPs}) },
			func(w *model.Writer) { w.Delete(model.NodeKind, model.Name{Name: "n3"}) }},
		"a range": {func(w *model.Writer) {
			w.PutServiceCIDR(&model.ServiceCIDR{Name: "more", CIDRs: prefixes("203.0.113.0/26")})
		},
			func(w *model.Writer) { w.Delete(model.ServiceCIDRKind, model.Name{Name: "more"}) }},
		"a ClusterIP": {func(w *model.Writer) { w.PutService(svc("zzz/late", 90, "203.0.113.50", 9999)) },
			func(w *model.Writer) {
				w.Delete(model.ServiceKind, model.Name{Namespace: "zzz", Name: "late"})
			}},
	} {
		c.write(put.in)
		served(false, what)
		c.write(put.out)
		served(true, what+" has gone")
	}
}

func TestExternalIPsCanBeTurnedOff(t *testing.T) {
	c := newClaims(t)
	c.planner.Options = func(model.Name) Options { return Options{Node: "n1", NoExternalIPs: true} }
	s := svc("aaa/web", 60, "10.96.7.7", 80)
	s.ExternalIPs = addrs("203.0.113.50")
	c.write(func(w *model.Writer) { w.PutService(s) })
	c.follow()
	if bad := c.bad[s.Name]; len(bad) != 1 || bad[0].Field != "spec.externalIPs" || !strings.Contains(bad[0].Reason,
		"service.externalIPs") {
		t.Errorf("problems %v", bad)
	}
	if n := len(c.plans[s.Name].Frontends); n != 1 {
		t.Errorf("%d frontends, want the ClusterIP's alone", n)
	}
}

// The API server's port and that of heartbeats are not for node ports, whatever they are.
func TestANodePortTakesNoPortOfTheNode(t *testing.T) {
	for port, whose := range map[uint16]string{16443: "API server", 30946: "heartbeats", 31000: ""} {
		c := newClaims(t)
		c.planner.Options = func(model.Name) Options {
			return Options{Node: "n1",
				Reserved: model.Reserved{Peers: 30946}}
		}
		s := svc("aaa/web", 60, "10.96.7.7", 80)
		s.Type, s.Ports[0].NodePort = model.NodePort, port
		c.write(func(w *model.Writer) { w.PutService(s) })
		c.follow()
		if bad := c.bad[s.Name]; (len(bad) == 1) != (whose != "") || whose != "" &&
			(bad[0].Field != "spec.ports[0].nodePort" || !strings.Contains(bad[0].Reason, whose)) {
			t.Errorf("%d: problems %v", port, bad)
		}
		s = svc("aaa/checked", 60, "10.96.7.8", 80)
		s.Type, s.ExternalLocal, s.HealthCheckPort = model.LoadBalancer, true, port
		c.write(func(w *model.Writer) { w.PutService(s) })
		c.follow()
		if bad := c.bad[s.Name]; (len(bad) == 1) != (whose != "") || whose != "" &&
			(bad[0].Field != "spec.healthCheckNodePort" || c.plans[s.Name].HealthCheck != 0) {
			t.Errorf("health checks at %d: problems %v", port, bad)
		}
	}
}

// No tenant answers at a port of an address that a load balancer gave to another one, though the
// port is free: its clients trust the address. Its own namespace does, and those that share it.
func TestAnExternalIPTakesNoPortOfAnothersBalancer(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(victim, other *model.Service)
		served bool
	}{
		"another namespace": {func(_, _ *model.Service) {}, false},
		"its namespace":     {func(_, o *model.Service) { o.Name.Namespace = "shop" }, true},
		"the same key": {func(v, o *model.Service) {
			o.Type, o.LoadBalancer, v.LoadBalancer = model.LoadBalancer, &model.Balancer{SharingKey: "k"},
				&model.Balancer{SharingKey: "k"}
		}, true},
		"another key": {func(v, o *model.Service) {
			o.Type, o.LoadBalancer, v.LoadBalancer = model.LoadBalancer, &model.Balancer{SharingKey: "l"},
				&model.Balancer{SharingKey: "k"}
		}, false},
		"a balancer of another proxy": {func(v, _ *model.Service) { v.OtherProxy = true }, true},
		"an external IP of both": {func(v, _ *model.Service) {
			v.LoadBalancerIPs, v.ExternalIPs = nil,
				v.LoadBalancerIPs
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClaims(t)
			victim, other := svc("shop/web", 60, "10.96.7.7", 443), svc("aaa/evil", 1, "10.96.7.8", 8443)
			victim.Type, victim.LoadBalancerIPs, other.ExternalIPs = model.LoadBalancer, addrs("203.0.113.50"),
				addrs("203.0.113.50")
			tc.change(victim, other)
			front := Frontend{addrs("203.0.113.50")[0], model.TCP, 8443}
			look := func(want bool, when string) {
				t.Helper()
				c.follow()
				if got := c.owners()[front] == other.Name; got != want || want != (len(c.bad[other.Name]) == 0) {
					t.Errorf("%s: served %v, want %v; %v", when, got, want, c.bad[other.Name])
				}
			}
			c.write(func(w *model.Writer) { w.PutService(other) })
			look(true, "alone")
			c.write(func(w *model.Writer) { w.PutService(victim) })
			look(tc.served, "beside the load balancer's")
			c.write(func(w *model.Writer) { w.Delete(model.ServiceKind, victim.Name) })
			look(true, "alone again")
		})
	}
	// A claim that is refused keeps nobody out.
	c := newClaims(t)
	victim, evil, own := svc("shop/web", 60, "10.96.7.7", 443), svc("aaa/evil", 1, "10.96.7.8", 8443),
		svc("shop/more", 61, "10.96.7.9", 8443)
	victim.Type, victim.LoadBalancerIPs, evil.ExternalIPs, own.ExternalIPs = model.LoadBalancer, addrs("203.0.113.50"),
		addrs("203.0.113.50"), addrs("203.0.113.50")
	c.write(func(w *model.Writer) { w.PutService(victim); w.PutService(evil); w.PutService(own) })
	c.follow()
	if got := c.owners()[Frontend{own.ExternalIPs[0], model.TCP, 8443}]; got != own.Name {
		t.Errorf("%s has the port, %v", got, c.bad[own.Name])
	}
}

// random changes the world by one step: Services that claim a few addresses and ports, of
// a few ages, so that all meet.
func (c *claims) random(r *rand.Rand) {
	n := r.IntN(8)
	name := model.Name{Namespace: fmt.Sprintf("ns%d", n%3), Name: fmt.Sprintf("s%d", n)}
	c.write(func(w *model.Writer) {
		switch r.IntN(10) {
		case 0:
			w.Delete(model.ServiceKind, name)
			return
		case 1:
			w.PutNode(&model.Node{Name: "n9", InternalIPs: addrs(fmt.Sprintf("203.0.113.%d", r.IntN(5)))})
			return
		case 2:
			w.Delete(model.NodeKind, model.Name{Name: "n9"})
			return
		}
		w.PutService(randomService(r, name))
	})
}

func randomService(r *rand.Rand, name model.Name) *model.Service {
	s := &model.Service{Name: name, Created: time.Date(2026, 1, 1, 0, r.IntN(3), 0, 0, time.UTC),
		Type: model.ServiceType(r.IntN(3))}
	s.ClusterIPs = addrs(fmt.Sprintf("10.96.1.%d", r.IntN(12)))
	if r.IntN(8) == 0 { // a ClusterIP where others claim addresses outside
		s.ClusterIPs = addrs(fmt.Sprintf("203.0.113.%d", r.IntN(5)))
	}
	some := func() (out []netip.Addr) {
		for range r.IntN(3) {
			out = append(out, addrs(fmt.Sprintf("203.0.113.%d", r.IntN(5)))...)
		}
		return out
	}
	s.ExternalIPs = some()
	if s.Type == model.LoadBalancer {
		s.LoadBalancerIPs, s.LoadBalancer = some(), &model.Balancer{SharingKey: []string{"", "", "k"}[r.IntN(3)]}
	}
	for i := range 1 + r.IntN(2) {
		p := model.ServicePort{Name: fmt.Sprint(i), Protocol: model.Protocol(6), Port: uint16(80 + r.IntN(2) + 10*i)}
		if s.Type != model.ClusterIP {
			p.NodePort = uint16(30000 + r.IntN(3) + 10*i)
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

// reference says who has each frontend, in the plainest way: all claims in one list,
// sorted by the order that is written down, and the first has it.
func reference(snap model.Snapshot) map[Frontend]model.Name {
	type claim struct {
		fe    Frontend
		class int
		svc   *model.Service
	}
	var list []claim
	whose, node := map[netip.Addr]*model.Service{}, map[netip.Addr]bool{}
	older := func(a, b *model.Service) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name.Namespace, b.Name.Namespace),
			cmp.Compare(a.Name.Name, b.Name.Name))
	}
	for n := range snap.Nodes() {
		for _, a := range append(slices.Clone(n.InternalIPs), n.ExternalIPs...) {
			node[a] = true
		}
	}
	for s := range snap.Services() {
		for _, a := range s.ClusterIPs {
			if o := whose[a]; o == nil || older(s, o) < 0 {
				whose[a] = s
			}
		}
	}
	for s := range snap.Services() {
		for _, p := range s.Ports {
			for class, addrs := range [][]netip.Addr{s.ClusterIPs, s.LoadBalancerIPs, s.ExternalIPs} {
				for _, a := range addrs {
					list = append(list, claim{Frontend{a, p.Protocol, p.Port}, class, s})
				}
			}
			if p.NodePort != 0 && s.Type != model.ClusterIP {
				list = append(list, claim{Frontend{netip.IPv4Unspecified(), p.Protocol, p.NodePort}, 0, s})
			}
		}
	}
	slices.SortFunc(list, func(a, b claim) int { return cmp.Or(cmp.Compare(a.class, b.class), older(a.svc, b.svc)) })
	out := map[Frontend]model.Name{}
	taken := map[Frontend]bool{}
	for _, c := range list {
		o := whose[c.fe.Addr]
		if taken[c.fe] || o != nil && o.Name != c.svc.Name || c.class > 0 && node[c.fe.Addr] || c.class == 2 &&
			balancers(snap, c.fe.Addr, c.svc) {
			continue
		}
		taken[c.fe] = true
		// Who has lost its ClusterIP is not served.
		if served := slices.ContainsFunc(c.svc.ClusterIPs,
			func(a netip.Addr) bool { return whose[a] == c.svc }); served {
			out[c.fe] = c.svc.Name
		}
	}
	return out
}

// balancers says whether a load balancer gave the address to a Service of another namespace, but
// for one that shares it.
func balancers(snap model.Snapshot, a netip.Addr, svc *model.Service) bool {
	for s := range snap.Services() {
		if s.Name.Namespace != svc.Name.Namespace && slices.Contains(s.LoadBalancerIPs, a) &&
			(key(s) == "" || key(s) != key(svc)) {
			return true
		}
	}
	return false
}

func key(s *model.Service) string {
	if s.LoadBalancer == nil {
		return ""
	}
	return s.LoadBalancer.SharingKey
}

// Who has what follows from the objects alone: by whatever changes and starts they came
// about, it is the same, and what the written order says.
func TestClaimsDoNotDependOnHistory(t *testing.T) {
	const runs, steps = 40, 60
	for seed := range uint64(runs) {
		r := rand.New(rand.NewPCG(seed, 14))
		c := newClaims(t)
		for step := range steps {
			for range 1 + r.IntN(3) { // changes may come together
				c.random(r)
			}
			if r.IntN(12) == 0 {
				c.restart()
			}
			c.follow()
			got, want := c.owners(), reference(c.store.Snapshot())
			if !maps.Equal(got, want) {
				t.Fatalf("seed %d, step %d: owners\n%v\nwant\n%v", seed, step, got, want)
			}
			fresh := &Planner{Options: c.planner.Options}
			for s := range c.store.Snapshot().Services() {
				p, ok, bad := fresh.Plan(c.store.Snapshot(), s.Name)
				if had, have := c.plans[s.Name]; have != ok || !Equal(p, had) || !slices.Equal(bad, c.bad[s.Name]) {
					t.Fatalf("seed %d, step %d: %s is planned otherwise after changes than at a start",
						seed, step, s.Name)
				}
			}
		}
	}
}

// Many frontends with many endpoints each are bounded together.
func TestBackendsOfAServiceAreBounded(t *testing.T) {
	c := newClaims(t)
	s := svc("aaa/web", 60, "10.96.7.7")
	slice := &model.EndpointSlice{Name: model.Name{Namespace: "aaa", Name: "web-1"}, Service: "web"}
	for i := range uint16(500) {
		s.Ports = append(s.Ports, model.ServicePort{Name: fmt.Sprint(i), Protocol: model.TCP, Port: 1 + i})
		slice.Ports = append(slice.Ports, model.EndpointPort{Name: fmt.Sprint(i), Protocol: model.TCP, Port: 1 + i})
		slice.Endpoints = append(slice.Endpoints,
			model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), Ready: true})
	}
	c.write(func(w *model.Writer) { w.PutService(s); w.PutEndpointSlice(slice) })
	c.follow()
	n := 0
	for _, e := range c.plans[s.Name].Frontends {
		n += len(e.Slots)
	}
	if bad := c.bad[s.Name]; n > maxSlots || n < maxSlots/4 || len(bad) != 1 || bad[0].Field != "spec.ports" {
		t.Errorf("%d backends, problems %v", n, bad)
	}
}
