package speaker

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"wayleave.dev/loadbalancer/bgp"
	"wayleave.dev/model"
)

// Nodes tell each other of their blocks in both families, with a password and across ASNs; the blocks stay while a
// process is killed, and go with the node's object.
func TestAMeshOfNodes(t *testing.T) {
	t.Parallel()
	w := newRack(t, 3)
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if err := store.Write(func(m *model.Writer) {
		cfg := model.DefaultBGP()
		cfg.Mesh.Password = model.SecretKey{Name: "mesh", Key: "password"}
		cfg.Timers = model.BGPTimers{Hold: 9e9, Keepalive: 3e9, Connect: 2e9}
		m.PutBGPConfiguration(cfg)
		m.PutPeerSecret(&model.PeerSecret{Name: model.Name{Namespace: model.PeersNamespace, Name: "mesh"},
			Values: map[string]string{"password": "for nodes"}})
		for i, n := range w.nodes {
			node := &model.Node{Name: fmt.Sprint("node", i+1), InternalIPs: n.addr[:], PodCIDRs: []netip.Prefix{
				netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1)),
				netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", i+1))}}
			if i == 2 {
				node.BGP.ASN = 4200000003
			}
			m.PutNode(node)
		}
	}); err != nil {
		t.Fatal(err)
	}
	tell := func(start bool) {
		for i, n := range w.nodes {
			state, ok, problems := bgp.Plan(store.Snapshot(), bgp.Input{Node: fmt.Sprint("node", i+1), Routing: true})
			if ok != (i < store.Snapshot().Count(model.NodeKind)) || len(problems) > 0 {
				t.Fatal(ok, problems)
			}
			switch {
			case start:
				n.start(state)
			case ok:
				n.Tell(state)
			}
		}
	}
	tell(true)
	blocks := func(of ...int) (out []string) {
		for _, format := range []string{"10.244.%d.0/24 via 10.9.0.%d from Node node%d",
			"fd00:244:0:%d::/64 via fd00:9::%d from Node node%d"} {
			for _, i := range of {
				out = append(out, fmt.Sprintf(format, i, i, i))
			}
		}
		return out
	}
	w.nodes[0].learned(blocks(2, 3)...)
	w.nodes[1].learned(blocks(1, 3)...)
	w.nodes[2].learned(blocks(1, 2)...)
	pid := w.nodes[1].now().PID
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.nodes[1].again("Node node1", pid)
	w.nodes[1].learned(blocks(1, 3)...)
	if got := w.nodes[0].now().Routes; len(got) != 4 {
		t.Errorf("node1 has lost routes: %+v", got)
	}
	if err := store.Write(func(m *model.Writer) { m.Delete(model.NodeKind, model.Name{Name: "node3"}) }); err != nil {
		t.Fatal(err)
	}
	tell(false)
	w.nodes[0].learned(blocks(2)...)
}
