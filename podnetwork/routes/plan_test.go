package routes

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
)

func world(t *testing.T, nodes ...*model.Node) model.Snapshot {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	for _, n := range nodes {
		if err := store.Write(func(w *model.Writer) { w.PutNode(n) }); err != nil {
			t.Fatal(err)
		}
	}
	return store.Snapshot()
}

func node(name, ip, cidr string) *model.Node {
	return &model.Node{Name: name, InternalIPs: []netip.Addr{netip.MustParseAddr(ip)},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}
}

// With routing: cloud the underlay carries the pods' networks: no route to another
// node is ours, and no tunnel; what no pod of this node has is still unreachable.
func TestCloudRoutesNothing(t *testing.T) {
	snap := world(t, node("a", "192.0.2.1", "10.1.0.0/24"), node("b", "192.0.2.2", "10.2.0.0/24"))
	l := NodeLinks{Self: "a", Mode: Cloud, Uplink: link.Uplink{Name: "eth0", MTU: 1500}}
	if p, ok, problems := Make(snap, "b", l); ok || len(problems) > 0 {
		t.Errorf("the other node: %+v, %v", p, problems)
	}
	p, ok, problems := Make(snap, "a", l)
	if !ok || len(problems) > 0 || p.Tunnel != nil || len(p.Rules) > 0 || len(p.Routes) != 1 ||
		p.Routes[0].Via.IsValid() {
		t.Errorf("this node: %+v, %v", p, problems)
	}
	if mtu := l.PodMTU(snap); mtu != 1500 {
		t.Errorf("pods have %d", mtu)
	}
}

// What cannot be routed is said with node and field.
func TestWhatCannotBeRouted(t *testing.T) {
	for _, tc := range []struct {
		name string
		mode Mode
		mtu  int
		node *model.Node
		want string
	}{
		{"no range", Direct, 1500, &model.Node{Name: "b", InternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}},
			"spec.podCIDRs: is empty"},
		{"a range that another has", Direct, 1500, node("b", "192.0.2.2", "10.1.0.0/25"),
			"spec.podCIDRs[0]: 10.1.0.0/25 overlaps"},
		{"no address of the family", Direct, 1500, node("b", "2001:db8::2", "10.2.0.0/24"),
			"status.addresses: has no InternalIP of the family"},
		{"an underlay of another family", VXLAN, 1500, node("b", "2001:db8::2", "10.2.0.0/24"),
			"status.addresses: the first InternalIP"},
		{"IPv6 in a small tunnel", VXLAN, 1280, node("b", "192.0.2.2", "fd00::/64"),
			"spec.podCIDRs: fd00::/64 cannot be reached by VXLAN"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			snap := world(t, node("a", "192.0.2.1", "10.1.0.0/24"), tc.node)
			p, _, problems := Make(snap, "b", NodeLinks{Self: "a", Mode: tc.mode, Uplink: link.Uplink{Name: "eth0",
				MTU: tc.mtu}})
			if len(problems) != 1 || problems[0].Object.Name != "b" || !strings.Contains(problems[0].Error(), tc.want) {
				t.Errorf("%v; want %s", problems, tc.want)
			}
			for _, r := range p.Routes {
				if r.Table == 0 {
					t.Errorf("a route all the same: %+v", r)
				}
			}
		})
	}
}

// A node that joins cannot take the networks or addresses of one that runs, whatever its name is: a kubelet sets both
// when it registers its Node.
func TestANewcomerTakesNothing(t *testing.T) {
	old, evil := node("old", "192.0.2.2", "10.2.0.0/24"), node("evil", "198.51.100.9", "10.2.0.0/16")
	me := node("me", "192.0.2.1", "10.1.0.0/24")
	evil.InternalIPs = append(evil.InternalIPs, old.InternalIPs...)
	me.Created, old.Created, evil.Created = time.Unix(1, 0), time.Unix(2, 0), time.Unix(3, 0)
	snap := world(t, me, old, evil)
	l := NodeLinks{Self: "me", Mode: Auto, Uplink: link.Uplink{Name: "eth0", MTU: 1500,
		Segments: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
		Encryption: Encryption{Strict: true, Nodes: true, Via: map[string]string{"old": "wg", "evil": "wg"}}}
	for name, want := range map[string]string{"old": "10.2.0.0/24 192.0.2.2/32", "evil": "198.51.100.9/32"} {
		p, _, problems := Make(snap, name, l)
		var to []string
		for _, r := range p.Routes {
			to = append(to, r.Dst.String())
		}
		slices.Sort(to)
		if got := strings.Join(slices.Compact(to), " "); got != want || len(problems) == 0 != (name == "old") {
			t.Errorf("routes by node %s lead to %s, want %s; problems %v", name, got, want, problems)
		}
	}
	l.Encryption = Encryption{}
	if p, _, _ := Make(snap, "evil", l); strings.Contains(fmt.Sprint(p.Routes), "192.0.2.2/32") {
		t.Errorf("the tunnel leads to another node's address: %v", p.Routes)
	}
}
