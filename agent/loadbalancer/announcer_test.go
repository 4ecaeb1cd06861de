package loadbalancer

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/loadbalancer"
	"wayleave.dev/loadbalancer/l2/speaker"
	"wayleave.dev/loadbalancer/peers"
	"wayleave.dev/model"
)

func TestInterfacesOfAnAddress(t *testing.T) {
	node, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")
	links := []hostLink{{"eth0", []netip.Addr{node}}, {"eth1", []netip.Addr{other}}, {"bond0", nil}}
	own := map[netip.Addr]bool{node: true}
	for _, tc := range []struct{ globs, want []string }{
		{nil, []string{"eth0"}},
		{[]string{"eth*"}, []string{"eth0", "eth1"}},
		{[]string{"bond?", "eth1"}, []string{"eth1", "bond0"}},
		{[]string{"wlan0"}, nil},
		{[]string{"["}, nil}, // the source has named it
	} {
		if got := match(links, tc.globs, own); !slices.Equal(got, tc.want) {
			t.Errorf("%v: %v, want %v", tc.globs, got, tc.want)
		}
	}
}

func TestStatusOfVIPs(t *testing.T) {
	now := time.Now()
	raw, err := json.Marshal([]vipStatus{
		{Addr: netip.MustParseAddr("192.0.2.10"), Service: "default/web", Owner: "node1",
			Since: now.Add(-90 * time.Second)},
		{Addr: netip.MustParseAddr("2001:db8::10"), Service: "default/web,default/api", Since: now,
			Note: "disputed with node2"}})
	if err != nil {
		t.Fatal(err)
	}
	want := "ADDRESS       SERVICE                  OWNER   SINCE      NOTE\n" +
		"192.0.2.10    default/web              node1   1m30s ago  \n" +
		"2001:db8::10  default/web,default/api  nobody  0s ago     disputed with node2\n"
	if got, err := owners(raw, now); err != nil || got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, err := owners(nil, now); err != nil || !strings.Contains(got, "no address") {
		t.Errorf("without addresses: %q", got)
	}
}

// The kubelet ends the agent before when this one is ready: a standby is once its process
// could show life at once, or has waited for as long as is good.
func TestAStandbyIsReadyWhenAddressesWouldStay(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	f := New()
	a := &agent.Node{Name: "node1",
		Core: agent.NewCore(slog.New(slog.DiscardHandler), store, config.Config{}, []agent.Feature{f})}
	store.MarkSynced(model.ServiceKind | model.EndpointSliceKind | model.NodeKind | model.NamespaceKind)
	if err := a.Ready(time.Now()); err != nil {
		t.Fatalf("without load balancers: %v", err)
	}
	a.Config.LoadBalancer.Enabled = true
	ready := func(want string) {
		t.Helper()
		switch err := a.Ready(time.Now()); {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("ready: %v, want %q", err, want)
		}
	}
	ready("not been started")
	n := &announcer{node: "node1", began: time.Now(), sup: speaker.New(slog.New(slog.DiscardHandler), "l2")}
	f.announcer.Store(n)
	ready("not planned")
	if err := n.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	ready("who serves Services without a class")
	n.setChoice(true)
	ready("nodes are not known")
	n.setPeers([]peers.Peer{{Name: "node1", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}})
	ready("no key")
	n.setKeys([][]byte{make([]byte, 32)})
	ready("does not run")
	n.began = time.Now().Add(-preparedWithin)
	ready("")
}

// Two load balancers must not answer for one address: that of a Service without a class is answered only once it is
// known that the cluster's writer serves it, and no longer than that.
func TestAddressesOfAnotherLoadBalancerAreNotAnswered(t *testing.T) {
	n := &announcer{node: "node1", sup: speaker.New(slog.New(slog.DiscardHandler), "l2")}
	vip := func(addr string, unclassed bool) loadbalancer.Announcement {
		return loadbalancer.Announcement{Unclassed: unclassed, VIPs: []loadbalancer.VIP{
			{Addr: netip.MustParseAddr(addr), Eligible: []string{"node1"}}}}
	}
	err := n.Sync(t.Context(), map[model.Name]loadbalancer.Announcement{
		{Namespace: "default", Name: "plain"}:  vip("192.0.2.1", true),
		{Namespace: "default", Name: "classy"}: vip("192.0.2.2", false),
		{Namespace: "default", Name: "shared"}: vip("192.0.2.2", true),
	})
	if err != nil {
		t.Fatal(err)
	}
	answered := func() (out []string) {
		for _, v := range n.last.VIPs {
			out = append(out, v.Addr.String()+" "+v.Service)
		}
		return out
	}
	own := []string{"192.0.2.1 default/plain", "192.0.2.2 default/classy,default/shared"}
	other := []string{"192.0.2.2 default/classy"}
	if got := answered(); !slices.Equal(got, other) {
		t.Errorf("before the choice is known: %v", got)
	}
	for _, step := range []struct {
		own  bool
		want []string
	}{{true, own}, {false, other}, {false, other}, {true, own}} {
		n.setChoice(step.own)
		if got := answered(); !slices.Equal(got, step.want) || n.leaves() == step.own {
			t.Errorf("own %t: %v, want %v", step.own, got, step.want)
		}
	}
}

// MetalLB's speaker has the port of heartbeats: a node that has nothing to answer for beside it leaves the port alone.
func TestHeartbeatsBesideAnotherLoadBalancer(t *testing.T) {
	n := &announcer{node: "node1", sup: speaker.New(slog.New(slog.DiscardHandler), "l2"),
		plans: map[model.Name]loadbalancer.Announcement{}}
	n.setKeys([][]byte{make([]byte, 32)})
	sent := func(want bool) {
		t.Helper()
		if got := len(n.last.Keys) > 0; got != want || n.idle() == want {
			t.Errorf("keys are given: %t, idle: %t; want heartbeats: %t", got, n.idle(), want)
		}
	}
	vip := loadbalancer.Announcement{VIPs: []loadbalancer.VIP{{Addr: netip.MustParseAddr("192.0.2.1")}}}
	plan := func(unclassed bool) {
		t.Helper()
		vip.Unclassed = unclassed
		err := n.Sync(t.Context(), map[model.Name]loadbalancer.Announcement{{Namespace: "default", Name: "x"}: vip})
		if err != nil {
			t.Fatal(err)
		}
	}
	sent(false) // unknown
	n.setChoice(false)
	plan(true)
	sent(false)
	plan(false)
	sent(true)
	if err := n.Sync(t.Context(), map[model.Name]loadbalancer.Announcement{}); err != nil {
		t.Fatal(err)
	}
	sent(false)
	n.setChoice(true)
	sent(true) // ready before the first address
}
