package networkpolicy

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wayleave.dev/model"
)

func tcp(from, to uint16) Ports { return Ports{Ranges: []PortRange{{model.TCP, from, to}}} }

func TestPortsAreJoined(t *testing.T) {
	udp := Ports{Ranges: []PortRange{{model.UDP, 1, 2}}}
	for _, tc := range []struct{ a, b, want Ports }{
		{Ports{}, Ports{}, Ports{}},
		{tcp(1, 2), Ports{}, tcp(1, 2)},
		{tcp(1, 2), Ports{All: true}, Ports{All: true}},
		{tcp(1, 2), tcp(3, 4), tcp(1, 4)},
		{tcp(1, 9), tcp(3, 4), tcp(1, 9)},
		{tcp(1, 2), tcp(4, 5), Ports{Ranges: []PortRange{{model.TCP, 1, 2}, {model.TCP, 4, 5}}}},
		{tcp(0, 65535), tcp(65535, 65535), tcp(0, 65535)},
		{tcp(1, 2), udp, Ports{Ranges: []PortRange{{model.TCP, 1, 2}, {model.UDP, 1, 2}}}},
	} {
		if got := union(tc.a, tc.b); !got.Equal(tc.want) {
			t.Errorf("%v and %v are %v, want %v", tc.a, tc.b, got, tc.want)
		}
		if got := union(tc.b, tc.a); !got.Equal(tc.want) {
			t.Errorf("%v and %v are %v, want %v", tc.b, tc.a, got, tc.want)
		}
	}
}

func TestBlocksAreMadeDisjoint(t *testing.T) {
	type in struct {
		block  string
		except []string
		ports  Ports
	}
	for _, tc := range []struct {
		name string
		in   []in
		want string
	}{
		{"one", []in{{"10.0.0.0/24", nil, tcp(1, 1)}}, "10.0.0.0-10.0.0.255 {false [{TCP 1 1}]}"},
		{"nothing is allowed", []in{{"10.0.0.0/24", nil, Ports{}}}, ""},
		{"an exception at each end and one within another",
			[]in{{"10.0.0.0/24", []string{"10.0.0.0/30", "10.0.0.128/25", "10.0.0.129/32"}, tcp(1, 1)}},
			"10.0.0.4-10.0.0.127 {false [{TCP 1 1}]}"},
		{"all is an exception", []in{{"10.0.0.0/24", []string{"10.0.0.0/8"}, tcp(1, 1)}}, ""},
		{"exceptions elsewhere", []in{{"10.0.0.0/24", []string{"10.1.0.0/24", "fd00::/8"}, tcp(1, 1)}},
			"10.0.0.0-10.0.0.255 {false [{TCP 1 1}]}"},
		{"one within another", []in{{"10.0.0.0/24", nil, tcp(1, 1)}, {"10.0.0.8/29", nil, tcp(2, 2)}},
			"10.0.0.0-10.0.0.7 {false [{TCP 1 1}]}, 10.0.0.8-10.0.0.15 {false [{TCP 1 2}]}, 10.0.0.16-10.0.0.255 " +
				"{false [{TCP 1 1}]}"},
		{"neighbours with the same ports are one", []in{{"10.0.1.0/24", nil, tcp(1, 1)},
			{"10.0.0.0/24", nil, tcp(1, 1)}}, "10.0.0.0-10.0.1.255 {false [{TCP 1 1}]}"},
		{"what one excepts another allows", []in{{"10.0.0.0/24", []string{"10.0.0.0/25"}, tcp(1, 1)},
			{"10.0.0.0/25", nil, Ports{All: true}}},
			"10.0.0.0-10.0.0.127 {true []}, 10.0.0.128-10.0.0.255 {false [{TCP 1 1}]}"},
		{"to the last address of both families", []in{{"::/0", nil, tcp(2, 2)},
			{"0.0.0.0/0", []string{"0.0.0.0/1"}, tcp(1, 1)}},
			"128.0.0.0-255.255.255.255 {false [{TCP 1 1}]}, ::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff " +
				"{false [{TCP 2 2}]}"},
	} {
		var list []Block
		for _, b := range tc.in {
			for _, r := range subtract(netip.MustParsePrefix(b.block), prefixes(b.except...)) {
				list = append(list, Block{r, b.ports})
			}
		}
		got := ""
		for i, b := range overlay(list) {
			if i > 0 {
				got += ", "
			}
			got += fmt.Sprint(b.Range, " ", b.Ports)
		}
		if got != tc.want {
			t.Errorf("%s:\n%s, want\n%s", tc.name, got, tc.want)
		}
	}
}

