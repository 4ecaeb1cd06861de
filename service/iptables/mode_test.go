package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/iptables"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
)

func name(i int) model.Name { return model.Name{Namespace: "default", Name: fmt.Sprintf("s%03d", i)} }

// plan is that of the i-th service, with a ClusterIP of each family, a node port, and
// these backends.
func plan(i int, backends ...int) service.Plan {
	var p service.Plan
	for _, v := range []struct{ vip, any, pod string }{{"10.96.0.%d", "0.0.0.0", "10.244.0.%d"},
		{"fd96::%x", "::", "fdf4::%x"}} {
		vip := netip.MustParseAddr(fmt.Sprintf(v.vip, i))
		p.VIPs = append(p.VIPs, vip)
		var slots []netip.AddrPort
		for _, b := range backends {
			slots = append(slots, netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf(v.pod, b)), 8080))
		}
		p.Frontends = append(p.Frontends, service.FrontendPlan{Frontend: service.Frontend{Addr: vip,
			Protocol: model.TCP,
			Port:     80}, Slots: slots},
			service.FrontendPlan{Frontend: service.Frontend{Addr: netip.MustParseAddr(v.any), Protocol: model.TCP,
				Port: uint16(30000 + i)}, Slots: slots, External: true})
	}
	slices.SortFunc(p.Frontends, func(a, b service.FrontendPlan) int { return a.Frontend.Compare(b.Frontend) })
	return p
}

func plans(n int) map[model.Name]service.Plan {
	out := map[model.Name]service.Plan{}
	for i := range n {
		out[name(i+1)] = plan(i+1, 2*i+1, 2*i+2)
	}
	return out
}

