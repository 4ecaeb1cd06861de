package loadbalancer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/model"
)

var epoch = time.Unix(1_700_000_000, 0)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, addr(s))
	}
	return out
}

// aPool has ranges written "FROM-TO" or as one address.
func aPool(name string, ranges ...string) *model.AddressPool {
	p := &model.AddressPool{Name: name, Created: epoch, AutoAssign: true, L2: model.L2{Enabled: true}}
	for _, r := range ranges {
		from, to, ok := strings.Cut(r, "-")
		if !ok {
			to = from
		}
		p.Ranges = append(p.Ranges, model.Range{From: addr(from), To: addr(to)})
	}
	return p
}

// aService is of IPv4 and has port 80.
func aService(name string, change ...func(*model.Service)) *model.Service {
	s := &model.Service{Name: model.Name{Namespace: "default", Name: name}, Type: model.LoadBalancer,
		Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}},
		LoadBalancer: &model.Balancer{UID: name, Created: epoch, IPv4: true, RequestedField: "spec.loadBalancerIP",
			PoolField: "metadata.annotations[wayleave.dev/address-pool]"}}
	for _, c := range change {
		c(s)
	}
	return s
}

func wants(list ...string) func(*model.Service) {
	return func(s *model.Service) { s.LoadBalancer.Requested = addrs(list...) }
}

func given(list ...string) func(*model.Service) {
	return func(s *model.Service) { s.LoadBalancer.Given = addrs(list...) }
}

func fromPool(name string) func(*model.Service) {
	return func(s *model.Service) { s.LoadBalancer.Pool = name }
}

func shares(key string, port uint16) func(*model.Service) {
	return func(s *model.Service) { s.LoadBalancer.SharingKey, s.Ports[0].Port = key, port }
}

func dual(policy model.FamilyPolicy) func(*model.Service) {
	return func(s *model.Service) { s.LoadBalancer.IPv6, s.LoadBalancer.Policy = true, policy }
}

func local(selector string) func(*model.Service) {
	return func(s *model.Service) { s.ExternalLocal, s.LoadBalancer.Selector = true, selector }
}

// settle decides and reserves, and returns the decision.
func settle(a *Allocator, s *model.Service) Decision {
	a.Set(s)
	d := a.Decide(s.Name)
	a.Reserve(s.Name, d.Addrs)
	return d
}

func allocator(pools ...*model.AddressPool) *Allocator {
	a := New(true)
	a.SetPools(pools)
	return a
}