// onePolicy is a world with a policy for the pod a/web at 10.0.0.1, and a peer a/peer.
func onePolicy(t *testing.T) *rig {
	r := newRig(t, NodeInputs{Node: "here"})
	r.write(func(w *model.Writer) {
		w.PutPod(&model.Pod{Name: model.Name{Namespace: "a", Name: "web"}, Node: "here",
			Labels: map[string]string{"app": "web"}, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
			Ports: []model.NamedPort{{Name: "http", Protocol: model.TCP, Port: 80},
				{Name: "unused", Protocol: model.TCP, Port: 81}}})
		w.PutPod(&model.Pod{Name: model.Name{Namespace: "a", Name: "peer"}, Node: "there",
			Labels: map[string]string{"app": "peer"}, IPs: []netip.Addr{netip.MustParseAddr("10.0.1.1")}})
		w.PutNetworkPolicy(&model.NetworkPolicy{Name: model.Name{Namespace: "a", Name: "np"}, Subject: is("app", "web"),
			IsolatesIngress: true,
			Ingress: []model.PolicyRule{{Peers: []model.PolicyPeer{{Pods: is("app", "peer")}},
				Ports: []model.PolicyPort{{Protocol: model.TCP, Name: "http"}}}}})
	})
	r.step()
	return r
}

func (r *rig) profileOf(d Direction, a string) string {
	return r.entries[Key{Kind: PodEntry, Direction: d, Addr: netip.MustParseAddr(a)}].Profile
}

// The IDs are in the kernel of nodes that run: another text for the same profile would
// have an agent that starts make all anew.
func TestProfilesAreNamedByTheirContent(t *testing.T) {
	r := onePolicy(t)
	first := r.profileOf(Ingress, "10.0.0.1")
	if want := "f129b2b732a424aa"; first != want {
		t.Errorf("the profile is %s, want %s", first, want)
	}
	twin := func(port, unused uint16) *model.Pod {
		return &model.Pod{Name: model.Name{Namespace: "a", Name: "twin"}, Node: "here",
			Labels: map[string]string{"app": "web"}, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2")},
			Ports: []model.NamedPort{{Name: "unused", Protocol: model.TCP, Port: unused},
				{Name: "http", Protocol: model.TCP, Port: port}}}
	}
	r.write(func(w *model.Writer) { w.PutPod(twin(80, 99)) })
	if r.step(); r.profileOf(Ingress, "10.0.0.2") != first {
		t.Errorf("a pod with the same named port has another profile")
	}
	r.write(func(w *model.Writer) { w.PutPod(twin(8080, 99)) })
	if r.step(); r.profileOf(Ingress, "10.0.0.2") == first {
		t.Errorf("a pod with another named port has the same profile")
	}
	if r.profileOf(Egress, "10.0.0.1") != "" {
		t.Errorf("the pod is isolated in a direction that no policy has")
	}
}

