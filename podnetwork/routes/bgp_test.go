package routes

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// bgpWorld is node a, b on its segment and c behind a router; all are Ready. 10.96.0.0/16 is for Services, and the
// BGPPeer tor may announce 198.51.100.0/24 and parts of it.
func bgpWorld(t *testing.T, more func(*model.Writer)) (model.Snapshot, NodeLinks) {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if err := store.Write(func(w *model.Writer) {
		for _, n := range []*model.Node{node("a", "192.0.2.1", "10.1.0.0/24"), node("b", "192.0.2.2", "10.2.0.0/24"),
			node("c", "203.0.113.3", "10.3.0.0/24")} {
			n.Ready = true
			w.PutNode(n)
		}
		w.PutServiceCIDR(&model.ServiceCIDR{Name: "kubernetes", CIDRs: []netip.Prefix{prefix("10.96.0.0/16")}})
		w.PutBGPPeer(&model.BGPPeer{Name: "tor", Import: model.BGPImport{
			Networks: []netip.Prefix{prefix("198.51.100.0/24"), prefix("10.0.0.0/8")}}})
		more(w)
	}); err != nil {
		t.Fatal(err)
	}
	return store.Snapshot(), NodeLinks{Self: "a", Mode: BGP, Uplink: link.Uplink{Name: "eth0", MTU: 1500,
		Segments: []netip.Prefix{prefix("192.0.2.0/24")}}}
}

func learn(w *model.Writer, p string, hops ...model.BGPHop) {
	w.PutBGPRoute(&model.BGPRoute{Prefix: prefix(p), Hops: hops})
}

func fromTor(a string) model.BGPHop { return model.BGPHop{Addr: addr(a), Peer: "tor"} }

func fromNode(name, a string) model.BGPHop {
	return model.BGPHop{Addr: addr(a), Peer: name, Node: true}
}

// The way to a node's block is the learned one; without one it is that of mode auto while the node is Ready, and the
// block is unreachable when it is not.
func TestBGPWaysToABlock(t *testing.T) {
	for _, c := range []struct {
		name, node string
		more       func(*model.Writer)
		want       string
	}{
		{"by the node itself", "b", func(w *model.Writer) { learn(w, "10.2.0.0/24", fromNode("b", "192.0.2.2")) },
			"via 192.0.2.2"},
		{"by a router", "c", func(w *model.Writer) { learn(w, "10.3.0.0/24", fromTor("192.0.2.254")) },
			"via 192.0.2.254"},
		{"a hop behind a router is skipped", "c", func(w *model.Writer) {
			learn(w, "10.3.0.0/24", fromNode("c", "203.0.113.3"), fromTor("192.0.2.254"))
		}, "via 192.0.2.254"},
		{"only a hop behind a router", "c", func(w *model.Writer) {
			learn(w, "10.3.0.0/24", fromNode("c", "203.0.113.3"))
		}, "tunnel"},
		{"this node itself as a hop", "b", func(w *model.Writer) { learn(w, "10.2.0.0/24", fromTor("192.0.2.1")) },
			"via 192.0.2.2"},
		{"another node announces the block", "b", func(w *model.Writer) {
			learn(w, "10.2.0.0/24", fromNode("c", "192.0.2.66"))
		}, "via 192.0.2.2"},
		{"a route reflector announces the block", "b", func(w *model.Writer) {
			w.PutNode(&model.Node{Name: "r", Labels: map[string]string{"rr": "1"}})
			cfg := model.DefaultBGP()
			cfg.Mesh.HasReflectors = true
			cfg.Mesh.Reflectors = model.Selector{Requirements: []model.Requirement{{Key: "rr", Operator: model.Exists}}}
			w.PutBGPConfiguration(cfg)
			learn(w, "10.2.0.0/24", fromNode("r", "192.0.2.22"))
		}, "via 192.0.2.22"},
		{"a hop of the other family", "b", func(w *model.Writer) { learn(w, "10.2.0.0/24", fromTor("2001:db8::1")) },
			"via 192.0.2.2"},
		{"a part of the block", "b", func(w *model.Writer) { learn(w, "10.2.0.0/25", fromTor("192.0.2.66")) },
			"via 192.0.2.2"},
		{"not announced, on the segment", "b", func(*model.Writer) {}, "via 192.0.2.2"},
		{"not announced, behind a router", "c", func(*model.Writer) {}, "tunnel"},
		{"not announced, not Ready", "b", func(w *model.Writer) { w.PutNode(node("b", "192.0.2.2", "10.2.0.0/24")) },
			"unreachable"},
		{"announced, not Ready", "b", func(w *model.Writer) {
			w.PutNode(node("b", "192.0.2.2", "10.2.0.0/24"))
			learn(w, "10.2.0.0/24", fromNode("b", "192.0.2.2"))
		}, "via 192.0.2.2"},
	} {
		snap, l := bgpWorld(t, c.more)
		p, ok, problems := Make(snap, c.node, l)
		got := "nothing"
		if i := slices.IndexFunc(p.Routes, func(r link.Route) bool { return r.Table == 0 }); ok && i >= 0 {
			switch r := p.Routes[i]; {
			case r.Dev != "":
				got = "tunnel"
			case r.Via.IsValid():
				got = fmt.Sprintf("via %s", r.Via)
			default:
				got = "unreachable"
			}
		}
		if got != c.want || len(problems) > 0 {
			t.Errorf("%s: %s (%+v, %v), want %s", c.name, got, p, problems, c.want)
		}
	}
}

