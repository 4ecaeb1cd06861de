package wireguard

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/wireguard"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/routes"
)

func world(t *testing.T, nodes ...*model.Node) model.Snapshot {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if err := store.Write(func(w *model.Writer) {
		for _, n := range nodes {
			w.PutNode(n)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return store.Snapshot()
}

func node(name string, cidr string, ips ...string) *model.Node {
	n := &model.Node{Name: name, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}
	for _, ip := range ips {
		n.InternalIPs = append(n.InternalIPs, netip.MustParseAddr(ip))
	}
	return n
}

func publish(keys ...byte) (p Published) {
	for i, k := range keys {
		p.Keys[i], p.Ports[i] = wireguard.Key{k}, uint16(51871+i)
	}
	return p
}

// A node that publishes another node's key takes nothing from it: the node that had the key keeps it, and where none
// had it, none gets it.
func TestAStolenKeyTakesNothing(t *testing.T) {
	snap := world(t, node("a", "10.1.0.0/24", "192.0.2.1"), node("b", "10.2.0.0/24", "192.0.2.2"),
		node("thief", "10.3.0.0/24", "192.0.2.3"))
	published := map[string]Published{"a": publish(1, 2), "b": publish(3, 4), "thief": publish(4, 3)}
	own := published["a"].Keys
	for name, tc := range map[string]struct {
		held map[wireguard.Key]string
		want string
	}{
		"b had it":     {map[wireguard.Key]string{{3}: "b", {4}: "b"}, "b"},
		"no one had":   {nil, ""},
		"another node": {map[wireguard.Key]string{{3}: "gone"}, ""},
	} {
		for d := range Devices {
			p := MakePeers(snap, "a", d, published, own, tc.held, false)
			var got []string
			for _, n := range p.Nodes {
				got = append(got, n)
			}
			if strings.Join(got, " ") != tc.want || !strings.Contains(p.Missing["thief"], "another node") {
				t.Errorf("%s: device %d talks to %q, want %q; missing %v", name, d, got, tc.want, p.Missing)
			}
		}
	}
	published["thief"] = Published{Keys: own, Ports: [Devices]uint16{1, 2}}
	if p := MakePeers(snap, "a", 0, published, own, nil, false); p.Missing["thief"] != "it publishes the key of this "+
		"node" || len(p.List) != 1 {
		t.Errorf("with the key of this node: %+v", p)
	}
}

// What a peer may send is its pods' networks, which no other node has, and its own addresses only if asked for.
func TestWhatPeersMaySend(t *testing.T) {
	snap := world(t, node("a", "10.1.0.0/24", "192.0.2.1", "2001:db8::1"), node("b", "10.2.0.0/24", "192.0.2.2"),
		node("c", "10.2.0.0/25", "192.0.2.3"), node("d", "10.4.0.0/24", "2001:db8::4"), node("e", "10.5.0.0/24"))
	published := map[string]Published{"b": publish(3, 4), "c": publish(5, 6), "d": publish(7, 8), "e": publish(9, 10),
		"stranger": publish(11, 12)}
	for _, nodes := range []bool{false, true} {
		p := MakePeers(snap, "a", 1, published, publish(1, 2).Keys, nil, nodes)
		got := fmt.Sprint(p.List)
		want := []string{"10.2.0.0/24", "192.0.2.2/32", "10.4.0.0/24", "192.0.2.2:51872", "[2001:db8::4]:51872"}
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("nodes=%t: %s is not in %s", nodes, w, got)
			}
		}
		if strings.Contains(got, "10.2.0.0/25") || strings.Contains(got, "192.0.2.3/32") != nodes ||
			len(p.Missing) != 1 || p.Missing["e"] == "" {
			t.Errorf("nodes=%t: %s, missing %v", nodes, got, p.Missing)
		}
	}
}

// An address is allowed to one peer: of two nodes that claim it, the older one. A kubelet sets those of its own Node.
func TestANewcomerIsNoOtherNode(t *testing.T) {
	a, old, evil := node("a", "10.1.0.0/24", "192.0.2.1"), node("old", "10.2.0.0/24", "192.0.2.2"),
		node("evil", "10.2.0.0/24", "192.0.2.9", "192.0.2.2")
	old.Created, evil.Created = time.Unix(2, 0), time.Unix(3, 0)
	published := map[string]Published{"old": publish(3, 4), "evil": publish(5, 6)}
	p := MakePeers(world(t, a, old, evil), "a", 0, published, publish(1, 2).Keys, nil, true)
	for _, peer := range p.List {
		want := map[string]string{"old": "[10.2.0.0/24 192.0.2.2/32]", "evil": "[192.0.2.9/32]"}[p.Nodes[peer.Public]]
		if got := fmt.Sprint(peer.Allowed); got != want {
			t.Errorf("node %s may send from %s, want %s", p.Nodes[peer.Public], got, want)
		}
	}
	if len(p.List) != 2 {
		t.Errorf("peers are %v", p.List)
	}
}

// In any period, a key is replaced only on the device that nodes do not send by, even where clocks differ by up to a
// quarter of the period.
func TestAKeyIsReplacedWhileNobodyUsesIt(t *testing.T) {
	const period = 24 * time.Hour
	start := time.Unix(1_800_000_000, 0)
	r := Rotation{Period: period}
	replaced := map[int]int{}
	for at := start; at.Sub(start) < 10*period; at = at.Add(7 * time.Minute) {
		d, ok := r.Due(at)
		if !ok {
			continue
		}
		r.Done(at)
		replaced[d]++
		for _, skew := range []time.Duration{-period/4 + 8*time.Minute, 0, period/4 - 8*time.Minute} {
			if used := Current(at.Add(skew), period); used == d {
				t.Errorf("at %s device %d is replaced, which a node whose clock differs by %s sends by", at, d, skew)
			}
		}
		if _, again := r.Due(at.Add(time.Minute)); again {
			t.Error("a key is replaced twice in a period")
		}
	}
	if replaced[0] < 4 || replaced[1] < 4 {
		t.Errorf("in 10 periods, keys were replaced %v times", replaced)
	}
}

// The current device is used if it has a session, else the other one.
func TestTheDeviceOfANode(t *testing.T) {
	const period = time.Hour
	for range 1000 {
		now := time.Unix(1_800_000_000+rand.Int64N(1e6), 0)
		var h [Devices]time.Time
		for i := range h {
			if rand.IntN(3) > 0 {
				h[i] = now.Add(-time.Duration(rand.IntN(300)) * time.Second)
			}
		}
		d, ok := Choose(h, now, period)
		current := Current(now, period)
		fresh := func(i int) bool { return now.Sub(h[i]) < Fresh }
		switch {
		case fresh(current) && (d != current || !ok), !fresh(current) && fresh(1-current) && (d == current || !ok),
			!fresh(0) && !fresh(1) && ok:
			t.Fatalf("handshakes %v ago: device %d, %t", [2]time.Duration{now.Sub(h[0]), now.Sub(h[1])}, d, ok)
		}
	}
}

// In strict mode, networks of other nodes are in the sets that drop; otherwise none is.
func TestTheGuardHasEveryNetwork(t *testing.T) {
	snap := world(t, node("a", "10.1.0.0/24", "192.0.2.1"), node("b", "10.2.0.0/24", "192.0.2.2"),
		node("c", "fd00:3::/64", "2001:db8::3"))
	conn := nft.NewFake()
	for _, e := range []routes.Encryption{{Strict: true, Via: map[string]string{"b": Device(0)}}, {Preferred: true},
		{Strict: true, Nodes: true}} {
		g := NewGuard(conn, [Devices]uint16{51871, 51872})
		if err := g.Set(t.Context(), MakeGuarded(snap, "a", e, &Former{}), true); err != nil {
			t.Fatal(err)
		}
		var all string
		for _, f := range nft.Families() {
			all += strings.Join(conn.Dump(g.table(f)), "\n")
		}
		for network, want := range map[string]bool{"10.2.0.0/24": e.Strict, "fd00:3::/64": e.Strict,
			"10.1.0.0/24": e.Strict, "192.0.2.2": true} {
			if got := strings.Contains(all, network); got != want {
				t.Errorf("%+v: %s is in the rules: %t, want %t:\n%s", e, network, got, want, all)
			}
		}
	}
}

// The networks of nodes that are gone are guarded for a while, also when it is this node, unless this node gets them. A
// younger Node that claims this node's network does not have its pods parted from each other.
func TestNetworksOfNodesThatAreGone(t *testing.T) {
	now := time.Unix(1e9, 0)
	a, b := node("a", "10.1.0.0/24", "192.0.2.1"), node("b", "10.2.0.0/24", "192.0.2.2")
	thief := node("thief", "10.1.0.0/16", "192.0.2.3")
	thief.Created = now
	strict := routes.Encryption{Strict: true, Via: map[string]string{"b": Device(0)}}
	var f Former
	for i, step := range []struct {
		after            time.Duration
		nodes            []*model.Node
		own, peers, noKy string
	}{
		{0, []*model.Node{a, b}, "[10.1.0.0/24]", "[10.2.0.0/24]", "[]"},
		{time.Minute, []*model.Node{a}, "[10.1.0.0/24]", "[10.2.0.0/24]", "[10.2.0.0/24]"},
		{0, nil, "[10.1.0.0/24]", "[10.2.0.0/24]", "[10.2.0.0/24]"},
		{time.Minute, []*model.Node{node("a", "10.2.0.0/24", "192.0.2.1"), node("b", "10.1.0.0/24", "192.0.2.2")},
			"[10.2.0.0/24 10.1.0.0/24]", "[10.1.0.0/24]", "[]"},
		{2 * time.Hour, []*model.Node{node("a", "10.3.0.0/24", "192.0.2.1")}, "[10.3.0.0/24]", "[]", "[]"},
		{0, []*model.Node{a, thief}, "[10.1.0.0/24 10.3.0.0/24]", "[]", "[]"},
	} {
		now = now.Add(step.after)
		snap := world(t, step.nodes...)
		f.Look(snap, "a", nil, now)
		g := MakeGuarded(snap, "a", strict, &f)
		if fmt.Sprint(g.Own) != step.own || fmt.Sprint(g.Peers) != step.peers || fmt.Sprint(g.NoKey) != step.noKy {
			t.Errorf("step %d: own %v, peers %v, without a key %v; want %s, %s, %s", i, g.Own, g.Peers, g.NoKey,
				step.own, step.peers, step.noKy)
		}
	}
	var many []*model.Node
	for i := range maxFormer + 10 {
		many = append(many, node(fmt.Sprint("n", i), fmt.Sprintf("10.%d.%d.0/24", 16+i>>8, i&255)))
	}
	f.Look(world(t, append(many, a)...), "a", nil, now)
	f.Look(world(t, a), "a", nil, now.Add(time.Minute))
	if n := len(f.peers); n != maxFormer {
		t.Errorf("%d networks are remembered; %d are allowed", n, maxFormer)
	}
	// An agent that has just started knows by their leases of pods with addresses of an earlier network.
	f = Former{}
	f.Look(world(t, a), "a", []netip.Addr{netip.MustParseAddr("10.1.0.7"), netip.MustParseAddr("10.9.0.7")}, now)
	if g := MakeGuarded(world(t, a), "a", strict, &f); fmt.Sprint(g.Own) != "[10.1.0.0/24 10.9.0.7/32]" {
		t.Errorf("own networks are %v", g.Own)
	}
}

// Messages of WireGuard itself are no use of a device, and any packet is.
func TestTheUseOfADevice(t *testing.T) {
	var u Usage
	start := time.Unix(1e9, 0)
	key, other := wireguard.Key{1}, wireguard.Key{2}
	var bytes uint64
	look := func(second int, grown uint64) (time.Duration, wireguard.Key) {
		bytes += grown
		u.Look(1, []wireguard.PeerState{{Peer: wireguard.Peer{Public: other}, Received: 5000},
			{Peer: wireguard.Peer{Public: key}, Received: bytes}}, start.Add(time.Duration(second)*time.Second))
		last, by := u.Since(1)
		return last.Sub(start), by
	}
	for i, step := range []struct {
		second int
		grown  uint64
		last   time.Duration
		by     wireguard.Key
	}{
		{0, 100000, 0, wireguard.Key{}}, // before this agent
		{1, 0, 0, wireguard.Key{}},
		{2, 32, 0, wireguard.Key{}},            // a keep-alive
		{3, 148 + 92 + 32, 0, wireguard.Key{}}, // handshakes from both sides
		{9, 2*148 + 32, 0, wireguard.Key{}},    // one that was repeated
		{10, 80, 10 * time.Second, key},        // a datagram
		{11, 0, 10 * time.Second, key},
		{12, 64, 12 * time.Second, key}, // the smallest packet
		{13, 148 + 80, 13 * time.Second, key},
		{20, 100000, 20 * time.Second, key},
	} {
		if last, by := look(step.second, step.grown); last != step.last || by != step.by {
			t.Errorf("step %d: last used at %s by %v, want %s by %v", i, last, by, step.last, step.by)
		}
	}
	bytes = 0 // the device was made anew
	if last, by := look(30, 0); last != 20*time.Second || by != key {
		t.Errorf("after the device was made anew: %s by %v", last, by)
	}
	if last, _ := u.Since(0); !last.IsZero() {
		t.Errorf("the other device was used at %s", last)
	}
	// A counter that was not read for days, or at a time before the last one, costs no more work.
	for _, within := range []time.Duration{1000 * time.Hour, -time.Hour} {
		if isIdle(1<<40, within) {
			t.Errorf("a terabyte within %s is taken for no packet", within)
		}
	}
	for n := range 100 { // of no length of a packet, with or without a message of WireGuard, in a second
		if size := uint64(80 + 16*n); isIdle(size, time.Second) && size != 240 && size != 272 {
			t.Errorf("%d bytes are taken for no packet", size)
		}
	}
}