func TestALeasedAddressIsClosedUntilItsPodIsKnown(t *testing.T) {
	r, a := onePolicy(t), netip.MustParseAddr("10.0.0.9")
	late := model.Name{Namespace: "a", Name: "late"}
	local := NodeInputs{Node: "here", Pods: map[netip.Addr]model.Name{a: late,
		netip.MustParseAddr("10.0.0.8"): {Namespace: "b", Name: "free"}}}
	r.setInputs(local)
	r.step()
	if !Decide(r.entries, Ingress, netip.MustParseAddr("10.0.0.8"), netip.MustParseAddr("10.0.1.1"), model.TCP, 80) {
		t.Error("a pod of a namespace without policies is closed")
	}
	for _, tc := range []struct {
		name   string
		pod    *model.Pod
		closed bool
	}{
		{"not there", nil, true},
		{"an earlier one with another address",
			&model.Pod{Node: "here", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.7")}}, true},
		{"an earlier one on another node", &model.Pod{Node: "there"}, true},
		{"an earlier one with hostNetwork", &model.Pod{Node: "here", HostNetwork: true}, true},
		{"known, without address yet, not selected", &model.Pod{Node: "here"}, false},
		{"with its address", &model.Pod{Node: "here", IPs: []netip.Addr{a}}, false},
	} {
		r.write(func(w *model.Writer) {
			if w.Delete(model.PodKind, late); tc.pod != nil {
				tc.pod.Name = late
				w.PutPod(tc.pod)
			}
		})
		r.step()
		e, closed := r.entries[Key{Kind: PodEntry, Direction: Ingress, Addr: a}]
		if closed != tc.closed || len(e.Policies) > 0 {
			t.Errorf("%s: closed %v by %v, want %v", tc.name, closed, e.Policies, tc.closed)
		}
		if got := Decide(r.entries, Ingress, a, netip.MustParseAddr("10.0.1.1"), model.TCP, 80); got == tc.closed {
			t.Errorf("%s: a packet passes: %v", tc.name, got)
		}
	}
}

// While two pods claim one address, the younger has it; the policy knows no other.
func TestAnAddressThatTwoPodsClaim(t *testing.T) {
	r := onePolicy(t)
	peer := netip.MustParseAddr("10.0.1.1")
	pass := func() bool {
		r.step()
		return Decide(r.entries, Ingress, netip.MustParseAddr("10.0.0.1"), peer, model.TCP, 80)
	}
	if !pass() {
		t.Fatal("the peer is shut out")
	}
	younger := &model.Pod{Name: model.Name{Namespace: "a", Name: "other"}, Node: "there", IPs: []netip.Addr{peer},
		Created: time.Unix(1, 0)}
	r.write(func(w *model.Writer) { w.PutPod(younger) })
	if pass() {
		t.Error("who has the address now inherits from who had it")
	}
	r.write(func(w *model.Writer) { w.Delete(model.PodKind, younger.Name) })
	if !pass() {
		t.Error("the peer is shut out, though it has the address again")
	}
	r.write(func(w *model.Writer) { w.Delete(model.PodKind, model.Name{Namespace: "a", Name: "peer"}) })
	if pass() {
		t.Error("an address passes that no pod has any more")
	}
}

// What a change costs, in keys: only profiles that have the pod as a peer.
func TestKeysFollowWhatChanged(t *testing.T) {
	r := newRig(t, NodeInputs{Node: "here"})
	r.write(func(w *model.Writer) {
		for i := range 100 {
			ns := fmt.Sprintf("ns%d", i)
			w.PutPod(&model.Pod{Name: model.Name{Namespace: ns, Name: "web"}, Node: "here",
				IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}})
			w.PutNetworkPolicy(&model.NetworkPolicy{Name: model.Name{Namespace: ns, Name: "np"}, IsolatesIngress: true,
				Ingress: []model.PolicyRule{{AnyPort: true, Peers: []model.PolicyPeer{{}}}}})
		}
	})
	if n := r.step(); n < 300 {
		t.Errorf("%d keys at the start, want those of 100 profiles", n)
	}
	pod := &model.Pod{Name: model.Name{Namespace: "ns7", Name: "new"}, Node: "there",
		IPs: []netip.Addr{netip.MustParseAddr("10.0.1.1")}}
	r.write(func(w *model.Writer) { w.PutPod(pod) })
	if n := r.step(); n != 1 {
		t.Errorf("%d keys for a pod that is a peer of one profile, want 1", n)
	}
	same := *pod
	same.NDots = 5
	r.write(func(w *model.Writer) { w.PutPod(&same) })
	if n := r.step(); n != 0 {
		t.Errorf("%d keys for a change that policies do not see, want 0", n)
	}
	if n := r.step(); n != 0 {
		t.Errorf("%d keys without a change, want 0", n)
	}
	if keys := r.planner.Keys(r.store.Snapshot(), model.Changes{}); !slices.Equal(keys, nil) {
		t.Errorf("keys %v for nothing", keys)
	}
}