func TestWhoGetsWhat(t *testing.T) {
	off := func(p *model.AddressPool) *model.AddressPool { p.AutoAssign = false; return p }
	older := func(p *model.AddressPool) *model.AddressPool { p.Created = epoch.Add(-time.Hour); return p }
	app := func(p *model.AddressPool) *model.AddressPool {
		p.Services = model.Selector{Requirements: []model.Requirement{{Key: "app", Values: []string{"web"}}}}
		return p
	}
	team := func(p *model.AddressPool) *model.AddressPool {
		p.Namespaces = model.Selector{Requirements: []model.Requirement{{Key: "team", Values: []string{"a"}}}}
		return p
	}
	buggyPool := aPool("b", "192.0.2.254-192.0.3.1")
	buggyPool.AvoidBuggy = true
	labelled := func(s *model.Service) { s.LoadBalancer.Labels = map[string]string{"app": "web"} }
	lan, six, both := aPool("lan", "192.0.2.1-192.0.2.9"), aPool("six", "2001:db8::-2001:db8::ffff:ffff:ffff:ffff"),
		aPool("both", "198.51.100.1-198.51.100.9", "2001:db8:1::1-2001:db8:1::9")
	for _, tc := range []struct {
		name  string
		pools []*model.AddressPool
		there []*model.Service
		ask   *model.Service
		want  string
		// problem is the part of the only problem's text that must be there.
		problem, reason string
	}{
		{"the first of the pool", []*model.AddressPool{lan}, nil, aService("x"), "192.0.2.1", "", ""},
		{"the next", []*model.AddressPool{lan}, []*model.Service{aService("a")}, aService("x"), "192.0.2.2", "", ""},
		{"a given one stays", []*model.AddressPool{lan}, nil, aService("x", given("192.0.2.7")), "192.0.2.7", "", ""},
		{"a given one is not given again", []*model.AddressPool{lan},
			[]*model.Service{aService("a", given("192.0.2.1", "192.0.2.2"), dual(0))}, aService("x"),
			"192.0.2.2", "", ""},
		{"what another class has is not free", []*model.AddressPool{lan},
			[]*model.Service{aService("a", given("192.0.2.1"),
				func(s *model.Service) { s.LoadBalancer.Class = "other" })}, aService("x"), "192.0.2.2", "", ""},
		{"another class is not ours", []*model.AddressPool{lan}, nil,
			aService("x", func(s *model.Service) { s.LoadBalancer.Class = "other" }), "", "", ""},
		{"our class is", []*model.AddressPool{lan}, nil,
			aService("x", func(s *model.Service) { s.LoadBalancer.Class = Class }), "192.0.2.1", "", ""},
		{"one that is being deleted gets nothing", []*model.AddressPool{lan}, nil,
			aService("x", func(s *model.Service) { s.LoadBalancer.Leaving = true }), "", "", ""},
		{"no pool", nil, nil, aService("x"), "", "spec.type: no IPv4 address is free: there is no AddressPool",
			ReasonNoPool},
		{"full", []*model.AddressPool{aPool("one", "192.0.2.1")}, []*model.Service{aService("a")}, aService("x"), "",
			"AddressPool one is full (IPv4)", ReasonPoolFull},
		{"no address of the family", []*model.AddressPool{six}, nil, aService("x"), "",
			"AddressPool six has no IPv4 addresses", ReasonPoolFull},
		{"on request only", []*model.AddressPool{off(aPool("few", "192.0.2.1"))}, nil, aService("x"), "",
			"AddressPool few allocates only on request", ReasonNoPool},
		{"on request", []*model.AddressPool{off(aPool("few", "192.0.2.1"))}, nil, aService("x", fromPool("few")),
			"192.0.2.1", "", ""},
		{"on request by address", []*model.AddressPool{off(aPool("few", "192.0.2.1"))}, nil,
			aService("x", wants("192.0.2.1")), "192.0.2.1", "", ""},
		{"a pool that is not there", []*model.AddressPool{lan}, nil, aService("x", fromPool("wan")), "",
			"[wayleave.dev/address-pool]: no IPv4 address is free: there is no AddressPool wan", ReasonNoPool},
		{"outside", []*model.AddressPool{lan}, nil, aService("x", wants("203.0.113.1")), "",
			"spec.loadBalancerIP: 203.0.113.1 is outside of every AddressPool (lan)", ReasonOutside},
		{"outside, and has one", []*model.AddressPool{lan}, nil, aService("x", given("192.0.2.3"),
			wants("203.0.113.1")), "192.0.2.3", "the Service keeps 192.0.2.3", ReasonOutside},
		{"another is asked for", []*model.AddressPool{lan}, nil, aService("x", given("192.0.2.3"), wants("192.0.2.5")),
			"192.0.2.5", "", ""},
		{"in use", []*model.AddressPool{lan}, []*model.Service{aService("a")}, aService("x", wants("192.0.2.1")), "",
			"192.0.2.1 is in use by default/a", ReasonInUse},
		{"in use, and has one", []*model.AddressPool{lan}, []*model.Service{aService("a")},
			aService("x", given("192.0.2.9"), wants("192.0.2.1")), "192.0.2.9",
			"the Service keeps 192.0.2.9", ReasonInUse},
		{"of another pool than asked", []*model.AddressPool{lan, both}, nil, aService("x", wants("192.0.2.1"),
			fromPool("both")), "", "192.0.2.1 is in AddressPool lan, but", ReasonOtherPool},
		{"has one of another pool", []*model.AddressPool{lan, both}, nil, aService("x", given("192.0.2.1"),
			fromPool("both")), "192.0.2.1", "keeps 192.0.2.1 of AddressPool lan", ReasonOtherPool},
		{"the pool is gone", []*model.AddressPool{both}, nil, aService("x", given("192.0.2.1")), "192.0.2.1",
			"status.loadBalancer.ingress: 192.0.2.1 is in no AddressPool", ReasonOutside},
		{"the pool is gone, and nothing is added", []*model.AddressPool{both}, nil, aService("x", given("192.0.2.1"),
			dual(model.PreferDualStack)), "192.0.2.1", "192.0.2.1 is in no AddressPool", ReasonOutside},
		{"another balancer's give way to one asked for by name", []*model.AddressPool{lan}, nil,
			aService("x", given("203.0.113.1", "203.0.113.2", "203.0.113.3"), wants("192.0.2.5")), "192.0.2.5", "", ""},
		{"… not to one that is in use", []*model.AddressPool{lan}, []*model.Service{aService("a", given("192.0.2.5"))},
			aService("x", given("203.0.113.1"), wants("192.0.2.5")), "203.0.113.1",
			"192.0.2.5 is in use by default/a", ReasonInUse},
		{"… not to one of no pool", []*model.AddressPool{lan}, nil, aService("x", given("203.0.113.1"),
			wants("203.0.113.9")), "203.0.113.1", "203.0.113.9 is outside of every AddressPool", ReasonOutside},
		{"… nor to a pool asked for", []*model.AddressPool{lan}, nil, aService("x", given("203.0.113.1"),
			fromPool("lan")), "203.0.113.1", "203.0.113.1 is in no AddressPool", ReasonOutside},
		{"… in their family", []*model.AddressPool{lan, six}, nil, aService("x", dual(model.PreferDualStack),
			given("203.0.113.1", "2001:db8:ffff::1"), wants("192.0.2.5")), "192.0.2.5 2001:db8:ffff::1",
			"2001:db8:ffff::1 is in no AddressPool", ReasonOutside},
		{"… and the other family is found", []*model.AddressPool{lan, six}, nil,
			aService("x", dual(model.PreferDualStack), given("203.0.113.1"), wants("192.0.2.5")),
			"192.0.2.5 2001:db8::", "", ""},
		{"… both", []*model.AddressPool{both}, nil, aService("x", dual(model.RequireDualStack),
			given("203.0.113.1", "2001:db8:ffff::1"), wants("198.51.100.5", "2001:db8:1::5")),
			"198.51.100.5 2001:db8:1::5", "", ""},
		{"… beside which it is there", []*model.AddressPool{lan}, nil, aService("x", given("203.0.113.1", "192.0.2.5"),
			wants("192.0.2.5")), "192.0.2.5", "", ""},
		{"a selector of services", []*model.AddressPool{app(aPool("apps", "192.0.2.1"))}, nil, aService("x"), "",
			"AddressPool apps is not for this Service: its serviceSelector does not match", ReasonNoPool},
		{"… fulfilled, and first", []*model.AddressPool{lan, app(aPool("apps", "198.51.100.1"))}, nil,
			aService("x", labelled), "198.51.100.1", "", ""},
		{"… asked for by pool", []*model.AddressPool{app(aPool("apps", "192.0.2.1"))}, nil,
			aService("x", fromPool("apps")), "", "its serviceSelector does not match", ReasonNoPool},
		{"… asked for by address", []*model.AddressPool{app(aPool("apps", "192.0.2.1"))}, nil,
			aService("x", wants("192.0.2.1")), "", "its serviceSelector does not match", ReasonNotAllowed},
		{"… and has one", []*model.AddressPool{app(aPool("apps", "192.0.2.1"))}, nil, aService("x", given("192.0.2.1")),
			"192.0.2.1", "", ""},
		{"a selector of namespaces", []*model.AddressPool{team(aPool("a", "192.0.2.1"))}, nil, aService("x"), "",
			"its namespaceSelector does not match namespace default", ReasonNoPool},
		{"… fulfilled", []*model.AddressPool{team(aPool("a", "192.0.2.1"))}, nil,
			aService("x", func(s *model.Service) { s.Name.Namespace = "team-a" }), "192.0.2.1", "", ""},
		{"buggy addresses are left out", []*model.AddressPool{buggyPool}, []*model.Service{aService("a")},
			aService("x"), "192.0.3.1", "", ""},
		{"… all of them", []*model.AddressPool{buggyPool}, []*model.Service{aService("a"), aService("b")},
			aService("x"), "", "is full", ReasonPoolFull},
		{"… also when asked for", []*model.AddressPool{buggyPool}, nil, aService("x", wants("192.0.3.0")), "",
			"excluded by avoidBuggyAddresses", ReasonNotAllowed},
		{"… but a given one stays", []*model.AddressPool{buggyPool}, nil, aService("x", given("192.0.3.0")),
			"192.0.3.0", "", ""},
		{"shared", []*model.AddressPool{lan}, []*model.Service{aService("a", shares("k", 80))},
			aService("x", shares("k", 443)), "192.0.2.1", "", ""},
		{"shared by request", []*model.AddressPool{lan},
			[]*model.Service{aService("a", shares("k", 80), given("192.0.2.5"))}, aService("x", shares("k", 443),
				wants("192.0.2.5")), "192.0.2.5", "", ""},
		{"the same port of another protocol", []*model.AddressPool{lan},
			[]*model.Service{aService("a", shares("k", 80))}, aService("x", shares("k", 80),
				func(s *model.Service) { s.Ports[0].Protocol = model.UDP }), "192.0.2.1", "", ""},
		{"the same port", []*model.AddressPool{lan}, []*model.Service{aService("a", shares("k", 80))},
			aService("x", shares("k", 80)), "192.0.2.2", "", ""},
		{"the same port, by request", []*model.AddressPool{lan}, []*model.Service{aService("a", shares("k", 80))},
			aService("x", shares("k", 80), wants("192.0.2.1")), "", "cannot be shared with it: both have port TCP 80",
			ReasonInUse},
		{"another key", []*model.AddressPool{lan}, []*model.Service{aService("a", shares("k", 80))},
			aService("x", shares("l", 443), wants("192.0.2.1")), "", "its sharing key differs", ReasonInUse},
		{"no key", []*model.AddressPool{lan}, []*model.Service{aService("a", shares("k", 80))},
			aService("x", shares("", 443), wants("192.0.2.1")), "", "it has no sharing key", ReasonInUse},
		{"local with other pods", []*model.AddressPool{lan},
			[]*model.Service{aService("a", shares("k", 80), local("a=1"))}, aService("x", shares("k", 443),
				local("a=2"), wants("192.0.2.1")), "", "must have the same selector", ReasonInUse},
		{"local with the same pods", []*model.AddressPool{lan},
			[]*model.Service{aService("a", shares("k", 80), local("a=1"))}, aService("x", shares("k", 443),
				local("a=1")), "192.0.2.1", "", ""},
		{"a conflict that came later", []*model.AddressPool{lan}, []*model.Service{aService("a", shares("k", 80))},
			aService("x", shares("k", 80), given("192.0.2.1")), "192.0.2.1", "is also the address of default/a",
			ReasonConflict},
		{"both families of one pool", []*model.AddressPool{lan, six, both}, nil,
			aService("x", dual(model.RequireDualStack)), "198.51.100.1 2001:db8:1::1", "", ""},
		{"both of two", []*model.AddressPool{lan, six}, nil, aService("x", dual(model.RequireDualStack)),
			"192.0.2.1 2001:db8::", "", ""},
		{"all or nothing", []*model.AddressPool{lan}, nil, aService("x", dual(model.RequireDualStack)), "",
			"no IPv6 address is free: AddressPool lan has no IPv6", ReasonPoolFull},
		{"what there is", []*model.AddressPool{lan}, nil, aService("x", dual(model.PreferDualStack)),
			"192.0.2.1", "", ""},
		{"nothing of what there could be", nil, nil, aService("x", dual(model.PreferDualStack)), "",
			"no IPv4 and no IPv6 address is free", ReasonNoPool},
		{"one family more", []*model.AddressPool{lan, both}, nil, aService("x", dual(model.RequireDualStack),
			given("198.51.100.4")), "198.51.100.4 2001:db8:1::1", "", ""},
		{"one family less", []*model.AddressPool{both}, nil, aService("x", given("198.51.100.4", "2001:db8:1::4")),
			"198.51.100.4", "", ""},
		{"one family asked for, the other found", []*model.AddressPool{lan, six, both}, nil,
			aService("x", dual(model.RequireDualStack), wants("198.51.100.7")), "198.51.100.7 2001:db8:1::1", "", ""},
		{"the main family first", []*model.AddressPool{both}, nil, aService("x", dual(model.PreferDualStack),
			func(s *model.Service) { s.ClusterIPs = addrs("fd00::1", "10.0.0.1") }),
			"2001:db8:1::1 198.51.100.1", "", ""},
		{"the older pool first", []*model.AddressPool{lan, older(aPool("z", "203.0.113.1"))}, nil, aService("x"),
			"203.0.113.1", "", ""},
		{"overlapping pools", []*model.AddressPool{lan, aPool("zz", "192.0.2.5-192.0.2.12")}, nil,
			aService("x", fromPool("zz")), "192.0.2.10", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := allocator(tc.pools...)
			a.SetNamespace("team-a", map[string]string{"team": "a"})
			for _, s := range tc.there {
				settle(a, s)
			}
			d := settle(a, tc.ask)
			if got := text(d.Addrs); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			switch {
			case tc.problem == "" && (len(d.Problems) > 0 || d.Condition != ""):
				t.Errorf("problems are %v, condition %q", d.Problems, d.Condition)
			case tc.problem != "" && (len(d.Problems) == 0 || len(d.Problems) != 1 &&
				!strings.HasPrefix(tc.name, "…") || !strings.Contains(d.Problems[0].Error(), tc.problem) ||
				!strings.HasPrefix(d.Condition, tc.reason+": ")):
				t.Errorf("problems are %v, condition %q; want %s %s", d.Problems, d.Condition, tc.reason, tc.problem)
			}
			if again := settle(a, tc.ask); text(again.Addrs) != tc.want && tc.ask.LoadBalancer.Given == nil {
				// The status was not written yet: by the allocator it has what was decided.
				t.Errorf("a second time it got %v", again.Addrs)
			}
		})
	}
}