// Networks outside of the cluster are used if the BGPPeer asks for them; never a part of the cluster's own ranges.
func TestBGPImports(t *testing.T) {
	for _, c := range []struct {
		network string
		hop     model.BGPHop
		change  func(*model.BGPPeer)
		want    bool
	}{
		{"198.51.100.0/24", fromTor("192.0.2.254"), nil, true},
		{"198.51.100.128/25", fromTor("192.0.2.254"), nil, true},
		{"198.51.100.0/23", fromTor("192.0.2.254"), nil, false},
		{"203.0.113.0/24", fromTor("192.0.2.254"), nil, false},
		{"198.51.100.0/24", fromTor("203.0.113.254"), nil, false},
		{"198.51.100.0/24", fromNode("b", "192.0.2.2"), nil, false},
		{"198.51.100.0/24", model.BGPHop{Addr: addr("192.0.2.254"), Peer: "gone"}, nil, false},
		{"198.51.100.0/24", fromTor("192.0.2.254"), func(p *model.BGPPeer) { p.Invalid = "x" }, false},
		{"198.51.100.0/24", fromTor("192.0.2.254"), func(p *model.BGPPeer) { p.Nodes.Nothing = true }, false},
		{"10.96.0.0/16", fromTor("192.0.2.254"), nil, false},
		{"10.96.0.10/32", fromTor("192.0.2.254"), nil, false},
		{"10.1.0.0/24", fromTor("192.0.2.254"), nil, false},
		{"10.1.0.7/32", fromTor("192.0.2.254"), nil, false},
		{"10.2.0.128/25", fromTor("192.0.2.254"), nil, false},
		{"10.20.0.0/16", fromTor("192.0.2.254"), nil, true},
		{"0.0.0.0/0", fromTor("192.0.2.254"), nil, false},
		{"0.0.0.0/0", fromTor("192.0.2.254"),
			func(p *model.BGPPeer) { p.Import.Networks = []netip.Prefix{prefix("0.0.0.0/0")} }, false},
		{"0.0.0.0/0", fromTor("192.0.2.254"), func(p *model.BGPPeer) { p.Import.DefaultRoute = true }, true},
	} {
		snap, l := bgpWorld(t, func(w *model.Writer) {
			learn(w, c.network, c.hop)
			if c.change != nil {
				p := &model.BGPPeer{Name: "tor",
					Import: model.BGPImport{Networks: []netip.Prefix{prefix("198.51.100.0/24")}}}
				c.change(p)
				w.PutBGPPeer(p)
			}
		})
		p, ok, problems := Make(snap, networkKey+c.network, l)
		if ok != c.want || len(problems) > 0 {
			t.Errorf("%s by %+v: %+v, %v, want %t", c.network, c.hop, p, problems, c.want)
		}
		if ok && (len(p.Routes) != 1 || p.Routes[0].Metric != Metric || p.Routes[0].Via != c.hop.Addr) {
			t.Errorf("%s: %+v", c.network, p.Routes)
		}
	}
}

