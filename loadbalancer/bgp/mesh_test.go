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

// meshWorld is three nodes with both families.
func meshWorld(t *testing.T, more ...func(*model.Writer)) model.Snapshot {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if err := store.Write(func(w *model.Writer) {
		for i := 1; i <= 3; i++ {
			w.PutNode(meshNode(i))
		}
		for _, fn := range more {
			fn(w)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return store.Snapshot()
}

func meshNode(i int) *model.Node {
	return &model.Node{Name: fmt.Sprint("node", i),
		InternalIPs: []netip.Addr{addr(fmt.Sprintf("10.9.0.%d", i)), addr(fmt.Sprintf("fd00:9::%d", i))},
		PodCIDRs: []netip.Prefix{prefix(fmt.Sprintf("10.244.%d.0/24", i)),
			prefix(fmt.Sprintf("fd00:244:0:%d::/64", i))}}
}

func mesh(t *testing.T, snap model.Snapshot, node string) (State, []model.Problem) {
	t.Helper()
	s, ok, problems := Plan(snap, Input{Node: node, Routing: true})
	if !ok {
		t.Fatal("no plan")
	}
	if err := s.Check(); err != nil {
		t.Errorf("the plan is invalid: %v", err)
	}
	return s, problems
}

func sessions(s State) string {
	var out []string
	for _, x := range s.Sessions {
		out = append(out, fmt.Sprintf("%s %s AS%d passive:%t client:%t ttl:%d", x.Name, x.Addr, x.ASN, x.Passive,
			x.ReflectorClient, x.MultiHop))
	}
	return strings.Join(out, "\n")
}

func reflectors(w *model.Writer) {
	n := meshNode(1)
	n.Labels = map[string]string{"rr": ""}
	w.PutNode(n)
	cfg := model.DefaultBGP()
	cfg.Mesh.HasReflectors = true
	cfg.Mesh.Reflectors = model.Selector{Requirements: []model.Requirement{{Key: "rr", Operator: model.Exists}}}
	w.PutBGPConfiguration(cfg)
}

// The sessions of nodes with each other, and what is said and believed in them.
func TestSessionsOfTheMesh(t *testing.T) {
	for _, c := range []struct {
		name, node string
		more       func(*model.Writer)
		want, says string
	}{
		{"a full mesh", "node2", func(*model.Writer) {},
			"Node node1 10.9.0.1 AS64512 passive:true client:false ttl:0\n" +
				"Node node3 10.9.0.3 AS64512 passive:false client:false ttl:0", ""},
		{"a route reflector", "node1", reflectors, "Node node2 10.9.0.2 AS64512 passive:false client:true ttl:0\n" +
			"Node node3 10.9.0.3 AS64512 passive:false client:true ttl:0", ""},
		{"a client", "node2", reflectors, "Node node1 10.9.0.1 AS64512 passive:true client:false ttl:0", ""},
		{"no mesh", "node2", func(w *model.Writer) {
			cfg := model.DefaultBGP()
			cfg.Mesh.Enabled = false
			w.PutBGPConfiguration(cfg)
		}, "", ""},
		{"a node of another ASN", "node1", func(w *model.Writer) {
			n := meshNode(2)
			n.BGP.ASN = 65002
			w.PutNode(n)
		}, "Node node2 10.9.0.2 AS65002 passive:false client:false ttl:255\n" +
			"Node node3 10.9.0.3 AS64512 passive:false client:false ttl:0", ""},
		{"a BGPPeer that is a node", "node1", func(w *model.Writer) {
			w.PutBGPPeer(&model.BGPPeer{Name: "two", Address: addr("10.9.0.2"), ASN: 64512, Port: 179,
				IPv4: true, IPv6: true,
				Timers: model.BGPTimers{Hold: model.Unset, Keepalive: model.Unset, Connect: model.Unset}})
		}, "BGPPeer two 10.9.0.2 AS64512 passive:false client:false ttl:0\n" +
			"Node node3 10.9.0.3 AS64512 passive:false client:false ttl:0", ""},
		{"a node of one family", "node3", func(w *model.Writer) {
			n := meshNode(1)
			n.InternalIPs = n.InternalIPs[1:]
			w.PutNode(n)
		}, "Node node1 fd00:9::1 AS64512 passive:true client:false ttl:0\n" +
			"Node node2 10.9.0.2 AS64512 passive:true client:false ttl:0", ""},
		{"a password that is missing", "node1", func(w *model.Writer) {
			cfg := model.DefaultBGP()
			cfg.Mesh.Password = model.SecretKey{Name: "mesh", Key: "password"}
			w.PutBGPConfiguration(cfg)
		}, "",
			"BGPConfiguration default: spec.mesh.passwordSecret: the Secret wayleave-peers/mesh has no key password"},
	} {
		s, problems := mesh(t, meshWorld(t, c.more), c.node)
		if got := sessions(s); got != c.want {
			t.Errorf("%s: the sessions are\n%s\nwant\n%s", c.name, got, c.want)
		}
		if said := fmt.Sprint(problems); c.says == "" && len(problems) > 0 || !strings.Contains(said, c.says) {
			t.Errorf("%s: problems are %s, want %q", c.name, said, c.says)
		}
		for _, x := range s.Sessions {
			if own := announced(s, x.Name); strings.HasPrefix(x.Name, "Node ") &&
				own != s.blocks(t, c.node) || x.Hold != 90*time.Second || x.Restart == 0 {
				t.Errorf("%s: %s is told %q: %+v", c.name, x.Name, own, x)
			}
		}
	}
}

// blocks are the blocks of a node of meshWorld.
func (s *State) blocks(t *testing.T, node string) string {
	t.Helper()
	i := strings.TrimPrefix(node, "node")
	return fmt.Sprintf("10.244.%s.0/24 fd00:244:0:%s::/64", i, i)
}

// A node is believed what it says of its own blocks, and a route reflector or router what it says of the blocks of
// other nodes; no node anything else.
func TestWhatIsBelievedInTheMesh(t *testing.T) {
	rnd := rand.New(rand.NewPCG(18, 3))
	for _, reflected := range []bool{false, true} {
		more := []func(*model.Writer){func(w *model.Writer) {
			w.PutBGPPeer(&model.BGPPeer{Name: "tor", Address: addr("10.9.0.254"), ASN: 65000, Port: 179, IPv4: true,
				IPv6: true, Timers: model.BGPTimers{Hold: 9 * time.Second, Keepalive: 3 * time.Second,
					Connect: time.Second}})
		}}
		if reflected {
			more = append(more, reflectors)
		}
		snap := meshWorld(t, more...)
		s, _ := mesh(t, snap, "node2")
		for range 3000 {
			owner := rnd.IntN(3) + 1
			block := meshNode(owner).PodCIDRs[rnd.IntN(2)]
			p := block
			if rnd.IntN(2) == 0 {
				p = netip.PrefixFrom(block.Addr(), rnd.IntN(block.Addr().BitLen()+1)).Masked()
			}
			for _, from := range []string{"BGPPeer tor", "Node node1", "Node node3", "Node node9"} {
				want := p == block && owner != 2 && (from == fmt.Sprint("Node node", owner) || from == "BGPPeer tor" ||
					from == "Node node1" && reflected)
				if reflected && from == "Node node3" {
					want = false // there is no such session
				}
				if got := accepts(s, from, p); got != want {
					t.Fatalf("reflected %t: %s from %s is accepted: %t", reflected, p, from, got)
				}
			}
		}
	}
}

// More nodes than sessions: the state stays within its bound, and the problem says what to do.
func TestAMeshThatIsTooLarge(t *testing.T) {
	snap := meshWorld(t, func(w *model.Writer) {
		for i := range MaxSessions + 10 {
			w.PutNode(&model.Node{Name: fmt.Sprintf("more%04d", i),
				InternalIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 10, byte(i >> 8), byte(i)})}})
		}
	})
	s, problems := mesh(t, snap, "node1")
	if len(s.Sessions) != MaxSessions || !slices.ContainsFunc(problems, func(p model.Problem) bool {
		return p.Field == "spec.mesh" && strings.Contains(p.Reason, "routeReflectorSelector")
	}) {
		t.Errorf("%d sessions, %v", len(s.Sessions), problems)
	}
}
