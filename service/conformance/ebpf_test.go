package conformance

import (
	"context"
	"net/netip"
	"path/filepath"
	"testing"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/bpf/sockets"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service/ebpf"
	"wayleave.dev/service/nftables"
)

// ebpfMode drives the ebpf mode. The programs of a node are at a cgroup of its processes and of those of its pods.
type ebpfMode struct{ Driven }

func (m *ebpfMode) Disturb(node *testnet.NS) {
	node.Run("nft", "flush", "ruleset")
	m.Forget()
}

// realEBPF starts modes of the kernel; the returned function returns the kernel of a node.
func realEBPF(t *testing.T, bypass func(model.Name) bool) (start func(*Node) Mode, of func(*Node) *sockets.Kernel) {
	kernels := map[string]*sockets.Kernel{}
	folders := testnet.BPFFS(t)
	return func(n *Node) Mode {
		tables, err := nft.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		track, err := conntrack.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		n.NS.Sysctl("net/ipv4/conf/all/route_localnet", "1")
		// A new instance has the same pins as the former one.
		k := &sockets.Kernel{NSFD: n.NS.FD(), Cgroup: n.Cgroup(), Folder: filepath.Join(folders, n.Name)}
		if kernels[n.Name] == nil {
			t.Cleanup(func() { _ = k.Remove(context.Background()) })
		}
		kernels[n.Name] = k
		mode := ebpf.New(nftables.New(tables, track), k, bypass)
		mode.SetNodeFacts(localOf(n))
		return &ebpfMode{Driven{Mode: mode, Node: n.Name}}
	}, func(n *Node) *sockets.Kernel { return kernels[n.Name] }
}

func TestEBPF(t *testing.T) {
	t.Parallel()
	start, _ := realEBPF(t, nil)
	Run(t, start)
}

// The sockets of pods are translated without any rule, and without an agent: the programs do it. What they leave to the
// rules fails then.
func TestEBPFServesPodsWithoutRules(t *testing.T) {
	t.Parallel()
	start, _ := realEBPF(t, nil)
	w := NewWorld(t, start)
	w.Set(web(), w.Pods[1], w.Pods[2])
	pod, host := w.Clients()[0], w.Clients()[2]
	if _, _, err := pod.Ask("tcp", vip(false)); err != nil { // makes the namespace known
		t.Fatal(err)
	}
	for _, n := range w.Nodes {
		n.NS.Run("nft", "flush", "ruleset")
	}
	for _, is6 := range []bool{false, true} {
		seen := map[string]bool{}
		for range 20 {
			name, from, err := pod.Ask("tcp", vip(is6))
			if err != nil || from != pick(pod.IPs, is6) {
				t.Fatalf("%q answered a pod that it saw as %s, %v", name, from, err)
			}
			seen[name] = true
		}
		if len(seen) != 2 {
			t.Errorf("only %v answered", seen)
		}
		for _, to := range []netip.AddrPort{w.nodeAddr(0, is6)} {
			if name, _, err := pod.ask("tcp", to, patience); err == nil {
				t.Errorf("%q answered at a node port, which only rules translate", name)
			}
		}
		if name, _, err := host.ask("tcp", vip(is6), patience); err == nil {
			t.Errorf("%q answered a process of the node, which only rules serve", name)
		}
	}
}