func start(f *iptables.Fake) *Mode {
	m := New(f, &conntrack.Fake{})
	m.SetNodeFacts(service.NodeFacts{NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"),
		netip.MustParseAddr("2001:db8::1")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fdf4::/16")}})
	return m
}

// dump is all that there is.
func dump(t *testing.T, f *iptables.Fake) string {
	t.Helper()
	var b strings.Builder
	for _, fam := range iptables.Families() {
		for _, table := range []string{"nat", "filter"} {
			have, err := f.Read(t.Context(), fam, table)
			if err != nil {
				t.Fatal(err)
			}
			c := iptables.Change{Table: fmt.Sprintf("%s %s", fam, table), Set: have}
			b.Write(c.Text())
		}
	}
	return b.String()
}

func program(t *testing.T, m *Mode, p map[model.Name]service.Plan) {
	t.Helper()
	if err := m.Sync(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

// fresh is what there must be for these plans.
func fresh(t *testing.T, p map[model.Name]service.Plan) string {
	t.Helper()
	f := iptables.NewFake()
	program(t, start(f), p)
	return dump(t, f)
}

func same(t *testing.T, f *iptables.Fake, want string) {
	t.Helper()
	if got := dump(t, f); got != want {
		t.Errorf("there is\n%s\nwant\n%s", got, want)
	}
}

// chainsOf are the chains that a text sets or removes.
func chainsOf(texts []string) (out []string) {
	for _, m := range regexp.MustCompile(`(?m)^:(\S+)`).FindAllStringSubmatch(strings.Join(texts, ""), -1) {
		out = append(out, m[1])
	}
	return out
}

// One endpoint among many Services changes: only the chains of its Service are sent.
func TestOnlyChangedChainsAreSent(t *testing.T) {
	f := iptables.NewFake()
	m := start(f)
	all := plans(100)
	program(t, m, all)
	f.Texts = nil
	all[name(7)] = plan(7, 13, 250)
	if err := m.Apply(t.Context(), map[model.Name]service.Plan{name(7): all[name(7)]}, nil); err != nil {
		t.Fatal(err)
	}
	p := port{service: name(7), protocol: model.TCP}
	var want []string
	for _, format := range []string{"10.244.0.%d:8080", "[fdf4::%x]:8080"} {
		end := func(n int) string { return p.endpoint(netip.MustParseAddrPort(fmt.Sprintf(format, n))) }
		set := []string{p.chain(prefixCluster), end(250)}
		slices.Sort(set)
		want = append(append(want, set...), end(14))
	}
	if got := chainsOf(f.Texts); !slices.Equal(got, want) {
		t.Errorf("sent were %v, want %v", got, want)
	}
	if len(f.Texts) != 2 {
		t.Errorf("%d texts, one of each family is needed", len(f.Texts))
	}
	same(t, f, fresh(t, all))

	// A Service more or less changes the chains that lead to it, and no other Service's.
	f.Texts = nil
	if err := m.Apply(t.Context(), nil, []model.Name{name(9)}); err != nil {
		t.Fatal(err)
	}
	delete(all, name(9))
	p = port{service: name(9), protocol: model.TCP}
	allowed := []string{chainServices, chainNodePorts, p.chain(prefixCluster), p.chain(prefixOutside)}
	for _, b := range []string{"10.244.0.17:8080", "10.244.0.18:8080", "[fdf4::11]:8080", "[fdf4::12]:8080"} {
		allowed = append(allowed, p.endpoint(netip.MustParseAddrPort(b)))
	}
	for _, c := range chainsOf(f.Texts) {
		if !slices.Contains(allowed, c) {
			t.Errorf("chain %s was sent", c)
		}
	}
	same(t, f, fresh(t, all))
}

// What does not change is not sent.
func TestEqualPlansSendNothing(t *testing.T) {
	f := iptables.NewFake()
	m := start(f)
	all := plans(5)
	program(t, m, all)
	f.Texts = nil
	if err := m.Apply(t.Context(), all, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.ApplyNodeFacts(t.Context(), m.local); err != nil {
		t.Fatal(err)
	}
	program(t, m, all)
	if len(f.Texts) > 0 {
		t.Errorf("sent was %q", f.Texts)
	}
}

// A new agent takes what is right, mends what is not, and removes what nobody wants.
func TestRestartAdopts(t *testing.T) {
	f := iptables.NewFake()
	all := plans(20)
	program(t, start(f), all)
	f.Texts = nil
	program(t, start(f), all)
	if len(f.Texts) > 0 {
		t.Errorf("a restart sent %q", f.Texts)
	}
	p := port{service: name(3), protocol: model.TCP}
	all[name(4)] = plan(4, 200)
	delete(all, name(5))
	broken := "*nat\n:" + p.chain(prefixCluster) + " - [0:0]\n-D PREROUTING " + comment("kubernetes service portals") +
		" -j " + chainServices + "\nCOMMIT\n"
	if err := f.Restore(t.Context(), iptables.IPv4, []byte(broken)); err != nil {
		t.Fatal(err)
	}
	f.Texts = nil
	program(t, start(f), all)
	same(t, f, fresh(t, all))
	for i := range 20 {
		if i == 3 || i == 4 || i == 5 {
			continue
		}
		if c := (port{service: name(i), protocol: model.TCP}).chain(prefixCluster); slices.Contains(
			chainsOf(f.Texts), c) {
			t.Errorf("chain %s of %s was right, and was sent", c, name(i))
		}
	}
}

// A Service that the kernel does not take is named, and stops no other: neither at the
// start nor in a change.
func TestBadServiceStopsNoOther(t *testing.T) {
	refused := errors.New("not that one")
	bad := func(f iptables.Family, text string) error {
		if strings.Contains(text, "10.96.0.13/32 -p tcp") {
			return refused
		}
		return nil
	}
	named := func(t *testing.T, err error) {
		t.Helper()
		var keys reconcile.KeyErrors[model.Name]
		if !errors.As(err, &keys) || len(keys) != 1 || !errors.Is(keys[name(13)], refused) {
			t.Errorf("the error is %v", err)
		}
	}
	all := plans(20)
	good := plans(20)
	delete(good, name(13))
	served := func(t *testing.T, f *iptables.Fake) {
		t.Helper()
		nat, err := f.Read(t.Context(), iptables.IPv4, "nat")
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			want := fmt.Sprintf("-d 10.96.0.%d/32 ", i+1)
			if got := strings.Contains(strings.Join(nat[chainServices], "\n"), want); got != (i+1 != 13) {
				t.Errorf("%s is served: %t", name(i+1), got)
			}
		}
	}
	t.Run("start", func(t *testing.T) {
		f := iptables.NewFake()
		f.Fail = bad
		m := start(f)
		named(t, m.Sync(t.Context(), all))
		served(t, f)
		// It is tried again, and when the kernel takes it all is well.
		f.Fail = nil
		if err := m.Apply(t.Context(), map[model.Name]service.Plan{name(13): all[name(13)]}, nil); err != nil {
			t.Fatal(err)
		}
		same(t, f, fresh(t, all))
	})
	t.Run("change", func(t *testing.T) {
		f := iptables.NewFake()
		m := start(f)
		program(t, m, nil)
		f.Fail = bad
		named(t, m.Apply(t.Context(), all, nil))
		served(t, f)
		f.Fail = nil
		program(t, m, good)
		same(t, f, fresh(t, good))
	})
}

// A Service that is refused changes no other's rules for a moment, and the way of changes
// stays what it is: what is sent is of the keys that changed.
func TestARefusedServiceTouchesNoOther(t *testing.T) {
	for _, which := range []string{"first family", "second family"} {
		t.Run(which, func(t *testing.T) {
			f := iptables.NewFake()
			m := start(f)
			all := plans(40)
			program(t, m, all)
			changed := all[name(13)]
			all[name(13)] = plan(13, 201, 202)
			var missing []string
			f.Fail = func(fam iptables.Family, text string) error {
				others(t, f, 40, &missing)
				if fam == iptables.IPv6 && strings.Contains(text, "fdf4::c") || which == "first family" &&
					strings.Contains(text, "10.244.0.201") {
					return errors.New("not that one")
				}
				return nil
			}
			for round := range 3 {
				set := map[model.Name]service.Plan{name(13): all[name(13)]}
				if round == 1 { // together with another, which must be served
					set[name(14)] = plan(14, 150, 151)
					all[name(14)] = set[name(14)]
				}
				var keys reconcile.KeyErrors[model.Name]
				if err := m.Apply(t.Context(), set, nil); !errors.As(err, &keys) || len(keys) != 1 ||
					keys[name(13)] == nil {
					t.Fatalf("round %d: %v", round, err)
				}
				// What others change is sent alone, whatever is refused.
				f.Texts = nil
				all[name(20)] = plan(20, 160+round, 170+round)
				if err := m.Apply(t.Context(), map[model.Name]service.Plan{name(20): all[name(20)]}, nil); err != nil {
					t.Fatal(err)
				}
				if n := len(chainsOf(f.Texts)); n > 10 {
					t.Errorf("round %d: %d chains are sent for one changed Service", round, n)
				}
				if err := m.Sync(t.Context(), all); !errors.As(err, &keys) || len(keys) != 1 { // a foreign change
					t.Fatalf("round %d: %v", round, err)
				}
				others(t, f, 40, &missing)
			}
			if len(missing) > 0 {
				t.Errorf("not served for a moment: %s", strings.Join(missing, ", "))
			}
			nat, _ := f.Read(t.Context(), iptables.IPv6, "nat")
			if old := (port{service: name(13), protocol: model.TCP}).endpoint(
				changed.Frontends[len(changed.Frontends)-1].Slots[0]); nat[old] == nil {
				t.Error("the refused Service's version of before is not served")
			}
			f.Fail = nil
			if err := m.Apply(t.Context(), map[model.Name]service.Plan{name(13): all[name(13)]}, nil); err != nil {
				t.Fatal(err)
			}
			same(t, f, fresh(t, all))
		})
	}
}

// others notes Services that KUBE-SERVICES does not lead to. It must be called where the
// fake may be read: not within its lock.
func others(t *testing.T, f *iptables.Fake, n int, missing *[]string) {
	nat := f.Peek(iptables.IPv4, "nat")
	all := strings.Join(nat[chainServices], "\n")
	for i := range n {
		if !strings.Contains(all, fmt.Sprintf("-d 10.96.0.%d/32 -p", i+1)) {
			*missing = append(*missing, name(i+1).Name)
		}
	}
}

// Chains of others stay, the kubelet's among them; those that a kube-proxy left go, with
// the jumps to them.
func TestOnlyServiceProxiesChainsAreRemoved(t *testing.T) {
	f := iptables.NewFake()
	others := `*nat
:MINE - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-HOSTPORTS - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A PREROUTING -j MINE
-A MINE -p tcp -j RETURN
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:DOCKER-USER - [0:0]
:KUBE-IPTABLES-HINT - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -j DOCKER-USER
COMMIT
`
	if err := f.Restore(t.Context(), iptables.IPv4, []byte(others)); err != nil {
		t.Fatal(err)
	}
	without := dump(t, f)
	left := `*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-XLB-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-PROXY-CANARY - [0:0]
-A KUBE-SERVICES -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-XLB-AAAAAAAAAAAAAAAA
-A INPUT -m comment --comment "of another version" -j KUBE-SERVICES
COMMIT
`
	if err := f.Restore(t.Context(), iptables.IPv4, []byte(left)); err != nil {
		t.Fatal(err)
	}
	m := start(f)
	program(t, m, plans(2))
	nat, err := f.Read(t.Context(), iptables.IPv4, "nat")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"KUBE-SVC-AAAAAAAAAAAAAAAA", "KUBE-XLB-AAAAAAAAAAAAAAAA", "KUBE-PROXY-CANARY"} {
		if _, ok := nat[c]; ok {
			t.Errorf("chain %s is still there", c)
		}
	}
	if len(nat["INPUT"]) > 0 {
		t.Errorf("a former jump is still there: %q", nat["INPUT"])
	}
	if remains, err := m.Remains(t.Context()); err != nil || len(remains) == 0 {
		t.Errorf("remains %q, %v", remains, err)
	}
	if err := m.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, f, without)
	if remains, err := m.Remains(t.Context()); err != nil || len(remains) > 0 {
		t.Errorf("remains %q, %v", remains, err)
	}
}

// New facts of the node change the chains that have them.
func TestApplyNodeFacts(t *testing.T) {
	f := iptables.NewFake()
	m := start(f)
	all := plans(3)
	program(t, m, all)
	f.Texts = nil
	l := m.local
	l.NodeIPs = append(slices.Clone(l.NodeIPs), netip.MustParseAddr("192.0.2.2"))
	if err := m.ApplyNodeFacts(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if got, want := chainsOf(f.Texts), []string{chainServices, chainOutside, chainExternal}; !slices.Equal(got, want) {
		t.Errorf("sent were %v, want %v", got, want)
	}
	other := iptables.NewFake()
	n := New(other, &conntrack.Fake{})
	n.SetNodeFacts(l)
	program(t, n, all)
	same(t, f, dump(t, other))
	// Refused, it is made up for by the next change.
	f.Fail = func(iptables.Family, string) error { return errors.New("not now") }
	l.NodeIPs = l.NodeIPs[:2]
	if err := m.ApplyNodeFacts(t.Context(), l); err == nil {
		t.Error("no error")
	}
	f.Fail = nil
	if err := m.Apply(context.Background(), nil, nil); err != nil {
		t.Fatal(err)
	}
	same(t, f, fresh(t, all))
}

// The mark is cleared before the address is changed, so that what the packet is put into
// is not masqueraded as well.
func TestMarkIsClearedBeforeMasquerading(t *testing.T) {
	for _, f := range iptables.Families() {
		rules := fixed(f, service.NodeFacts{})[place{f, "nat", chainPostrouting}]
		cleared := slices.Index(rules, "-j MARK --set-xmark 0x4000/0x0")
		changed := slices.IndexFunc(rules, func(r string) bool { return strings.Contains(r, "-j MASQUERADE") })
		if cleared < 0 || changed < cleared {
			t.Errorf("%s: %q", f, rules)
		}
	}
}