func text(list []netip.Addr) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

func TestClassesWithoutTheDefault(t *testing.T) {
	a := New(false)
	a.SetPools([]*model.AddressPool{aPool("lan", "192.0.2.1")})
	if d := settle(a, aService("x")); len(d.Addrs) > 0 || len(d.Problems) > 0 {
		t.Errorf("a Service without a class got %+v", d)
	}
	if d := settle(a, aService("y", func(s *model.Service) { s.LoadBalancer.Class = Class })); text(
		d.Addrs) != "192.0.2.1" {
		t.Errorf("one of our class got %+v", d)
	}
}

func TestWhatIsGivenBackIsGivenAgain(t *testing.T) {
	a := allocator(aPool("lan", "192.0.2.1-192.0.2.4"))
	for i := range 4 {
		settle(a, aService(fmt.Sprint(i)))
	}
	if s, _, _ := a.Pool("lan"); s.Used != 4 || s.Free != 0 || s.Reason != ReasonFull {
		t.Errorf("a full pool says %+v", s)
	}
	a.Remove(aService("2").Name)
	other := aService("1")
	other.Type, other.LoadBalancer = model.ClusterIP, nil
	a.Set(other)
	if s, _, _ := a.Pool("lan"); s.Used != 2 || s.Free != 2 || s.Reason != ReasonReady {
		t.Errorf("two were given back, and the pool says %+v", s)
	}
	if d := settle(a, aService("x")); text(d.Addrs) != "192.0.2.2" {
		t.Errorf("got %v", d.Addrs)
	}
	if d := settle(a, aService("y")); text(d.Addrs) != "192.0.2.3" {
		t.Errorf("got %v", d.Addrs)
	}
}