// Whatever peers announce: no route leads into this node's block, a range of Services or, unless asked for, everywhere;
// each next hop is on a segment; and the loop, which plans only the keys of a change, ends with the plans of all keys.
func TestWhateverIsAnnounced(t *testing.T) {
	rnd := rand.New(rand.NewPCG(18, 2))
	bits := func(s string) netip.Prefix {
		p := prefix(s)
		return netip.PrefixFrom(p.Addr(), rnd.IntN(33)).Masked()
	}
	bases := []string{"10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "10.96.0.0/16", "198.51.100.7/32", "0.0.0.0/0"}
	hops := []model.BGPHop{fromTor("192.0.2.254"), fromTor("203.0.113.1"), fromTor("192.0.2.1"),
		fromNode("b", "192.0.2.2"),
		fromNode("c", "203.0.113.3"), fromNode("b", "192.0.2.66"), fromTor("2001:db8::1")}
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	w, err := store.Watch(BGP.Kinds())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	l := NodeLinks{Self: "a", Mode: BGP, Uplink: link.Uplink{Name: "eth0", MTU: 1500,
		Segments: []netip.Prefix{prefix("192.0.2.0/24")}}}
	keys, plans := Keys("a"), map[string]Plan{}
	change := func(w *model.Writer) {
		switch rnd.IntN(8) {
		case 0:
			for i, name := range []string{"a", "b", "c"} {
				n := node(name, fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("10.%d.0.0/24", i+1))
				n.Ready = rnd.IntN(2) == 0
				w.PutNode(n)
			}
		case 1:
			w.Delete(model.NodeKind, model.Name{Name: []string{"b", "c"}[rnd.IntN(2)]})
		case 2:
			w.PutBGPPeer(&model.BGPPeer{Name: "tor", Import: model.BGPImport{DefaultRoute: rnd.IntN(2) == 0,
				Networks: []netip.Prefix{bits("198.51.100.0/24"), prefix("0.0.0.0/0")}[:rnd.IntN(3)]}})
		case 3:
			w.PutServiceCIDR(&model.ServiceCIDR{Name: "kubernetes", CIDRs: []netip.Prefix{prefix("10.96.0.0/16")}})
		case 4:
			for _, n := range w.Names(model.BGPRouteKind) {
				if rnd.IntN(2) == 0 {
					w.Delete(model.BGPRouteKind, n)
				}
			}
		default:
			p := prefix(bases[rnd.IntN(len(bases))])
			if rnd.IntN(2) == 0 {
				p = bits(p.String())
			}
			rnd.Shuffle(len(hops), func(i, j int) { hops[i], hops[j] = hops[j], hops[i] })
			w.PutBGPRoute(&model.BGPRoute{Prefix: p, Hops: slices.Clone(hops[:rnd.IntN(len(hops))])})
		}
	}
	for range 3000 {
		if err := store.Write(change); err != nil {
			t.Fatal(err)
		}
		snap, changes, _ := w.Poll()
		for _, k := range keys(snap, changes) {
			if p, ok, _ := Make(snap, k, l); ok {
				plans[k] = p
			} else {
				delete(plans, k)
			}
		}
		if _, ok := snap.Node("a"); !ok {
			continue
		}
		all := []string{}
		for n := range snap.Nodes() {
			all = append(all, n.Name)
		}
		for r := range snap.BGPRoutes() {
			all = append(all, networkKey+r.Prefix.String())
		}
		for _, k := range all {
			p, ok, _ := Make(snap, k, l)
			if had, there := plans[k]; ok != there || !Equal(p, had) {
				t.Fatalf("%s: the loop has %+v (%t), right is %+v (%t)", k, had, there, p, ok)
			}
		}
		for k, p := range plans {
			if !slices.Contains(all, k) {
				t.Fatalf("%s: a plan is left: %+v", k, p)
			}
			for _, r := range p.Routes {
				checkRoute(t, snap, l, k, r)
			}
		}
	}
}

func checkRoute(t *testing.T, snap model.Snapshot, l NodeLinks, key string, r link.Route) {
	t.Helper()
	if r.Via.IsValid() && r.Dev == "" && !l.onSegment(r.Via) {
		t.Fatalf("%s: %+v is via a hop on no segment", key, r)
	}
	if !r.Via.IsValid() || r.Table != 0 {
		return
	}
	if own := prefix("10.1.0.0/24"); own.Bits() <= r.Dst.Bits() && own.Contains(r.Dst.Addr()) {
		t.Fatalf("%s: %+v leads away from this node's block", key, r)
	}
	if peer, ok := snap.BGPPeer("tor"); r.Dst.Bits() == 0 && (!ok || !peer.Import.DefaultRoute) {
		t.Fatalf("%s: %+v is a default route that nobody asked for", key, r)
	}
	for c := range snap.ServiceCIDRs() {
		if s := c.CIDRs[0]; s.Bits() <= r.Dst.Bits() && s.Contains(r.Dst.Addr()) {
			t.Fatalf("%s: %+v leads into a range of Services", key, r)
		}
	}
}