func TestOverlappingPoolsAreNamed(t *testing.T) {
	first, second := aPool("first", "192.0.2.1-192.0.2.9"), aPool("second", "192.0.2.5-192.0.2.20",
		"192.0.2.15-192.0.2.30")
	second.Created = epoch.Add(time.Minute)
	a := allocator(second, first)
	s, _, problems := a.Pool("second")
	if s.Reason != ReasonOverlaps || s.Free != 21 || len(problems) != 1 || !strings.Contains(problems[0].Error(),
		"AddressPool second: spec.addresses: 192.0.2.5-192.0.2.9 belongs to AddressPool first") {
		t.Errorf("the later says %+v, %v", s, problems)
	}
	if s, _, problems := a.Pool("first"); s.Reason != ReasonReady || s.Free != 9 || len(problems) != 0 {
		t.Errorf("the first says %+v, %v", s, problems)
	}
	// A pool within another, and one around another.
	a = allocator(first, func() *model.AddressPool {
		p := aPool("within", "192.0.2.3-192.0.2.4")
		p.Created = epoch.Add(-time.Hour)
		return p
	}())
	if s, _, _ := a.Pool("first"); s.Free != 7 || s.Reason != ReasonOverlaps {
		t.Errorf("the one around says %+v", s)
	}
	for i, want := range []string{"192.0.2.3", "192.0.2.4", "192.0.2.1", "192.0.2.2", "192.0.2.5"} {
		if d := settle(a, aService(fmt.Sprint(i))); text(d.Addrs) != want {
			t.Errorf("service %d got %v, want %s", i, d.Addrs, want)
		}
	}
}

func TestHowManyAreFree(t *testing.T) {
	p := aPool("b", "192.0.2.0-192.0.3.255", "198.51.100.255", "2001:db8::-2001:db8::ffff:ffff:ffff:ffff")
	if s, _, _ := allocator(p).Pool("b"); s.Free != 1<<63-1 {
		t.Errorf("%+v", s)
	}
	p.Ranges, p.AvoidBuggy = p.Ranges[:2], true
	a := allocator(p)
	if s, _, _ := a.Pool("b"); s.Free != 508 {
		t.Errorf("%+v", s)
	}
	a.Set(aService("x", given("192.0.2.255")))
	a.Set(aService("y", given("192.0.2.1")))
	if s, _, _ := a.Pool("b"); s.Free != 507 || s.Used != 2 {
		t.Errorf("%+v", s)
	}
}

// The pools change under what was given: nothing moves, and what comes back is known again.
func TestPoolsComeAndGo(t *testing.T) {
	lan := aPool("lan", "192.0.2.1-192.0.2.9")
	a := allocator(lan)
	settle(a, aService("x"))
	if a.SetPools([]*model.AddressPool{aPool("lan", "192.0.2.1-192.0.2.9")}) {
		t.Error("the same pools are a change")
	}
	if !a.SetPools(nil) {
		t.Error("no pools are no change")
	}
	if d := a.Decide(aService("x").Name); text(d.Addrs) != "192.0.2.1" || len(d.Problems) != 1 {
		t.Errorf("without its pool: %+v", d)
	}
	a.SetPools([]*model.AddressPool{lan})
	if d := a.Decide(aService("x").Name); text(d.Addrs) != "192.0.2.1" || len(d.Problems) != 0 {
		t.Errorf("with its pool again: %+v", d)
	}
	if d := settle(a, aService("y")); text(d.Addrs) != "192.0.2.2" {
		t.Errorf("the next got %+v", d)
	}
}

// Every order of arrival that is sorted the same way gives the same addresses.
func TestTheOlderIsServedFirst(t *testing.T) {
	a := allocator(aPool("lan", "192.0.2.1-192.0.2.9"))
	young, old := aService("a"), aService("b")
	young.LoadBalancer.Created = epoch.Add(time.Second)
	a.Set(young)
	a.Set(old)
	if got := a.Services(); !slices.Equal(got, []model.Name{old.Name, young.Name}) {
		t.Errorf("order is %v", got)
	}
	names := []model.Name{young.Name, old.Name}
	a.Sort(names)
	if names[0] != old.Name {
		t.Errorf("sorted: %v", names)
	}
}

// A pool of 2^64 addresses, and 10,000 Services that come and go: the time that this takes
// would tell of a search.
func TestALargePool(t *testing.T) {
	a := allocator(aPool("six", "2001:db8::-2001:db8::ffff:ffff:ffff:ffff"))
	six := func(i int) *model.Service {
		return aService(fmt.Sprint(i), func(s *model.Service) {
			s.LoadBalancer.IPv4,
				s.LoadBalancer.IPv6 = false, true
		})
	}
	for i := range 10_000 {
		settle(a, six(i))
	}
	for i := range 10_000 {
		a.Remove(six(i).Name)
		if d := settle(a, six(i)); d.Addrs[0] != netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8),
			15: byte(i)}) {
			t.Fatalf("%d got %v", i, d.Addrs)
		}
	}
	if n := a.layout.segments[0].holes.Len(); n > 1 {
		t.Errorf("%d holes are kept", n)
	}
}

func BenchmarkOneService(b *testing.B) {
	a := allocator(aPool("lan", "10.0.0.0-10.0.255.255"))
	for i := range 10_000 {
		settle(a, aService(fmt.Sprint(i)))
	}
	s := aService("5000")
	for b.Loop() {
		a.Remove(s.Name)
		settle(a, s)
	}
}
